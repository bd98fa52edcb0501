"""Copies are found through what people do to copies; different pictures are not taken for copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import planted
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance

from fullyconv.checking import check
from fullyconv.datasets.folder import open_folder
from fullyconv.duplicates import WAVES, near_duplicates, waves
from fullyconv.impressions import SIDE

PICTURES = arrays(np.float32, (1, SIDE, SIDE), elements=st.floats(0, 255, width=32))


@given(PICTURES)
def test_mirroring_a_picture_only_changes_signs_of_its_hash(grey: np.ndarray) -> None:
    assume(grey.std() > 4)
    signs = np.tile((-1.0) ** np.arange(WAVES), WAVES)[1:]
    np.testing.assert_allclose(waves(grey[:, :, ::-1]), waves(grey) * signs, atol=2e-3)


@given(PICTURES, st.floats(0.5, 2), st.floats(-50, 50))
def test_brightness_and_contrast_do_not_change_the_hash(grey: np.ndarray, contrast: float, brightness: float) -> None:
    assume(grey.std() > 4)
    changed = grey * np.float32(contrast) + np.float32(brightness)
    np.testing.assert_allclose(waves(changed), waves(grey), atol=2e-3)


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: ImageEnhance.Brightness(image).enhance(1.2),
        lambda image: ImageEnhance.Contrast(image).enhance(0.8),
        lambda image: image.resize((64, 48)),
        lambda image: image.resize((200, 150)),
        lambda image: image.crop((6, 4, 122, 91)),
        mirrored,
        lambda image: mirrored(image.crop((0, 0, 115, 86))),
    ],
    ids=["brighter", "paler", "smaller", "larger", "cropped", "mirrored", "cropped and mirrored"],
)
def test_a_changed_copy_of_a_picture_of_train_is_found_in_val(root: Path, change: object) -> None:
    copy = change(Image.open(root / "images/train/05.png"))  # type: ignore[operator]
    copy.save(root / "images/val/copy.jpg", quality=60)
    planted.store(root / "labels/val/copy.png", np.zeros(copy.size[::-1]) + np.arange(copy.size[0]) % 11)
    found = [finding for finding in planted.found(root) if finding.kind == "near-duplicate"]
    (near,) = found
    assert near.severity == "warning"
    assert planted.below(root, near) == ("images/val/copy.jpg", "images/train/05.png")
    assert "1 of the 9 pictures of val are nearly pictures of train: copy (like 05, " in near.detail


def test_the_same_pixels_in_train_and_val_are_an_error_and_not_said_twice(root: Path) -> None:
    Image.open(root / "images/train/05.png").save(root / "images/val/copy.bmp")
    shutil.copy(root / "labels/train/05.png", root / "labels/val/copy.png")
    (found,) = planted.found(root)
    assert (found.kind, found.severity) == ("overlap", "error")
    assert planted.below(root, found) == ("images/val/copy.bmp", "images/train/05.png")


def test_copies_within_a_split_are_told_apart_by_their_label_maps(root: Path) -> None:
    for name, labels in (("same", "05"), ("other", "06")):
        number = "05" if name == "same" else "07"
        shutil.copy(root / f"images/train/{number}.png", root / f"images/train/{name}.png")
        shutil.copy(root / f"labels/train/{labels}.png", root / f"labels/train/{name}.png")
    same, other = (finding for finding in planted.found(root) if finding.kind == "duplicate")
    assert planted.below(root, same) == ("images/train/05.png", "images/train/same.png")
    assert "their label maps are the same, too" in same.detail
    assert planted.below(root, other) == ("images/train/07.png", "images/train/other.png")
    assert "their label maps differ" in other.detail


def test_dark_frames_are_no_copies_of_each_other(root: Path) -> None:
    # Both are a little brighter in the middle, as lenses make them.
    rows, columns = np.hanning(planted.SIZE[0]), np.hanning(planted.SIZE[1])
    for split, most in (("train", 7.0), ("val", 8.0)):
        dark = np.repeat((most * np.outer(rows, columns)).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(dark).save(root / f"images/{split}/00.png")
    assert not [finding for finding in planted.found(root) if finding.kind == "near-duplicate"]


def test_a_picture_that_only_resembles_one_of_train_is_no_copy(root: Path) -> None:
    original, other = (Image.open(root / f"images/{name}.png") for name in ("train/05", "val/03"))
    likeness = []
    for share in (0.02, 0.35):
        Image.blend(original, other, share).save(root / "images/val/03.png")
        likeness.append([finding.kind for finding in planted.found(root)])
    assert likeness == [["near-duplicate"], []]


def test_streets_and_rooms_as_they_are_are_no_copies_and_their_crops_are(shared: Path, tmp_path: Path) -> None:
    # Every third picture; all of them were measured once, see docs/data.md.
    for half in ("images", "labels"):
        for split in ("train", "val"):
            (tmp_path / half / split).mkdir(parents=True)
            for file in sorted((shared / "camvid" / half / split).iterdir())[::3]:
                shutil.copyfile(file, tmp_path / half / split / file.name)
    shutil.copy(shared / "camvid/classes.txt", tmp_path)
    train = check(open_folder(tmp_path)).impressions
    val = check(open_folder(tmp_path, split="val")).impressions
    assert near_duplicates(train, val) is None
    for number, name in enumerate(pair.name for pair in train[::20]):
        left, top = 7 * number % 40, 5 * number % 30
        crop = Image.open(tmp_path / f"images/train/{name}.jpg").crop((left, top, left + 432, top + 324))
        crop.save(tmp_path / f"images/val/crop{number}.jpg")
        shutil.copy(tmp_path / f"labels/train/{name}.png", tmp_path / f"labels/val/crop{number}.png")
        label = Image.open(tmp_path / f"labels/val/crop{number}.png").crop((0, 0, 432, 324))
        label.save(tmp_path / f"labels/val/crop{number}.png")
    near = near_duplicates(train, check(open_folder(tmp_path, split="val")).impressions)
    assert near is not None
    copies = [file for file in near.files if "crop" in file]
    assert len(copies) >= number
    assert len(near.files) == 2 * len(copies)
