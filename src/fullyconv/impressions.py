"""What stays of a pair of picture and label map once it has been looked at: 5 kB, enough to compare it with all others.

Pixels are decoded once; whatever compares pairs (copies, masks that do not fit) works on these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.config import Classes
from fullyconv.datasets.base import Sample
from fullyconv.images import thumbnail

SIDE = 32
"""Pixels a side of a thumbnail, whatever the shape of the picture."""


@dataclass(frozen=True)
class Impression:
    """A pair in small.

    Attributes:
        name: of the sample.
        files: of the picture and of each head's label map; the name where there is none.
        size: (height, width) of the picture in pixels.
        digest: of the picture's pixels; empty for a picture of one colour, of which two are no proof of a copy.
        labels_digest: of the label maps; empty where each is of one label.
        thumbnail: (SIDE, SIDE, 3) uint8, means of what each pixel covers.
        labels: (SIDE, SIDE) channel numbers of the first head, in the middle of each of these.
        pixels: for each head, pixels of each class in channel order, and last void's; int64.
        seams: of the first head, along rows: borders between labels; pixels whose two neighbours have two other labels;
            and those of them whose label lies between the two in number, as interpolation makes them.
        turned: whether the picture's EXIF turned it.
    """

    name: str
    files: tuple[str, ...]
    size: tuple[int, int]
    digest: bytes
    labels_digest: bytes
    thumbnail: npt.NDArray[np.uint8]
    labels: npt.NDArray[Any]
    pixels: Mapping[str, npt.NDArray[np.int64]]
    seams: tuple[int, int, int]
    turned: bool


def impression(sample: Sample, files: tuple[str, ...], classes: Mapping[str, Classes]) -> Impression:
    """Look at a pair."""
    first = next(iter(sample.labels.values()))
    pixels = {}
    for head, labels in sample.labels.items():
        void = classes[head].void
        found = np.bincount(labels.ravel(), minlength=void + 1).astype(np.int64)
        pixels[head] = np.append(found[: len(classes[head])], found[void])
    one_label = all((counts > 0).sum() <= 1 for counts in pixels.values())
    return Impression(
        name=sample.name,
        files=files,
        size=(sample.image.shape[0], sample.image.shape[1]),
        digest=b"" if _of_one_colour(sample.image) else _digest(sample.image),
        labels_digest=b"" if one_label else _digest(*sample.labels.values()),
        thumbnail=thumbnail(sample.image, SIDE, SIDE),
        labels=middles(first),
        pixels=pixels,
        seams=_seams(first),
        turned=any(note.startswith("turned upright") for note in sample.notes),
    )


def _of_one_colour(image: npt.NDArray[Any]) -> bool:
    # Most pictures show in their first row that they are not, and need not be gone through.
    return bool((image[0] == image[0, 0]).all() and (image == image[0, 0]).all())


def middles(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The labels (SIDE, SIDE) in the middle of what each pixel of a thumbnail covers."""
    rows, columns = (((np.arange(SIDE) + 0.5) * side / SIDE).astype(np.intp) for side in labels.shape)
    found: npt.NDArray[Any] = labels[rows[:, None], columns]
    return found


def _seams(labels: npt.NDArray[Any]) -> tuple[int, int, int]:
    left, middle, right = labels[:, :-2], labels[:, 1:-1], labels[:, 2:]
    change = labels[:, 1:] != labels[:, :-1]
    alone = change[:, :-1] & change[:, 1:] & (left != right)
    between = alone & ((left < middle) == (middle < right))
    return int(np.count_nonzero(change)), int(np.count_nonzero(alone)), int(np.count_nonzero(between))


def _digest(*arrays: npt.NDArray[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()
