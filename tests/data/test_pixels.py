"""Stored data sets: images are decoded on access, with or without workers, and give the same results."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import adaptkit
from adaptkit.contracts import Corpus, Images, SelectedPixels
from adaptkit.data import domains
from adaptkit.data import pixels as stored
from adaptkit.data.sets.mnist5k import Mnist5k
from adaptkit.errors import BadInput, RunFailed
from adaptkit.settings.settings import SplitSettings
from adaptkit.training.evaluation import Rows
from adaptkit.training.passes import ByteRows

#: digits as PNG files of 40x40, resized to 16x16: one data set decodes on access, the other decodes all in load()
PICTURES = """
import os
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image

from adaptkit import hookimpl
from adaptkit.contracts import Corpus, Images

SIDE = 16


@dataclass(frozen=True)
class Pictures:
    files: tuple[Path, ...]

    @property
    def shape(self):
        return len(self.files), 1, SIDE, SIDE

    def __getitem__(self, index):
        with open(self.files[index].parent / "decoded.txt", "a") as log:
            log.write(f"{index} {os.getpid()}\\n")
        with Image.open(self.files[index]) as image:
            small = image.resize((SIDE, SIDE), Image.Resampling.BOX)
        return torch.from_numpy(numpy.array(small))[None]


class Stored:
    name = "stored"

    def load(self, data_dir):
        files = tuple(sorted(data_dir.glob("*.png")))
        labels = torch.tensor([int(file.stem[-1]) for file in files])
        return Corpus(Images(Pictures(files), labels, tuple("0123456789")))


class Loaded(Stored):
    name = "loaded"

    def load(self, data_dir):
        images = super().load(data_dir).train
        pixels = torch.stack([images.pixels[index] for index in range(len(images))])
        return Corpus(Images(pixels, images.labels, images.classes))


@hookimpl
def adaptkit_datasets():
    return [Stored, Loaded]
"""

#: all 600 pictures are needed: 300 for the source, 120 for the pool, 180 for the test
SETTINGS = {"shots": 5, "base.epochs": 2, "epochs": 2}


@pytest.fixture(scope="session")
def drawn(shared: Path) -> tuple[tuple[str, bytes], ...]:
    """Return the names and contents of the pictures."""
    images = Mnist5k().load(Path("unused")).train.take(torch.arange(5000).view(10, 500)[:, :60].flatten())
    files = []
    for number, (pixels, label) in enumerate(zip(images.pixels, images.labels.tolist(), strict=True)):
        path = shared / f"drawing-{os.getpid()}.png"
        Image.fromarray(pixels[0].numpy()).resize((40, 40)).save(path)
        files.append((f"{number:03}-{label}.png", path.read_bytes()))
    return tuple(files)


@pytest.fixture
def pictures(own_folder: Path, drawn: tuple[tuple[str, bytes], ...]) -> Path:
    """Write the pictures to `data` and the plugin to `pictures.py`; return the path of the plugin."""
    (own_folder / "data").mkdir()
    for name, content in drawn:
        (own_folder / "data" / name).write_bytes(content)
    (own_folder / "pictures.py").write_text(PICTURES)
    return own_folder / "pictures.py"


@pytest.fixture
def workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Decode with this number of processes on any machine."""
    monkeypatch.setattr(stored, "worker_count", lambda images, piece_bytes: request.param)
    return int(request.param)


by_any_workers = [
    pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow), 2], indirect=True),
    # the warning of torch on a machine with one core
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def with_any_workers(test):
    for mark in by_any_workers:
        test = mark(test)
    return test


def decoded_at(folder: Path) -> list[tuple[int, int]]:
    """Return the decoded images and their processes in order, and clear the record."""
    log = folder / "data" / "decoded.txt"
    lines = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    log.unlink()
    return lines


def results(plugin: Path, **keys: object) -> dict[str, object]:
    """Return the results of an experiment without times and memory; the base is trained again."""
    choices = {"settings": SETTINGS, "plugins": [plugin], "data_dir": str(plugin.parent / "data"), **keys}
    outcome = adaptkit.run(["full", "head"], track=False, refresh_base=True, **choices)
    assert outcome.failed == ()
    epochs = [*outcome.base.epochs, *(epoch for run in outcome.runs for epoch in run.epochs)]
    return {
        "data": outcome.data_fingerprint,
        "base": outcome.base.fingerprint,
        "epochs": [(e.number, e.loss, e.train_accuracy, e.test_accuracy, e.shifted_accuracy) for e in epochs],
        "metrics": [
            {key: value for key, value in run.metrics.items() if not key.startswith("time/")} for run in outcome.runs
        ],
    }


@pytest.mark.slow
@with_any_workers
def test_stored_data_set_equals_one_in_memory(pictures: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(pictures, dataset="loaded")
    decoded_at(pictures.parent)
    assert results(pictures, dataset="stored") == expected
    seen = decoded_at(pictures.parent)
    assert sorted(index for index, _ in seen) == list(range(600))  # each once
    monkeypatch.setattr(stored, "HELD_BYTES", 300 * 16 * 16 - 1)
    assert results(pictures, dataset="stored") == expected
    seen = decoded_at(pictures.parent)
    times = numpy.bincount([index for index, _ in seen])
    # The source is decoded for its digest, and in each of two epochs.
    # Those of the source are decoded once more, for their mean and standard deviation.
    assert numpy.bincount(times).tolist() == [0, 300, 0, 0, 300]
    assert (os.getpid() in {pid for _, pid in seen}) == (workers == 0)


@pytest.mark.slow
@with_any_workers
def test_stored_target_equals_one_in_memory(pictures: Path, workers: int) -> None:
    # Larger than the images of the source, and none is excluded: only the needed files are read.
    split = {"split.source": 200, "split.pool": 100, "split.test": 100, "protocol": "draws"}
    expected = results(pictures, dataset="digits", target="loaded", settings=SETTINGS | split)
    decoded_at(pictures.parent)
    assert results(pictures, dataset="digits", target="stored", settings=SETTINGS | split) == expected
    assert len({index for index, _ in decoded_at(pictures.parent)}) == 200


@with_any_workers
@pytest.mark.parametrize("role", ["dataset", "target", "streamed"])
def test_broken_picture(cli, pictures: Path, workers: int, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if role == "streamed":
        monkeypatch.setattr(stored, "HELD_BYTES", 0)
    broken = pictures.parent / "data" / "217-3.png"
    broken.write_bytes(b"not a picture")
    chosen = ["--dataset", "digits", "--target", "stored"] if role == "target" else ["--dataset", "stored"]
    command = ["run", "-s", "head", *chosen, "--data-dir", "data", "--plugin", str(pictures), "--no-track"]
    result = cli(*command, "--set", "split.test=360")
    assert (result.exit_code, result.stdout) == (2, "")
    line = f"data set stored: image 217 cannot be read (cannot identify image file '{broken.resolve()}')"
    assert result.stderr.replace(str(broken.relative_to(pictures.parent)), str(broken)) == f"Error: {line}\n"


@pytest.mark.slow
def test_broken_picture_during_training(cli, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "HELD_BYTES", 0)
    pictures.write_text(
        PICTURES + "\n\n@hookimpl\ndef adaptkit_epoch_ended(run, epoch):\n"
        "    for file in Path('data').glob('*.png'):\n        file.unlink()\n"
    )
    command = ["run", "-s", "head", "--dataset", "stored", "--data-dir", "data", "--plugin", str(pictures)]
    result = cli(*command, "--no-track", "--refresh-base", "-q")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: data set stored: image ") and "cannot be read ([Errno 2] No such file" in line


# Units


@dataclasses.dataclass(frozen=True)
class Painted:
    """Images that encode their index: uint8 `[1, side, side]`."""

    count: int
    side: int = 4
    log: Path | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.count, 1, self.side, self.side

    def __getitem__(self, index: int) -> torch.Tensor:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if self.log is not None:
            with open(self.log, "a") as log:
                log.write(f"{index}\n")
        digits = torch.tensor([index // 256**place % 256 for place in range(4)], dtype=torch.uint8)
        return digits.repeat(self.side * self.side // 4).view(1, self.side, self.side)


@dataclasses.dataclass
class Given:
    """A data set with given images."""

    name: str
    corpus: Corpus

    def load(self, data_dir: Path) -> Corpus:
        return self.corpus


def painted(count: int, **more) -> Images:
    return Images(Painted(count, **more), torch.arange(count) % 10, tuple("0123456789"))


def numbers(pixels: torch.Tensor) -> list[int]:
    """Return the indices that images encode."""
    return (pixels.flatten(1)[:, :4].long() * torch.tensor([1, 256, 256**2, 256**3])).sum(1).tolist()


def load(dataset: Given, target: Given | None = None, **split: object) -> domains.Domains:
    settings = SplitSettings(**split)
    return domains.load_domains(dataset, target, (), shift_text="none", split=settings, data_dir=Path("unused"))


@with_any_workers
def test_only_selected_images_are_decoded(own_folder: Path, workers: int) -> None:
    log = own_folder / "decoded.txt"
    made = load(Given("million", Corpus(painted(1_000_000, log=log))))
    parts = (numbers(made.source.pixels), made.pool_index.tolist(), made.clean_test.index.tolist())
    assert [len(part) for part in parts] == [2500, 1000, 1500]
    assert sorted(map(int, log.read_text().split())) == sorted(parts[0] + parts[1] + parts[2])
    assert numbers(made.pool.pixels) == made.pool_index.tolist()


def test_nested_selection_decodes_nothing() -> None:
    @dataclasses.dataclass(frozen=True)
    class Closed(Painted):
        def __getitem__(self, index: int) -> torch.Tensor:
            raise AssertionError("decoded")

    images = Images(Closed(100), torch.arange(100), tuple(map(str, range(100))))
    chosen = images.take(torch.arange(50, 100)).take(torch.tensor([3, 1])).take(torch.tensor([False, True]))
    assert isinstance(chosen.pixels, SelectedPixels) and isinstance(chosen.pixels.stored, Closed)
    assert (chosen.pixels.shape, chosen.labels.tolist()) == ((1, 1, 4, 4), [51])


def test_selection_of_images_in_memory() -> None:
    pixels = torch.randint(0, 256, (20, 3, 5, 5), dtype=torch.uint8)
    for held in (pixels, pixels.permute(0, 1, 3, 2)):
        images = Images(held, torch.arange(20), tuple(map(str, range(20))))
        for indices in (torch.tensor([3, 3, -1]), torch.arange(20) % 2 == 0, torch.tensor([], dtype=torch.int64)):
            assert torch.equal(images.take(indices).pixels, held[indices])
            assert torch.equal(images.take(indices).labels, torch.arange(20)[indices])


@with_any_workers
def test_order_of_parts_and_unchanged_generators(workers: int) -> None:
    parts = [torch.tensor(part) for part in ([5, 5, 299], list(range(200, 0, -1)), [7])]
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    found = [numbers(batch) for batch in stored.decoded(Painted(300), parts)]
    assert found == [part.tolist() for part in parts]
    assert before[:2] == (random.getstate(), numpy.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_number_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, images, piece, expected in (
        (8, stored.FEW_IMAGES, 1 << 20, 8),
        (8, stored.FEW_IMAGES - 1, 1 << 20, 0),
        (1, 10_000, 1 << 20, 0),  # a single worker would be slower than this process
        (8, 10_000, 10 << 20, 3),
        (8, 10_000, 100 << 20, 1),
    ):
        monkeypatch.setattr("joblib.cpu_count", lambda cores=cores: cores)
        assert stored.worker_count(images, piece) == expected


@pytest.mark.slow
@with_any_workers
def test_image_of_another_shape(workers: int) -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd(Painted):
        odd: object = None

        def __getitem__(self, index: int) -> object:
            return self.odd if index == 11 else super().__getitem__(index)

    for odd, words in (
        (torch.zeros(1, 4, 5, dtype=torch.uint8), "uint8 [1, 4, 5]"),
        (torch.zeros(1, 4, 4), "float32 [1, 4, 4]"),
        (numpy.zeros((1, 4, 4), dtype=numpy.uint8), "ndarray"),
    ):
        images = Images(Odd(300, odd=odd), torch.arange(300) % 10, tuple("0123456789"))
        for corpus, title in ((Corpus(images), "image"), (Corpus(painted(300), images), "test image")):
            with pytest.raises(BadInput) as caught:
                load(Given("odd", corpus))
            expected = f"data set odd: {title} 11 must be a uint8 tensor of shape [1, 4, 4], not {words}"
            assert caught.value.problems == (expected,)


def test_shapes_are_checked_before_decoding() -> None:
    @dataclasses.dataclass(frozen=True)
    class Oblong(Painted):
        shape = (300, 1, 4, 5)

    with pytest.raises(BadInput, match="data set odd: images must be square, not 5x4"):
        load(Given("odd", Corpus(Images(Oblong(300), torch.arange(300) % 10, tuple("0123456789")))))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.slow
@pytest.mark.parametrize("workers", [2], indirect=True)
@pytest.mark.parametrize("first", [0, 250])
# torch does not close the socket on which it waited for a tensor of the dead worker
@pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_killed_worker(workers: int, first: int) -> None:
    @dataclasses.dataclass(frozen=True)
    class Deadly(Painted):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == first:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    with pytest.raises(RunFailed, match=r"^the processes that decode images failed \(.+\)$") as caught:
        list(stored.decoded(Deadly(300), [torch.arange(300)]))
    for child in multiprocessing.active_children():  # the other worker was stopped, and ends
        child.join(timeout=20)
    assert multiprocessing.active_children() == [] and caught.traceback


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [2], indirect=True)
def test_interruption_stops_workers(workers: int, own_folder: Path) -> None:
    log = own_folder / "interrupted.txt"

    @dataclasses.dataclass(frozen=True)
    class Interrupting(Painted):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 9_990:  # long after the start of the workers
                os.kill(os.getppid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(index)

    def interrupt(number: int, frame: object) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            list(stored.decoded(Interrupting(10_000), [torch.arange(10_000)]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert multiprocessing.active_children() == [] and caught.traceback
    # Workers do not run the signal handlers of the main process, which close its runs.
    assert log.read_text().split() == [str(os.getpid())]


@with_any_workers
@pytest.mark.parametrize("held", ["in memory", "stored"])
def test_lazy_views_equal_views(workers: int, held: str) -> None:
    images = painted(300)
    pixels = images.pixels if held == "stored" else stored.loaded(images).pixels
    floats = Rows(torch.nn.Identity(), (stored.loaded(images).pixels.float() / 255,))
    assert len(floats.tensors[0].unique()) == 256
    rows = ByteRows(torch.nn.Identity(), pixels, torch.device("cpu"))
    parts = torch.randperm(300, generator=torch.Generator().manual_seed(0)).split(64)
    for (found,), (expected,) in zip(rows.batches(parts), floats.batches(parts), strict=True):
        assert torch.equal(found, expected) and found.stride() == expected.stride()


@pytest.mark.slow
@with_any_workers
def test_stored_target_excludes_images_of_the_source(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Half of the target images are also in the source.
    monkeypatch.setattr(stored, "HELD_BYTES", 0)
    source = Given("source", Corpus(painted(400)))
    made = load(source, Given("target", Corpus(painted(800))), source=300, pool=400, test=400)
    held = set(made.source.pixels.indices.tolist()) | set(made.clean_test.index.tolist())
    whole = load(source, Given("new", Corpus(relabelled_from(painted(800), 10_000))), source=300, pool=400, test=400)
    for part, index, chosen in (
        (made.pool, made.pool_index, whole.pool_index),
        (made.shifted_test, made.shifted_test.index, whole.shifted_test.index),
    ):
        assert len(part) == len(index) and len(set(chosen.tolist()) & held) > 0
        assert index.tolist() == [number for number in chosen.tolist() if number not in held]
    assert numbers(stored.loaded(made.pool).pixels) == made.pool_index.tolist()


def relabelled_from(images: Images, start: int) -> Images:
    """Return images of the same number and labels, but with other content."""
    return Images(
        SelectedPixels(Painted(start + len(images)), torch.arange(start, start + len(images))),
        images.labels,
        images.classes,
    )


MEASURE = """
import resource, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from adaptkit.data import domains, pixels
from test_pixels import Given, load, painted
from adaptkit.contracts import Corpus
from adaptkit.training.passes import ByteRows
pixels.worker_count = lambda images, piece_bytes: {workers}
pixels.HELD_BYTES = 1 << 20
made = load(Given("many", Corpus(painted({count}, side=128))), source={source}, pool=100, test=100)
rows = ByteRows(None, made.source.pixels, torch.device("cpu"))
for given, in rows.batches(torch.randperm(len(made.source)).split(64)):
    pass
print(len(made.source), *(resource.getrusage(who).ru_maxrss // 1024 for who in (resource.RUSAGE_SELF,
      resource.RUSAGE_CHILDREN)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts other units elsewhere")
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_bounded(workers: int) -> None:
    peaks = []
    for count, source in ((1_000, 300), (200_000, 12_000)):
        code = MEASURE.format(tests=str(Path(__file__).parent), workers=workers, count=count, source=source)
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
        images, *peak = map(int, done.stdout.split())
        assert images == source
        peaks.append(peak)
    # 200,000 of these images are 3,125 MiB, the source alone 187; as floats four times that.
    assert all(large - small < 80 for small, large in zip(*peaks, strict=True)), peaks


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
@pytest.mark.parametrize("to_all", [True, False], ids=["to all processes", "to the main process"])
def test_ctrl_c_stops_workers(pictures: Path, to_all: bool) -> None:
    pictures.write_text(
        PICTURES.replace("        with Image.open(", "        time.sleep(0.05)\n        with Image.open(").replace(
            "import os\n", "import os\nimport time\nimport adaptkit.data.pixels\n", 1
        )
        + "\nadaptkit.data.pixels.worker_count = lambda images, piece_bytes: 2\n"
    )
    command = [sys.executable, "-W", "ignore", "-m", "adaptkit", "run", "-s", "head", "--dataset", "stored"]
    command += ["--data-dir", "data", "--plugin", str(pictures), "--no-track"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    log, pids = pictures.parent / "data" / "decoded.txt", set[int]()
    while len(pids) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
        lines = log.read_text().splitlines()[:-1] if log.exists() else []
        pids = {int(line.split()[1]) for line in lines}
    assert process.pid not in pids
    if to_all:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "Interrupted.")
    assert "Traceback" not in errors
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
