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
from image_files import PHOTO, THREE, saved, turned
from PIL import Image

from fullyconv.errors import ImageError
from fullyconv.images import read_image, write_image
from fullyconv.labels import read_labels
from fullyconv.opening import _pillow_allows


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


SEEDS = {
    "png": _encoded("PNG", Image.fromarray(PHOTO), exif=turned()),
    "palette": _encoded("PNG", Image.fromarray(PHOTO).convert("P"), transparency=3),
    "apng": _encoded("PNG", Image.fromarray(PHOTO), save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]),
    "jpeg": _encoded("JPEG", Image.fromarray(PHOTO), exif=turned()),
    "cmyk": _encoded("JPEG", Image.fromarray(PHOTO).convert("CMYK")),
    "tiff": _encoded("TIFF", Image.fromarray(PHOTO), exif=turned()),
    "lzw": _encoded("TIFF", Image.fromarray(PHOTO), compression="tiff_lzw"),
    "gif": _encoded("GIF", Image.fromarray(PHOTO), save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]),
    "bmp": _encoded("BMP", Image.fromarray(PHOTO)),
    "ico": _encoded("ICO", Image.fromarray(PHOTO)),
    "webp": _encoded("WEBP", Image.fromarray(PHOTO), exif=turned()),
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


def test_a_bomb_in_an_icon_finds_no_limit_that_another_thread_has_lifted(tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 65535, 65535, 8, 6, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    icon = struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png
    (tmp_path / "bomb.ico").write_bytes(icon)
    with ThreadPoolExecutor(1) as pool:
        with _pillow_allows(10**12):  # another thread opens a large picture
            reading = pool.submit(read_image, tmp_path / "bomb.ico")
            wait([reading], timeout=0.5)
        with pytest.raises(ImageError, match="too large to decode"):
            reading.result()


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
