"""Scenes are functions of seed, split and number; their labels are exact."""

from __future__ import annotations

import time

import numpy as np
import pytest

from fullyconv.datasets.scenes import CLASSES, KINDS, Scenes, open_scenes, single_objects
from fullyconv.errors import ConfigError


def test_a_scene_is_the_same_whenever_it_is_asked_for() -> None:
    data = Scenes(8, size=(48, 64))
    forwards = [data[i] for i in range(8)]
    for i in reversed(range(8)):
        again = Scenes(100, size=(48, 64))[i]
        assert np.array_equal(again.image, forwards[i].image)
        assert np.array_equal(again.labels["out"], forwards[i].labels["out"])


def test_scenes_splits_and_seeds_differ() -> None:
    scenes = [Scenes(4, size=(32, 32), seed=seed, split=split) for seed in (0, 1) for split in ("train", "val")]
    pictures = [data[i].image.tobytes() for data in scenes for i in range(4)]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("size", [(16, 16), (33, 200), (160, 160), (501, 60)])
def test_scenes_have_any_size(size: tuple[int, int]) -> None:
    sample = Scenes(2, size=size)[1]
    assert sample.image.shape == (*size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.labels["out"].shape == size
    assert sample.labels["out"].dtype == np.uint8


def test_every_class_occurs_and_the_ground_does_not_drown_the_rest() -> None:
    pixels = sum(np.bincount(Scenes(60)[i].labels["out"].ravel(), minlength=256) for i in range(60))
    share = pixels / pixels.sum()
    assert len(CLASSES) == 11
    assert set(np.flatnonzero(pixels)) == {*range(11), 255}
    assert 0.5 < share[0] < 0.85
    assert (share[1:11] > 0.001).all()
    assert 0.02 < share[255] < 0.15


def test_the_void_border_has_the_width_that_is_asked_for() -> None:
    def border(width: int) -> np.ndarray:
        return Scenes(1, size=(96, 96), border=width)[0].labels["out"] == 255

    assert not border(0).any()
    thin, wide = border(1), border(3)
    assert thin.any()
    assert 2 < wide.sum() / thin.sum() < 4


def test_labels_lie_on_the_things_that_are_seen() -> None:
    # A thing's colour is its own: the mean colour inside each kind's label differs from the ground around it.
    for kind, name in enumerate(KINDS, start=1):
        inside, outside = [], []
        for i in range(40):
            sample = Scenes(40, size=(96, 96), seed=5)[i]
            found = sample.labels["out"]
            inside.append(sample.image[found == kind])
            outside.append(sample.image[found == 0])
        distance = np.abs(np.concatenate(inside).mean(0) - np.concatenate(outside).mean(0)).max()
        assert distance > 25, name


def test_thin_things_are_thin() -> None:
    # Most pixels of poles, wires and ladders have another label within 3 px; of balls and crates they have not.
    thin, thick = [0, 0], [0, 0]
    for i in range(30):
        found = Scenes(30)[i].labels["out"]
        same = np.ones_like(found, bool)
        for dy, dx in ((3, 0), (-3, 0), (0, 3), (0, -3)):
            same &= np.roll(found, (dy, dx), (0, 1)) == found
        for counts, names in ((thin, ("pole", "wire", "ladder")), (thick, ("ball", "crate"))):
            mask = np.isin(found, [CLASSES.names.index(name) for name in names])
            counts[0] += int((mask & same).sum())
            counts[1] += int(mask.sum())
    assert thin[0] / thin[1] < 0.1
    assert thick[0] / thick[1] > 0.4


def test_single_objects_show_each_kind_at_the_scale_of_scenes() -> None:
    pictures, kinds = single_objects(200, size=(64, 64), seed=2)
    assert pictures.shape == (200, 64, 64, 3)
    assert pictures.dtype == np.uint8
    assert set(kinds) == set(range(len(KINDS)))
    again, same = single_objects(5, size=(64, 64), seed=2)
    assert np.array_equal(again, pictures[:5])
    assert np.array_equal(same, kinds[:5])
    other, _ = single_objects(5, size=(64, 64), seed=2, split="val")
    assert not np.array_equal(other, again)


def test_kinds_can_be_told_apart_by_colour_alone_often_but_not_always() -> None:
    # Nearest mean colour of the middle: a floor under what a net can learn, and proof that the kinds differ.
    (pictures, kinds), (held_out, truth) = single_objects(400), single_objects(200, split="val")
    histograms = [np.stack([_colours(p) for p in some]) for some in (pictures, held_out)]
    centres = np.stack([histograms[0][kinds == k].mean(0) for k in range(len(KINDS))])
    guessed = np.abs(histograms[1][:, None] - centres).sum(2).argmin(1)
    assert 0.4 < (guessed == truth).mean() < 0.99


def _colours(picture: np.ndarray) -> np.ndarray:
    codes = (picture[12:52, 12:52] // 64).astype(int) @ (16, 4, 1)
    return np.bincount(codes.ravel(), minlength=64) / codes.size


def test_a_scene_is_made_in_milliseconds() -> None:
    data = Scenes(50)
    data[0]
    best = float("inf")
    for i in range(20):
        started = time.process_time()
        data[i]
        best = min(best, time.process_time() - started)
    assert best < 0.02  # 3 ms on the machine it was written on


def test_the_root_says_how_many_and_how_large() -> None:
    assert (open_scenes().count, open_scenes(split="val").count, open_scenes().size) == (1000, 200, (160, 160))
    data = open_scenes("count=7, size=32x48", split="val", seed=4)
    assert (data.count, data.size, data.split, data.seed) == (7, (32, 48), "val", 4)
    assert data.names[:2] == ["val-000000", "val-000001"]
    assert data.notes == ["7 generated scenes of 32 x 48 px, seed 4 (val)"]
    assert data.paths(0) == (None, None)


@pytest.mark.parametrize("root", ["count", "count=x", "size=32", "sides=3", "count=0", "size=8x32", "/some/folder"])
def test_other_roots_are_refused(root: str) -> None:
    with pytest.raises(ConfigError, match=r"scenes: .*expected"):
        open_scenes(root)
