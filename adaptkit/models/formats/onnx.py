"""Format "onnx": a model for ONNX Runtime and other readers of ONNX."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path

from adaptkit.errors import BadInput, RunFailed
from adaptkit.models.formats.format import Exported, Format, Logits
from adaptkit.models.formats.reading import reading, reading_modules, write_reader
from adaptkit.models.formats.torch_export import first_line
from adaptkit.models.trained import TrainedRun

MODEL = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
#: size in bytes above which weights are written to a second file, because a protobuf file holds at most 2 GB
LARGEST = 1_500_000_000


def require(trained: TrainedRun) -> None:
    """Raise BadInput unless the packages are installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BadInput(f"--to onnx needs {', '.join(missing)}: pip install {' '.join(NEEDED)}")


def write(folder: Path, exported: Exported) -> None:
    """Write the model, with the classes in its metadata."""
    import torch

    try:
        # torch prints progress to standard output, which is for results only.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _quiet():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                exported.model,
                (exported.example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            assert program is not None
            program.model.metadata_props["classes"] = json.dumps(exported.trained.classes)
            size = sum(tensor.nbytes for tensor in exported.model.state_dict().values())
            program.save(folder / MODEL, external_data=size > LARGEST)
    except Exception as error:  # any error of torch or onnxscript
        raise RunFailed(f"torch.onnx cannot export this model: {first_line(error)}") from error
    write_reader(folder, exported.trained)


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def read(folder: Path, trained: TrainedRun) -> dict[str, Logits]:
    """Load the model with ONNX Runtime."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(folder / MODEL, providers=["CPUExecutionProvider"])

    def logits(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return {"onnxruntime": logits}


def usage(trained: TrainedRun) -> str:
    """Return the README's section on running the model."""
    return f"""\
`model.onnx` maps `images`, floats `[n, channels, size, size]` in 0..1, to `logits` `[n, classes]`.
{reading_modules(trained)}

```python
{reading(trained, "onnxruntime")}

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(["logits"], {{"images": torch.stack([read("picture.png")]).numpy()}})
print(card["classes"][logits.argmax()])
```
"""


FORMAT = Format(name="onnx", require=require, write=write, read=read, usage=usage)
