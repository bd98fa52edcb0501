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
    return np.random.default_rng(sum(name.encode())).integers(0, 256, (*size, 3), dtype=np.uint8)


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
