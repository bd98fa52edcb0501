"""Dropout on a CPU, in a quarter of the time or less: of one random number of 64 bits it makes four decisions.

Torch draws a number of its own for each element, one after another on one thread (on Intel's processors it does not):
13 of the 240 ms of a step of SqueezeNet 1.0, 8 crops of 256x320, on two cores of an AMD EPYC (profiled once).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 2**16
"""Steps in which the share of elements that are dropped is told."""


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """``F.dropout``, with other random numbers.

    Each element becomes 0 with probability ``q``, which is ``p`` to the nearest 1 / 65,536, and is divided by ``1 - q``
    otherwise, so that means stay. Numbers come from torch's default generator.

    Args:
        input: of any shape and floating type; the result has its memory format. Not on a CPU, it is left to torch.
        p: 0..1.
        training: if not, the input is returned as it is.
        inplace: fill the input.

    Raises:
        ValueError: ``p`` is out of range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> dropout(torch.ones(8), 0.25)
        tensor([0.0000, 0.0000, 1.3333, 0.0000, 1.3333, 1.3333, 0.0000, 0.0000])
    """
    level = round(p * LEVELS) if 0 < p < 1 else 0
    if not training or input.device.type != "cpu" or not 0 < level < LEVELS:
        return F.dropout(input, p, training, inplace)
    numbers = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    strides = torch.empty_like(input, device="meta").stride()  # dense, in the memory format of the input
    kept = numbers.view(torch.int16).as_strided(input.shape, strides) >= level - LEVELS // 2
    scale = kept.to(input.dtype).mul_(LEVELS / (LEVELS - level))
    return input.mul_(scale) if inplace else input * scale
