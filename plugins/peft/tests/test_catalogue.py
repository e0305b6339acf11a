"""The catalogue matches the installed PEFT, loads without PEFT, and is measured again for other versions."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from adaptkit.errors import BadInput
from adaptkit.plugins.components import make_component

from adaptkit_peft import adaptkit_strategies, catalogue, measurement, strategies
from adaptkit_peft.table import with_table

README = Path(__file__).parents[1] / "README.md"
PACKAGED_VERSION = json.loads(catalogue.PACKAGED.read_text())["peft"]

only_for_the_packaged_version = pytest.mark.skipif(
    importlib.metadata.version("peft") != PACKAGED_VERSION,
    reason=f"the packaged catalogue is for PEFT {PACKAGED_VERSION}",
)


@only_for_the_packaged_version
def test_packaged_catalogue_matches_measurement() -> None:
    assert catalogue.written(PACKAGED_VERSION, measurement.measured()) == catalogue.PACKAGED.read_text()


@only_for_the_packaged_version
def test_readme_table() -> None:
    text = README.read_text()
    assert with_table(text) == text


@only_for_the_packaged_version
def test_listing_imports_no_torch_or_peft() -> None:
    code = (
        "import sys, adaptkit_peft\n"
        "classes = adaptkit_peft.adaptkit_strategies()\n"
        "print(len(classes), *sorted({'torch', 'peft', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(catalogue.read()))]


def test_other_version_is_measured_once(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue.Entry("LORA", "", ("linear layers",), True, True, ())
    calls: list[int] = []

    def measured() -> tuple[catalogue.Entry, ...]:
        calls.append(1)
        return (entry,)

    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "cache"))
    monkeypatch.setattr(measurement, "measured", measured)
    monkeypatch.setattr(catalogue, "installed_version", lambda: "99.0")
    assert (catalogue.read(), catalogue.read(), len(calls)) == ((entry,), (entry,), 1)
    (own_folder / "cache" / "peft" / "99.0.json").write_text("{")
    assert (catalogue.read(), len(calls)) == ((entry,), 2)


def test_missing_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(BadInput, match=r"^PEFT is not installed; run: pip install peft$"):
        adaptkit_strategies()


def test_strategy_descriptions() -> None:
    components = [make_component("strategy", cls, "test") for cls in adaptkit_strategies()]
    by_name = {component.name: component for component in components}
    assert len(by_name) == len(catalogue.read())
    assert by_name["peft-lora"].summary.startswith("PEFT's LoRA (Hu et al., 2021, arXiv:2106.09685)")
    assert by_name["peft-prompt_tuning"].unavailable == "it puts trained tokens before the input of a language model"
    assert not by_name["peft-lora"].unavailable


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_pickle_and_copy(duplicate: Any) -> None:
    (cls,) = [cls for cls in strategies.strategy_classes() if cls.name == "peft-lora"]
    strategy = cls(r=4, use_dora=True, init_lora_weights="gaussian")
    other = duplicate(strategy)
    assert type(other) is cls and vars(other) == vars(strategy) and other is not strategy
