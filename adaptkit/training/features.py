"""Compute what frozen layers make of images once, and keep it: in memory for an experiment, on disk for test sets."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from adaptkit.data.views import Views
from adaptkit.training.evaluation import computing, pass_size, synchronize
from adaptkit.training.feature_files import FeatureFiles
from adaptkit.training.prefix import Division

#: bytes of features, and of training images as the model sees them, that one experiment keeps in memory
MEMORY_LIMIT = 1 << 30
#: images whose features, when they come from a file, are held against fresh ones
CHECKED = 4


@dataclass(frozen=True)
class Value:
    """A tensor with a row for each image; `seconds` is what computing it took, with all that it comes from.

    Images, not features, may be views that are made when they are needed.
    """

    tensor: Views
    seconds: float


@dataclass(frozen=True)
class ImageSet:
    """Images on the model's device under a name that stands for their content; `lasting` ones are worth a file."""

    name: str
    value: Value
    lasting: bool = False


class FeatureStore:
    """The features that an experiment's runs share: each is computed once, by the run that needs it first.

    `wanted` are the digests of all values that some strategy's trained part reads: they are kept when they come by.
    """

    def __init__(self, precision: str, files: FeatureFiles | None, limit: int) -> None:
        self.precision = precision
        self.files = files
        self.limit = limit
        self.wanted: frozenset[str] = frozenset()
        self._kept: OrderedDict[tuple[str, str], Value] = OrderedDict()

    def images(self, name: str, make: Callable[[], Views]) -> ImageSet:
        """Return the images of this name, made the first time by `make()`."""
        value = self._recall("images", name)
        if value is None:
            start = time.perf_counter()
            made = make()
            synchronize(made.device)
            value = self._keep("images", name, Value(made, time.perf_counter() - start))
        return ImageSet(name, value)

    def of(self, names: Iterable[str]) -> dict[tuple[str, str], Value]:
        """Return all that is kept of the images of these names, for another store of the same experiment."""
        wanted = set(names)
        return {key: value for key, value in self._kept.items() if key[1] in wanted}

    def take(self, values: Mapping[tuple[str, str], Value]) -> None:
        """Keep what another store of the same experiment has computed."""
        for (digest, name), value in values.items():
            self._keep(digest, name, value)

    def forget(self, name: str) -> None:
        """Drop all that comes from images whose name begins so."""
        for key in [key for key in self._kept if key[1].startswith(name)]:
            del self._kept[key]

    def fits(self, division: Division, images: ImageSet) -> bool:
        """Tell whether a division's features of these images are small enough to be kept."""
        return len(images.value.tensor) * division.row_bytes <= self.limit // 2

    def features(self, division: Division, images: ImageSet) -> tuple[Value, ...]:
        """Return the values at the division's cut, computing what is not known yet from what is."""
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
            self._compute(division, images, known, missing)
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
        # A layer whose code changed has the same settings and weights as before, but other features.
        fresh = self._run(division.frozen([division.images], [node]), [images.value.tensor[:CHECKED]], CHECKED)[0]
        kept = value.tensor[:CHECKED]
        if len(value.tensor) != len(images.value.tensor) or kept.shape != fresh.shape or kept.dtype != fresh.dtype:
            return None
        tolerance = 1e-6 if fresh.dtype == torch.float32 else 1e-2
        if not torch.allclose(kept, fresh, rtol=tolerance, atol=tolerance):
            return None
        return self._keep(digest, images.name, value)

    def _compute(
        self, division: Division, images: ImageSet, known: dict[fx.Node, Value], missing: set[fx.Node]
    ) -> None:
        """Add the missing values of the cut to the known ones, and keep those that others want too."""
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
        # Values that were computed together share their cost: the longest of them, not the sum, is what it took.
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
