"""Miniatures of published data sets: a few tiny pictures, in the layouts that the official archives unpack into."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (6, 8)
SCENES = "spatial_envelope_256x256_static_8outdoorcategories"


def grid(*ids: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A label map (H, W) int64 of these ids in turn."""
    return np.resize(np.array(ids), size)


def colours(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture (H, W, 3) uint8 that its name decides."""
    return np.random.default_rng(list(name.encode())).integers(0, 256, (*size, 3), dtype=np.uint8)


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def mat(path: Path, **variables: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def names(path: Path, listed: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in listed))


def voc(folder: Path, **splits: Iterable[str]) -> Path:
    """VOC20XX with these lists. Every map holds ids 0, 1, 20 and 255 in turn."""
    for split, listed in splits.items():
        names(folder / f"ImageSets/Segmentation/{split}.txt", listed)
        for name in listed:
            put(folder / f"JPEGImages/{name}.jpg", colours(name))
            labels = Image.fromarray(grid(0, 1, 20, 255).astype(np.uint8)).convert("P")
            labels.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
            (folder / "SegmentationClass").mkdir(exist_ok=True)
            labels.save(folder / f"SegmentationClass/{name}.png")
    return folder


def sbd(folder: Path, **splits: Iterable[str]) -> Path:
    """benchmark_RELEASE/dataset with these lists. Every map holds ids 0, 5 and 20 in turn."""
    for split, listed in splits.items():
        names(folder / f"{split}.txt", listed)
        for name in listed:
            put(folder / f"img/{name}.jpg", colours(name))
            labels = {
                "Boundaries": np.zeros((20, 1), object),
                "Segmentation": grid(0, 5, 20).astype(np.uint8),
                "CategoriesPresent": np.array([[5], [20]], np.uint8),
            }
            mat(folder / f"cls/{name}.mat", GTcls=labels)
    return folder


def nyud(folder: Path, **splits: Iterable[str]) -> Path:
    """NYUDv2 as the FCN authors' release has it. Every map holds ids 0 (void), 1 and 40 in turn, depths 0 to 3000."""
    for split, listed in splits.items():
        names(folder / f"{split}.txt", listed)
        for name in listed:
            put(folder / f"data/images/img_{name}.png", colours(name))
            put(folder / f"data/hha/img_{name}.png", colours(name)[::-1])
            put(folder / f"data/depth/img_{name}.png", grid(0, 1000, 2000, 3000).astype(np.uint16))
            mat(folder / f"segmentation/img_{name}.mat", segmentation=grid(0, 1, 40).astype(np.uint16))
    return folder


def siftflow(folder: Path, **splits: Iterable[str]) -> Path:
    """SIFT Flow. Semantic ids 0 (void), 1 and 33 in turn; geometric -1 (void), 1, 2 and 3 in turn."""
    for split, listed in splits.items():
        names(folder / f"{split}.txt", listed)
        for name in listed:
            put(folder / f"Images/{SCENES}/{name}.jpg", colours(name))
            mat(folder / f"SemanticLabels/{SCENES}/{name}.mat", S=grid(0, 1, 33).astype(np.uint8), names=["a", "b"])
            mat(folder / f"GeoLabels/{SCENES}/{name}.mat", S=grid(-1, 1, 2, 3).astype(np.int16))
    return folder


CONTEXT_LABELS = {
    2: "aeroplane",
    19: "bedclothes",
    80: "cloth",
    81: "clothes tree",
    397: "table",
    458: "wood",
    459: "wool",
}


def pascal_context(
    folder: Path, voc2010: Path, *, labels: dict[int, str] = CONTEXT_LABELS, **splits: Iterable[str]
) -> Path:
    """PASCAL-Context, with lists in VOC2010's Main. Every map holds the numbers of ``CONTEXT_LABELS`` and 0 in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("".join(f"{number}: {name}\n" for number, name in labels.items()))
    for split, listed in splits.items():
        names(voc2010 / f"ImageSets/Main/{split}.txt", listed)
        for name in listed:
            put(voc2010 / f"JPEGImages/{name}.jpg", colours(name))
            mat(folder / f"trainval/{name}.mat", LabelMap=grid(0, *CONTEXT_LABELS).astype(np.uint16))
    return folder


def pascal_context_33(folder: Path, voc2010: Path, **splits: Iterable[str]) -> Path:
    """PASCAL-Context with the ready maps of 33 classes. Every map holds ids 0 (void), 1, 21 and 33 in turn."""
    for split, listed in splits.items():
        names(voc2010 / f"ImageSets/Main/{split}.txt", listed)
        for name in listed:
            put(voc2010 / f"JPEGImages/{name}.jpg", colours(name))
            put(folder / f"33_context_labels/{name}.png", grid(0, 1, 21, 33).astype(np.uint8))
    return folder


def cityscapes(folder: Path, **splits: Iterable[str]) -> Path:
    """Cityscapes; a name is CITY_SEQUENCE_FRAME. Every map holds ids 0 (void), 7 (road), 9 (void) and 33 in turn."""
    for split, listed in splits.items():
        for name in listed:
            city = name.partition("_")[0]
            put(folder / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png", colours(name))
            labels = grid(0, 7, 9, 33).astype(np.uint8)
            put(folder / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png", labels)
            put(folder / f"gtFine/{split}/{city}/{name}_gtFine_instanceIds.png", labels.astype(np.uint16) * 1000)
            put(folder / f"gtFine/{split}/{city}/{name}_gtFine_color.png", colours(name))
    return folder


def ade20k(folder: Path, **splits: Iterable[str]) -> Path:
    """ADEChallengeData2016. Every map holds ids 0 (void), 1 and 150 in turn."""
    for split, listed in splits.items():
        half = {"train": "training", "val": "validation"}[split]
        for name in listed:
            put(folder / f"images/{half}/{name}.jpg", colours(name))
            put(folder / f"annotations/{half}/{name}.png", grid(0, 1, 150).astype(np.uint8))
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n")
    return folder


def camvid(folder: Path, **splits: Iterable[str]) -> Path:
    """SegNet's CamVid. Every map holds ids 0, 10 and 11 (void) in turn."""
    for split, listed in {"train": (), **splits}.items():
        (folder / f"{split}annot").mkdir(parents=True, exist_ok=True)
        (folder / split).mkdir(exist_ok=True)
        for name in listed:
            put(folder / f"{split}/{name}.png", colours(name))
            put(folder / f"{split}annot/{name}.png", grid(0, 10, 11).astype(np.uint8))
        pairs = (f"/SegNet/CamVid/{split}/{name}.png /SegNet/CamVid/{split}annot/{name}.png" for name in listed)
        names(folder / f"{split}.txt", pairs)
    return folder


def camvid_full(folder: Path, listed: Iterable[str]) -> Path:
    """The full frames of CamVid. Every map holds the colours of Animal, Void and Wall in turn."""
    for name in listed:
        put(folder / f"701_StillsRaw_full/{name}.png", colours(name))
        labels = np.array([(64, 128, 64), (0, 0, 0), (64, 192, 0)], np.uint8)[grid(0, 1, 2)]
        put(folder / f"LabeledApproved_full/{name}_L.png", labels)
    return folder
