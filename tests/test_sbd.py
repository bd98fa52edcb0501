"""SBD in its own layout, with VOC's seg11valid beside it for val."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from fullyconv.checking import check
from fullyconv.datasets import dataset
from fullyconv.datasets.sbd import open_sbd
from fullyconv.datasets.voc import open_voc
from fullyconv.errors import DatasetError, ImageError

TRAIN, VAL = ("2008_000002", "2008_000003", "2011_003276"), ("2008_000015",)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    mini.sbd(tmp_path / "benchmark_RELEASE/dataset", train=TRAIN, val=VAL)
    return tmp_path


def test_matlab_labels_are_channels(release: Path) -> None:
    data = dataset("sbd", release)
    assert (data.name, data.split, tuple(data.names)) == ("sbd", "train", TRAIN)
    sample = data[2]
    assert sample.image.shape == (*mini.SIZE, 3)
    assert np.array_equal(sample.labels["out"], mini.grid(0, 5, 20))
    assert sample.labels["out"].dtype == np.uint8
    assert data.classes["out"].names[5] == "bottle"
    assert check(data).ok


@pytest.mark.parametrize("below", ["benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_the_root_may_be_any_of_the_folders(release: Path, below: str) -> None:
    assert open_sbd(release / below).names == list(TRAIN)


def test_another_name_of_the_folder_will_do(tmp_path: Path) -> None:
    mini.sbd(tmp_path / "sbd", train=TRAIN)
    assert open_sbd(tmp_path).names == open_sbd(tmp_path / "sbd").names == list(TRAIN)


@pytest.mark.parametrize("place", ["VOCdevkit/VOC2011", "VOC2011", "TrainVal/VOCdevkit/VOC2011"])
@pytest.mark.parametrize("below", ["", "benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_val_is_vocs_seg11valid_where_voc_is_beside(release: Path, place: str, below: str) -> None:
    mini.voc(release / place, val=("2007_000033", "2011_003276", "2011_003255"))
    for split in ("val", "seg11valid"):
        data = open_sbd(release / below, split=split)
        assert (data.name, data.split) == ("sbd", split)
        assert data.names == ["2007_000033", "2011_003255"]
        assert np.array_equal(data[0].labels["out"], mini.grid(0, 1, 20, 255))
        assert "2 of the 3 pictures of VOC2011's val" in data.notes[0]
    assert not set(open_sbd(release / below).names) & set(data.names)


@pytest.mark.parametrize("below", ["", "sbdd", "sbdd/dataset"])
def test_the_authors_own_folders_and_another_year_nearer_by_are_no_hindrance(tmp_path: Path, below: str) -> None:
    mini.sbd(tmp_path / "sbdd/dataset", train=TRAIN, val=VAL)
    mini.voc(tmp_path / "pascal/VOC2011", val=("2007_000033", "2011_003276"))
    mini.voc(tmp_path / "sbdd/VOC2012", val=("2007_000033",))
    assert open_sbd(tmp_path / below, split="val").names == ["2007_000033"]


def test_a_relative_root_is_the_same_folder(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mini.voc(release / "VOCdevkit/VOC2011", val=("2007_000033", "2011_003276"))
    for here, root in (
        (".", "."),
        ("benchmark_RELEASE", "."),
        ("benchmark_RELEASE/dataset", "."),
        (".", "benchmark_RELEASE"),
    ):
        monkeypatch.chdir(release / here)
        assert open_sbd(root, split="val").names == ["2007_000033"]
    for here in ("VOCdevkit", "VOCdevkit/VOC2011"):
        monkeypatch.chdir(release / here)
        assert open_voc(".", split="seg11valid").names == ["2007_000033"]


def test_val_is_sbds_own_where_voc_is_not_and_that_is_said(release: Path) -> None:
    data = open_sbd(release, split="val")
    assert data.names == list(VAL)
    assert "val is SBD's own, not VOC's seg11valid" in data.notes[1]
    assert "no PASCAL VOC" in data.notes[1]
    mini.voc(release / "VOC2012", val=("2007_000033",))
    data = open_sbd(release, split="val")
    assert data.names == list(VAL)
    assert "VOC2011/ImageSets/Segmentation/val.txt is missing" in data.notes[1]
    with pytest.raises(DatasetError, match="VOC2011"):
        open_sbd(release, split="seg11valid")


def test_what_is_missing_is_said_with_what_was_looked_for(release: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"no SBD; expected benchmark_RELEASE/dataset with img/.*found nothing there"
    ):
        open_sbd(release / "none")
    with pytest.raises(DatasetError, match=r"test\.txt: no such file; .*has train\.txt, val\.txt"):
        open_sbd(release, split="test")


def test_label_files_that_are_wrong_are_refused_in_one_line(release: Path) -> None:
    folder = release / "benchmark_RELEASE/dataset/cls"
    data = open_sbd(release)
    first = folder / f"{TRAIN[0]}.mat"
    good = first.read_bytes()

    def refused() -> str:
        with pytest.raises(ImageError) as refusal:
            data[0]
        assert refusal.value.path == first
        message = str(refusal.value)
        assert message.startswith(f"{first}: ")
        assert "\n" not in message
        return message

    first.unlink()
    assert "no such file; expected a MATLAB file with GTcls.Segmentation" in refused()
    for content in (b"", b"not a mat file, whatever its name says" * 20, good[: len(good) // 2]):
        first.write_bytes(content)
        assert "not a MATLAB file that can be read" in refused()
    first.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400))
    assert "a MATLAB file of version 7.3; save it with -v7" in refused()
    mini.mat(first, GTinst={"Segmentation": mini.grid(0)})
    assert "no GTcls.Segmentation in it; found GTinst" in refused()
    mini.mat(first, GTcls={"Boundaries": mini.grid(0)})
    assert "no GTcls.Segmentation in it; found GTcls (Boundaries)" in refused()
    mini.mat(first, GTcls={"Segmentation": np.zeros((6, 8, 3), np.uint8)})
    assert "GTcls.Segmentation is uint8 of shape (6, 8, 3); expected whole numbers (H, W)" in refused()
    for value in (0.5, 1e30, np.inf, np.nan):
        mini.mat(first, GTcls={"Segmentation": np.where(mini.grid(0, 1) == 1, value, 0)})
        assert f"GTcls.Segmentation holds {value}; expected ids, which are whole numbers" in refused()
    mini.mat(first, GTcls={"Segmentation": mini.grid(0, 21)})
    assert "21 (24 px); expected ids 0..20 or void 255" in refused()
    mini.mat(first, GTcls={"Segmentation": mini.grid(0, size=(8, 6))})
    assert "a label map of 8 x 6 for a picture of 6 x 8" in refused()
    assert [f.kind for f in check(data).errors] == ["size"]


@pytest.mark.parametrize("below", ["sbd", "sbd/benchmark_RELEASE", "sbd/benchmark_RELEASE/dataset"])
def test_voc_is_found_beside_the_folder_that_sbd_lies_in(tmp_path: Path, below: str) -> None:
    mini.sbd(tmp_path / "sbd/benchmark_RELEASE/dataset", train=TRAIN, val=VAL)
    mini.voc(tmp_path / "VOCdevkit/VOC2011", val=("2007_000033", "2011_003276"))
    assert open_sbd(tmp_path / below, split="val").names == ["2007_000033"]


@pytest.mark.parametrize("split", ["trainaug", "seg12valid"])
def test_splits_that_voc_makes_of_sbd_name_voc(release: Path, split: str) -> None:
    with pytest.raises(DatasetError, match=f"{split} is a split of voc, of which SBD is a part; name voc"):
        open_sbd(release, split=split)
