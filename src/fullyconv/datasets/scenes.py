"""Generated scenes: lit things of ten kinds lying over each other on a textured ground, with exact labels.

Nothing is downloaded and nothing is stored: sample ``i`` is a function of the seed, the split and ``i``. Kinds differ
by shape, colour and pattern, so that a small net learns them in minutes; poles, wires, ladders, rings and buttons are a
few pixels wide, so that a finer prediction stride shows. As in PASCAL VOC, a thin void border surrounds each thing.

Every thing is one signed distance function ``d(u, v)`` in pixels, negative inside: its edge is anti-aliased, and its
relief, its shadow, its label and its void border are all read off ``d``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.config import Classes, ClassInfo
from fullyconv.datasets.base import About, Sample
from fullyconv.datasets.inputs import check_inputs
from fullyconv.errors import ConfigError

Map = npt.NDArray[Any]
"""float32, (h, w) or (h, w, 3); numpy's stubs lose the width of floats at every function."""
Random = np.random.Generator


@dataclass(frozen=True)
class Thing:
    """One thing in its own frame, about to be drawn.

    Attributes:
        reach: half its extent (along u, along v), in pixels.
        distance: (u, v) -> signed distance in pixels, negative inside; may be off away from the edge.
        paint: (u, v) -> how much of the second colour, 0..1.
        colours: the two colours it is painted with, RGB 0..1.
        bevel: width in pixels over which its relief rises from the edge; half its width makes it round.
        upright: whether its turn in the picture is small, as for things that stand.
    """

    reach: tuple[float, float]
    distance: Callable[[Map, Map], Map]
    paint: Callable[[Map, Map], Map]
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    bevel: float
    upright: bool = False


# Kinds of things -----------------------------------------------------------------------------------------------------


def _ball(rng: Random) -> Thing:
    r, turn = rng.uniform(9, 21), rng.uniform(0, math.tau)
    return Thing(
        (r, r),
        lambda u, v: np.hypot(u, v) - r,
        lambda u, v: _soft(np.sin(3 * np.arctan2(v, u) + turn) * np.hypot(u, v)),
        ((0.86, 0.13, 0.12), (0.97, 0.95, 0.90)),
        r,
    )


def _crate(rng: Random) -> Thing:
    a, b = rng.uniform(11, 21), rng.uniform(9, 17)
    plank = rng.uniform(5, 7)
    return Thing(
        (a, b),
        lambda u, v: np.maximum(np.abs(u) - a, np.abs(v) - b),
        lambda u, v: np.maximum(
            _soft(0.8 - np.abs(_wave(v + b, plank))),
            _soft(0.7 - np.abs(np.maximum(np.abs(u) - a, np.abs(v) - b) + 3.5)),
        ),
        ((0.66, 0.43, 0.20), (0.32, 0.18, 0.07)),
        2.0,
    )


def _cone(rng: Random) -> Thing:
    h, a = rng.uniform(13, 23), rng.uniform(9, 14)
    slope = math.hypot(2 * h, a)
    band = h * rng.uniform(0.35, 0.45)
    return Thing(
        (a, h),
        lambda u, v: np.maximum((np.abs(u) * 2 * h - a * (v + h)) / slope, v - h),
        lambda u, v: _soft(band / 2.4 - np.abs(_wave(v - 0.2 * h, 2.2 * band))),
        ((1.00, 0.44, 0.05), (0.98, 0.96, 0.93)),
        a * 0.8,
        upright=True,
    )


def _ring(rng: Random) -> Thing:
    t = rng.uniform(2.6, 4.2)
    r = rng.uniform(11, 20)
    return Thing(
        (r + t, r + t),
        lambda u, v: np.abs(np.hypot(u, v) - r) - t,
        lambda u, v: _soft((np.cos(4 * np.arctan2(v, u)) - 0.6) * r / 4),
        ((0.05, 0.66, 0.70), (0.86, 0.97, 0.97)),
        t,
    )


def _pole(rng: Random) -> Thing:
    length, w = rng.uniform(26, 60), rng.uniform(2.2, 3.4)
    return Thing(
        (w, length),
        lambda u, v: np.maximum(np.abs(u) - w, np.abs(v) - length),
        lambda u, v: _soft(_wave(v + 0.8 * u, 12.0)),
        ((0.98, 0.82, 0.05), (0.10, 0.10, 0.11)),
        w,
        upright=True,
    )


def _wire(rng: Random) -> Thing:
    length, w = rng.uniform(28, 52), rng.uniform(1.7, 2.3)
    high, k, turn = rng.uniform(4, 11), rng.uniform(0.07, 0.13), rng.uniform(0, math.tau)

    def distance(u: Map, v: Map) -> Map:
        phase = k * u + turn
        across = np.abs(v - high * np.sin(phase)) / np.sqrt(1 + (high * k * np.cos(phase)) ** 2)
        return np.maximum(across - w, np.abs(u) - length)

    return Thing(
        (length, high + w), distance, lambda u, v: np.zeros_like(u), ((0.93, 0.12, 0.58), (0.93, 0.12, 0.58)), w
    )


def _ladder(rng: Random) -> Thing:
    length, b = rng.uniform(28, 52), rng.uniform(9, 13)
    w, pitch = rng.uniform(1.7, 2.3), rng.uniform(13, 17)

    def distance(u: Map, v: Map) -> Map:
        rail = np.abs(np.abs(u) - b) - w
        rung = np.maximum(np.abs(_wave(v, pitch)) - w, np.abs(u) - b)
        return np.maximum(np.minimum(rail, rung), np.abs(v) - length)

    return Thing(
        (b + w, length),
        distance,
        lambda u, v: np.zeros_like(u),
        ((0.93, 0.94, 0.99), (0.93, 0.94, 0.99)),
        w,
        upright=True,
    )


def _leaf(rng: Random) -> Thing:
    length = rng.uniform(11, 23)
    w = length * rng.uniform(0.38, 0.5)
    radius = (length**2 + w**2) / (2 * w)
    return Thing(
        (length, w),
        lambda u, v: np.hypot(u, np.abs(v) + (radius - w)) - radius,
        lambda u, v: 0.8 * np.maximum(_soft(0.5 - np.abs(v)), _soft(-0.4 - _wave(u - 0.9 * np.abs(v), 5.0))),
        ((0.13, 0.56, 0.16), (0.62, 0.86, 0.36)),
        w,
    )


def _star(rng: Random) -> Thing:
    r, inner = rng.uniform(10, 20), rng.uniform(0.42, 0.52)
    step = math.pi / 5
    nx, ny = inner * math.sin(step), 1 - inner * math.cos(step)
    norm = math.hypot(nx, ny)

    def distance(u: Map, v: Map) -> Map:
        angle = np.abs(_wave(np.arctan2(u, v), 2 * step))
        rho = np.hypot(u, v)
        return ((rho * np.cos(angle) - r) * np.float32(nx) + rho * np.sin(angle) * np.float32(ny)) / np.float32(norm)

    return Thing((r, r), distance, lambda u, v: np.zeros_like(u), ((0.50, 0.22, 0.80), (0.50, 0.22, 0.80)), r * 0.45)


def _button(rng: Random) -> Thing:
    r = rng.uniform(4.5, 7)
    return Thing(
        (r, r),
        lambda u, v: np.hypot(u, v) - r,
        lambda u, v: _soft(0.6 - np.abs(np.hypot(u, v) - 0.62 * r)),
        ((0.20, 0.36, 0.95), (0.75, 0.84, 1.00)),
        1.8,
    )


KINDS: Mapping[str, Callable[[Random], Thing]] = {
    "ball": _ball,
    "crate": _crate,
    "cone": _cone,
    "ring": _ring,
    "pole": _pole,
    "wire": _wire,
    "ladder": _ladder,
    "leaf": _leaf,
    "star": _star,
    "button": _button,
}
"""The kinds of things, in order of class: kind ``i`` is class ``i + 1``, the ground is class 0."""

CLASSES = Classes(
    entries=tuple(
        ClassInfo(id=i, name=name, colour=colour)
        for i, (name, colour) in enumerate(
            {
                "ground": (70, 74, 82),
                "ball": (225, 60, 55),
                "crate": (150, 100, 50),
                "cone": (255, 130, 30),
                "ring": (20, 180, 185),
                "pole": (245, 215, 30),
                "wire": (240, 60, 160),
                "ladder": (225, 230, 245),
                "leaf": (60, 165, 70),
                "star": (140, 80, 215),
                "button": (60, 100, 245),
            }.items()
        )
    )
)

ABOUT = About(
    title="Generated scenes",
    classes={"out": CLASSES},
    layout='DATA is "", or a size such as "count=200 size=160x240"',
    licence="free of any",
    remark="Nothing is read and nothing downloaded; any number of pictures of any size.",
)


def _soft(distance: Map) -> Map:
    """1 where positive, 0 where negative, a ramp of one pixel between."""
    return np.clip(distance + np.float32(0.5), 0, 1)


def _wave(x: Map, period: float) -> Map:
    """Distance to the next multiple of ``period``, with sign."""
    return x - np.float32(period) * np.rint(x / np.float32(period))


# Drawing -------------------------------------------------------------------------------------------------------------


def _noise(rng: Random, height: int, width: int, cell: int) -> Map:
    """Smooth noise (height, width), about -1..1, whose bumps are ``cell`` pixels wide."""
    rows, columns = height // cell + 2, width // cell + 2
    coarse = rng.standard_normal((rows, columns), np.float32)
    return _stretch(_stretch(coarse, height, rows).T, width, columns).T


def _stretch(values: Map, pixels: int, cells: int) -> Map:
    """Interpolate the first axis linearly from ``cells`` to ``pixels``, end to end."""
    # Not a matrix product: BLAS would start threads for it in every worker.
    at = np.linspace(0, cells - 1, pixels, dtype=np.float32)
    first = np.minimum(at.astype(np.intp), cells - 2)
    rest = (at - first).astype(np.float32)[:, None]
    start = values[first]
    stretched: Map = start + rest * (values[first + 1] - start)
    return stretched


_GROUNDS = np.array(
    [
        [(0.62, 0.57, 0.48), (0.47, 0.42, 0.35)],  # sand
        [(0.42, 0.46, 0.50), (0.30, 0.33, 0.38)],  # slate
        [(0.47, 0.50, 0.41), (0.36, 0.40, 0.32)],  # lichen
        [(0.58, 0.50, 0.47), (0.44, 0.37, 0.35)],  # clay
        [(0.64, 0.64, 0.63), (0.50, 0.50, 0.51)],  # concrete
    ],
    np.float32,
)


def _ground(rng: Random, height: int, width: int) -> Map:
    """A textured, unevenly lit ground (H, W, 3), RGB 0..1."""
    light, dark = _GROUNDS[rng.integers(len(_GROUNDS))] + rng.normal(0, 0.02, (2, 1)).astype(np.float32)
    texture = sum(_noise(rng, height, width, cell) * weight for cell, weight in ((32, 0.35), (9, 0.25), (3, 0.2)))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    pattern = rng.integers(4)
    if pattern == 1:  # boards
        texture = texture + 0.9 * _soft(1 - np.abs(_wave(along, 22.0)))
    elif pattern == 2:  # tiles
        across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
        texture = texture + 0.8 * _soft(0.8 - np.minimum(np.abs(_wave(along, 28.0)), np.abs(_wave(across, 28.0))))
    elif pattern == 3:  # ripples
        texture = texture + 0.35 * np.sin(along * np.float32(0.6) + 2 * _noise(rng, height, width, 24))
    mix = np.clip(0.5 + 0.5 * texture, 0, 1)[..., None]
    lit = 1 + np.float32(rng.uniform(0, 0.25)) * (along / np.float32(max(height, width)) - np.float32(0.5))
    ground: Map = (light + (dark - light) * mix) * lit[..., None]
    return ground


@dataclass
class _Canvas:
    """A picture being painted and its labels."""

    pixels: Map  # (H, W, 3) RGB 0..1
    labels: npt.NDArray[np.uint8]  # (H, W)
    light: tuple[float, float, float]  # unit vector towards the light; x right, y down, z to the eye
    border: int

    def draw(self, thing: Thing, index: int, centre: tuple[float, float], turn: float, gain: float) -> None:
        """Paint ``thing`` of class ``index`` over what is there, turned by ``turn``, its colours scaled by ``gain``."""
        height, width = self.labels.shape
        c, s = math.cos(turn), math.sin(turn)
        lx, ly, lz = self.light
        margin = 4 + self.border
        reach_x = abs(c) * thing.reach[0] + abs(s) * thing.reach[1] + margin
        reach_y = abs(s) * thing.reach[0] + abs(c) * thing.reach[1] + margin
        left, right = max(0, int(centre[0] - reach_x)), min(width, int(centre[0] + reach_x) + 1)
        top, bottom = max(0, int(centre[1] - reach_y)), min(height, int(centre[1] + reach_y) + 1)
        if left + 1 >= right or top + 1 >= bottom:
            return
        x = np.arange(left, right, dtype=np.float32) - np.float32(centre[0])
        y = (np.arange(top, bottom, dtype=np.float32) - np.float32(centre[1]))[:, None]
        u, v = x * np.float32(c) + y * np.float32(s), y * np.float32(c) - x * np.float32(s)
        distance = thing.distance(u, v)

        # The shadow falls away from the light, on whatever lies beneath.
        dx, dy = round(-4.5 * lx), round(-4.5 * ly)
        shade_left, shade_right = max(left + dx, 0), min(right + dx, width)
        shade_top, shade_bottom = max(top + dy, 0), min(bottom + dy, height)
        cast = distance[
            shade_top - dy - top : shade_bottom - dy - top, shade_left - dx - left : shade_right - dx - left
        ]
        self.pixels[shade_top:shade_bottom, shade_left:shade_right] *= (
            1 - 0.45 * np.clip(0.5 - cast / np.float32(4), 0, 1)
        )[..., None]

        # Relief: a quarter circle from the edge inwards; its normal leans along the gradient of the distance.
        down, across = np.gradient(distance)
        lean = 1 - np.clip(-distance / np.float32(thing.bevel), 0, 1)
        nz = np.sqrt(1 - lean * lean)
        facing = np.clip(lean * (across * np.float32(lx) + down * np.float32(ly)) + nz * np.float32(lz), 0, 1)
        shine = facing**24 * np.float32(0.35)

        first, second = (np.array(colour, np.float32) * np.float32(gain) for colour in thing.colours)
        colour = first + thing.paint(u, v)[..., None] * (second - first)
        colour = colour * (np.float32(0.42) + np.float32(0.68) * facing)[..., None] + shine[..., None]
        cover = _soft(-distance)[..., None]
        here = self.pixels[top:bottom, left:right]
        here += cover * (colour - here)

        labels = self.labels[top:bottom, left:right]
        labels[distance < self.border] = CLASSES.void
        labels[distance < 0] = index


def _turn(thing: Thing, rng: Random) -> float:
    return rng.normal(0, 0.14) if thing.upright else rng.uniform(0, math.tau)


def _canvas(rng: Random, height: int, width: int, border: int) -> _Canvas:
    side, up = rng.uniform(0, math.tau), rng.uniform(0.75, 1.05)
    light = (math.cos(side) * math.cos(up), math.sin(side) * math.cos(up), math.sin(up))
    return _Canvas(_ground(rng, height, width), np.zeros((height, width), np.uint8), light, border)


def _develop(canvas: _Canvas, rng: Random) -> npt.NDArray[np.uint8]:
    """What a camera makes of it: the tint of the light, grain, 8 bits."""
    tint = (rng.uniform(0.88, 1.1) * rng.uniform(0.96, 1.04, 3)).astype(np.float32) * np.float32(255)
    grain = rng.standard_normal(canvas.labels.shape, np.float32)[..., None] * np.float32(3)
    picture: npt.NDArray[np.uint8] = np.clip(canvas.pixels * tint + grain, 0, 255).astype(np.uint8)
    return picture


# Data sets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """Generated scenes; see `SegmentationDataset`.

    Attributes:
        count: scenes in this split; they are made when asked for, so a million costs nothing.
        size: (height, width) in pixels, each at least 16.
        seed: another seed, other scenes.
        split: splits of one seed share no scene.
        border: width in pixels of the void border around things; None: 1 to 5, a fiftieth of the shorter side or so.

    Example:
        >>> sample = Scenes(10, size=(64, 96), seed=1)[3]
        >>> sample.image.shape, sample.labels["out"].shape
        ((64, 96, 3), (64, 96))
    """

    count: int = 1000
    size: tuple[int, int] = (160, 160)
    seed: int = 0
    split: str = "train"
    border: int | None = None
    name: str = field(default="scenes", init=False)
    classes: Mapping[str, Classes] = field(default_factory=lambda: {"out": CLASSES}, init=False)

    def __post_init__(self) -> None:
        if min(self.size) < 16 or self.count < 1 or self.seed < 0:
            raise ConfigError(
                f"scenes: expected count >= 1, sides >= 16 px and seed >= 0, got count {self.count}, "
                f"size {self.size[0]}x{self.size[1]}, seed {self.seed}"
            )

    @property
    def names(self) -> Sequence[str]:
        """One for each scene, such as "train-000012"."""
        return [f"{self.split}-{i:06d}" for i in range(self.count)]

    @property
    def notes(self) -> Sequence[str]:
        """What is generated, in one sentence."""
        return [f"{self.count} generated scenes of {self.size[0]} x {self.size[1]} px, seed {self.seed} ({self.split})"]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Make scene ``index``, the same whenever it is asked for."""
        index = range(self.count)[index]
        height, width = self.size
        rng = _random(self.seed, self.split, index)
        border = max(1, min(5, round(min(height, width) / 80))) if self.border is None else self.border
        canvas = _canvas(rng, height, width, border)
        makers = list(KINDS.values())
        for _ in range(max(1, round(height * width / 2600 * rng.uniform(0.7, 1.3)))):
            kind = int(rng.integers(len(makers)))
            thing = makers[kind](rng)
            centre = (rng.uniform(-4, width + 4), rng.uniform(-4, height + 4))
            canvas.draw(thing, kind + 1, centre, _turn(thing, rng), rng.uniform(0.85, 1.1))
        return Sample(f"{self.split}-{index:06d}", _develop(canvas, rng), {"out": canvas.labels})

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        """No files."""
        return None, None


def single_objects(
    count: int, *, size: tuple[int, int] = (64, 64), seed: int = 0, split: str = "train"
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pictures of one thing each, at the scale it has in scenes, for training a classifier first.

    Returns:
        pictures (count, H, W, 3) uint8 RGB; kinds (count,) int64, 0..9: the class in a scene less 1, since no picture
        shows the bare ground.

    Example:
        >>> pictures, kinds = single_objects(4, size=(48, 48))
        >>> pictures.shape, kinds.shape
        ((4, 48, 48, 3), (4,))
    """
    height, width = size
    pictures = np.empty((count, height, width, 3), np.uint8)
    kinds = np.empty(count, np.int64)
    makers = list(KINDS.values())
    for i in range(count):
        rng = _random(seed, f"single objects, {split}", i)
        kinds[i] = rng.integers(len(makers))
        canvas = _canvas(rng, height, width, border=0)
        thing = makers[kinds[i]](rng)
        centre = (width / 2 + rng.uniform(-0.15, 0.15) * width, height / 2 + rng.uniform(-0.15, 0.15) * height)
        canvas.draw(thing, int(kinds[i]) + 1, centre, _turn(thing, rng), rng.uniform(0.85, 1.1))
        pictures[i] = _develop(canvas, rng)
    return pictures, kinds


def open_scenes(
    root: str | PathLike[str] = "", *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Scenes:
    """Open generated scenes: 1000 of 160 x 160 for train, else 200, or as ``root`` says: ``"count=20 size=160x240"``.

    Raises:
        ConfigError: ``root`` says anything else.
        DatasetError: ``inputs`` are not ("color",).
    """
    check_inputs(inputs, ("color",), where="scenes")
    count, size = 1000 if split == "train" else 200, (160, 160)
    for part in str(root).replace(",", " ").split():
        key, _, value = part.partition("=")
        numbers = value.split("x")
        if (key, len(numbers)) not in {("count", 1), ("size", 2)} or not all(n.isdecimal() for n in numbers):
            raise ConfigError(f'scenes: got {str(root)!r}; expected "" or "count=20 size=160x240" (height x width)')
        if key == "count":
            count = int(numbers[0])
        else:
            size = (int(numbers[0]), int(numbers[1]))
    return Scenes(count, size, seed, split)


def _random(seed: int, split: str, index: int) -> Random:
    # By way of a hash, so that neither the order of calls nor neighbouring seeds tie two pictures together.
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()
    return np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
