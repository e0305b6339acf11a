"""Cache the features of frozen layers: in memory for an experiment, and on disk for test sets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from adaptkit.data.views import Views
from adaptkit.system.folders import warn_of_damage
from adaptkit.training.evaluation import computing, pass_size, synchronize
from adaptkit.training.frozen.division import Division

#: limit of all feature files, in bytes; the least recently used are evicted
DISK_LIMIT = 2 << 30
#: increased with each change of the file format, so that older files are not reported as damaged
FORMAT = 2
#: seconds after which an unfinished file of a killed process is removed
ABANDONED = 3600
#: attempts to read a file that changes while it is read
ATTEMPTS = 5


@dataclass(frozen=True)
class FeatureFiles:
    """A folder of feature tensors, one safetensors file each; if it cannot be written, nothing is stored."""

    folder: Path
    limit: int = DISK_LIMIT

    def read(self, key: str) -> tuple[Tensor, float] | None:
        """Return a tensor and the seconds that computing it took; None if the file is missing or damaged."""
        path = self.path(key)
        try:
            content = _content(path)
        except FileNotFoundError:
            return None
        if content is None:
            warn_of_damage(path)
            return None
        tensor, metadata = content
        try:
            seconds = float(metadata["seconds"])
            if metadata["channels_last"] == "True":
                tensor = tensor.contiguous(memory_format=torch.channels_last)
        except (KeyError, ValueError):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # marks it as recently used
        return tensor, seconds

    def write(self, key: str, tensor: Tensor, seconds: float) -> None:
        """Store a tensor atomically, and evict others to make room for it."""
        from safetensors.torch import save_file

        if tensor.nbytes > self.limit // 4:
            return
        # The memory format of convolutions changes the last digits and the speed of the layers that read them.
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
        """Return the path of the file of this key."""
        return self.folder / f"{hashlib.sha256(f'{FORMAT} {key}'.encode()).hexdigest()}.safetensors"

    def _make_room(self, needed: int) -> None:
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process may be evicting files too
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
    """Check whether a file is intact; a file that is removed meanwhile counts as intact."""
    try:
        return _content(path) is not None
    except FileNotFoundError:  # removed meanwhile
        return True


def _content(path: Path) -> tuple[Tensor, Mapping[str, str]] | None:
    """Return the tensor and the metadata of a file, or None if it is damaged; raise FileNotFoundError."""
    for _ in range(ATTEMPTS):
        before = _version(path)
        # Metadata and tensor are read one after the other; another process may replace the file in between.
        if (found := _read(path)) is not None or _version(path) == before:
            return found
    return None


def _version(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:  # for example below a file, or in a folder without permission
        raise FileNotFoundError(*error.args) from error
    return status.st_ino, status.st_ctime_ns


def _read(path: Path) -> tuple[Tensor, Mapping[str, str]] | None:
    from safetensors import SafetensorError, safe_open

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would never return
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            # Copied, because unaligned memory changes the order of sums, and with it the last digits.
            tensor = file.get_tensor("features").clone()
        return (tensor, metadata) if metadata["sha256"] == _sha256(tensor, metadata) else None
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
        return None


def _sha256(tensor: Tensor, metadata: Mapping[str, str]) -> str:
    """Return the checksum of a tensor and its metadata."""
    facts = [str(tensor.dtype), str(list(tensor.shape)), metadata["seconds"], metadata["channels_last"]]
    digest = hashlib.sha256("\n".join([*facts, ""]).encode())
    digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


#: limit of the features and training views that one experiment keeps in memory, in bytes
MEMORY_LIMIT = 1 << 30
#: images whose features from a file are compared with newly computed ones
CHECKED = 4


@dataclass(frozen=True)
class Value:
    """A tensor with a row for each image; `seconds` is the time that computing it took, its inputs included.

    Images may be views that are made when they are needed; features are tensors.
    """

    tensor: Views
    seconds: float


@dataclass(frozen=True)
class ImageSet:
    """Images on the model's device; `name` identifies their content; features of `lasting` ones are stored on disk."""

    name: str
    value: Value
    lasting: bool = False


class FeatureStore:
    """Features that the runs of an experiment share; each is computed once, by the first run that needs it.

    `wanted` are the digests of values that strategies read; the store keeps them whenever they are computed.
    """

    def __init__(self, precision: str, files: FeatureFiles | None, limit: int) -> None:
        self.precision = precision
        self.files = files
        self.limit = limit
        self.wanted: frozenset[str] = frozenset()
        self._kept: OrderedDict[tuple[str, str], Value] = OrderedDict()

    def images(self, name: str, make: Callable[[], Views]) -> ImageSet:
        """Return the images of this name; `make()` makes them the first time."""
        value = self._recall("images", name)
        if value is None:
            start = time.perf_counter()
            made = make()
            synchronize(made.device)
            value = self._keep("images", name, Value(made, time.perf_counter() - start))
        return ImageSet(name, value)

    def of(self, names: Iterable[str]) -> dict[tuple[str, str], Value]:
        """Return all stored values of the images of these names, for another store of the same experiment."""
        wanted = set(names)
        return {key: value for key, value in self._kept.items() if key[1] in wanted}

    def take(self, values: Mapping[tuple[str, str], Value]) -> None:
        """Add values that another store of the same experiment has computed."""
        for (digest, name), value in values.items():
            self._keep(digest, name, value)

    def forget(self, name: str) -> None:
        """Remove all values of images whose names begin with `name`."""
        for key in [key for key in self._kept if key[1].startswith(name)]:
            del self._kept[key]

    def fits(self, division: Division, images: ImageSet) -> bool:
        """Check whether the features of these images are small enough to be kept in memory."""
        return len(images.value.tensor) * division.row_bytes <= self.limit // 2

    def features(self, division: Division, images: ImageSet) -> tuple[Value, ...]:
        """Return the values at the division's cut; missing values are computed from known ones."""
        known: dict[fx.Node, Value] = {division.images: images.value}
        missing: set[fx.Node] = set()
        waiting = list(division.cut)
        while waiting:
            node = waiting.pop()
            if node in known or node in missing:
                continue
            value = self._find(division, node, images)
            if value is not None:
                known[node] = value
            else:
                missing.add(node)
                waiting.extend(node.all_input_nodes)
        if missing:
            self._compute(division, images, known=known, missing=missing)
        return tuple(known[node] for node in division.cut)

    def _find(self, division: Division, node: fx.Node, images: ImageSet) -> Value | None:
        digest = division.digests[node]
        value = self._recall(digest, images.name)
        if value is not None or self.files is None or not images.lasting:
            return value
        if node not in division.cut and not self._is_wanted(division, node):
            return None
        read = self.files.read(self._file_key(digest, images))
        if read is None:
            return None
        device = images.value.tensor.device
        value = Value(read[0].to(device), read[1])
        # Compared with newly computed features, because a layer's code can change while its digest stays the same.
        fresh = self._run(division.frozen([division.images], [node]), [images.value.tensor[:CHECKED]], CHECKED)[0]
        kept = value.tensor[:CHECKED]
        if len(value.tensor) != len(images.value.tensor) or kept.shape != fresh.shape or kept.dtype != fresh.dtype:
            return None
        tolerance = 1e-6 if fresh.dtype == torch.float32 else 1e-2
        if not torch.allclose(kept, fresh, rtol=tolerance, atol=tolerance):
            return None
        return self._keep(digest, images.name, value)

    def _compute(
        self, division: Division, images: ImageSet, *, known: dict[fx.Node, Value], missing: set[fx.Node]
    ) -> None:
        """Compute the missing values at the cut and add them to `known`; also store values of other strategies."""
        ends = [
            node
            for node in division.graph.nodes
            if node in missing and (node in division.cut or self._is_wanted(division, node))
        ]
        starts = [node for node in known if any(user in missing for user in node.users)]
        start = time.perf_counter()
        tensors = self._run(
            division.frozen(starts, ends), [known[node].tensor for node in starts], pass_size(images.value.tensor)
        )
        synchronize(images.value.tensor.device)
        # Values computed together share their time: the maximum counts, not the sum.
        seconds = time.perf_counter() - start + max(known[node].seconds for node in starts)
        for node, tensor in zip(ends, tensors, strict=True):
            digest = division.digests[node]
            known[node] = self._keep(digest, images.name, Value(tensor, seconds))
            if images.lasting and self.files is not None:
                self.files.write(self._file_key(digest, images), tensor, seconds)

    def _is_wanted(self, division: Division, node: fx.Node) -> bool:
        return division.digests[node] in self.wanted and not division.is_overwritten(node)

    @torch.no_grad()
    def _run(self, network: nn.Module, tensors: list[Views], at_once: int) -> list[Tensor]:
        device = tensors[0].device
        parts = zip(*(tensor.split(at_once) for tensor in tensors), strict=True)
        with computing(device, self.precision):
            results = [network(*part) for part in parts]
        return [torch.cat(pieces) for pieces in zip(*results, strict=True)]

    def _recall(self, digest: str, name: str) -> Value | None:
        value = self._kept.get((digest, name))
        if value is not None:
            self._kept.move_to_end((digest, name))
        return value

    def _keep(self, digest: str, name: str, value: Value) -> Value:
        self._kept[(digest, name)] = value
        held = sum(kept.tensor.nbytes for kept in self._kept.values())
        while held > self.limit and self._kept:
            _, oldest = self._kept.popitem(last=False)
            held -= oldest.tensor.nbytes
        return value

    def _file_key(self, digest: str, images: ImageSet) -> str:
        device = images.value.tensor.device
        chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        return "\n".join([digest, images.name, self.precision, device.type, chip, str(threads), torch.__version__])
