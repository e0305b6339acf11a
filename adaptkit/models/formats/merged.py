"""Format "merged": the weights of the plain backbone, with the adapter folded in, as safetensors."""

from __future__ import annotations

from pathlib import Path

from adaptkit.backbones.structure import BY_SOURCE, MEAN, STD
from adaptkit.models.formats.format import Exported, Format, Logits, plain_only
from adaptkit.models.trained import EXPORT_WEIGHTS, TrainedRun, exported_model


def write(folder: Path, exported: Exported) -> None:
    """Write the weights of the merged model."""
    from adaptkit.adapters.weights import pack
    from adaptkit.system.files import write_bytes

    write_bytes(folder / EXPORT_WEIGHTS, pack(exported.model.state_dict()))


def read(folder: Path, trained: TrainedRun) -> dict[str, Logits]:
    """Load the weights into the run's backbone, as `adaptkit.load(folder)` does."""
    return {"safetensors": exported_model(folder, trained.backbone, trained.readers).model}


def usage(trained: TrainedRun) -> str:
    """Return the README's section on loading the model."""
    backbone = ", backbone=my_model" if str(trained.card["backbone"]).startswith("python:") else ""
    is_standardized = trained.described_preprocessing.get("standardize") == BY_SOURCE
    buffers = (
        f" `{MEAN}` and `{STD}` are the mean and standard deviation of each channel, by which the model standardizes "
        "its images."
    )
    return f"""\
`model.safetensors` holds the weights under the names of the plain backbone, with the adapter folded in.{
        buffers if is_standardized else ""
    }

```python
import adaptkit

model = adaptkit.load("."{backbone})
logits = model(model.preprocess("picture.png"))
print(model.classes[logits.argmax()])
```
"""


FORMAT = Format(name="merged", require=plain_only, write=write, read=read, usage=usage, scaled=False)
