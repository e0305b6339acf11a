"""The merged model: safetensors in the layout of the plain backbone."""

from __future__ import annotations

import json
from pathlib import Path

from adaptkit.models.formats.format import Exported, Format, Logits, plain_only
from adaptkit.models.trained import TrainedRun

WEIGHTS = "model.safetensors"


def write(folder: Path, exported: Exported) -> None:
    """Write the weights."""
    from adaptkit.adapters.weights import pack
    from adaptkit.system.files import write_bytes

    write_bytes(folder / WEIGHTS, pack(exported.model.state_dict()))


def read(folder: Path, trained: TrainedRun) -> dict[str, Logits]:
    """Put the weights into the backbone that the card describes, as the README says."""
    from safetensors.torch import load_file

    from adaptkit.backbones.structure import with_head
    from adaptkit.training.seeding import RandomStream

    card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    with RandomStream(0):
        model = with_head(trained.backbone.build(card["channels"], card["size"], len(card["classes"])))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return {"safetensors": model.eval()}


def usage(trained: TrainedRun) -> str:
    """Return how to load the weights."""
    given = ", backbone=my_model" if str(trained.card["backbone"]).startswith("python:") else ""
    return f"""\
`model.safetensors` holds the weights under the plain backbone's own names, the adapter folded in.

```python
import json

from adaptkit.preprocessing import Preprocessing
from adaptkit.trained import plain_model
from safetensors.torch import load_file

card = json.load(open("model.json"))
model = plain_model(card{given})
model.load_state_dict(load_file("model.safetensors"))
model.eval()
preprocess = Preprocessing(card["channels"], card["size"])
logits = model(preprocess("picture.png"))
print(card["classes"][logits.argmax()])
```
"""


FORMAT = Format("merged", plain_only, write, read, usage)
