"""ADE20K in the layout of the scene parsing challenge: 150 classes, 0 void."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from fullyconv.checking import check
from fullyconv.datasets import dataset
from fullyconv.datasets.ade20k import CLASSES, open_ade20k
from fullyconv.errors import DatasetError, ImageError

TRAIN, VAL = ("ADE_train_00000001", "ADE_train_00000002"), ("ADE_val_00000001",)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mini.ade20k(tmp_path / "ADEChallengeData2016", train=TRAIN, val=VAL)


def test_labels_count_from_one_and_void_is_zero(root: Path) -> None:
    train, val = (dataset("ade20k", root.parent, split=split) for split in ("train", "val"))
    assert (tuple(train.names), tuple(val.names)) == (TRAIN, VAL)
    assert np.array_equal(train[1].labels["out"], mini.grid(255, 0, 149))
    assert val.paths(0)[0] == root / "images/validation/ADE_val_00000001.jpg"
    assert check(train).ok
    mini.put(root / "annotations/training/ADE_train_00000001.png", mini.grid(151).astype(np.uint8))
    with pytest.raises(ImageError, match=r"151 \(48 px\); expected ids 1\.\.150 or void 0, 255"):
        train[0]


def test_classes_are_in_the_order_of_the_challenge() -> None:
    assert len(CLASSES) == 150
    assert [CLASSES.names[i] for i in (0, 1, 2, 58, 89, 130, 141, 149)] == [
        "wall", "building", "sky", "screen door", "television", "screen", "crt screen", "flag",
    ]  # fmt: skip


def test_what_is_missing_is_said_with_what_was_looked_for(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"images/test: no such split; expected one of train, val"):
        open_ade20k(root, split="test")
    with pytest.raises(DatasetError, match=r"no ADE20K; expected ADEChallengeData2016 with images/ and annotations/"):
        open_ade20k(root / "images")


def test_files_without_a_partner_and_missing_pictures_are_said(root: Path) -> None:
    picture = root / "images/training/ADE_train_00000001.jpg"
    picture.rename(shouted := picture.with_suffix(".JPG"))
    data = open_ade20k(root)
    assert (data.names, data.unpaired) == ([TRAIN[1]], [shouted, root / f"annotations/training/{TRAIN[0]}.png"])
    assert "train: 1 pictures, where 20,210 are published" in data.notes
    (finding,) = [found for found in check(data).findings if found.kind == "unpaired"]
    assert finding.severity == "warning"
    assert finding.files == tuple(map(str, data.unpaired))
    assert open_ade20k(root, split="val").unpaired == []
