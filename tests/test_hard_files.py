"""What becomes of hard files: real ones, and odd ones made here, through every door that a picture comes in by."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_images import png

from fullyconv import presets
from fullyconv.building import build
from fullyconv.checking import check
from fullyconv.config import Classes
from fullyconv.datasets.folder import open_folder
from fullyconv.errors import CONTROL, DatasetError, FullyConvError, ImageError
from fullyconv.folders import PictureFile, find_pictures, segment_files, write_results
from fullyconv.images import read_image, write_image
from fullyconv.inference import Predictor
from fullyconv.labels import read_labels, write_labels
from fullyconv.opening import read_size

CLASSES = Classes.of(*"abcdefghijkl")

# The sixty of ../shared/data/hard_images -----------------------------------------------------------------------------

BROKEN, LARGE = "truncated or corrupt", "too large to decode"

# fmt: off
HARD = {
    # file: (read_image, read_labels with twelve classes, predict, check): what is done, or a part of why it is not
    "12in16bit.tif": ("reads", "outside the table", "done", "fine"),
    "16_bit_noise.tif": ("reads", "outside the table", "done", "fine"),
    "apng_16bit.png": ("reads", "16-bit colours", "done", "fine"),
    "apng_frames.png": ("reads", "frames; expected one", "done", "fine"),
    "app13-multiple.jpg": ("reads", "which may change ids", "done", "fine"),
    "broken_data_stream.png": (BROKEN, BROKEN, BROKEN, BROKEN),
    "bw_gradient.png": ("reads", "outside the table", "done", "fine"),
    "crash_1.tif": (BROKEN, "which may change ids", BROKEN, BROKEN),
    "crash_2.tif": (BROKEN, "which may change ids", BROKEN, BROKEN),
    "decompression_bomb.ico": (LARGE, LARGE, LARGE, LARGE),
    "dispose_bgnd.gif": ("reads", "which may change ids", "done", "fine"),
    "empty.jpg": ("empty (0 bytes)", "empty (0 bytes)", "empty (0 bytes)", "empty (0 bytes)"),
    "exif_imagemagick_orientation.png": ("reads", "outside the table", "done", "fine"),
    "exif_landscape_3.jpg": ("reads", "which may change ids", "done", "fine"),
    "exif_portrait_8.jpg": ("reads", "which may change ids", "done", "fine"),
    "frozenpond.mpo": ("reads", "which may change ids", "done", "fine"),
    "g4_orientation_6.tif": ("reads", "reads", "done", "fine"),
    "geotiff_corrupt.tif": (BROKEN, "which may change ids", BROKEN, BROKEN),
    "geotiff_float32.tif": ("nothing says", "in mode F", "nothing says", "nothing says"),
    "geotiff_rgb.tif": ("reads", "outside the table", "done", "fine"),
    "grey_alpha.png": ("reads", "transparency", "done", "fine"),
    "hopper.psd": ("reads", "which may change ids", "done", "fine"),
    "hopper_16bit.pgm": ("reads", "which may change ids", "done", "fine"),
    "hopper_16bit_qtables.jpg": ("reads", "which may change ids", "done", "fine"),
    "hopper_bigtiff.tif": ("reads", "outside the table", "done", "fine"),
    "hopper_float_dpi_2.tif": ("reads", "outside the table", "done", "fine"),
    "hopper_gray.jpg": ("reads", "which may change ids", "done", "fine"),
    "hopper_lzma.tif": ("reads", "outside the table", "done", "fine"),
    "hopper_orientation_2.jpg": ("reads", "which may change ids", "done", "fine"),
    "hopper_orientation_5.jpg": ("reads", "which may change ids", "done", "fine"),
    "hopper_orientation_6.webp": ("reads", "which may change ids", "done", "fine"),
    "hopper_orientation_8.jpg": ("reads", "which may change ids", "done", "fine"),
    "i_trns.png": ("reads", "outside the table", "done", "fine"),
    "icc_profile_big.jpg": ("reads", "which may change ids", "done", "fine"),
    "iss634.gif": ("reads", "which may change ids", "done", "fine"),
    "jpeg_ff00_header.jpg": ("reads", "which may change ids", "done", "fine"),
    "jpeg_named.png": ("reads", "which may change ids", "done", "fine"),
    "l_trns.png": ("reads", "outside the table", "done", "fine"),
    "lab.tif": ("reads", "in mode LAB", "done", "fine"),
    "label_as_rgb.png": ("reads", "outside the table", "done", "fine"),
    "label_truncated.png": (BROKEN, BROKEN, BROKEN, BROKEN),
    "label_wrong_size.png": ("reads", "reads", "done", "fine"),
    "multipage.tiff": ("reads", "frames; expected one", "done", "fine"),
    "multipage_multiple_frame_loop.tiff": ("reads", "frames; expected one", "done", "fine"),
    "no_palette.gif": ("reads", "which may change ids", "done", "fine"),
    "one_row.png": ("reads", "outside the table", "done", "fine"),
    "oom.tif": ("damaged, or of a kind", "damaged, or of a kind", "damaged, or of a kind", "damaged, or of a kind"),
    "p_trns_single.png": ("reads", "outside the table", "done", "fine"),
    "padded_idat.png": ("reads", "outside the table", "done", "fine"),
    "pil123p.png": ("reads", "outside the table", "done", "fine"),
    "pil_sample_cmyk.jpg": ("reads", "which may change ids", "done", "fine"),
    "png_decompression_dos.png": (BROKEN, BROKEN, BROKEN, BROKEN),
    "reallybig.bmp": (LARGE, LARGE, LARGE, LARGE),
    "rgb_trns.png": ("reads", "outside the table", "done", "fine"),
    "shortfile.bmp": (BROKEN, BROKEN, BROKEN, BROKEN),
    "tiff_16bit_RGBa.tiff": ("reads", "16-bit colours", "done", "fine"),
    "tiff_strip_cmyk_jpeg.tif": ("reads", "which may change ids", "done", "fine"),
    "tiff_tiled_ycbcr_jpeg_2x2_sampling.tif": ("reads", "which may change ids", "done", "fine"),
    "tiff_wrong_bits_per_sample.tiff": ("reads", "transparency", "done", "fine"),
    "truncated_2bytes.jpg": (BROKEN, "which may change ids", BROKEN, BROKEN),
}
# fmt: on


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = build(presets.fcn32s("tinyvgg", len(CLASSES), weights=None), classes={"out": CLASSES})
    return Predictor(model, device="cpu")


def outcome(read: Callable[[], Any], path: Path, done: str) -> str:
    """``done``, or the message, which is one line and names the file; twice, since Pillow forgives a second load."""
    said = []
    for _ in range(2):
        try:
            read()
        except ImageError as error:
            said.append((error.path, str(error)))
        else:
            return done
    assert said[0] == said[1]
    assert said[0][0] == path
    assert said[0][1].startswith(f"{path}: ")
    assert not CONTROL.search(said[0][1])
    return said[0][1]


def test_every_hard_file_is_in_the_table(shared: Path) -> None:
    assert {path.name for path in (shared / "hard_images").iterdir()} - {"INDEX.md"} == HARD.keys()


@pytest.mark.parametrize("name", HARD)
def test_a_hard_file_is_read_as_picture_and_labels_as_the_table_says(
    shared: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    path = shared / "hard_images" / name
    assert HARD[name][0] in outcome(lambda: read_image(path), path, "reads")
    assert HARD[name][1] in outcome(lambda: read_labels(path, classes=CLASSES), path, "reads")
    assert capfd.readouterr() == ("", "")


def test_predict_does_with_each_hard_file_what_the_table_says(
    shared: Path, tmp_path: Path, predictor: Predictor, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = [PictureFile(shared / "hard_images" / name, name) for name in HARD]
    found = {outcome.path.name: outcome for outcome in segment_files(predictor, pictures, tmp_path / "out")}
    assert found.keys() == HARD.keys()
    for name, (_, _, expected, _) in HARD.items():
        assert found[name].status == ("done" if expected == "done" else "failed"), found[name].error
        assert expected == "done" or expected in found[name].error
        assert not CONTROL.search(found[name].error)
        assert all(path.exists() for path in found[name].outputs.values())
    assert len(list((tmp_path / "out").iterdir())) == sum(row[2] == "done" for row in HARD.values())
    assert capfd.readouterr() == ("", "")


def test_check_finds_of_the_hard_files_those_that_the_table_says(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for half in ("images", "labels"):
        for split in ("train", "val"):
            (tmp_path / half / split).mkdir(parents=True)
    write_image(tmp_path / "images/val/a.png", SMOOTH)
    write_labels(tmp_path / "labels/val/a.png", BLACK, CLASSES)
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghijkl"))
    for name, row in HARD.items():
        suffix = Path(name).suffix if Path(name).suffix != ".mpo" else ".jpg"
        picture = tmp_path / "images/train" / f"{name.replace('.', '-')}{suffix}"
        picture.symlink_to(shared / "hard_images" / name)
        size = read_image(picture).pixels.shape[:2] if row[0] == "reads" else (4, 4)
        write_labels(tmp_path / "labels/train" / f"{picture.stem}.png", np.zeros(size, np.uint8), CLASSES)
    data = open_folder(tmp_path)
    assert len(data) == len(HARD)
    told = {Path(file).stem: found for found in check(data).findings if found.kind == "corrupt" for file in found.files}
    for name, (_, _, _, expected) in HARD.items():
        finding = told.get(name.replace(".", "-"))
        if expected == "fine":
            assert finding is None
        else:
            assert finding is not None
            assert finding.severity == "error"
            assert expected in finding.detail
    assert capfd.readouterr() == ("", "")


# Odd files, by family ------------------------------------------------------------------------------------------------

Y, X = np.mgrid[0:40, 0:60]
SMOOTH = np.dstack([X * 4, Y * 6, X + Y]).astype(np.uint8)


def encoded(kind: str, pixels: np.ndarray = SMOOTH, mode: str = "RGB", **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def qoi(pixels: np.ndarray = SMOOTH) -> bytes:
    """Every pixel spelled out; Pillow 11.0 reads this format, and does not write it yet."""
    height, width, _ = pixels.shape
    spelled = b"".join(b"\xfe" + pixel.tobytes() for pixel in pixels.reshape(-1, 3))
    return struct.pack(">4sIIBB", b"qoif", width, height, 3, 0) + spelled + bytes(7) + b"\1"


def rows(pixels: np.ndarray) -> bytes:
    """Scanlines of a PNG, unfiltered."""
    return b"".join(b"\0" + line.tobytes() for line in pixels)


def tiff(
    width: int,
    height: int,
    bits: int,
    data: bytes,
    *,
    photometric: int = 1,
    samples: int = 1,
    kind: int = 1,
    planes: int = 1,
    pages: int = 1,
) -> bytes:
    """A TIFF by hand, of kinds that Pillow does not write: one strip, each of its pages the same."""
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 0, 277: samples, 278: height}
    fields |= {279: len(data), 284: planes, 339: kind}
    size = 2 + 12 * len(fields) + 4
    lists = 8 + size * pages
    of_lists = b"".join(struct.pack(f"<{samples}H", *[number] * samples) for number in (bits, kind))
    out = bytearray(struct.pack("<2sHI", b"II", 42, 8))
    for page in range(pages):
        out += struct.pack("<H", len(fields))
        for tag, value in sorted(fields.items()):
            if tag in (258, 339) and samples > 2:
                at = lists + (0 if tag == 258 else 2 * samples)
                out += struct.pack("<HHII", tag, 3, samples, at)
            elif tag in (258, 339):
                out += struct.pack("<HHIHH", tag, 3, samples, value, value if samples == 2 else 0)
            else:
                out += struct.pack("<HHII", tag, 4, 1, lists + len(of_lists) if tag == 273 else value)
        out += struct.pack("<I", 8 + size * (page + 1) if page < pages - 1 else 0)
    return bytes(out + of_lists + data)


def adam7(pixels: np.ndarray) -> bytes:
    """Scanlines of an interlaced PNG."""
    steps = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
    parts = (pixels[top::down, left::across] for left, across, top, down in steps)
    return b"".join(rows(part) for part in parts if part.size)


def interlaced(whole: bytes) -> bytes:
    """The PNG, said to be interlaced."""
    header = whole[16:28] + b"\x01"
    return whole[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + whole[33:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(whole: bytes, extra: bytes) -> bytes:
    """The PNG with another chunk behind its header."""
    return whole[:33] + extra + whole[33:]


WHOLE = png(60, 40, 8, 2, rows(SMOOTH))
BLACK = np.zeros((40, 60), np.uint8)
NUMBERS = np.arange(12, dtype=np.uint8).reshape(3, 4)
JPEG, GIF, BMP = encoded("JPEG"), encoded("GIF"), encoded("BMP")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(owned) (w) file closefile\n"

EXACT: dict[str, tuple[bytes, np.ndarray]] = {
    "interlaced.png": (interlaced(png(60, 40, 8, 2, adam7(SMOOTH))), SMOOTH),
    "interlaced-narrow.png": (interlaced(png(3, 1, 8, 2, adam7(SMOOTH[:1, :3]))), SMOOTH[:1, :3]),
    "black.png": (png(60, 40, 8, 0, rows(BLACK)), np.repeat(BLACK[..., None], 3, 2)),
    "no-end.png": (WHOLE[:-12], SMOOTH),
    "too-many-rows.png": (png(60, 40, 8, 2, rows(SMOOTH) * 2), SMOOTH),
    "profile-junk.png": (with_chunk(WHOLE, chunk(b"iCCP", b"x\0\0" + zlib.compress(b"junk"))), SMOOTH),
    "upside-down.bmp": (BMP[:22] + struct.pack("<i", -40) + BMP[26:], SMOOTH[::-1]),
    "white-is-zero.tif": (tiff(4, 3, 8, NUMBERS.tobytes(), photometric=0), np.repeat(255 - NUMBERS[..., None], 3, 2)),
    "white-is-zero-16.tif": (
        tiff(4, 3, 16, (NUMBERS.astype("<u2") * 257).tobytes(), photometric=0),
        np.repeat(255 - NUMBERS[..., None], 3, 2),
    ),
    "one.tga": (encoded("TGA"), SMOOTH),
    "one.sgi": (encoded("SGI"), SMOOTH),
    "one.pcx": (encoded("PCX"), SMOOTH),
    "one.qoi": (qoi(), SMOOTH),
    "one.ppm": (encoded("PPM"), SMOOTH),
    "one.webp": (encoded("WEBP", lossless=True), SMOOTH),
    "lzw.tif": (encoded("TIFF", compression="tiff_lzw"), SMOOTH),
    "trailing.png": (WHOLE + b"junk" * 99, SMOOTH),
}

ODD: dict[str, tuple[bytes, str]] = {
    "half.png": (png(60, 40, 8, 2, rows(SMOOTH[:20])), "3,620 bytes of pixels where 7,240 belong"),
    "one-row-less.png": (png(60, 40, 8, 0, rows(BLACK[1:])), "2,379 bytes of pixels where 2,440 belong"),
    "interlaced-half.png": (interlaced(png(60, 40, 8, 2, adam7(SMOOTH)[:2000])), "truncated or corrupt"),
    "no-width.png": (png(0, 40, 8, 2, b""), "PNG by its first bytes"),
    "no-pixels.png": (WHOLE[:33] + WHOLE[-12:], "truncated or corrupt"),
    "three-bits.png": (png(6, 4, 3, 2, b""), "PNG by its first bytes"),
    "no-palette.png": (png(2, 1, 8, 3, b"\0\0\1"), "truncated or corrupt"),
    "huge.png": (png(2**31 - 1, 2**31 - 1, 8, 2, b""), "too large to decode"),
    "packed.png": (
        with_chunk(WHOLE, chunk(b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(9_000_000)))),
        "Decompressed data too large",
    ),
    "wrong-sum.png": (WHOLE[:29] + b"\0\0\0\0" + WHOLE[33:], "PNG by its first bytes"),
    "apple.png": (WHOLE[:8] + chunk(b"CgBI", bytes(4)) + WHOLE[8:].replace(b"\x78", b"\0", 1), "truncated or corrupt"),
    "cut.jpg": (JPEG[: len(JPEG) * 2 // 3], "truncated or corrupt"),
    "start.jpg": (JPEG[:2], "JPEG by its first bytes"),
    "flat.jpg": (JPEG.replace(b"\x11\x08\x00\x28", b"\x11\x08\x00\x00", 1), "JPEG by its first bytes"),
    "huge.jpg": (JPEG.replace(b"\x11\x08\x00\x28\x00\x3c", b"\x11\x08\xff\xff\xff\xff", 1), "too large to decode"),
    "progressive-cut.jpg": (encoded("JPEG", progressive=True)[:-90], "truncated or corrupt"),
    "cut.gif": (GIF[: len(GIF) * 9 // 10], "truncated or corrupt"),
    "bad-lzw.gif": (GIF[:-200] + b"\xff" * 190 + GIF[-10:], "truncated or corrupt"),
    "no-frame.gif": (b"GIF89a\x0a\0\x0a\0\0\0\0;", "GIF by its first bytes"),
    "huge.gif": (b"GIF89a\xff\xff\xff\xff\0\0\0," + b"\0\0\0\0\xff\xff\xff\xff\0\2\2\x4c\1\0;", "too large to decode"),
    "cut.bmp": (BMP[:999], "truncated or corrupt"),
    "huge.bmp": (BMP[:18] + struct.pack("<ii", 10**9, 10**9) + BMP[26:], "too large to decode"),
    "flat.bmp": (BMP[:18] + struct.pack("<ii", 0, 9) + BMP[26:], "BMP by its first bytes"),
    "cut.webp": (encoded("WEBP")[:99], "truncated or corrupt"),
    "cut.tif": (encoded("TIFF")[:-2000], "truncated or corrupt"),
    "huge.tif": (tiff(2**31, 2**31, 8, b"1"), "too large to decode"),
    "signed.tif": (tiff(4, 3, 8, NUMBERS.tobytes(), kind=2), "8-bit integers with a sign"),
    "double.tif": (tiff(4, 3, 64, bytes(96), kind=3), "TIFF by its first bytes"),
    "half-floats.tif": (tiff(4, 3, 16, bytes(24), kind=3), "TIFF by its first bytes"),
    "complex.tif": (tiff(4, 3, 64, bytes(96), kind=6), "TIFF by its first bytes"),
    "planes-16.tif": (tiff(4, 3, 16, bytes(72), photometric=2, samples=3, planes=2), "a TIFF of 3 planes of 16 bits"),
    "cut.psd": (b"8BPS\0\1" + bytes(30), "PSD by its first bytes"),
    "page.eps": (EPS, "EPS is a drawing program"),
    "page.png": (EPS, "EPS is a drawing program"),
    "weather.png": (b"GRIB\0\0\0\1" + bytes(20), "GRIB, which is recognised but not read"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "starts with b'<svg"),
    "page.jpg": (b"<!DOCTYPE html>", "starts with b'<!DOCTYPE html>'"),
    "document.png": (b"%PDF-1.7", "starts with b'%PDF"),
    "archive.png": (b"PK\3\4" + bytes(40), "starts with b'PK"),
    "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(40), "starts with b"),
    "zeros.png": (bytes(1000), "starts with b"),
    "one-byte.png": (b"\x89", "starts with b"),
}


@pytest.mark.parametrize("name", EXACT)
def test_odd_files_that_hold_a_picture_give_its_pixels(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    content, expected = EXACT[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert np.array_equal(read_image(path).pixels, expected)
    assert read_size(path) == expected.shape[:2]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ODD)
def test_odd_files_that_hold_none_are_refused_at_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    content, expected = ODD[name]
    path = tmp_path / name
    path.write_bytes(content)
    started = time.monotonic()
    assert expected in outcome(lambda: read_image(path), path, "reads")
    outcome(lambda: read_labels(path, classes=CLASSES), path, "reads")
    assert time.monotonic() - started < 5
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert capfd.readouterr() == ("", "")


def test_ids_are_the_numbers_that_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(4, 3, 8, NUMBERS.tobytes(), photometric=0))
    assert np.array_equal(read_labels(path, classes=CLASSES), NUMBERS)
    path.write_bytes(tiff(4, 3, 8, (NUMBERS.astype(np.int8) - 1).tobytes(), kind=2))
    with pytest.raises(ImageError, match=r"1 value outside the table of classes: -1 \(1 px\)"):
        read_labels(path, classes=CLASSES)


def test_pages_are_counted_up_to_a_thousand(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(4, 3, 8, NUMBERS.tobytes(), pages=3000))
    started = time.monotonic()
    assert read_image(path).notes == ("frame 0 of 1000 or more is used",)
    with pytest.raises(ImageError, match="a label map of 1000 or more frames; expected one"):
        read_labels(path, classes=CLASSES)
    assert time.monotonic() - started < 20


# What is no file -----------------------------------------------------------------------------------------------------


def test_pipes_devices_loops_and_impossible_names_are_refused_and_wait_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, said in (
        ("pipe.png", "not a regular file"),
        ("loop.png", "cannot be read: Too many levels"),
        ("device.png", "not a regular file"),
        ("folder.png", "a folder"),
        ("none\0.png", "no file can have this name"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        path = tmp_path / name
        for read in (read_image, read_size, lambda path: read_labels(path, classes=CLASSES)):
            with pytest.raises(ImageError, match=said):
                read(path)


def test_predict_goes_on_past_pipes_loops_and_names_that_are_no_text(tmp_path: Path, predictor: Predictor) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_image(folder / "good.png", SMOOTH)
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "<script>\x1b[2J.png").write_text("no picture")
    odd = os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")
    os.link(folder / "good.png", odd)
    pictures = find_pictures([folder], out=tmp_path / "out")
    outcomes = list(segment_files(predictor, pictures, tmp_path / "out"))
    assert sorted(outcome.status for outcome in outcomes) == ["done", "done", "failed", "failed", "failed"]
    assert not any(CONTROL.search(outcome.error) for outcome in outcomes)
    path = write_results(predictor, outcomes, tmp_path / "out", settings={})
    told = json.loads(path.read_text(encoding="utf-8"))
    assert odd in {record["input"] for record in told["files"]}


# Tables of classes and label maps of any content ---------------------------------------------------------------------


def table_of(folder: Path, name: str, content: bytes) -> str:
    """What is said of a table of classes; "" where it is taken."""
    for half in ("images", "labels"):
        (folder / half).mkdir(exist_ok=True)
    for picture in ("a.png", "b.png"):
        write_image(folder / "images" / picture, SMOOTH)
        write_labels(folder / "labels" / picture, BLACK, CLASSES)
    (folder / name).write_bytes(content)
    told = ""
    try:
        open_folder(folder)
    except FullyConvError as error:
        told = str(error)
    assert not CONTROL.search(told)
    return told


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("classes.txt", b"x\n" * 70_000, "70,000 lines; expected a name a line, 65,536 at most"),
        ("classes.txt", b"x" * (17 << 20), "bytes; expected 16,777,216 at most"),
        ("classes.txt", b"x" * 10**6, "at most 200 characters"),
        ("classes.txt", b"sky\x1b[31m\n", "control character"),
        ("classes.txt", b"sky\0\n", "control character"),
        ("classes.txt", b"\xff\xfe", "not UTF-8 text"),
        ("classes.json", b"[" * 10**5, "nested more than 64 deep"),
        ("classes.json", b'[{"id": 0, "id": 1, "name": "a"}]', "'id' occurs twice"),
        ("classes.json", b'[{"id": ' + b"9" * 5000 + b"}]", "Exceeds the limit"),
        ("classes.json", b'[{"id": NaN, "name": "a"}]', "expected a list such as"),
        ("classes.json", json.dumps([{"id": 0, "name": "a"}] * 70_000).encode(), "70,000 classes"),
        (
            "classes.json",
            json.dumps([{"id": min(i, 59_998), "name": f"{i}"} for i in range(60_000)]).encode(),
            "share the id 59998",
        ),
    ],
)
def test_tables_beyond_all_measure_are_refused_at_once(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    started = time.monotonic()
    assert said in table_of(tmp_path, name, content)
    assert time.monotonic() - started < 10


def test_a_table_that_is_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    table_of(tmp_path, "classes.txt", b"a\n")
    (tmp_path / "classes.txt").unlink()
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(DatasetError, match=r"no classes\.txt"):
        open_folder(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
)
def test_any_text_is_a_table_or_refused(tmp_path: Path, content: bytes) -> None:
    table_of(tmp_path, "classes.txt", content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
ENTRY = st.fixed_dictionaries(
    {"id": st.integers(-1, 3) | JSON}, optional={"name": st.text(max_size=5) | JSON, "colour": JSON, "ignore": JSON}
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.lists(ENTRY, max_size=3) | JSON)
def test_any_json_is_a_table_or_refused(tmp_path: Path, value: object) -> None:
    table_of(tmp_path, "classes.json", json.dumps(value).encode())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_label_maps_of_any_bits_give_known_channels_or_are_refused(tmp_path: Path, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    raw = data.draw(st.binary(max_size=120))
    if data.draw(st.booleans()):
        content = png(width, height, data.draw(st.sampled_from([1, 2, 4, 8, 16])), data.draw(st.integers(0, 6)), raw)
    else:
        bits, samples = data.draw(st.sampled_from([1, 2, 4, 8, 12, 16, 32, 64])), data.draw(st.integers(1, 5))
        content = tiff(
            width, height, bits, raw, samples=samples, photometric=data.draw(st.integers(0, 9)),
            kind=data.draw(st.integers(0, 6)), planes=data.draw(st.integers(1, 2)),
        )  # fmt: skip
    path = tmp_path / "a.png"
    path.write_bytes(content)
    try:
        labels = read_labels(path, classes=CLASSES)
    except ImageError as error:
        told = str(error)
    else:
        assert labels.shape == (height, width)
        assert set(np.unique(labels).tolist()) <= {*range(len(CLASSES)), 255}
        return
    assert told.startswith(f"{path}: ")
