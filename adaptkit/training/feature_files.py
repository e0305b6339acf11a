"""Keep features on disk: bounded, shared between processes, and never trusted when they are damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaptkit.cache import warn_of_damage

#: bytes of all feature files; the least recently used go first
DISK_LIMIT = 2 << 30
#: raised whenever files are written otherwise, so that older ones are not taken for damaged
FORMAT = 2
#: seconds after which a file that a killed process left half-written is removed
ABANDONED = 3600
#: how often a file is read that changes while it is read
ATTEMPTS = 5


@dataclass(frozen=True)
class FeatureFiles:
    """A folder of feature tensors, one safetensors file each; a folder that cannot be written keeps nothing."""

    folder: Path
    limit: int = DISK_LIMIT

    def read(self, key: str) -> tuple[Tensor, float] | None:
        """Return a tensor and the seconds that computing it took; None if it is not there or damaged."""
        path = self.path(key)
        try:
            found = _content(path)
        except FileNotFoundError:
            return None
        if found is None:
            warn_of_damage(path)
            return None
        tensor, metadata = found
        try:
            seconds = float(metadata["seconds"])
            if metadata["channels_last"] == "True":
                tensor = tensor.contiguous(memory_format=torch.channels_last)
        except (KeyError, ValueError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used last: the others go first
        return tensor, seconds

    def write(self, key: str, tensor: Tensor, seconds: float) -> None:
        """Keep a tensor, whole or not at all, and make room for it."""
        from safetensors.torch import save_file

        if tensor.nbytes > self.limit // 4:
            return
        # How convolutions lay out their results matters for the bits and the time of what reads them.
        layout = tensor.ndim == 4 and not tensor.is_contiguous()
        plain = tensor.detach().cpu().contiguous()
        metadata = {"seconds": repr(seconds), "channels_last": str(layout)}
        metadata["sha256"] = _sha256(plain, metadata)
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(plain.nbytes)
            handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
            os.close(handle)
            save_file({"features": plain}, temporary, metadata)
            os.chmod(temporary, 0o644)
            os.replace(temporary, self.path(key))
        except OSError:  # full, read-only, or (on Windows) read by another process: features can be computed again
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def path(self, key: str) -> Path:
        """Return where the tensor of this key is kept."""
        return self.folder / f"{hashlib.sha256(f'{FORMAT} {key}'.encode()).hexdigest()}.safetensors"

    def _make_room(self, needed: int) -> None:
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process makes room too
                status = path.stat()
                if path.suffix == ".part" and time.time() - status.st_mtime > ABANDONED:
                    path.unlink()
                elif path.suffix == ".safetensors":
                    files.append((status.st_mtime, status.st_size, path))
        held = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if held + needed <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            held -= size


def sound(path: Path) -> bool:
    """Tell whether a file holds the tensor that was written to it."""
    try:
        return _content(path) is not None
    except FileNotFoundError:  # removed meanwhile
        return True


def _content(path: Path) -> tuple[Tensor, Mapping[str, str]] | None:
    """Return the tensor of a file and what stands beside it, None if it is damaged; raise FileNotFoundError."""
    for _ in range(ATTEMPTS):
        before = _version(path)
        # Its head and its tensor are read one after the other: another process may replace or remove it in between.
        if (found := _read(path)) is not None or _version(path) == before:
            return found
    return None


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:  # it is below a file, or in a folder that may not be read
        raise FileNotFoundError(*error.args) from error
    return status.st_ino, status.st_ctime_ns


def _read(path: Path) -> tuple[Tensor, Mapping[str, str]] | None:
    from safetensors import SafetensorError, safe_open

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # of a pipe the opening would not end
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            # Into memory of torch's own: where a file happens to lie unaligned, sums are taken in another order.
            tensor = file.get_tensor("features").clone()
        return (tensor, metadata) if metadata["sha256"] == _sha256(tensor, metadata) else None
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def _sha256(tensor: Tensor, metadata: Mapping[str, str]) -> str:
    """Return the checksum of a tensor's bytes and of all that says what they are."""
    said = [str(tensor.dtype), str(list(tensor.shape)), metadata["seconds"], metadata["channels_last"]]
    digest = hashlib.sha256("\n".join([*said, ""]).encode())
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
