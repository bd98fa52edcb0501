"""Numbers are read as they are stored."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import RNG, label_file, png, saved
from PIL import Image

from fullyconv.errors import ImageError
from fullyconv.values import read_depth, read_values


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


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_a_bitmap_whose_two_ids_are_black_and_white_is_read_or_refused(tmp_path: Path, bits: int) -> None:
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) // 3 % 2
    rows = [np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:]).tobytes() for row in ids[::-1]]
    pixels = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    palette = bytes([0, 0, 0, 0, 255, 255, 255, 0])
    header = struct.pack("<IiiHHIIiiII", 40, 8, 6, 1, bits, 0, len(pixels), 0, 0, 2, 0)
    start = 14 + len(header) + len(palette)
    path = tmp_path / "x.bmp"
    path.write_bytes(struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header + palette + pixels)
    if bits == 1:
        assert np.array_equal(read_values(path), ids)
    else:
        with pytest.raises(ImageError, match=f"a BMP of {bits} bits with a palette of black and white"):
            read_values(path)


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
