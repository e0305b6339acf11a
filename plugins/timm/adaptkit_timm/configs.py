"""Find models in timm's registry."""

from __future__ import annotations

import timm
from timm.models import PretrainedCfg

from adaptkit import BadInput
from adaptkit.errors import suggestion


def find_config(name: str) -> PretrainedCfg:
    """Return timm's config of a model and its weights. Raises BadInput with the nearest name if there is none."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = suggestion(architecture, timm.list_models())
        # Without a similar name, the hint would list more than a thousand names.
        hint = hint if hint.startswith("; did") else "; timm.list_models() lists the available models"
        raise BadInput(f"backbone timm:{name}: timm has no model {architecture!r}{hint}")
    tagged = [known for known in timm.list_models(include_tags=True) if known.startswith(f"{architecture}.")]
    if tag and name not in tagged:
        hint = suggestion(tag, [known.partition(".")[2] for known in tagged])
        raise BadInput(f"backbone timm:{name}: timm has no weights {tag!r} for {architecture}{hint}")
    return timm.get_pretrained_cfg(name) or PretrainedCfg()


def classifier_names(config: PretrainedCfg) -> frozenset[str]:
    """Return the names of the weights and biases of the classifier."""
    layers = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    return frozenset(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))
