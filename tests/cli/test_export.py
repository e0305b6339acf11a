"""`adaptkit export` in every format, and `adaptkit import-peft`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import requests
import torch
from click.testing import Result
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file
from support.artifacts import artifacts_of, copied, run_of
from support.experiments import Tracked
from torch import Tensor

import adaptkit
from adaptkit.adapters.weights import pack, unpack
from adaptkit.backbones.small_cnn_layers import SmallCNNModel
from adaptkit.models.formats import merged, onnx

Cli = Callable[..., Result]
SHIFTED = "100 images of the target test set (mnist5k under rotate=45,noise=0.3)"
VERIFIED = re.compile(
    r"Verified: largest difference of logits (\S+) \(tolerance (\S+)\), 100\.00% equal predictions on (.+); "
    r"read with (.+)"
)


@pytest.fixture
def lora(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the id of the tracked LoRA run, with its store as the default store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    return run_of(tracked, "lora")


def code_of(readme: Path, language: str) -> list[str]:
    """Return the code blocks of a README in one language."""
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(), flags=re.DOTALL)


def run_code(folder: Path, code: str) -> str:
    """Run Python code of a README in the exported folder. Return its output."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def digit(lora: str, path: Path) -> str:
    """Save the image of a digit. Return its class by the model of the run."""
    from adaptkit.models.run_images import run_data
    from adaptkit.models.trained import find_trained, given_plugins

    plugins = given_plugins([])
    trained = find_trained(lora, None, plugins)
    _, domains = run_data(trained.stored, plugins)
    assert domains.clean_test is not None
    image = (domains.clean_test.pixels[:1] * 255).round().to(torch.uint8)
    Image.fromarray(image[0, 0].numpy()).save(path)
    return trained.classes[int(trained.merged()(image / 255).argmax())]


def test_merged(cli: Cli, lora: str, own_folder: Path) -> None:
    result = cli("export", lora, "--to", "merged", "-o", "out/model")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "Exported to out/model: README.md, model.json, model.safetensors"
    verified = VERIFIED.fullmatch(lines[1])
    assert verified is not None and float(verified[1]) < 1e-5
    assert verified[3] == SHIFTED and verified[4] == "safetensors"
    assert lines[2:] == ["How to use it: out/model/README.md"]
    model, state = SmallCNNModel(1, 28, 10), load_file("out/model/model.safetensors")
    mean, std = state.pop("source_mean"), state.pop("source_std")
    model.load_state_dict(state)
    pixels = torch.rand(4, 1, 28, 28)
    assert torch.equal(model((pixels - mean) / std), adaptkit.load(lora)(pixels))
    assert "`source_mean` and `source_std`" in Path("out/model/README.md").read_text()
    card = json.loads(Path("out/model/model.json").read_text())
    assert card["classes"] == list("0123456789") and card["run_id"] == lora
    assert (card["channels"], card["size"], card["backbone"]) == (1, 28, "small_cnn")
    assert "\n".join([*card["how_to_load"], ""]) == code_of(Path("out/model/README.md"), "python")[0]
    assert sorted(path.name for path in (own_folder / "out").iterdir()) == ["model"]


@pytest.mark.slow
def test_json_has_the_largest_difference(cli: Cli, lora: str) -> None:
    Path("empty").mkdir()
    record = json.loads(cli("export", lora, "--to", "peft", "-o", "empty", "--json").stdout)
    assert (record["run_id"], record["format"], record["folder"]) == (lora, "peft", "empty")
    assert set(record["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors", "model.json"}
    first = record["verifications"][0]
    assert first.pop("max_difference") < 1e-5 <= first.pop("tolerance") < 1e-4  # a part of the largest logit
    assert first == {
        "by": "adaptkit",
        "images": 100,
        "source": SHIFTED.partition("images of ")[2],
        "agreement": 1.0,
    }


@pytest.mark.parametrize(
    ("strategy", "to", "problem"),
    [
        ("lora", "mergd", "--to: unknown format 'mergd'; did you mean 'merged'?"),
        ("head", "peft", "--to peft needs a run of strategy lora: PEFT's files cannot hold strategy head; "),
        ("base", "peft", "--to peft needs a run of strategy lora: a base has no adapter; export with --to merged"),
    ],
)
def test_runs_that_cannot_be_exported(
    strategy: str, to: str, problem: str, cli: Cli, lora: str, tracked: Tracked, own_folder: Path
) -> None:
    run_id = tracked.outcome["base"]["run_id"] if strategy == "base" else run_of(tracked, strategy)
    result = cli("export", run_id, "--to", to, "-o", "out")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {problem}") and result.stderr.count("\n") == 1
    assert list(own_folder.iterdir()) == []


def test_folder_that_is_not_empty(cli: Cli, lora: str) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    assert cli("export", lora, "--to", "merged", "-o", "full").stderr == (
        "Error: full is not empty; choose a new folder with -o\n"
    )
    result = cli("export", lora, "--to", "merged", "-o", "full/mine.txt")
    assert (result.exit_code, result.stderr) == (2, "Error: full/mine.txt is a file; choose a new folder with -o\n")
    assert Path("full/mine.txt").read_text() == "mine"


def test_export_with_other_logits(cli: Cli, lora: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(read: Callable[..., dict[str, Callable[[Tensor], Tensor]]]) -> Callable[..., object]:
        return lambda *arguments: {name: lambda x, f=f: f(x) + 0.001 for name, f in read(*arguments).items()}

    monkeypatch.setattr(merged, "FORMAT", dataclasses.replace(merged.FORMAT, read=altered(merged.FORMAT.read)))
    result = cli("export", lora, "--to", "merged", "-o", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    problem = (
        r"Error: the export was removed, since it is inaccurate: largest difference of logits 0\.001 "
        r"\(tolerance 0\.0001\d*\), .*; read with safetensors\n"
    )
    assert re.fullmatch(problem, result.stderr)
    monkeypatch.setattr(
        merged, "FORMAT", dataclasses.replace(merged.FORMAT, read=lambda *arguments: {"x": lambda x: x.sum((2, 3)) / 0})
    )
    assert cli("export", lora, "--to", "merged", "-o", "some/where/out").exit_code == 1
    assert list(own_folder.iterdir()) == []


def test_images_replace_missing_data(cli: Cli, tracked: Tracked, own_folder: Path) -> None:
    uri, run_id = copied(tracked, own_folder / "store"), run_of(tracked, "lora")
    config = artifacts_of(uri, run_id) / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("dataset: mnist5k", "dataset: mine"))
    arguments = ("export", run_id, "--to", "merged", "--tracking-uri", uri, "-o", "out")
    result = cli(*arguments)
    assert result.exit_code == 2
    first, second = result.stderr.splitlines()
    assert first.startswith("Error: the test images of the run are not available: unknown data set 'mine'")
    assert second == "Error: verify the export on other images: --images PATH"
    Path("pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (50, 40), (number * 80, 20, 200)).save(f"pictures/{number}.png")
    verified = VERIFIED.fullmatch(cli(*arguments, "--images", "pictures").stdout.splitlines()[1])
    assert verified is not None and verified[3] == "3 images of pictures"
    config.write_text(before.replace("seed: 0", "seed: 1"))
    stderr = cli(*arguments[:-1], "other").stderr
    changed = r"the data of the run have changed: their fingerprint is \w{12}, and was \w{12}; the current images"
    assert re.match(changed, stderr)


def test_missing_package(cli: Cli, lora: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = onnx.importlib.util.find_spec
    monkeypatch.setattr(
        onnx.importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest)
    )
    result = cli("export", lora, "--to", "onnx", "-o", "out")
    assert result.exit_code == 2
    assert result.stderr == "Error: --to onnx needs onnxscript: pip install onnx onnxscript onnxruntime\n"


@pytest.mark.slow
def test_import_peft(cli: Cli, tracked: Tracked, own_folder: Path) -> None:
    uri, run_id = copied(tracked, own_folder / "store"), run_of(tracked, "lora")
    store = ("--tracking-uri", uri)
    cli("export", run_id, "--to", "peft", "-o", "folder", *store)
    before = json.loads(cli("compare", "--json", "--no-track", *store).stdout)
    record = json.loads(cli("import-peft", "folder", "--onto", run_id, "--json", *store).stdout)
    assert record["name"] == "imported folder"
    kept = MlflowClient(tracking_uri=uri).get_run(run_id).data.metrics
    run = MlflowClient(tracking_uri=uri).get_run(record["run_id"])
    for key in ("final/test_accuracy", "final/shifted_accuracy", "params/trainable", "params/total"):
        assert run.data.metrics[key] == record["metrics"][key] == kept[key]
    assert run.info.status == "FINISHED" and run.data.tags["adaptkit.kind"] == "imported"
    assert (run.data.params["strategy"], run.data.params["strategy.rank"]) == ("lora", "4")
    pixels = torch.rand(4, 1, 28, 28)
    ours, theirs = (adaptkit.load(one, tracking_uri=uri)(pixels) for one in (run_id, record["run_id"]))
    assert torch.allclose(ours, theirs, atol=1e-6)
    # `compare` ignores the imported run.
    assert json.loads(cli("compare", "--json", "--no-track", *store).stdout) == before
    named = cli("compare", record["run_id"], "--no-track", *store)
    assert named.stderr == f"Error: run {record['run_id']} is of kind imported; only adaptation runs can be compared\n"
    again = cli("export", record["run_id"], "--to", "merged", "-o", "merged", *store)
    assert VERIFIED.fullmatch(again.stdout.splitlines()[1])
    onto_base = cli("import-peft", "folder", "--onto", tracked.outcome["base"]["run_id"], "--name", "mine", *store)
    assert re.fullmatch(
        rf"Imported as run \w{{32}} \(mine\)\n  source accuracy: {kept['final/test_accuracy']:.1%}\n",
        onto_base.stdout,
    )


@pytest.mark.slow
def test_import_peft_with_trained_layers(cli: Cli, tracked: Tracked, own_folder: Path) -> None:
    uri, run_id = copied(tracked, own_folder / "store"), run_of(tracked, "lora")
    cli("export", run_id, "--to", "peft", "-o", "folder", "--tracking-uri", uri)
    path, config = Path("folder/adapter_model.safetensors"), Path("folder/adapter_config.json")
    filter_weights = torch.full((32, 1, 3, 3), 0.05)
    whole = {"base_model.model.features.0.weight": filter_weights, "base_model.model.features.0.bias": torch.ones(32)}
    path.write_bytes(pack(unpack(path.read_bytes()) | whole))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"modules_to_save": ["features.0"]}))
    record = json.loads(cli("import-peft", "folder", "--onto", run_id, "--json", "--tracking-uri", uri).stdout)
    model = adaptkit.load(record["run_id"], tracking_uri=uri)
    assert torch.equal(model.get_parameter("features.0.weight"), filter_weights)
    assert torch.equal(model.get_parameter("features.0.bias"), torch.ones(32))
    trained = MlflowClient(tracking_uri=uri).get_run(run_id).data.metrics["params/trainable"]
    assert record["metrics"]["params/trainable"] == trained + 32 * 9 + 32
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in unpack(path.read_bytes()).items()}
    path.write_bytes(pack(broken))
    refused = cli("import-peft", "folder", "--onto", run_id, "--tracking-uri", uri)
    assert refused.exit_code == 2 and "the adapter does not fit the model: it has numbers that are not finite" in (
        refused.stderr
    )


def test_import_of_another_folder(cli: Cli, lora: str) -> None:
    assert cli("import-peft", "gone", "--onto", lora).stderr == "Error: gone is not a folder\n"
    Path("empty").mkdir()
    result = cli("import-peft", "empty", "--onto", lora)
    assert result.exit_code == 2
    assert result.stderr == "Error: empty is not a PEFT folder: it has no adapter_config.json\n"


@pytest.mark.slow
@pytest.mark.parametrize("to", ["merged", "torch-export", "onnx"])
def test_code_of_the_exported_readme(to: str, cli: Cli, lora: str, tracked: Tracked) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime", reason="onnxruntime, of the extra `onnx`, is not installed")
    assert VERIFIED.fullmatch(cli("export", lora, "--to", to, "-o", "out").stdout.splitlines()[1])
    expected = digit(lora, Path("out/picture.png"))
    (code,) = code_of(Path("out/README.md"), "python")
    assert run_code(Path("out"), code) == expected


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Train on colour pictures. Return the run and its store."""
    folder = tmp_path_factory.mktemp("colour")
    for number, label in enumerate(("a", "b")):
        (folder / "pictures" / label).mkdir(parents=True)
        for index in range(16):
            noise = numpy.random.default_rng(100 * number + index).integers(0, 256, (16, 16, 3), numpy.uint8)
            Image.fromarray(noise).save(folder / "pictures" / label / f"{index}.png")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    target = f"folder:{folder / 'pictures'}"
    choices = {"backbone": "small_cnn", "weights": "none", "image_size": 16, "epochs": 1, "protocol": "draws"}
    outcome = adaptkit.run("lora", dataset="none", target=target, tracking_uri=uri, **choices)
    return str(outcome.runs[0].run_id), uri


def pictures(folder: Path) -> list[str]:
    """Write pictures in modes and with tags that readers often treat in different ways. Return their names."""
    values = numpy.random.default_rng(0).integers(0, 256, (40, 56, 3), numpy.uint8)
    photo = Image.fromarray(values).resize((30, 50))
    grey = numpy.asarray(photo.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    veiled = photo.copy()
    veiled.putalpha(Image.linear_gradient("L").resize(photo.size))
    photo.save(folder / "plain.png")
    photo.save(folder / "turned.jpg", exif=exif)
    photo.convert("CMYK").save(folder / "inks.jpg")
    photo.quantize(16).save(folder / "palette.png", transparency=3)
    photo.convert("1").save(folder / "dots.png")
    photo.save(folder / "keyed.png", transparency=photo.getpixel((3, 3)))
    veiled.save(folder / "veiled.png")
    Image.fromarray(grey.astype(numpy.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(grey.astype(numpy.float32) / 255).save(folder / "floats.tif")
    return sorted(path.name for path in folder.iterdir())


#: the server of the README, without a server
ANSWER = """
import mlflow, numpy, requests
served = mlflow.pyfunc.load_model(".")
class Answer:
    def __init__(self, inputs):
        self.predictions = served.predict(numpy.array(inputs, "float32")).tolist()
    def json(self):
        return {"predictions": self.predictions}
requests.post = lambda address, json: Answer(json["inputs"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("to", ["merged", "peft", "torch-export", "onnx", "mlflow"])
def test_readme_reads_every_picture_as_predict(
    to: str, cli: Cli, colour: tuple[str, str], own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"peft": "peft", "onnx": "onnxruntime"}.get(to, "torch"))
    run_id, uri = colour
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    result = cli("export", run_id, "--to", to, "-o", "out")
    assert result.exit_code == 0, result.stderr
    (own_folder / "pictures").mkdir()
    names = [f"../pictures/{name}" for name in pictures(own_folder / "pictures")]
    (code,) = code_of(Path("out/README.md"), "python")
    reading = f"""
import contextlib, io
code, results = {code!r}, []
for name in {names}:
    with contextlib.redirect_stdout(io.StringIO()):
        scope = {{}}
        exec(code.replace("picture.png", name), scope)
    results.append(torch.as_tensor(scope["logits"]).flatten().tolist())
print(results)
"""
    answer = ANSWER if to == "mlflow" else ""
    logits = torch.tensor(json.loads(run_code(Path("out"), f"import torch\n{answer}{reading}")))
    model = adaptkit.load(run_id)
    expected = model(model.preprocess([f"pictures/{Path(name).name}" for name in names]))
    assert len(logits.unique(dim=0)) > 5 and torch.allclose(logits, expected, atol=1e-4)


@pytest.mark.slow
def test_peft_loads_the_export(cli: Cli, lora: str) -> None:
    pytest.importorskip("peft", reason="peft, of the extra `bench`, is not installed")
    lines = cli("export", lora, "--to", "peft", "-o", "out").stdout.splitlines()
    ours, theirs = (VERIFIED.fullmatch(line) for line in lines[1:3])
    assert ours is not None and ours[4] == "adaptkit"
    assert theirs is not None and theirs[4].startswith("peft ") and float(theirs[1]) < 1e-6
    expected = digit(lora, Path("out/picture.png"))
    (code,) = code_of(Path("out/README.md"), "python")
    assert run_code(Path("out"), code) == expected


@contextmanager
def served(folder: Path, command: str) -> Iterator[str]:
    """Serve a model with the command of its README on a free port. Yield the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    assert "--port 5001" in command
    environment = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    with (folder.parent / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", command.replace("5001", port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 120
            while time.monotonic() < until:
                assert process.poll() is None, (folder.parent / "serve.log").read_text()
                try:
                    if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    time.sleep(0.3)
            yield port
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(20)


@pytest.mark.slow
def test_mlflow_serves_the_export(cli: Cli, lora: str, own_folder: Path) -> None:
    result = cli("export", lora, "--to", "mlflow", "-o", "out")
    assert VERIFIED.fullmatch(result.stdout.splitlines()[1])
    expected = digit(lora, Path("out/picture.png"))
    serve, curl = code_of(Path("out/README.md"), "sh")
    (python,) = code_of(Path("out/README.md"), "python")
    with served(own_folder / "out", serve) as port:
        answer = subprocess.run(["sh", "-c", curl.replace("5001", port)], cwd="out", capture_output=True, check=True)
        logits = torch.tensor(json.loads(answer.stdout)["predictions"])
        example = torch.tensor(json.loads(Path("out/serving_input_example.json").read_text())["inputs"])
        assert torch.allclose(logits, adaptkit.load(lora)(example), atol=1e-4)
        assert run_code(Path("out"), python.replace("5001", port)) == expected
