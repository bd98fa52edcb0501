"""Score maps that tell kernels apart: ties, infinities and NaN, and layouts in memory."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def scores_of(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    scores = torch.randn(shape, generator=generator) * 4
    if kind == "small":
        return scores / 20
    if kind == "smooth":
        return F.interpolate(scores[..., :2, :2], shape[-2:], mode="bilinear", align_corners=True)
    if kind == "ties":
        return scores.div(4).round()
    if kind == "near ties":
        return 1000 + scores.round() * 2**-14
    if kind == "near planes":  # of which the smaller may reach the larger by rounding
        return (1000 + scores[:, :, :1, :1].round() * 2**-14).expand(shape).contiguous()
    if kind == "constant":
        return torch.full(shape, float(scores.flatten()[0]))
    if kind == "planes":  # classes that are equal everywhere
        return scores[:, torch.arange(shape[1]) // 2]
    if kind == "large":
        return scores * 1e38
    if kind == "tiny":
        return scores * 1e-42
    if kind == "masked":
        scores[:, torch.rand(shape[1], generator=generator) < 0.4] = -math.inf
    if kind == "odd":
        for value in (math.nan, math.inf, -math.inf):
            scores[torch.rand(shape, generator=generator) < 0.3 / shape[1]] = value
    return scores


def laid_out(scores: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return scores.contiguous(memory_format=torch.channels_last)
    if layout == "within a larger map":
        larger = torch.full((len(scores), scores.shape[1] + 3, *(2 * n + 1 for n in scores.shape[2:])), math.nan)
        part = larger[:, 1:-2, 1::2, 1::2]
        part.copy_(scores)
        return part
    return scores
