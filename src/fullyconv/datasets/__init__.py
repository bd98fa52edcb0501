"""Data sets by name.

`dataset` opens one; `DATASETS` holds the names. To add one, write a file beside these with a function
``open_NAME(root, *, split, seed, inputs)`` and name it below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Protocol

from fullyconv.datasets.base import Sample, SegmentationDataset
from fullyconv.datasets.folder import open_folder
from fullyconv.datasets.nyud import open_nyud
from fullyconv.datasets.pascal_context import open_pascal_context
from fullyconv.datasets.sbd import open_sbd
from fullyconv.datasets.scenes import open_scenes
from fullyconv.datasets.siftflow import open_siftflow
from fullyconv.datasets.voc import open_voc
from fullyconv.lookup import lookup

__all__ = ["DATASETS", "Sample", "SegmentationDataset", "dataset"]


class Opener(Protocol):
    """Opens one split of a data set."""

    def __call__(
        self, root: str | PathLike[str], *, split: str, seed: int, inputs: Sequence[str]
    ) -> SegmentationDataset: ...


DATASETS: Mapping[str, Opener] = {
    "folder": open_folder,
    "scenes": open_scenes,
    "voc": open_voc,
    "sbd": open_sbd,
    "nyud": open_nyud,
    "siftflow": open_siftflow,
    "pascal-context": open_pascal_context,
}


def dataset(
    name: str,
    root: str | PathLike[str],
    *,
    split: str = "train",
    seed: int = 0,
    inputs: Sequence[str] = ("color",),
) -> SegmentationDataset:
    """Open one split of a data set.

    Args:
        name: "folder" (pictures and label maps on disk), "scenes" (generated; nothing is read), or a published data set
            in its official layout: "voc", "sbd", "nyud", "siftflow", "pascal-context".
        root: the folder; for "scenes", "" or a size such as ``"count=200 size=160x240"``.
        split: "train", "val" or "test", or another that the data set has.
        seed: decides the val split where a folder has none, and the scenes.
        inputs: what a picture is made of, channel after channel: "color" (3, RGB), "depth" (1, its natural logarithm),
            "hha" (3).

    Raises:
        UnknownName: no data set, or no input, of that name.
        DatasetError: the folder is not what it should be; says what was looked for and what was there.

    Example:
        >>> dataset("scenes", "count=3 size=64x96")[0].image.shape
        (64, 96, 3)
    """
    return lookup("dataset", name, DATASETS)(root, split=split, seed=seed, inputs=tuple(inputs))
