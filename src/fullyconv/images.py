"""The one door through which a file becomes an array, with every refusal in it.

Pictures become (H, W, 3) uint8 RGB, upright; depth maps (H, W) float32; label maps (H, W) channel numbers of a table of
classes. What was done on the way that the eye may not expect (a frame chosen, an alpha composed, 16 bits scaled to 8)
is said in notes. Whatever Pillow does with a hostile file, the caller sees an array or an `ImageError`, and no warning.
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

from fullyconv.config import Classes, voc_colour
from fullyconv.errors import ImageError, LabelError

Array = npt.NDArray[Any]
UInt8 = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Picture = str | PathLike[str] | Image.Image | Array
"""What stands for a picture: a path, a Pillow image, or an array (H, W, 3), (H, W, 4) or (H, W) of uint8."""

MAX_PIXELS = 178_000_000
"""A file that declares more is refused before it is decoded."""

# fmt: off
SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".psd", ".sgi", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""Endings (lower case) by which a file in a folder is taken for a picture. What it holds is found by reading it."""

_STARTS = {
    b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF",
    b"8BPS": "PSD", b"RIFF": "WebP",
}  # fmt: skip
_MOST_FRAMES = 1000
"""That are counted: a TIFF of some megabytes can hold so many pages that walking through them takes minutes."""
_PROGRAMS = {"EPS", "WMF", "EMF"}  # Pillow hands these to an interpreter: Ghostscript, or Windows
_EXACT_FORMATS = {"PNG", "TIFF", "BMP"}  # not GIF, whose writers renumber the palette
_UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""EXIF orientation -> the flip that makes the picture upright."""

logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # else Pillow's log goes to stderr when nobody has set one up


@dataclass(frozen=True)
class ReadImage:
    """A picture as it is used, and what was done to make it so.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, or another number of channels that was asked for; upright, contiguous, writable.
        notes: short sentences; empty when the file was plain.
    """

    pixels: Array
    notes: tuple[str, ...] = ()


def read_image(
    picture: Picture,
    *,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
    background: tuple[int, int, int] = (255, 255, 255),
) -> ReadImage:
    """Read a picture into (H, W, 3) uint8 RGB, upright.

    EXIF orientation is applied; frame 0 of several is taken; alpha is composed on ``background``; 16 bits are divided
    by 257; 32-bit integers are taken as 0..255 or 0..65535, floats as 0..1 or 0..255, whichever holds all values. Each
    of these is noted.

    Args:
        picture: a path, a Pillow image (its current frame), or a uint8 array (H, W, 3), (H, W, 4) or (H, W).
        channels: that are wanted. Where they are not 3, the picture is an array (H, W, channels), uint8 or float32, as
            a data set of several inputs gives it, and is taken as it is.
        max_pixels: most pixels that the file may declare.
        background: RGB, 0..255, that shows where the picture is transparent.

    Raises:
        ImageError: no such file, not a picture, truncated, corrupt, too large, or values without a meaning as colour.

    Example:
        >>> read_image(np.zeros((2, 3), np.uint8)).pixels.shape
        (2, 3, 3)
    """
    notes: list[str] = []
    if channels != 3:
        return ReadImage(_from_channels(picture, channels))
    if isinstance(picture, np.ndarray):
        return ReadImage(_from_array(picture, background, notes), tuple(notes))
    with _opened(picture, max_pixels) as image:
        notes += _notes_before_load(image)
        _load(image)
        pixels = _to_rgb(image, background, notes)
        pixels = _make_upright(image, pixels, notes)
        if not isinstance(picture, Image.Image):
            notes += _notes_on_frames(image)
    return ReadImage(pixels, tuple(notes))


def read_size(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width in pixels of the upright picture; decodes it only where the format hides its EXIF behind pixels.

    Raises:
        ImageError: as `read_image`, as far as it shows without decoding.
    """
    with _opened(path, max_pixels) as image:
        width, height = image.size
        if _orientation(image, []) >= 5:
            return width, height
        return height, width


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
        ImageError: as `read_image`, as far as it shows without decoding.
    """
    with _opened(path, max_pixels) as image:
        width, height = image.size
        flat = (image.getpalette("RGB") or []) if image.mode in ("P", "PA") else []
        palette = tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))
        turn = getattr(image, "tag_v2", {}).get(0x0112, 1) if image.format == "TIFF" else _orientation(image, [])
        return Form(
            mode=image.mode,
            size=(height, width),
            orientation=turn if turn in _UPRIGHT else 1,
            exact=_is_exact(image),
            transparency=image.has_transparency_data,
            palette=palette,
        )


def turned(array: Array, orientation: int) -> Array:
    """An array (H, W, ...) turned upright as EXIF's orientation 1..8 says.

    Example:
        >>> turned(np.array([[1, 2, 3]]), 6).tolist()
        [[1], [2], [3]]
    """
    return np.ascontiguousarray(_UPRIGHT[orientation](array)) if orientation in _UPRIGHT else array


def thumbnail(pixels: Array, height: int, width: int) -> UInt8:
    """What is `visible` of a picture (H, W, C) as (height, width, 3) uint8; each pixel is the mean of what it covers.

    Example:
        >>> thumbnail(np.full((30, 40, 3), 7, np.uint8), 2, 2).tolist()
        [[[7, 7, 7], [7, 7, 7]], [[7, 7, 7], [7, 7, 7]]]
    """
    small = Image.fromarray(visible(pixels)).resize((width, height), Image.Resampling.BOX)
    return np.array(small)


def read_labels(
    path: str | PathLike[str],
    *,
    classes: Classes,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Labels:
    """Read a label map into channel numbers: position among ``classes.used``, or ``classes.void``.

    The file holds ids (one channel, 1 to 16 bits, or a palette) or the colours of the table (RGB, or RGBA without
    transparency). EXIF orientation is applied. Nothing is remapped that the table does not name.

    Args:
        path: PNG, or lossless TIFF, or BMP.
        classes: the table of ids, colours and void classes.
        size: (height, width) that the picture has.
        max_pixels: most pixels that the file may declare.

    Returns:
        (H, W) uint8, or uint16 where there are more than 255 classes.

    Raises:
        ImageError: not a label map, lossy, transparent, of another size, or with an id or colour outside the table:
            then the message holds the values and their pixel counts.
    """
    return label_channels(read_values(path, max_pixels=max_pixels), classes=classes, path=path, size=size)


def label_channels(
    values: Array, *, classes: Classes, path: str | PathLike[str], size: tuple[int, int] | None = None
) -> Labels:
    """Turn ids (H, W), of any integer type, or colours (H, W, 3) uint8 into channel numbers, as `read_labels` does.

    Args:
        values: as they lie in a label file.
        classes: the table of ids, colours and void classes.
        path: the file that they come from, for the message.
        size: (height, width) that the picture has.

    Raises:
        ImageError: of another size, or with an id or colour outside the table.

    Example:
        >>> label_channels(np.array([[1, 0, 255]]), classes=Classes.of("sky", "sea"), path="x.png").tolist()
        [[1, 0, 255]]
    """
    if size is not None and values.shape[:2] != tuple(size):
        turned = " (its sides are swapped: one of the two is not upright)" if values.shape[1::-1] == tuple(size) else ""
        raise LabelError(
            path, f"a label map of {_shape(values)} for a picture of {size[0]} x {size[1]} (height x width){turned}"
        )
    table = _lookup(classes)
    indices: Labels
    if values.ndim == 3:
        if table.ambiguous:
            raise LabelError(
                path, f"coloured, and the classes {table.ambiguous} have the same colour; give each its own"
            )
        codes = _pack(values)
        place = np.searchsorted(table.codes, codes).clip(max=len(table.codes) - 1)
        known = table.codes[place] == codes
        indices = table.of_code[place]
    else:
        inside = (values >= 0) & (values <= 65535) if values.dtype.itemsize > 2 else True
        ids = values if inside is True else np.where(inside, values, 0)
        known = table.known[ids] & inside
        indices = table.of_id[ids]
    if not known.all():
        raise LabelError(path, _outside(values, known, classes))
    return indices


def label_values(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> dict[int | tuple[int, int, int], int]:
    """The ids (or RGB colours) that a label file holds, each with its number of pixels, in ascending order.

    Raises:
        ImageError: as `read_labels`, but for the table of classes.
    """
    values = read_values(path, max_pixels=max_pixels)
    return _count(values, coloured=values.ndim == 3)


def read_values(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Array:
    """Ids (H, W) as integers, or colours (H, W, 3) uint8, as they lie in a label file; EXIF orientation is applied.

    Raises:
        ImageError: as `read_labels`, but for the table of classes.
    """
    with _opened(path, max_pixels) as image:
        _refuse_lossy(image, "a label map", "ids")
        raw = _raw_modes(image)
        _load(image)
        values = _make_upright(image, _values_of(image, raw), [])
        if (frames := _count_frames(image)) > 1:
            raise _RefusedError(f"a label map of {_at_most(frames)} frames; expected one")
        return values


def read_depth(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.float32]:
    """Read a depth map into (H, W) float32: the numbers as they are stored, in whatever unit, upright.

    Args:
        path: PNG, or lossless TIFF, or BMP, of one channel of 8, 16 or 32 bits.
        max_pixels: most pixels that the file may declare.

    Raises:
        ImageError: not a depth map, lossy, of several channels, truncated or corrupt.
    """
    with _opened(path, max_pixels) as image:
        _refuse_lossy(image, "a depth map", "depths")
        raw = _raw_modes(image)
        _load(image)
        if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
            raise _RefusedError(f"a depth map in mode {image.mode}; expected one channel of 8, 16 or 32 bits")
        values = np.array(image) if image.mode == "F" else _values_of(image, raw)
        return _make_upright(image, values.astype(np.float32), [])


def write_labels(path: str | PathLike[str], indices: Array, classes: Classes) -> None:
    """Write channel numbers (H, W) as a PNG of ids that `read_labels` reads back: a palette, or 16-bit grey above 255.

    Void is written as the first void id of the table, else as ``classes.void``. The file appears whole or not at all.

    Raises:
        ImageError: not a .png, not (H, W) integers, a number that is no channel, or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(path, f"label maps are written as .png, which keeps ids exactly; got {path.suffix!r}")
    if indices.ndim != 2 or indices.size == 0 or indices.dtype.kind not in "iu":
        raise ImageError(path, f"expected channel numbers of shape (H, W), got {indices.dtype} {indices.shape}")
    used = np.array([c.id for c in classes.used])
    void = next((c.id for c in classes.entries if c.ignore), classes.void)
    is_void = indices == classes.void
    if (bad := ~is_void & ((indices < 0) | (indices >= len(used)))).any():
        raise ImageError(path, f"{indices[bad][0]} is no channel of {len(used)} classes, nor void ({classes.void})")
    if void in used and is_void.any():
        raise ImageError(path, f"{int(is_void.sum())} void pixels, but {void} is the id of a class; add a void class")
    id_of = np.zeros(max(classes.void, len(used)) + 1, np.uint16)
    id_of[: len(used)], id_of[classes.void] = used, void
    ids = id_of[indices]
    if max(used.max(), void) > 255:
        image = Image.fromarray(ids.astype(np.uint16))
    else:
        image = Image.fromarray(ids.astype(np.uint8)).convert("P")
        image.putpalette(_palette(classes))
    # Twice as fast as zlib's own level, 6, for files half as large again.
    _write(path, image, "PNG", {"compress_level": 3})


def write_image(path: str | PathLike[str], pixels: UInt8) -> None:
    """Write (H, W, 3) uint8 RGB as .png, .jpg, .webp, .tif or .bmp, whole or not at all.

    Raises:
        ImageError: another suffix or array, or the folder cannot be written.
    """
    path = Path(path)
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF"}
    kind = {**formats, ".bmp": "BMP"}.get(path.suffix.lower())
    if kind is None:
        raise ImageError(path, f"cannot write a {path.suffix or 'file without suffix'}; use .png, .jpg, .webp or .tif")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ImageError(path, f"expected uint8 RGB of shape (H, W, 3), got {pixels.dtype} {pixels.shape}")
    _write(path, Image.fromarray(pixels), kind, {"quality": 92, "subsampling": 0} if kind == "JPEG" else {})


def visible(pixels: Array) -> UInt8:
    """What of a picture (H, W, C), uint8 or float32, can be shown, as (H, W, 3) uint8: its first three channels.

    Of fewer than three, the first is stretched to 0..255 and shown in grey.

    Example:
        >>> visible(np.array([[[1.0], [3.0]]], np.float32)).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    shown = pixels[..., :3]
    if shown.shape[2] < 3:
        first = shown[..., :1].astype(np.float32)
        shown = np.repeat((first - first.min()) * (255 / (float(np.ptp(first)) or 1.0)), 3, axis=2)
    if shown.dtype != np.uint8:
        shown = (shown + np.float32(0.5)).clip(0, 255)
    return shown.astype(np.uint8, copy=False)


def overlay(image: Array, indices: Array, classes: Classes, alpha: float = 0.5) -> UInt8:
    """What is `visible` of a picture (H, W, C), tinted with the colours of its classes, as (H, W, 3) uint8.

    ``alpha`` 0: only picture, 1: only colour.

    Void pixels keep the picture's own colour.
    """
    colours = np.zeros((classes.void + 1, 3), np.uint16)
    colours[: len(classes)] = [c.colour for c in classes.used]
    weights = np.full(classes.void + 1, round(alpha * 256), np.uint16)
    weights[classes.void] = 0
    weight = weights[indices][..., None]
    mixed = visible(image) * (256 - weight) + colours[indices] * weight + 128
    return (mixed >> 8).astype(np.uint8)


# Opening -------------------------------------------------------------------------------------------------------------

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


def _load(image: Image.Image) -> None:
    """Decode all pixels. What Pillow would leave black, or take for something else, in silence, is refused."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(0x0102, (1,))
    if tags.get(0x011C) == 2 and max(bits) > 8 and len(bits) > 1:
        raise _RefusedError(f"a TIFF of {len(bits)} planes of {max(bits)} bits each; save it with colours interleaved")
    declared = sorted(image.size)
    file = getattr(image, "fp", None)
    interlaced = bool(image.info.get("interlace"))  # which loading forgets
    # What an icon holds is opened only now, and must not find the limit that another thread has lifted meanwhile.
    with _limit_lock if image.format in ("ICO", "ICNS") else contextlib.nullcontext():
        image.load()
    if sorted(image.size) != declared:  # a TIFF may have been turned upright
        raise _RefusedError(f"declares {declared[0]} x {declared[1]} pixels and holds {image.height} x {image.width}")
    if image.format == "PNG" and file is not None and not file.closed:
        last = image.crop((0, image.height - 1, image.width, image.height))
        if interlaced or last.getbbox() is None:
            _refuse_short_png(file)


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
        raise _RefusedError(f"truncated or corrupt: {found:,} bytes of pixels where {expected:,} belong")


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


class _RefusedError(Exception):
    """What is wrong with the file that is open; `_opened` adds which one it is."""


@contextlib.contextmanager
def _opened(picture: str | PathLike[str] | Image.Image, max_pixels: int) -> Iterator[Image.Image]:
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
                raise _RefusedError(f"{image.format} is a drawing program, not pixels; convert it to PNG")
            if isinstance(image, ImageFile.StubImageFile):
                raise _RefusedError(f"{image.format}, which is recognised but not read; convert it to PNG")
            width, height = image.size
            if width < 1 or height < 1:
                raise _RefusedError(f"{height} x {width} pixels (height x width); expected at least 1 x 1")
            if width * height > max_pixels:
                raise _RefusedError(
                    f"declares {height} x {width} = {width * height:,} pixels, more than the limit of {max_pixels:,}; "
                    "raise the limit (--max-pixels, max_pixels) if you trust the file"
                )
            yield image
        except _RefusedError as refusal:
            raise ImageError(path, str(refusal)) from None
        except Exception as error:  # a hostile file can make Pillow raise anything, up to MemoryError
            raise ImageError(path, _reason(path, error)) from error


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise _RefusedError("no such file") from None
    except ValueError:
        raise _RefusedError("no file can have this name") from None
    if stat.S_ISDIR(status.st_mode):
        raise _RefusedError("a folder; expected a picture")
    if not stat.S_ISREG(status.st_mode):
        raise _RefusedError("not a regular file; expected a picture")
    if status.st_size == 0:
        raise _RefusedError("empty (0 bytes); expected a picture")


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            start = file.read(16)
        kind = next((kind for magic, kind in _STARTS.items() if start.startswith(magic)), "")
        if kind:
            return f"{kind} by its first bytes, but damaged, or of a kind that is not read; save it again as PNG"
        return f"not a picture in a format that is known (it starts with {start!r})"
    if isinstance(error, Image.DecompressionBombError):
        return f"too large to decode: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    text = " ".join(str(error).split())[:200]
    return f"truncated or corrupt: {type(error).__name__}{': ' if text else ''}{text}"


# Pictures ------------------------------------------------------------------------------------------------------------


def _from_array(array: Array, background: tuple[int, int, int], notes: list[str]) -> UInt8:
    channels = array.shape[2] if array.ndim == 3 else 0
    if array.dtype != np.uint8 or array.size == 0 or not (array.ndim == 2 or channels in (3, 4)):
        raise ImageError(
            "<array>", f"expected uint8 of shape (H, W, 3), (H, W, 4) or (H, W), got {array.dtype} {array.shape}"
        )
    if channels == 4:
        return _compose(Image.fromarray(array), background, notes)
    if channels == 0:
        return np.repeat(array[..., None], 3, axis=2)
    return np.require(array, requirements=["C", "W"])


def _from_channels(picture: Picture, channels: int) -> Array:
    if not isinstance(picture, np.ndarray):
        source = getattr(picture, "filename", "") or "<image>" if isinstance(picture, Image.Image) else picture
        raise ImageError(source, f"one file, where {channels} channels are read; give an array (H, W, {channels})")
    if picture.dtype not in (np.uint8, np.float32) or picture.shape[2:] != (channels,) or picture.size == 0:
        raise ImageError(
            "<array>", f"expected uint8 or float32 of shape (H, W, {channels}), got {picture.dtype} {picture.shape}"
        )
    if not np.isfinite(picture).all():
        raise ImageError("<array>", "NaN or infinity among its numbers; expected finite ones")
    return np.require(picture, requirements=["C", "W"])


def _to_rgb(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> UInt8:
    mode = image.mode
    if _is_signed(image):
        raise _RefusedError("8-bit integers with a sign; expected 0..255: nothing says what is white, so scale it")
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _from_numbers(image, background, notes)
    if image.has_transparency_data:
        return _compose(image, background, notes)
    if mode not in ("1", "L", "P", "RGB", "RGBX"):
        profile = " without its colour profile" if mode == "CMYK" and "icc_profile" in image.info else ""
        notes.append(f"{mode} turned into RGB{profile}")
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def _compose(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> UInt8:
    transparent = image.info.get("transparency")
    if isinstance(transparent, tuple) and max(transparent) > 255:
        # The colour is given at the file's 16 bits, the pixels have been brought to 8.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparent)
    if image.mode == "La":
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    if cast("tuple[int, int]", rgba.getchannel("A").getextrema())[0] == 255:
        return np.array(rgba.convert("RGB"))
    notes.append(f"transparent parts composed on {background}")
    pixels = np.empty((rgba.height, rgba.width, 3), np.uint8)
    for top in range(0, rgba.height, 1024):  # in bands, since the whole would be there four times
        band = rgba.crop((0, top, rgba.width, min(top + 1024, rgba.height)))
        under = Image.new("RGBA", band.size, (*background, 255))
        pixels[top : top + 1024] = np.array(Image.alpha_composite(under, band).convert("RGB"))
    return pixels


def _from_numbers(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> UInt8:
    """Grey of more than 8 bits. One rule for all files, so that two pictures of a set stay comparable."""
    values = np.array(image)
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(0x0106) == 0:
        values = 65535 - values  # 0 is white, which Pillow minds up to 8 bits only
    if not np.isfinite(values).all():
        raise _RefusedError("floats with NaN or infinity; expected 0..1 or 0..255")
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 255:
        scale = 255 if high <= 1 else 1
        notes.append(f"floats in {low:g}..{high:g} " + ("multiplied by 255" if scale == 255 else "rounded"))
        grey = np.floor(values * scale + 0.5).astype(np.uint8)
    elif image.mode == "I" and image.format != "PPM" and low >= 0 and high <= 255:
        notes.append(f"32-bit integers in {low}..{high} taken as 0..255")
        grey = values.astype(np.uint8)
    elif image.mode != "F" and low >= 0 and high <= 65535:
        dark = "; it uses few of them and is dark: rescale it if it was meant brighter" if high < 4096 else ""
        notes.append(f"16 bits scaled to 8 (divided by 257; values {low}..{high}){dark}")
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        kind, ranges = ("floats", "0..1 or 0..255") if image.mode == "F" else ("32-bit integers", "0..255 or 0..65535")
        raise _RefusedError(f"{kind} in {low:g}..{high:g}; expected {ranges}: nothing says what is white, so scale it")
    pixels = np.repeat(grey[..., None], 3, axis=2)
    transparent = values == image.info.get("transparency", -1)
    if transparent.any():
        pixels[transparent] = background
        notes.append(f"transparent parts composed on {background}")
    return pixels


def _make_upright(image: Image.Image, array: Array, notes: list[str]) -> Array:
    orientation = _orientation(image, notes)
    if orientation == 1:
        return array
    notes.append(f"turned upright (EXIF orientation {orientation})")
    return np.ascontiguousarray(_UPRIGHT[orientation](array))


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """EXIF orientation that is still to be applied, 1..8; for a TIFF 1, since Pillow turns it while loading."""
    if image.format == "TIFF":
        return 1
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception as error:  # broken metadata make Pillow raise anything
        notes.append(f"EXIF cannot be read ({type(error).__name__}); taken as upright")
        return 1
    return value if value in _UPRIGHT else 1


def _notes_before_load(image: Image.Image) -> Iterator[str]:
    """What can be seen only before ``load()``, which forgets how the pixels were stored."""
    if any(re.search(r"[^I];16[BLNS]", raw) for raw in _raw_modes(image)):
        yield "16 bits a channel reduced to 8"
    tags = getattr(image, "tag_v2", {})
    if (turn := tags.get(0x0112, 1)) in _UPRIGHT:
        yield f"turned upright (EXIF orientation {turn})"
    if (bands := tags.get(0x0115, 1)) > max(len(image.getbands()), 3):
        yield f"{bands} bands, of which the first {len(image.getbands())} are used"
    if len(sizes := image.info.get("sizes", ())) > 1:
        yield f"{len(sizes)} sizes in one file; the largest is used"


def _raw_modes(image: Image.Image) -> list[str]:
    """How the pixels lie in the file, such as "RGB;16B", as far as Pillow's plugin says."""
    raw = []
    for tile in getattr(image, "tile", ()):
        parts = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw += [part for part in parts if isinstance(part, str)]
    return raw


def _notes_on_frames(image: Image.Image) -> Iterator[str]:
    try:
        frames = _count_frames(image)
    except Exception as error:  # counting walks through the whole file, broken or not
        yield f"frame 0 is used; further ones cannot be counted ({type(error).__name__})"
        return
    if frames > 1:
        yield f"{frames} layers, flattened" if image.format == "PSD" else f"frame 0 of {_at_most(frames)} is used"


def _count_frames(image: Image.Image) -> int:
    """Frames of the file, `_MOST_FRAMES` at most in formats without their number in the header."""
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    for frame in range(1, _MOST_FRAMES):
        try:
            image.seek(frame)
        except EOFError:
            return frame
    return _MOST_FRAMES


def _at_most(frames: int) -> str:
    return f"{frames} or more" if frames == _MOST_FRAMES else str(frames)


# Labels --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lookup:
    """From ids and colours to channels, as arrays."""

    known: npt.NDArray[np.bool_]  # (65536,) by id
    of_id: Array  # (65536,) by id
    codes: npt.NDArray[np.int64]  # packed colours, ascending
    of_code: Array  # beside codes
    ambiguous: str  # names of classes that share a colour


@lru_cache(maxsize=64)
def _lookup(classes: Classes) -> _Lookup:
    dtype = np.uint8 if classes.void == 255 else np.uint16
    index_of_id = classes.index_of_id()
    known = np.zeros(65536, np.bool_)
    known[list(index_of_id)] = True
    of_id = np.zeros(65536, dtype)
    of_id[list(index_of_id)] = list(index_of_id.values())
    owners: dict[tuple[int, int, int], list[str]] = {}
    index_of_colour: dict[tuple[int, int, int], int] = {}
    if not any(entry.id == classes.void for entry in classes.entries):
        # VOC paints what is void in the colour of id 255; where 255 is a class, that colour is no void.
        index_of_colour[voc_colour(classes.void & 255)] = classes.void
    for entry in classes.entries:
        owners.setdefault(entry.colour, []).append(entry.name)
        index_of_colour[entry.colour] = index_of_id[entry.id]
    packed = sorted((r << 16 | g << 8 | b, index) for (r, g, b), index in index_of_colour.items())
    codes, indices = zip(*packed, strict=True)
    shared = next((" and ".join(names) for names in owners.values() if len(names) > 1), "")
    return _Lookup(known, of_id, np.array(codes, np.int64), np.array(indices, dtype), shared)


def _is_exact(image: Image.Image) -> bool:
    compression = str(image.info.get("compression", ""))
    return image.format in _EXACT_FORMATS and "jpeg" not in compression and "webp" not in compression


def _refuse_lossy(image: Image.Image, what: str, numbers: str) -> None:
    if not _is_exact(image):
        lossy = f"{image.format} {image.info.get('compression', '')}".strip()
        raise _RefusedError(f"{what} in {lossy}, which may change {numbers}; expected PNG (or lossless TIFF, BMP)")


def _values_of(image: Image.Image, raw: list[str]) -> Array:
    mode = image.mode
    if any(re.search(r"[^I];16[BLNS]", part) for part in raw):
        raise _RefusedError("a label map of 16-bit colours; expected 8 bits a channel, or ids in one channel")
    if mode in ("LA", "PA", "RGBA"):
        alpha = image.getchannel("A")
        if cast("tuple[int, int]", alpha.getextrema())[0] < 255:
            raise _RefusedError(f"a label map with transparency ({mode}); expected ids in one opaque channel, or RGB")
        values = np.array(image)[..., :-1]
        return values if mode == "RGBA" else values[..., 0]
    values = np.array(image)
    if mode == "1":
        return values.astype(np.uint8)
    if mode == "L":
        # Pillow stretches 2 and 4 bits to 0..255; ids must come back as they were.
        stretch = {"L;2": 85, "L;4": 17}.get(raw[0][:3] if raw else "", 1)
        if raw and raw[0].endswith("I"):
            values = ~values  # where 0 is white, it inverts them
        values = values // np.uint8(stretch)
        return values.view(np.int8) if _is_signed(image) else values
    if mode in ("P", "RGB", "I") or mode.startswith("I;16"):
        return values
    raise _RefusedError(f"a label map in mode {mode}; expected ids in one channel (P, L, I;16) or RGB")


def _is_signed(image: Image.Image) -> bool:
    """Whether it is a TIFF of 8 bits with a sign, which Pillow takes for 0..255."""
    tags = getattr(image, "tag_v2", {})
    return 2 in np.ravel(tags.get(0x0153, 1)) and image.mode in ("L", "RGB")


def _pack(colours: Array) -> npt.NDArray[np.int64]:
    wide = colours.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _count(values: Array, *, coloured: bool) -> dict[int | tuple[int, int, int], int]:
    """Pixels of each id, or of each colour where the last axis holds them."""
    found, counts = np.unique(_pack(values) if coloured else values, return_counts=True)
    keys = [(v >> 16, v >> 8 & 255, v & 255) if coloured else v for v in found.tolist()]
    return dict(zip(keys, counts.tolist(), strict=True))


def _outside(values: Array, known: npt.NDArray[np.bool_], classes: Classes) -> str:
    coloured = values.ndim == 3
    bad = _count(values[~known], coloured=coloured)
    most = sorted(bad, key=lambda value: -bad[value])[:8]
    listed = ", ".join(f"{value} ({bad[value]:,} px)" for value in most)
    more = f" and {len(bad) - len(most)} more" if len(bad) > len(most) else ""
    kind = ("colour" if coloured else "value") + ("s" if len(bad) > 1 else "")
    if coloured:
        expected = "the colours of the table of classes (classes.json)"
        grey = bool((values == values[..., :1]).all())
        hint = "all are grey: if these are ids, save them in one channel" if grey else "add them to the table"
    else:
        ids = classes.index_of_id()
        void = [i for i in ids if ids[i] == classes.void]
        expected = f"ids {_ranges([i for i in ids if ids[i] != classes.void])} or void {_ranges(void)}"
        hint = _hint([int(v) for v in np.unique(values)], list(bad), max(c.id for c in classes.used))
    return f"{len(bad)} {kind} outside the table of classes: {listed}{more}; expected {expected}; {hint}"


def _hint(present: list[int], bad: list[Any], largest: int) -> str:
    step = int(np.gcd.reduce(np.array(present)))
    if step > 1 and len(present) > 2 and present[-1] // step <= largest:
        return f"all values are multiples of {step}: was the map stretched for viewing?"
    if len(bad) > 15:
        return "so many look like a map resized with interpolation: resize labels with nearest neighbour"
    if bad == [largest + 1] and present[0] > 0:
        return "0 does not occur: are the ids shifted by one?"
    return "add them to the table, or mark them as ignored there"


def _ranges(ids: list[int]) -> str:
    """Ascending numbers in short: 0..3, 7."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _shape(values: Array) -> str:
    return f"{values.shape[0]} x {values.shape[1]}"


# Writing -------------------------------------------------------------------------------------------------------------


def _palette(classes: Classes) -> list[int]:
    colours = [voc_colour(i) for i in range(256)]
    for entry in classes.entries:
        if entry.id < 256:
            colours[entry.id] = entry.colour
    return [channel for colour in colours for channel in colour]


def _write(path: Path, image: Image.Image, kind: str, options: dict[str, int]) -> None:
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
