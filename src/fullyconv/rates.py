"""How far a step moves the weights: what ties the learning rate to the reduction of the loss, momentum and batch.

A gradient of a summed loss is as many times that of a mean one as there are pixels, so 1e-10 with the one and 1e-5
with the other is one and the same recipe. Here every pair is put as the rate that a mean over pixels would need, and
pairs that mean nothing are refused with that number. No torch, so that a recipe is checked where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Reduction = Literal["mean", "sum", "image"]

PICTURE = (375, 500)
"""(height, width) that stands for pictures of unknown size: most of PASCAL VOC's."""
LONG_RUN = (5e-8, 10.0)
"""What sgd may move in the long run, per pixel: the least published is 1.9e-7, and beyond 10 every net diverges."""
ADAMW = (1e-7, 1.0)
"""Rates that adamw may have."""


@dataclass(frozen=True)
class Rate:
    """A learning rate of sgd with all that its meaning depends on.

    Attributes:
        lr: as it is written.
        reduction: of the loss.
        momentum: 0..1.
        pixels: of one step, over which a sum adds up.

    Example:
        The papers' heavy learning, on a picture of 500x375:

        >>> heavy = Rate(1e-10, "sum", momentum=0.99, pixels=375 * 500)
        >>> heavy.per_pixel, round(heavy.factor), round(heavy.long_run, 6)
        (1.8750000000000002e-05, 100, 0.001875)
    """

    lr: float
    reduction: Reduction
    momentum: float
    pixels: int

    @property
    def per_pixel(self) -> float:
        """The rate that a mean over pixels would need for steps as long."""
        return self.lr * self.pixels if self.reduction == "sum" else self.lr

    @property
    def factor(self) -> float:
        """Steps that each gradient is worth in the long run, once momentum has repeated it."""
        return 1 / (1 - self.momentum)

    @property
    def long_run(self) -> float:
        """The rate that a mean over pixels would need without momentum to move as far in the long run."""
        return self.per_pixel * self.factor

    def with_reduction(self, reduction: Reduction) -> Rate:
        """The rate that moves weights as far with another reduction."""
        return replace(self, reduction=reduction, lr=self.per_pixel / (self.pixels if reduction == "sum" else 1))


def learning(*, momentum: float, pictures: int) -> str | None:
    """What PAMI, section 4.2, calls this momentum with so many pictures a step; None: nothing.

    Example:
        >>> learning(momentum=0.99, pictures=1)
        'heavy'
    """
    return {(0.9, 20): "accumulated", (0.9, 1): "online", (0.99, 1): "heavy"}.get((momentum, pictures))


def refusal(rate: Rate, *, optimizer: str) -> str | None:
    """What is wrong with a rate, with the numbers and the setting that was probably meant; None: nothing.

    Example:
        >>> said = refusal(Rate(1e-10, "mean", momentum=0.99, pixels=187_500), optimizer="sgd")
        >>> said.rpartition("; ")[2]
        "did you mean 'sum' with lr 1e-10, equal here to 'mean' with lr 1.9e-05 (187,500 pixels a step)"
    """
    if optimizer == "adamw":
        low, high = ADAMW
        if low <= rate.lr <= high:
            return None
        said = f"adamw moves every weight by about {rate.lr:g} a step, where {low:g} to {high:g} makes sense"
        meant = replace(rate, reduction="sum")
        optimizer_too = "optimizer 'sgd' and reduction "
    else:
        low, high = LONG_RUN
        if low <= rate.long_run <= high:
            return None
        said = (
            f"'{rate.reduction}' with lr {rate.lr:g} and momentum {rate.momentum:g} moves weights like lr "
            f"{rate.long_run:.2g} per pixel in the long run, where {low:g} to {high:g} makes sense"
        )
        meant = replace(rate, reduction="mean" if rate.reduction == "sum" else "sum")
        optimizer_too = ""
    if not LONG_RUN[0] <= meant.long_run <= LONG_RUN[1]:
        ends = (low, high) if optimizer == "adamw" else [rate.lr * end / rate.long_run for end in LONG_RUN]
        return f"{said}; expected lr {ends[0]:.2g} to {ends[1]:.2g}"
    return (
        f"{said}; did you mean {optimizer_too}'{meant.reduction}' with lr {rate.lr:g}, equal here to "
        f"'{rate.reduction}' with lr {meant.with_reduction(rate.reduction).lr:.2g} ({rate.pixels:,} pixels a step)"
    )
