"""Use PEFT's strategies in experiments and on the command line."""

from __future__ import annotations

import json
from typing import Any

import adaptkit
import pytest
import torch
from adaptkit.backbones.structure import with_head
from adaptkit.cli import main
from adaptkit.errors import BadInput
from click.testing import CliRunner, Result
from torch import nn

import adaptkit_peft
from adaptkit_peft.strategies import strategy_classes

CLASSES = {cls.name: cls for cls in strategy_classes()}
SETTINGS = {
    "split.source": 200,
    "split.pool": 100,
    "split.test": 100,
    "shots": 5,
    "base.epochs": 2,
    "epochs": 2,
}
TINY = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture
def own_plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load this package from its file, even if it is installed."""
    monkeypatch.setenv("ADAPTKIT_ENTRY_POINTS", "0")
    monkeypatch.setenv("ADAPTKIT_PLUGINS", adaptkit_peft.__file__)
    return adaptkit_peft


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="adaptkit")


@pytest.mark.parametrize("options", [{"rank": 4}, {"rank": 4, "targets": "all"}, {"rank": 4, "rslora": True}])
def test_peft_lora_matches_builtin_lora(own_plugin: Any, options: dict[str, Any]) -> None:
    """Both draw the same A from the same seed, and B is zero."""
    names = {"rank": "r", "targets": "targets", "rslora": "use_rslora"}
    both = {f"lora.{key}": value for key, value in options.items()}
    both |= {f"peft-lora.{names[key]}": value for key, value in options.items()}
    both |= {"lora.alpha": 8, "peft-lora.lora_alpha": 8}
    outcome = adaptkit.run(["peft-lora", "lora"], settings=SETTINGS, options=both, seeds=[0, 1], track=False)
    kept = ("final/test_accuracy", "final/shifted_accuracy", "params/trainable", "params/total")
    seen: dict[str, list[Any]] = {"lora": [], "peft-lora": []}
    losses: dict[str, list[float]] = {"lora": [], "peft-lora": []}
    for record in outcome.runs:
        epochs = [(epoch.train_accuracy, epoch.test_accuracy, epoch.shifted_accuracy) for epoch in record.epochs]
        seen[record.strategy].append((record.seed, epochs, [record.metrics[key] for key in kept]))
        losses[record.strategy] += [epoch.loss for epoch in record.epochs]
    assert len(seen["lora"]) == 2
    assert seen["peft-lora"] == seen["lora"]
    assert losses["peft-lora"] == pytest.approx(losses["lora"], rel=1e-5)


def test_run_command(own_plugin: Any) -> None:
    options = ("-o", "peft-lora.use_dora=true", "-o", "peft-lora.r=4", "-o", "peft-lora.init_lora_weights=pissa")
    result = cli("run", "-s", "peft-ia3", "-s", "peft-lora", *options, *TINY, "--no-track", "--json")
    assert result.exit_code == 0, result.stderr
    runs = {run["strategy"]: run for run in json.loads(result.stdout)["runs"]}
    assert {name: run["status"] for name, run in runs.items()} == {"peft-ia3": "finished", "peft-lora": "finished"}
    # Linear layers 3136 -> 128 -> 10. IA3 has a factor per output; DoRA has rank 4 and a magnitude per output.
    assert runs["peft-ia3"]["metrics"]["params/trainable"] == 128 + 10
    assert runs["peft-lora"]["metrics"]["params/trainable"] == 4 * (3136 + 128 + 128 + 10) + 128 + 10
    assert runs["peft-lora"]["options"]["use_dora"] is True
    assert runs["peft-lora"]["options"]["init_lora_weights"] == "pissa"


@pytest.mark.slow
def test_types_with_sparse_tensors_train(own_plugin: Any) -> None:
    """Their layers save sparse tensors for the backward pass."""
    outcome = adaptkit.run(["peft-shira", "peft-frod"], settings=SETTINGS | {"epochs": 1}, track=False)
    assert [(run.status, run.error) for run in outcome.runs] == [("finished", None)] * 2


def test_unavailable_type_is_rejected(own_plugin: Any) -> None:
    result = cli("run", "-s", "peft-prefix_tuning", "--no-track")
    reason = "cannot be used: it puts trained tokens before the input of a language model"
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"Error: strategy peft-prefix_tuning {reason}\n"
    listed = " ".join(cli("strategies", "--all").stdout.split())
    assert f"C{reason[1:]}." in listed
    assert "peft-prefix_tuning" not in cli("strategies").stdout
    with pytest.raises(BadInput, match=r"^peft-xlora cannot be used: it mixes previously trained LoRA adapters"):
        CLASSES["peft-xlora"]().adapt(nn.Linear(2, 2))


def test_invalid_option(own_plugin: Any) -> None:
    result = cli("run", "-s", "peft-lora", "-o", "init_lora_weights=foo", "--no-track")
    words = "True, False, gaussian, olora, pissa, orthogonal or mica"
    assert result.stderr == f"Error: peft-lora.init_lora_weights: must be {words}, not 'foo'\n"
    model = with_head(nn.Sequential(nn.Linear(8, 4)))
    with pytest.raises(BadInput, match=r"^peft-lora: `r` should be a positive integer value .* 0$"):
        CLASSES["peft-lora"](r=0).adapt(model)
    model = with_head(nn.Sequential(nn.Linear(9, 5)))
    with pytest.raises(BadInput, match=r"^peft-oft: Invalid `oft_block_size` \(4\)! Adjusted"):
        CLASSES["peft-oft"](oft_block_size=4).adapt(model)


def test_unsupported_layers_are_rejected() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, dilation=2), nn.Flatten(), nn.Linear(8, 4))
    with pytest.raises(BadInput) as refused:
        CLASSES["peft-oft"](targets="all").adapt(with_head(layers))
    assert refused.value.problems[0] == "peft-oft cannot adapt square convolutions: 0, 1"


def test_only_chosen_layers_are_wrapped() -> None:
    """Layers with the same name ending, and an attention layer, which reads its weights without calling wrappers."""
    model = nn.ModuleDict(
        {
            "a": nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8)),
            "1": nn.Linear(8, 8),
            "attention": nn.MultiheadAttention(8, 2),
        }
    )
    CLASSES["peft-lora"](train_head=True).adapt(with_head(nn.Sequential(model, nn.Linear(8, 2))))
    adapted = sorted(name.rpartition(".")[0] for name, _ in model.named_modules() if name.endswith(".base_layer"))
    assert adapted == ["1", "a.1"]


def test_transformer_fast_path_is_disabled() -> None:
    """The fast path of torch's encoder in evaluation mode would ignore the adapter."""
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = with_head(nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 2))).eval()
    tokens = torch.randn(4, 3, 8)
    before = encoder(tokens)
    trained = CLASSES["peft-lora"](train_head=True).adapt(model)
    with torch.no_grad():
        for parameter in trained:
            parameter += 0.1
        assert not torch.allclose(encoder.eval()(tokens), before, atol=1e-3)


def test_shared_layer_is_rejected() -> None:
    layer = nn.Linear(8, 8)
    model = with_head(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(8, 2)))
    with pytest.raises(BadInput, match=r"^peft-lora cannot adapt a layer that the model uses in two places: 0$"):
        CLASSES["peft-lora"]().adapt(model)
