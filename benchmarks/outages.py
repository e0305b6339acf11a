"""Time training with a healthy, slow, unreachable or failing server: python benchmarks/outages.py [--repeats 3]

A proxy in front of a real `mlflow ui` misbehaves from the first epoch of the base. `slow` responds to each request a
second late, `refuse` closes connections, `error` responds with 500, `hang` does not respond for a minute. The benchmark
measures the time from the first batch of the base to the end of the evaluation of the last run, without the upload of
remaining events. Each repeat is a separate process with an empty cache; the cases are interleaved.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import Sample, column, interleaved, machine, markdown, ratios, spread

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.proxies import Proxy, misbehaving
from support.servers import mlflow_ui

CASES = ("ok", "slow", "refuse", "error", "hang")
PLUGIN = """
import json, os, time, urllib.request

from adaptkit import hookimpl

BEGAN = []


@hookimpl
def adaptkit_run_started(run, model):
    BEGAN.append(time.monotonic())


@hookimpl
def adaptkit_epoch_ended(run, epoch):
    if run.kind == "base" and epoch.number == 1:
        request = urllib.request.Request(f"{os.environ['PROXY']}/mode/{os.environ['CASE']}", data=b"")
        urllib.request.urlopen(request, timeout=10).close()


@hookimpl(trylast=True)
def adaptkit_run_ended(run, result, model):
    with open("seconds", "w") as stream:
        stream.write(str(time.monotonic() - BEGAN[0]))
"""


def run(proxy: Proxy, case: str, arguments: list[str]) -> Sample:
    """Run an experiment with the server in this state. Return the seconds of training and evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plugin.py").write_text(PLUGIN)
        own = {"CASE": case, "PROXY": proxy.address}
        own |= {"ADAPTKIT_CACHE": f"{folder}/cache", "ADAPTKIT_STATE": f"{folder}/state"}
        where = ["--tracking-uri", proxy.address, "--plugin", "plugin.py", "-q", "--json"]
        command = [sys.executable, "-m", "adaptkit", "run", *arguments, *where]
        done = subprocess.run(command, cwd=folder, env=os.environ | own, capture_output=True, text=True)
        proxy.mode = "ok"
        if done.returncode not in (0, 1) or not done.stdout:
            sys.exit(done.stderr)
        kept = len(list(Path(folder, "state", "journals").glob("*")))
        runs = [one["status"] for one in json.loads(done.stdout)["runs"]]
        if runs != ["finished"] * len(runs):
            sys.exit(f"not all runs finished: {runs}")
        return {"seconds": float((Path(folder) / "seconds").read_text()), "kept": kept}


def main() -> None:
    """Print the seconds of training in each case, and the ratio to a healthy server, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arguments", default="-s full -s lora --seeds 0-1", help="options of `adaptkit run`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, mlflow_ui(Path(folder)) as page, misbehaving(page.address) as proxy:
        cases = {
            case: lambda case=case: {case: run(proxy, case, arguments.arguments.split())}  # type: ignore[misc]
            for case in CASES
        }
        found = interleaved(cases, arguments.repeats, lambda figures: None)
    well = column(found["ok"])
    rows = [
        [case, spread(column(samples), 1), spread(ratios(column(samples), well)), str(samples[-1]["kept"])]
        for case, samples in found.items()
    ]
    print(markdown(["server", "seconds of training and evaluation", "/ ok", "runs kept for `adaptkit sync`"], rows))
    print(json.dumps(machine(), indent=2))


if __name__ == "__main__":
    main()
