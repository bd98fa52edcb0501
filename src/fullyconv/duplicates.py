"""Pictures that are there twice: the same pixels, in one split or in two, and nearly the same in two.

Two pictures are near when the coarse waves of their thumbnails agree, as they are or mirrored, or those of one and of a
window of the other: so re-encoded, brightened, scaled and cropped copies are found. The hash is the usual one, the low
frequencies of a cosine transform, kept as numbers: signs alone cannot tell a crop from another street.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fullyconv.datasets.base import SegmentationDataset
from fullyconv.datasets.listed import Listed
from fullyconv.findings import Finding
from fullyconv.impressions import SIDE, Impression

WAVES = 12
"""Frequencies of the hash, across and down."""
SAME = 0.985
"""Correlation of two hashes from which on pictures are near."""
ALIKE = 0.94
"""Correlation from which on they are, when they are far nearer than either ..."""
APART = 3.0
"""... is to any other picture: so many times, in 1 - correlation."""
SHARES = (0.95, 0.9, 0.85, 0.8)
"""Sides of the windows, as shares of the picture's."""
STEP = 0.06
"""Most that windows are apart, as a share of the picture's side."""

FAINT = 4.0
"""Standard deviation of a thumbnail's grey, 0..255, below which there is nothing to compare, as in a dark frame."""

Floats = npt.NDArray[np.float32]


def overlap(
    train: SegmentationDataset,
    val: SegmentationDataset,
    pairs: tuple[Sequence[Impression], Sequence[Impression]] | None = None,
) -> Finding | None:
    """The pictures of ``train`` that are in ``val``, too, on which a score would say nothing; None: there are none.

    A picture is the same when its file is; in a published data set, when its name is, whatever folder it lies in; and,
    where both have been looked through, when its pixels are, under whatever name.

    Args:
        train: what is learnt from.
        val: what is scored on.
        pairs: what `fullyconv.checking.check` saw in the two.

    Example:
        >>> from fullyconv.datasets import dataset
        >>> train, val = (dataset("scenes", "count=20", split=split) for split in ("train", "val"))
        >>> overlap(train, val) is None
        True
        >>> overlap(train, train).detail  # doctest: +ELLIPSIS
        'all 20 pictures of train are in train, too: train-000000, ...; a picture that is learnt cannot be scored: ...'
    """
    shared: dict[str, str] = {}
    of_file = {path: train.names[i] for i in range(len(train)) if (path := _file(train, i))}
    for i, name in enumerate(val.names):
        if (twin := of_file.get(_file(val, i) or "")) is not None:
            shared.setdefault(name, twin)
    if train is val or (isinstance(train, Listed) and isinstance(val, Listed)):
        shared |= {name: name for name in set(train.names).intersection(val.names) if name not in shared}
    if pairs is not None:
        learnt = {pair.digest: pair.name for pair in reversed(pairs[0]) if pair.digest}
        for pair in pairs[1]:
            if pair.digest in learnt:
                shared.setdefault(pair.name, learnt[pair.digest])
    if not shared:
        return None
    twins = sorted(shared.items())
    named = [name if name == twin else f"{name} (as {twin} in {train.split})" for name, twin in twins]
    count = f"all {len(val)}" if len(twins) == len(val) else f"{len(twins)} of the {len(val)}"
    detail = (
        f"{count} pictures of {val.split} are in {train.split}, too: {', '.join(named[:5])}"
        f"{', ...' if named[5:] else ''}; a picture that is learnt cannot be scored: drop them from one of the two"
    )
    of_name = [
        {data.names[i]: str(data.paths(i)[0] or data.names[i]) for i in range(len(data))} for data in (val, train)
    ]
    files = dict.fromkeys(of[name] for twin in twins for of, name in zip(of_name, twin, strict=True))
    return Finding("overlap", "error", tuple(files), detail)


def _file(data: SegmentationDataset, index: int) -> str | None:
    path = data.paths(index)[0]
    return None if path is None else os.path.realpath(path)


def duplicates(pairs: Sequence[Impression]) -> list[Finding]:
    """The pictures of one split that have the same pixels, a finding for each group."""
    groups: dict[bytes, list[Impression]] = {}
    for pair in pairs:
        if pair.digest:
            groups.setdefault(pair.digest, []).append(pair)
    findings = []
    for twins in groups.values():
        if len(twins) > 1:
            differ = len({pair.labels_digest for pair in twins}) > 1
            said = "their label maps differ: which one is right?" if differ else "their label maps are the same, too"
            names = ", ".join(pair.name for pair in twins[:5]) + (", ..." if twins[5:] else "")
            detail = f"{len(twins)} pictures have the same pixels: {names}; {said}"
            findings.append(Finding("duplicate", "warning", tuple(pair.files[0] for pair in twins), detail))
    return findings


def near_duplicates(
    train: Sequence[Impression], val: Sequence[Impression], splits: tuple[str, str] = ("train", "val")
) -> Finding | None:
    """The pictures of ``val`` that are nearly pictures of ``train``, in one finding; None: there are none.

    Those of the very same pixels are an `overlap`, and not counted again.
    """
    known = {pair.digest for pair in train}
    learnt = [pair for pair in train if _has_contrast(pair)]
    scored = [pair for pair in val if _has_contrast(pair) and pair.digest not in known]
    if not learnt or not scored:
        return None
    likeness = _likeness(scored, learnt)
    twins = []
    for i, row in enumerate(likeness):
        j = int(row.argmax())
        second = float(np.partition(row, -2)[-2]) if len(row) > 1 else 0.0
        alone = (1 - second) > APART * (1 - row[j])
        if row[j] >= SAME or (row[j] >= ALIKE and alone):
            twins.append((scored[i], learnt[j], float(row[j])))
    if not twins:
        return None
    twins.sort(key=lambda twin: -twin[2])
    named = [f"{pair.name} (like {twin.name}, {like:.3f})" for pair, twin, like in twins]
    detail = (
        f"{len(twins)} of the {len(val)} pictures of {splits[1]} are nearly pictures of {splits[0]}: "
        f"{', '.join(named[:5])}{', ...' if named[5:] else ''}; the number is how far the two correlate"
    )
    files = dict.fromkeys(pair.files[0] for pair, twin, _ in twins for pair in (pair, twin))
    return Finding("near-duplicate", "warning", tuple(files), detail)


def _has_contrast(pair: Impression) -> bool:
    return float(_greys([pair]).std()) >= FAINT


def _likeness(some: Sequence[Impression], others: Sequence[Impression]) -> Floats:
    """(N, M) correlation of each picture with each other one: the best over mirrors and windows."""
    a, b = _greys(some), _greys(others)
    whole = waves(b)
    best = np.full((len(a), len(b)), -1, np.float32)
    for mirrored in (a, a[:, :, ::-1]):
        of_whole = waves(mirrored)
        for window in _windows():
            np.maximum(best, of_whole @ waves(b, window).T, out=best)
            np.maximum(best, waves(mirrored, window) @ whole.T, out=best)
    return best


def _greys(pairs: Sequence[Impression]) -> Floats:
    grey: Floats = np.stack([pair.thumbnail for pair in pairs]).astype(np.float32) @ np.array(
        [0.299, 0.587, 0.114], np.float32
    )
    return grey


def _windows() -> Iterator[tuple[float, float, float]]:
    """(top, left, side) of the windows that are tried, as shares of the picture; the first is all of it."""
    yield 0.0, 0.0, 1.0
    for side in SHARES:
        places = np.linspace(0, 1 - side, int(np.ceil((1 - side) / STEP)) + 1)
        for top in places:
            for left in places:
                yield float(top), float(left), side


def waves(greys: Floats, window: tuple[float, float, float] = (0.0, 0.0, 1.0)) -> Floats:
    """The hash of pictures (N, SIDE, SIDE) in grey: (N, WAVES * WAVES - 1), of mean brightness free and of length 1.

    Two of them multiplied are a correlation. Mirroring a picture only changes signs of its hash.

    Args:
        greys: thumbnails.
        window: (top, left, side) of what is hashed, as shares of the picture.
    """
    top, left, side = window
    cosines = np.cos(np.pi / SIDE * np.outer(np.arange(WAVES), np.arange(SIDE) + 0.5)).astype(np.float32)
    cosines[0] /= np.sqrt(2)
    down, across = cosines @ _resampling(top, side), cosines @ _resampling(left, side)
    found = (down @ greys @ across.T).reshape(len(greys), -1)[:, 1:]
    length = np.linalg.norm(found, axis=1, keepdims=True)
    hashes: Floats = found / np.maximum(length, 1e-6)
    return hashes


def _resampling(start: float, share: float) -> Floats:
    """(SIDE, SIDE): from a row of a thumbnail to SIDE samples of a part of it, by linear interpolation."""
    at = ((start + (np.arange(SIDE) + 0.5) * share / SIDE) * SIDE - 0.5).clip(0, SIDE - 1)
    left = np.minimum(at.astype(np.intp), SIDE - 2)
    matrix = np.zeros((SIDE, SIDE), np.float32)
    matrix[np.arange(SIDE), left] = 1 - (at - left)
    matrix[np.arange(SIDE), left + 1] += at - left
    return matrix
