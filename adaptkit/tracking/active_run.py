"""Make a run MLflow's active run, so that a plugin's plain `mlflow.log_metric` lands in it."""

from __future__ import annotations

import atexit
import os
from contextlib import suppress

ENVIRONMENT = "MLFLOW_TRACKING_URI"
#: an address of a kind that MLflow has no store for
NOWHERE = "nowhere://"


class ActiveRun:
    """Hold MLflow's active run, and its tracking URI, until the run ends; then put back what was there."""

    def __init__(self, uri: str, run_id: str) -> None:
        import mlflow

        self.run_id = run_id
        self._environment = os.environ.get(ENVIRONMENT)
        self._uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(uri)
        self._store = uri
        try:
            # Nested: somebody who calls adaptkit from Python may have a run of their own open.
            mlflow.start_run(run_id=run_id, nested=True)
            self._is_active = True
        except mlflow.MlflowException as error:
            # Somebody called `mlflow.set_experiment`: then MLflow activates no run of another experiment.
            self._is_active = False
            if "active experiment ID" not in str(error):
                self._put_back()
                raise
        except BaseException:
            self._put_back()
            raise
        # MLflow ends what is left open when a process exits as finished: a signal may come while a run is being closed.
        atexit.register(self.end, "KILLED")

    def end(self, status: str, answers: bool = True) -> None:
        """End the run, and any that a plugin opened inside it and left open, with this status.

        Where the store does not `answer`, the run is only no longer the active one: the record has its end.
        """
        import mlflow

        try:
            if answers:
                try:
                    self._end(status)
                except Exception:
                    answers = False
            if not answers:
                # Each call would take its time to fail; with an address of no kind that MLflow knows it does so at
                # once. What stayed active would be ended at the exit, in a store that MLflow would make here.
                mlflow.set_tracking_uri(NOWHERE)
                while self._is_active and (run := mlflow.active_run()) is not None:
                    with suppress(mlflow.MlflowException):
                        mlflow.end_run(status)
                    if run.info.run_id == self.run_id:
                        break
            atexit.unregister(self.end)
        finally:
            self._put_back()

    def _end(self, status: str) -> None:
        import mlflow

        while self._is_active and (run := mlflow.active_run()) is not None and run.info.run_id != self.run_id:
            mlflow.end_run(status)
        # By its id, and first: `end_run` forgets the run before it writes, and a signal may come in between.
        mlflow.MlflowClient(tracking_uri=self._store).set_terminated(self.run_id, status)
        if self._is_active and mlflow.active_run() is not None:
            mlflow.end_run(status)

    def _put_back(self) -> None:
        import mlflow

        mlflow.set_tracking_uri(self._uri)  # type: ignore[arg-type]
        if self._environment is None:
            os.environ.pop(ENVIRONMENT, None)
        else:
            os.environ[ENVIRONMENT] = self._environment
