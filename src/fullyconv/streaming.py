"""Pictures of any size to label maps: read, computed and written a row of tiles at a time.

What is held is one row of tiles: its pixels (3 bytes each), its score maps, its labels; never the picture, its label
map, or K scores for every pixel. Labels are those of the picture in one piece (`fullyconv.tiling`), for rows of cells
are kept until all that the pixels between them lie on is known.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fullyconv import dense, images, rasters
from fullyconv.config import Classes
from fullyconv.devices import autocast, free_memory
from fullyconv.errors import ConfigError, ImageError
from fullyconv.inference import Predictor
from fullyconv.labels import Labels
from fullyconv.model import FCN, Head
from fullyconv.tiling import BLENDED, Read, Size, bands, cost, heads_of, overlap, plan, why_whole
from fullyconv.upsample import Interpolate

MEMORY = 1 << 30
"""Bytes that a row of tiles may take, where more than twice as many are free."""
MAX_PIXELS = 1 << 32
"""A file that declares more is refused. Memory does not limit it, patience does."""


@dataclass(frozen=True)
class Streamed:
    """What became of a picture.

    Attributes:
        outputs: label map of each head.
        size: (height, width) in pixels.
        area: for each head the share of each class in the pixels that are not void, 0..1.
        tile: (height, width) in pixels that a window answers for, at most.
        recomputed: pixels that the net saw for each pixel of the picture, 1 or more.
        notes: what was done to the picture on the way.
    """

    outputs: dict[str, Path]
    size: Size
    area: dict[str, dict[str, float]]
    tile: Size
    recomputed: float
    notes: tuple[str, ...] = field(default=())


def segment_raster(
    predictor: Predictor,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    tile: int | None = None,
    head: str | None = None,
    memory: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[float], object] | None = None,
) -> Streamed:
    """Segment a picture of any size from file to file.

    A GeoTIFF keeps its place on the earth, and pixels without data become void. See `fullyconv.rasters` for what is
    read and written.

    Args:
        predictor: its model and precision are used; its strategy is not, and pictures are looked at once.
        source: TIFF, PNG or JPEG, or any picture at all where it may be decoded whole.
        target: .png or .tif (cloud-optimised, needs rasterio); one for each head by name, where several are wanted.
        tile: pixels that a window answers for along a side, at most; None: as `choose_tile` says.
        head: whose labels; None: of the only one.
        memory: bytes that may be taken beside the model; None: `MEMORY`, or half of what is free if that is less.
        max_pixels: most pixels that the file may declare.
        on_progress: is told how much is done, 0..1, from time to time.

    Raises:
        ImageError: the file cannot be read, or the label map cannot be written.
        ConfigError: no such head, not enough memory for a row of pixels, or rasterio is needed and missing.

    Example:
        >>> segment_raster(predictor, "orthophoto.tif", "classes.tif")            # doctest: +SKIP
    """
    model, by_name = predictor.model, heads_of(predictor.model)
    if isinstance(target, Mapping):
        targets = {name: Path(path) for name, path in target.items()}
    else:
        if head is None and len(by_name) > 1:
            raise ConfigError(f"head: got None; expected one of {', '.join(by_name)}", where="head")
        targets = {head or next(iter(by_name)): Path(target)}
    if unknown := set(targets) - set(by_name):
        raise ConfigError(f"head: got {unknown.pop()!r}; expected one of {', '.join(by_name)}", where="head")
    if model.channels != 3:
        raise ImageError(source, f"one file, where {model.channels} channels are read; give an array to a Predictor")
    device = predictor.device
    memory = min(MEMORY, free_memory(torch.device("cpu")) // 2) if memory is None else memory
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(autocast(device, predictor.precision))
        opened = stack.enter_context(rasters.opened(source, max_pixels=min(predictor.max_pixels, max_pixels)))
        height, width = size = opened.size
        if height * width > max_pixels:
            raise ImageError(
                source,
                f"declares {height} x {width} = {height * width:,} pixels, more than the limit of {max_pixels:,}; "
                "raise the limit (predict --max-pixels, max_pixels) if you trust the file, or cut it up",
            )
        cut = choose_tile(model, memory, size) if tile is None else (tile, tile)
        rows, columns = plan(model, size, tile=cut)
        recomputed = sum(r.length for r in rows) * sum(c.length for c in columns) / (height * width)
        notes = opened.notes
        if (why := why_whole(model)) and len(rows) * len(columns) > 1:
            notes = (*notes, f"in tiles, {BLENDED}, since {why}")
        if predictor.multiscale.looks > 1:
            notes = (*notes, f"looked at once, and not at {predictor.multiscale}, since it is read by rows")
        tables = {name: predictor.classes[name] for name in targets}
        written = {
            name: stack.enter_context(rasters.created(path, size, tables[name], place=opened.place))
            for name, path in targets.items()
        }
        # Torn down before the files are: a thread may still read or write them.
        pool = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="stream"))
        pixels = _Pixels(opened, pool, [row.shift(-model.frame(*size).top) for row in rows])
        counts = {name: np.zeros(tables[name].void + 1, np.int64) for name in targets}
        done = dict.fromkeys(targets, 0)
        writing: Future[None] | None = None

        def write(parts: Mapping[str, Labels]) -> None:
            for name, labels in parts.items():
                for row in labels:
                    counts[name] += np.bincount(row, minlength=len(counts[name]))
                written[name].write(labels)

        for parts in label_rows(predictor.runner, pixels.read, size, tile=cut, heads=targets):
            for name, labels in parts.items():
                void = pixels.void(done[name], done[name] + len(labels))
                if void is not None:
                    parts[name] = _with_void(labels, void, tables[name].void)
                done[name] += len(labels)
            pixels.forget(min(done.values()))
            # One row of tiles is written while the next is computed, and no more wait.
            if writing is not None:
                writing.result()
            writing = pool.submit(write, parts)
            if on_progress is not None:
                on_progress(min(done.values()) / height)
        assert writing is not None
        writing.result()
    return Streamed(
        outputs=targets,
        size=size,
        area={name: _shares(counts[name], tables[name]) for name in targets},
        tile=cut,
        recomputed=recomputed,
        notes=notes,
    )


def label_rows(model: FCN, read: Read, size: Size, *, tile: Size, heads: Iterable[str]) -> Iterator[dict[str, Labels]]:
    """The label maps of a picture from top to bottom, some rows after each row of tiles.

    Args:
        model: in eval mode.
        read: gives parts of the picture, asked for from top to bottom.
        size: of the picture, (height, width).
        tile: (height, width) in pixels that a window answers for, at most.
        heads: whose labels.

    Yields:
        by head the next (rows, W) channel numbers, uint8, or uint16 with more than 255 classes; heads may give
        different numbers of rows at a time, even none.
    """
    makers = {name: _LabelRows(heads_of(model)[name], size) for name in heads}
    for band in bands(model, read, size, tile=tile):
        yield {name: maker.add(band.scores[name], last=band.last) for name, maker in makers.items()}


def choose_tile(model: FCN, memory: int, size: Size) -> Size:
    """The tile with which the net sees the fewest pixels more than once, in so many bytes.

    The larger a tile, the less is lost on its surroundings; the more memory it takes. Of all numbers of columns that
    a picture may be cut into the best is taken, each with tiles as high as memory allows.

    Args:
        model: whose layers are measured, in the precision of the autocast that is on.
        memory: bytes that may be taken beside the model.
        size: of the picture, (height, width).

    Returns:
        (height, width) in pixels, multiples of the model's alignment.

    Raises:
        ConfigError: not even the smallest tile fits.
    """
    height, width = size
    step = model.alignment
    per_pixel = cost(model)[0] + 4 * model.channels
    # Held and read ahead, and where there are no data; labels; score maps, and what is copied of them.
    per_row = width * (8 + sum(3 + 8 * h.classes / float(h.grid.stride) ** 2 for h in heads_of(model).values()))
    halo = _halo(model)
    best: tuple[float, Size] | None = None
    for columns in range(1, -(-width // step) + 1):
        across = -(-width // (columns * step)) * step
        window = min(across + halo(across), width + halo(0))
        most = int(memory / (window * per_pixel + per_row))
        down = (most - halo(0) if halo(0) else most * 4 // 5) // step * step
        if down < step:
            continue
        rows = -(-height // down)
        down = -(-height // (rows * step)) * step
        seen = columns * window * rows * (down + halo(down))
        if best is None or seen < best[0]:
            best = (seen, (down, across))
    if best is None:
        raise ConfigError(
            f"memory: {memory / 2**20:.0f} MiB are not enough for tiles of a picture {width} pixels wide, with "
            f"{halo(step)} pixels that lie around them; expected more free memory",
            where="memory",
        )
    return best[1]


def _halo(model: FCN) -> Callable[[int], int]:
    """How many pixels a window has more than its core of so many, along one axis."""
    if why_whole(model):
        return lambda tile: overlap(model, tile) if tile else 0
    tile = 64 * model.alignment
    _, columns = plan(model, (1, 1 << 20), tile=(tile, tile))
    around = columns[len(columns) // 2].length - (columns[1].core - columns[0].core)
    return lambda _: around


class _Pixels:
    """The rows of a picture that are needed now; those of the next row of tiles are read meanwhile.

    Args:
        source: that is read.
        pool: in which it is read.
        rows: start and stop of every row of windows, from the top, which may lie outside of the picture.
    """

    def __init__(self, source: rasters.Source, pool: ThreadPoolExecutor, rows: list[tuple[int, int]]) -> None:
        self._source, self._pool = source, pool
        height, self._width = source.size
        self._stops = sorted({min(max(stop, 0), height) for _, stop in rows} | {height})
        self._first, self._stop = 0, 0
        self._pixels = np.zeros((0, self._width, 3), np.uint8)
        self._void: npt.NDArray[np.bool_] | None = None
        self._kept = 0
        self._next = self._read_on()

    def _read_on(self) -> Future[tuple[images.UInt8, npt.NDArray[np.bool_] | None]] | None:
        stop = next((stop for stop in self._stops if stop > self._stop), None)
        return None if stop is None else self._pool.submit(self._source.rows, self._stop, stop)

    def read(self, down: slice, across: slice) -> Tensor:
        """(1, 3, rows, columns) uint8."""
        while self._stop < down.stop:
            self._append(down.start)
        rows = self._pixels[down.start - self._first : down.stop - self._first, across]
        return torch.from_numpy(rows).permute(2, 0, 1)[None]

    def void(self, start: int, stop: int) -> npt.NDArray[np.bool_] | None:
        """Where there are no data in these rows; None where there are everywhere."""
        while self._stop < stop:
            self._append(start)
        return None if self._void is None else self._void[start - self._first : stop - self._first]

    def forget(self, rows: int) -> None:
        """No `void` above this row will be asked for."""
        self._kept = rows

    def _append(self, needed: int) -> None:
        """Rows that were read meanwhile, in place of those that neither windows nor labels need any more."""
        assert self._next is not None
        pixels, void = self._next.result()
        drop = max(min(needed, self._kept) - self._first, 0)
        self._pixels = np.concatenate([self._pixels[drop:], pixels])
        self._first, self._stop = self._first + drop, self._stop + len(pixels)
        if void is not None:
            self._void = void if self._void is None else np.concatenate([self._void[drop:], void])
        self._next = self._read_on()


class _LabelRows:
    """From rows of cells to rows of labels, as far as all is known that they lie on."""

    def __init__(self, head: Head, size: Size) -> None:
        self._head, self._size = head, size
        self._stride, self._offset = head.grid.stride, head.grid.offset
        # Cells that begin on a whole, even pixel: there, a part of the map is upsampled as the whole is.
        self._step = 2 * self._stride.denominator
        self._first = 0
        self._cells: Tensor | None = None
        self._done = 0

    def add(self, scores: Tensor, *, last: bool) -> Labels:
        """(1, K, rows, w), the next rows of cells -> (rows, W) channel numbers, as many as follow from them."""
        self._cells = scores if self._cells is None else torch.cat([self._cells, scores], 2)
        height, width = self._size
        known = self._first + self._cells.shape[2]
        # A pixel lies on two cells, and upsampling in steps looks one further.
        stop = height if last else min(max(math.ceil(self._offset + (known - 2) * self._stride), self._done), height)
        skipped = int(self._first * self._stride)
        labels = self._argmax(self._cells, (stop - skipped, width))[self._done - skipped :]
        self._done = stop
        # The cell before the one that the next pixel lies behind; and no pixel may lie above the map's first.
        needed = math.floor((stop - max(self._offset, Fraction(0))) / self._stride) - 1
        first = max(needed, 0) // self._step * self._step
        self._cells, self._first = self._cells[:, :, first - self._first :].clone(), first
        return labels

    def _argmax(self, cells: Tensor, size: Size) -> Labels:
        pixels = self._head.pixels
        if size[0] <= 0:
            return np.zeros((0, size[1]), np.uint8)
        whole = size
        if isinstance(self._head.upsample, Interpolate):
            # It spreads cells evenly over the pixels, so they have to be those that the cells stand for.
            whole = (math.ceil(cells.shape[2] * self._stride), math.ceil(cells.shape[3] * self._stride))
            whole = (max(whole[0], size[0]), max(whole[1], size[1]))
        labels = dense.argmax(cells, pixels, whole)[0, : size[0], : size[1]].cpu().numpy()
        return labels if self._head.classes <= 255 else labels.astype(np.uint16)


def _with_void(labels: Labels, void: npt.NDArray[np.bool_], number: int) -> Labels:
    if number > 255:
        return np.where(void, np.uint16(number), labels.astype(np.uint16))
    return np.where(void, np.uint8(number), labels.astype(np.uint8))


def _shares(counts: npt.NDArray[np.int64], classes: Classes) -> dict[str, float]:
    total = max(int(counts[: len(classes)].sum()), 1)
    return {name: float(count) / total for name, count in zip(classes.names, counts, strict=False)}
