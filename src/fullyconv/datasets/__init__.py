"""Data sets by name.

`dataset` opens one; `DATASETS` holds the names. To add one, write a file beside these with a function
``open_NAME(root, *, split, seed)`` and name it below.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Protocol

from fullyconv.datasets.base import Sample, SegmentationDataset
from fullyconv.datasets.folder import open_folder
from fullyconv.datasets.scenes import open_scenes
from fullyconv.lookup import lookup

__all__ = ["DATASETS", "Sample", "SegmentationDataset", "dataset"]


class Opener(Protocol):
    """Opens one split of a data set."""

    def __call__(self, root: str | PathLike[str], *, split: str, seed: int) -> SegmentationDataset: ...


DATASETS: Mapping[str, Opener] = {"folder": open_folder, "scenes": open_scenes}


def dataset(name: str, root: str | PathLike[str], *, split: str = "train", seed: int = 0) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        name: "folder" (pictures and label maps on disk) or "scenes" (generated; nothing is read).
        root: for "folder", the folder; for "scenes", "" or a size such as ``"count=200 size=160x240"``.
        split: "train", "val" or "test".
        seed: decides the val split where the folder has none, and the scenes.

    Raises:
        UnknownName: no data set of that name.
        DatasetError: the folder is not what it should be; says what was looked for and what was there.

    Example:
        >>> dataset("scenes", "count=3 size=64x96")[0].image.shape
        (64, 96, 3)
    """
    return lookup("dataset", name, DATASETS)(root, split=split, seed=seed)
