"""The program that support.processes starts: import adaptkit, torch and MLflow once, then fork a process per request.

A request is one message on the socket with this number: a JSON document, and the descriptors of a socket and of
standard input, output and error. The answers on that socket are the process id, then the exit code as in
`subprocess.Popen.returncode`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import sys
from typing import Any

#: what a run imports before it trains and when it writes its results
MODULES = (
    *("torch", "torchvision", "torch._dynamo", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlxtend.data"),
    *("matplotlib.pyplot", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.metrics", "rich.table"),
)


def main(control: socket.socket) -> dict[str, Any]:
    """Answer requests until the other end is closed. Return a request in the new process that executes it."""
    del sys.path[0]  # the folder of this file, whose modules are not to be found by their short names
    for module in (*MODULES, "adaptkit"):
        importlib.import_module(module)
    for found in pkgutil.walk_packages(importlib.import_module("adaptkit").__path__, "adaptkit."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    gc.freeze()  # collections in the new processes would copy the memory of all imported modules
    # Tests send these; a shell may have told its background processes to ignore them.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system removes keepers that have ended
    while True:
        message, handles, *_ = socket.recv_fds(control, 1 << 20, 4)
        if not message:  # the tests have ended, and with them what they left running
            os.killpg(os.getpgrp(), signal.SIGKILL)
        request: dict[str, Any] = json.loads(message)
        if os.fork() == 0:
            control.close()
            keep(*handles)
            return request
        for handle in handles:
            os.close(handle)


def keep(answers: int, *streams: int) -> None:
    """Fork the process of a request, and return in it; this process waits for it, and sends its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        for number, handle in enumerate(streams):
            os.dup2(handle, number)
        for handle in (answers, *streams):
            os.close(handle)
        return
    for handle in (*streams, 0, 1, 2):  # nothing else keeps the streams of the tests open
        os.close(handle)
    os.write(answers, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def execute(request: dict[str, Any]) -> None:
    """Run `python -m adaptkit`, or a program, in this process, as in a fresh one."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path.insert(0, request["folder"])
    if request["code"]:
        sys.argv = ["-c", *request["arguments"]]
        exec(request["code"], {"__name__": "__main__"})
    else:
        sys.argv = ["adaptkit", *request["arguments"]]
        runpy.run_module("adaptkit", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    execute(main(socket.socket(fileno=int(sys.argv[1]))))
