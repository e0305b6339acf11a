"""Hostile adapters and files of weights are refused with an expected error, and no code in them runs."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from typing import Any

import torch
from hostile import Choices, file_of, hostile, refusals, scratch
from safetensors.torch import save
from torch import Tensor, nn

from adaptkit.adapters.files import card_digest, load_adapter, read_card
from adaptkit.adapters.peft import CONFIG, adapter_of
from adaptkit.adapters.peft import WEIGHTS as PEFT_WEIGHTS
from adaptkit.adapters.weights import read_weight_file
from adaptkit.models.trained import ADAPTER_TYPES, MODEL_TYPES
from adaptkit.names import ADAPTER_CARD_FILE, ADAPTER_WEIGHTS_FILE

CARD = {
    **{"strategy": "lora", "options": {}, "init_seed": 0, "base_fingerprint": "0", "sha256": "0"},
    **{"backbone": "small_cnn", "backbone_options": {}, "preprocessing": {}, "channels": 1, "size": 28},
    "classes": ["0", "1"],
}
PEFT = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"body": 2}, "use_dora": False}
# A [2, 2] and B [3, 2] of `body`, float32
FACTORS = bytes([2, 0, 2, 2, 2, 0, 0, 1, 2, 3, 2, 0, 0])


class Net(nn.Module):
    """A model with a head, small enough for thousands of test cases."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)


def _safetensors() -> bytes:
    return save({"body.weight": torch.ones(3, 2)})


def _saved(**how: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"body.weight": torch.ones(2, 2), "n": torch.zeros(1, dtype=torch.int8)}, file, **how)
    return file.getvalue()


def _saved_pickle() -> bytes:
    with zipfile.ZipFile(io.BytesIO(_saved())) as archive:
        return archive.read("archive/data.pkl")


def _weights(made: Choices, names: tuple[str, ...]) -> bytes:
    """Return a safetensors file of tensors with chosen names, shapes and numbers."""
    kinds = (torch.float32, torch.float16, torch.int64, torch.bool)
    tensors: dict[str, Tensor] = {}
    for _ in range(made.number(5)):
        name = names[made.number(len(names))]
        shape = [made.number(5) for _ in range(made.number(5))]
        tensor = torch.full(shape, (0.5, float("nan"), float("inf"), 3.0)[made.number(4)])
        kind = kinds[made.number(4)]
        tensors[name] = tensor.nan_to_num().to(kind) if kind in (torch.int64, torch.bool) else tensor.to(kind)
    return save(tensors)


def _archive(pickled: bytes) -> bytes:
    """Return a file of `torch.save` that contains this pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", bytes(64))
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


@hostile(
    json.dumps(CARD).encode(),
    words=tuple(f'"{key}"' for key in CARD),
    found=(b"[" * 100_000,),
)
def test_card(data: bytes) -> None:
    """Read the card of an adapter."""
    with refusals():
        card_digest(read_card(file_of(data, "adapter.json"), ADAPTER_TYPES | MODEL_TYPES))


@hostile(
    b"\0" + _safetensors(),
    bytes([1, 3, 0, 2, 3, 2, 0, 0, 1, 1, 3, 0, 0]),
    bytes([1, 1, 3, 1, 3, 1, 0]),
)
def test_adapter(data: bytes) -> None:
    """Load an adapter into a model: its weights are the bytes, or tensors made from them, with a matching card."""
    made = Choices(data)
    content = data[1:] if made.number(2) == 0 else _weights(made, ("body.weight", "body.bias", "head.weight", "x"))
    said = {"base_fingerprint": "0", "sha256": hashlib.sha256(content).hexdigest()}
    said["card_sha256"] = card_digest(said)
    folder = scratch()
    (folder / ADAPTER_WEIGHTS_FILE).write_bytes(content)
    (folder / ADAPTER_CARD_FILE).write_text(json.dumps(said))
    with refusals():
        load_adapter(folder, Net(), "0")


@hostile(
    b"\0" + _safetensors(),
    b"\1" + _saved(),
    b"\2" + _saved(_use_new_zipfile_serialization=False),
    found=(
        b"\2\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x81",  # IndexError
        b"\2\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02X\xff\xff\xff\x7f",  # asks for 2 GB
    ),
)
def test_weights(data: bytes) -> None:
    """Read a file of weights, as `--weights FILE` does: safetensors and formats of torch."""
    suffix = (".safetensors", ".pt", ".pth", ".bin")[Choices(data).number(4)]
    with refusals():
        read_weight_file(file_of(data[1:], f"weights{suffix}"))


@hostile(
    _saved_pickle(),
    b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x02}q\x00.",
    words=("ctorch._utils\n_rebuild_tensor_v2\n", "ccollections\nOrderedDict\n", "cbuiltins\neval\n", "storage"),
    found=(b"q\x81.", b"\x80\x02}G\x00.", b"cbuiltins\neval\n(S'1'\ntR."),
)
def test_pickles(data: bytes) -> None:
    """Read a valid archive of torch with a hostile pickle."""
    with refusals():
        read_weight_file(file_of(_archive(data), "weights.pt"))


@hostile(
    json.dumps(PEFT).encode() + b"\0" + FACTORS,
    words=tuple(f'"{key}"' for key in (*PEFT, "alpha_pattern")),
)
def test_peft(data: bytes) -> None:
    """Read a folder of PEFT: a configuration, a zero byte, and bytes that make the tensors."""
    text, _, rest = data.partition(b"\0")
    folder = scratch() / "peft"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes(text)
    inner = "base_model.model."
    names = tuple(
        f"{inner}{layer}.{part}"
        for layer in ("body", "head", "..")
        for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "weight", "modules_to_save.bias")
    )
    (folder / PEFT_WEIGHTS).write_bytes(_weights(Choices(rest), names))
    with refusals():
        adapter_of(folder)
