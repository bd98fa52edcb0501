"""Cityscapes in its own layout: 34 ids, of which 19 count."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from fullyconv.checking import check
from fullyconv.datasets import dataset
from fullyconv.datasets.cityscapes import CLASSES, open_cityscapes
from fullyconv.errors import DatasetError, LabelError

TRAIN, VAL = ("aachen_000000_000019", "bochum_000000_000313", "aachen_000001_000019"), ("lindau_000000_000019",)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mini.cityscapes(tmp_path / "cityscapes", train=TRAIN, val=VAL)


def test_channels_are_the_train_ids(root: Path) -> None:
    data = dataset("cityscapes", root.parent)
    assert list(data.names) == [f"{name.partition('_')[0]}/{name}" for name in sorted(TRAIN)]
    assert np.array_equal(data[0].image, mini.colours("aachen_000000_000019"))
    assert np.array_equal(data[0].labels["out"], mini.grid(255, 0, 255, 18))
    assert data.paths(2)[1] == root / "gtFine/train/bochum/bochum_000000_000313_gtFine_labelIds.png"
    assert check(data).ok


def test_towns_may_be_links_and_hidden_files_are_no_pictures(root: Path, tmp_path: Path) -> None:
    names = list(open_cityscapes(root).names)
    for half in ("leftImg8bit", "gtFine"):
        town = next((root / half / "train").iterdir())
        aside = tmp_path / "aside" / half
        aside.parent.mkdir(exist_ok=True)
        town.rename(aside)
        town.symlink_to(aside)
        picture = next(aside.iterdir())
        picture.with_name(f"._{picture.name}").write_bytes(b"as macOS leaves them")
    assert list(open_cityscapes(root).names) == names


def test_the_nineteen_classes_are_in_the_published_order() -> None:
    # fmt: off
    assert CLASSES.names == (
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    )
    # fmt: on
    assert [CLASSES.used[i].id for i in (0, 9, 16, 18)] == [7, 22, 31, 33]
    assert CLASSES.used[13].colour == (0, 0, 142)
    assert len(CLASSES.entries) == 34


def test_what_is_missing_is_said_with_what_was_looked_for(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"leftImg8bit/test: no file NAME_leftImg8bit\.png in it; found nothing"):
        open_cityscapes(root, split="test")
    (root / "gtFine").rename(root.parent / "elsewhere")
    with pytest.raises(
        DatasetError, match=r"no Cityscapes; expected leftImg8bit/ and gtFine/; found leftImg8bit in .*, and no gtFine$"
    ):
        open_cityscapes(root)


def test_a_label_map_without_its_picture_is_named(root: Path) -> None:
    (root / f"leftImg8bit/train/aachen/{TRAIN[0]}_leftImg8bit.png").unlink()
    data = open_cityscapes(root)
    assert len(data) == 2
    assert data.unpaired == [root / f"gtFine/train/aachen/{TRAIN[0]}_gtFine_labelIds.png"]


def test_train_ids_under_the_name_of_label_ids_are_refused_and_alone_are_named(root: Path) -> None:
    (first, *others) = sorted(root.glob("gtFine/train/*/*_labelIds.png"))
    mini.put(first, mini.grid(0, 7, 8, 255).astype(np.uint8))
    assert dataset("cityscapes", root)[0].labels["out"].tolist() == mini.grid(255, 0, 1, 255).tolist()
    mini.put(first, mini.grid(0, 1, 2, 10, 18, 255).astype(np.uint8))
    with pytest.raises(LabelError, match="255 and no id above 18: these are trainIds; expected labelIds"):
        dataset("cityscapes", root)[0]
    for path in (first, *others):
        path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    with pytest.raises(DatasetError, match="of the label maps there, labelTrainIds are not read"):
        dataset("cityscapes", root)


def test_a_split_that_there_is_not_names_those_there_are(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"leftImg8bit/trainval: no such split; expected one of train, val, test"):
        dataset("cityscapes", root, split="trainval")
