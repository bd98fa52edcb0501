"""Score maps that tell kernels apart: ties, infinities and NaN, layouts in memory, and what brings them to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from fullyconv import dense
from fullyconv.geometry import Grid
from fullyconv.upsample import Interpolate, Nearest, Upsample


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


@dataclass
class Case:
    scores: Tensor
    upsample: Upsample | Nearest
    size: tuple[int, int]
    threads: int

    def reference(self) -> Tensor:
        """The scores of all pixels, sum by sum as documented."""
        taps = [self.upsample.taps(n, to) for n, to in zip(self.scores.shape[-2:], self.size, strict=True)]
        assert taps[0] is not None
        assert taps[1] is not None
        return torch.cat(list(dense._bilinear_bands(self.scores, (taps[0], taps[1]))), 2)


KINDS = (
    "noise",
    "small",
    "smooth",
    "ties",
    "near ties",
    "near planes",
    "constant",
    "planes",
    "large",
    "tiny",
    "masked",
    "odd",
)


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Case:
    classes = draw(st.sampled_from([1, 2, 3, 21, 150, 255, 256, 1000]))
    cells = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    stride = draw(st.sampled_from([1, 2, 3, 4, 8, 13, 20, 32] if classes < 100 else [1, 2, 3, 8]))
    shape = (draw(st.integers(1, 2)), classes, *cells)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    offset = Fraction(draw(st.integers(-20, 20)), draw(st.sampled_from([1, 2, 3, 8])))
    source = Grid(Fraction(stride), offset if draw(st.booleans()) else Fraction(stride - 1, 2), Fraction(stride))
    upsample: Upsample | Nearest = Upsample(source, Grid(), classes, border=draw(st.sampled_from(["edge", "zero"])))
    if draw(st.booleans()):
        upsample = Interpolate(source, Grid(), classes)
    if draw(st.integers(0, 4)) == 0:
        upsample = Nearest(upsample, draw(st.sampled_from([Fraction(1, 2), Fraction(2)])))
    return Case(
        laid_out(
            scores_of(draw(st.sampled_from(kinds)), shape, generator),
            draw(st.sampled_from(["contiguous", "channels last", "within a larger map"])),
        ),
        upsample,
        (max(1, cells[0] * stride + draw(st.integers(-5, 5))), max(1, cells[1] * stride + draw(st.integers(-5, 5)))),
        draw(st.sampled_from([1, 2])),
    )
