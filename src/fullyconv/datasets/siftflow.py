"""SIFT Flow: outdoor scenes with two labellings, 33 semantic and 3 geometric classes.

Liu, Yuen, Torralba: Nonparametric scene parsing, PAMI 2011; geometric labels: Tighe, Lazebnik, ECCV 2010. Cow, desert
and moon do not occur in test, and the scores leave out a class that does not occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullyconv.archives import Archive
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, classes_from_one, find, lacking, read_names, unlike_published
from fullyconv.datasets.mat import read_mat
from fullyconv.errors import DatasetError

# fmt: off
SEMANTIC = classes_from_one(
    "awning", "balcony", "bird", "boat", "bridge", "building", "bus", "car", "cow", "crosswalk", "desert", "door",
    "fence", "field", "grass", "moon", "mountain", "person", "plant", "pole", "river", "road", "rock", "sand", "sea",
    "sidewalk", "sign", "sky", "staircase", "streetlight", "sun", "tree", "window",
)
# fmt: on
"""The 33 semantic classes, ids 1..33; 0 is void."""
GEOMETRIC = classes_from_one("sky", "horizontal", "vertical")
"""The 3 geometric classes, ids 1..3; 0 is void."""
CLASSES = {"semantic": SEMANTIC, "geometric": GEOMETRIC}
"""By head."""

COMMIT = "1305c7378a9f0ab44b2c936f4d60e4687e3d8743"
"""Of the FCN authors' release, whose lists are used."""

ABOUT = About(
    title="SIFT Flow",
    classes=CLASSES,
    pictures={"trainval": 2486, "test": 200},
    layout="""\
SiftFlowDataset/Images/spatial_envelope_256x256_static_8outdoorcategories/NAME.jpg
SiftFlowDataset/SemanticLabels/spatial_envelope_256x256_static_8outdoorcategories/NAME.mat
SiftFlowDataset/GeoLabels/spatial_envelope_256x256_static_8outdoorcategories/NAME.mat
SiftFlowDataset/{trainval,test}.txt""",
    licence="none stated",
    home="http://people.csail.mit.edu/celiu/LabelTransfer/",
    archives=(
        Archive("http://www.cs.unc.edu/~jtighe/Papers/ECCV10/siftflow/SiftFlowDataset.zip"),
        *(
            Archive(
                f"https://raw.githubusercontent.com/shelhamer/fcn.berkeleyvision.org/{COMMIT}/data/sift-flow/{name}.txt",
                folder="SiftFlowDataset",
            )
            for name in ("trainval", "test")
        ),
    ),
    remark="The lists are the FCN authors'. Cow, desert and moon do not occur in test; a class that does not occur is "
    "in no mean.",
    marks=("SemanticLabels", "SiftFlowDataset"),
)

UNLABELLED = frozenset({"highway_bost181", "street_urb506"})
"""Pictures without annotation; left out, whatever list names them."""

SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
SPLITS = {"train": "trainval", "val": "test"}
"""What stands for a split that has no list of its own."""


def open_siftflow(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """SIFT Flow, with the heads "semantic" (33 classes) and "geometric" (3): Images/, SemanticLabels/, GeoLabels/.

    Args:
        root: the folder that holds these, or one that holds it as SiftFlowDataset/, siftflow/ or sift-flow/.
        split: "trainval" or "test"; "train" is trainval and "val" is test where they have no list of their own.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder or list is not there; says what was looked for.
    """
    root = Path(root)
    check_inputs(inputs, ("color",), where="siftflow")
    candidates = [root, *(root / name for name in ("SiftFlowDataset", "siftflow", "sift-flow"))]
    wanted = "Images", "SemanticLabels", "GeoLabels"
    folder = find(candidates, *wanted)
    if folder is None:
        raise DatasetError(
            f"{root}: no SIFT Flow; expected Images/, SemanticLabels/, GeoLabels/, trainval.txt and test.txt; "
            f"{lacking(candidates, *wanted)}"
        )
    notes = [f"SIFT Flow: {folder}"]
    # --download puts the lists into SiftFlowDataset/, whatever folder the archive unpacks into.
    lists, listed = [folder, root / "SiftFlowDataset"], split
    if split in SPLITS and find(lists, f"{split}.txt") is None:
        listed = SPLITS[split]
        notes.append(f"no {split}.txt: {split} is what {listed}.txt names")
    names = read_names((find(lists, f"{listed}.txt") or folder) / f"{listed}.txt")
    if unlabelled := sorted(UNLABELLED & set(names)):
        notes.append(f"left out, since nobody has labelled them: {', '.join(unlabelled)}")
        names = [name for name in names if name not in UNLABELLED]
    notes += unlike_published(listed, len(names), ABOUT.pictures)
    maps = {
        "semantic": Maps(Files(folder / "SemanticLabels" / SCENES, ".mat"), partial(read_mat, variable="S"), SEMANTIC),
        "geometric": Maps(Files(folder / "GeoLabels" / SCENES, ".mat"), _read_geometric, GEOMETRIC),
    }
    return Listed("siftflow", split, names, {"color": Files(folder / "Images" / SCENES, ".jpg")}, maps, notes)


def _read_geometric(path: Path) -> npt.NDArray[np.int64]:
    """Void is -1 there, where it is 0 in the semantic labels."""
    ids = read_mat(path, variable="S")
    return np.where(ids == -1, 0, ids)
