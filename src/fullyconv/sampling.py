"""Which picture comes next, and with what chance: a stream without end that can be entered anywhere.

Position n of the stream stands for one picture of one epoch and for the random numbers of its transform, both
computed from (seed, n) alone. So training that was interrupted goes on from a position, workers may read in
any order, and several processes take turns along one stream.

A picture that cannot be read when its turn comes is left out, and another is drawn for its position; which ones were
left out, and why, goes with each batch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from fullyconv.datasets.base import Sample, SegmentationDataset
from fullyconv.errors import ImageError, LabelError
from fullyconv.opening import read_size
from fullyconv.transforms import MEAN, Tensors, collate

Batch = tuple[Tensor, dict[str, Tensor]]
"""Images (B, C, H, W) uint8 or float32 and, for each head, labels (B, H, W) int64."""
Lost = Mapping[str, str]
"""Pictures that could not be read: the reason of each, by name."""
Transform = Callable[[Sample, torch.Generator], tuple[Tensor, dict[str, Tensor]]]


def mix(*numbers: int) -> int:
    """A 63-bit number that depends on every bit of the numbers: a seed for each (seed, purpose, position).

    Rounds of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).

    Example:
        >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(1, 0)
        (True, False)
    """
    mask, state = (1 << 64) - 1, 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


ORDER, AUGMENT, DROPOUT, INITIAL, INSTEAD = 1, 2, 3, 4, 5
"""Purposes of `mix`, so that no two uses of chance share their numbers."""


class Stream:
    """The order of pictures: every picture once an epoch, in a new order each.

    Batches cut this stream without regard to epochs, so none is ever short.

    Example:
        >>> stream = Stream(3, seed=0)
        >>> sorted(stream[n] for n in range(3, 6))
        [0, 1, 2]
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng(mix(self.seed, ORDER, epoch)).permutation(self.length)
        return int(self._order[place])


class Samples(Dataset[tuple[Tensors | str, Lost]]):
    """Transformed samples by position in the stream, each with the pictures that could not be read in its place.

    A text, which says why, stands for a sample that there is none of. A label map with an id outside its table is not
    passed over: it is no damage, and all others may be as wrong.

    Args:
        data: what is read.
        transform: what is done to it.
        seed: of order and transforms, and of which picture stands in for one that cannot be read.
        most: no other stands in once more pictures than these cannot be read.
    """

    def __init__(self, data: SegmentationDataset, transform: Transform, seed: int, *, most: int = 0) -> None:
        self.data, self.transform, self.seed, self.most = data, transform, seed, most
        self.stream = Stream(len(data), seed)

    def __getitem__(self, position: int) -> tuple[Tensors | str, Lost]:
        generator = torch.Generator().manual_seed(mix(self.seed, AUGMENT, position))
        lost: dict[str, str] = {}
        for index in self._candidates(position):
            try:
                sample = self.data[index]
            except LabelError as error:
                return str(error), lost
            except (ImageError, OSError) as error:
                lost[self.data.names[index]] = str(error)
                if len(lost) > self.most:
                    break
            else:
                return self.transform(sample, generator), lost
        return "no picture is left to learn from", lost

    def _candidates(self, position: int) -> Iterator[int]:
        """The picture whose turn it is, then the others in an order of this position's own."""
        first = self.stream[position]
        yield first
        order = np.random.default_rng(mix(self.seed, INSTEAD, position)).permutation(len(self.data))
        yield from (int(index) for index in order if index != first)


class Positions(Sampler[list[int]]):
    """Batches of positions from ``start`` on, for ever: of every ``batch`` of them, each process takes its share."""

    def __init__(self, *, start: int, batch: int, rank: int = 0, processes: int = 1) -> None:
        self.start, self.batch, self.rank, self.processes = start, batch, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start
        while True:
            yield list(range(first + self.rank, first + self.batch, self.processes))
            first += self.batch


class WorkerDied(Exception):  # noqa: N818 - it reads as a sentence
    """A process that reads pictures has died; the message says which and of what."""


def batches(
    samples: Samples, positions: Positions, *, void: int, workers: int, fill: tuple[float, ...] = MEAN
) -> Iterator[tuple[Batch | str, Lost]]:
    """The batches at these positions, read ahead by ``workers`` processes (0: read where they are asked for).

    Where sizes differ, labels are padded with ``void`` and pictures with ``fill``, a number for each channel. With each
    batch come the pictures that could not be read for it; a text in its place says why there is none.

    Raises:
        WorkerDied: a process was killed; start anew from the first batch that is missing.
    """
    loader = DataLoader(
        samples,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=partial(_collate, void=void, fill=fill),
        worker_init_fn=_deaf,
        generator=torch.Generator(),  # else it draws from the user's
    )
    if not workers or threading.current_thread() is not threading.main_thread():
        return _watched(iter(loader))
    # Torch would raise the death of a worker in the middle of whatever is computed, a half-done step for one. It is
    # found just as well when its batch does not come.
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return _watched(iterator)


def _watched(stream: Iterator[tuple[Batch | str, Lost]]) -> Iterator[tuple[Batch | str, Lost]]:
    """A loader's batches, with one error for each of the ways in which the death of a worker shows."""
    while True:
        try:
            batch = next(stream)
        except (RuntimeError, OSError, EOFError) as error:
            said = " ".join(str(error).split())
            # What a worker has raised itself comes with its traceback; a connection that broke off does not.
            broken = not isinstance(error, RuntimeError) and not said.startswith("Caught")
            if broken or said.startswith("DataLoader worker (pid"):
                raise WorkerDied(said or type(error).__name__) from None
            raise
        yield batch


def _collate(
    samples: Sequence[tuple[Tensors | str, Lost]], *, void: int, fill: tuple[float, ...]
) -> tuple[Batch | str, Lost]:
    lost = {name: reason for _, found in samples for name, reason in found.items()}
    read: list[Tensors] = []
    for tensors, _ in samples:
        if isinstance(tensors, str):
            return tensors, lost
        read.append(tensors)
    return collate(read, void=void, fill=fill), lost


def _deaf(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the one that trains saves its state and then ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class View:
    """Some pictures of a data set, in this order, optionally kept in memory: a data set itself.

    Args:
        data: what is viewed.
        indices: which of its samples.
        remember: decode them all now, and keep them. Done before workers are forked, so that they share the memory.
    """

    def __init__(self, data: SegmentationDataset, indices: Sequence[int], *, remember: bool = False) -> None:
        self.data, self.indices = data, tuple(indices)
        self.name, self.split, self.classes, self.notes = data.name, data.split, data.classes, data.notes
        self.names = [data.names[i] for i in self.indices]
        self._kept: list[Sample | ImageError] | None = None
        if remember:
            with ThreadPoolExecutor() as pool:
                self._kept = list(pool.map(partial(_sample, data), self.indices))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        found = self.data[self.indices[index]] if self._kept is None else self._kept[index]
        if isinstance(found, ImageError):
            raise found
        return found

    def paths(self, index: int) -> tuple[Path | None, ...]:
        return self.data.paths(self.indices[index])


def _sample(data: SegmentationDataset, index: int) -> Sample | ImageError:
    """A sample, or why it cannot be read."""
    try:
        return data[index]
    except ImageError as error:
        return error


def evenly(length: int, most: int) -> list[int]:
    """At most ``most`` of the numbers 0..length-1, at even distances.

    Example:
        >>> evenly(10, 4)
        [0, 2, 5, 7]
    """
    count = min(length, most)
    return [i * length // count for i in range(count)]


def sizes(data: SegmentationDataset, *, most: int = 500) -> list[tuple[int, int]]:
    """(height, width) of up to ``most`` of the pictures; files are opened but not decoded.

    Raises:
        ImageError: none of them can be read; where some cannot, they are left out.
    """

    def size(index: int) -> tuple[int, int] | ImageError:
        path = data.paths(index)[0]
        try:
            height, width = data[index].image.shape[:2] if path is None else read_size(path)
        except ImageError as error:
            return error
        return height, width

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(size, evenly(len(data), most)))
    read = [pair for pair in found if not isinstance(pair, ImageError)]
    for error in found if not read else ():
        if isinstance(error, ImageError):
            raise error
    return read


def choose_crop(found: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """A (height, width) of crops for pictures of these sizes.

    About seven tenths of the median side, so that crops of one picture differ, in multiples of 32, at most 512; small
    pictures are taken whole, up to 128.

    Example:
        >>> choose_crop([(360, 480)]), choose_crop([(64, 64)]), choose_crop([(1024, 2048)])
        ((256, 320), (64, 64), (512, 512))
    """

    def side(median_px: float) -> int:
        aim = max(0.7 * median_px, min(median_px, 128))
        return max(32, min(512, 32 * round(aim / 32)))

    return side(median(height for height, _ in found)), side(median(width for _, width in found))
