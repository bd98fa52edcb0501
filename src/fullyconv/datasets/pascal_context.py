"""PASCAL-Context: every pixel of PASCAL VOC 2010, in the 59 most frequent classes with or without background, or in 33.

The FCN authors' nets have 59 classes and background, "pascal-context". Others leave out what is none of the 59,
"pascal-context-59", or score the 33 classes of the data set's own experiments on context, "pascal-context-33", as the
CVPR paper does, too (arXiv v2, table 6).

Mottaghi, Chen, Liu, Cho, Lee, Fidler, Urtasun, Yuille: The role of context for object detection and semantic
segmentation in the wild, CVPR 2014.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullyconv.archives import Archive
from fullyconv.config import Classes
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import (
    Files,
    Listed,
    Maps,
    classes_from_one,
    find,
    lacking,
    read_names,
    resolved,
    unlike_published,
)
from fullyconv.datasets.mat import read_mat
from fullyconv.datasets.voc import VOC2010, voc_folders
from fullyconv.errors import DatasetError, LabelError
from fullyconv.values import read_values

# fmt: off
CLASSES = Classes.of(
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench",
    "book", "building", "cabinet", "ceiling", "clothes", "computer", "cup", "door", "fence", "floor", "flower", "food",
    "grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate", "road", "rock",
    "shelves", "sidewalk", "sky", "snow", "bedcloth", "track", "tree", "truck", "wall", "water", "window", "wood",
)
# fmt: on
"""Background, which is any label that is none of the 59, and the 59 classes, ids 0..59."""

CLASSES_59 = CLASSES.model_copy(
    update={"entries": (CLASSES.entries[0].model_copy(update={"ignore": True}), *CLASSES.entries[1:])}
)
"""The 59 classes, ids 1..59; 0, any other label, is void."""
# fmt: off
CLASSES_33 = classes_from_one(
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "sky", "grass", "ground",
    "road", "building", "tree", "water", "mountain", "wall", "floor", "track", "keyboard", "ceiling",
)
# fmt: on
"""The 33 classes, ids 1..33 as in 33_labels.txt; 0, any other label, is void."""

LAYOUT = """\
pascal-context/trainval/NAME.mat
pascal-context/labels.txt
VOCdevkit/VOC2010/JPEGImages/NAME.jpg
VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt"""
SITE = "https://roozbehm.info/pascal-context/"  # where it moved from cs.stanford.edu/~roozbeh

ABOUT = About(
    title="PASCAL-Context, 59 classes and background",
    classes={"out": CLASSES},
    pictures={"train": 4998, "val": 5105},
    layout=LAYOUT,
    licence="none stated for the labels; the pictures are flickr's and fall under its terms of use",
    home=SITE,
    archives=(
        Archive(f"{SITE}trainval.tar.gz", folder="pascal-context"),
        Archive(f"{SITE}labels.txt", folder="pascal-context"),
        VOC2010,
    ),
    remark="Background is any of the 459 labels that is none of the 59.",
    marks=("pascal-context", "59_context_labels", "33_context_labels"),
)
ABOUT_59 = replace(
    ABOUT,
    title="PASCAL-Context, 59 classes",
    classes={"out": CLASSES_59},
    remark="What is none of the 59 is void: neither learnt nor scored.",
)
ABOUT_33 = replace(
    ABOUT,
    title="PASCAL-Context, 33 classes",
    classes={"out": CLASSES_33},
    layout="pascal-context/33_context_labels/NAME.png             or, without it, the classes by name from\n" + LAYOUT,
    archives=(*ABOUT.archives, Archive(f"{SITE}33_context_labels.tar.gz", folder="pascal-context")),
    remark="What is none of the 33 is void: neither learnt nor scored.",
)

NAMES_IN_FULL = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
"""Classes that labels.txt calls otherwise."""


def open_pascal_context(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """PASCAL-Context in 59 classes and background: trainval/*.mat and labels.txt, with the pictures of VOC2010.

    Where those are not there, the official 59_context_labels/NAME.png are read, by the names in 59_labels.txt.

    Args:
        root: a folder that holds the annotations (a folder with trainval/ and labels.txt, by any name) and VOCdevkit or
            VOC2010; or the annotations, with VOC2010 in or beside them.
        split: "train" or "val", as listed beside trainval/, else in VOC2010/ImageSets/Main.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder, list or table is not there; says what was looked for.
    """
    return _open(resolved(root), "pascal-context", split, inputs, CLASSES)


def open_pascal_context_59(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """PASCAL-Context in 59 classes, with what is none of them void; otherwise as `open_pascal_context`."""
    return _open(resolved(root), "pascal-context-59", split, inputs, CLASSES_59)


def open_pascal_context_33(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """PASCAL-Context in 33 classes, with what is none of them void; otherwise as `open_pascal_context`.

    The label maps are the official 33_context_labels/NAME.png where they lie beside trainval/, or in its place; else
    they are made from trainval/NAME.mat by the names of the classes, and a note says so.
    """
    return _open(resolved(root), "pascal-context-33", split, inputs, CLASSES_33)


def _open(root: Path, name: str, split: str, inputs: Sequence[str], classes: Classes) -> Listed:
    check_inputs(inputs, ("color",), where=name)
    places = [root, *(sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else [])]
    folder = find(places, "trainval", "labels.txt")
    ready, png = None, "33_context_labels" if classes is CLASSES_33 else "59_context_labels"
    if classes is CLASSES_33 or folder is None:
        ready = find([folder or root, *places], png)
    if folder is None and ready is None:
        raise DatasetError(
            f"{root}: no PASCAL-Context; expected a folder with trainval/NAME.mat and labels.txt, or {png}/; "
            f"{lacking(places, 'trainval', 'labels.txt')}"
        )
    base = ready or folder or root
    bases = dict.fromkeys((root, base, base.parent))
    pictures = next((years["VOC2010"] for years in map(voc_folders, bases) if "VOC2010" in years), None)
    if pictures is None:
        raise DatasetError(f"{root}: no VOC2010 beside {base}; expected VOCdevkit/VOC2010/JPEGImages")
    notes = [f"PASCAL-Context: {base}, pictures of {pictures}"]
    lists = [base / f"{split}.txt", pictures / "ImageSets" / "Main" / f"{split}.txt"]
    names = read_names(next((path for path in lists if path.is_file()), lists[-1]))
    notes += unlike_published(split, len(names), ABOUT.pictures)
    if ready is not None and classes is CLASSES_33:
        maps = Maps(Files(ready / png, ".png"), read_values, classes)
    else:
        table = base / ("labels.txt" if ready is None else "59_labels.txt")
        wanted = {entry.name: entry.id for entry in classes.entries if entry.id}
        numbers: Mapping[str, int] = wanted
        if ready is not None and not table.is_file():
            notes.append("no 59_labels.txt: the ids of 59_context_labels/ are taken for those of `fullyconv datasets`")
        else:
            numbers = _read_numbers(table)
        if absent := [name for name in wanted if name not in numbers]:
            notes.append(f"{table.name} has no {', '.join(absent)}: they cannot occur")
        if classes is CLASSES_33:
            notes.append("no 33_context_labels/: the 33 classes are read from trainval/ by their names")
        files = Files(base / "trainval", ".mat") if ready is None else Files(ready / png, ".png")
        maps = Maps(files, partial(_read_ids, to_id=_to_id(numbers, wanted), table=table.name), classes)
    return Listed(name, split, names, {"color": Files(pictures / "JPEGImages", ".jpg")}, {"out": maps}, notes)


def _read_numbers(path: Path) -> dict[str, int]:
    """The number in the label maps of every name in labels.txt; of a class by its name in `CLASSES`."""
    numbers: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read as a table of names: {error.strerror}") from None
    for i, line in enumerate(lines, start=1):
        number, colon, name = line.partition(":")
        if not line.strip():
            continue
        if not colon or not number.strip().isdecimal() or int(number) > 65535:
            raise DatasetError(
                f"{path}: line {i} is {line[:40]!r}; expected a number and a name, such as '2: aeroplane'"
            )
        numbers[name.replace(" ", "").strip()] = int(number)
    for name, in_full in NAMES_IN_FULL.items():
        if in_full in numbers:
            numbers[name] = numbers[in_full]
    if not numbers.keys() & set(CLASSES.names[1:]):
        raise DatasetError(f"{path}: none of the 59 classes is in it; expected lines such as '2: aeroplane'")
    return numbers


def _to_id(numbers: Mapping[str, int], wanted: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """From the number in a label map to the id of its class: 0 where it is none of those that are wanted."""
    to_id = np.zeros(max(numbers.values()) + 1, np.int64)
    for name, number in wanted.items():
        if name in numbers:
            to_id[numbers[name]] = number
    return to_id


def _read_ids(path: Path, *, to_id: npt.NDArray[np.int64], table: str) -> npt.NDArray[np.int64]:
    numbers = read_mat(path, variable="LabelMap") if path.suffix == ".mat" else read_values(path)
    if numbers.ndim == 3:
        raise LabelError(path, "colours; expected the numbers of " + table)
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= len(to_id):
        raise LabelError(
            path, f"label {low if low < 0 else high}; expected the numbers of {table}, up to {len(to_id) - 1}"
        )
    return to_id[numbers]
