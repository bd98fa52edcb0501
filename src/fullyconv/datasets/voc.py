"""PASCAL VOC, segmentation: 20 classes and background.

    VOCdevkit/VOC20XX/JPEGImages/NAME.jpg
    VOCdevkit/VOC20XX/SegmentationClass/NAME.png                 palette, ids 0..20, 255 void
    VOCdevkit/VOC20XX/ImageSets/Segmentation/{train,val,trainval,test}.txt

SBD, which is beside VOC in the papers, labels some of VOC's val pictures for training. So the papers score on
``seg11valid``: the pictures of VOC2011's val that are not in SBD's train, 736 of 1,112.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from fullyconv.config import Classes
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, find, inside_of, read_names
from fullyconv.errors import DatasetError
from fullyconv.images import read_values

CLASSES = Classes.of(
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Background and the 20 classes, ids 0..20, in VOC's colours."""

LISTS = "ImageSets/Segmentation"


def open_voc(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """PASCAL VOC 2007 to 2012 as it is published: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/.

    Args:
        root: VOCdevkit, VOC20XX, or a folder that holds one of them. Where there are several years, the newest is read.
        split: a list in ImageSets/Segmentation: "train", "val", "trainval", "test". Or "seg11valid" (and by the same
            rule "seg12valid"): the list of that name where there is one, else VOC2011's val without the pictures of
            SBD's train, whose folder (or train.txt alone) lies beside or below ``root``.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder or list is not there; says what was looked for.
    """
    root = Path(root)
    check_inputs(inputs, ("color",), where="voc")
    years = voc_folders(root)
    if not years:
        raise DatasetError(
            f"{root}: no PASCAL VOC; expected VOCdevkit/VOC20XX, with JPEGImages/ and ImageSets/, or that folder; "
            f"found {inside_of(root)}"
        )
    if matched := re.fullmatch(r"seg(\d\d)valid", split):
        train = find_sbd_list(root, *(folder.parent for folder in years.values()))
        return open_valid(years, f"VOC20{matched[1]}", train=train)
    name, folder = next(iter(years.items()))
    notes = [f"PASCAL VOC: {folder}"]
    if len(years) > 1:
        notes.append(f"of {', '.join(years)}, {name} is read; to read another, give its folder")
    return _open(folder, split, read_names(folder / LISTS / f"{split}.txt"), notes)


def open_valid(years: Mapping[str, Path], year: str, *, train: Path | None, name: str = "voc") -> Listed:
    """The pictures of a year's val that SBD's train has not: seg11valid of VOC2011.

    Args:
        years: folders of VOC by name.
        year: "VOC2011".
        train: SBD's train.txt.
        name: of the data set that they are scored for.

    Raises:
        DatasetError: neither the list itself nor the two that it is made of are there.
    """
    split = f"seg{year[-2:]}valid"
    # The pictures of a year are also in the years after it, so the list may lie there.
    order = [years[other] for other in sorted(years, key=lambda other: other != year)]
    if (folder := find(order, f"{LISTS}/{split}.txt")) is not None:
        path = folder / LISTS / f"{split}.txt"
        names = read_names(path)
        return _open(folder, split, names, [f"{split}: the {len(names)} names of {path}"], name)
    if year not in years or train is None:
        lacking = [f"{year}/{LISTS}/val.txt"] * (year not in years) + ["SBD's train.txt"] * (train is None)
        raise DatasetError(
            f"{order[0]}: no {LISTS}/{split}.txt, and to make it {' and '.join(lacking)} is missing; "
            f"expected {year} and SBD (benchmark_RELEASE/dataset) under one folder"
        )
    held_out, learnt = read_names(years[year] / LISTS / "val.txt"), set(read_names(train))
    names = [picture for picture in held_out if picture not in learnt]
    if not names:
        raise DatasetError(f"{train}: names every picture of val of {years[year]}; expected SBD's train list")
    note = f"{split}: {len(names)} of the {len(held_out)} pictures of {year}'s val, those that {train} has not"
    return _open(years[year], split, names, [note], name)


def voc_folders(root: Path) -> dict[str, Path]:
    """The folders of VOC at and below ``root`` by their name, such as "VOC2012", newest first."""
    if (root / "JPEGImages").is_dir():
        return {root.name: root}
    # VOC2011 unpacks into TrainVal/VOCdevkit.
    found = [f for below in ("", "VOCdevkit/", "TrainVal/VOCdevkit/") for f in sorted(root.glob(f"{below}VOC2[0-9]*"))]
    years: dict[str, Path] = {}
    for folder in found:
        if (folder / "JPEGImages").is_dir():
            years.setdefault(folder.name, folder)
    return dict(sorted(years.items(), reverse=True))


def find_sbd_list(*roots: Path) -> Path | None:
    """SBD's train.txt in or beside one of these folders."""
    for base in dict.fromkeys(base for root in roots for base in (root, root.parent)):
        if (folder := find(sbd_candidates(base), "train.txt")) is not None:
            return folder / "train.txt"
    return None


def sbd_candidates(base: Path) -> list[Path]:
    """Where SBD may lie below ``base`` by its own name."""
    return [
        base / n / d
        for n in ("benchmark_RELEASE", "sbd", "SBD", "sbdd")
        for d in ("dataset", "", "benchmark_RELEASE/dataset")
    ]


def _open(folder: Path, split: str, names: Sequence[str], notes: Sequence[str], name: str = "voc") -> Listed:
    maps = Maps(Files(folder / "SegmentationClass", ".png"), read_values, CLASSES)
    return Listed(name, split, names, {"color": Files(folder / "JPEGImages", ".jpg")}, {"out": maps}, notes)
