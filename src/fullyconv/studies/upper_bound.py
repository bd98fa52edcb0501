"""How good could a net of a coarse output be? True labels, shrunk by its stride and enlarged again (CVPR, appendix A).

The paper does not say how it shrinks and enlarges; `coarsened` is the way, of those tried, that comes closest to its
row: on 736 masks of VOC2011 val, not in this repository, 52.2 for 50.9 at stride 128, and within 0.3 elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fullyconv import dense
from fullyconv.config import Classes
from fullyconv.datasets import SegmentationDataset, dataset
from fullyconv.errors import ConfigError, DatasetError
from fullyconv.geometry import Grid
from fullyconv.labels import read_labels
from fullyconv.metrics import ConfusionMatrix
from fullyconv.studies.base import Column, Panel, Result, Row
from fullyconv.upsample import Interpolate

LabelMap = npt.NDArray[np.integer[Any]]

PUBLISHED = {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}
"""Mean IU in %, by stride."""
SOURCE = "Long, Shelhamer, Darrell, arXiv 1411.4038v2, appendix A: a subset of PASCAL VOC 2011 val"
STRIDES = tuple(PUBLISHED)


@lru_cache(maxsize=32)
def triangles(pixels: int, cells: int) -> Tensor:
    """The antialiased triangle filter along one axis: (cells, pixels) float32 shares, rows of sum 1.

    Not `F.interpolate` with ``antialias``, which on the CPU does not shrink the height of a map that gets one column
    (torch 2.15).

    Example:
        >>> triangles(4, 2)
        tensor([[0.4286, 0.4286, 0.1429, 0.0000],
                [0.0000, 0.1429, 0.4286, 0.4286]])
    """
    width = pixels / cells
    centres = (torch.arange(cells, dtype=torch.float64) + 0.5) * width
    shares = (1 - (torch.arange(pixels) + 0.5 - centres[:, None]).abs() / width).clamp(min=0)
    return (shares / shares.sum(1, keepdim=True)).float()


def coarsened(labels: LabelMap, stride: int, *, void: int) -> LabelMap:
    """The labels that a net could give at best, whose output has a cell every ``stride`` pixels.

    Each class's map of zeros and ones is shrunk to ``round(H / stride) x round(W / stride)`` cells with a triangle
    filter as wide as a cell needs (antialiased), enlarged bilinearly, and the largest wins.

    Args:
        labels: (H, W) class numbers, or ``void``.
        stride: pixels from cell to cell, 1 or more; at 1 the labels come back.
        void: counts as class 0, which is the background in PASCAL VOC.

    Returns:
        (H, W) class numbers, none void.

    Example:
        >>> coarsened(np.array([[1, 1, 1, 1, 1, 2, 255, 0]]), 4, void=255).tolist()  # 2 is too small to last
        [[1, 1, 1, 1, 1, 1, 0, 0]]
    """
    known = np.where(labels == void, 0, labels)
    # A class that is not there has zeros everywhere and cannot win.
    present = np.unique(known)
    maps = torch.from_numpy(known == present[:, None, None])[None].float()
    height, width = labels.shape
    cells = max(1, round(height / stride)), max(1, round(width / stride))
    small = triangles(height, cells[0]) @ maps @ triangles(width, cells[1]).T
    # Spread evenly over the pixels whatever the stride, since the cells cover the picture.
    enlarge = Interpolate(Grid(Fraction(stride)), Grid(), len(present))
    coarse: LabelMap = present[dense.argmax(small, enlarge, (height, width))[0].numpy()]
    return coarse


@dataclass(frozen=True)
class LabelFiles:
    """A folder of nothing but label maps.

    Attributes:
        classes: table of their ids.
        paths: of the files, in order.
    """

    classes: Classes
    paths: Sequence[Path]

    @classmethod
    def of(cls, folder: str | PathLike[str], classes: int) -> LabelFiles:
        """The PNG files in a folder, with the ids 0..``classes`` - 1, and 255 for void.

        Raises:
            ConfigError: no number of classes that fits beside a void of 255.
            DatasetError: no such folder, or no PNG in it.
        """
        if not 1 <= classes <= 255:
            raise ConfigError(f"classes: got {classes}; expected 1 to 255, since id 255 is void", where="classes")
        root = Path(folder)
        if not root.is_dir():
            raise DatasetError(f"{root}: no such folder; expected one of label maps (PNG)")
        paths = sorted(path for path in root.iterdir() if path.suffix.lower() == ".png")
        if not paths:
            raise DatasetError(
                f"{root}: no PNG in it, but {sum(1 for _ in root.iterdir())} other entries; expected label maps of "
                f"ids 0..{classes - 1}, 255 void; name the folder that they lie in"
            )
        return cls(Classes.of(*(f"class {i}" for i in range(classes))), paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> LabelMap:
        """Raises `ImageError` where a file is no label map of these classes."""
        return read_labels(self.paths[index], classes=self.classes)


@dataclass(frozen=True)
class LabelsOf:
    """The label maps of a data set, for one head."""

    data: SegmentationDataset
    head: str

    @classmethod
    def of(cls, name: str, root: str, split: str) -> LabelsOf:
        """Those of the first head of a data set, opened as `fullyconv.datasets.dataset` opens it."""
        data = dataset(name, root, split=split)
        return cls(data, next(iter(data.classes)))

    @property
    def classes(self) -> Classes:
        """Table of their ids."""
        return self.data.classes[self.head]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> LabelMap:
        return self.data[index].labels[self.head]


def upper_bounds(
    maps: LabelFiles | LabelsOf,
    strides: Sequence[int] = STRIDES,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, ConfusionMatrix]:
    """What is left of the labels at each stride, counted over all maps; void pixels of the truth do not count.

    Args:
        maps: label maps.
        strides: each 1 or more.
        on_progress: called after every map with the maps done and their number.
    """
    void = maps.classes.void
    matrices = {stride: ConfusionMatrix(maps.classes.names) for stride in strides}

    threads = torch.get_num_threads()
    # The maps are so small that threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    try:
        for index in range(len(maps)):
            labels = maps[index]
            for stride, matrix in matrices.items():
                matrix.update(labels, coarsened(labels, stride, void=void), void)
            on_progress(index + 1, len(maps))
    finally:
        torch.set_num_threads(threads)
    return matrices


@dataclass(frozen=True)
class UpperBound(Result):
    """A `Result` with a row for each stride."""

    strides: Sequence[int] = STRIDES

    def json(self) -> dict[str, Any]:
        """Plain data; each row is ``{"stride", "mean_iu", "published"}``, in %, None where nothing is published."""
        rows = [
            {"stride": stride, "mean_iu": row.values[0], "published": PUBLISHED.get(stride)}
            for stride, row in zip(self.strides, self.rows, strict=True)
        ]
        return super().json() | {"rows": rows}


def run(
    maps: LabelFiles | LabelsOf,
    *,
    data: str = "",
    strides: Sequence[int] = STRIDES,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """About the best mean IU that nets of these output strides could reach on label maps.

    Args:
        maps: `LabelFiles`, or the `LabelsOf` a data set.
        data: what they are, in words.
        strides: of the output, in pixels.
        on_progress: as for `upper_bounds`.

    Raises:
        DatasetError: all pixels are void.
    """
    started = time.monotonic()
    matrices = upper_bounds(maps, strides, on_progress=on_progress)
    if not any(int(matrix.counts.sum()) for matrix in matrices.values()):
        raise DatasetError(f"{data or 'label maps'}: no pixel of {len(maps)} label maps has a class; all are void")
    bounds = {stride: 100 * matrix.mean_iu for stride, matrix in matrices.items()}
    both = [stride for stride in strides if stride in PUBLISHED]
    apart = {s: bounds[s] - PUBLISHED[s] for s in both}
    average = sum(abs(points) for points in apart.values()) / len(both) if both else 0.0
    each = ", ".join(f"{points:+.1f} at {s}" for s, points in apart.items())
    absent = next(iter(matrices.values())).absent
    first = f", {maps.classes.names[0]!r}," if isinstance(maps, LabelsOf) else ""
    way = (
        "Each class's map is shrunk with an antialiased triangle filter, enlarged bilinearly, and the largest wins. "
        f"Void counts as class 0{first} when labels are shrunk, and not at all when they are scored."
    )
    beside = (
        "The published row is of a subset of PASCAL VOC 2011 val, and other pictures have other bounds. These "
        f"{len(maps)} maps lie {average:.1f} points from it on average ({each})."
    )
    inferred = (
        "The paper does not say how it shrinks and enlarges; of the ways tried, this one comes closest to its row."
    )
    notes = [way, inferred, beside]
    if isinstance(maps, LabelsOf) and len(heads := maps.data.classes) > 1:
        notes.append(f"Of the labels {', '.join(heads)}, these are {maps.head}.")
    if absent:
        notes.append(f"{len(absent)} of {len(maps.classes)} classes do not occur and are left out of the means.")
    return UpperBound(
        study="upper-bound",
        question="How good could a net of a coarse output be?",
        columns=[Column("mean IU")],
        rows=[Row(f"stride {stride}", [bounds[stride]]) for stride in strides],
        published=[Row(f"stride {stride}", [PUBLISHED[stride]], SOURCE) for stride in both],
        paper="pixel-perfect prediction is not needed for a mean IU well above the state of the art, and mean IU is no "
        "good measure of accuracy at fine scales (CVPR, appendix A).",
        data=f"{len(maps)} label maps{f', {data}' if data else ''}",
        minutes=(time.monotonic() - started) / 60,
        notes=notes,
        panels=[
            Panel(
                "output stride, pixels",
                "mean IU, %",
                {
                    "measured": [(stride, bounds[stride]) for stride in strides],
                    "published (CVPR, appendix A)": [(stride, PUBLISHED[stride]) for stride in both],
                },
                logarithmic=True,
            )
        ],
        strides=tuple(strides),
    )
