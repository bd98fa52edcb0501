"""What goes wrong in training, told from its numbers, with the likely cause in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from fullyconv.config import FitConfig
from fullyconv.model import FCN
from fullyconv.rates import Rate

GROWN = 5.0
"""A smoothed loss this many times what guessing costs, and what it was at first, does not come back."""


class LossWatch:
    """Follows the loss per pixel and says when it has gone for good.

    Args:
        guess: loss of guessing every class alike, ``ln K``, weighted over heads as the loss is.

    Attributes:
        first: loss of the first step; None before it.
        smooth: moving average over about ten steps; None before the first.
    """

    def __init__(self, guess: float, *, first: float | None = None, smooth: float | None = None) -> None:
        self.guess, self.first, self.smooth = guess, first, smooth

    def diverged(self, loss: float) -> bool:
        """Take one step's loss; True when it is not finite, or has grown beyond return."""
        if self.first is None or self.smooth is None:
            self.first = self.smooth = loss
        self.smooth += 0.1 * (loss - self.smooth)
        return not math.isfinite(loss) or self.smooth > GROWN * max(self.guess, self.first)

    def describe(self, loss: float) -> str:
        """A loss that diverged, in words."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        return f"the loss has grown to {self.smooth:.3g} per pixel, where guessing costs {self.guess:.3g}"

    def bad_start(self) -> str | None:
        """What is wrong with a first loss far above guessing; None: it is not."""
        if self.first is None or not self.first > 3 * self.guess:
            return None
        return (
            f"the first loss is {self.first:.3g} per pixel, where guessing costs {self.guess:.3g}: the scores start "
            "out large and arbitrary; expected scores that start at zero, or labels that fit a model trained before"
        )


def cause(fit: FitConfig, *, pixels: float, bf16: bool) -> str:
    """The likely cause of a loss that diverged, and what to do.

    Args:
        fit: the settings.
        pixels: pixels that count in one step, over which a summed loss adds up.
        bf16: whether the net computed in bfloat16.
    """
    reach = _reach(fit, pixels)
    if fit.optimizer == "sgd" and fit.reduction == "sum" and reach > 0.1:
        return (
            f"lr {fit.lr:g} with a loss summed over {pixels:,.0f} pixels and momentum {fit.momentum:g} moves weights "
            f"like lr {reach:,.3g} with a mean loss; set reduction = mean, or lr near {fit.lr * 0.01 / reach:.1g}"
        )
    if fit.optimizer == "sgd" and reach > 0.1:
        return (
            f"lr {fit.lr:g} with momentum {fit.momentum:g} moves weights like lr {reach:.3g} without; "
            f"set lr to {fit.lr / 10:g}"
        )
    if fit.optimizer == "adamw" and fit.lr > 3e-3:
        return f"lr {fit.lr:g} is high for adamw; set lr to 1e-3 or less"
    advice = f"set lr to {fit.lr / 10:g}" + ("" if fit.clip else " or clip = 1")
    return f"{advice}, or precision = 32 (it was bf16)" if bf16 else advice


def bad_recipe(fit: FitConfig, *, pixels: float) -> str | None:
    """What is wrong with rate, reduction and momentum together before a step is taken; None: nothing known."""
    return cause(fit, pixels=pixels, bf16=False) if fit.optimizer == "sgd" and _reach(fit, pixels) > 10 else None


def _reach(fit: FitConfig, pixels: float) -> float:
    """The rate with a mean loss and no momentum that moves weights as far in the long run."""
    return Rate(fit.lr, fit.reduction, momentum=fit.momentum, pixels=round(pixels)).long_run


def collapsed(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for each head that gave every scored pixel one class where the truth has several.

    Args:
        scores: for each head what `ConfusionMatrix.as_dict` gives.
    """
    for head, score in scores.items():
        predicted = [name for name, one in score["per_class"].items() if one["predicted"]]
        true = [name for name, one in score["per_class"].items() if one["pixels"]]
        if len(predicted) == 1 and len(true) > 1:
            yield (
                f"head {head!r} gives {predicted[0]!r} for every pixel, where val has {len(true)} classes; early in "
                "training it may pass, later the rate is too high, too low, or the weights are not pretrained"
            )


def unscored(scores: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for each head of which val has no labels, so that nothing says which model is best.

    Args:
        scores: as for `collapsed`.
    """
    for head, score in scores.items():
        if not any(one["pixels"] for one in score["per_class"].values()):
            yield (
                f"val has no labelled pixel for head {head!r}, all are void: it cannot be scored, and nothing says "
                "which model of it is best; fullyconv check names the files"
            )


def uninitialised(model: FCN) -> Iterator[str]:
    """One line for the backbone's weights that are all zero, or not finite, so that nothing can be learnt from them.

    Scores of skips may be zero: that is how the paper starts them.
    """
    names = [n for n, p in model.backbone.named_parameters() if p.ndim > 1]
    weights = dict(model.backbone.named_parameters())
    for what, wrong in (
        ("all zero", [n for n in names if not weights[n].any()]),
        ("not finite", [n for n in names if not torch.isfinite(weights[n]).all()]),
    ):
        if wrong:
            more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            yield f"backbone weights that are {what}: {', '.join(wrong[:3])}{more}; expected trained or random ones"
