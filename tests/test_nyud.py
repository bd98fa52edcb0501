"""NYUDv2 in the authors' layout: colour, depth and HHA, in any order."""

from __future__ import annotations

import shutil
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from fullyconv.checking import check
from fullyconv.config import INPUTS
from fullyconv.datasets import dataset
from fullyconv.datasets.nyud import CLASSES, open_nyud
from fullyconv.errors import ConfigError, DatasetError, ImageError, UnknownName
from fullyconv.hha import hha, nyud_camera

TRAIN, VAL, TEST = ("5003", "5004"), ("5010",), ("5001", "5002")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return mini.nyud(tmp_path / "nyud", train=TRAIN, val=VAL, test=TEST)


def test_labels_count_from_one_and_void_is_zero(root: Path) -> None:
    data = dataset("nyud", root)
    assert (data.name, tuple(data.names)) == ("nyud", TRAIN)
    sample = data[0]
    assert np.array_equal(sample.image, mini.colours("5003"))
    assert np.array_equal(sample.labels["out"], mini.grid(255, 0, 39))
    assert (len(CLASSES), CLASSES.names[0], CLASSES.names[39]) == (40, "wall", "otherprop")
    assert check(data).ok
    assert check(data).void == {"out": 32}


def test_splits_are_the_lists_and_trainval_is_both(root: Path) -> None:
    assert open_nyud(root.parent, split="test").names == list(TEST)
    assert open_nyud(root, split="trainval").names == [*TRAIN, *VAL]
    mini.names(root / "trainval.txt", VAL)
    assert open_nyud(root, split="trainval").names == list(VAL)


def test_lists_lie_where_the_download_puts_them_whatever_the_archive_unpacks_into(root: Path) -> None:
    for name in ("train.txt", "val.txt", "test.txt"):
        (root / "nyud").mkdir(exist_ok=True)
        (root / name).rename(root / "nyud" / name)
    assert open_nyud(root, split="trainval").names == [*TRAIN, *VAL]
    assert open_nyud(root, split="test").names == list(TEST)


def test_inputs_are_channels_in_the_order_asked_for(root: Path) -> None:
    colour, hha = mini.colours("5003"), mini.colours("5003")[::-1]
    fused = dataset("nyud", root, inputs=("color", "hha"))[0].image
    assert fused.dtype == np.uint8
    assert np.array_equal(fused, np.concatenate([colour, hha], axis=2))
    assert np.array_equal(dataset("nyud", root, inputs=("hha", "color"))[0].image[..., 3:], colour)
    assert np.array_equal(dataset("nyud", root, inputs=("hha",))[0].image, hha)
    early = dataset("nyud", root, inputs=("color", "depth"))
    assert early[0].image.dtype == np.float32
    assert np.array_equal(early[0].image[..., :3], colour)
    assert early.paths(0)[0] == root / "data/images/img_5003.png"
    assert dataset("nyud", root, inputs=("depth", "color")).paths(0)[0] == root / "data/depth/img_5003.png"
    assert check(early).ok


def test_depth_is_the_natural_logarithm_of_what_is_stored(root: Path) -> None:
    sample = dataset("nyud", root, inputs=("depth",))[0]
    stored = mini.grid(0, 1000, 2000, 3000).astype(np.float64)
    measured = stored > 0
    expected = np.log(stored, where=measured, out=np.zeros(mini.SIZE))
    expected[~measured] = expected[measured].mean()
    assert (sample.image.shape, sample.image.dtype) == ((*mini.SIZE, 1), np.float32)
    np.testing.assert_allclose(sample.image[..., 0], expected, rtol=1e-6)
    assert sample.notes == ("depth that was not measured is the mean of what was (12 px)",)
    # Millimetres: the mean that the release subtracts lies among them.
    assert expected.min() < INPUTS["nyud-color-depth"].mean[3] < expected.max()


def test_only_the_folders_that_are_asked_for_need_be_there(root: Path) -> None:
    for folder in ("images", "hha"):
        (root / "data" / folder).rename(root / folder)
    assert len(open_nyud(root, inputs=("depth",))) == 2
    (root / "data/depth").rename(root / "depth")
    with pytest.raises(DatasetError, match=r"data/hha: no such folder; expected img_NAME\.png for each name"):
        open_nyud(root, inputs=("hha",))


def test_hha_that_is_not_there_is_computed_from_depth(root: Path) -> None:
    depth = np.random.default_rng(0).integers(1500, 4000, (30, 40)).astype(np.uint16)
    for name in TRAIN:
        mini.put(root / f"data/depth/img_{name}.png", depth)
        mini.put(root / f"data/images/img_{name}.png", mini.colours(name, (30, 40)))
        mini.mat(root / f"segmentation/img_{name}.mat", segmentation=mini.grid(0, 1, 40, size=(30, 40)))
    shutil.rmtree(root / "data/hha")
    data = open_nyud(root, inputs=("color", "hha"))
    assert np.array_equal(data[0].image[..., 3:], hha(depth / 1000, nyud_camera(30, 40)).encoded())
    assert data[0].image.dtype == np.uint8
    assert data.notes[-1].startswith("no data/hha: HHA is computed from depth whenever a picture is read")
    assert len(open_nyud(root, inputs=("depth", "hha"))[0].image[0, 0]) == 4
    mini.put(root / "data/depth/img_5003.png", depth[:20])
    with pytest.raises(ImageError, match=r"img_5003\.png: depth of 20 x 40 pixels .* expected 480 x 640"):
        open_nyud(root, inputs=("hha",))[0]


def test_inputs_that_are_not_known_are_refused(root: Path) -> None:
    with pytest.raises(UnknownName, match="no input 'dept'; did you mean 'depth'"):
        dataset("nyud", root, inputs=("color", "dept"))
    for inputs in ((), ("color", "color")):
        with pytest.raises(ConfigError, match=r"inputs: got .*; expected some of color, depth, hha, each once"):
            dataset("nyud", root, inputs=inputs)


def test_files_that_are_wrong_are_refused_in_one_line(root: Path) -> None:
    data = dataset("nyud", root, inputs=("color", "depth"))
    depth = root / "data/depth/img_5003.png"
    mini.put(depth, np.zeros(mini.SIZE, np.uint16))
    with pytest.raises(ImageError, match=r"img_5003\.png: no pixel has a depth above 0"):
        data[0]
    mini.put(depth, np.ones((3, 4), np.uint16))
    with pytest.raises(ImageError, match=r"3 x 4 pixels of depth for a picture of 6 x 8 \(height x width\)"):
        data[0]
    mini.put(depth, mini.colours("a"))
    with pytest.raises(ImageError, match="a depth map in mode RGB; expected one channel"):
        data[0]
    depth.unlink()
    assert [(f.kind, f.files) for f in check(data).errors] == [("unpaired", (str(depth),))]
    mini.mat(root / "segmentation/img_5004.mat", segmentation=mini.grid(41))
    with pytest.raises(ImageError, match=r"41 \(48 px\); expected ids 1\.\.40 or void 0, 255"):
        data[1]


def test_what_is_missing_is_said_with_what_was_looked_for(root: Path) -> None:
    (root / "segmentation").rename(root.parent / "elsewhere")
    with pytest.raises(DatasetError, match=r"no NYUDv2; expected segmentation/img_NAME\.mat.*found data/, test\.txt"):
        open_nyud(root)
