"""Labels, probabilities, entropies and the loss at full resolution on CUDA, by Triton kernels; used by `dense`.

A program of `_reduce` does some rows of pixels that lie between the same two rows of cells, and some columns: it goes
through the classes one by one and keeps a few numbers a pixel. The score of a pixel is, product by product and sum by
sum, that of `fullyconv.native`, so labels are the same. The gradient is gathered: a program of `_gather` adds up what
all pixels between four cells say to these cells. Such patches of every other row and column share no cell, so they are
done in four passes, each of which adds to what is there: without atomics, the same bits every time.

The kernels are tested in Triton's interpreter on the CPU and compiled for two generations of devices; no device has run
them yet.

B, K, h, w: score map; H, W: picture; R, C: block of pixels; N: block of classes.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from fullyconv.errors import first_line

if TYPE_CHECKING:
    from fullyconv.native import Taps

COLUMNS = 128
"""Of pixels to a program of `_reduce`."""
TALLEST = 8
"""Most rows of pixels to a program of `_reduce`, for which two rows of cells are read once."""
BLOCK = 2048
"""Scores to a step of `_gather`."""


class Axis(NamedTuple):
    """Where the pixels of an axis lie among its cells, on the device of the scores."""

    pixels: int
    cell: Tensor
    """(pixels,) int32, not descending: the lower of the two cells that a pixel lies between; -1 is before the first."""
    lower: Tensor
    upper: Tensor
    """(pixels,) float32: the shares of the two cells."""
    gaps: Tensor
    """(cells + 2,) int32: of each gap, which is before a cell or after the last, the first pixel; and where all end."""
    runs: Tensor
    """(runs + 1,) int32: the first pixels of runs that lie in one gap, at most `tallest` each, and `pixels`."""
    tallest: int

    @classmethod
    def of(cls, taps: Taps, cells: int, device: torch.device) -> Self:
        """From what `fullyconv.upsample.Upsample.taps` gives."""
        index, lower, upper = taps
        pixels = len(index)
        tallest = min(TALLEST, _usual_gap(pixels, cells))
        gaps = torch.searchsorted(index, torch.arange(-1, cells + 1, dtype=index.dtype))
        first = torch.searchsorted(index, index)  # of the gap of each pixel
        starts = ((torch.arange(pixels) - first) % tallest == 0).nonzero()[:, 0]
        runs = torch.cat([starts, torch.tensor([pixels])])
        return cls(
            pixels,
            index.to(device),
            lower.to(device),
            upper.to(device),
            gaps.int().to(device),
            runs.int().to(device),
            tallest,
        )


def reduce(
    scores: Tensor,
    rows: Axis,
    columns: Axis,
    *,
    labels: Tensor | None = None,
    probability: Tensor | None = None,
    entropy: Tensor | None = None,
) -> None:
    """Fill ``labels``, ``labels`` and ``probability``, or ``entropy``: as `fullyconv.native.reduce`.

    Args:
        scores: (B, K, h, w) float32, float16 or bfloat16, any strides; computed in float32.
        rows, columns: where pixels lie.
        labels: (B, H, W) uint8 or int32, contiguous, as are the others.
        probability, entropy: (B, H, W) float32, to 1e-5.
    """
    goal = "entropy" if entropy is not None else "argmax" if probability is None else "probability"
    values = entropy if probability is None else probability
    _launch(scores, rows, columns, goal, labels=labels, values=values)


def cross_entropy(
    scores: Tensor, rows: Axis, columns: Axis, labels: Tensor, *, void: int, weights: Tensor | None, slope: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss summed over pixels, the sum of their weights, and the gradient of the former by the scores if asked for.

    Beside the gradient, 8 bytes a pixel are held.

    Args:
        scores, rows, columns: as for `reduce`.
        labels: (B, H, W) int64, 0..K-1 or ``void``; any other makes the loss NaN.
        weights: (K,) one factor for each class; None: 1.
        slope: whether the gradient is wanted.

    Returns:
        scalar, scalar, (B, K, h, w), all float32.
    """
    pictures, classes, h, w = scores.shape
    labels = labels.contiguous()
    share = scores.new_ones(classes, dtype=torch.float32)
    if weights is not None:
        share = weights.to(share).contiguous()
    peak, scale = (torch.empty_like(labels, dtype=torch.float32) if slope else None for _ in range(2))
    sums = _launch(scores, rows, columns, "loss", labels=labels, values=peak, scale=scale, weights=share, void=void)
    total, count = sums.sum((1, 2, 3))
    if peak is None or scale is None:
        return total, count, None
    made = scores.new_zeros((pictures, h, w, classes), dtype=torch.float32)
    if not labels.numel():
        return total, count, made.permute(0, 3, 1, 2)
    down, across = rows.tallest, min(_usual_gap(columns.pixels, w), 32)
    block = min(max(BLOCK // (down * across), 1), triton.next_power_of_2(classes))
    for row in (0, 1):
        for column in (0, 1):
            grid = ((w + 2 - column) // 2, (h + 2 - row) // 2, pictures * triton.cdiv(classes, block))
            with torch.cuda.device_of(scores):
                _gather[grid](
                    scores,
                    *scores.stride(),
                    *(rows.gaps, rows.lower, rows.upper),
                    *(columns.gaps, columns.lower, columns.upper),
                    labels,
                    share,
                    peak,
                    scale,
                    made,
                    row,
                    column,
                    classes,
                    *(h, w, rows.pixels, columns.pixels),
                    R=down,
                    C=across,
                    N=block,
                    enable_fp_fusion=False,
                )
    return total, count, made.permute(0, 3, 1, 2)


@cache
def why_not(device: torch.device) -> str:
    """Why the kernels do not run on a device; "" if they do. The first question compiles one."""
    if os.environ.get("FULLYCONV_NATIVE", "1") == "0":
        return "switched off (FULLYCONV_NATIVE=0)"
    taps = (torch.zeros(1, dtype=torch.int32), torch.ones(1), torch.zeros(1))
    axis = Axis.of(taps, 1, device)
    labels = torch.empty(1, 1, 1, dtype=torch.uint8, device=device)
    try:
        reduce(torch.zeros(1, 1, 1, 1, device=device), axis, axis, labels=labels)
    except Exception as error:  # whatever a compiler, an assembler or a driver has to say
        return f"not compiled ({first_line(error)})"
    return ""


def _usual_gap(pixels: int, cells: int) -> int:
    """About as many pixels as lie between two cells, as a power of 2."""
    gap: int = triton.next_power_of_2(max(1, pixels // (cells + 1)))
    return gap


def _launch(
    scores: Tensor,
    rows: Axis,
    columns: Axis,
    goal: str,
    *,
    labels: Tensor | None,
    values: Tensor | None,
    scale: Tensor | None = None,
    weights: Tensor | None = None,
    void: int = -1,
) -> Tensor:
    """Run `_reduce` on all pixels; the sums of each program, (2, ...), which only a loss fills."""
    pictures, classes, h, w = scores.shape
    grid = (len(rows.runs) - 1, triton.cdiv(columns.pixels, COLUMNS), pictures)
    sums = scores.new_zeros((2, *grid) if goal == "loss" else (2, 0, 0, 0), dtype=torch.float32)
    if 0 in grid:
        return sums
    with torch.cuda.device_of(scores):
        _reduce[grid](
            scores,
            *scores.stride(),
            *(rows.runs, rows.cell, rows.lower, rows.upper),
            *(columns.cell, columns.lower, columns.upper),
            labels,
            values,
            scale,
            sums,
            weights,
            void,
            classes,
            *(h, w, rows.pixels, columns.pixels),
            GOAL=goal,
            R=rows.tallest,
            C=COLUMNS,
            enable_fp_fusion=False,
        )
    return sums


# Numbers that change from picture to picture, and for which nothing is to be compiled anew.
_NUMBERS = ["picture_stride", "class_stride", "row_stride", "column_stride", "classes", "h", "w", "height", "width"]


@triton.jit
def _mix(lower, near, upper, far):  # type: ignore[no-untyped-def]
    """Two cells by their shares. What has no share is left out, as 0 * inf would be NaN, but for NaN itself."""
    near = tl.where(lower == 0, tl.where(near == near, 0.0, near), near)
    far = tl.where(upper == 0, tl.where(far == far, 0.0, far), far)
    return lower * near + upper * far


@triton.jit
def _scores(cell, row_stride, column_stride, over, under, before, behind, left, right, top, bottom):  # type: ignore[no-untyped-def]
    """(R, C): a class at the pixels between two rows of cells. ``cell``, (C,): the upper left one of four."""
    a = tl.load(cell, mask=over & before, other=0.0).to(tl.float32)
    b = tl.load(cell + column_stride, mask=over & behind, other=0.0).to(tl.float32)
    c = tl.load(cell + row_stride, mask=under & before, other=0.0).to(tl.float32)
    d = tl.load(cell + row_stride + column_stride, mask=under & behind, other=0.0).to(tl.float32)
    return _mix(top, _mix(left, a, right, b)[None, :], bottom, _mix(left, c, right, d)[None, :])


@triton.jit(do_not_specialize=[*_NUMBERS, "void"])  # type: ignore[untyped-decorator]
def _reduce(  # type: ignore[no-untyped-def]
    scores,
    picture_stride,
    class_stride,
    row_stride,
    column_stride,
    runs,
    row_cell,
    row_lower,
    row_upper,
    column_cell,
    column_lower,
    column_upper,
    labels,
    values,
    scale,
    sums,
    weights,
    void,
    classes,
    h,
    w,
    height,
    width,
    GOAL: tl.constexpr,  # noqa: N803
    R: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
):
    run, strip, picture = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first = tl.load(runs + run)
    rows = first + tl.arange(0, R)
    columns = strip * C + tl.arange(0, C)
    row_there, column_there = rows < tl.load(runs + run + 1), columns < width
    there = row_there[:, None] & column_there[None, :]
    pixels = (picture * height + rows[:, None]) * width + columns[None, :]

    top = tl.load(row_lower + rows, mask=row_there, other=0.0)[:, None]
    bottom = tl.load(row_upper + rows, mask=row_there, other=0.0)[:, None]
    left = tl.load(column_lower + columns, mask=column_there, other=0.0)
    right = tl.load(column_upper + columns, mask=column_there, other=0.0)
    # 64 bits, as a score map may have more than 2^31 cells.
    row = tl.zeros((C,), tl.int64) + tl.load(row_cell + first)
    column = tl.load(column_cell + columns, mask=column_there, other=-2).to(tl.int64)
    over, under = (row >= 0) & (row < h), (row >= -1) & (row < h - 1)
    before, behind = (column >= 0) & (column < w), (column >= -1) & (column < w - 1)
    first_cell = scores + picture * picture_stride + row * row_stride + column * column_stride
    step = class_stride.to(tl.int64)

    best = tl.full((R, C), float("-inf"), tl.float32)
    index = tl.zeros((R, C), tl.int32)
    if GOAL == "loss":
        label = tl.load(labels + pixels, mask=there, other=void)
        true_score = tl.zeros((R, C), tl.float32)
    cell = first_cell
    for k in range(classes):
        score = _scores(cell, row_stride, column_stride, over, under, before, behind, left, right, top, bottom)
        # Not "at most" is "larger" or NaN. Nothing is better than the first NaN.
        better = ~(score <= best) & (best == best)
        best = tl.where(better, score, best)
        index = tl.where(better, k, index)
        if GOAL == "loss":
            true_score = tl.where(label == k, score, true_score)
        cell += step
    if GOAL == "argmax" or GOAL == "probability":
        tl.store(labels + pixels, index.to(labels.dtype.element_ty), mask=there)

    if GOAL != "argmax":
        total = tl.zeros((R, C), tl.float32)
        moment = tl.zeros((R, C), tl.float32)
        cell = first_cell
        for _ in range(classes):
            score = _scores(cell, row_stride, column_stride, over, under, before, behind, left, right, top, bottom)
            below = score - best
            power = tl.exp(below)
            total += power
            if GOAL == "entropy":
                moment += tl.where(power == 0, 0.0, below * power)
            cell += step
        if GOAL == "probability":
            tl.store(values + pixels, 1 / total, mask=there)
        if GOAL == "entropy":
            tl.store(values + pixels, tl.log(total) - moment / total, mask=there)
        if GOAL == "loss":
            known = (label >= 0) & (label < classes) & (label != void)
            weight = tl.load(weights + label, mask=known, other=0.0)
            weight = tl.where(known | (label == void), weight, float("nan"))
            counted = label != void
            loss = tl.where(counted, weight * (tl.log(total) - (true_score - best)), 0.0)
            program = (run * tl.num_programs(1) + strip).to(tl.int64) * tl.num_programs(2) + picture
            programs = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) * tl.num_programs(2)
            tl.store(sums + program, tl.sum(tl.sum(loss, axis=1), axis=0))
            tl.store(sums + programs + program, tl.sum(tl.sum(weight, axis=1), axis=0))
            if values is not None:
                tl.store(values + pixels, best, mask=there)
                tl.store(scale + pixels, weight / total, mask=there)


@triton.jit(do_not_specialize=[*_NUMBERS, "odd_row", "odd_column"])  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]
    scores,
    picture_stride,
    class_stride,
    row_stride,
    column_stride,
    row_gaps,
    row_lower,
    row_upper,
    column_gaps,
    column_lower,
    column_upper,
    labels,
    weights,
    peak,
    scale,
    slope,
    odd_row,
    odd_column,
    classes,
    h,
    w,
    height,
    width,
    R: tl.constexpr,  # noqa: N803
    C: tl.constexpr,  # noqa: N803
    N: tl.constexpr,  # noqa: N803
):
    row_gap, column_gap = 2 * tl.program_id(1) + odd_row, 2 * tl.program_id(0) + odd_column
    blocks = tl.cdiv(classes, N)
    picture = (tl.program_id(2) // blocks).to(tl.int64)
    k = tl.program_id(2) % blocks * N + tl.arange(0, N)
    known = k < classes
    row, column = tl.zeros((N,), tl.int64) + row_gap - 1, tl.zeros((N,), tl.int64) + column_gap - 1
    over, under, before, behind = row >= 0, row < h - 1, column >= 0, column < w - 1
    cell = scores + picture * picture_stride + row * row_stride + column * column_stride + k.to(tl.int64) * class_stride
    a = tl.load(cell, mask=known & over & before, other=0.0).to(tl.float32)[:, None, None]
    b = tl.load(cell + column_stride, mask=known & over & behind, other=0.0).to(tl.float32)[:, None, None]
    c = tl.load(cell + row_stride, mask=known & under & before, other=0.0).to(tl.float32)[:, None, None]
    d = tl.load(cell + row_stride + column_stride, mask=known & under & behind, other=0.0).to(tl.float32)[:, None, None]

    to_a = tl.zeros((N,), tl.float32)
    to_b = tl.zeros((N,), tl.float32)
    to_c = tl.zeros((N,), tl.float32)
    to_d = tl.zeros((N,), tl.float32)
    row_stop, column_stop = tl.load(row_gaps + row_gap + 1), tl.load(column_gaps + column_gap + 1)
    for y in range(tl.load(row_gaps + row_gap), row_stop, R):
        rows = y + tl.arange(0, R)
        row_there = rows < row_stop
        top = tl.load(row_lower + rows, mask=row_there, other=0.0)
        bottom = tl.load(row_upper + rows, mask=row_there, other=0.0)
        for x in range(tl.load(column_gaps + column_gap), column_stop, C):
            columns = x + tl.arange(0, C)
            column_there = columns < column_stop
            left = tl.load(column_lower + columns, mask=column_there, other=0.0)
            right = tl.load(column_upper + columns, mask=column_there, other=0.0)
            there = row_there[:, None] & column_there[None, :]
            pixels = (picture * height + rows[:, None]) * width + columns[None, :]
            label = tl.load(labels + pixels, mask=there, other=-1)
            highest = tl.load(peak + pixels, mask=there, other=0.0)
            share = tl.load(scale + pixels, mask=there, other=0.0)
            # The same scores as before, to the bit: where they are large, little would be left of the difference.
            over_row = _mix(left[None, None, :], a, right[None, None, :], b)
            under_row = _mix(left[None, None, :], c, right[None, None, :], d)
            score = _mix(top[None, :, None], over_row, bottom[None, :, None], under_row)
            # weight * (probability - 1 where true)
            true = (label[None, :, :] == k[:, None, None]) & known[:, None, None]
            weight = tl.load(weights + k, mask=known, other=0.0)[:, None, None]
            pull = share[None, :, :] * tl.exp(score - highest[None, :, :]) - tl.where(true, weight, 0.0)
            up = tl.sum(pull * top[None, :, None], axis=1)
            down = tl.sum(pull * bottom[None, :, None], axis=1)
            to_a += tl.sum(up * left[None, :], axis=1)
            to_b += tl.sum(up * right[None, :], axis=1)
            to_c += tl.sum(down * left[None, :], axis=1)
            to_d += tl.sum(down * right[None, :], axis=1)

    place = slope + ((picture * h + row) * w + column) * classes + k
    _add(place, to_a, known & over & before)
    _add(place + classes, to_b, known & over & behind)
    _add(place + w * classes, to_c, known & under & before)
    _add(place + w * classes + classes, to_d, known & under & behind)


@triton.jit
def _add(place, more, mask):  # type: ignore[no-untyped-def]
    tl.store(place, tl.load(place, mask=mask, other=0.0) + more, mask=mask)
