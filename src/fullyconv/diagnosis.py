"""Why a pair could not be read: from one refusal to the kind of fault that it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.config import Classes
from fullyconv.errors import ImageError, LabelError, LabelSizeError
from fullyconv.findings import Finding
from fullyconv.images import SUFFIXES, read_image
from fullyconv.labels import goes_on
from fullyconv.opening import read_form
from fullyconv.values import read_values

MANY = 15
"""More values outside the table than these are taken for blends of others."""


def diagnose(error: ImageError, files: tuple[Path | None, ...], classes: Mapping[str, Classes]) -> Finding:
    """The finding that a refused pair is.

    Args:
        error: what reading it raised.
        files: of the picture, then of each head's label map.
        classes: for each head, its table.
    """
    tables = dict(zip(files[1:], classes.values(), strict=True))
    table = tables.get(error.path)
    if not error.path.exists():
        kind = "unpaired"
    elif table is None:
        kind = "corrupt"
    elif error.path.suffix.lower() not in SUFFIXES:
        # Of another format, such as .mat: either it was read, and its size or numbers are refused, or it cannot be.
        kind = "size" if isinstance(error, LabelSizeError) else "label" if isinstance(error, LabelError) else "corrupt"
    else:
        kind = _of_label_map(error.path, files[0], table)
    concerned = [error.path, *([files[0]] if kind in ("size", "exif") and files[0] is not None else [])]
    return Finding(kind, "error", tuple(map(str, concerned)), str(error))


def _of_label_map(path: Path, picture: Path | None, classes: Classes) -> str:
    try:
        form = read_form(path)
        if not form.exact:
            return "lossy"
        read_image(path)
    except ImageError:
        return "corrupt"
    try:
        values = read_values(path)
    except ImageError:
        return "alpha" if form.transparency else "label"
    if picture is not None:
        like = read_form(picture)
        upright = like.size[::-1] if like.orientation >= 5 else like.size
        if values.shape[:2] != upright:
            stored_alike = form.size == like.size and form.orientation != like.orientation
            return "exif" if stored_alike else "size"
    return _of_values(values, classes)


def _of_values(values: npt.NDArray[Any], classes: Classes) -> str:
    if values.ndim == 3:
        codes = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
        colours = len(np.unique(codes))
        # Flat colours are few; blends along edges, and what JPEG makes of flat colours, are very many.
        return "antialiased" if colours > 8 * (len(classes.entries) + MANY) else "rgb"
    present = np.unique(values).tolist()
    known = classes.index_of_id()
    outside = [value for value in present if value not in known]
    if shift_of(present, classes):
        return "shifted"
    return "antialiased" if len(outside) > MANY and not goes_on(outside, classes) else "label"


def shift_of(present: list[int], classes: Classes) -> int:
    """What must be added to the ids of a label map so that they are those of the table; 0 where nothing proves a shift.

    A map is one too high when the only id outside the table is the one after the last, and the first does not occur;
    one too low the other way round.

    Args:
        present: ids that occur, ascending.
        classes: the table.

    Example:
        >>> shift_of([1, 2, 3, 255], Classes.of("sky", "sea", "land"))
        -1
        >>> shift_of([0, 1, 3], Classes.of("sky", "sea", "land"))
        0
    """
    known = classes.index_of_id()
    ids = [entry.id for entry in classes.entries]
    # 255 as void stands apart from the table, and is moved by nobody.
    ids = [number for number in ids if number != classes.void] or ids
    outside = [value for value in present if value not in known]
    for bad, missing, step in ((ids[-1] + 1, ids[0], -1), (ids[0] - 1, ids[-1], 1)):
        if outside == [bad] and missing not in present and len(present) > 1:
            return step
    return 0
