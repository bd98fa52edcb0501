"""NYUDv2 in 40 classes, in the layout of the FCN authors' release: colour, depth and HHA.

Silberman, Hoiem, Kohli, Fergus, ECCV 2012; the 40 classes of Gupta, Arbelaez, Malik, CVPR 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

from fullyconv.archives import Archive
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import CHANNELS, HHA_OF_NYUD_DEPTH, check_inputs
from fullyconv.datasets.listed import (
    Files,
    Listed,
    Maps,
    classes_from_one,
    find,
    inside_of,
    read_names,
    unlike_published,
)
from fullyconv.datasets.mat import read_mat
from fullyconv.errors import DatasetError

# fmt: off
CLASSES = classes_from_one(
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", "otherstructure", "otherfurniture", "otherprop",
)
# fmt: on
"""The 40 classes, ids 1..40, spelled as in the release; 0 is void."""

COMMIT = "3f83b8df759322ef1a1437731aeabd152dca3254"
"""Of the FCN authors' release, whose lists are used."""

ABOUT = About(
    title="NYUDv2, NYU Depth Dataset V2",
    classes={"out": CLASSES},
    pictures={"train": 381, "val": 414, "trainval": 795, "test": 654},
    layout="""\
nyud/data/images/img_NAME.png
nyud/data/depth/img_NAME.png
nyud/data/hha/img_NAME.png
nyud/segmentation/img_NAME.mat
nyud/{train,val,test}.txt""",
    licence="none stated",
    home="http://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html",
    archives=(
        Archive("http://dl.caffe.berkeleyvision.org/nyud.tar.gz"),
        *(
            Archive(
                f"https://raw.githubusercontent.com/shelhamer/fcn.berkeleyvision.org/{COMMIT}/data/nyud/{name}.txt",
                folder="nyud",
            )
            for name in ("train", "val", "test")
        ),
    ),
    remark="The download is the FCN authors', and so are the lists. Inputs: color, depth (in millimetres), hha; where "
    "there is depth and no hha/, it is computed.",
    marks=("NYUDv2",),
)

FOLDERS = {"color": "images", "depth": "depth", "hha": "hha"}
"""Where the files of each input lie, below ``data``."""


def open_nyud(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """NYUDv2 (40 classes, RGB-D) as the FCN authors' release has it: data/{images,depth,hha}/, segmentation/.

    Args:
        root: the folder that holds data/ and segmentation/, or one that holds it as nyud/.
        split: "train", "val", "trainval" or "test"; without trainval.txt, trainval is train and val together.
        seed: not used; nothing is drawn.
        inputs: some of "color", "depth" and "hha", in the order of the channels. Only their folders need be there;
            without that of "hha", it is computed from depth.

    Raises:
        DatasetError: a folder or list is not there; says what was looked for.
    """
    root = Path(root)
    check_inputs(inputs, CHANNELS, where="nyud")
    folder = find([root, root / "nyud", root / "NYUDv2"], "segmentation")
    if folder is None:
        raise DatasetError(
            f"{root}: no NYUDv2; expected segmentation/img_NAME.mat, data/images/img_NAME.png and train.txt; "
            f"found {inside_of(root)}"
        )
    notes = [f"NYUDv2: {folder}"]
    lists = [folder, root / "nyud"]  # where --download puts them, whatever folder the archive unpacks into
    parts = [split]
    if split == "trainval" and find(lists, "trainval.txt") is None:
        parts = ["train", "val"]
        notes.append("no trainval.txt: trainval is what train.txt and val.txt name")
    names = [name for part in parts for name in read_names((find(lists, f"{part}.txt") or folder) / f"{part}.txt")]
    notes += unlike_published(split, len(names), ABOUT.pictures)
    pictures = {name: Files(folder / "data" / FOLDERS[name], ".png", "img_") for name in inputs}
    if "hha" in inputs and not pictures["hha"].folder.is_dir() and (folder / "data" / "depth").is_dir():
        of_depth = Files(folder / "data" / "depth", ".png", "img_")
        pictures = {HHA_OF_NYUD_DEPTH if n == "hha" else n: of_depth if n == "hha" else f for n, f in pictures.items()}
        notes.append(
            "no data/hha: HHA is computed from depth whenever a picture is read; to do so once: fullyconv hha "
            f"{of_depth.folder} --out {folder / 'data' / 'hha'}"
        )
    maps = Maps(Files(folder / "segmentation", ".mat", "img_"), partial(read_mat, variable="segmentation"), CLASSES)
    return Listed("nyud", split, names, pictures, {"out": maps}, notes)
