"""Data sets by name.

`dataset` opens one; `DATASETS` holds the names, and `ABOUT` what there is to say of each. To add one, write a file
beside these with an ``ABOUT`` and a function ``open_NAME(root, *, split, seed, inputs)``, and name them below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

from fullyconv.datasets import (
    ade20k,
    camvid,
    cityscapes,
    folder,
    nyud,
    pascal_context,
    sbd,
    scenes,
    siftflow,
    voc,
)
from fullyconv.datasets.base import About, Sample, SegmentationDataset
from fullyconv.errors import DatasetError
from fullyconv.lookup import lookup

__all__ = ["ABOUT", "DATASETS", "About", "Sample", "SegmentationDataset", "dataset"]


class Opener(Protocol):
    """Opens one split of a data set."""

    def __call__(
        self, root: str | PathLike[str], *, split: str, seed: int, inputs: Sequence[str]
    ) -> SegmentationDataset: ...


DATASETS: Mapping[str, Opener] = {
    "folder": folder.open_folder,
    "scenes": scenes.open_scenes,
    "voc": voc.open_voc,
    "sbd": sbd.open_sbd,
    "nyud": nyud.open_nyud,
    "siftflow": siftflow.open_siftflow,
    "pascal-context": pascal_context.open_pascal_context,
    "pascal-context-59": pascal_context.open_pascal_context_59,
    "pascal-context-33": pascal_context.open_pascal_context_33,
    "cityscapes": cityscapes.open_cityscapes,
    "ade20k": ade20k.open_ade20k,
    "camvid": camvid.open_camvid,
}

ABOUT: Mapping[str, About] = {
    "folder": folder.ABOUT,
    "scenes": scenes.ABOUT,
    "voc": voc.ABOUT,
    "sbd": sbd.ABOUT,
    "nyud": nyud.ABOUT,
    "siftflow": siftflow.ABOUT,
    "pascal-context": pascal_context.ABOUT,
    "pascal-context-59": pascal_context.ABOUT_59,
    "pascal-context-33": pascal_context.ABOUT_33,
    "cityscapes": cityscapes.ABOUT,
    "ade20k": ade20k.ABOUT,
    "camvid": camvid.ABOUT,
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
            in its official layout: "voc", "sbd", "nyud", "siftflow", "pascal-context" (and "pascal-context-59" and
            "-33"), "cityscapes", "ade20k", "camvid".
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
    opened = lookup("dataset", name, DATASETS)
    try:
        return opened(root, split=split, seed=seed, inputs=tuple(inputs))
    except DatasetError as error:
        like = [other for other, about in ABOUT.items() if any(Path(root, mark).exists() for mark in about.marks)]
        if name != "folder" or not like:
            raise
        said = f"{error}; it looks like {like[0]}, a published data set: name it, --dataset {like[0]}"
        raise DatasetError(said, findings=error.findings) from None
