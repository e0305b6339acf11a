"""Delivery of events to a tracking store."""

from __future__ import annotations

import threading
from pathlib import Path

from adaptkit.tracking.delivery import Delivery
from adaptkit.tracking.journal import Input
from adaptkit.tracking.store import open_store


def test_long_name_of_a_data_set(store: Path) -> None:
    opened = open_store(f"sqlite:///{store}", "inputs")
    run_id = opened.client.create_run(opened.experiment_id).info.run_id
    for name in ("a" * 500, "folder:" + "/".join("abcdefgh" * 60) + "/last"):
        Delivery(opened.client, opened.experiment_id)._input(
            run_id, Input(name=name, digest=name[-40:], source="test", context="source")
        )
    names = sorted(given.dataset.name for given in opened.client.get_run(run_id).inputs.dataset_inputs)
    assert [len(name) for name in names] == [500, 500] and names[0][:3] == "..." and names[0].endswith("/h/last")


def test_simultaneous_inputs(store: Path) -> None:
    """MLflow adds a data set in two steps, between which other runs may add the same one."""
    opened = open_store(f"sqlite:///{store}", "inputs")
    delivery = Delivery(opened.client, opened.experiment_id)
    runs = [opened.client.create_run(opened.experiment_id).info.run_id for _ in range(6)]
    errors: list[Exception] = []

    def send(run_id: str, number: int, start: threading.Barrier) -> None:
        event = Input(name=f"data {number}", digest=str(number), source="test", context="source")
        start.wait()
        try:
            delivery._input(run_id, event)
        except Exception as error:
            errors.append(error)

    for number in range(6):
        start = threading.Barrier(len(runs))
        threads = [threading.Thread(target=send, args=(run_id, number, start)) for run_id in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []
    assert all(len(opened.client.get_run(run_id).inputs.dataset_inputs) == 6 for run_id in runs)
