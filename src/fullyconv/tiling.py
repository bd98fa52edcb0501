"""A picture in tiles: windows that together give the score map of the whole, a row of tiles at a time.

Every window holds a core and around it all that the core's cells can see, so what its inner edges spoil is never used.
Windows start and end on multiples of the model's alignment, so their cells are the whole picture's cells: the score
maps are those of the picture in one piece. Where a net has layers that see the whole picture (squeeze-and-excite, a
global context) that cannot be: then neighbouring windows overlap, and their scores are faded into each other, which is
near and not equal; `why_whole` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fullyconv.devices import device_of
from fullyconv.errors import ConfigError
from fullyconv.model import FCN, Head

Read = Callable[[slice, slice], Tensor]
"""Rows and columns of a picture -> (B, C, rows, columns) in 0..255, uint8 or float."""
Size = tuple[int, int]
BLENDED = "blended where they meet, which is not exact"
"""What is said of tiles where `why_whole` has a reason."""


def tiled(model: FCN, image: Tensor, *, tile: int = 1024) -> dict[str, Tensor]:
    """Score maps of the picture piece by piece: the same as `whole` gives, in bounded memory.

    Only one window at a time is turned into floats. Where `why_whole` has a reason, the score maps are not the same but
    blended, see above.

    Args:
        model: in eval mode.
        image: (B, C, H, W) in 0..255, RGB first, uint8 or float, on any device.
        tile: side of the core in pixels, at most; rounded up to the model's alignment.

    Raises:
        ConfigError: ``tile`` is not positive.
    """
    stitched: dict[str, list[Tensor]] = {}
    size = (image.shape[-2], image.shape[-1])
    for band in bands(model, lambda down, across: image[..., down, across], size, tile=(tile, tile)):
        for name, scores in band.scores.items():
            stitched.setdefault(name, []).append(scores)
    return {name: torch.cat(parts, 2) for name, parts in stitched.items()}


class Band(NamedTuple):
    """What is known of the score maps after one more row of tiles.

    Attributes:
        scores: by head (B, K, rows, w), the next rows of cells, across the whole picture.
        last: whether there are no more.
    """

    scores: dict[str, Tensor]
    last: bool


def bands(model: FCN, read: Read, size: Size, *, tile: Size) -> Iterator[Band]:
    """The score maps of a picture from top to bottom, a row of tiles at a time.

    Args:
        model: in eval mode.
        read: is asked for rows of the picture in ascending order only: no window starts above the one before.
        size: of the picture, (height, width).
        tile: (height, width) of a core in pixels, at most; tiles are made equal, and rounded up to the model's
            alignment.

    Raises:
        ConfigError: ``tile`` is not positive.
    """
    if min(tile) < 1:
        raise ConfigError(f"tile: got {min(tile)}; expected a side in pixels, 1 or more", where="tile")
    frame = model.frame(*size)
    rows, columns = plan(model, size, tile=tile)
    blended = bool(why_whole(model))
    blends = {name: _Blend(head.grid.stride) for name, head in heads_of(model).items()} if blended else {}
    for row in rows:
        stitched: dict[str, Tensor] = {}
        # The last column comes first: it alone knows how many cells there are, since ceil mode and padding act there.
        for column in reversed(columns):
            window = _window(model, read, size, row.shift(-frame.top), column.shift(-frame.left))
            for name, scores in model.scores_of(window).items():
                if blended:
                    blends[name].add(scores, row, column)
                    continue
                stride = heads_of(model)[name].grid.stride
                cells, there = column.cells(stride, scores.shape[-1]), row.cells(stride, scores.shape[-2])
                if name not in stitched:
                    stitched[name] = scores.new_empty(*scores.shape[:2], there.stop - there.start, cells.stop)
                stitched[name][..., cells] = scores[..., row.local(there, stride), column.local(cells, stride)]
        last = row.end is None
        yield Band({name: blend.finish(row) for name, blend in blends.items()} if blended else stitched, last)


def plan(model: FCN, size: Size, *, tile: Size) -> tuple[list[Window], list[Window]]:
    """The windows along the height and along the width of a picture, in pixels of the framed one."""
    frame = model.frame(*size)
    lengths = (frame.top + size[0] + frame.bottom, frame.left + size[1] + frame.right)
    axes = []
    for before, length, most in zip((frame.top, frame.left), lengths, tile, strict=True):
        if why_whole(model):
            axes.append(_overlapping(model, length, most))
            continue
        axes.append(_windows(model, before, length, _up(most, model.alignment)))
        # As many tiles, but of one size: a picture is cut into no more windows, and smaller ones.
        if len(axes[-1]) > 1:
            axes[-1] = _windows(model, before, length, _up(math.ceil(length / len(axes[-1])), model.alignment))
    return axes[0], axes[1]


@dataclass(frozen=True)
class Window:
    """One axis of a window, in pixels of the framed picture: it reads start..stop and answers for core..end."""

    start: int
    stop: int
    core: int
    end: int | None
    """None: up to the last cell there is."""

    @property
    def length(self) -> int:
        return self.stop - self.start

    def shift(self, pixels: int) -> tuple[int, int]:
        return self.start + pixels, self.stop + pixels

    def cells(self, stride: Fraction, count: int) -> slice:
        """Cells of the whole map that this window answers for, when it gives ``count`` cells itself."""
        stop = self.start / stride + count if self.end is None else self.end / stride
        return slice(int(self.core / stride), int(stop))

    def local(self, cells: slice, stride: Fraction) -> slice:
        """The same cells, counted from the window's first."""
        first = int(self.start / stride)
        return slice(cells.start - first, cells.stop - first)


def _up(pixels: int, alignment: int) -> int:
    return -(-pixels // alignment) * alignment


def _windows(model: FCN, before: int, length: int, tile: int) -> list[Window]:
    """Windows along an axis of ``length`` pixels, ``before`` of which are padding at the front."""
    grids = [head.grid for head in heads_of(model).values()]
    reach = (Fraction(model.field) - 1) / 2
    # Less than a field, and a stride, of pixels may be too few for a net that does not pad, or that reflects.
    least = max(math.ceil(model.field) + model.alignment, _up(model.backbone.minimum, model.alignment))
    windows: list[Window] = []
    for core in count(0, tile):
        first = min(before + grid.offset for grid in grids) + core - reach
        last = max(before + grid.offset - grid.stride for grid in grids) + core + tile + reach
        start = max(0, math.floor(min(first, Fraction(length - least)) / model.alignment) * model.alignment)
        stop = _up(max(math.ceil(last) + 1, start + least), model.alignment)
        if stop >= length:
            windows.append(Window(start, length, core, None))
            break
        windows.append(Window(start, stop, core, core + tile))
    return windows


def _window(model: FCN, read: Read, size: Size, rows: Size, columns: Size) -> Tensor:
    """Part of the normalised picture, in pixels of the picture; what lies outside of it is 0, as padding is."""
    (top, bottom), (left, right) = rows, columns
    height, width = size
    down = slice(min(max(top, 0), height), min(max(bottom, 0), height))
    across = slice(min(max(left, 0), width), min(max(right, 0), width))
    inside: Tensor = model.normalise(read(down, across).to(device_of(model)))
    if inside.shape[-2:] == (bottom - top, right - left):
        return inside
    window: Tensor = inside.new_zeros(*inside.shape[:2], bottom - top, right - left)
    if inside.numel():
        window[..., down.start - top : down.stop - top, across.start - left : across.stop - left] = inside
    return window


def heads_of(model: FCN) -> dict[str, Head]:
    """The heads by name."""
    return {name: head for name, head in model.heads.items() if isinstance(head, Head)}


# --- nets that see the whole picture ----------------------------------------------------------------------------------

_GLOBAL = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.InstanceNorm2d)


def why_whole(model: FCN) -> str:
    """Why tiles do not add up to the whole: which map sees all of it, through which layer if that shows; "" if none."""
    if model.interpolate:
        return "the model's weights were trained with interpolation to the size of the picture"
    if not math.isinf(model.field):
        return ""
    read = [skip.tap for head in heads_of(model).values() for skip in head.skips]
    tap = next(tap for tap in read if math.isinf(model.backbone.taps[tap].grid.field))
    layer = next(
        (f" through {path} ({type(m).__name__})" for path, m in model.named_modules() if isinstance(m, _GLOBAL)), ""
    )
    return f"each cell of the map '{tap}' sees the whole picture{layer}"


def overlap(model: FCN, tile: int) -> int:
    """Pixels on which neighbouring tiles are faded into each other: a quarter of a tile."""
    return _up(max(1, tile // 4), model.alignment)


def _overlapping(model: FCN, length: int, tile: int) -> list[Window]:
    """Windows that share some pixels with the next: start..core with the one before, end..stop with the one after."""
    tile = _up(tile, model.alignment)
    shared = overlap(model, tile)
    starts = range(0, max(length - shared, 1), tile)
    return [
        Window(start, min(start + tile + shared, length), start + shared if start else 0, start + tile)
        if start != starts[-1]
        else Window(start, length, start + shared if start else 0, None)
        for start in starts
    ]


class _Blend:
    """Weighted scores of overlapping windows, summed up; rows that no further window touches are handed out."""

    def __init__(self, stride: Fraction) -> None:
        self.stride = stride
        self.first = 0
        """The row of cells that `sums` begins with."""
        self.sums: Tensor | None = None
        self.weights: Tensor | None = None

    def add(self, scores: Tensor, row: Window, column: Window) -> None:
        """Add the scores of a window; the last column comes first, for it knows how many cells there are."""
        down, across = (_fade(w, n, self.stride) for w, n in zip((row, column), scores.shape[-2:], strict=True))
        scores = scores[..., : len(down), : len(across)]
        weight = (down[:, None] * across).to(scores)
        top, left = int(row.start / self.stride) - self.first, int(column.start / self.stride)
        if self.sums is None or self.weights is None:
            self.sums = scores.new_zeros(*scores.shape[:2], 0, left + len(across))
            self.weights = scores.new_zeros(0, left + len(across))
        if (missing := top + len(down) - len(self.weights)) > 0:
            self.sums = nn.functional.pad(self.sums, (0, 0, 0, missing))
            self.weights = nn.functional.pad(self.weights, (0, 0, 0, missing))
        place = (slice(top, top + len(down)), slice(left, left + len(across)))
        self.sums[(..., *place)] += scores * weight
        self.weights[place] += weight

    def finish(self, row: Window) -> Tensor:
        """(B, K, rows, w) that are done after this row of windows."""
        assert self.sums is not None
        assert self.weights is not None
        ready = len(self.weights) if row.end is None else int(row.end / self.stride) - self.first
        done = self.sums[..., :ready, :] / self.weights[:ready]
        self.sums, self.weights = self.sums[..., ready:, :].clone(), self.weights[ready:].clone()
        self.first += ready
        return done


def _fade(window: Window, cells: int, stride: Fraction) -> Tensor:
    """The weight of each cell of a window along one axis, above 0, up to 1: squared sines where it is shared."""

    def rise(pixels: int) -> Tensor:
        shared = int(pixels / stride)
        return ((torch.arange(shared, dtype=torch.float64) + 0.5) * (math.pi / 2 / max(shared, 1))).sin().square()

    count = cells if window.end is None else int(window.length / stride)
    weights = torch.ones(count, dtype=torch.float64)
    front = rise(window.core - window.start)
    weights[: len(front)] = front
    if window.end is not None:
        back = rise(window.stop - window.end)
        weights[count - len(back) :] = back.flip(0)
    return weights[:cells]


# --- what a tile costs ------------------------------------------------------------------------------------------------


def cost(model: FCN) -> tuple[float, float]:
    """Bytes of memory that each pixel of a picture takes at the peak, and values of the largest map, both per pixel.

    Measured on a small picture: twice the largest input and output of one layer, since a block keeps its input too.
    """
    most_bytes = most_values = 0

    def measure(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal most_bytes, most_values
        tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        most_bytes = max(most_bytes, sum(t.numel() * t.element_size() for t in tensors))
        most_values = max(most_values, *(t.numel() for t in tensors), 0)

    handles = [m.register_forward_hook(measure) for m in model.modules() if next(m.children(), None) is None]
    try:
        probe = torch.zeros(1, model.channels, 128, 128, dtype=torch.uint8, device=device_of(model))
        padded = model.preprocess(probe)
        model.scores_of(padded)
    finally:
        for handle in handles:
            handle.remove()
    pixels = padded.shape[-2] * padded.shape[-1]
    return 2 * most_bytes / pixels, most_values / pixels
