"""The one door through which a picture becomes an array: (H, W, 3) uint8 RGB, upright.

What was done on the way that the eye may not expect (a frame chosen, an alpha composed, 16 bits scaled to 8) is said in
notes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from fullyconv.config import Classes
from fullyconv.errors import ImageError
from fullyconv.opening import (
    MAX_PIXELS,
    UPRIGHT,
    Array,
    RefusedError,
    at_most,
    count_frames,
    is_signed,
    load,
    make_upright,
    opened,
    raw_modes,
    save,
)

UInt8 = npt.NDArray[np.uint8]
Picture = str | PathLike[str] | Image.Image | Array
"""What stands for a picture: a path, a Pillow image, or an array (H, W, 3), (H, W, 4) or (H, W) of uint8."""
# fmt: off
SUFFIXES = frozenset((
    ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pcx",
    ".pgm", ".png", ".pnm", ".ppm", ".psd", ".sgi", ".tga", ".tif", ".tiff", ".webp",
))
# fmt: on
"""Endings (lower case) by which a file in a folder is taken for a picture. What it holds is found by reading it."""

REDUCED = "16 bits a channel reduced to 8"
DARK = "it uses few of them and is dark: rescale it if it was meant brighter"


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
    with opened(picture, max_pixels) as image:
        notes += _notes_before_load(image)
        load(image)
        pixels = _to_rgb(image, background, notes)
        if REDUCED in notes and pixels.max() < 16:  # 12 bits, say, of a camera or a microscope
            notes[notes.index(REDUCED)] += f"; {DARK}"
        pixels = make_upright(image, pixels, notes)
        if not isinstance(picture, Image.Image):
            notes += _notes_on_frames(image)
    return ReadImage(pixels, tuple(notes))


def thumbnail(pixels: Array, height: int, width: int) -> UInt8:
    """What is `visible` of a picture (H, W, C) as (height, width, 3) uint8; each pixel is the mean of what it covers.

    Example:
        >>> thumbnail(np.full((30, 40, 3), 7, np.uint8), 2, 2).tolist()
        [[[7, 7, 7], [7, 7, 7]], [[7, 7, 7], [7, 7, 7]]]
    """
    small = Image.fromarray(visible(pixels)).resize((width, height), Image.Resampling.BOX)
    return np.array(small)


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
    save(path, Image.fromarray(pixels), kind, {"quality": 92, "subsampling": 0} if kind == "JPEG" else {})


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
    if is_signed(image):
        raise RefusedError("8-bit integers with a sign; expected 0..255: nothing says what is white, so scale it")
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
        raise RefusedError("floats with NaN or infinity; expected 0..1 or 0..255")
    low, high = values.min(), values.max()
    if image.mode == "F" and low >= 0 and high <= 255:
        scale = 255 if high <= 1 else 1
        notes.append(f"floats in {low:g}..{high:g} " + ("multiplied by 255" if scale == 255 else "rounded"))
        grey = np.floor(values * scale + 0.5).astype(np.uint8)
    elif image.mode == "I" and image.format != "PPM" and low >= 0 and high <= 255:
        notes.append(f"32-bit integers in {low}..{high} taken as 0..255")
        grey = values.astype(np.uint8)
    elif image.mode != "F" and low >= 0 and high <= 65535:
        dark = f"; {DARK}" if high < 4096 else ""
        notes.append(f"16 bits scaled to 8 (divided by 257; values {low}..{high}){dark}")
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        kind, ranges = ("floats", "0..1 or 0..255") if image.mode == "F" else ("32-bit integers", "0..255 or 0..65535")
        raise RefusedError(f"{kind} in {low:g}..{high:g}; expected {ranges}: nothing says what is white, so scale it")
    pixels = np.repeat(grey[..., None], 3, axis=2)
    transparent = values == image.info.get("transparency", -1)
    if transparent.any():
        pixels[transparent] = background
        notes.append(f"transparent parts composed on {background}")
    return pixels


def _notes_before_load(image: Image.Image) -> Iterator[str]:
    """What can be seen only before ``load()``, which forgets how the pixels were stored."""
    if any(re.search(r"[^I];16[BLNS]", raw) for raw in raw_modes(image)):
        yield REDUCED
    tags = getattr(image, "tag_v2", {})
    if (turn := tags.get(0x0112, 1)) in UPRIGHT:
        yield f"turned upright (EXIF orientation {turn})"
    if (bands := tags.get(0x0115, 1)) > max(len(image.getbands()), 3):
        yield f"{bands} bands, of which the first {len(image.getbands())} are used"
    if len(sizes := image.info.get("sizes", ())) > 1:
        yield f"{len(sizes)} sizes in one file; the largest is used"


def _notes_on_frames(image: Image.Image) -> Iterator[str]:
    try:
        frames = count_frames(image)
    except Exception as error:  # counting walks through the whole file, broken or not
        yield f"frame 0 is used; further ones cannot be counted ({type(error).__name__})"
        return
    if frames > 1:
        yield f"{frames} layers, flattened" if image.format == "PSD" else f"frame 0 of {at_most(frames)} is used"
