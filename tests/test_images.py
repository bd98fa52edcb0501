"""A picture becomes (H, W, 3) uint8 RGB, upright, and what was done to it is said."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import PHOTO, RNG, THREE, label_file, png, saved
from PIL import Image, ImageOps, features

from fullyconv.config import Classes
from fullyconv.errors import ImageError
from fullyconv.images import overlay, read_image, visible, write_image
from fullyconv.opening import read_size

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


def test_a_kind_of_bmp_that_pillow_does_not_decode_is_not_called_truncated(tmp_path: Path) -> None:
    """Sixteen greys in four bits each, as Pillow 12 stumbles over; another may read it."""
    greys = b"".join(struct.pack("<4B", grey, grey, grey, 0) for grey in range(16))
    info = struct.pack("<IiiHHIIiiII", 40, 10, 6, 1, 4, 0, 48, 2835, 2835, 16, 16)
    path = tmp_path / "greys.bmp"
    path.write_bytes(b"BM" + struct.pack("<IHHI", 166, 0, 0, 118) + info + greys + bytes(range(48)))
    with Image.open(path) as image:
        if "L" not in image.tile[0].args:
            pytest.skip("this Pillow reads it")
    with pytest.raises(ImageError, match=r"greys.bmp: of a kind .* save it again as PNG"):
        read_image(path)


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


def test_pictures_written_losslessly_are_the_pictures_read(tmp_path: Path) -> None:
    for suffix in (".png", ".tif", ".bmp"):
        write_image(tmp_path / f"a{suffix}", PHOTO)
        assert np.array_equal(read_image(tmp_path / f"a{suffix}").pixels, PHOTO)


def test_an_overlay_tints_classes_and_leaves_void_alone() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    tinted = overlay(image, np.array([[0, 1, 255]], np.uint8), Classes.of("ground", "cat"), alpha=0.5)
    assert tinted.tolist() == [[[50, 50, 50], [114, 50, 50], [100, 100, 100]]]
    assert np.array_equal(overlay(image, np.zeros((1, 3), np.uint8), THREE, alpha=0), image)


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


@pytest.mark.parametrize(("value", "dark"), [(b"\x0f\xff", True), (b"\x10\x00", False)])
def test_twelve_bits_in_sixteen_are_told_for_colours_as_for_grey(tmp_path: Path, value: bytes, dark: bool) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 16, 2, b"\x00" + value * 6))
    (note,) = read_image(path).notes
    assert note.startswith("16 bits a channel reduced to 8")
    assert ("it uses few of them and is dark: rescale it" in note) is dark
