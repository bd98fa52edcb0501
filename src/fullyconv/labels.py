"""Label maps: from the ids or colours of a file to channel numbers of a table of classes, and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fullyconv.config import Classes, voc_colour
from fullyconv.errors import ImageError, LabelError, LabelSizeError
from fullyconv.opening import MAX_PIXELS, Array, save
from fullyconv.values import read_values

Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


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
        raise LabelSizeError(
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
    save(path, image, "PNG", {"compress_level": 3})


YOURS = "if the table is yours (classes.json), add them"


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
        expected = "the colours of the table of classes"
        grey = bool((values == values[..., :1]).all())
        hint = "all are grey: if these are ids, save them in one channel" if grey else YOURS
    else:
        ids = classes.index_of_id()
        void = [i for i in ids if ids[i] == classes.void]
        expected = f"ids {_ranges([i for i in ids if ids[i] != classes.void])} or void {_ranges(void)}"
        ids_outside = sorted(value for value in bad if isinstance(value, int))
        if goes_on(ids_outside, classes):
            hint = f"ids go on to {ids_outside[-1]}, and the table ends at {ids_outside[0] - 1}: {YOURS}"
        else:
            hint = _hint([int(v) for v in np.unique(values)], list(bad), max(c.id for c in classes.used))
    return f"{len(bad)} {kind} outside the table of classes: {listed}{more}; expected {expected}; {hint}"


def goes_on(outside: list[int], classes: Classes) -> bool:
    """Whether several ids outside a table are those that follow it, as when the table is of another data set.

    Args:
        outside: ids that the table has not, ascending.
        classes: the table.

    Example:
        >>> goes_on([3, 4, 5], Classes.of("sky", "sea", "land")), goes_on([3, 5], Classes.of("sky", "sea", "land"))
        (True, False)
    """
    last = max(entry.id for entry in classes.used)
    # Blends of classes with a void of 255 also go on, but up to it.
    return len(outside) > 1 and outside == list(range(last + 1, last + 1 + len(outside))) and outside[-1] < 254


def _hint(present: list[int], bad: list[Any], largest: int) -> str:
    step = int(np.gcd.reduce(np.array(present)))
    if step > 1 and len(present) > 2 and present[-1] // step <= largest:
        return f"all values are multiples of {step}: was the map stretched for viewing?"
    if len(bad) > 15:
        return "so many look like a map resized with interpolation: resize labels with nearest neighbour"
    if bad == [largest + 1] and present[0] > 0:
        return "0 does not occur: are the ids shifted by one?"
    return f"{YOURS}, or mark them as ignored there"


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


def _palette(classes: Classes) -> list[int]:
    colours = [voc_colour(i) for i in range(256)]
    for entry in classes.entries:
        if entry.id < 256:
            colours[entry.id] = entry.colour
    return [channel for colour in colours for channel in colour]
