"""A file becomes an array or an ImageError, and nothing else."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from fullyconv import images
from fullyconv.config import Classes, ClassInfo, voc_colour
from fullyconv.errors import ImageError
from fullyconv.images import (
    label_channels,
    label_values,
    overlay,
    read_depth,
    read_image,
    read_labels,
    read_size,
    read_values,
    visible,
    write_image,
    write_labels,
)

CAMVID = Classes(
    entries=tuple(ClassInfo(id=i, name=f"class {i}", colour=voc_colour(i), ignore=i == 11) for i in range(12))
)
THREE = Classes.of("ground", "cat", "dog")
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def label_file(path: Path, values: np.ndarray, **options: object) -> Path:
    return saved(path, Image.fromarray(values), **options)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG by hand, of kinds that Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# The sixty hard files ------------------------------------------------------------------------------------------------

READS = {
    "12in16bit.tif": ((100, 100), "16 bits scaled to 8 (divided by 257; values 0..30)"),
    "16_bit_noise.tif": ((32, 32), "16 bits scaled"),
    "apng_16bit.png": ((64, 128), "16 bits a channel reduced to 8"),
    "apng_frames.png": ((64, 128), "frame 0 of 5"),
    "app13-multiple.jpg": ((160, 256), None),
    "bw_gradient.png": ((10, 256), None),
    "dispose_bgnd.gif": ((100, 100), "frame 0 of 5"),
    "exif_imagemagick_orientation.png": ((512, 512), "orientation 3"),
    "exif_landscape_3.jpg": ((1200, 1800), "orientation 3"),
    "exif_portrait_8.jpg": ((1800, 1200), "orientation 8"),
    "frozenpond.mpo": ((480, 640), "frame 0 of 2"),
    "g4_orientation_6.tif": ((88, 590), "orientation 6"),
    "geotiff_rgb.tif": ((400, 400), None),
    "grey_alpha.png": ((32, 200), "composed on (255, 255, 255)"),
    "hopper.psd": ((128, 128), "2 layers, flattened"),
    "hopper_16bit.pgm": ((128, 128), "16 bits scaled to 8 (divided by 257; values 0..65535)"),
    "hopper_16bit_qtables.jpg": ((128, 128), None),
    "hopper_bigtiff.tif": ((128, 128), None),
    "hopper_float_dpi_2.tif": ((128, 128), None),
    "hopper_gray.jpg": ((128, 128), None),
    "hopper_lzma.tif": ((128, 128), None),
    "hopper_orientation_2.jpg": ((128, 128), "orientation 2"),
    "hopper_orientation_5.jpg": ((128, 128), "orientation 5"),
    "hopper_orientation_6.webp": ((128, 128), "orientation 6"),
    "hopper_orientation_8.jpg": ((128, 128), "orientation 8"),
    "i_trns.png": ((64, 64), "composed on"),
    "icc_profile_big.jpg": ((250, 425), None),
    "iss634.gif": ((245, 245), "frame 0 of 42"),
    "jpeg_ff00_header.jpg": ((225, 300), None),
    "jpeg_named.png": ((360, 480), None),
    "l_trns.png": ((64, 64), "composed on"),
    "lab.tif": ((10, 10), "LAB turned into RGB"),
    "label_as_rgb.png": ((360, 480), None),
    "label_wrong_size.png": ((350, 480), None),
    "multipage.tiff": ((10, 10), "frame 0 of 3"),
    "multipage_multiple_frame_loop.tiff": ((10, 10), "frame 0 of 2"),
    "no_palette.gif": ((1, 1), "frame 0 of 2"),
    "one_row.png": ((1, 700), None),
    "p_trns_single.png": ((64, 64), "composed on"),
    "padded_idat.png": ((10, 256), None),
    "pil123p.png": ((150, 162), "composed on"),
    "pil_sample_cmyk.jpg": ((100, 100), "CMYK turned into RGB"),
    "rgb_trns.png": ((64, 64), "composed on"),
    "tiff_16bit_RGBa.tiff": ((40, 100), "16 bits a channel reduced to 8"),
    "tiff_strip_cmyk_jpeg.tif": ((100, 100), "CMYK turned into RGB"),
    "tiff_tiled_ycbcr_jpeg_2x2_sampling.tif": ((360, 480), None),
    "tiff_wrong_bits_per_sample.tiff": ((53, 52), "composed on"),
}
"""File -> shape, and a part of its note; None: no note."""

REFUSED = {
    "broken_data_stream.png": "truncated or corrupt",
    "crash_1.tif": "truncated or corrupt",
    "crash_2.tif": "truncated or corrupt",
    "decompression_bomb.ico": "too large to decode",
    "empty.jpg": "empty (0 bytes)",
    "geotiff_corrupt.tif": "truncated or corrupt",
    "geotiff_float32.tif": "floats in -1.88..1.41; expected 0..1 or 0..255",
    "label_truncated.png": "truncated",
    "oom.tif": "TIFF by its first bytes, but damaged",
    "png_decompression_dos.png": "Decompressed data too large",
    "reallybig.bmp": "too large to decode",
    "shortfile.bmp": "truncated",
    "truncated_2bytes.jpg": "truncated",
}


@pytest.mark.parametrize("name", READS)
def test_hard_files_that_are_pictures_are_read_and_what_was_done_is_said(shared: Path, name: str) -> None:
    shape, note = READS[name]
    read = read_image(shared / "hard_images" / name)
    assert read.pixels.shape == (*shape, 3)
    assert read.pixels.dtype == np.uint8
    assert read.pixels.flags.c_contiguous
    assert read.pixels.flags.writeable
    assert read_size(shared / "hard_images" / name) == shape
    if note is None:
        assert read.notes == ()
    else:
        assert any(note in said for said in read.notes), read.notes


@pytest.mark.parametrize("name", REFUSED)
def test_hard_files_that_are_no_pictures_are_refused_in_one_line_with_their_path(shared: Path, name: str) -> None:
    path = shared / "hard_images" / name
    for _ in range(2):  # Pillow forgives a second load; the door does not
        with pytest.raises(ImageError) as refusal:
            read_image(path)
        assert refusal.value.path == path
        assert REFUSED[name] in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_every_hard_file_has_a_stated_outcome(shared: Path) -> None:
    files = {path.name for path in (shared / "hard_images").iterdir()} - {"INDEX.md"}
    assert files == READS.keys() | REFUSED.keys()


# Modes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "P", "I;16", "L"])
def test_exif_orientation_is_applied_in_every_mode(tmp_path: Path, mode: str, orientation: int) -> None:
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (5, 9), dtype=np.uint16))
    else:
        image = Image.fromarray(PHOTO[:5, :9]).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", image, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    assert upright is not None
    read = read_image(path)
    assert np.array_equal(read.pixels, read_image(upright).pixels)
    assert read_size(path) == read.pixels.shape[:2] == ((9, 5) if orientation >= 5 else (5, 9))
    assert any("orientation" in note for note in read.notes) == (orientation > 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_become_the_rgb_that_pillow_gives(mode: str) -> None:
    image = Image.fromarray(PHOTO).convert(mode)
    read = read_image(image)
    assert np.array_equal(read.pixels, np.array(image.convert("RGB")))
    assert bool(read.notes) == (mode in {"CMYK", "YCbCr", "HSV"})


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow was built without colour management")
def test_lab_becomes_srgb() -> None:
    grey = Image.merge("LAB", [Image.new("L", (2, 2), value) for value in (255, 128, 128)])
    assert (read_image(grey).pixels >= 252).all()


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_alpha_is_composed_on_the_background_and_said(mode: str) -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (100, 100, 100, 255)
    image = Image.fromarray(rgba)
    if mode == "PA":  # made by hand: Pillow's own conversion forgets the alpha
        image = Image.fromarray(rgba[..., 0]).convert("P").convert("PA")
        image.putalpha(Image.fromarray(rgba[..., 3]))
    else:
        image = image.convert("LA").convert(mode) if mode in {"LA", "La"} else image.convert(mode)
    read = read_image(image, background=(9, 8, 7))
    assert read.pixels[0, 0].tolist() == [100, 100, 100]
    assert read.pixels[1, 1].tolist() == [9, 8, 7]
    assert read.notes == ("transparent parts composed on (9, 8, 7)",)


def test_alpha_that_hides_nothing_is_dropped_without_a_note() -> None:
    opaque = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    read = read_image(Image.fromarray(opaque))
    assert np.array_equal(read.pixels, PHOTO)
    assert read.notes == ()


@pytest.mark.parametrize(
    ("image", "transparent"),
    [
        (Image.fromarray(np.array([[7, 200]], np.uint8)), 7),
        (Image.fromarray(np.array([[7, 60000]], np.uint16)), 7),
        (Image.fromarray(np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)), (1, 2, 3)),
        (Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P"), 0),
        (Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), 0),
    ],
    ids=["L", "I;16", "RGB", "P", "1"],
)
def test_a_transparent_colour_shows_the_background(tmp_path: Path, image: Image.Image, transparent: object) -> None:
    path = saved(tmp_path / "a.png", image, transparency=transparent)
    read = read_image(path, background=(0, 255, 1))
    assert read.pixels[0, 0].tolist() == [0, 255, 1]
    assert read.pixels[0, 1].tolist() != [0, 255, 1]
    assert "composed on" in read.notes[-1]


def test_a_transparent_colour_of_sixteen_bits_shows_the_background(tmp_path: Path) -> None:
    path, colour = tmp_path / "a.png", b"\x12\x34\x56\x78\x9a\xbc"
    path.write_bytes(png(2, 1, 16, 2, b"\x00" + colour + b"\xff" * 6, transparent=colour))
    read = read_image(path, background=(1, 2, 3))
    assert read.pixels.tolist() == [[[1, 2, 3], [255, 255, 255]]]
    assert read.notes == ("16 bits a channel reduced to 8", "transparent parts composed on (1, 2, 3)")


def test_sixteen_bits_are_scaled_by_one_rule_for_all_files(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        read = read_image(label_file(tmp_path / name, values))
        assert read.pixels[0, :, 0].tolist() == [0, 1, 128, 255]
        assert "divided by 257; values 0..65535" in read.notes[0]


def test_a_sixteen_bit_picture_that_will_look_black_is_said_to_be_dark(tmp_path: Path) -> None:
    assert "dark" in read_image(label_file(tmp_path / "a.png", np.array([[0, 4000]], np.uint16))).notes[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.4, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
    ],
)
def test_floats_and_wide_integers_are_taken_by_the_range_that_holds_them(
    tmp_path: Path, values: np.ndarray, expected: list[int]
) -> None:
    read = read_image(label_file(tmp_path / "a.tif", values))
    assert read.pixels[0, :, 1].tolist() == expected
    assert read.notes


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-0.1, 1.0]], np.float32),
        np.array([[0.0, 256.0]], np.float32),
        np.array([[np.nan, 1.0]], np.float32),
        np.array([[np.inf, 1.0]], np.float32),
        np.array([[-1, 1]], np.int32),
        np.array([[0, 65536]], np.int32),
    ],
)
def test_values_that_have_no_meaning_as_colour_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"a\.tif: .*expected 0\.\."):
        read_image(label_file(tmp_path / "a.tif", values))


# What is not a file --------------------------------------------------------------------------------------------------


def test_arrays_are_taken_as_pictures() -> None:
    assert read_image(PHOTO).pixels is PHOTO
    assert np.array_equal(read_image(PHOTO[:, :, 0]).pixels, np.repeat(PHOTO[:, :, :1], 3, axis=2))
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (read_image(clear).pixels == 255).all()
    frozen = PHOTO.copy()
    frozen.flags.writeable = False
    assert read_image(frozen).pixels.flags.writeable
    assert read_image(PHOTO[:, ::-1]).pixels.flags.c_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2, 3), np.float32),
        np.zeros((3, 2, 2, 3), np.uint8),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((0, 2, 3), np.uint8),
        np.zeros((2, 2), bool),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"expected uint8 of shape \(H, W, 3\)"):
        read_image(array)


def test_missing_files_folders_and_text_are_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("<!DOCTYPE html>")
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="a folder; expected a picture"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=r"starts with b'<!DOCTYPE html>'"):
        read_image(tmp_path / "text.png")
    with pytest.raises(ImageError, match="EPS is a drawing program"):
        read_image(tmp_path / "page.eps")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image("/dev/null")


# Bombs, warnings, threads --------------------------------------------------------------------------------------------


def test_the_pixel_limit_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PHOTO))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"declares 20 x 30 = 600 pixels, more than the limit of 599"):
        read_image(path, max_pixels=599)


def test_a_limit_above_pillows_own_is_honoured_and_pillow_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PHOTO))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="too large to decode"):
        read_image(path, max_pixels=150)
    assert read_image(path, max_pixels=1000).pixels.shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pillows_warnings_do_not_leak_and_the_filters_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    path = saved(tmp_path / "a.png", Image.fromarray(PHOTO))
    before = list(warnings.filters)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path):
        pass  # Pillow does warn
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        inside = list(warnings.filters)
        read_image(path)
        assert list(warnings.filters) == inside
    assert seen == []
    assert list(warnings.filters) == before


def test_threads_that_read_at_once_leave_no_filter_behind(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(PHOTO))
    before = list(warnings.filters)
    start = threading.Barrier(8)

    def read(_: int) -> bool:
        start.wait()
        return all(np.array_equal(read_image(path).pixels, PHOTO) for _ in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert list(warnings.filters) == before


def _encoded(kind: str, image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


SEEDS = {
    "png": _encoded("PNG", Image.fromarray(PHOTO), exif=_turned()),
    "palette": _encoded("PNG", Image.fromarray(PHOTO).convert("P"), transparency=3),
    "apng": _encoded("PNG", Image.fromarray(PHOTO), save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]),
    "jpeg": _encoded("JPEG", Image.fromarray(PHOTO), exif=_turned()),
    "cmyk": _encoded("JPEG", Image.fromarray(PHOTO).convert("CMYK")),
    "tiff": _encoded("TIFF", Image.fromarray(PHOTO), exif=_turned()),
    "lzw": _encoded("TIFF", Image.fromarray(PHOTO), compression="tiff_lzw"),
    "gif": _encoded("GIF", Image.fromarray(PHOTO), save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]),
    "bmp": _encoded("BMP", Image.fromarray(PHOTO)),
    "ico": _encoded("ICO", Image.fromarray(PHOTO)),
    "webp": _encoded("WEBP", Image.fromarray(PHOTO), exif=_turned()),
    "ppm": _encoded("PPM", Image.fromarray(PHOTO)),
    "tga": _encoded("TGA", Image.fromarray(PHOTO)),
}


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(SEEDS)),
    keep=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_broken_files_give_an_array_or_an_image_error_and_no_warning(
    tmp_path: Path, kind: str, keep: float, edits: list[tuple[float, int]]
) -> None:
    data = bytearray(SEEDS[kind])
    for where, value in edits:
        # Headers are short and matter most: half of the edits fall into the first tenth.
        data[int(where**3 * len(data))] = value
    path = tmp_path / "broken"
    path.write_bytes(data[: max(1, round(len(data) * (1 if keep > 0.5 else 2 * keep)))])
    for read in (
        lambda: read_image(path, max_pixels=10**6).pixels,
        lambda: read_labels(path, classes=THREE, max_pixels=10**6),
    ):
        try:
            array = read()
        except ImageError as error:
            told = error
        else:
            assert array.dtype == np.uint8
            assert array.size > 0
            continue
        assert told.path == path
        assert "\n" not in str(told)


# Labels --------------------------------------------------------------------------------------------------------------

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
        (range(60), "resized with interpolation"),
        ([0, 4], "add them to the table"),
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
    path = label_file(tmp_path / "a.png", IDS, exif=_turned())
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


def test_values_are_counted_whatever_the_table(tmp_path: Path) -> None:
    assert label_values(label_file(tmp_path / "a.png", IDS)) == {0: 2, 1: 1, 2: 2, 255: 1}
    coloured = np.array([[[0, 0, 0], [255, 1, 2]]], np.uint8)
    assert label_values(label_file(tmp_path / "b.png", coloured)) == {(0, 0, 0): 1, (255, 1, 2): 1}


# Writing -------------------------------------------------------------------------------------------------------------


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


def test_an_interrupted_write_keeps_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", PHOTO)

    def cut(self: Image.Image, file: io.BytesIO, *args: object, **kwargs: object) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "a.png", PHOTO[::-1].copy())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert np.array_equal(read_image(tmp_path / "a.png").pixels, PHOTO)


def test_pictures_written_losslessly_are_the_pictures_read(tmp_path: Path) -> None:
    for suffix in (".png", ".tif", ".bmp"):
        write_image(tmp_path / f"a{suffix}", PHOTO)
        assert np.array_equal(read_image(tmp_path / f"a{suffix}").pixels, PHOTO)


def test_an_overlay_tints_classes_and_leaves_void_alone() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    tinted = overlay(image, np.array([[0, 1, 255]], np.uint8), Classes.of("ground", "cat"), alpha=0.5)
    assert tinted.tolist() == [[[50, 50, 50], [114, 50, 50], [100, 100, 100]]]
    assert np.array_equal(overlay(image, np.zeros((1, 3), np.uint8), THREE, alpha=0), image)


# Depth and other channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint16), (".tif", np.int32), (".tif", np.float32)],
)
def test_depth_is_read_as_it_is_stored(tmp_path: Path, suffix: str, dtype: type) -> None:
    stored = np.array([[0, 1, 200], [255, 7, 3]], dtype) * dtype(1 if dtype is np.uint8 else 100)
    found = read_depth(label_file(tmp_path / f"a{suffix}", stored))
    assert found.dtype == np.float32
    assert np.array_equal(found, stored.astype(np.float32))


def test_depth_of_four_bits_is_not_stretched(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(2, 1, 4, 0, b"\x00\x1f"))
    assert read_depth(tmp_path / "a.png").tolist() == [[1, 15]]


def test_depth_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    found = read_depth(saved(tmp_path / "a.png", Image.fromarray(stored), exif=exif))
    assert np.array_equal(found, np.rot90(stored, -1))


def test_what_is_no_depth_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="a depth map in JPEG, which may change depths; expected PNG"):
        read_depth(saved(tmp_path / "a.jpg", Image.new("L", (4, 3))))
    for mode in ("RGB", "P", "LA", "1"):
        with pytest.raises(ImageError, match=f"a depth map in mode {mode}; expected one channel of 8, 16 or 32 bits"):
            read_depth(saved(tmp_path / "a.png", Image.new(mode, (4, 3))))
    whole = label_file(tmp_path / "b.png", RNG.integers(0, 9, (50, 50), np.uint8)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:200])
    with pytest.raises(ImageError, match=r"b\.png: truncated or corrupt"):
        read_depth(tmp_path / "b.png")
    with pytest.raises(ImageError, match="no such file"):
        read_depth(tmp_path / "none.png")
    with pytest.raises(ImageError, match="declares 3 x 4 = 12 pixels, more than the limit of 11"):
        read_depth(saved(tmp_path / "c.png", Image.new("L", (4, 3))), max_pixels=11)


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_other_channels_are_taken_as_they_are(channels: int, dtype: type) -> None:
    array = RNG.integers(0, 256, (5, 7, channels)).astype(dtype)
    read = read_image(array, channels=channels)
    assert read.pixels.dtype == dtype
    assert np.array_equal(read.pixels, array)
    assert read.notes == ()


def test_what_has_not_the_channels_that_are_read_is_refused(tmp_path: Path) -> None:
    for array, found in (
        (PHOTO, r"uint8 \(20, 30, 3\)"),
        (np.zeros((5, 7), np.uint8), r"uint8 \(5, 7\)"),
        (np.zeros((5, 7, 4)), r"float64 \(5, 7, 4\)"),
        (np.zeros((0, 7, 4), np.uint8), r"uint8 \(0, 7, 4\)"),
    ):
        with pytest.raises(ImageError, match=rf"expected uint8 or float32 of shape \(H, W, 4\), got {found}"):
            read_image(array, channels=4)
    with pytest.raises(ImageError, match="NaN or infinity"):
        read_image(np.full((2, 2, 4), np.nan, np.float32), channels=4)
    path = saved(tmp_path / "a.png", Image.fromarray(PHOTO))
    with Image.open(path) as opened:
        for picture in (path, opened):
            with pytest.raises(
                ImageError, match=r"a\.png: one file, where 4 channels are read; give an array \(H, W, 4"
            ):
                read_image(picture, channels=4)


def test_of_other_channels_something_can_be_shown() -> None:
    assert np.array_equal(visible(PHOTO), PHOTO)
    fused = np.concatenate([PHOTO.astype(np.float32), np.full((20, 30, 1), 7.8, np.float32)], axis=2)
    assert np.array_equal(visible(fused), PHOTO)
    assert np.array_equal(visible(np.concatenate([PHOTO, PHOTO[::-1]], axis=2)), PHOTO)
    grey = visible(np.array([[[7.0], [8.0], [9.0]]], np.float32))
    assert grey[0, :, 0].tolist() == [0, 128, 255]
    assert (grey == grey[..., :1]).all()
    assert visible(np.full((2, 2, 1), 5, np.float32)).max() == 0
    assert np.array_equal(overlay(fused, np.zeros((20, 30), np.uint8), THREE, 0), PHOTO)


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


def test_a_bomb_in_an_icon_finds_no_limit_that_another_thread_has_lifted(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 8, 6, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png
    (tmp_path / "bomb.ico").write_bytes(icon)
    with ThreadPoolExecutor(1) as pool:
        with images._pillow_allows(10**12):  # another thread opens a large picture
            reading = pool.submit(images.read_image, tmp_path / "bomb.ico")
            wait([reading], timeout=0.5)
        with pytest.raises(ImageError, match="too large to decode"):
            reading.result()
