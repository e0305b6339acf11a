"""A plugin for the benchmarks that records the times of events and of the first optimizer step of each run.

It writes lines of JSON to the file `BENCHMARK_STAMPS`. Times are those of the monotonic clock, which all processes
share, and CPU-seconds of this process with all its threads.
"""

import json
import os
import time

from adaptkit import hookimpl

#: hooks for the first step of a run, removed at the end of its first epoch because a hook cannot remove itself
waiting = []


def note(event, run):
    """Write one line."""
    line = {
        "event": event,
        "kind": run.kind,
        "run": [run.params.get("strategy"), run.params.get("seed")],
        "at": time.monotonic(),
        "cpu_seconds": time.process_time(),
    }
    with open(os.environ["BENCHMARK_STAMPS"], "a", encoding="utf-8") as stream:
        stream.write(f"{json.dumps(line)}\n")


@hookimpl
def adaptkit_run_started(run, model):
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    note("started", run)
    stepped = []

    def step(*given):
        if not stepped:
            stepped.append(True)
            note("stepped", run)

    waiting.append(register_optimizer_step_pre_hook(step))


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    note("epoch", run)
    while waiting:
        waiting.pop().remove()


@hookimpl
def adaptkit_run_ended(run, result, model):
    note("ended", run)
