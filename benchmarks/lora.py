"""Compare adaptkit's LoRA with Hugging Face PEFT's and loralib's on two models: training step, memory, inference.

    python benchmarks/lora.py --output lora.json

Requires the extra `bench`: `pip install -e .[bench]`. All libraries start from the same weights, which is checked by
their logits, and run the same steps in turn in one process. A ratio compares two medians of the same round. The script
prints Markdown tables. Keep the machine idle while it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measuring import described, machine, markdown, ratios, spread

#: images per step; interleaved passes per round (scaling uses a third of them, inference twice as many)
BATCH = {"CNN": 128, "ViT-Tiny": 4}
PASSES = {"CNN": 9, "ViT-Tiny": 3}
RANKS = (1, 2, 4, 8, 16, 32, 64)
TARGETS = {
    "CNN": ("classifier.3", "classifier.1", "Linear"),
    "ViT-Tiny": ("head", "*.qkv", "*.qkv,*.proj", "*.fc1,*.fc2", "Linear"),
}
PEERS = ("PEFT", "loralib")


def measure(rounds: int = 7) -> dict[str, Any]:
    """Return the seconds of each round and the bytes of each model. Each time has `rounds` medians."""
    found: dict[str, Any] = {
        "rounds": rounds,
        "versions": {name: version(name) for name in ("torch", "peft", "loralib")},
        "models": {},
    }
    for name in BATCH:
        found["models"][name] = {"batch": BATCH[name], "passes": PASSES[name]} | _measure_model(name, rounds)
    return found


def _measure_model(name: str, rounds: int) -> dict[str, Any]:
    # Imported here, so that printing tables does not require torch.
    import torch
    from lora_steps import (
        adaptkit_model,
        allocated,
        build,
        images,
        inference,
        interleaved,
        libraries,
        merged,
        step_memory,
        training,
    )

    base = build(name)
    pixels, labels = images(name, BATCH[name])
    models = libraries(base)
    with torch.inference_mode():
        expected = base(pixels)
        for library, model in models.items():
            if not torch.equal(model.train()(pixels), expected):
                sys.exit(f"{name}: {library}'s logits differ from the base's before training")
    print(f"{name}: {len(models)} libraries", file=sys.stderr)
    found: dict[str, Any] = {"step_bytes": {key: step_memory(model, pixels, labels) for key, model in models.items()}}
    steps = {key: training(model, pixels, labels) for key, model in models.items()}
    found["step_seconds"] = interleaved(steps, rounds, PASSES[name])
    found["allocated_bytes"] = {key: allocated(step) for key, step in steps.items()}
    folded = {key: merged(key, model) for key, model in models.items()}
    with torch.inference_mode():
        apart = {key: float((folded[key](pixels) - model(pixels)).abs().max()) for key, model in models.items()}
    found["merged_difference"] = apart
    passes = {"base": inference(base.eval(), pixels)} | {key: inference(model, pixels) for key, model in folded.items()}
    found["inference_seconds"] = interleaved(passes, rounds, 2 * PASSES[name])
    settings = {
        "rank": {str(rank): adaptkit_model(base, rank=rank) for rank in RANKS},
        "targets": {targets: adaptkit_model(base, targets=targets) for targets in TARGETS[name]},
    }
    for kind, variants in settings.items():
        print(f"{name}: scaling with {kind}", file=sys.stderr)
        timed = {key: training(model, pixels, labels) for key, model in variants.items()}
        found[kind] = {
            "step_seconds": interleaved(timed, rounds, PASSES[name] // 3),
            "step_bytes": {key: step_memory(model, pixels, labels) for key, model in variants.items()},
            "trained": {
                key: sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
                for key, model in variants.items()
            },
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return the results of `measure` as Markdown tables."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    parts = [
        f"{versions}; rank 8, alpha 16, every linear layer, Adam, fp32; median (minimum to maximum) of "
        f"{found['rounds']} rounds."
    ]
    for name, model in found["models"].items():
        parts += [f"**{name}**, batch of {model['batch']}", _libraries(model), _scaling(model)]
    return "\n\n".join(parts)


def _libraries(model: Mapping[str, Any]) -> str:
    step, run = model["step_seconds"], model["inference_seconds"]
    rows = []
    for name, seconds in step.items():
        rows.append(
            [
                name,
                spread(_milliseconds(seconds), 1),
                spread(ratios(step["adaptkit"], seconds), 3) if name in PEERS else "",
                _megabytes(model["step_bytes"][name]),
                _megabytes(model["allocated_bytes"][name]),
                spread(ratios(run[name], run["base"]), 3),
                f"{model['merged_difference'][name]:.0e}",
            ]
        )
    header = ["library", "step, ms", "adaptkit / it", "memory, MB", "allocated, MB"]
    return markdown([*header, "merged inference / base", "merged - wrapped logits"], rows)


def _scaling(model: Mapping[str, Any]) -> str:
    rows = []
    for kind, whole in (("rank", "8"), ("targets", "Linear")):
        figures = model[kind]
        step = figures["step_seconds"]
        rows += [
            [
                f"{kind} {key}",
                f"{figures['trained'][key]:,}",
                spread(_milliseconds(seconds), 1),
                spread(ratios(seconds, step[whole]), 3),
                _megabytes(figures["step_bytes"][key]),
            ]
            for key, seconds in step.items()
        ]
    return markdown(["adaptkit", "trained", "step, ms", "of rank 8 on every layer", "memory, MB"], rows)


def _milliseconds(seconds: list[float]) -> list[float]:
    return [1000 * value for value in seconds]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f}"


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="medians for each time")
    parser.add_argument("--output", type=Path, help="store the results in this JSON file")
    parser.add_argument("--read", type=Path, help="print the tables of stored results")
    options = parser.parse_args()
    if options.read:
        kept = json.loads(options.read.read_text())
    else:
        kept = {"machine": machine(), "lora": measure(options.rounds)}
        if options.output:
            options.output.write_text(json.dumps(kept, indent=2))
    print(f"{described(kept['machine'])}.\n\n{table(kept['lora'])}")


if __name__ == "__main__":
    main()
