"""Make a run MLflow's active run, so that calls of `mlflow.log_metric` in plugins log to this run."""

from __future__ import annotations

import atexit
import os
from contextlib import suppress

ENVIRONMENT = "MLFLOW_TRACKING_URI"
#: an address for which MLflow has no store
NOWHERE = "nowhere://"


class ActiveRun:
    """Set MLflow's active run and tracking URI until the run ends; then restore the previous tracking URI."""

    def __init__(self, uri: str, run_id: str) -> None:
        import mlflow

        self.run_id = run_id
        self._environment = os.environ.get(ENVIRONMENT)
        self._uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        mlflow.set_tracking_uri(uri)
        self._store = uri
        try:
            # Nested: the Python program that calls adaptkit may have an active run.
            mlflow.start_run(run_id=run_id, nested=True)
            self._is_active = True
        except mlflow.MlflowException as error:
            # After `mlflow.set_experiment`, MLflow does not activate runs of other experiments.
            self._is_active = False
            if "active experiment ID" not in str(error):
                self._restore()
                raise
        except BaseException:
            self._restore()
            raise
        # At exit, MLflow ends active runs as finished. A signal may have interrupted `end`.
        atexit.register(self.end, "KILLED")

    def end(self, status: str, answers: bool = True) -> None:
        """End the run, and runs that a plugin opened inside it and did not end, with this status.

        If the store does not answer, the run is only deactivated; its end is already queued.
        """
        import mlflow

        try:
            if answers:
                try:
                    self._end(status)
                except Exception:
                    answers = False
            if not answers:
                # With an address of unknown kind, calls fail at once instead of after a timeout. The run must not stay
                # active: at exit, MLflow would end it in a new store in the current folder.
                mlflow.set_tracking_uri(NOWHERE)
                while self._is_active and (run := mlflow.active_run()) is not None:
                    with suppress(mlflow.MlflowException):
                        mlflow.end_run(status)
                    if run.info.run_id == self.run_id:
                        break
            atexit.unregister(self.end)
        finally:
            self._restore()

    def _end(self, status: str) -> None:
        import mlflow

        while self._is_active and (run := mlflow.active_run()) is not None and run.info.run_id != self.run_id:
            mlflow.end_run(status)
        # End it by its id first: `end_run` deactivates the run before it writes, and a signal may arrive in between.
        mlflow.MlflowClient(tracking_uri=self._store).set_terminated(self.run_id, status)
        if self._is_active and mlflow.active_run() is not None:
            mlflow.end_run(status)

    def _restore(self) -> None:
        import mlflow

        mlflow.set_tracking_uri(self._uri)  # type: ignore[arg-type]
        if self._environment is None:
            os.environ.pop(ENVIRONMENT, None)
        else:
            os.environ[ENVIRONMENT] = self._environment
