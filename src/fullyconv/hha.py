"""HHA: depth as three channels, horizontal disparity, height above ground and angle with gravity.

Gupta, Girshick, Arbelaez, Malik: Learning rich features from RGB-D images for object detection and segmentation,
ECCV 2014, after Gupta, Arbelaez, Malik, CVPR 2013; the FCN papers learn NYUDv2 from it. As in the authors' code:

- the normal of a pixel is that of the plane fitted, by least squares in inverse depth, to the 7 x 7 pixels around it,
  and points away from the camera, so that a floor has 0 degrees, a wall 90, a ceiling 180;
- gravity is found from the normals of windows of 21 x 21: from the picture's y axis on, five times with a margin of 45
  degrees and five times with one of 15, the direction most parallel to the normals that lie along it and most
  perpendicular to those that lie across it;
- where the lowest that is seen lies less than 90 cm below the camera, the ground is taken to be 130 cm below it;
- the numbers of the channels: 31000 / depth in cm, depth no less than 1 m; height in cm; degrees + 38.

Ours: at the edge of a thing the window is moved off the edge (of nine windows that hold the pixel, that which a plane
fits best), where the authors let it straddle; depth that was not measured is that of the nearest pixel that was, where
they have it painted in; the angle where nothing around was measured is 90 degrees, where their code gives 180; the
ground is the level of the floor that is seen lowest, where they take the lowest point, so that one wrong pixel does not
lift the whole room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.errors import ConfigError, DatasetError

Map = npt.NDArray[np.float64]

DISPARITY, HEIGHT, ANGLE = 310.0, 100.0, 38.0
"""Of the encoding: times 1/m, times m, plus degrees."""
NEAREST_M = 1.0
"""Depth below which the encoded disparity grows no more."""
RADIUS, GRAVITY_RADIUS = 3, 10
"""Of the windows that planes are fitted to, for the angle and for gravity."""
MARGINS = (45.0,) * 5 + (15.0,) * 5
"""Degrees from gravity, or from its horizon, within which a normal counts, round after round."""
LOW_M, ASSUMED_M = 0.9, 1.3
"""Ground seen less far below the camera than the first is not believed; then it is taken to lie at the second."""
LEVEL_M = 0.1
"""How far from the lowest that is seen a pixel of the floor may lie."""
FLOOR_SHARE = 0.005
"""Share of the pixels that a floor must have to set the level."""


@dataclass(frozen=True)
class Camera:
    """A pinhole: pixel (u, v) at depth z shows the point ((u - cx) z / fx, (v - cy) z / fy, z); pixels count from 0.

    Raises:
        ConfigError: a focal length that is not more than 0, or a number that is not finite.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or (name in ("fx", "fy") and value <= 0):
                expected = "a focal length in pixels, more than 0" if name in ("fx", "fy") else "a position in pixels"
                raise ConfigError(f"{name}: got {value}; expected {expected}", where=name)


NYUD = Camera(518.85790117450188, 519.46961112127485, 324.58244941119034, 252.73616633400465)
"""Of NYUDv2's colour camera, onto which its depth is projected: 640 x 480. (Its toolbox counts pixels from 1.)"""


_ROWS_ABOVE = {(425, 560): 45, (427, 561): 44}
"""Rows above NYUDv2's crops, which have 40 columns to their left: the usual, (46:470, 41:600) from 1 as in Matlab, and
the toolbox's own, (45:471, 41:601)."""


def nyud_camera(height: int, width: int) -> Camera:
    """The camera of NYUDv2 for pictures of this size.

    Args:
        height: 480, that of the usual crop, 425, or of the toolbox's, 427, or a part of the whole: 240, ...
        width: 640, 560 or 561, or a part of the whole: 320, ...

    Raises:
        DatasetError: another size.

    Example:
        >>> nyud_camera(240, 320).fx
        259.42895058725094
    """
    if (top := _ROWS_ABOVE.get((height, width))) is not None:
        return Camera(NYUD.fx, NYUD.fy, NYUD.cx - 40, NYUD.cy - top)
    if width * 3 != height * 4:
        raise DatasetError(
            f"depth of {height} x {width} pixels (height x width); expected 480 x 640 as in NYUDv2, its crops of "
            "425 x 560 and 427 x 561, or the whole made smaller; for another camera compute HHA with "
            "`fullyconv hha --fx ...`"
        )
    scale = width / 640
    return Camera(NYUD.fx * scale, NYUD.fy * scale, (NYUD.cx + 0.5) * scale - 0.5, (NYUD.cy + 0.5) * scale - 0.5)


@dataclass(frozen=True)
class HHA:
    """What a depth map says of a scene.

    Attributes:
        disparity: (H, W) float32, 1 / depth, in 1/m.
        height: (H, W) float32, above ground, in m.
        angle: (H, W) float32, between gravity and the normal that points away from the camera, in degrees: 0 for a
            floor, 90 for a wall, 180 for a ceiling.
        gravity: (3,) float64, its direction in the camera's axes (right, down, ahead); of length 1.
        measured: (H, W) bool, where there was a depth.
    """

    disparity: npt.NDArray[np.float32]
    height: npt.NDArray[np.float32]
    angle: npt.NDArray[np.float32]
    gravity: npt.NDArray[np.float64]
    measured: npt.NDArray[np.bool_]

    def encoded(self) -> npt.NDArray[np.uint8]:
        """The three channels as published, (H, W, 3) uint8: disparity, height, angle; out of range is cut off."""
        channels = (
            DISPARITY * np.minimum(self.disparity, 1 / NEAREST_M),
            HEIGHT * self.height,
            self.angle + ANGLE,
        )
        return np.stack([np.clip(np.floor(c + 0.5), 0, 255).astype(np.uint8) for c in channels], axis=2)


def decoded(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """From encoded HHA (H, W, 3) uint8 to (H, W, 3) float32: disparity in 1/m, height in m, angle in degrees.

    Example:
        >>> decoded(np.array([[[155, 80, 128]]], np.uint8)).tolist()
        [[[0.5, 0.800000011920929, 90.0]]]
    """
    scale = np.array([DISPARITY, HEIGHT, 1.0])
    values: npt.NDArray[np.float32] = ((pixels - np.array([0.0, 0.0, ANGLE])) / scale).astype(np.float32)
    return values


def hha(depth: npt.ArrayLike, camera: Camera = NYUD) -> HHA:
    """Compute HHA from depth.

    Args:
        depth: (H, W), in metres along the camera's axis; 0, or no finite number, where nothing was measured.
        camera: that it was taken with.

    Raises:
        DatasetError: not (H, W), or nothing was measured.

    Example:
        A wall two metres ahead of a level camera, which sees no floor:

        >>> found = hha(np.full((48, 64), 2.0), Camera(60, 60, 31.5, 23.5))
        >>> found.encoded()[23, 31].tolist()  # 310 / 2; cm above ground, 130 below the camera; 90 + 38
        [155, 132, 128]
    """
    z = np.asarray(depth, np.float64)
    if z.ndim != 2:
        raise DatasetError(f"depth of shape {z.shape}; expected (height, width), in metres")
    measured = np.isfinite(z) & (z > 0)
    if not measured.any():
        raise DatasetError("no pixel has a depth above 0; expected metres, with 0 where nothing was measured")
    z = _filled(z, measured)
    rows, columns = np.ogrid[: z.shape[0], : z.shape[1]]
    rays = ((columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy)

    gravity = _gravity(_normals(1 / z, measured, camera, GRAVITY_RADIUS)[:, measured])
    normals = _normals(1 / z, measured, camera, RADIUS)
    angle = np.degrees(np.arccos(np.clip(np.einsum("c,chw->hw", gravity, normals), -1, 1)))
    # Metres below the camera.
    below = z * (rays[0] * gravity[0] + rays[1] * gravity[1] + gravity[2])
    height = _ground(below[measured], angle[measured]) - below
    return HHA((1 / z).astype(np.float32), height.astype(np.float32), angle.astype(np.float32), gravity, measured)


def _filled(z: Map, measured: npt.NDArray[np.bool_]) -> Map:
    """Depth with that of the nearest measured pixel where nothing was measured."""
    if measured.all():
        return z
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(~measured, return_distances=False, return_indices=True)
    filled: Map = z[tuple(nearest)]
    return filled


def _normals(inverse: Map, measured: npt.NDArray[np.bool_], camera: Camera, radius: int) -> Map:
    """Unit normals (3, H, W) that point away from the camera, each of the window of its pixel that is most a plane.

    A plane n . (X, Y, Z) = 1 is n . (x, y, 1) = 1 / Z in the rays (x, y) = (X / Z, Y / Z): linear in the pixel.
    """
    height, width = inverse.shape
    v, u = (
        np.broadcast_to(c, inverse.shape)
        for c in np.ogrid[0.5 - height / 2 : height / 2 : 1.0, 0.5 - width / 2 : width / 2 : 1.0]
    )
    weight = measured.astype(np.float64)
    middle = inverse[measured].mean()
    d = np.where(measured, inverse - middle, 0)

    # Means and covariances in each window.
    count = np.maximum(_box(weight, radius), 1)
    mu, mv, md = (_box(q, radius) / count for q in (weight * u, weight * v, d))
    cuu = _box(weight * u * u, radius) / count - mu * mu
    cuv = _box(weight * u * v, radius) / count - mu * mv
    cvv = _box(weight * v * v, radius) / count - mv * mv
    cud = _box(d * u, radius) / count - mu * md
    cvd = _box(d * v, radius) / count - mv * md
    cdd = _box(d * d, radius) / count - md * md
    determinant = cuu * cvv - cuv * cuv
    # Fewer than three pixels, or pixels on one line, have no plane.
    sound = (count >= 2 * radius + 1) & (determinant > 0.1)
    determinant[~sound] = 1
    a = (cvv * cud - cuv * cvd) / determinant
    b = (cuu * cvd - cuv * cud) / determinant
    left = np.where(sound, np.maximum(cdd - a * cud - b * cvd, 0), np.inf)

    # The window that holds the pixel and is most a plane: its own, unless another leaves less than half.
    places = np.arange(inverse.size).reshape(inverse.shape)
    best, least = places, left / 2
    for down in (-radius, 0, radius):
        for right in (-radius, 0, radius):
            at = np.ix_(
                np.clip(np.arange(height) + down, 0, height - 1), np.clip(np.arange(width) + right, 0, width - 1)
            )
            less = left[at] < least
            least = np.where(less, left[at], least)
            best = np.where(less, places[at], best)
    a, b, c = (q.ravel()[best] for q in (a, b, md - a * mu - b * mv))
    c += middle

    # From slopes in pixels, at the middle of the picture, to slopes in rays.
    shift = (camera.cx - (width - 1) / 2, camera.cy - (height - 1) / 2)
    normals = np.stack([a * camera.fx, b * camera.fy, c + a * shift[0] + b * shift[1]])
    # Ahead where nothing is known; away from the camera is where n . (X, Y, Z) = 1 > 0 already.
    normals[:, ~np.isfinite(least)] = [[0.0], [0.0], [1.0]]
    unit: Map = normals / np.maximum(np.sqrt((normals * normals).sum(axis=0)), 1e-12)
    return unit


def _box(q: Map, radius: int) -> Map:
    """Sums over the windows of 2 radius + 1 pixels a side, cut off at the border."""
    for axis in (0, 1):
        size = q.shape[axis]
        sums = np.concatenate([np.zeros_like(q.take([0], axis)), np.cumsum(q, axis=axis)], axis=axis)
        place = np.arange(size)
        upper, lower = np.minimum(place + radius + 1, size), np.maximum(place - radius, 0)
        q = sums.take(upper, axis) - sums.take(lower, axis)
    return q


def _gravity(normals: Map) -> Map:
    """The direction of gravity, from unit normals (3, N)."""
    y = np.array([0.0, 1.0, 0.0])
    for margin in np.radians(MARGINS):
        along = np.abs(y @ normals)
        sign = (along < np.sin(margin)).astype(np.float64) - (along > np.cos(margin))
        scatter = (normals * sign) @ normals.T
        # Where walls leave more than one direction, as one wall does, that nearest to the last is taken.
        scatter -= 1e-6 * normals.shape[1] * np.outer(y, y)
        found = np.linalg.eigh(scatter)[1][:, 0]
        y = found * (1 if found @ y >= 0 else -1)
    return y


def _ground(below: Map, angle: Map) -> float:
    """How far below the camera the ground lies, in m, from how far below it each pixel does, and its angle."""
    lowest = float(np.percentile(below, 99.9))
    floor = below[(angle < MARGINS[-1]) & (np.abs(below - lowest) < LEVEL_M)]
    level = float(np.median(floor)) if floor.size >= FLOOR_SHARE * below.size else lowest
    return level if level >= LOW_M else ASSUMED_M
