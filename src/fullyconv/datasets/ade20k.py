"""ADE20K as the scene parsing challenge of 2016 has it: 150 classes.

Zhou, Zhao, Puig, Fidler, Barriuso, Torralba: Scene parsing through ADE20K dataset, CVPR 2017. The classes are those of
the challenge's ``objectInfo150.txt``, each by the first of its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from fullyconv.archives import Archive
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, classes_from_one, find, lacking, of_folders
from fullyconv.errors import DatasetError
from fullyconv.values import read_values

# fmt: off
CLASSES = classes_from_one(
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television", "airplane", "dirt track",
    "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van",
    "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel",
    "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood", "sconce",
    "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor", "bulletin board",
    "shower", "radiator", "glass", "clock", "flag",
)
# fmt: on
"""The 150 classes, ids 1..150; 0 is void."""

FOLDERS = {"train": "training", "val": "validation"}
"""What the splits are called there."""

ABOUT = About(
    title="ADE20K, scene parsing challenge 2016",
    classes={"out": CLASSES},
    pictures={"train": 20210, "val": 2000},
    layout="""\
ADEChallengeData2016/images/{training,validation}/NAME.jpg
ADEChallengeData2016/annotations/{training,validation}/NAME.png""",
    licence="labels BSD 3-Clause; pictures for research and education, not commercial; see the page",
    home="http://sceneparsing.csail.mit.edu",
    archives=(
        # The checksum that GluonCV publishes.
        Archive(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        ),
    ),
    marks=("ADEChallengeData2016", "objectInfo150.txt"),
)


def open_ade20k(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """ADE20K in the 150 classes of the scene parsing challenge: images/, annotations/.

    Args:
        root: ADEChallengeData2016, or the folder that holds it.
        split: "train" or "val". Every picture in the split's folder is taken.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder is not there, or is empty; says what was looked for.
    """
    root = Path(root)
    check_inputs(inputs, ("color",), where="ade20k")
    candidates, wanted = [root, root / "ADEChallengeData2016"], ("images", "annotations")
    folder = find(candidates, *wanted)
    if folder is None:
        raise DatasetError(
            f"{root}: no ADE20K; expected ADEChallengeData2016 with images/ and annotations/; "
            f"{lacking(candidates, *wanted)}"
        )
    half = FOLDERS.get(split, split)
    pictures = Files(folder / "images" / half, ".jpg")
    maps = Maps(Files(folder / "annotations" / half, ".png"), read_values, CLASSES)
    return of_folders("ade20k", split, pictures, maps, published=ABOUT.pictures, notes=[f"ADE20K: {folder}"])
