"""SBD, the Semantic Boundaries Dataset: labels of the 20 classes of PASCAL VOC for 11,355 of its pictures.

Hariharan, Arbelaez, Bourdev, Maji, Malik: Semantic contours from inverse detectors, ICCV 2011.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from fullyconv.archives import Archive
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, find, inside_of, read_names, resolved, unlike_published
from fullyconv.datasets.voc import CLASSES, VALID, VOC2011, open_valid, read_either, sbd_candidates, voc_folders
from fullyconv.errors import DatasetError

ABOUT = About(
    title="SBD, Semantic Boundaries Dataset",
    classes={"out": CLASSES},
    pictures={"train": 8498, "seg11valid": 736},
    layout="""\
benchmark_RELEASE/dataset/img/NAME.jpg
benchmark_RELEASE/dataset/cls/NAME.mat
benchmark_RELEASE/dataset/{train,val}.txt
VOCdevkit/VOC2011/...                            beside it, for seg11valid""",
    licence="none stated for the labels; the pictures are flickr's and fall under its terms of use",
    home="http://home.bharathh.info/pubs/codes/SBD/download.html",
    archives=(
        # The address and checksum are torchvision's.
        Archive(
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            "md5:82b4d87ceb2ed10f6038a1cba92111cb",
        ),
        VOC2011,
    ),
    remark="train is what the papers learn; val is VOC's seg11valid, on which they score, where VOC2011 is there, else "
    "SBD's own 2,857 pictures.",
    marks=("benchmark_RELEASE",),
)


def open_sbd(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """SBD, on whose train list the papers learn VOC, with VOC's seg11valid for val, on which they score it.

    "val" is VOC's seg11valid where VOC2011, or the list of that name, lies below ``root`` or beside SBD, and SBD's own
    val otherwise; a note says which. Neither shares a picture with train.

    Args:
        root: benchmark_RELEASE, its folder dataset, or a folder that holds benchmark_RELEASE (or sbd) and, for
            seg11valid, VOCdevkit (or VOC2011).
        split: "train", "val", "seg11valid", or another list of SBD's folder by name.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder or list is not there; says what was looked for.
    """
    root = resolved(root)
    check_inputs(inputs, ("color",), where="sbd")
    folder = find([root, root / "dataset", *sbd_candidates(root)], "cls", "img")
    if folder is None:
        raise DatasetError(
            f"{root}: no SBD; expected benchmark_RELEASE/dataset with img/, cls/ and train.txt; found {inside_of(root)}"
        )
    notes = [f"SBD: {folder}"]
    if split in ("val", "seg11valid"):
        try:
            return _seg11valid(root, folder, split)
        except DatasetError as error:
            if split == "seg11valid":
                raise
            notes.append(f"val is SBD's own, not VOC's seg11valid: {error}")
    if split == "trainaug" or re.fullmatch(VALID, split):
        raise DatasetError(f"{folder}: {split} is a split of voc, of which SBD is a part; name voc, and its folder")
    maps = Maps(Files(folder / "cls", ".mat"), read_either, CLASSES)
    names = read_names(folder / f"{split}.txt")
    notes += unlike_published(split, len(names), ABOUT.pictures)
    return Listed("sbd", split, names, {"color": Files(folder / "img", ".jpg")}, {"out": maps}, notes)


def _seg11valid(root: Path, folder: Path, split: str) -> Listed:
    refusals = []
    # In the folder that is named, in those that SBD lies in, as sbd/benchmark_RELEASE/dataset, or beside any.
    for base in dict.fromkeys((root, *folder.parents[:3], root.parent)):
        if years := voc_folders(base):
            try:
                return replace(open_valid(years, "VOC2011", train=folder / "train.txt", name="sbd"), split=split)
            except DatasetError as error:  # another year, say
                refusals.append(error)
    if refusals:
        raise refusals[0]
    raise DatasetError(f"{root}: no PASCAL VOC below it; expected VOCdevkit/VOC2011 beside SBD")
