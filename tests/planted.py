"""Folders of generated scenes in which faults are planted, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fullyconv.checking import CheckReport, check_splits
from fullyconv.config import Classes
from fullyconv.datasets import dataset
from fullyconv.datasets.folder import open_folder
from fullyconv.findings import Finding
from fullyconv.images import write_image
from fullyconv.labels import write_labels

SIZE = (96, 128)


def scenes(root: Path, *, train: int = 16, val: int = 8) -> Path:
    """A sound folder: pictures as PNG, label maps as palettes, classes.txt."""
    for split, count in (("train", train), ("val", val)):
        data = dataset("scenes", f"count={count} size={SIZE[0]}x{SIZE[1]}", split=split)
        # In the colours of PASCAL VOC, which are those of a table without colours.
        table = Classes.of(*data.classes["out"].names)
        for half in ("images", "labels"):
            (root / half / split).mkdir(parents=True)
        for i in range(count):
            sample = data[i]
            write_image(root / f"images/{split}/{i:02}.png", sample.image)
            write_labels(root / f"labels/{split}/{i:02}.png", sample.labels["out"], table)
    (root / "classes.txt").write_text("\n".join(table.names))
    return root


def look(root: Path) -> dict[str, CheckReport]:
    return check_splits({split: open_folder(root, split=split) for split in ("train", "val")})


def found(root: Path) -> list[Finding]:
    return [finding for report in look(root).values() for finding in report.findings]


def below(root: Path, finding: Finding) -> tuple[str, ...]:
    """The files of a finding, below the folder."""
    return tuple(Path(file).relative_to(root).as_posix() for file in finding.files)


def ids(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def store(path: Path, values: np.ndarray) -> None:
    """Store ids as a palette whose colours are the ids', or colours."""
    Image.fromarray(values.astype(np.uint8)).save(path)


def edit(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    store(path, change(ids(path)))


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder, byte for byte."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
