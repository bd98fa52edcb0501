"""Label maps in MATLAB files, as SBD, NYUDv2, SIFT Flow and PASCAL-Context have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.errors import ImageError


def read_mat(path: Path, *, variable: str, field: str | None = None) -> npt.NDArray[np.int64]:
    """Read the ids of a label map from a MATLAB file of version 4 to 7.2.

    Args:
        path: the file.
        variable: what holds the map.
        field: where the variable is a struct, the field of it that does.

    Returns:
        (H, W) int64, as stored.

    Raises:
        ImageError: no such file, not a MATLAB file that can be read, no such variable, or not (H, W) whole numbers.
    """
    from scipy.io import loadmat

    wanted = variable if field is None else f"{variable}.{field}"
    if not path.is_file():
        raise ImageError(path, f"no such file; expected a MATLAB file with {wanted}")
    try:
        with path.open("rb") as file:
            content = loadmat(file)
    except NotImplementedError:
        raise ImageError(path, "a MATLAB file of version 7.3; save it with -v7") from None
    except Exception as error:  # a damaged file makes scipy raise anything
        raise ImageError(path, f"not a MATLAB file that can be read: {' '.join(str(error).split())[:200]}") from error
    found: Any = content.get(variable)
    if found is not None and field is not None:
        inner = found[field] if found.dtype.names and field in found.dtype.names and found.size else None
        found = None if inner is None else inner.flat[0]
    if found is None:
        has = ", ".join(_with_fields(name, value) for name, value in content.items() if not name.startswith("__"))
        raise ImageError(path, f"no {wanted} in it; found {has or 'nothing'}")
    ids = np.asarray(found)
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "biuf":
        raise ImageError(path, f"{wanted} is {ids.dtype} of shape {ids.shape}; expected whole numbers (H, W)")
    # NaN is equal to nothing, and infinity is larger than what float64 holds exactly.
    if ids.dtype.kind == "f" and not (whole := (ids == np.floor(ids)) & (np.abs(ids) < 2**53)).all():
        raise ImageError(path, f"{wanted} holds {ids[~whole][0]}; expected ids, which are whole numbers")
    return ids.astype(np.int64)


def _with_fields(name: str, value: npt.NDArray[Any]) -> str:
    fields = ", ".join(getattr(value.dtype, "names", None) or ())
    return f"{name} ({fields})" if fields else name
