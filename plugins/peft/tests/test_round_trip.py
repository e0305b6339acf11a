"""Convert adapters between adaptkit's and PEFT's files in both directions, with equal logits; and from loralib."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from adaptkit.adapters.files import Inherited, fit_adapter
from adaptkit.adapters.peft import CONFIG, WEIGHTS, adapter_of, peft_folder, written_whole
from adaptkit.adapters.weights import pack
from adaptkit.backbones.structure import find_head, replace_layer, with_head
from adaptkit.errors import BadInput
from adaptkit.models.formats.peft import options_for
from adaptkit.strategies.lora import LoRA
from adaptkit.strategies.lora_layers import LoRALinear
from adaptkit.training.seeding import RandomStream
from adaptkit.training.trainable import adapt
from torch import Tensor, nn


class Network(nn.Module):
    """A network with layers of every kind. Some names have the same ending, and some are keywords of `targets`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, (3, 1), padding="same", groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.dilated = nn.Conv2d(12, 8, 3, padding=2, dilation=2)
        self.padded = nn.Conv2d(8, 6, (3, 2), padding=1, padding_mode="reflect", bias=False)
        self.fc = nn.Linear(6, 6)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 10), "head": nn.Linear(10, 6)})
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.padded(self.dilated(self.depthwise(self.grouped(self.norm(self.conv(x)).relu())).relu()).relu())
        x = self.block["head"](self.block["fc"](self.fc(x.mean((2, 3))).relu()).relu())
        logits: Tensor = self.last(x.relu())
        return logits


def base() -> nn.Module:
    with RandomStream(1):
        model = Network()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter)
        model.norm.running_mean.normal_()  # type: ignore[union-attr]
    return model.eval()


def images() -> Tensor:
    return torch.randn(4, 3, 14, 15, generator=torch.Generator().manual_seed(2))


def trained(strategy: LoRA, moved: bool = False) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return an adapted model with random trained tensors, and its adapter. `moved` also changes statistics."""
    model = with_head(base())
    tensors = (*model.parameters(), *model.buffers())
    adapt(model, strategy, init_seed=0)
    inherited = Inherited.of(model, tensors)
    with RandomStream(3), torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        if moved:
            model.norm.running_var *= 1.5  # type: ignore[operator,union-attr]
    return model.eval(), inherited.adapter(model)


def write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / WEIGHTS).write_bytes(pack(tensors))
    return folder


def in_peft(folder: Path) -> Any:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "LoRA adapter added to ConvNd layer with groups > 1")
        return peft.PeftModel.from_pretrained(base(), str(folder)).eval()


def in_ours(folder: Path) -> nn.Module:
    adapter = adapter_of(folder)
    model = with_head(base())
    adapt(model, LoRA(**options_for(adapter, model)), init_seed=9)
    fit_adapter(adapter.tensors, model)
    return model.eval()


def same(*models: nn.Module) -> bool:
    with torch.no_grad():
        first, *others = [model(images()) for model in models]
    assert not torch.allclose(first, base()(images()), atol=1e-3)
    return all(float((first - other).abs().max()) < 1e-6 for other in others)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"targets": "all"},
    {"targets": "all", "rslora": True, "rank": 3, "alpha": 5.0},
    {"targets": "all", "dora": True, "dropout": 0.2},
    {"targets": "all", "dora": True, "rslora": True, "train_head": True, "bias": "all"},
    {"targets": "conv", "rank": 4, "bias": "lora_only"},
    {"targets": "grouped"},
    {"targets": "dilated,padded", "bias": "lora_only"},
    {"targets": "fc", "train_head": True},
    {"targets": "linear", "bias": "all", "train_head": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_adaptkit_to_peft_and_back(options: dict[str, Any], tmp_path: Path) -> None:
    strategy = LoRA(**options)
    ours, tensors = trained(strategy)
    names = sorted({name.partition(".lora_A")[0] for name in tensors if ".lora_A" in name})
    files = peft_folder(tensors, vars(strategy), names, base())
    theirs = in_peft(write(tmp_path / "ours", *files))
    back = in_ours(tmp_path / "ours")
    assert same(ours, theirs, back)
    adapter = adapter_of(tmp_path / "ours")
    assert {key: value.shape for key, value in adapter.tensors.items()} == {k: v.shape for k, v in tensors.items()}
    assert all(torch.equal(value, tensors[key]) for key, value in adapter.tensors.items())
    assert set(adapter.doubled) == set(written_whole(tensors, vars(strategy), base())) and not adapter.differs(base())
    assert adapter.modules_to_save == (("last",) if strategy.train_head else ())
    theirs.save_pretrained(tmp_path / "theirs")
    assert same(ours, in_peft(tmp_path / "theirs"))
    if set(names) - set(written_whole(tensors, vars(strategy), base())):
        assert same(ours, in_ours(tmp_path / "theirs"))


def test_layers_that_peft_computes_differently(tmp_path: Path) -> None:
    strategy = LoRA(targets="all", dora=True)
    _, tensors = trained(strategy)
    reasons = {"grouped": "grouped, with DoRA", "dilated": "dilated", "padded": "padding mode reflect"}
    assert written_whole(tensors, vars(strategy), base()) == reasons
    files, config = peft_folder(tensors, vars(strategy), ["conv"], base())
    assert set(config["modules_to_save"]) == set(reasons)
    assert config["target_modules"] == ["block.fc", "block.head", "conv", "fc", "last"]
    assert {key for key in files if ".grouped." in key} == {
        "base_model.model.grouped.lora_A.weight",
        "base_model.model.grouped.lora_B.weight",
        "base_model.model.grouped.lora_magnitude_vector",
        "base_model.model.grouped.weight",
        "base_model.model.grouped.bias",
    }
    _, other = trained(LoRA(targets="fc,block.head"))
    assert peft_folder(other, vars(LoRA()), ["fc"], base())[1]["target_modules"] == r"fc|block\.head"
    without, config = peft_folder(tensors, vars(strategy), ["conv"])
    assert adapter_of(write(tmp_path, without, config)).differs(base()) == reasons
    assert config["modules_to_save"] is None and "base_model.model.grouped.weight" not in without


def test_changed_statistics(tmp_path: Path) -> None:
    ours, tensors = trained(LoRA(), moved=True)
    assert "norm.running_var" in tensors
    with pytest.raises(BadInput, match=r"^PEFT saves norm as a whole, but its weights belong to the base"):
        peft_folder(tensors, vars(LoRA()), ["fc"])
    files = peft_folder(tensors, vars(LoRA()), ["fc"], base())
    assert files[1]["modules_to_save"] == ["norm"]
    assert same(ours, in_peft(write(tmp_path, *files)), in_ours(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "r": 4, "lora_alpha": 3},
        {"use_dora": True},
        {"bias": "lora_only"},
        {"bias": "all", "modules_to_save": ["last"]},
        {"modules_to_save": ["last", "norm"], "use_dora": True, "use_rslora": True},
        {"init_lora_weights": "gaussian", "layers_to_transform": None, "lora_dropout": 0.1},
        {"target_modules": r"(conv|.*\.head)"},
        {"target_modules": ["conv", "fc", "block.head"], "r": 5},
        {"modules_to_save": ["block.fc"]},
        {"modules_to_save": ["dilated"]},
        {"target_modules": ["conv", "fc"], "rank_pattern": {"conv": 3, "fc": 3}, "alpha_pattern": {".*": 5}},
        {"target_modules": ["fc", "last"], "alpha_pattern": {"fc": 5, "last": 5}, "use_rslora": True},
    ],
    ids=str,
)
def test_peft_to_adaptkit_and_back(options: dict[str, Any], tmp_path: Path) -> None:
    import peft

    with RandomStream(5), torch.no_grad():
        config = peft.LoraConfig(**({"target_modules": ["conv", "fc", "block.head", "depthwise"]} | options))
        config.exclude_modules = {"depthwise"}
        theirs = peft.get_peft_model(base(), config).eval()
        for name, parameter in theirs.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = adapter_of(tmp_path / "theirs")
    ours = in_ours(tmp_path / "theirs")
    assert same(theirs, ours)
    LoRA(**options_for(adapter, with_head(base()))).merge(merged := copy.deepcopy(ours))
    assert same(theirs, merged) and list(merged.state_dict()) == list(base().state_dict())
    names = [name for name, module in ours.named_modules() if hasattr(module, "base_layer")]
    again = write(
        tmp_path / "ours", *peft_folder(adapter.tensors, options_for(adapter, with_head(base())), names, base())
    )
    assert same(theirs, in_peft(again))
    assert options_for(adapter, with_head(base()))["train_head"] == ("last" in (options.get("modules_to_save") or ()))
    assert (find_head(ours.head) is ours.last) and adapter.options["rank"] == (3 if config.rank_pattern else config.r)  # type: ignore[arg-type]


def test_names_with_the_same_ending(tmp_path: Path) -> None:
    """PEFT selects modules by the ending of their names in modules_to_save: `1` selects 1 and 11."""
    with RandomStream(1):
        layers = [nn.Flatten(), nn.Linear(8, 8), *(nn.ReLU() for _ in range(9)), nn.Linear(8, 8), nn.Linear(8, 3)]
        plain = nn.Sequential(*layers).eval()
    model = with_head(copy.deepcopy(plain))
    tensors = (*model.parameters(), *model.buffers())
    adapt(model, LoRA(rank=2), init_seed=0)
    kept = Inherited.of(model, tensors)
    with RandomStream(3), torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    adapter = kept.adapter(model) | {"1.weight": model.get_parameter("1.base_layer.weight") + 1}
    for key in [key for key in adapter if key.startswith("1.lora")]:
        del adapter[key]
    replace_layer(model, model.get_submodule("1"), model.get_submodule("1").base_layer)  # type: ignore[arg-type]
    model.get_parameter("1.weight").data += 1
    files, config = peft_folder(adapter, vars(LoRA(rank=2)), ["11", "12"], plain)
    assert (config["modules_to_save"], config["target_modules"]) == (["1"], ["12"])
    import peft

    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(write(tmp_path, files, config))).eval()
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(theirs(x), model.eval()(x), rtol=0, atol=1e-5)


def test_shared_layer_is_rejected() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    tensors = {"0.lora_A.weight": torch.ones(2, 4), "0.lora_B.weight": torch.ones(4, 2)}
    with pytest.raises(BadInput, match=r"^PEFT cannot adapt a layer that the model holds in two places: 0, 2$"):
        peft_folder(tensors, vars(LoRA(rank=2)), ["0"], model)


def test_loralib_factors() -> None:
    loralib: Any = pytest.importorskip("loralib")
    with RandomStream(5), torch.no_grad():
        theirs = loralib.Linear(12, 7, r=3, lora_alpha=5, merge_weights=False)
        theirs.lora_B.normal_()
        plain = nn.Linear(12, 7)
        plain.load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
        ours = LoRALinear(plain, rank=3, alpha=5, dropout=0.0)
        ours.lora_A.weight.copy_(theirs.lora_A)
        ours.lora_B.weight.copy_(theirs.lora_B)
        x = torch.randn(6, 12)
        assert float((theirs(x) - ours(x)).abs().max()) < 1e-6
        assert float((theirs(x) - ours.merged()(x)).abs().max()) < 1e-6


def test_unsupported_adapters_are_rejected(tmp_path: Path) -> None:
    _, tensors = trained(LoRA(targets="conv,fc"))
    sound = peft_folder(tensors, vars(LoRA()), ["conv"], base())

    def problems(files: dict[str, Tensor], config: dict[str, Any]) -> tuple[str, ...]:
        with pytest.raises(BadInput) as refused:
            adapter_of(write(tmp_path, files, config))
        return tuple(line.replace(f"{tmp_path}", "DIR") for line in refused.value.problems)

    def configured(**changes: Any) -> tuple[str, ...]:
        return problems(sound[0], sound[1] | changes)

    assert configured(peft_type="IA3") == (f"DIR/{CONFIG}: peft_type IA3 cannot be imported; only LORA is supported",)
    assert configured(r=0, use_dora=1, lora_bias=True) == (
        f"DIR/{CONFIG}: r cannot be 0",
        f"DIR/{CONFIG}: use_dora cannot be 1",
        f"DIR/{CONFIG}: lora_bias is not supported by adaptkit's lora",
    )
    assert configured(init_lora_weights="pissa")[0].startswith(
        f"DIR/{CONFIG}: init_lora_weights=pissa changes the base"
    )
    own = "has another rank or alpha than other layers; adaptkit's lora uses the same for all layers"
    assert configured(alpha_pattern={"conv": 3}) == (f"DIR: conv {own}",)
    assert configured(alpha_pattern={"(": 3}) == (f"DIR/{CONFIG}: alpha_pattern cannot be {{'(': 3}}",)
    assert configured(rank_pattern={"fc": 3})[0].startswith(
        "DIR: fc is damaged: A [8, 6] and B [6, 8] do not fit rank 3"
    )
    grouped = sound[0] | {"base_model.model.grouped.lora_A.weight": torch.ones(8, 8, 3, 1)}
    assert problems(grouped, sound[1]) == (
        "DIR: grouped is a grouped convolution whose update mixes the groups; it cannot be merged",
    )
    embedding = sound[0] | {"base_model.model.fc.lora_embedding_A": torch.ones(2, 2)}
    assert problems(embedding, sound[1])[0].endswith(
        "these tensors do not belong to adaptkit's LoRA: fc.lora_embedding_A"
    )
    assert problems({"fc.weight": torch.ones(1)}, sound[1]) == (
        f"DIR/{WEIGHTS} is not a file of PEFT: it has fc.weight",
    )
    (tmp_path / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(BadInput, match="is damaged"):
        adapter_of(tmp_path)
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(BadInput, match="is a pickle, which adaptkit does not read"):
        adapter_of(tmp_path)
