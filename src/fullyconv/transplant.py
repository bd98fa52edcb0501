"""Weights from anywhere: a classifier's, an earlier stage's, another file's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Transplant:
    """What `transplant` did, by parameter name."""

    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.used)} tensors taken over ({len(self.reshaped)} of them reshaped), {len(self.missing)} of the "
            f"model's left as they were, {len(self.unexpected)} of the source's unused"
        )


def transplant(
    source: Mapping[str, Tensor], target: nn.Module, *, rename: Callable[[str], str | None] = lambda name: name
) -> Transplant:
    """Copy tensors into a net by name: a classifier's, an earlier stage's, another file's.

    A tensor whose shape differs but whose entries are as many is reshaped (a linear layer's weight into its
    convolution's, as the authors' `surgery.transplant` does); one that does not fit is left, and told.

    Args:
        source: tensors by name.
        target: changed in place.
        rename: the target's name for a source's name; None to leave that tensor out.

    Returns:
        What was used, missing and unexpected, so that nothing stays uninitialised unnoticed.
    """
    own = target.state_dict()
    used, reshaped, unexpected = [], [], []
    with torch.no_grad():
        for name, tensor in source.items():
            goal = rename(name)
            if goal is None or goal not in own or not _fits(tensor, own[goal]):
                unexpected.append(name)
                continue
            if own[goal].shape != tensor.shape:
                reshaped.append(goal)
            own[goal].copy_(tensor.reshape(own[goal].shape))
            used.append(goal)
    taken = set(used)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = tuple(name for name in own if name not in taken and name not in counters)
    return Transplant(tuple(used), missing, tuple(unexpected), tuple(reshaped))


def _fits(tensor: Tensor, goal: Tensor) -> bool:
    """Whether a tensor has another's entries in the same order.

    One is a matrix whose rows are the other's outputs, as a linear layer (out, C*h*w) and its convolution
    (out, C, h, w) are, or only axes of length 1 differ, as in Caffe's biases.
    """
    if tensor.numel() != goal.numel():
        return False
    one, other = ([side for side in shape if side > 1] for shape in (tensor.shape, goal.shape))
    return one == other or (tensor.shape[:1] == goal.shape[:1] and min(len(one), len(other)) <= 2)
