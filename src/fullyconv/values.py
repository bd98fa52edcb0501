"""Files of numbers that must come back exactly as they were stored: label maps and depth maps."""

from __future__ import annotations

import re
from os import PathLike
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from fullyconv.opening import (
    MAX_PIXELS,
    Array,
    RefusedError,
    at_most,
    count_frames,
    is_exact,
    is_signed,
    load,
    make_upright,
    opened,
    raw_modes,
)


def read_values(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Array:
    """Ids (H, W) as integers, or colours (H, W, 3) uint8, as they lie in a label file; EXIF orientation is applied.

    Raises:
        ImageError: as `fullyconv.labels.read_labels`, but for the table of classes.
    """
    with opened(path, max_pixels) as image:
        _refuse_lossy(image, "a label map", "ids")
        _refuse_misread(image)
        raw = raw_modes(image)
        load(image)
        values = make_upright(image, _values_of(image, raw), [])
        if (frames := count_frames(image)) > 1:
            raise RefusedError(f"a label map of {at_most(frames)} frames; expected one")
        return values


def read_depth(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.float32]:
    """Read a depth map into (H, W) float32: the numbers as they are stored, in whatever unit, upright.

    Args:
        path: PNG, or lossless TIFF, or BMP, of one channel of 8, 16 or 32 bits.
        max_pixels: most pixels that the file may declare.

    Raises:
        ImageError: not a depth map, lossy, of several channels, truncated or corrupt.
    """
    with opened(path, max_pixels) as image:
        _refuse_lossy(image, "a depth map", "depths")
        raw = raw_modes(image)
        load(image)
        if image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
            raise RefusedError(f"a depth map in mode {image.mode}; expected one channel of 8, 16 or 32 bits")
        values = np.array(image) if image.mode == "F" else _values_of(image, raw)
        return make_upright(image, values.astype(np.float32), [])


def _refuse_lossy(image: Image.Image, what: str, numbers: str) -> None:
    if not is_exact(image):
        lossy = f"{image.format} {image.info.get('compression', '')}".strip()
        raise RefusedError(f"{what} in {lossy}, which may change {numbers}; expected PNG (or lossless TIFF, BMP)")


def _refuse_misread(image: Image.Image) -> None:
    """Refuse a BMP whose palette is black and white and whose pixels have several bits, of which Pillow reads one."""
    if isinstance(image, ImageFile.ImageFile) and (image.format, image.mode) == ("BMP", "1") and image.fp is not None:
        image.fp.seek(14)
        header = image.fp.read(16)
        at = 10 if int.from_bytes(header[:4], "little") == 12 else 14  # OS/2's header, or Windows'
        if (bits := int.from_bytes(header[at : at + 2], "little")) != 1:
            raise RefusedError(
                f"a BMP of {bits} bits with a palette of black and white, which is misread; save it as PNG"
            )


def _values_of(image: Image.Image, raw: list[str]) -> Array:
    mode = image.mode
    if any(re.search(r"[^I];16[BLNS]", part) for part in raw):
        raise RefusedError("a label map of 16-bit colours; expected 8 bits a channel, or ids in one channel")
    if mode in ("LA", "PA", "RGBA"):
        alpha = image.getchannel("A")
        if cast("tuple[int, int]", alpha.getextrema())[0] < 255:
            raise RefusedError(f"a label map with transparency ({mode}); expected ids in one opaque channel, or RGB")
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
        return values.view(np.int8) if is_signed(image) else values
    if mode in ("P", "RGB", "I") or mode.startswith("I;16"):
        return values
    raise RefusedError(f"a label map in mode {mode}; expected ids in one channel (P, L, I;16) or RGB")
