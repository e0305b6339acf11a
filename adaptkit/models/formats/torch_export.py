"""Format "torch-export": a program that torch runs without the source code of the model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from adaptkit.errors import RunFailed
from adaptkit.models.formats.format import Exported, Format, Logits, anything
from adaptkit.models.formats.reading import reading, reading_modules, write_reader
from adaptkit.models.trained import TrainedRun

PROGRAM = "model.pt2"


def exported_program(exported: Exported) -> Any:
    """Return the model as a program for any batch size; raise RunFailed if it cannot be traced."""
    import torch

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            shapes = ({0: torch.export.Dim("batch")},)
            # The program stores its example input, so use zeros instead of images of the user.
            images = torch.zeros_like(exported.example)
            return torch.export.export(exported.model, (images,), dynamic_shapes=shapes)
    except Exception as error:  # any error of torch
        raise RunFailed(f"torch.export cannot export this model: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the type and the first line of another library's error."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def write(folder: Path, exported: Exported) -> None:
    """Write the program."""
    import torch

    torch.export.save(exported_program(exported), folder / PROGRAM)
    write_reader(folder, exported.trained)


def read(folder: Path, trained: TrainedRun) -> dict[str, Logits]:
    """Load the program."""
    import torch

    return {"torch.export": torch.export.load(folder / PROGRAM).module()}


def usage(trained: TrainedRun) -> str:
    """Return the README's section on running the program."""
    return f"""\
`model.pt2` is a `torch.export` program from float images `[n, channels, size, size]` in 0..1 to logits. It needs
only torch. {reading_modules(trained)}

```python
{reading(trained)}

model = torch.export.load("model.pt2").module()
logits = model(torch.stack([read("picture.png")]))
print(card["classes"][logits.argmax()])
```
"""


FORMAT = Format(name="torch-export", require=anything, write=write, read=read, usage=usage)
