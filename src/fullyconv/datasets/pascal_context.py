"""PASCAL-Context: every pixel of PASCAL VOC 2010, here in the 59 most frequent classes and background.

    pascal-context/trainval/NAME.mat                       LabelMap, numbers of labels.txt
    pascal-context/labels.txt                              459 lines such as "2: aeroplane"
    VOCdevkit/VOC2010/JPEGImages/NAME.jpg
    VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt       4,998 and 5,105 names; or pascal-context/{train,val}.txt

Mottaghi, Chen, Liu, Cho, Lee, Fidler, Urtasun, Yuille: The role of context for object detection and semantic
segmentation in the wild, CVPR 2014.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullyconv.config import Classes
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, find, inside_of, read_names
from fullyconv.datasets.mat import read_mat
from fullyconv.datasets.voc import voc_folders
from fullyconv.errors import DatasetError, ImageError

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

NAMES_IN_FULL = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
"""Classes that labels.txt calls otherwise."""


def open_pascal_context(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """PASCAL-Context in 59 classes and background: trainval/*.mat and labels.txt, with the pictures of VOC2010.

    Args:
        root: a folder that holds the annotations (a folder with trainval/ and labels.txt, by any name) and VOCdevkit or
            VOC2010; or the annotations, with VOC2010 in or beside them.
        split: "train" or "val", as listed beside trainval/, else in VOC2010/ImageSets/Main.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder, list or table is not there; says what was looked for.
    """
    root = Path(root)
    check_inputs(inputs, ("color",), where="pascal-context")
    below = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    folder = find([root, *below], "trainval", "labels.txt")
    if folder is None:
        raise DatasetError(
            f"{root}: no PASCAL-Context; expected a folder with trainval/NAME.mat and labels.txt; "
            f"found {inside_of(root)}"
        )
    bases = dict.fromkeys((root, folder, folder.parent))
    pictures = next((years["VOC2010"] for years in map(voc_folders, bases) if "VOC2010" in years), None)
    if pictures is None:
        raise DatasetError(f"{root}: no VOC2010 beside {folder}; expected VOCdevkit/VOC2010/JPEGImages")
    notes = [f"PASCAL-Context: {folder}, pictures of {pictures}"]
    lists = [folder / f"{split}.txt", pictures / "ImageSets" / "Main" / f"{split}.txt"]
    names = read_names(next((path for path in lists if path.is_file()), lists[-1]))
    numbers = _read_numbers(folder / "labels.txt")
    if lacking := [name for name in CLASSES.names[1:] if name not in numbers]:
        notes.append(f"labels.txt has no {', '.join(lacking)}: they cannot occur")
    maps = Maps(Files(folder / "trainval", ".mat"), partial(_read_ids, to_id=_to_id(numbers)), CLASSES)
    files = {"color": Files(pictures / "JPEGImages", ".jpg")}
    return Listed("pascal-context", split, names, files, {"out": maps}, notes)


def _read_numbers(path: Path) -> dict[str, int]:
    """The number in the label maps of every name in labels.txt; of a class by its name in `CLASSES`."""
    numbers: dict[str, int] = {}
    for i, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
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


def _to_id(numbers: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """From the number in a label map to the id in `CLASSES`: background where it is none of the 59."""
    to_id = np.zeros(max(numbers.values()) + 1, np.int64)
    for index, name in enumerate(CLASSES.names[1:], start=1):
        if name in numbers:
            to_id[numbers[name]] = index
    return to_id


def _read_ids(path: Path, *, to_id: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    numbers = read_mat(path, variable="LabelMap")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= len(to_id):
        raise ImageError(
            path, f"label {low if low < 0 else high}; expected the numbers of labels.txt, up to {len(to_id) - 1}"
        )
    return to_id[numbers]
