"""Prediction without torch, whose import alone takes longer than most nets: for a few pictures, started from a shell.

Takes the engine that ``fullyconv tune`` found for a model, and gives the same bytes as `fullyconv.inference.Predictor`
does with it. Where it cannot (`open_quick` says None), that one is to be used.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv import engines, images, native, rasters, records
from fullyconv.config import MultiScale
from fullyconv.engines import Engine, Float, HeadInfo, TrunkInfo
from fullyconv.errors import FullyConvError
from fullyconv.labels import Labels
from fullyconv.opening import MAX_PIXELS, read_size
from fullyconv.segmentation import Segmentation

MOST_PIXELS = 1024 * 1024
"""Of a picture: up to there no strategy but `fullyconv.inference.whole` is ever chosen."""
MOST_PICTURES = 16
"""Beyond, torch is loaded in less time than reading ahead in threads gains."""


class QuickPredictor:
    """What `fullyconv.folders` needs of a `Predictor`, in numpy.

    Attributes:
        classes: table of each head.
        device: always "cpu".
        multiscale: one look at each picture.
    """

    device = "cpu"
    multiscale = MultiScale()

    def __init__(self, trunk: TrunkInfo, engine: Engine, library: ctypes.CDLL, max_pixels: int) -> None:
        self._trunk, self._engine, self._library, self._max_pixels = trunk, engine, library, max_pixels
        self.classes = {name: head.classes for name, head in trunk.heads.items()}

    def __call__(self, picture: images.Picture) -> Segmentation:
        """As `Predictor.__call__`."""
        read = images.read_image(picture, channels=len(self._trunk.order), max_pixels=self._max_pixels)
        scores = self._engine(self._trunk.prepare(read.pixels))
        height, width = read.pixels.shape[:2]
        labels = {
            name: argmax(self._library, scores[name], head, (height, width)) for name, head in self._trunk.heads.items()
        }
        source = os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else ""
        return Segmentation(labels, self.classes, read.pixels, source, read.notes)

    def map(
        self,
        pictures: Iterable[images.Picture],
        *,
        batch_size: int = 1,
        on_error: Callable[[images.Picture, FullyConvError], None] | None = None,
    ) -> Iterator[Segmentation]:
        """As `Predictor.map`, one after another."""
        for picture in pictures:
            try:
                segmentation = self(picture)
            except FullyConvError as error:
                if on_error is None:
                    raise
                on_error(picture, error)
            else:
                yield segmentation


def open_quick(
    model: str | os.PathLike[str],
    pictures: Sequence[str | os.PathLike[str]],
    *,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> QuickPredictor | None:
    """A predictor that never imports torch, or None where only torch will do.

    That is: ``fullyconv tune`` was not run for the model on this machine, or found torch to be the fastest; there are
    many pictures, large or georeferenced ones; the model looks at each several times; the last upsampling is learned;
    the native kernel was not built.

    Args:
        model: folder of a model.
        pictures: files to segment.
        engine, precision, device, max_pixels: as for `Predictor.load`.

    Raises:
        CheckpointError: what ``fullyconv tune`` wrote is damaged.
        ConfigError: the engine it found is not installed any more.
    """
    folder = Path(model) / engines.FOLDER
    if device not in ("auto", "cpu") or len(pictures) > MOST_PICTURES or not (folder / "tuned.json").exists():
        return None
    tuned = engines.read_tuned(model)
    best = None if tuned is None else tuned.best(precision)
    library = native.kernel().library
    if best is None or best.engine == "torch" or engine not in ("auto", best.engine) or library is None:
        return None
    trunk = TrunkInfo.read((folder / best.file).with_suffix(".json"))
    small = all(_pixels(path, max_pixels) <= MOST_PIXELS and not rasters.georeferenced(Path(path)) for path in pictures)
    if trunk.model != engines.identity(model) or not small or any(head.first is None for head in trunk.heads.values()):
        return None
    looks = records.read_json(Path(model) / "config.json")["model"].get("multiscale")
    if looks is not None and MultiScale.parse(looks).looks > 1:
        return None
    wanted = "auto" if best.precision == "int8" else best.precision
    return QuickPredictor(
        trunk, engines.open_engine(folder / best.file, best.engine, precision=wanted), library, max_pixels
    )


def argmax(library: ctypes.CDLL, scores: Float, head: HeadInfo, size: tuple[int, int]) -> Labels:
    """As `fullyconv.dense.argmax`, of one picture: (1, K, h, w) -> (H, W), uint8, or uint16 where K > 255."""
    _, classes, rows, columns = scores.shape
    axes = [np.ascontiguousarray(part) for part in (*head.taps(rows, size[0]), *head.taps(columns, size[1]))]
    wide = classes > 255
    labels: npt.NDArray[Any] = np.empty(size, np.int32 if wide else np.uint8)
    scores = np.ascontiguousarray(scores)
    failed = library.fullyconv_reduce(
        scores.ctypes.data_as(ctypes.c_void_p),
        (ctypes.c_int64 * 6)(*scores.shape, *size),
        (ctypes.c_int64 * 4)(*(stride // 4 for stride in scores.strides)),
        *(part.ctypes.data_as(ctypes.c_void_p) for part in axes),
        0,
        labels.ctypes.data_as(ctypes.c_void_p),
        int(wide),
        ctypes.c_void_p(None),
        engines.cores(),
        ctypes.c_void_p(None),
        0,
    )
    if failed:
        raise MemoryError("no memory for a few rows of scores")
    return labels.astype(np.uint16) if wide else labels.astype(np.uint8, copy=False)


def _pixels(path: str | os.PathLike[str], max_pixels: int) -> int:
    """Of a picture file; 0 where it cannot be read, which whoever segments it will say."""
    try:
        height, width = read_size(path, max_pixels=max_pixels)
    except FullyConvError:
        return 0
    return height * width
