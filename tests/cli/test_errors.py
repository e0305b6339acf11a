"""Bad input: one line per problem, exit code 2, and nothing is tracked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from support.experiments import TINY

Cli = Callable[..., Result]

STRATEGIES = "adapter, centroid, full, head, knn, lda, logistic, lora, lp-ft, norm, partial, ridge, scratch, ssf, wise"

CASES = {
    "unknown strategy": (["-s", "lorra"], ["unknown strategy 'lorra'; did you mean 'lora'?"]),
    "no strategy": ([], [f"no strategy: name at least one with --strategy; known: {STRATEGIES}"]),
    "unknown option": (["-s", "lora", "-o", "rnk=4"], ["unknown option 'lora.rnk'; did you mean 'rank'?"]),
    "option of a strategy without options": (
        ["-s", "head", "-o", "rank=4"],
        ["unknown option 'head.rank'; head has no options"],
    ),
    "option for one of several strategies": (
        ["-s", "head", "-s", "lora", "-o", "rank=4"],
        ["option rank: there are several strategies; write lora.rank"],
    ),
    "option of a strategy that does not run": (
        ["-s", "head", "-o", "lora.rank=4"],
        ["lora.rank: strategy lora is not selected"],
    ),
    "rank 0": (["-s", "lora", "-o", "rank=0"], ["lora.rank: must be at least 1, not 0"]),
    "rank of the wrong type": (["-s", "lora", "-o", "rank=many"], ["lora.rank: must be a whole number, not 'many'"]),
    "dropout 1": (["-s", "lora", "-o", "dropout=1"], ["lora.dropout: must be less than 1, not 1"]),
    "targets that fit nothing": (
        ["-s", "lora", "-o", "targets=classifer.*"],
        ["lora.targets: no layer matches 'classifer.*'; did you mean 'classifier.3'?"],
    ),
    "targets of the wrong type": (
        ["-s", "lora", "-o", "targets=MaxPool2d"],
        [
            "lora.targets: 'MaxPool2d' matches no Linear or Conv2d layer that LoRA can adapt "
            "(features.1 is a MaxPool2d; features.4 is a MaxPool2d)"
        ],
    ),
    "unknown data set": (["-s", "head", "--dataset", "mnist5"], ["unknown data set 'mnist5'; did you mean 'mnist5k'?"]),
    "unknown target": (["-s", "head", "--target", "digit"], ["unknown data set 'digit'; did you mean 'digits'?"]),
    "data set of a plugin": (
        ["-s", "head", "--target", "first-galaxies?catalogue=MiraBest"],
        [
            "unknown data set 'first-galaxies'; it is a plugin: pip install ./plugins/astro from adaptkit's source "
            "code",
        ],
    ),
    "unknown backbone": (
        ["-s", "head", "--backbone", "smallcnn"],
        ["unknown backbone 'smallcnn'; did you mean 'small_cnn'?"],
    ),
    "unknown shift": (["-s", "head", "--shift", "rotat=3"], ["unknown shift 'rotat'; did you mean 'rotate'?"]),
    "negative noise": (["-s", "head", "--shift", "noise=-1"], ["shift.noise: must be at least 0, not -1"]),
    "shift without amount": (
        ["-s", "head", "--shift", "rotate"],
        ["shift: 'rotate' is not name=amount, as in rotate=45,noise=0.3"],
    ),
    "unknown preset": (["-s", "head", "--preset", "quik"], ["unknown preset 'quik'; did you mean 'quick'?"]),
    "unknown key": (["-s", "head", "--set", "epoch=3"], ["unknown key 'epoch'; did you mean 'epochs'?"]),
    "unknown group": (["-s", "head", "--set", "bse.lr=3"], ["unknown key 'bse.lr'; did you mean 'base.lr'?"]),
    "no value": (["-s", "head", "--set", "epochs"], ["--set epochs: write key=value"]),
    "epochs 0": (["-s", "head", "--epochs", "0"], ["epochs: must be at least 1, not 0"]),
    "epochs 1.5": (["-s", "head", "--epochs", "1.5"], ["epochs: must be a whole number, not '1.5'"]),
    "lr 0": (["-s", "head", "--lr", "0"], ["lr: must be greater than 0, not 0"]),
    "lr not finite": (["-s", "head", "--lr", "nan"], ["lr: must be a finite number, not 'nan'"]),
    "seeds backwards": (["-s", "head", "--seeds", "4-1"], ["seed: the range 4-1 runs backwards; write 1-4"]),
    "seeds in words": (
        ["-s", "head", "--seeds", "two"],
        ["seed: must be a seed, a range or a list such as 3, 0-4 or 0,2,5, not 'two'"],
    ),
    "seed twice": (["-s", "head", "--seeds", "0,1,0"], ["seed: 0 appears twice"]),
    "strategy twice": (["-s", "head", "-s", "head"], ["strategy: head appears twice"]),
    "device": (["-s", "head", "--device", "gpu"], ["device: must be auto, cpu, cuda or mps, not 'gpu'"]),
    "precision": (["-s", "head", "--precision", "fp8"], ["precision: must be fp32, bf16 or auto, not 'fp8'"]),
    "missing config": (
        ["-s", "head", "--config", "none.yaml"],
        ["config file none.yaml: No such file or directory"],
    ),
    "all problems at once": (
        ["-s", "lorra", "--dataset", "mnist5", "--shift", "rotat=3", "-s", "lora", "-o", "lora.rank=0"],
        [
            "unknown strategy 'lorra'; did you mean 'lora'?",
            "lora.rank: must be at least 1, not 0",
            "unknown shift 'rotat'; did you mean 'rotate'?",
            "unknown data set 'mnist5'; did you mean 'mnist5k'?",
        ],
    ),
    "problems of every kind at once": (
        ["-s", "lorra", "--epochs", "0", "-o", "=3", "--set", "epoch=3", "--config", "none.yaml"],
        [
            "-o =3: write key=value",
            "config file none.yaml: No such file or directory",
            "unknown key 'epoch'; did you mean 'epochs'?",
            "epochs: must be at least 1, not 0",
            "unknown strategy 'lorra'; did you mean 'lora'?",
        ],
    ),
    "an enormous number": (
        ["-s", "head", "--batch-size", "99999999999999999999"],
        ["batch_size: must be at most 1e+09, not 99999999999999999999"],
    ),
    "all values at once": (
        ["-s", "head", "--epochs", "0", "--batch-size", "x", "--set", "base.lr=-1"],
        [
            "epochs: must be at least 1, not 0",
            "batch_size: must be a whole number, not 'x'",
            "base.lr: must be greater than 0, not -1",
        ],
    ),
    "strategy without its option": (
        ["lora"],
        ["Got unexpected extra argument (lora); name strategies with -s, as in -s lora"],
    ),
    "empty shift": (["-s", "head", "--shift", ""], ["shift: '' is not name=amount, as in rotate=45,noise=0.3"]),
    "empty experiment": (["-s", "head", "--experiment", ""], ["experiment: must not be empty"]),
    "empty settings": (
        ["-s", "head", "--set", "lr=", "--dataset", "", "--image-size", "", "--severity", "", "--data-dir", ""],
        [
            f"{key}: no value; leave the key out for its default"
            for key in ("dataset", "severity", "image_size", "lr", "data_dir")
        ],
    ),
    "empty limits": (
        ["-s", "head", *(word for key in ("source", "file") for word in ("--set", f"split.{key}=")), "--lr", ""],
        [f"{key}: no value; leave the key out for its default" for key in ("lr", "split.source", "split.file")],
    ),
    "empty config": (["-s", "head", "--config", ""], ["Invalid value for '--config': the path is empty"]),
    "unknown flag": (
        ["-s", "head", "--epoch", "3"],
        ["No such option '--epoch'. (Did you mean one of: '--epochs', '--report'?)"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_problems(cli: Cli, own_folder: Path, case: str) -> None:
    arguments, problems = CASES[case]
    result = cli("run", *arguments)
    assert result.stderr.splitlines() == [f"Error: {problem}" for problem in problems]
    assert (result.exit_code, result.stdout) == (2, "")
    assert list(own_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"epochs: [1\n", "config file c.yaml: not valid YAML in line 2"),
        (b"just words\n", "config file c.yaml: must hold `key: value` lines"),
        (b"\xff\xfe\x00", "config file c.yaml: not a text file"),
        (b"epoch: 3\n", "c.yaml: unknown key 'epoch'; did you mean 'epochs'?"),
        (b"base: {epoch: 3}\n", "c.yaml: unknown key 'base.epoch'; did you mean 'base.epochs'?"),
        (b"lr: 0.1\nepochs: 3\nlr: 0.2\n", "config file c.yaml: lr appears twice, in lines 1 and 3"),
        (b"base: {lr: 0.1, lr: 0.2}\n", "config file c.yaml: lr appears twice, in lines 1 and 1"),
        (
            b"base.lr: 0.1\nbase: {lr: 0.2}\n",
            "config file c.yaml: base.lr appears twice: with a dot, and nested below its group",
        ),
        (b"shift: {rotate: -3}\n", "shift.rotate: must be at least 0, not -3"),
        (b"augment: ''\n", "augment: no value; leave the key out for its default"),
        (b"strategy: 7\n", "strategy: must be one value or a list of values, not 7"),
    ],
)
def test_bad_config_file(cli: Cli, own_folder: Path, content: bytes, problem: str) -> None:
    (own_folder / "c.yaml").write_bytes(content)
    result = cli("run", *(() if b"strategy" in content else ("-s", "head")), "--config", "c.yaml")
    assert result.stderr == f"Error: {problem}\n"
    assert result.exit_code == 2
    assert [path.name for path in own_folder.iterdir()] == ["c.yaml"]


def test_empty_report_folder(cli: Cli, own_folder: Path) -> None:
    both = ["--report", "--output"]
    for command, names in (("run", both), ("sweep", both), ("compare", both[::-1])):
        result = cli(command, "--report", "")
        option = " / ".join(f"'{name}'" for name in names)
        line = f"Error: Invalid value for {option}: the path is empty; write . for the current folder\n"
        assert (result.exit_code, result.stderr) == (2, line)
    assert list(own_folder.iterdir()) == []


def test_empty_path(cli: Cli, own_folder: Path) -> None:
    no_folder, no_image = "the path is empty", "the path of an image or folder is empty"
    for arguments, name, what in (
        (["predict", "x", ""], "PATH...", no_image),
        (["export", "x", "--to", "onnx", "-o", "new", "--images", ""], "--images", no_image),
        (["import-peft", "", "--onto", "x"], "DIR", no_folder),
        (["reproduce", "x", "--data-dir", ""], "--data-dir", no_folder),
    ):
        result = cli(*arguments)
        assert (result.exit_code, result.stderr) == (
            2,
            f"Error: Invalid value for '{name}': {what}; write . for the current folder\n",
        )
    assert list(own_folder.iterdir()) == []


def test_empty_text_option(cli: Cli, own_folder: Path) -> None:
    plugin = own_folder / "named.py"
    plugin.write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom adaptkit import hookimpl\n"
        "@dataclass\nclass Named:\n    name: ClassVar[str] = 'named'\n    layer: str = 'x'\n"
        "    def adapt(self, model):\n        return list(model.parameters()) if not self.layer else []\n"
        "@hookimpl\ndef adaptkit_strategies():\n    return [Named]\n"
    )
    for option in ("-o", "--set"):
        key = "layer=" if option == "-o" else "named.layer="
        result = cli("run", "-s", "named", option, key, *TINY, "--plugin", str(plugin), "--dry-run", "--json")
        assert (result.exit_code, json.loads(result.stdout)["arms"][0]["options"]) == (0, {"layer": ""})


def test_unknown_command(cli: Cli) -> None:
    result = cli("rnu")
    assert (result.stderr, result.exit_code) == ("Error: unknown command 'rnu'; did you mean 'run'?\n", 2)


def test_traceback(cli: Cli) -> None:
    from adaptkit import BadInput

    with pytest.raises(BadInput, match="unknown strategy 'lorra'"):
        cli("run", "-s", "lorra", "--traceback")


def test_read_only_tracking_folder(cli: Cli, own_folder: Path) -> None:
    (own_folder / "file").write_text("not a folder")
    result = cli("run", "-s", "head", "--preset", "quick", "--tracking-uri", f"sqlite:///{own_folder}/file/mlflow.db")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("Error: ")
    assert str(own_folder / "file") in result.stderr


def test_read_only_artifact_folder(cli: Cli, store: Path, own_folder: Path) -> None:
    (own_folder / "mlruns").write_text("not a folder")
    result = cli("run", "-s", "head", *TINY)
    assert result.exit_code == 2
    assert result.stderr == f"Error: cannot write artifacts to {own_folder}/mlruns/2: Not a directory\n"


def test_read_only_cache_folder(cli: Cli, own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_folder / "file").write_text("not a folder")
    monkeypatch.setenv("ADAPTKIT_CACHE", str(own_folder / "file"))
    result = cli("run", "-s", "head", "--preset", "quick", "--no-track", "-q")
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: cannot write to the cache folder {own_folder}/file/bases (Not a directory); "
        "set ADAPTKIT_CACHE to another\n"
    )


def test_infinite_loss_fails_one_run(cli: Cli) -> None:
    tiny = (
        "--set",
        "split.source=200",
        "--set",
        "split.pool=100",
        "--set",
        "split.test=100",
        "--epochs",
        "2",
        "--set",
        "base.epochs=2",
    )
    result = cli("run", "-s", "full", "-s", "head", "--lr", "1e30", "--set", "optimizer=sgd", *tiny, "--no-track", "-q")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: full seed=0: the loss is not finite in epoch 1; a lower learning rate may help: --lr 0.01\n"
    )
    assert [line.split()[0] for line in result.stdout.splitlines() if line[1:2].isalpha()][:3] == [
        "strategy",
        "zero-shot",
        "head",
    ]


def test_infinite_loss_of_the_base(cli: Cli) -> None:
    tiny = ("--set", "split.source=200", "--set", "split.pool=100", "--set", "split.test=100")
    result = cli("run", "-s", "head", "--set", "base.lr=1e38", *tiny, "--no-track", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: the loss is not finite in epoch 1; a lower learning rate may help: --set base.lr=0.01\n"
    )
