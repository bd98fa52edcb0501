"""Whether label maps fit their pictures: ids moved by one, maps exchanged between pictures, maps not turned.

What a class looks like and where it lies is learnt from all pairs of the set, in small: how much likelier a colour and
a place are where the class is than anywhere. A map with its ids moved fits clearly worse than with them moved back. Of
two exchanged maps each fits the other picture better, and its borders lie on the other picture's edges. Both must hold
by a margin that no pair of CamVid or NYUDv2 as they are reaches (docs/data.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.images import visible
from fullyconv.impressions import SIDE, Impression

ENOUGH = 8
"""Pairs from which on it is judged what a class looks like."""
MOVED_BY = 1.0
"""Gain in fit, nats a cell, by moving all ids by one, from which on they are taken for moved. As they are,
CamVid's maps gain -0.7 at most and NYUDv2's 0.9; moved, CamVid's gain 1.0 at least, even among 12."""
EXCHANGED_BY = 0.2
"""Gain in fit by colour, nats a cell and summed over two pictures, from which on two maps may have changed places."""
ON_EDGES_BY = 0.5
"""Gain in edges under borders, summed over two pictures, from which on they have; of NYUDv2's as they are that pass the
first test, none gains more than 0.3."""
FEW = 64
"""Pairs up to which colours are too few to tell, and every two maps are tried on the edges."""
MANY = 500
"""Pairs from which on a pair weighs too little to speak for itself."""
WORST = 400
"""How many of the pairs that fit worst are tried with all others ..."""
PARTNERS = 3
"""... and how many of these are looked at."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]


class Looks:
    """What the classes of a set look like, and where they lie.

    Args:
        pairs: to learn from.
        classes: how many there are.
    """

    def __init__(self, pairs: Sequence[Impression], classes: int) -> None:
        self.classes = classes
        labels = labels_of(pairs, classes)
        self._colours = self._counted(labels, colours_of(pairs), 512)
        self._places = self._counted(labels, np.broadcast_to(PLACES, labels.shape), 64)
        self._alone = len(pairs) < MANY

    def _counted(self, labels: Integers, values: Integers, count: int) -> npt.NDArray[np.int64]:
        known = labels < self.classes
        flat = labels[known] * count + values[known]
        return np.bincount(flat, minlength=self.classes * count).reshape(self.classes, count)

    def without(self, labels: Integers, colours: Integers) -> tuple[Floats, Floats]:
        """As `in_all`, but in all pairs save this one, (cells,), which may not speak for itself."""
        if not self._alone:
            return self.in_all
        own = self._counted(labels, colours, 512), self._counted(labels, PLACES, 64)
        return _likelihoods(self._colours - own[0]), _likelihoods(self._places - own[1])

    @cached_property
    def in_all(self) -> tuple[Floats, Floats]:
        """How much likelier each colour (K + 1, 512), and each place (K + 1, 64), is where a class is than anywhere.

        As logarithms; the last row, void's, is 0.
        """
        return _likelihoods(self._colours), _likelihoods(self._places)


PLACES: Integers = np.add.outer(np.arange(SIDE) // 4 * 8, np.arange(SIDE) // 4).ravel()


def labels_of(pairs: Sequence[Impression], classes: int) -> Integers:
    """(N, cells) channel numbers; void is ``classes``."""
    stacked = np.stack([pair.labels for pair in pairs]).reshape(len(pairs), -1).astype(np.intp)
    return np.minimum(stacked, classes)


def colours_of(pairs: Sequence[Impression]) -> Integers:
    """(N, cells) of 512 colours: the first three bits of red, green and blue."""
    bits = np.stack([pair.thumbnail for pair in pairs]).reshape(len(pairs), -1, 3) >> 5
    colours: Integers = bits.astype(np.intp) @ np.array([64, 8, 1])
    return colours


def _likelihoods(counts: npt.NDArray[np.int64]) -> Floats:
    classes, count = counts.shape
    anywhere = counts.sum(0) + 0.5
    anywhere /= anywhere.sum()
    # A class that is hardly seen looks like anything.
    inside = (counts + count * anywhere) / (counts.sum(1, keepdims=True) + count)
    ratios = np.zeros((classes + 1, count), np.float32)
    ratios[:classes] = np.log(inside / anywhere).clip(-3, 3)
    return ratios


def moved(pairs: Sequence[Impression], classes: int, looks: Looks | None = None) -> dict[int, list[Impression]]:
    """The pairs whose maps fit clearly better with all ids moved, by what must be added: 1 or -1.

    Args:
        pairs: to be judged.
        classes: how many there are.
        looks: of the classes, in other pairs; by default each is judged by the rest of these.
    """
    found: dict[int, list[Impression]] = {}
    if not pairs or (looks is None and len(pairs) < ENOUGH):
        return found
    all_labels, all_colours = labels_of(pairs, classes), colours_of(pairs)
    learnt = looks or Looks(pairs, classes)
    for pair, labels, colours in zip(pairs, all_labels, all_colours, strict=True):
        known = labels < classes
        if len(np.unique(labels[known])) < 2:
            continue
        of_colour, of_place = learnt.without(labels, colours) if looks is None else looks.in_all
        for step in (-1, 1):
            gain, fit = _moved(labels, colours, of_colour, of_place, step)
            # What fits badly either way is wrong in another way.
            if fit > 0 and gain > MOVED_BY:
                found.setdefault(step, []).append(pair)
    return found


def gain_by_moving(pair: Impression, classes: int, looks: Looks, step: int) -> float:
    """How much better, nats a cell, a map fits its picture with all ids moved, going by other pairs."""
    labels, colours = labels_of([pair], classes)[0], colours_of([pair])[0]
    return _moved(labels, colours, *looks.in_all, step)[0]


def _moved(labels: Integers, colours: Integers, of_colour: Floats, of_place: Floats, step: int) -> tuple[float, float]:
    """What is gained by moving the ids, and how well they fit then, nats a labelled cell."""
    void = len(of_colour) - 1
    known = labels < void
    there = labels + step
    # What falls off the table is no gain.
    there[~known | (there < 0) | (there >= void)] = void
    fit = of_colour[there, colours] + of_place[there, PLACES]
    gain = fit - of_colour[labels, colours] - of_place[labels, PLACES]
    cells = max(int(np.count_nonzero(known)), 1)
    return float(gain.sum()) / cells, float(fit.sum()) / cells


def candidates(pairs: Sequence[Impression], classes: int) -> list[tuple[int, int]]:
    """Numbers of pairs whose maps may have changed places, going by colour; the likeliest first.

    Of few pairs these are any two.
    """
    count = len(pairs)
    if count <= FEW:
        return list(combinations(range(count), 2))
    coarse = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)[::2, ::2].ravel()
    all_labels, all_colours = labels_of(pairs, classes), colours_of(pairs)
    labels, colours = all_labels[:, coarse], all_colours[:, coarse]
    looks = Looks(pairs, classes)
    cells = np.maximum((labels < classes).sum(1), 1)
    own = np.empty(count, np.float32)
    for i in range(count):
        own[i] = looks.without(all_labels[i], all_colours[i])[0][labels[i], colours[i]].sum() / cells[i]
    found: dict[tuple[int, int], float] = {}
    for i in np.argsort(own)[:WORST].tolist():
        likely = looks.without(all_labels[i], all_colours[i])[0]
        this_picture = likely[labels, colours[i]].sum(1) / cells
        this_map = likely[labels[i], colours].sum(1) / cells[i]
        gain = this_picture + this_map - own - own[i]
        gain[i] = -np.inf
        for j in np.argsort(-gain)[:PARTNERS].tolist():
            if gain[j] > EXCHANGED_BY:
                found[min(i, j), max(i, j)] = float(gain[j])
    return sorted(found, key=lambda two: -found[two])


def edges_of(image: npt.NDArray[Any]) -> Floats:
    """How strong the edges of a picture (H, W, C) are along some of its rows, then of its columns, as one vector."""
    grey = visible(image).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    step = _thinned(grey)
    across, down = np.diff(grey[::step], axis=1), np.diff(grey[:, ::step], axis=0)
    edges: Floats = np.abs(np.concatenate([across.ravel(), down.ravel()])) + 1
    return edges


def borders_of(labels: npt.NDArray[Any]) -> Floats:
    """1 where a label map (H, W) has a border and 0 elsewhere, in the places of `edges_of`."""
    step = _thinned(labels)
    across, down = labels[::step], labels[:, ::step]
    beside, below = across[:, 1:] != across[:, :-1], down[1:] != down[:-1]
    return np.concatenate([beside.ravel(), below.ravel()]).astype(np.float32)


def _thinned(array: npt.NDArray[Any]) -> int:
    return max(1, round(int(array.shape[0]) * int(array.shape[1]) / 2**16))


def under_borders(edges: Floats, borders: Floats) -> float:
    """How much stronger edges are under borders than everywhere: the logarithm of a ratio of means, 0 without borders.

    Example:
        >>> picture = np.repeat(np.array([[0, 0, 200, 200]] * 4, np.uint8)[..., None], 3, axis=2)
        >>> maps = np.array([[0, 0, 1, 1]] * 4), np.array([[0, 1, 1, 1]] * 4)
        >>> [round(under_borders(edges_of(picture), borders_of(labels)), 2) for labels in maps]
        [1.77, -3.54]
    """
    count = float(borders.sum())
    return float(np.log(edges @ borders / count / edges.mean())) if count else 0.0
