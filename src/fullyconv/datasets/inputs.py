"""What a picture can be made of, channel after channel: colour, depth, HHA.

HHA (Gupta et al., ECCV 2014) is depth in three channels: horizontal disparity, height above ground, angle with gravity.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.errors import ConfigError, DatasetError, ImageError
from fullyconv.hha import hha, nyud_camera
from fullyconv.images import read_image
from fullyconv.lookup import lookup
from fullyconv.values import read_depth

CHANNELS: Mapping[str, int] = {"color": 3, "depth": 1, "hha": 3}
"""Inputs by name, and how many channels each is."""

HHA_OF_NYUD_DEPTH = "hha of depth"
"""How `read_inputs` is told that the file of an input holds NYUDv2's depth, in millimetres, and HHA is wanted of it."""


def check_inputs(inputs: Sequence[str], have: Collection[str], *, where: str) -> None:
    """Refuse inputs that there are not.

    Args:
        inputs: as asked for.
        have: those of the data set.
        where: the data set, for the message.

    Raises:
        UnknownName: no input of that name.
        ConfigError: none, or one twice.
        DatasetError: one that this data set has not.

    Example:
        >>> check_inputs(("color", "depth"), CHANNELS, where="nyud")
    """
    for name in inputs:
        lookup("input", name, CHANNELS)
        if name not in have:
            raise DatasetError(f"{where}: got the input {name!r}; its pictures have {', '.join(have)} only")
    if not inputs or len(set(inputs)) < len(inputs):
        raise ConfigError(
            f"inputs: got {', '.join(inputs) or 'none'}; expected some of {', '.join(CHANNELS)}, each once",
            where="inputs",
        )


def read_inputs(files: Mapping[str, Path]) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Read a picture from the file of each input, and stack their channels in this order.

    Colour and HHA are taken as they are stored, 0..255. Depth is the natural logarithm of the stored number, as the
    authors feed it. Where nothing was measured (0, or no finite number), it is the mean of the logarithms where
    something was, so that the net sees neither a hole nor a wall there; a note says so. HHA of `HHA_OF_NYUD_DEPTH` is
    computed.

    Returns:
        (H, W, C) uint8, or float32 where depth is among the inputs; and notes on what was done.

    Raises:
        ImageError: a file cannot be used, is of another size than the first, or measures no depth at all.
    """
    parts: list[npt.NDArray[Any]] = []
    notes: list[str] = []
    part: npt.NDArray[Any]
    for name, path in files.items():
        if name == "depth":
            part, unmeasured = _log_depth(path)
            if unmeasured:
                notes.append(f"depth that was not measured is the mean of what was ({unmeasured:,} px)")
        elif name == HHA_OF_NYUD_DEPTH:
            part = _hha_of_depth(path)
        else:
            image = read_image(path)
            part = image.pixels
            notes += image.notes if name == "color" else [f"{name}: {note}" for note in image.notes]
        if parts and part.shape[:2] != parts[0].shape[:2]:
            (height, width), (h, w) = parts[0].shape[:2], part.shape[:2]
            raise ImageError(path, f"{h} x {w} pixels of {name} for a picture of {height} x {width} (height x width)")
        parts.append(part)
    return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)), tuple(notes)


def _log_depth(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """(H, W, 1), and how many of its pixels had no measurement."""
    stored = read_depth(path)
    measured = np.isfinite(stored) & (stored > 0)
    if not measured.any():
        raise ImageError(path, "no pixel has a depth above 0; expected a depth map, with 0 where nothing was measured")
    logarithms = np.log(stored, out=np.zeros_like(stored), where=measured)
    missing = int(measured.size - measured.sum())
    if missing:
        logarithms[~measured] = logarithms[measured].mean(dtype=np.float64)
    return logarithms[..., None], missing


def _hha_of_depth(path: Path) -> npt.NDArray[np.uint8]:
    depth = read_depth(path)
    try:
        return hha(depth / 1000, nyud_camera(*depth.shape)).encoded()
    except DatasetError as error:
        raise ImageError(path, str(error)) from None
