"""Ids and colours become channel numbers, and what is outside the table is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import PHOTO, THREE, label_file, png, saved, turned
from PIL import Image

from fullyconv.config import Classes, ClassInfo, voc_colour
from fullyconv.errors import ImageError
from fullyconv.images import write_image
from fullyconv.labels import label_channels, label_values, read_labels, write_labels
from fullyconv.values import read_values

CAMVID = Classes(
    entries=tuple(ClassInfo(id=i, name=f"class {i}", colour=voc_colour(i), ignore=i == 11) for i in range(12))
)
IDS = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


def test_ids_are_read_from_every_lossless_kind_of_file(tmp_path: Path) -> None:
    palette = Image.fromarray(IDS).convert("P")
    palette.putpalette([9, 9, 9] * 256)  # the colours of a palette say nothing
    files = [
        label_file(tmp_path / "l.png", IDS),
        saved(tmp_path / "p.png", palette),
        saved(tmp_path / "trns.png", palette, transparency=0),
        label_file(tmp_path / "16.png", IDS.astype(np.uint16)),
        label_file(tmp_path / "8.tif", IDS),
        label_file(tmp_path / "16.tif", IDS.astype(np.uint16)),
        label_file(tmp_path / "32.tif", IDS.astype(np.int32)),
        label_file(tmp_path / "l.bmp", IDS),
        saved(tmp_path / "la.png", Image.merge("LA", [Image.fromarray(IDS), Image.new("L", (3, 2), 255)])),
    ]
    for path in files:
        labels = read_labels(path, classes=THREE, size=(2, 3))
        assert labels.dtype == np.uint8
        assert np.array_equal(labels, IDS), path


def test_ids_of_one_two_and_four_bits_are_not_stretched(tmp_path: Path) -> None:
    bits = np.array([[0, 1], [1, 0]], np.uint8)
    assert np.array_equal(
        read_labels(saved(tmp_path / "1.png", Image.fromarray(bits * 255).convert("1")), classes=THREE), bits
    )
    # Rows 0 1 and 2 0, each after a filter byte of 0.
    for depth, rows in ((2, b"\x00\x10\x00\x80"), (4, b"\x00\x01\x00\x20")):
        (tmp_path / "grey.png").write_bytes(png(2, 2, depth, 0, rows))
        assert read_labels(tmp_path / "grey.png", classes=THREE).tolist() == [[0, 1], [2, 0]]


def test_void_classes_become_void_and_the_others_close_the_gap(tmp_path: Path) -> None:
    table = Classes(
        entries=tuple(
            ClassInfo(id=i, name=n, colour=voc_colour(i), ignore=n == "void")
            for i, n in ((0, "void"), (3, "a"), (7, "b"))
        )
    )
    path = label_file(tmp_path / "a.png", np.array([[0, 3, 7, 255]], np.uint8))
    assert read_labels(path, classes=table).tolist() == [[255, 0, 1, 255]]


def test_more_than_255_classes_are_read_as_16_bits(tmp_path: Path) -> None:
    table = Classes.of(*map(str, range(300)))
    values = np.array([[0, 255, 256, 299, 65535]], np.uint16)
    labels = read_labels(label_file(tmp_path / "a.png", values), classes=table)
    assert labels.dtype == np.uint16
    assert np.array_equal(labels, values)
    write_labels(tmp_path / "b.png", labels, table)
    assert np.array_equal(read_labels(tmp_path / "b.png", classes=table), values)


def test_colours_are_looked_up_in_the_table_and_the_voc_border_is_void(tmp_path: Path) -> None:
    colours = np.array([voc_colour(i) for i in range(256)], np.uint8)
    assert np.array_equal(read_labels(label_file(tmp_path / "a.png", colours[IDS]), classes=THREE), IDS)
    opaque = np.dstack([colours[IDS], np.full(IDS.shape, 255, np.uint8)])
    assert np.array_equal(read_labels(label_file(tmp_path / "b.png", opaque), classes=THREE), IDS)


def test_a_coloured_label_is_refused_where_two_classes_share_a_colour(tmp_path: Path) -> None:
    table = Classes(entries=tuple(ClassInfo(id=i, name=n, colour=(1, 2, 3)) for i, n in enumerate("ab")))
    path = label_file(tmp_path / "a.png", np.full((2, 2, 3), (1, 2, 3), np.uint8))
    with pytest.raises(ImageError, match="the classes a and b have the same colour"):
        read_labels(path, classes=table)


def test_a_value_outside_the_table_names_file_value_and_pixels(tmp_path: Path) -> None:
    path = label_file(tmp_path / "a.png", np.array([[0, 7, 7], [9, 1, 2]], np.uint8))
    with pytest.raises(ImageError) as refusal:
        read_labels(path, classes=THREE)
    assert str(refusal.value).startswith(f"{path}: 2 values outside the table of classes: 7 (2 px), 9 (1 px); ")
    assert "expected ids 0..2 or void 255" in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([1, 2, 3], "shifted by one"),
        ([0, 100, 200], "multiples of 100: was the map stretched"),
        ([0, 1, *range(5, 60)], "resized with interpolation"),
        (range(254), "ids go on to 253, and the table ends at 2"),
        (range(255), "resized with interpolation"),  # up to a void of 255
        ([0, 4], "if the table is yours \\(classes.json\\), add them, or mark them as ignored there"),
    ],
)
def test_the_likely_cause_of_wrong_values_is_named(tmp_path: Path, values: list[int], hint: str) -> None:
    path = label_file(tmp_path / "a.png", np.array([list(values)], np.uint8))
    with pytest.raises(ImageError, match=hint):
        read_labels(path, classes=THREE)


def test_a_colour_outside_the_table_is_named(tmp_path: Path) -> None:
    path = label_file(tmp_path / "a.png", PHOTO[:1, :2])
    colour = tuple(int(v) for v in PHOTO[0, 0])
    with pytest.raises(ImageError) as refusal:
        read_labels(path, classes=THREE)
    assert f"{colour} (1 px)" in str(refusal.value)
    grey = label_file(tmp_path / "g.png", np.full((2, 2, 3), 1, np.uint8))
    with pytest.raises(ImageError, match="if these are ids, save them in one channel"):
        read_labels(grey, classes=THREE)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".jp2", ".ppm", ".gif"])
def test_labels_in_formats_that_may_change_ids_are_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(ImageError, match="which may change ids; expected PNG"):
        read_labels(label_file(tmp_path / f"a{suffix}", np.zeros((16, 16, 3), np.uint8)), classes=THREE)


def test_labels_that_are_jpeg_inside_are_refused_whatever_their_name(tmp_path: Path) -> None:
    jpeg = label_file(tmp_path / "a.jpg", IDS).rename(tmp_path / "a.png")
    tiff = label_file(tmp_path / "a.tif", np.zeros((16, 16, 3), np.uint8), compression="jpeg")
    for path, found in ((jpeg, "JPEG"), (tiff, "TIFF jpeg")):
        with pytest.raises(ImageError, match=f"a label map in {found}"):
            read_labels(path, classes=THREE)


def test_transparent_floating_animated_and_odd_labels_are_refused(tmp_path: Path) -> None:
    clear = saved(tmp_path / "clear.png", Image.new("RGBA", (2, 2), (0, 0, 0, 254)))
    real = label_file(tmp_path / "real.tif", np.zeros((2, 2), np.float32))
    frames = saved(
        tmp_path / "frames.png", Image.fromarray(IDS), save_all=True, append_images=[Image.fromarray(IDS[::-1].copy())]
    )
    cmyk = saved(tmp_path / "cmyk.tif", Image.new("CMYK", (2, 2)))
    for path, found in ((clear, "transparency"), (real, "mode F"), (frames, "2 frames"), (cmyk, "mode CMYK")):
        with pytest.raises(ImageError, match=found):
            read_labels(path, classes=THREE)


def test_a_label_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    path = label_file(tmp_path / "a.png", IDS)
    with pytest.raises(ImageError, match=r"a label map of 2 x 3 for a picture of 3 x 3 \(height x width\)$"):
        read_labels(path, classes=THREE, size=(3, 3))
    with pytest.raises(ImageError, match="its sides are swapped"):
        read_labels(path, classes=THREE, size=(3, 2))


def test_a_label_is_turned_like_its_picture(tmp_path: Path) -> None:
    path = label_file(tmp_path / "a.png", IDS, exif=turned())
    assert np.array_equal(read_labels(path, classes=THREE), np.rot90(IDS, -1))


def test_hard_labels(shared: Path) -> None:
    folder = shared / "hard_images"
    for name, found in (
        ("label_truncated.png", "truncated"),
        ("label_as_rgb.png", "colours? outside the table"),
        ("label_wrong_size.png", "350 x 480 for a picture of 360 x 480"),
    ):
        with pytest.raises(ImageError, match=found):
            read_labels(folder / name, classes=CAMVID, size=(360, 480))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_labels_written_are_the_labels_read(tmp_path: Path, data: st.DataObject) -> None:
    ids = sorted(data.draw(st.sets(st.integers(0, 400), min_size=1, max_size=9)))
    ignored = data.draw(st.sets(st.sampled_from(ids[1:]))) if ids[1:] else set()
    table = Classes(entries=tuple(ClassInfo(id=i, name=str(i), colour=voc_colour(i), ignore=i in ignored) for i in ids))
    channels = list(range(len(table)))
    if ignored or table.void not in ids:
        channels.append(table.void)
    indices = np.array([data.draw(st.lists(st.sampled_from(channels), min_size=4, max_size=4)) for _ in range(3)])
    write_labels(tmp_path / "a.png", indices, table)
    assert np.array_equal(read_labels(tmp_path / "a.png", classes=table), indices)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_written_label_shows_the_colours_of_its_classes(tmp_path: Path) -> None:
    table = Classes(entries=(ClassInfo(id=4, name="a", colour=(1, 2, 3)),))
    write_labels(tmp_path / "a.png", np.zeros((1, 1), np.uint8), table)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        assert image.getpixel((0, 0)) == 4
        assert image.convert("RGB").getpixel((0, 0)) == (1, 2, 3)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    good = np.zeros((2, 2), np.uint8)
    for path, indices, found in (
        ("a.jpg", good, "written as .png"),
        ("a.png", good + 3, "3 is no channel of 3 classes"),
        ("a.png", good.astype(float), r"expected channel numbers of shape \(H, W\), got float64"),
        ("none/a.png", good, "cannot be written: No such file or directory"),
    ):
        with pytest.raises(ImageError, match=found):
            write_labels(tmp_path / path, indices, THREE)
    with pytest.raises(ImageError, match=r"cannot write a \.xyz"):
        write_image(tmp_path / "a.xyz", PHOTO)
    with pytest.raises(ImageError, match="expected uint8 RGB"):
        write_image(tmp_path / "a.png", PHOTO[:, :, 0])
    assert list(tmp_path.iterdir()) == []


def test_values_are_counted_whatever_the_table(tmp_path: Path) -> None:
    assert label_values(label_file(tmp_path / "a.png", IDS)) == {0: 2, 1: 1, 2: 2, 255: 1}
    coloured = np.array([[[0, 0, 0], [255, 1, 2]]], np.uint8)
    assert label_values(label_file(tmp_path / "b.png", coloured)) == {(0, 0, 0): 1, (255, 1, 2): 1}


@given(st.lists(st.sampled_from([0, 1, 2, 255]), min_size=1, max_size=30))
def test_ids_in_memory_mean_what_they_mean_in_a_file(ids: list[int]) -> None:
    for dtype in (np.uint8, np.uint16, np.int64):
        found = label_channels(np.array([ids], dtype), classes=THREE, path="x.mat")
        assert found.tolist() == [ids]
        assert found.dtype == np.uint8


def test_ids_in_memory_are_refused_by_the_name_of_their_file(tmp_path: Path) -> None:
    for bad in (3, -1, 70000):
        with pytest.raises(ImageError, match=rf"x\.mat: 1 value outside the table of classes: {bad} \(1 px\)"):
            label_channels(np.array([[0, bad]]), classes=THREE, path="x.mat")
    with pytest.raises(ImageError, match=r"x\.mat: a label map of 1 x 2 for a picture of 2 x 2"):
        label_channels(np.array([[0, 1]]), classes=THREE, path="x.mat", size=(2, 2))
    assert read_values(label_file(tmp_path / "a.png", np.array([[0, 9]], np.uint8))).tolist() == [[0, 9]]
