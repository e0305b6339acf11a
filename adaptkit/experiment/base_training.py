"""Train a base on the source."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from adaptkit.backbones.heads import find_head
from adaptkit.contracts import Epoch
from adaptkit.data.domains import Domains
from adaptkit.data.views import Views
from adaptkit.request import Request
from adaptkit.seeds import derive_seed
from adaptkit.training.checkpoints import Checkpoint, Keep
from adaptkit.training.features import ImageSet, Value
from adaptkit.training.loop import Recipe, fit
from adaptkit.training.passes import Test
from adaptkit.training.streaming import BytePasses, on_device
from adaptkit.training.trainable import freeze


def train_base(
    request: Request,
    domains: Domains,
    model: nn.Module,
    clean: tuple[Views, Tensor],
    start: Checkpoint | None = None,
    keep: Keep | None = None,
) -> Iterator[Epoch]:
    """Train the prepared model on the source, in place, yielding each epoch; `clean` is the clean test set on the
    device. Training goes on from `start`, and each epoch's checkpoint is given to `keep`.
    """
    settings = request.settings
    device = clean[1].device
    test = Test(ImageSet("clean", Value(clean[0], 0.0)), clean[1])
    passes = BytePasses(model, on_device(domains.source.pixels, device), device, {"clean": test})
    recipe = Recipe(
        epochs=settings.base.epochs,
        batch_size=settings.base.batch_size,
        lr=settings.base.lr,
        order_seed=derive_seed(settings.base.seed, "base order"),
        precision=settings.precision,
        checkpointing=settings.checkpointing,
        lr_option="--set base.lr=",
    )
    # A backbone may come with frozen parameters of its own.
    trained = list(model.parameters())
    if settings.base.mode == "probe":
        trained = [parameter for parameter in trained if parameter.requires_grad]
    groups, labels = [{"params": trained}], domains.source.labels.to(device)
    yield from fit(model, groups, passes, labels, recipe, start=start, keep=keep)


def prepare_base(request: Request, model: nn.Module) -> None:
    """Choose what is trained of the base: where it is only probed, the head alone."""
    if request.settings.base.mode == "probe":
        freeze(model)
        for parameter in find_head(model.head).parameters():  # type: ignore[arg-type]
            parameter.requires_grad_(True)
