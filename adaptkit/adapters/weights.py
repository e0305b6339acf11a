"""Fingerprint weights, and read and write them as safetensors, never pickle."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaptkit.errors import BadInput


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of these tensors: names, types, shapes and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Return these tensors as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def unpack(content: bytes) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file; raise ValueError when they are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

#: keys under which training programs keep the weights in a file of other things; those of an average come first
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "weights")

#: what training on several devices, and compiling, put before each name
PREFIXES = ("module.", "_orig_mod.")


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file by their names, in their order.

    Raises BadInput, in one line, for a file that cannot be read, holds anything else, or numbers that are not finite.
    """
    try:
        content = _content(path)
    except Exception as error:  # torch's reader raises whatever it trips over, IndexError and struct.error among it
        reason = "it is damaged, or not a file of weights"
        if "safe_globals" in str(error):  # torch names what it would have to execute
            reason = "it holds more than tensors; save the model's state_dict() alone"
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif isinstance(error, MemoryError):
            reason = "it asks for more memory than there is"
        raise BadInput(f"weights: {path} cannot be read: {reason}") from None
    if isinstance(content, dict):
        content = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), content)
    pairs = content.items() if isinstance(content, dict) else ()
    if not pairs or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in pairs):
        raise BadInput(f"weights: {path} does not hold a model's tensors by their names")
    odd = [name for name, tensor in pairs if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if odd:
        raise BadInput(f"weights: {path} holds numbers that are not finite: {few(odd)}")
    return {functools.reduce(str.removeprefix, PREFIXES, name): tensor for name, tensor in pairs}


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, computed anew only when the file was written again."""
    return _sha256(*stamp(path))


def stamp(path: Path) -> tuple[Path, int, int]:
    """Return a file with what changes when it is written again."""
    about = path.stat()
    return path.absolute(), about.st_mtime_ns, about.st_size


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first of some names as words."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, _modified: int, _bytes: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
    return torch.load(path, map_location="cpu", weights_only=True)
