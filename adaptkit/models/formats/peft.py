"""Format "peft": a LoRA adapter as a folder of Hugging Face PEFT."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptkit.adapters.files import fit_adapter
from adaptkit.adapters.peft import CONFIG, WEIGHTS, PeftAdapter, adapter_of, peft_folder
from adaptkit.adapters.weights import pack
from adaptkit.backbones.structure import find_head
from adaptkit.errors import BadInput
from adaptkit.models.formats.format import Exported, Format, Logits
from adaptkit.models.trained import TrainedRun
from adaptkit.names import BASE_RUN_ID_TAG
from adaptkit.plugins.components import make_checked, options_of
from adaptkit.strategies.lora import LoRA
from adaptkit.system.files import write_bytes
from adaptkit.training.objective import calibrate
from adaptkit.training.trainable import adapt

SUFFIX = ".lora_A.weight"


def require(trained: TrainedRun) -> None:
    """Raise BadInput unless the strategy of the run is LoRA, with options that PEFT supports."""
    strategy = trained.card.get("strategy")
    if strategy != "lora":
        reason = "a base has no adapter" if strategy is None else f"PEFT's files cannot hold strategy {strategy}"
        other = "merged" if trained.is_plain(trained.merged()) else "torch-export or onnx"
        raise BadInput(f"--to peft needs a run of strategy lora: {reason}; export with --to {other}")
    _folder(trained)


def _folder(trained: TrainedRun) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors = trained.adapter
    options = {name: getattr(trained.strategy, name) for name in options_of(LoRA)}
    targets = [name.removesuffix(SUFFIX) for name in tensors if name.endswith(SUFFIX)]
    return peft_folder(tensors, options, targets, base=trained.base())


def write(folder: Path, exported: Exported) -> None:
    """Write PEFT's two files."""
    tensors, config = _folder(exported.trained)
    write_bytes(folder / WEIGHTS, pack(tensors))
    write_bytes(folder / CONFIG, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def read(folder: Path, trained: TrainedRun) -> dict[str, Logits]:
    """Load the adapter onto a fresh base: with adaptkit, and with PEFT if it is installed."""
    models: dict[str, nn.Module] = {"adaptkit": read_onto(trained.base(), folder)}
    if importlib.util.find_spec("peft") is not None:
        from peft import PeftModel

        models[f"peft {importlib.metadata.version('peft')}"] = PeftModel.from_pretrained(trained.base(), folder).eval()
    # The code in the README divides by the temperature, too.
    return {name: calibrate(model, trained.temperature) for name, model in models.items()}


def options_for(adapter: PeftAdapter, base: nn.Module) -> dict[str, Any]:
    """Return the options of LoRA for an adapter and a base that has a `head`.

    Raises BadInput for layers on which PEFT gives other outputs than adaptkit.
    """
    if differing := adapter.differs(base):
        layers = ", ".join(f"{name} ({reason})" for name, reason in differing.items())
        raise BadInput(f"PEFT computes another update of {layers}; leave such layers out of its target_modules")
    head = find_head(base.head)  # type: ignore[arg-type]
    names = {name for name, module in base.named_modules() if module is head}
    return dict(adapter.options) | {"train_head": not names.isdisjoint(adapter.modules_to_save)}


def read_onto(base: nn.Module, folder: Path) -> nn.Module:
    """Load the adapter in a folder of PEFT onto the base."""
    adapter = adapter_of(folder)
    strategy, _ = make_checked("lora", LoRA, options_for(adapter, base))
    adapt(base, strategy, init_seed=0)
    fit_adapter(adapter.tensors, base)
    return base.eval()


def usage(trained: TrainedRun) -> str:
    """Return the README's section on loading the adapter onto its base."""
    base = trained.stored.tags.get(BASE_RUN_ID_TAG, "BASE_RUN_ID")
    divided = "" if trained.temperature is None else f" / {trained.temperature!r}"
    return f"""\
`{WEIGHTS}` and `{CONFIG}` are PEFT's files, for the base with sha256 `{trained.base_fingerprint}`. This code loads the
base from the run's MLflow store (`MLFLOW_TRACKING_URI`, or `mlflow.db` in the current folder):

```python
import adaptkit
from peft import PeftModel

base = adaptkit.load("{base}")
model = PeftModel.from_pretrained(base, ".").eval()
logits = model(base.preprocess("picture.png")){divided}
print(base.classes[logits.argmax()])
```

`adaptkit export {base} --to merged -o base` exports the base, for use without the store.
"""


FORMAT = Format(name="peft", require=require, write=write, read=read, usage=usage, tolerance=1e-5, scaled=False)
