"""SIFT Flow in its own layout: two heads."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from fullyconv.checking import check
from fullyconv.datasets import dataset
from fullyconv.datasets.siftflow import CLASSES, open_siftflow
from fullyconv.errors import DatasetError
from fullyconv.metrics import ConfusionMatrix

TRAINVAL, TEST = ("coast_a1", "forest_b2", "highway_bost181"), ("coast_natu975", "street_urb506")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mini.siftflow(tmp_path / "SiftFlowDataset", trainval=TRAINVAL, test=TEST)


def test_two_heads_count_from_one_with_voids_of_their_own(root: Path) -> None:
    data = dataset("siftflow", root.parent, split="test")
    sample = data[0]
    assert np.array_equal(sample.labels["semantic"], mini.grid(255, 0, 32))
    assert np.array_equal(sample.labels["geometric"], mini.grid(255, 0, 1, 2))
    assert sample.image.shape == (*mini.SIZE, 3)
    assert {head: len(table) for head, table in data.classes.items()} == {"semantic": 33, "geometric": 3}
    assert data.classes["geometric"].names == ("sky", "horizontal", "vertical")
    assert [CLASSES["semantic"].names[i] for i in (0, 8, 10, 15, 32)] == ["awning", "cow", "desert", "moon", "window"]
    report = check(data)
    assert report.ok
    assert report.void == {"semantic": 16, "geometric": 12}


def test_a_class_that_does_not_occur_is_in_no_mean(root: Path) -> None:
    # Of the 33 semantic classes the miniature has awning and window, 16 pixels each; 4 of awning are taken for a cow.
    data = dataset("siftflow", root, split="test")
    truth = data[0].labels["semantic"]
    said = truth.copy()
    said[np.nonzero(truth == 0)[0][:4], np.nonzero(truth == 0)[1][:4]] = CLASSES["semantic"].names.index("cow")
    matrix = ConfusionMatrix(data.classes["semantic"].names)
    matrix.update(truth, said, void=255)
    scores = matrix.as_dict()
    assert scores["mean_iu"] == (12 / 16 + 1) / 2
    assert {"cow", "desert", "moon"} <= set(scores["absent"])
    assert len(scores["absent"]) == 31


def test_pictures_that_nobody_labelled_are_left_out_and_named(root: Path) -> None:
    train, test = open_siftflow(root, split="trainval"), open_siftflow(root, split="test")
    assert (train.names, test.names) == (["coast_a1", "forest_b2"], ["coast_natu975"])
    assert "left out, since nobody has labelled them: street_urb506" in test.notes


def test_train_and_val_are_trainval_and_test_where_they_have_no_list(root: Path) -> None:
    train, val = open_siftflow(root, split="train"), open_siftflow(root, split="val")
    assert (train.split, val.split) == ("train", "val")
    assert (train.names, val.names) == (["coast_a1", "forest_b2"], ["coast_natu975"])
    assert "no val.txt: val is what test.txt names" in val.notes
    mini.names(root / "val.txt", ["forest_b2"])
    assert open_siftflow(root, split="val").names == ["forest_b2"]


def test_lists_lie_where_the_download_puts_them_whatever_the_archive_unpacks_into(root: Path) -> None:
    for name in ("trainval.txt", "test.txt"):
        (root / "SiftFlowDataset").mkdir(exist_ok=True)
        (root / name).rename(root / "SiftFlowDataset" / name)
    train, test = open_siftflow(root, split="train"), open_siftflow(root, split="test")
    assert (train.names, test.names) == (["coast_a1", "forest_b2"], ["coast_natu975"])


def test_labels_of_either_head_that_are_wrong_are_found(root: Path) -> None:
    data = open_siftflow(root)
    geometric = root / f"GeoLabels/{mini.SCENES}/coast_a1.mat"
    semantic = root / f"SemanticLabels/{mini.SCENES}/forest_b2.mat"
    mini.mat(geometric, S=mini.grid(-2, 1))
    mini.mat(semantic, S=mini.grid(-1, 1))
    found = [finding for finding in check(data).errors if finding.files]
    assert [(f.kind, f.files) for f in found] == [("label", (str(geometric),)), ("label", (str(semantic),))]
    assert "-2 (24 px); expected ids 1..3 or void 0, 255" in found[0].detail
    assert "-1 (24 px); expected ids 1..33" in found[1].detail


def test_what_is_missing_is_said_with_what_was_looked_for(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"no SIFT Flow; expected Images/, SemanticLabels/, GeoLabels/"):
        open_siftflow(root / "Images")
    (root / "trainval.txt").unlink()
    with pytest.raises(DatasetError, match=r"trainval\.txt: no such file; .*has test\.txt"):
        open_siftflow(root)


def test_a_list_of_nothing_but_what_nobody_labelled_is_refused(root: Path) -> None:
    mini.names(next(root.rglob("test.txt")), ["street_urb506"])
    with pytest.raises(DatasetError, match="siftflow: no picture is left for test"):
        open_siftflow(root, split="test")


def test_the_folder_that_is_missing_is_named(root: Path) -> None:
    (next(root.rglob("GeoLabels"))).rename(root / "elsewhere")
    with pytest.raises(DatasetError, match=r"found Images, SemanticLabels in .*, and no GeoLabels"):
        dataset("siftflow", root)
