"""Hash, read and write weights; files are safetensors, and code in pickles is never executed."""

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
    """Return these tensors as the bytes of a safetensors file; tied tensors are written under each of their names."""
    from safetensors.torch import save

    written: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in places:
            plain = plain.clone()  # safetensors rejects tensors that share memory
        places.add(plain.untyped_storage().data_ptr())
        written[name] = plain
    return save(written)


def unpack(content: bytes) -> dict[str, Tensor]:
    """Return the tensors in the bytes of a safetensors file; raise ValueError if they are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

#: keys of the weights in checkpoints of other training programs; averaged weights come first
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "weights")

#: prefixes of all names after training on several devices, after compiling, and in a model that contains the model
PREFIXES = ("module.", "_orig_mod.", "model.")

#: part of names that `torch.compile` adds, also inside of a name if only a part of the model was compiled
COMPILED = "_orig_mod."


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a file of weights by name, in their order.

    Prefixes of training programs are removed from the names, in any order and number, where every name has them.
    Raises BadInput for a file that cannot be read, contains anything else, or has numbers that are not finite.
    """
    try:
        content = _content(path)
    except Exception as error:  # torch's reader raises many kinds of errors, for example IndexError and struct.error
        reason = "it is damaged or not a file of weights"
        if "safe_globals" in str(error):  # torch names the code that it would have to execute
            reason = "it contains more than tensors; save only the state_dict() of the model"
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        elif isinstance(error, MemoryError):
            reason = "it needs more memory than is available"
        raise BadInput(f"weights: {path} cannot be read: {reason}") from None
    if isinstance(content, dict):
        content = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), content)
    pairs = content.items() if isinstance(content, dict) else ()
    if not pairs or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in pairs):
        raise BadInput(f"weights: {path} does not contain a model's tensors by name")
    odd = [name for name, tensor in pairs if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if odd:
        raise BadInput(f"weights: {path} contains numbers that are not finite: {few(odd)}")
    named = _without_prefixes(dict(pairs))
    if len(named) < len(pairs):
        raise BadInput(f"weights: {path} has two tensors for one name: it holds a compiled and an uncompiled model")
    return named


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name.replace(f".{COMPILED}", "."): tensor for name, tensor in tensors.items()}
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def file_digest(path: Path) -> str:
    """Return the sha256 of a file; it is cached until the file changes."""
    return _sha256(*stamp(path))


def stamp(path: Path) -> tuple[Path, int, int]:
    """Return the path, modification time and size of a file, which identify its content."""
    about = path.stat()
    return path.absolute(), about.st_mtime_ns, about.st_size


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first few names as text."""
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
