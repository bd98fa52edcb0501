"""Cityscapes: streets of 50 cities, 19 classes that are scored.

Cordts, Omran, Ramos, Rehfeld, Enzweiler, Benenson, Franke, Roth, Schiele: The Cityscapes dataset for semantic urban
scene understanding, CVPR 2016. Ids, names and colours are those of ``labels.py`` in the authors' cityscapesScripts.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.config import VOID, Classes, ClassInfo
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, find, lacking, of_folders
from fullyconv.errors import DatasetError, LabelError
from fullyconv.values import read_values

# fmt: off
LABELS = (
    ("unlabeled", (0, 0, 0)), ("ego vehicle", (0, 0, 0)), ("rectification border", (0, 0, 0)),
    ("out of roi", (0, 0, 0)), ("static", (0, 0, 0)), ("dynamic", (111, 74, 0)), ("ground", (81, 0, 81)),
    ("road", (128, 64, 128)), ("sidewalk", (244, 35, 232)), ("parking", (250, 170, 160)),
    ("rail track", (230, 150, 140)), ("building", (70, 70, 70)), ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)), ("guard rail", (180, 165, 180)), ("bridge", (150, 100, 100)),
    ("tunnel", (150, 120, 90)), ("pole", (153, 153, 153)), ("polegroup", (153, 153, 153)),
    ("traffic light", (250, 170, 30)), ("traffic sign", (220, 220, 0)), ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)), ("sky", (70, 130, 180)), ("person", (220, 20, 60)), ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)), ("truck", (0, 0, 70)), ("bus", (0, 60, 100)), ("caravan", (0, 0, 90)),
    ("trailer", (0, 0, 110)), ("train", (0, 80, 100)), ("motorcycle", (0, 0, 230)), ("bicycle", (119, 11, 32)),
)
SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# fmt: on
"""The ids that count; in this order they are the train ids 0..18. All others are void."""

CLASSES = Classes(
    entries=tuple(
        ClassInfo(id=i, name=name, colour=colour, ignore=i not in SCORED) for i, (name, colour) in enumerate(LABELS)
    )
)
"""Ids 0..33 of the label files; channels are the 19 train ids."""

ABOUT = About(
    title="Cityscapes",
    classes={"out": CLASSES},
    pictures={"train": 2975, "val": 500, "test": 1525},
    layout="""\
leftImg8bit/{train,val,test}/CITY/NAME_leftImg8bit.png
gtFine/{train,val,test}/CITY/NAME_gtFine_labelIds.png""",
    licence="its own terms: research, not commercial; see the page",
    home="https://www.cityscapes-dataset.com",
    remark="Downloading needs a login there: leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip. The labels of "
    "test are not published.",
    marks=("leftImg8bit",),
)


def open_cityscapes(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """Cityscapes with its fine labels, 19 classes: leftImg8bit/, gtFine/.

    Args:
        root: the folder that holds leftImg8bit/ and gtFine/, or one that holds it as cityscapes/.
        split: "train", "val" or "test": the folder of that name. Every picture below it is taken.
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder is not there, or is empty; says what was looked for.
    """
    root = Path(root)
    check_inputs(inputs, ("color",), where="cityscapes")
    candidates, wanted = [root, root / "cityscapes", root / "Cityscapes"], ("leftImg8bit", "gtFine")
    folder = find(candidates, *wanted)
    if folder is None:
        raise DatasetError(f"{root}: no Cityscapes; expected leftImg8bit/ and gtFine/; {lacking(candidates, *wanted)}")
    pictures = Files(folder / "leftImg8bit" / split, "_leftImg8bit.png")
    maps = Maps(Files(folder / "gtFine" / split, "_gtFine_labelIds.png"), read_ids, CLASSES)
    try:
        return of_folders(
            "cityscapes", split, pictures, maps, published=ABOUT.pictures, notes=[f"Cityscapes: {folder}"]
        )
    except DatasetError as error:
        if any(maps.files.folder.glob("*/*_gtFine_labelTrainIds.png")):
            raise DatasetError(f"{error}; of the label maps there, labelTrainIds are not read") from None
        raise


def read_ids(path: Path) -> npt.NDArray[Any]:
    """The ids of a label map.

    Raises:
        LabelError: they are trainIds under the name of labelIds, which would be learnt as other classes.
    """
    values = read_values(path)
    if not (values == VOID).any():  # as in all that are published; what follows takes longer
        return values
    found = set(np.unique(values).tolist()) - {VOID}
    # A street in trainIds has road, sidewalk, building and sky, as 0, 1, 2 and 10, of which none would count.
    if max(found, default=0) < len(SCORED) and len(found - {*SCORED}) > 2:
        raise LabelError(
            path,
            f"{VOID} and no id above {len(SCORED) - 1}: these are trainIds; expected labelIds, as published",
        )
    return values
