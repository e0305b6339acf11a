"""Import a LoRA adapter of Hugging Face PEFT as a finished run."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from adaptkit.adapters.files import Inherited, fit_adapter, load_adapter, save_adapter
from adaptkit.adapters.peft import adapter_of
from adaptkit.errors import BadInput, RunFailed
from adaptkit.experiment.description import changed_layers
from adaptkit.models.formats.peft import options_for
from adaptkit.models.run_images import run_data
from adaptkit.models.trained import MODEL_TYPES, TrainedRun, find_trained, given_plugins
from adaptkit.names import (
    ADAPTER_CARD_FILE,
    ADAPTER_SHA256_TAG,
    ADAPTER_WEIGHTS_FILE,
    ARM_TAG,
    BASE_FINGERPRINT_TAG,
    BASE_RUN_ID_TAG,
    CONFIG_FILE,
    DATA_FINGERPRINT_TAG,
    DESCRIPTION_TAG,
    FINAL_SHIFTED_ACCURACY,
    FINAL_TEST_ACCURACY,
    KIND_TAG,
    PARAMS_TOTAL,
    PARAMS_TRAINABLE,
    PARAMS_TRAINABLE_FRACTION,
    SIZE_ADAPTER_BYTES,
    SPLIT_FILE,
    VERSION_TAG,
)
from adaptkit.plugins.components import make_checked
from adaptkit.plugins.manager import Plugins
from adaptkit.settings.files import read_config
from adaptkit.strategies.lora import LoRA
from adaptkit.system.files import sha256_of
from adaptkit.tracking.environment import source_tags
from adaptkit.tracking.store import Store, errors_as_lines, open_store
from adaptkit.training.evaluation import predict_logits
from adaptkit.training.objective import accuracy
from adaptkit.training.trainable import adapt, count
from adaptkit.version import __version__

#: params that an imported run copies from the run whose base it uses
KEPT = (
    *("dataset", "target", "table", "folder", "image", "shift"),
    *("backbone", "image_size", "skip_bad_images", "split", "base", "data_dir"),
)
METRICS = {"clean": FINAL_TEST_ACCURACY, "shifted": FINAL_SHIFTED_ACCURACY}


@dataclass(frozen=True)
class ImportRecord:
    """Result of `adaptkit.import_peft`.

    Attributes
    ----------
    run_id, name : str
        The new MLflow run.
    options : mapping
        Options of the strategy lora that describe the adapter.
    metrics : mapping of str to float
        Final metrics by their MLflow names.

    Examples
    --------
    >>> record = adaptkit.import_peft("adapter", onto=run_id, name="my adapter")
    >>> record.name, record.options["rank"]
    ('my adapter', 8)
    """

    run_id: str
    name: str
    options: Mapping[str, Any]
    metrics: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return dataclasses.asdict(self)


def import_peft(
    folder: str | Path,
    onto: str,
    *,
    name: str | None = None,
    tracking_uri: str | None = None,
    plugins: Iterable[str | Path | object] = (),
    backbone: nn.Module | None = None,
    notice: Callable[[str], None] = lambda line: None,
) -> ImportRecord:
    """Import a LoRA adapter of Hugging Face PEFT as a finished run of kind `imported`.

    This is the Python form of `adaptkit import-peft`. The adapter is evaluated on the test sets of the run `onto`, if
    its data are available.

    Parameters
    ----------
    folder : path
        Folder with adapter_config.json and adapter_model.safetensors.
    onto : str
        The run whose base, classes and data the adapter was trained for.
    name : str, optional
        Name of the new run. Default: "imported FOLDER".
    tracking_uri : str, optional
        MLflow store. Default: MLFLOW_TRACKING_URI, or mlflow.db in the current folder.
    plugins : iterable of path or object, optional
        Plugin files, or objects with hooks.
    backbone : torch.nn.Module, optional
        The model that `adaptkit.run` received as `backbone`, if it did.
    notice : callable, optional
        Called with each message for the user, such as the reason why the adapter was not evaluated.

    Returns
    -------
    ImportRecord
        The new run and its metrics.

    Raises
    ------
    BadInput
        If the folder is not one of PEFT, or does not fit the base.

    Examples
    --------
    >>> record = adaptkit.export(run_id, to="peft", output="adapter")
    >>> imported = adaptkit.import_peft("adapter", onto=run_id)
    >>> sorted(key for key in imported.metrics if key.startswith("final/"))
    ['final/shifted_accuracy', 'final/test_accuracy']
    """
    path = Path(folder)
    if not path.is_dir():
        raise BadInput(f"{path} is not a folder")
    if not (path / "adapter_config.json").exists():
        raise BadInput(f"{path} is not a PEFT folder: it has no adapter_config.json")
    loaded = given_plugins(plugins, backbone)
    base = find_trained(onto, tracking_uri, loaded)
    adapter = adapter_of(path)
    model = base.base()
    tensors = (*model.parameters(), *model.buffers())
    try:
        strategy, options = make_checked("lora", LoRA, options_for(adapter, model))
        adapt(model, strategy, init_seed=0)
        inherited = Inherited.of(model, tensors)
        fit_adapter(adapter.tensors, model)
        for parameter_name, parameter in model.named_parameters():
            # Parameters that PEFT saved whole belong to the adapter, also those that LoRA does not train.
            parameter.requires_grad_(parameter.requires_grad or parameter_name in adapter.tensors)
    except BadInput as error:
        # Remove the names of options, which the user did not set.
        lines = [line.removeprefix("lora.targets: ").partition("; known: ")[0] for line in error.problems]
        raise BadInput(*(f"{path} does not fit the base of {base.stored.title}: {line}" for line in lines)) from None
    metrics, fingerprint = _evaluated(model.eval(), base, plugins=loaded, notice=notice)
    counts = count(model)
    metrics |= {PARAMS_TOTAL: counts.total, PARAMS_TRAINABLE: counts.trainable}
    metrics[PARAMS_TRAINABLE_FRACTION] = counts.fraction
    shown = name or f"imported {path.resolve().name}"
    with tempfile.TemporaryDirectory(prefix="adaptkit-") as temporary:
        tensors_to_save = inherited.adapter(model)
        card = {key: base.card[key] for key in MODEL_TYPES} | {
            "adaptkit_version": __version__,
            "strategy": "lora",
            "options": dict(options),
            "targets": changed_layers(tensors_to_save, base.base_state),
            "new_head": False,
            "init_seed": 0,
            "base_fingerprint": base.base_fingerprint,
        }
        files = save_adapter(Path(temporary, "adapter"), tensors_to_save, card)
        _require_same(Path(temporary, "adapter"), model, base=base, options=options)
        metrics[SIZE_ADAPTER_BYTES] = files[ADAPTER_WEIGHTS_FILE].stat().st_size
        _copy_config(Path(temporary), base, options)
        tags = {ADAPTER_SHA256_TAG: sha256_of(files[ADAPTER_CARD_FILE])}
        tags |= {DATA_FINGERPRINT_TAG: fingerprint} if fingerprint else {}
        run_id = _record(
            shown,
            base,
            options=options,
            metrics=metrics,
            tags=tags,
            artifacts=Path(temporary),
            tracking_uri=tracking_uri,
        )
    return ImportRecord(run_id=run_id, name=shown, options=options, metrics=metrics)


def _require_same(folder: Path, model: nn.Module, base: TrainedRun, options: Mapping[str, Any]) -> None:
    """Load the saved adapter onto a fresh base; raise RunFailed if the result differs from the evaluated model."""
    fresh = base.base()
    strategy, _ = make_checked("lora", LoRA, options)
    adapt(fresh, strategy, init_seed=0)
    load_adapter(folder, fresh, base.base_fingerprint)
    loaded = fresh.state_dict()
    different = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, loaded[name])]
    if different:
        raise RunFailed(f"the saved adapter does not reproduce the model: {', '.join(different[:3])}")


def _evaluated(
    model: nn.Module, base: TrainedRun, plugins: Plugins, notice: Callable[[str], None]
) -> tuple[dict[str, float], str | None]:
    """Return the accuracies on the available test sets, and the fingerprint of the data."""
    try:
        _, domains = run_data(base.stored, plugins)
        tests = {name: test for name, test in domains.tests.items() if name == "clean" or base.stored.kind != "base"}
        metrics = {
            METRICS[name]: accuracy(predict_logits(model, test.pixels), test.labels) for name, test in tests.items()
        }
    except Exception as error:  # any error of a data set that is missing or cannot be downloaded
        reason = "; ".join(error.problems) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        notice(f"not evaluated, since the data are not available: {reason}")
        return {}, None
    recorded = base.stored.tags.get(DATA_FINGERPRINT_TAG)
    if recorded is not None and recorded != domains.fingerprint:
        notice(f"the data of {base.stored.title} have changed; the accuracies are for the current images")
    return metrics, domains.fingerprint if base.stored.kind != "base" else None


def _copy_config(folder: Path, base: TrainedRun, options: Mapping[str, Any]) -> None:
    """Write config.yaml with the settings of data, base and adapter, and copy split.json."""
    with base.stored.file(CONFIG_FILE) as path:
        config = {key: value for key, value in read_config(path).items() if key.split(".")[0] in (*KEPT, "experiment")}
    if base.stored.kind == "base":
        config["shift"] = "none"
    config |= {"strategy": "lora"} | {f"strategy.{key}": value for key, value in options.items()}
    text = yaml.safe_dump(config, sort_keys=True, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(f"# the data and the base of an imported adapter\n{text}", encoding="utf-8")
    if base.stored.has(SPLIT_FILE):
        with base.stored.file(SPLIT_FILE) as split:
            (folder / SPLIT_FILE).write_bytes(split.read_bytes())


def _record(
    name: str,
    base: TrainedRun,
    options: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    artifacts: Path,
    tracking_uri: str | None,
) -> str:
    """Create the run in the experiment of the run that has the base; return its id."""
    from mlflow.entities import Metric, Param

    reader = base.stored.runs.reader
    with errors_as_lines(reader.address):
        experiment = reader.client.get_experiment(base.stored.record.info.experiment_id).name
    store: Store = open_store(tracking_uri, experiment)
    params = {key: value for key, value in base.stored.params.items() if key.split(".")[0] in KEPT}
    params |= {"strategy": "lora"} | {f"strategy.{key}": str(value) for key, value in options.items()}
    every = source_tags(store.without_secrets) | {
        VERSION_TAG: __version__,
        KIND_TAG: "imported",
        ARM_TAG: name,
        BASE_FINGERPRINT_TAG: base.base_fingerprint,
        BASE_RUN_ID_TAG: base.stored.tags.get(BASE_RUN_ID_TAG, base.stored.run_id),
        DESCRIPTION_TAG: f"A PEFT adapter, imported onto the base of run `{base.stored.run_id}`.",
        **tags,
    }
    client, now = store.client, int(time.time() * 1000)
    with errors_as_lines(reader.address):
        run_id = str(client.create_run(store.experiment_id, run_name=name, tags=every).info.run_id)
        status = "FAILED"
        try:
            points = [Metric(key, float(value), now, 0) for key, value in metrics.items()]
            client.log_batch(run_id, metrics=points, params=[Param(key, value) for key, value in params.items()])
            client.log_artifacts(run_id, str(artifacts))
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            client.set_terminated(run_id, status)
    return run_id
