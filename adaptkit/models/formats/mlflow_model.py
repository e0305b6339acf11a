"""Format "mlflow": a model for `mlflow models serve` and `mlflow.pyfunc.load_model`."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path

from adaptkit.errors import RunFailed
from adaptkit.models.formats.format import Exported, Format, Logits, anything
from adaptkit.models.formats.reading import reading, reading_modules, write_reader
from adaptkit.models.formats.torch_export import first_line
from adaptkit.models.trained import TrainedRun

PINNED = ("mlflow", "numpy", "torch")


def write(folder: Path, exported: Exported) -> None:
    """Write the model as a torch.export program with signature, input example, requirements and metadata."""
    import mlflow
    import torch
    from mlflow.models import infer_signature

    example = exported.example.numpy()
    with torch.inference_mode():
        logits = exported.model(exported.example.clone()).numpy()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pytorch.save_model(
                exported.model,
                str(folder),
                signature=infer_signature(example, logits),
                input_example=example,
                # Omit local labels such as +cpu, because package indexes do not have them.
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in PINNED],
                serialization_format="pt2",
                metadata={
                    "classes": list(exported.trained.classes),
                    "preprocessing": dict(exported.trained.described_preprocessing),
                },
            )
    except Exception as error:  # any error of MLflow or torch
        raise RunFailed(f"MLflow cannot save this model: {first_line(error)}") from error
    write_reader(folder, exported.trained)


def read(folder: Path, trained: TrainedRun) -> dict[str, Logits]:
    """Load the model as a Python function."""
    import mlflow
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlflow.pyfunc.load_model(folder.absolute().as_uri())

    def logits(images: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(model.predict(images.numpy()))

    return {"mlflow.pyfunc": logits}


def usage(trained: TrainedRun) -> str:
    """Return the README's section on serving and loading the model."""
    return f"""\
Serve it, and send the two images of the input example:

```sh
mlflow models serve -m . --env-manager local --port 5001
```
```sh
curl http://127.0.0.1:5001/invocations -H "Content-Type: application/json" -d @serving_input_example.json
```

Send a picture from Python. {reading_modules(trained)}

```python
{reading(trained, "requests")}

body = {{"inputs": torch.stack([read("picture.png")]).tolist()}}
answer = requests.post("http://127.0.0.1:5001/invocations", json=body)
logits = torch.tensor(answer.json()["predictions"])
print(card["classes"][logits.argmax()])
```

Without a server, `mlflow.pyfunc.load_model(".").predict(images)` takes a NumPy array of float32 images
`[n, channels, size, size]` in 0..1. The model's `metadata` also holds the names of the classes and the preprocessing.
"""


FORMAT = Format(name="mlflow", require=anything, write=write, read=read, usage=usage)
