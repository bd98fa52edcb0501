"""How good a labelling is: one table of counts over a whole set of pictures, and the paper's four scores of it.

Scores are ratios of sums over the set, never means of per-picture scores, which come out up to ten points higher.

K: classes; n_ij: pixels of class i labelled j; t_i: pixels of class i, the sum of n_ij over j (paper, section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Pixels counted at a time: the 64-bit indices of so many stay in a core's cache.
CHUNK = 1 << 16


class ConfusionMatrix:
    """Counts of pixels by true class (rows) and predicted class (columns).

    A class that no counted pixel belongs to (t_i = 0) is *absent*. It is left out of every mean over classes and its
    own scores are nan, also where it was predicted: no pixel could have been labelled with it rightly. Such false
    pixels are not lost, since each lowers the scores of the class that it was taken from, and ``predicted`` shows
    them. `absent` names the classes; say them wherever a mean is shown. (The paper's SIFT Flow scores are of this
    kind; its released script counts an absent class that was predicted as an IU of 0.)

    Args:
        classes: names, in channel order.
        counts: (K, K) whole numbers to start from; None: zeros.

    Attributes:
        classes: names, in channel order.
        counts: (K, K) int64, rows truth, columns prediction.

    Raises:
        ValueError: no class, two of one name, or counts that are no K x K table of whole numbers, 0 or more.

    Example:
        >>> matrix = ConfusionMatrix(["background", "cat"])
        >>> matrix.update(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 1]]), void=255)
        >>> matrix.counts.tolist()
        [[1, 1], [0, 1]]
        >>> matrix.mean_iu
        0.5
    """

    def __init__(self, classes: Sequence[str], counts: npt.ArrayLike | None = None) -> None:
        self.classes = tuple(classes)
        size = len(self.classes)
        if size == 0 or len(set(self.classes)) != size:
            raise ValueError(f"classes: got {self.classes}; expected one name or more, each once")
        if counts is None:
            counts = np.zeros((size, size), np.int64)
        given = np.asarray(counts)
        if given.shape != (size, size) or not np.issubdtype(given.dtype, np.integer) or given.min() < 0:
            raise ValueError(
                f"counts: got shape {given.shape}, {given.dtype}; expected ({size}, {size}) whole numbers, 0 or more"
            )
        self.counts: npt.NDArray[np.int64] = given.astype(np.int64)

    def update(self, truth: npt.ArrayLike, predicted: npt.ArrayLike, void: int) -> None:
        """Count the pixels of one picture, or of several of one size.

        Args:
            truth: any shape, any integer type: indices 0..K-1, or ``void`` where a pixel does not count.
            predicted: same shape, any integer type: indices 0..K-1; anything where the truth is void.
            void: a number that is no class. (If it were one, the pixels wrongly given that class would vanish, and
                IU would turn into recall.)

        Raises:
            ValueError: shapes differ, a type is no integer, ``void`` is a class, or a counted pixel is outside
                0..K-1. Nothing is counted then.
        """
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        size = len(self.classes)
        if truth.shape != predicted.shape:
            raise ValueError(f"labels: truth is {truth.shape}, prediction {predicted.shape}; expected one shape")
        for name, labels in (("truth", truth), ("prediction", predicted)):
            if not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(f"{name}: got {labels.dtype}; expected whole numbers, the indices of classes")
        if 0 <= void < size:
            raise ValueError(f"void: got {void}, which is class {self.classes[void]!r}; expected a number of no class")

        found = np.zeros(size * size, np.int64)
        flat_truth, flat_predicted = truth.reshape(-1), predicted.reshape(-1)
        step = max(CHUNK, size * size)
        for start in range(0, truth.size, step):
            rows, columns = flat_truth[start : start + step], flat_predicted[start : start + step]
            counted = rows != void
            rows, columns = rows[counted], columns[counted]
            _check_range("truth", rows, size, void)
            _check_range("prediction", columns, size, void)
            found += np.bincount(rows.astype(np.intp) * size + columns.astype(np.intp), minlength=size * size)
        self.counts += found.reshape(size, size)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The counts of both sets of pictures together.

        Raises:
            ValueError: the classes differ.
        """
        if not isinstance(other, ConfusionMatrix):
            return NotImplemented
        if self.classes != other.classes:
            raise ValueError(f"cannot add counts of {other.classes} to counts of {self.classes}; expected the same")
        return ConfusionMatrix(self.classes, self.counts + other.counts)

    def __repr__(self) -> str:
        return f"ConfusionMatrix({len(self.classes)} classes, {self.counts.sum()} pixels, mean IU {self.mean_iu:.4f})"

    @property
    def pixels(self) -> npt.NDArray[np.int64]:
        """(K,) t_i: pixels of each class in the truth."""
        return np.asarray(self.counts.sum(axis=1), np.int64)

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(K,) counted pixels that were given each class."""
        return np.asarray(self.counts.sum(axis=0), np.int64)

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the classes without a counted pixel, which the means leave out."""
        return tuple(name for name, pixels in zip(self.classes, self.pixels, strict=True) if pixels == 0)

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """(K,) n_ii / t_i: how much of each class was found (recall), 0..1, best 1; nan where absent."""
        return _ratio(np.diagonal(self.counts), self.pixels)

    @property
    def iu(self) -> npt.NDArray[np.float64]:
        """(K,) n_ii / (t_i + sum_j n_ji - n_ii): intersection over union, 0..1, best 1; nan where absent."""
        hits = np.diagonal(self.counts)
        union = self.pixels + self.predicted - hits
        return _ratio(hits, np.where(self.pixels > 0, union, 0))

    @property
    def pixel_accuracy(self) -> float:
        """Sum of n_ii / sum of t_i, 0..1, best 1; nan where no pixel counts."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes that are not absent, 0..1, best 1; nan where no pixel counts."""
        return _mean_of_present(self.accuracy)

    @property
    def mean_iu(self) -> float:
        """Mean of `iu` over the classes that are not absent, 0..1, best 1; nan where no pixel counts."""
        return _mean_of_present(self.iu)

    @property
    def fw_iu(self) -> float:
        """Mean of `iu` weighted by t_i (frequency-weighted IU), 0..1, best 1; nan where no pixel counts."""
        return float(_ratio(np.nansum(self.pixels * self.iu), self.counts.sum()))

    def as_dict(self) -> dict[str, Any]:
        """All scores as plain data for JSON: fractions 0..1, None for nan.

        Example:
            >>> ConfusionMatrix(["a", "b"], [[3, 1], [0, 0]]).as_dict()["per_class"]["b"]
            {'iu': None, 'accuracy': None, 'pixels': 0, 'predicted': 1}
        """
        per_class = zip(
            self.classes,
            self.iu.tolist(),
            self.accuracy.tolist(),
            self.pixels.tolist(),
            self.predicted.tolist(),
            strict=True,
        )
        return {
            "pixel_accuracy": _or_none(self.pixel_accuracy),
            "mean_accuracy": _or_none(self.mean_accuracy),
            "mean_iu": _or_none(self.mean_iu),
            "fw_iu": _or_none(self.fw_iu),
            "per_class": {
                name: {"iu": _or_none(iu), "accuracy": _or_none(accuracy), "pixels": pixels, "predicted": predicted}
                for name, iu, accuracy, pixels, predicted in per_class
            },
            "absent": list(self.absent),
        }


def _check_range(name: str, labels: npt.NDArray[Any], size: int, void: int) -> None:
    if labels.size and (labels.min() < 0 or labels.max() >= size):
        wrong = labels[(labels < 0) | (labels >= size)]
        where = f", and {void} in the truth alone, for pixels that do not count"
        raise ValueError(f"{name}: {wrong.size} pixels hold {wrong[0]} or the like; expected 0..{size - 1}{where}")


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    ratio = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _mean_of_present(scores: npt.NDArray[np.float64]) -> float:
    present = scores[~np.isnan(scores)]
    return float(present.mean()) if present.size else float("nan")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
