"""Choose option values that fit the widths of the layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from adaptkit.errors import BadInput

from adaptkit_peft.methods import Divisor, Limited

if TYPE_CHECKING:
    from torch import nn


def fit(fitted: Divisor | Limited, layers: Mapping[str, nn.Module], strategy: str) -> int:
    """Return a value that fits the widths of all layers. Raises BadInput if no value does."""
    from adaptkit_peft.layers import widths

    pairs = [widths(layer) for layer in layers.values()]
    if isinstance(fitted, Limited):
        return min(fitted.largest, *(fitted.room(*pair) for pair in pairs))
    sizes = sorted({pair[("in", "out").index(side)] for pair in pairs for side in fitted.sides})
    common = math.gcd(*sizes)
    start = min(common, fitted.largest) // fitted.step * fitted.step
    divisors = [candidate for candidate in range(start, 0, -fitted.step) if common % candidate == 0]
    if not divisors or divisors[0] < fitted.least:
        listed = ", ".join(map(str, sizes))
        raise BadInput(
            f"{strategy}: no {fitted.option} divides the widths of all layers ({listed}); choose other layers (targets)"
        )
    return divisors[0]
