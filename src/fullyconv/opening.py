"""Opening a file of pixels: how they are stored, what is refused, and one error for all that Pillow may raise.

Whatever Pillow does with a hostile file, whoever opens it here has its pixels or an `ImageError`, and no warning.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging

from fullyconv.errors import ImageError

Array = npt.NDArray[Any]
MAX_PIXELS = 178_000_000
"""A file that declares more is refused before it is decoded."""
_STARTS = {
    b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF",
    b"8BPS": "PSD", b"RIFF": "WebP",
}  # fmt: skip
_MOST_FRAMES = 1000
"""That are counted: a TIFF of some megabytes can hold so many pages that walking through them takes minutes."""
_PROGRAMS = {"EPS", "WMF", "EMF"}  # Pillow hands these to an interpreter: Ghostscript, or Windows
_EXACT_FORMATS = {"PNG", "TIFF", "BMP"}  # not GIF, whose writers renumber the palette
UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""EXIF orientation -> the flip that makes the picture upright."""

# Else Pillow's log goes to stderr when nobody has set one up.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Form:
    """How a file stores its pixels, as far as its header says.

    Attributes:
        mode: as Pillow names it: "P" (palette), "L" (grey), "RGB", "RGBA", ...
        size: (height, width) in pixels as they are stored, before they are turned upright.
        orientation: EXIF's, 1..8; 1 is upright.
        exact: whether every number comes back as it was written.
        transparency: whether there is an alpha channel, or a palette with transparent entries.
        palette: the RGB colour of each entry; empty without a palette.
    """

    mode: str
    size: tuple[int, int]
    orientation: int
    exact: bool
    transparency: bool
    palette: tuple[tuple[int, int, int], ...] = ()


def read_form(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Form:
    """How a file stores its pixels; decodes them only where the format hides its EXIF behind them.

    Raises:
        ImageError: as `fullyconv.images.read_image`, as far as it shows without decoding.
    """
    with opened(path, max_pixels) as image:
        width, height = image.size
        flat = (image.getpalette("RGB") or []) if image.mode in ("P", "PA") else []
        palette = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        turn = getattr(image, "tag_v2", {}).get(0x0112, 1) if image.format == "TIFF" else orientation_of(image, [])
        return Form(
            mode=image.mode,
            size=(height, width),
            orientation=turn if turn in UPRIGHT else 1,
            exact=is_exact(image),
            transparency=image.has_transparency_data,
            palette=palette,
        )


def read_size(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width in pixels of the upright picture; decodes it only where the format hides its EXIF behind pixels.

    Raises:
        ImageError: as `fullyconv.images.read_image`, as far as it shows without decoding.
    """
    with opened(path, max_pixels) as image:
        width, height = image.size
        if orientation_of(image, []) >= 5:
            return width, height
        return height, width


def turned(array: Array, orientation: int) -> Array:
    """An array (H, W, ...) turned upright as EXIF's orientation 1..8 says.

    Example:
        >>> turned(np.array([[1, 2, 3]]), 6).tolist()
        [[1], [2], [3]]
    """
    return np.ascontiguousarray(UPRIGHT[orientation](array)) if orientation in UPRIGHT else array


class RefusedError(Exception):
    """What is wrong with the file that is open; `opened` adds which one it is."""


@contextlib.contextmanager
def opened(picture: str | PathLike[str] | Image.Image, max_pixels: int) -> Iterator[Image.Image]:
    """The opened, not yet decoded picture; any failure inside the block becomes an `ImageError`.

    Nothing in the block may go on after a failed ``load()``: a second one passes, with black pixels.
    """
    path = Path(getattr(picture, "filename", "") or "<image>") if isinstance(picture, Image.Image) else Path(picture)
    _silence_libtiff()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        try:
            if isinstance(picture, Image.Image):
                image = picture
            else:
                _check_file(path)
                file = stack.enter_context(path.open("rb"))
                icon = file.peek(4)[:4] in _ICONS
                with _limit_lock if icon else _pillow_allows(max_pixels):
                    image = stack.enter_context(Image.open(file))
            if image.format in _PROGRAMS:
                raise RefusedError(f"{image.format} is a drawing program, not pixels; convert it to PNG")
            if isinstance(image, ImageFile.StubImageFile):
                raise RefusedError(f"{image.format}, which is recognised but not read; convert it to PNG")
            width, height = image.size
            if width < 1 or height < 1:
                raise RefusedError(f"{height} x {width} pixels (height x width); expected at least 1 x 1")
            if width * height > max_pixels:
                raise RefusedError(
                    f"declares {height} x {width} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
                    "raise the limit (predict --max-pixels, max_pixels) if you trust the file, or cut it up"
                )
            yield image
        except RefusedError as refusal:
            raise ImageError(path, str(refusal)) from None
        except Exception as error:  # a hostile file can make Pillow raise anything, up to MemoryError
            raise ImageError(path, _reason(path, error)) from error


def load(image: Image.Image) -> None:
    """Decode all pixels. What Pillow would leave black, or take for something else, in silence, is refused."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(0x0102, (1,))
    if tags.get(0x011C) == 2 and max(bits) > 8 and len(bits) > 1:
        raise RefusedError(f"a TIFF of {len(bits)} planes of {max(bits)} bits each; save it with colours interleaved")
    declared = sorted(image.size)
    file = getattr(image, "fp", None)
    interlaced = bool(image.info.get("interlace"))  # which loading forgets
    # What an icon holds is opened only now, and must not find the limit that another thread has lifted meanwhile.
    with _limit_lock if image.format in ("ICO", "ICNS") else contextlib.nullcontext():
        image.load()
    if sorted(image.size) != declared:  # a TIFF may have been turned upright
        raise RefusedError(f"declares {declared[0]} x {declared[1]} pixels and holds {image.height} x {image.width}")
    if image.format == "PNG" and file is not None and not file.closed:
        last = image.crop((0, image.height - 1, image.width, image.height))
        if interlaced or last.getbbox() is None:
            _refuse_short_png(file)


def make_upright(image: Image.Image, array: Array, notes: list[str]) -> Array:
    orientation = orientation_of(image, notes)
    if orientation == 1:
        return array
    notes.append(f"turned upright (EXIF orientation {orientation})")
    return np.ascontiguousarray(UPRIGHT[orientation](array))


def orientation_of(image: Image.Image, notes: list[str]) -> int:
    """EXIF orientation that is still to be applied, 1..8; for a TIFF 1, since Pillow turns it while loading."""
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception as error:  # broken metadata make Pillow raise anything
        notes.append(f"EXIF cannot be read ({type(error).__name__}); taken as upright")
        return 1
    return value if value in UPRIGHT else 1


def raw_modes(image: Image.Image) -> list[str]:
    """How the pixels lie in the file, such as "RGB;16B", as far as Pillow's plugin says."""
    raw = []
    for tile in getattr(image, "tile", ()):
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw += [part for part in parts if isinstance(part, str)]
    return raw


def count_frames(image: Image.Image) -> int:
    """Frames of the file, `_MOST_FRAMES` at most in formats without their number in the header."""
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    for frame in range(1, _MOST_FRAMES):
        try:
            image.seek(frame)
        except EOFError:
            return frame
    return _MOST_FRAMES


def at_most(frames: int) -> str:
    return f"{frames} or more" if frames == _MOST_FRAMES else str(frames)


def is_exact(image: Image.Image) -> bool:
    compression = str(image.info.get("compression", ""))
    return image.format in _EXACT_FORMATS and "jpeg" not in compression and "webp" not in compression


def is_signed(image: Image.Image) -> bool:
    """Whether it is a TIFF of 8 bits with a sign, which Pillow takes for 0..255."""
    tags = getattr(image, "tag_v2", {})
    return 2 in np.ravel(tags.get(0x0153, 1)) and image.mode in ("L", "RGB")


def save(path: Path, image: Image.Image, kind: str, options: dict[str, int]) -> None:
    # Beside its place, so that the rename is atomic; not through tempfile, which would make it unreadable to others.
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with part.open("xb") as file:
            image.save(file, kind, **options)
        part.replace(path)
    except (OSError, ValueError) as error:
        raise ImageError(path, f"cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        part.unlink(missing_ok=True)


_lock = threading.Lock()
_limit_lock = threading.Lock()
_ICONS = (b"\0\0\1\0", b"icns")
"""How files begin that hold pictures whose size Pillow alone checks, when they are opened or decoded."""
_readers = 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warning from Pillow while anybody reads.

    ``warnings.catch_warnings`` would restore a list that another thread has since replaced, so the readers are counted
    and one filter is added by the first and taken out by the last.
    """
    global _readers
    with _lock:
        _readers += 1
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                ours = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
                with contextlib.suppress(ValueError):  # somebody has reset the filters meanwhile
                    cast("list[Any]", warnings.filters).remove(ours)


@lru_cache(maxsize=1)
def _silence_libtiff() -> None:
    """Pillow raises what libtiff finds wrong; libtiff prints it on stderr as well, unless it is told not to."""
    with contextlib.suppress(OSError, AttributeError):  # this Pillow has no libtiff, or one that cannot be reached
        library = ctypes.CDLL(_imaging.__file__)
        for handler in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


@contextlib.contextmanager
def _pillow_allows(max_pixels: int) -> Iterator[None]:
    """Lift Pillow's own limit for this opening, when the caller has asked for more than it: ours is checked instead."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None or max_pixels <= 2 * limit:
        yield
        return
    with _limit_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise RefusedError("no such file") from None
    except ValueError:
        raise RefusedError("no file can have this name") from None
    if stat.S_ISDIR(status.st_mode):
        raise RefusedError("a folder; expected a picture")
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError("not a regular file; expected a picture")
    if status.st_size == 0:
        raise RefusedError("empty (0 bytes); expected a picture")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            start = file.read(16)
        kind = next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), "")
        if kind:
            return f"{kind} by its first bytes, but damaged, or of a kind that is not read; save it again as PNG"
        return f"not a picture in a format that is known (it starts with {start!r})"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large to decode, so cut it up: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    text = " ".join(str(error).split())[:200]
    if "codec configuration" in text:  # Pillow knows the format and not this kind of it, as BMP of 16 greys
        return f"of a kind of its format that Pillow does not decode ({text}); save it again as PNG"
    return f"truncated or corrupt: {type(error).__name__}{': ' if text else ''}{text}"


def _refuse_short_png(file: BinaryIO) -> None:
    """A PNG whose compressed data end in good order, but too early, is filled up with zeros by Pillow."""
    place = file.tell()
    file.seek(8)
    expected, found, unpack = 0, 0, zlib.decompressobj()
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            expected = _png_bytes(*struct.unpack(">IIBB2xB", file.read(13)))
        elif kind == b"IDAT":
            for block in range(0, length, 1 << 16):
                packed = file.read(min(1 << 16, length - block))
                while packed and found < expected:
                    found += len(unpack.decompress(packed, 1 << 20))
                    packed = unpack.unconsumed_tail
        elif kind == b"IEND" or (found and kind == b"fcTL"):
            break
        else:
            file.seek(length, os.SEEK_CUR)
        file.seek(4 - (0 if kind != b"IHDR" else length - 13), os.SEEK_CUR)
    file.seek(place)
    if found < expected:
        raise RefusedError(f"truncated or corrupt: {found:,} bytes of pixels where {expected:,} belong")


def _png_bytes(width: int, height: int, depth: int, colour: int, interlaced: int) -> int:
    """Bytes of a PNG's pixels before compression, each row with the number of its filter."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    steps = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
    total = 0
    for left, across, top, down in steps if interlaced else ((0, 1, 0, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
