"""A refit trains on every labelled target image, each of them once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from support.experiments import TINY_SETTINGS
from support.photos import CLASSES, make_photos

from adaptkit.contracts import Images
from adaptkit.data.domains import Domains
from adaptkit.experiment.prepare import load_data
from adaptkit.experiment.refit import all_labels
from adaptkit.plugins.loading import load_plugins
from adaptkit.settings.resolve import Layer, resolve


def domains_of(**settings: object) -> Domains:
    return load_data(resolve([Layer({"strategy": "head", **settings})], load_plugins()))


def test_every_image_of_a_folder(own_folder: Path) -> None:
    make_photos(Path("photos"), per_class=10, size=20)
    domains = domains_of(dataset="none", weights="none", target="folder:photos", image_size=16)
    labelled = all_labels(domains)
    files = sorted(str(path.relative_to("photos")) for path in Path("photos").rglob("*.*"))
    assert labelled.ids is not None and sorted(labelled.ids) == files
    assert [CLASSES[0] if name.startswith(CLASSES[0]) else "" for name in labelled.ids] == [
        CLASSES[0] if domains.classes[number] == CLASSES[0] else "" for number in labelled.labels
    ]
    # Pixels follow their ids.
    again = all_labels(domains_of(dataset="none", weights="none", target="folder:photos", image_size=16))
    assert torch.equal(pixels(labelled), pixels(again))


def test_images_of_a_shifted_source_are_not_shifted_twice() -> None:
    domains = domains_of(shift="noise=0.3", **TINY_SETTINGS)
    labelled = all_labels(domains)
    assert len(labelled) == len(domains.pool) + len(domains.shifted_test)
    assert torch.equal(pixels(labelled)[len(domains.pool) :], domains.unshifted)


def test_images_that_train_and_are_evaluated_count_once() -> None:
    domains = domains_of(**TINY_SETTINGS)
    folds = dataclasses.replace(
        domains,
        shifted_test=dataclasses.replace(
            domains.shifted_test,
            pixels=domains.pool.pixels,
            labels=domains.pool.labels,
            index=domains.pool_index,
        ),
        unshifted=domains.pool.pixels,
    )
    assert all_labels(folds) is domains.pool


def pixels(images: Images) -> torch.Tensor:
    return torch.stack([images.pixels[index] for index in range(len(images))])
