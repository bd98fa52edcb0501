"""PASCAL VOC, segmentation: 20 classes and background.

SBD, which is beside VOC in the papers, labels some of VOC's val pictures for training. So the papers score on
``seg11valid``: the 736 pictures of VOC2011's val that are not in SBD's train. Later work learns ``trainaug``: all
10,582 pictures that VOC2012's train or SBD labels and VOC2012's val has not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fullyconv.archives import Archive
from fullyconv.config import Classes
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, find, inside_of, read_names, resolved, unlike_published
from fullyconv.datasets.mat import read_mat
from fullyconv.errors import DatasetError
from fullyconv.values import read_values

CLASSES = Classes.of(
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""Background and the 20 classes, ids 0..20, in VOC's colours."""

LISTS = "ImageSets/Segmentation"
VALID = r"seg(\d\d)valid"

# The addresses and checksums are torchvision's.
VOC2010 = Archive(
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
    "md5:da459979d0c395079b5c75ee67908abb",
)
VOC2011 = Archive(
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2011/VOCtrainval_25-May-2011.tar",
    "md5:6c3384ef61512963050cb5d687e5bf1e",
)
VOC2012 = Archive(
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    "md5:6cd6e144f989b92b3379bac3b3de84fd",
)

ABOUT = About(
    title="PASCAL VOC 2007 to 2012",
    classes={"out": CLASSES},
    pictures={"train": 1464, "val": 1449, "trainval": 2913, "seg11valid": 736, "trainaug": 10582},
    layout="""\
VOCdevkit/VOC2012/JPEGImages/NAME.jpg
VOCdevkit/VOC2012/SegmentationClass/NAME.png
VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,trainval}.txt""",
    licence="the pictures are flickr's and fall under its terms of use",
    home="http://host.robots.ox.ac.uk/pascal/VOC/",
    archives=(VOC2012,),
    remark="The numbers are VOC2012's. seg11valid needs VOC2011 and SBD beside it, or its list; trainaug needs SBD, or "
    "SegmentationClassAug/ and its list. Of test, only VOC2007 publishes the labels.",
    marks=("VOCdevkit", "VOC2007", "VOC2010", "VOC2011", "VOC2012"),
)


def open_voc(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """PASCAL VOC 2007 to 2012 as it is published: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/.

    Args:
        root: VOCdevkit, VOC20XX, or a folder that holds one of them. Where there are several years, the newest is read.
        split: a list in ImageSets/Segmentation: "train", "val", "trainval", "test". Or "seg11valid" (and by the same
            rule "seg12valid"): the list of that name where there is one, else VOC2011's val without the pictures of
            SBD's train, whose folder (or train.txt alone) lies beside or below ``root``. Or "trainaug": see
            `open_trainaug`. For both the years beside a VOC20XX are looked at, too.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder or list is not there; says what was looked for.
    """
    root = resolved(root)
    check_inputs(inputs, ("color",), where="voc")
    years = voc_folders(root)
    if root.name in years and (split == "trainaug" or re.fullmatch(VALID, split)):
        years = {**voc_folders(root.parent), **years}  # what they are made of may lie beside this year
    if not years:
        raise DatasetError(
            f"{root}: no PASCAL VOC; expected VOCdevkit/VOC20XX, with JPEGImages/ and ImageSets/, or that folder; "
            f"found {inside_of(root)}"
        )
    if matched := re.fullmatch(VALID, split):
        train = find_sbd_list(root, *(folder.parent for folder in years.values()))
        return open_valid(years, f"VOC20{matched[1]}", train=train)
    if split == "trainaug":
        train = find_sbd_list(root, *(folder.parent for folder in years.values()))
        return open_trainaug(years, train=train)
    name, folder = next(iter(years.items()))
    notes = [f"PASCAL VOC: {folder}"]
    if len(years) > 1:
        notes.append(f"of {', '.join(years)}, {name} is read; to read another, give its folder")
    names = read_names(folder / LISTS / f"{split}.txt")
    notes += unlike_published(split, len(names), ABOUT.pictures if name == "VOC2012" else {})
    return _open(folder, split, names, notes)


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
        notes = [f"{split}: the {len(names)} names of {path}", *unlike_published(split, len(names), ABOUT.pictures)]
        return _open(folder, split, names, notes, name)
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
    return _open(years[year], split, names, [note, *unlike_published(split, len(names), ABOUT.pictures)], name)


def open_trainaug(years: Mapping[str, Path], *, train: Path | None) -> Listed:
    """What VOC2012's train or SBD labels, without VOC2012's val: 10,582 pictures.

    The label is VOC's where it has one (1,464 pictures), else SBD's. Where SegmentationClassAug/ lies in VOC2012, as
    others have prepared it, its labels are read, and ImageSets/Segmentation/trainaug.txt (or train_aug.txt) names them.

    Args:
        years: folders of VOC by name.
        train: SBD's train.txt; val.txt and cls/ lie beside it.

    Raises:
        DatasetError: VOC2012 is not there, or neither of the two.
    """
    if (folder := years.get("VOC2012")) is None:
        raise DatasetError(f"trainaug is made of VOC2012 and SBD; expected VOCdevkit/VOC2012, found {', '.join(years)}")
    pictures = {"color": Files(folder / "JPEGImages", ".jpg")}
    if any(folder.glob("SegmentationClassAug/*.png")):
        lists = [
            folder / place / name for place in (LISTS, f"{LISTS}Aug") for name in ("trainaug.txt", "train_aug.txt")
        ]
        path = next((path for path in lists if path.is_file()), lists[0])
        # Some lists give paths: /JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png
        names = list(dict.fromkeys(Path(name).stem for name in read_names(path)))
        maps = Maps(Files(folder / "SegmentationClassAug", ".png"), read_values, CLASSES)
        notes = [f"trainaug: the {len(names)} names of {path}"]
        notes += unlike_published("trainaug", len(names), ABOUT.pictures)
        return Listed("voc", "trainaug", names, pictures, {"out": maps}, notes)
    if train is None or not (train.parent / "cls").is_dir():
        raise DatasetError(
            f"{folder}: no SegmentationClassAug/, and to make trainaug SBD is missing; expected SBD "
            "(benchmark_RELEASE/dataset with cls/, train.txt and val.txt) under one folder with VOCdevkit"
        )
    own, held_out = read_names(folder / LISTS / "train.txt"), set(read_names(folder / LISTS / "val.txt"))
    added = [name for part in (train, train.with_name("val.txt")) for name in read_names(part)]
    names = [name for name in dict.fromkeys([*own, *added]) if name not in held_out]
    sbd = Files(train.parent / "cls", ".mat")
    labels = Files(folder / "SegmentationClass", ".png", own=frozenset(own), others=sbd)
    notes = [f"trainaug: {len(own)} of VOC2012's train and {len(names) - len(own)} of SBD ({train.parent})"]
    notes += unlike_published("trainaug", len(names), ABOUT.pictures)
    return Listed("voc", "trainaug", names, pictures, {"out": Maps(labels, read_either, CLASSES)}, notes)


def read_either(path: Path) -> npt.NDArray[Any]:
    """The ids of a label map of VOC (.png) or of SBD (.mat)."""
    return read_mat(path, variable="GTcls", field="Segmentation") if path.suffix == ".mat" else read_values(path)


def voc_folders(root: Path) -> dict[str, Path]:
    """The folders of VOC at and below ``root`` by their name, such as "VOC2012", newest first."""
    if (root / "JPEGImages").is_dir():
        return {root.name: root}
    # VOC2011 unpacks into TrainVal/VOCdevkit; the authors' own folder is data/, with data/pascal/VOC2011.
    places = ("", "VOCdevkit/", "TrainVal/VOCdevkit/", "pascal/")
    found = [folder for below in places for folder in sorted(root.glob(f"{below}VOC2[0-9]*"))]
    years: dict[str, Path] = {}
    for folder in found:
        if (folder / "JPEGImages").is_dir():
            years.setdefault(folder.name, folder)
    # Behind the years, whatever else begins so: VOC2012_old.
    return dict(sorted(years.items(), key=lambda year: (len(year[0]) == len("VOC2012"), year[0]), reverse=True))


def find_sbd_list(*roots: Path) -> Path | None:
    """SBD's train.txt in or beside one of these folders, or beside the TrainVal/ that VOC2011 unpacks into."""
    around = [root.parents[1] for root in roots if root.parent.name == "TrainVal"]
    for base in dict.fromkeys([*(base for root in roots for base in (root, root.parent)), *around]):
        if (folder := find(sbd_candidates(base), "train.txt")) is not None:
            return folder / "train.txt"
    return None


def sbd_candidates(base: Path) -> list[Path]:
    """Where SBD may lie below ``base`` by its own name."""
    return [
        base / n / d
        for n in ("benchmark_RELEASE", "sbd", "SBD", "sbdd", "VOCaug")
        for d in ("dataset", "", "benchmark_RELEASE/dataset")
    ]


def _open(folder: Path, split: str, names: Sequence[str], notes: Sequence[str], name: str = "voc") -> Listed:
    maps = Maps(Files(folder / "SegmentationClass", ".png"), read_values, CLASSES)
    return Listed(name, split, names, {"color": Files(folder / "JPEGImages", ".jpg")}, {"out": maps}, notes)
