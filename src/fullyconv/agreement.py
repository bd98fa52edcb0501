"""Whether label maps fit their pictures: ids moved by one, maps exchanged between pictures, maps not turned.

What a class looks like and where it lies is learnt from all pairs of the set, in small: how much likelier a colour and
a place are where the class is than anywhere. A map with its ids moved fits clearly worse than with them moved back. Of
two exchanged maps each fits the other picture better, and its borders lie on the other picture's edges. Both must hold
by a margin that no pair of CamVid or NYUDv2 as they are reaches (docs/data.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fullyconv.findings import Finding
from fullyconv.impressions import SIDE, Impression
from fullyconv.images import visible

ENOUGH = 8
"""Pairs from which on it is judged what a class looks like."""
MOVED_BY = 0.5
"""Gain in fit, nats a cell, by moving all ids by one, from which on they are taken for moved. As they are, CamVid's maps
gain -0.75 at most and NYUDv2's 0.09."""
EXCHANGED_BY = 0.2
"""Gain in fit, nats a cell and summed over two pictures, and in edges under borders, from which on two maps are taken
for exchanged."""
PARTNERS = 3
"""With how many others each map is tried."""

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Looks:
    """What the classes of a set look like.

    Attributes:
        colours: (K + 1, 512) how much likelier, as a logarithm, a colour is where the class is than anywhere; the last
            row, void's, is 0.
        places: (K + 1, 64) the same of a place, of 8 x 8.
    """

    colours: Floats
    places: Floats

    @classmethod
    def of(cls, pairs: Sequence[Impression], classes: int) -> Self:
        """Learn them from pairs."""
        labels = labels_of(pairs, classes)
        return cls(
            _likelihoods(labels, colours_of(pairs), classes, 512),
            _likelihoods(labels, np.broadcast_to(PLACES, labels.shape), classes, 64),
        )

    def fit(self, labels: Integers, colours: Integers) -> Floats:
        """How well label maps (N, cells) fit pictures (N, cells), nats a labelled cell."""
        cells = np.maximum((labels < len(self.colours) - 1).sum(1), 1)
        fit: Floats = (self.colours[labels, colours].sum(1) + self.places[labels, PLACES].sum(1)) / cells
        return fit


PLACES: Integers = np.add.outer(np.arange(SIDE) // 4 * 8, np.arange(SIDE) // 4).ravel()


def labels_of(pairs: Sequence[Impression], classes: int) -> Integers:
    """(N, cells) channel numbers; void is ``classes``."""
    stacked = np.stack([pair.labels for pair in pairs]).reshape(len(pairs), -1).astype(np.intp)
    return np.minimum(stacked, classes)


def colours_of(pairs: Sequence[Impression]) -> Integers:
    """(N, cells) of 512 colours: the first three bits of red, green and blue."""
    bits = np.stack([pair.thumbnail for pair in pairs]).reshape(len(pairs), -1, 3) >> 5
    return bits.astype(np.intp) @ np.array([64, 8, 1])


def _likelihoods(labels: Integers, values: Integers, classes: int, count: int) -> Floats:
    known = labels < classes
    counts = np.bincount(labels[known] * count + values[known], minlength=classes * count).reshape(classes, count)
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
        looks: of the classes; by default as in these pairs.
    """
    several = [pair for pair in pairs if len(np.unique(pair.labels[pair.labels < classes])) > 1]
    if len(pairs) < ENOUGH and looks is None or not several:
        return {}
    looks = looks or Looks.of(pairs, classes)
    labels, colours = labels_of(several, classes), colours_of(several)
    own = looks.fit(labels, colours)
    found: dict[int, list[Impression]] = {}
    for step in (-1, 1):
        there = labels + step
        there[(labels == classes) | (there < 0) | (there >= classes)] = classes
        # Over the cells that are labelled as it is, so that ids which fall off the table are no gain.
        cells = np.maximum((labels < classes).sum(1), 1)
        fit = (looks.colours[there, colours].sum(1) + looks.places[there, PLACES].sum(1)) / cells
        for i in np.flatnonzero(fit - own > MOVED_BY):
            found.setdefault(step, []).append(several[i])
    return found


def candidates(pairs: Sequence[Impression], classes: int) -> list[tuple[int, int]]:
    """Numbers of pairs whose maps would fit better, by colour, were they exchanged; the likeliest first."""
    if len(pairs) < 2:
        return []
    labels, colours = labels_of(pairs, classes), colours_of(pairs)
    looks = Looks.of(pairs, classes)
    cells = np.maximum((labels < classes).sum(1), 1)
    own = looks.colours[labels, colours].sum(1) / cells
    found: dict[tuple[int, int], float] = {}
    # Whoever has another's map is among those it fits worst.
    worst = np.argsort(own)[: max(200, len(pairs) // 20)]
    for i in worst:
        # Fit of picture i with every map, and of every picture with map i.
        row = looks.colours[labels, colours[i]].sum(1) / cells
        column = looks.colours[labels[i], colours].sum(1) / cells[i]
        gain = row + column - own - own[i]
        gain[i] = -np.inf
        for j in np.argsort(-gain)[:PARTNERS]:
            if gain[j] > EXCHANGED_BY:
                found[min(i, j), max(i, j)] = float(gain[j])
    return sorted(found, key=lambda pair: -found[pair])


def under_borders(image: npt.NDArray[Any], *maps: npt.NDArray[Any]) -> list[float]:
    """How much stronger the edges of a picture (H, W, C) are under the borders of maps (H, W) than everywhere.

    The logarithm of a ratio of means; 0 where a map has no border.

    Example:
        >>> picture = np.repeat(np.array([[0, 0, 200, 200]] * 4, np.uint8)[..., None], 3, axis=2)
        >>> [round(x, 2) for x in under_borders(picture, np.array([[0, 0, 1, 1]] * 4), np.array([[0, 1, 1, 1]] * 4))]
        [0.99, -2.01]
    """
    grey = visible(image).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    across, down = np.abs(np.diff(grey, axis=1)) + 1, np.abs(np.diff(grey, axis=0)) + 1
    everywhere = (across.sum() + down.sum()) / (across.size + down.size)
    found = []
    for labels in maps:
        beside, below = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
        count = np.count_nonzero(beside) + np.count_nonzero(below)
        edges = across[beside].sum() + down[below].sum()
        found.append(float(np.log(edges / count / everywhere)) if count else 0.0)
    return found
