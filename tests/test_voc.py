"""PASCAL VOC in its own layout, and seg11valid by the published rule."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from PIL import Image

from fullyconv.checking import check
from fullyconv.datasets import dataset
from fullyconv.datasets.voc import CLASSES, open_voc
from fullyconv.errors import DatasetError, ImageError

TRAIN, VAL = ("2007_000032", "2007_000039"), ("2007_000033", "2007_000042", "2011_003276")


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    mini.voc(tmp_path / "VOCdevkit/VOC2011", train=TRAIN, val=VAL, trainval=(*TRAIN, *VAL))
    return tmp_path


def test_the_lists_name_the_splits_and_ids_are_channels(devkit: Path) -> None:
    train, val, both = (dataset("voc", devkit, split=split) for split in ("train", "val", "trainval"))
    assert [tuple(data.names) for data in (train, val, both)] == [TRAIN, VAL, (*TRAIN, *VAL)]
    sample = train[1]
    assert sample.name == "2007_000039"
    assert (sample.image.shape, sample.image.dtype) == ((*mini.SIZE, 3), np.uint8)
    assert np.array_equal(sample.labels["out"], mini.grid(0, 1, 20, 255))
    folder = devkit / "VOCdevkit/VOC2011"
    assert train.paths(1) == (folder / "JPEGImages/2007_000039.jpg", folder / "SegmentationClass/2007_000039.png")
    assert check(train).ok
    assert check(train).void == {"out": 24}


def test_classes_are_vocs_in_its_order_and_colours() -> None:
    assert len(CLASSES) == 21
    assert (CLASSES.names[0], CLASSES.names[1], CLASSES.names[15], CLASSES.names[20]) == (
        "background", "aeroplane", "person", "tvmonitor",
    )  # fmt: skip
    assert CLASSES.entries[15].colour == (192, 128, 128)


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2011"])
def test_the_root_may_be_any_of_the_folders(devkit: Path, below: str) -> None:
    assert open_voc(devkit / below, split="val").names == list(VAL)


@pytest.mark.parametrize("line", ["a\0b", ",".join(f"2008_{i:06d}" for i in range(30)), "名" * 90, "a/b," * 2000])
def test_a_line_that_is_no_name_of_a_file_is_refused(devkit: Path, line: str) -> None:
    mini.names(devkit / "VOCdevkit/VOC2011/ImageSets/Segmentation/train.txt", [TRAIN[0], line])
    with pytest.raises(
        DatasetError, match=r"train\.txt: line 2 is '.*', no name of a file; expected names, one a line"
    ):
        open_voc(devkit)


def test_pictures_by_another_suffix_are_shown_beside_what_was_expected(devkit: Path) -> None:
    for path in (devkit / "VOCdevkit/VOC2011/JPEGImages").iterdir():
        path.rename(path.with_suffix(".JPG"))
    with pytest.raises(DatasetError, match=r"expected NAME\.jpg for each of its 2 names; .*has 2007_000032\.JPG"):
        open_voc(devkit)


def test_voc2011_unpacks_into_a_folder_of_its_own(tmp_path: Path) -> None:
    mini.voc(tmp_path / "TrainVal/VOCdevkit/VOC2011", train=TRAIN)
    assert open_voc(tmp_path).names == list(TRAIN)


def test_of_several_years_the_newest_is_read_and_said(devkit: Path) -> None:
    mini.voc(devkit / "VOCdevkit/VOC2012", train=("2008_000008",))
    data = open_voc(devkit)
    assert data.names == ["2008_000008"]
    assert data.notes[1] == "of VOC2012, VOC2011, VOC2012 is read; to read another, give its folder"
    assert open_voc(devkit / "VOCdevkit/VOC2011").names == list(TRAIN)


# seg11valid ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["benchmark_RELEASE/dataset", "sbd", "VOCdevkit/SBD/dataset", "VOCdevkit/VOCaug/dataset"]
)
@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2011"])
def test_seg11valid_is_val_without_what_sbd_trains_on(devkit: Path, place: str, below: str) -> None:
    mini.names(devkit / place / "train.txt", ["2007_000042", "2007_000032", "2010_000001"])
    data = open_voc(devkit / below, split="seg11valid")
    assert (data.name, data.split) == ("voc", "seg11valid")
    assert data.names == ["2007_000033", "2011_003276"]
    assert "2 of the 3 pictures of VOC2011's val" in data.notes[0]
    assert data[0].labels["out"].max() == 255


def test_seg11valid_is_made_of_the_years_beside_the_one_that_is_given(devkit: Path) -> None:
    mini.names(devkit / "sbd/train.txt", ["2007_000042"])
    mini.voc(devkit / "VOCdevkit/VOC2012", val=VAL)
    data = open_voc(devkit / "VOCdevkit/VOC2012", split="seg11valid")
    assert data.names == ["2007_000033", "2011_003276"]
    assert "of VOC2011's val" in data.notes[0]


@pytest.mark.parametrize("below", ["", "TrainVal/VOCdevkit", "TrainVal/VOCdevkit/VOC2011"])
def test_sbd_is_found_beside_what_voc2011_unpacks_into(tmp_path: Path, below: str) -> None:
    mini.voc(tmp_path / "TrainVal/VOCdevkit/VOC2011", val=VAL)
    mini.names(tmp_path / "benchmark_RELEASE/dataset/train.txt", [VAL[1]])
    assert open_voc(tmp_path / below, split="seg11valid").names == [VAL[0], VAL[2]]


def test_a_list_of_that_name_goes_before_the_rule(devkit: Path) -> None:
    mini.sbd(devkit / "sbd", train=["2007_000042"])
    mini.names(devkit / "VOCdevkit/VOC2011/ImageSets/Segmentation/seg11valid.txt", ["2007_000042"])
    assert open_voc(devkit, split="seg11valid").names == ["2007_000042"]


def test_the_list_may_lie_in_a_later_year(tmp_path: Path) -> None:
    mini.voc(tmp_path / "VOC2012", val=VAL, seg11valid=VAL[:1])
    data = open_voc(tmp_path, split="seg11valid")
    assert data.names == [VAL[0]]
    assert "VOC2012" in data.notes[0]


def test_seg12valid_follows_the_same_rule(devkit: Path) -> None:
    mini.voc(devkit / "VOCdevkit/VOC2012", val=("2012_000001", "2012_000002"))
    mini.names(devkit / "sbd/train.txt", ["2012_000001"])
    assert open_voc(devkit, split="seg12valid").names == ["2012_000002"]
    assert len(open_voc(devkit, split="seg11valid")) == 3


def test_without_the_lists_it_is_made_of_it_is_refused(devkit: Path) -> None:
    with pytest.raises(DatasetError, match=r"no ImageSets/Segmentation/seg11valid\.txt, .*SBD's train\.txt is missing"):
        open_voc(devkit, split="seg11valid")
    with pytest.raises(DatasetError, match=r"VOC2012/ImageSets/Segmentation/val\.txt and SBD's train\.txt is missing"):
        open_voc(devkit, split="seg12valid")
    mini.names(devkit / "sbd/train.txt", VAL)
    with pytest.raises(DatasetError, match=r"names every picture of val"):
        open_voc(devkit, split="seg11valid")


# trainaug ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def augmented(tmp_path: Path) -> Path:
    """VOC2012 with a train of two, one of them in SBD, too; SBD labels one of val and three more."""
    mini.voc(tmp_path / "VOCdevkit/VOC2012", train=TRAIN, val=VAL)
    mini.sbd(tmp_path / "benchmark_RELEASE/dataset", train=[TRAIN[1], VAL[0], "2008_000002"], val=["2009_1", "2009_2"])
    for name in ("2008_000002", "2009_1", "2009_2"):
        mini.put(tmp_path / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg", mini.colours(name))
    return tmp_path


def test_trainaug_is_what_either_labels_but_val(augmented: Path) -> None:
    data = dataset("voc", augmented, split="trainaug")
    assert list(data.names) == [*TRAIN, "2008_000002", "2009_1", "2009_2"]
    assert not set(data.names) & set(dataset("voc", augmented, split="val").names)
    assert data.notes[0].startswith("trainaug: 2 of VOC2012's train and 3 of SBD (")


def test_in_trainaug_vocs_own_labels_go_before_sbds(augmented: Path) -> None:
    data = dataset("voc", augmented, split="trainaug")
    own, added = data[1], data[2]
    assert np.array_equal(own.labels["out"], mini.grid(0, 1, 20, 255))
    assert np.array_equal(added.labels["out"], mini.grid(0, 5, 20))
    assert data.paths(1)[1].name == f"{TRAIN[1]}.png"
    assert data.paths(2)[1] == augmented / "benchmark_RELEASE/dataset/cls/2008_000002.mat"
    assert check(data).ok


@pytest.mark.parametrize("place", ["Segmentation/trainaug.txt", "SegmentationAug/train_aug.txt"])
def test_trainaug_that_others_have_prepared_is_read_as_it_is(augmented: Path, place: str) -> None:
    folder = augmented / "VOCdevkit/VOC2012"
    listed = ["2008_000002", "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png"]
    mini.names(folder / "ImageSets" / place, listed)
    for name in ("2008_000002", "2007_000032"):
        mini.put(folder / f"SegmentationClassAug/{name}.png", mini.grid(0, 7).astype(np.uint8))
    data = dataset("voc", augmented, split="trainaug")
    assert list(data.names) == ["2008_000002", "2007_000032"]
    assert np.array_equal(data[1].labels["out"], mini.grid(0, 7))


def test_trainaug_without_its_parts_is_refused(devkit: Path) -> None:
    with pytest.raises(DatasetError, match=r"expected VOCdevkit/VOC2012, found VOC2011"):
        open_voc(devkit, split="trainaug")
    mini.voc(devkit / "VOCdevkit/VOC2012", train=TRAIN, val=VAL)
    with pytest.raises(DatasetError, match=r"no SegmentationClassAug/, and to make trainaug SBD is missing"):
        open_voc(devkit, split="trainaug")


# What is wrong -------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said_with_what_was_looked_for(devkit: Path) -> None:
    with pytest.raises(DatasetError, match=r"no PASCAL VOC; expected VOCdevkit/VOC20XX.*found nothing there"):
        open_voc(devkit / "none")
    with pytest.raises(DatasetError, match=r"test\.txt: no such file; .*has train\.txt, trainval\.txt, val\.txt"):
        open_voc(devkit, split="test")
    folder = devkit / "VOCdevkit/VOC2011"
    mini.names(folder / "ImageSets/Segmentation/test.txt", ["2008_000001"])
    with pytest.raises(DatasetError, match=r"2008_000001\.jpg: no such file, nor one of the next names of test"):
        open_voc(devkit, split="test")
    mini.names(folder / "ImageSets/Segmentation/test.txt", [])
    with pytest.raises(DatasetError, match=r"test\.txt: an empty list"):
        open_voc(devkit, split="test")
    (folder / "ImageSets/Segmentation/test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"test\.txt: cannot be read as a list of names"):
        open_voc(devkit, split="test")
    (folder / "SegmentationClass").rename(folder / "Hidden")
    with pytest.raises(DatasetError, match=r"SegmentationClass: no such folder; expected NAME\.png for each name"):
        open_voc(devkit)


def test_pictures_are_colour_only(devkit: Path) -> None:
    with pytest.raises(DatasetError, match="voc: got the input 'depth'; its pictures have color only"):
        dataset("voc", devkit, inputs=("color", "depth"))


def test_every_file_that_is_missing_or_wrong_is_found_by_check(devkit: Path) -> None:
    folder = devkit / "VOCdevkit/VOC2011"
    (folder / "JPEGImages" / f"{VAL[1]}.jpg").unlink()
    Image.fromarray(mini.grid(0, 21).astype(np.uint8)).save(folder / f"SegmentationClass/{VAL[2]}.png")
    data = open_voc(devkit, split="val")
    with pytest.raises(ImageError, match="no such file"):
        data[1]
    found = [(f.kind, Path(f.files[0]).name) for f in check(data).errors]
    assert found == [("unpaired", f"{VAL[1]}.jpg"), ("label", f"{VAL[2]}.png")]
    assert "21 (24 px)" in check(data).errors[1].detail


def test_opening_reads_no_picture(devkit: Path) -> None:
    for path in (devkit / "VOCdevkit/VOC2011").glob("*/2*"):
        path.write_bytes(b"")
    assert len(open_voc(devkit)) == 2


def test_real_pairs_read_in_the_layout_of_voc(shared: Path, tmp_path: Path) -> None:
    ids = (shared / "voc_pairs/ids.txt").read_text().split()
    mini.names(tmp_path / "ImageSets/Segmentation/train.txt", ids)
    (tmp_path / "JPEGImages").symlink_to(shared / "voc_pairs/images")
    (tmp_path / "SegmentationClass").symlink_to(shared / "voc_pairs/masks")
    report = check(open_voc(tmp_path))
    assert report.ok
    assert report.void["out"] > 0


def test_a_label_of_voc_that_is_missing_is_not_taken_from_sbd(augmented: Path) -> None:
    data = open_voc(augmented, split="trainaug")
    own = data.paths(1)[1]
    assert (augmented / f"benchmark_RELEASE/dataset/cls/{own.stem}.mat").exists()
    own.unlink()
    (found,) = check(open_voc(augmented, split="trainaug")).errors
    assert str(own) in found.files


def test_the_authors_own_folder_holds_voc_as_pascal(tmp_path: Path) -> None:
    mini.voc(tmp_path / "pascal/VOC2011", train=("2007_000032",))
    assert open_voc(tmp_path).names == ["2007_000032"]


def test_a_list_of_another_length_than_the_published_is_said(devkit: Path, augmented: Path) -> None:
    said = "train: 2 pictures, where 1,464 are published"
    assert said in open_voc(augmented, split="train").notes
    assert "trainaug: 5 pictures, where 10,582 are published" in open_voc(augmented, split="trainaug").notes
    # Of other years nothing is known.
    assert not any("published" in note for note in open_voc(devkit / "VOCdevkit/VOC2011", split="train").notes)
