"""HHA against rooms whose truth is known exactly, and against the published encoding."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter, minimum_filter

from fullyconv.datasets.folder import open_folder
from fullyconv.errors import DatasetError
from fullyconv.hha import NYUD, Camera, decoded, hha, nyud_camera
from fullyconv.labels import read_labels
from fullyconv.values import read_depth

SIZE = (240, 320)
CAMERA = nyud_camera(*SIZE)


@dataclass(frozen=True)
class Room:
    """What a camera sees of a room of 4.2 x 2.6 x 6 m with a table in it, and the truth of it."""

    depth: npt.NDArray[np.float64]
    height: npt.NDArray[np.float64]
    angle: npt.NDArray[np.float64]
    gravity: npt.NDArray[np.float64]
    face: npt.NDArray[np.int64]

    def windows(self, *, moved: bool) -> npt.NDArray[np.bool_]:
        """Where the 7 x 7 window of a pixel shows one face only; or one of the nine that are moved by 0 or 3 does."""
        pure = maximum_filter(self.face, 7, mode="nearest") == minimum_filter(self.face, 7, mode="nearest")
        if not moved:
            return pure
        height, width = pure.shape
        rows, columns = (np.add.outer((-3, 0, 3), np.arange(n)).clip(0, n - 1) for n in (height, width))
        return np.any([pure[np.ix_(r, c)] for r in rows for c in columns], axis=0)


TOUCHING = 1e-3
"""Share of its depth by which a point may lie off a second plane, to be taken for one of both."""


def room(pitch: float, roll: float, *, yaw: float = 20, above: float = 1.4, camera: Camera = CAMERA, size=SIZE) -> Room:
    """Seen from ``above`` metres; angles in degrees, a positive pitch looks up."""
    p, r, y = np.radians([pitch, roll, yaw])
    to_world = (
        np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        @ np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
        @ np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    )
    v, u = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(size)])
    rays = np.einsum("ij,jhw->ihw", to_world, rays)
    depth, angle, face = np.full(size, np.inf), np.zeros(size), np.zeros(size, int)
    edge = np.zeros(size, bool)
    # Axis (x right, y down, z ahead), place along it, angle of its normal with gravity; of boxes all the six faces.
    walls = [(1, above, 0), (1, above - 2.6, 180), (0, -2.2, 90), (0, 2.0, 90), (2, 4.0, 90), (2, -2.0, 90)]
    low, high = np.array([-0.8, above - 0.75, 1.8]), np.array([0.7, above, 2.6])
    table = [(axis, end[axis], 0 if axis == 1 else 90) for axis in range(3) for end in (low, high)]
    for number, (axis, place, normal) in enumerate(walls + table):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = place / rays[axis]
            at = rays * t
        there = t > 0
        if number >= len(walls):
            others = [i for i in range(3) if i != axis]
            there &= np.all([(at[i] >= low[i]) & (at[i] <= high[i]) for i in others], axis=0)
        seen = there & (t < depth)
        if number < len(walls) or place != above:  # the table stands on the floor
            with np.errstate(invalid="ignore"):
                edge = np.where(seen, False, edge) | (there & (abs(t - depth) < TOUCHING * t))
        depth[seen], angle[seen], face[seen] = t[seen], normal, number
    face[edge] = -1  # a point of two planes, as there are where the room is not turned: either has it
    return Room(depth, above - (rays * depth)[1], angle, to_world.T @ np.array([0.0, 1.0, 0.0]), face)


def between(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(pitch=st.floats(-15, -4), roll=st.floats(-15, 15), yaw=st.floats(-40, 40), above=st.floats(1.1, 1.6))
def test_a_tilted_room_is_measured_as_it_is(pitch: float, roll: float, yaw: float, above: float) -> None:
    truth = room(pitch, roll, yaw=yaw, above=above)
    found = hha(truth.depth, CAMERA)
    assert between(found.gravity, truth.gravity) < 0.2
    assert np.array_equal(found.disparity, (1 / truth.depth).astype(np.float32))
    assert np.abs(found.height - truth.height).max() < 0.02
    # Everywhere but on strips and in corners that no window fits into. Beside an edge a window that reaches a little
    # over it may fit as well as one that does not: one pixel in 110 rooms, of 76,000 each, was seen to take it.
    assert (np.abs(found.angle - truth.angle)[truth.windows(moved=True)] >= 1).sum() <= 1
    assert truth.windows(moved=True).mean() > 0.98
    assert found.measured.all()


def test_windows_do_not_straddle_the_edge_of_the_table() -> None:
    truth = room(-14, 6)
    edge = truth.windows(moved=True) & ~truth.windows(moved=False)
    assert edge.sum() > 5000
    assert np.abs(hha(truth.depth, CAMERA).angle - truth.angle)[edge].max() < 1


def test_noise_and_holes_move_gravity_and_ground_little() -> None:
    truth = room(-12, 9)
    rng = np.random.default_rng(0)
    depth = truth.depth + rng.normal(0, 0.005, SIZE)
    depth[rng.random(SIZE) < 0.05] = 0
    depth[40:70, 100:140] = np.nan
    depth[230, 5] = 60.0  # one wrong pixel, far below the floor
    found = hha(depth, CAMERA)
    assert between(found.gravity, truth.gravity) < 0.5
    right = found.measured.copy()
    right[230, 5] = False
    assert np.abs(found.height - truth.height)[right].max() < 0.06
    assert np.median(np.abs(found.height - truth.height)[right]) < 0.005
    assert not found.measured[50, 120]
    assert np.isfinite(found.disparity).all()
    assert np.isfinite(found.angle).all()


def test_what_was_not_measured_is_as_deep_as_the_nearest_that_was() -> None:
    depth = np.full((20, 30), 2.0)
    depth[:, 15:] = 4.0
    depth[5:9, 10:13] = 0
    found = hha(depth, Camera(30, 30, 14.5, 9.5))
    assert (found.disparity[5:9, 10:13] == 0.5).all()
    assert (found.measured == (depth > 0)).all()


def test_ground_that_is_not_seen_is_assumed_where_the_authors_assume_it() -> None:
    # A wall in front of a level camera: the lowest pixel is 23.5 / 50 * 1.5 m below it, which is less than 90 cm.
    found = hha(np.full((48, 64), 1.5), Camera(50, 50, 31.5, 23.5))
    np.testing.assert_allclose(found.height[:, 0], 1.3 - 1.5 * (np.arange(48) - 23.5) / 50, atol=1e-5)
    np.testing.assert_allclose(found.gravity, [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found.angle, 90, atol=1e-3)


def test_the_encoding_is_the_published_one() -> None:
    truth = room(-10, 0)
    found = hha(truth.depth, CAMERA)
    pixels = found.encoded()
    assert (pixels.shape, pixels.dtype) == ((*SIZE, 3), np.uint8)
    # 31000 / depth in cm, height in cm, degrees + 128 - 90.
    expected = np.stack([31000 / np.maximum(truth.depth * 100, 100), truth.height * 100, truth.angle + 38], axis=2)
    flat = truth.windows(moved=True)
    assert np.abs(pixels - np.clip(expected, 0, 255))[flat].max() <= 1.6  # half a step, and 1 degree
    assert {38, 128} <= set(np.unique(pixels[flat][:, 2]))
    back = decoded(pixels)
    within = flat & (truth.depth > 310 / 255) & (truth.height < 2.55)
    for channel, exact, step in zip(
        np.moveaxis(back, 2, 0), (found.disparity, found.height, found.angle), (1 / 310, 0.01, 1), strict=True
    ):
        assert np.abs(channel - exact)[within].max() <= 0.51 * step


def test_the_cameras_of_nyud_agree_on_a_common_picture() -> None:
    # The centre of pixel (10, 20) of the half-size picture is the corner of four of the whole.
    half, crop = nyud_camera(240, 320), nyud_camera(425, 560)
    assert (20 - half.cx) / half.fx == pytest.approx((40.5 - NYUD.cx) / NYUD.fx)
    assert (10 - half.cy) / half.fy == pytest.approx((20.5 - NYUD.cy) / NYUD.fy)
    # Matlab's I(46:470, 41:600) and I(45:471, 41:601), from 1.
    assert (5 - crop.cx) / crop.fx == pytest.approx((45 - NYUD.cx) / NYUD.fx)
    assert (7 - crop.cy) / crop.fy == pytest.approx((52 - NYUD.cy) / NYUD.fy)
    assert nyud_camera(427, 561) == Camera(crop.fx, crop.fy, crop.cx, crop.cy + 1)
    assert nyud_camera(480, 640) == NYUD
    with pytest.raises(DatasetError, match=r"depth of 100 x 100 pixels \(height x width\); expected 480 x 640"):
        nyud_camera(100, 100)


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (np.zeros((4, 4)), "no pixel has a depth above 0; expected metres"),
        (np.full((4, 4), np.nan), "no pixel has a depth above 0"),
        (np.ones((4, 4, 1)), r"depth of shape \(4, 4, 1\); expected \(height, width\)"),
    ],
)
def test_depth_that_is_none_is_refused(depth: npt.NDArray[np.float64], said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        hha(depth)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (7, 7)])
def test_any_size_has_an_answer(size: tuple[int, int]) -> None:
    found = hha(np.full(size, 2.0), Camera(50, 50, 1, 1))
    assert found.encoded().shape == (*size, 3)
    assert np.isfinite(found.angle).all()


def test_a_picture_takes_a_second_at_most() -> None:
    depth = room(-10, 5, camera=NYUD, size=(480, 640)).depth
    least = 9.0
    for _ in range(6):
        # Of this process alone: the others on the machine take none of it.
        started_at = time.process_time()
        hha(depth)
        least = min(least, time.process_time() - started_at)
        if least < 1:
            return
    pytest.fail(f"{least:.2f} s; expected 1 s at most")


def test_real_floors_lie_low_and_real_walls_stand(shared: Path) -> None:
    root = shared / "nyud"
    data = open_folder(root, split="val")
    table = data.classes["out"]
    medians: dict[str, list[tuple[float, float]]] = {"floor": [], "wall": []}
    for i in range(0, 60, 5):
        name = data.names[i]
        # 8 bits for 10 m, as the data's own README infers.
        found = hha(read_depth(root / f"depth/{name}.png") / 25.5, nyud_camera(240, 320))
        labels = read_labels(root / f"labels/{name}.png", classes=table)
        for kind, of_kind in medians.items():
            if (here := labels == table.names.index(kind)).sum() > 2000:
                of_kind.append((float(np.median(found.height[here])), float(np.median(found.angle[here]))))
    heights, angles = np.array(medians["floor"]).T
    assert len(heights) >= 3
    assert np.median(heights) < 0.15
    assert np.median(angles) < 20
    assert 80 < np.median(np.array(medians["wall"])[:, 1]) < 100
