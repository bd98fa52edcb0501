"""From a picture to its label map: strategies, `Predictor`, `Segmentation`.

A strategy is a function ``(model, image (B, C, H, W)) -> {head: score map (B, K, h, w)}``. It decides in what pieces
the net sees the picture; upsampling and the largest class are taken once, afterwards, from the whole score map and in
bands (`fullyconv.dense`). A strategy with options is bound with `functools.partial(tiled, tile=2048)`.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from fullyconv import checkpoint, dense, images
from fullyconv.config import Classes
from fullyconv.devices import autocast, device_of, free_memory, pick_device
from fullyconv.errors import ConfigError, FullyConvError, ImageError
from fullyconv.model import FCN, Head
from fullyconv.segmentation import ScoreMap, Segmentation

Strategy = Callable[[FCN, Tensor], dict[str, Tensor]]


# --- strategies -------------------------------------------------------------------------------------------------------


def whole(model: FCN, image: Tensor) -> dict[str, Tensor]:
    """Score maps of the picture in one piece.

    Args:
        model: in eval mode.
        image: (B, C, H, W) in 0..255, RGB first, uint8 or float, on any device.

    Example:
        >>> import fullyconv
        >>> model = fullyconv.build(fullyconv.presets.fcn8s("tinyvgg", classes=3, weights=None)).eval()
        >>> whole(model, torch.zeros(1, 3, 50, 70))["out"].shape
        torch.Size([1, 3, 8, 12])
    """
    return model.score_maps(image.to(device_of(model)))


def tiled(model: FCN, image: Tensor, *, tile: int = 1024) -> dict[str, Tensor]:
    """Score maps of the picture piece by piece: the same as `whole` gives, in bounded memory.

    Every window holds a core of ``tile`` pixels and around it all that the core's cells can see, so what its inner
    edges spoil is never used. Windows start on multiples of the model's stride, so their cells are the whole
    picture's cells. Only one window at a time is turned into floats.

    Args:
        model: in eval mode; no layer may see the whole picture (`explain` prints the receptive fields).
        image: (B, C, H, W) in 0..255, RGB first, uint8 or float, on any device.
        tile: side of the core in pixels, rounded up to the model's stride.

    Raises:
        ConfigError: ``tile`` is not positive, or the model's receptive field is the whole picture.
    """
    if tile < 1:
        raise ConfigError(f"tile: got {tile}; expected a side in pixels, 1 or more", where="tile")
    if why := _why_whole(model):
        raise ConfigError(
            f"strategy tiled: {why}, so tiles would not add up to the whole; use strategy whole", where="strategy"
        )
    height, width = image.shape[-2:]
    frame = model.frame(height, width)
    tile = math.ceil(tile / model.stride) * model.stride
    rows = _windows(model, frame.top, frame.top + height + frame.bottom, tile)
    columns = _windows(model, frame.left, frame.left + width + frame.right, tile)
    stitched: dict[str, Tensor] = {}
    # The far corner comes first: it alone knows how many cells there are, since ceil mode and padding act there.
    for row in reversed(rows):
        for column in reversed(columns):
            window = _window(model, image, row.shift(-frame.top), column.shift(-frame.left))
            for name, scores in model.scores_of(window).items():
                stride = _heads(model)[name].grid.stride
                whole_h, whole_w = row.cells(stride, scores.shape[-2]), column.cells(stride, scores.shape[-1])
                if name not in stitched:
                    stitched[name] = scores.new_empty(*scores.shape[:2], whole_h.stop, whole_w.stop)
                local_h, local_w = row.local(whole_h, stride), column.local(whole_w, stride)
                stitched[name][..., whole_h, whole_w] = scores[..., local_h, local_w]
    return stitched


def choose(model: FCN, image: Tensor) -> dict[str, Tensor]:
    """What `choice` says for this picture."""
    return choice(model, image)[0](model, image)


def choice(model: FCN, image: Tensor) -> tuple[Strategy, str]:
    """`whole` where the picture fits into half of the free memory, or cannot be tiled; else `tiled`.

    Returns:
        the strategy, and a note for the user where it is not the plain one.
    """
    if _fits(model, image):
        return whole, ""
    if why := _why_whole(model):
        return whole, f"in one piece, though it may not fit into memory, since {why}"
    return tiled, "in tiles, since it may not fit into memory in one piece"


STRATEGIES: dict[str, Strategy] = {"auto": choose, "whole": whole, "tiled": tiled}


@dataclass(frozen=True)
class _Window:
    """One axis of a window, in pixels of the padded picture: it reads start..stop and answers for core..end."""

    start: int
    stop: int
    core: int
    end: int | None
    """None: up to the last cell there is."""

    def shift(self, pixels: int) -> tuple[int, int]:
        return self.start + pixels, self.stop + pixels

    def cells(self, stride: Fraction, count: int) -> slice:
        """Cells of the whole map that this window answers for, when it gives ``count`` cells itself."""
        stop = self.start / stride + count if self.end is None else self.end / stride
        return slice(int(self.core / stride), int(stop))

    def local(self, cells: slice, stride: Fraction) -> slice:
        """The same cells, counted from the window's first."""
        first = int(self.start / stride)
        return slice(cells.start - first, cells.stop - first)


def _windows(model: FCN, before: int, length: int, tile: int) -> list[_Window]:
    """Windows along an axis of ``length`` pixels, ``before`` of which are padding at the front."""
    grids = [head.grid for head in _heads(model).values()]
    # One stride more than half the field: the coarse maps that a head adds up may end that much before the fine one.
    reach = (Fraction(model.field) - 1) / 2 + model.stride
    windows: list[_Window] = []
    for core in count(0, tile):
        first = min(before + grid.offset for grid in grids) + core - reach
        last = max(before + grid.offset - grid.stride for grid in grids) + core + tile + reach
        start = max(0, math.floor(first / model.stride) * model.stride)
        stop = max(math.ceil(last) + 1, start + math.ceil(model.field) + model.stride)
        if stop >= length:
            windows.append(_Window(start, length, core, None))
            break
        windows.append(_Window(start, stop, core, core + tile))
    return windows


def _window(model: FCN, image: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Part of the normalised picture, in pixels of the picture; what lies outside of it is 0, as padding is."""
    (top, bottom), (left, right) = rows, columns
    height, width = image.shape[-2:]
    down = slice(min(max(top, 0), height), min(max(bottom, 0), height))
    across = slice(min(max(left, 0), width), min(max(right, 0), width))
    inside: Tensor = model.normalise(image[..., down, across].to(device_of(model)))
    window: Tensor = inside.new_zeros(*inside.shape[:2], bottom - top, right - left)
    if inside.numel():
        window[..., down.start - top : down.stop - top, across.start - left : across.stop - left] = inside
    return window


def _heads(model: FCN) -> dict[str, Head]:
    return {name: head for name, head in model.heads.items() if isinstance(head, Head)}


_GLOBAL = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, nn.InstanceNorm2d)


def _why_whole(model: FCN) -> str:
    """Why a picture must not be cut: which map sees all of it, through which layer as far as that shows; "" if none."""
    if model.interpolate:
        return "the model's weights were trained with interpolation to the size of the picture"
    if not math.isinf(model.field):
        return ""
    read = [skip.tap for head in _heads(model).values() for skip in head.skips]
    tap = next(tap for tap in read if math.isinf(model.backbone.taps[tap].grid.field))
    layer = next(
        (f" through {path} ({type(m).__name__})" for path, m in model.named_modules() if isinstance(m, _GLOBAL)), ""
    )
    return f"each cell of the map '{tap}' sees the whole picture{layer}"


def _fits(model: FCN, image: Tensor) -> bool:
    """Whether the picture in one piece takes at most half of the free memory."""
    batch, _, height, width = image.shape
    if height * width <= 1024 * 1024:
        return True
    bytes_per_pixel, values_per_pixel = _cost(model)
    pixels = batch * height * width
    # Convolutions index with 32 bits on some devices.
    return pixels * bytes_per_pixel < free_memory(device_of(model)) / 2 and pixels * values_per_pixel < 2**31


def _cost(model: FCN) -> tuple[float, float]:
    """Bytes of memory that each pixel of a picture takes at the peak, and values of the largest map, both per pixel.

    Measured on a small picture: twice the largest input and output of one layer, since a block keeps its input too.
    """
    most_bytes = most_values = 0

    def measure(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal most_bytes, most_values
        tensors = [t for t in (*inputs, output) if isinstance(t, Tensor)]
        most_bytes = max(most_bytes, sum(t.numel() * t.element_size() for t in tensors))
        most_values = max(most_values, *(t.numel() for t in tensors), 0)

    handles = [m.register_forward_hook(measure) for m in model.modules() if next(m.children(), None) is None]
    try:
        probe = torch.zeros(1, model.channels, 128, 128, dtype=torch.uint8, device=device_of(model))
        padded = model.preprocess(probe)
        model.scores_of(padded)
    finally:
        for handle in handles:
            handle.remove()
    pixels = padded.shape[-2] * padded.shape[-1]
    return 2 * most_bytes / pixels, most_values / pixels


# --- the predictor ----------------------------------------------------------------------------------------------------


class Predictor:
    """A model that takes pictures and gives `Segmentation`s.

    Args:
        model: is moved to the device, made channels_last and put into eval mode, in place.
        strategy: `whole`, `tiled`, or `choose`, which takes one of them by size; or any function like them.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        precision: "auto", "32" or "bf16"; see `autocast`.
        probabilities: keep the score maps, so that `Segmentation.probabilities` can be asked for.
        max_pixels: files that declare more are refused before they are decoded.

    Raises:
        ConfigError: no such device or precision.

    Example:
        >>> predictor = Predictor.load("runs/x/best")            # doctest: +SKIP
        >>> predictor("street.jpg").save("street.png")           # doctest: +SKIP
    """

    def __init__(
        self,
        model: FCN,
        *,
        strategy: Strategy = choose,
        device: str = "auto",
        precision: str = "auto",
        probabilities: bool = False,
        max_pixels: int = images.MAX_PIXELS,
    ) -> None:
        self.device = pick_device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.strategy, self.precision, self.keeps_scores = strategy, precision, probabilities
        self.max_pixels = max_pixels
        autocast(self.device, precision)
        self.classes = {
            name: model.classes.get(name) or Classes.of(*(f"class {i}" for i in range(head.classes)))
            for name, head in _heads(model).items()
        }

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        strategy: Strategy = choose,
        device: str = "auto",
        precision: str = "auto",
        probabilities: bool = False,
        max_pixels: int = images.MAX_PIXELS,
        backbone: nn.Module | None = None,
    ) -> Self:
        """The predictor of a saved model; the options are those of `Predictor`, and ``backbone`` that of `load`.

        Raises:
            CheckpointError: the folder holds no model, or a damaged one.
            ConfigError: no such device or precision.
        """
        model = checkpoint.load(folder, backbone=backbone)
        return cls(
            model,
            strategy=strategy,
            device=device,
            precision=precision,
            probabilities=probabilities,
            max_pixels=max_pixels,
        )

    def __call__(self, image: images.Picture) -> Segmentation:
        """Segment one picture: a path, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4) uint8.

        Raises:
            ImageError: the file is no picture that can be used, or does not fit into the device's memory.
        """
        return self._segment([(image, images.read_image(image, channels=self.model.channels, max_pixels=self.max_pixels))])[0]

    def map(
        self,
        pictures: Iterable[images.Picture],
        *,
        batch_size: int = 1,
        on_error: Callable[[images.Picture, FullyConvError], None] | None = None,
    ) -> Iterator[Segmentation]:
        """Segment many pictures, in order; the next ones are decoded in threads while one is computed.

        Args:
            pictures: whatever `__call__` takes, consumed as needed.
            batch_size: neighbours of equal size that go through the net together.
            on_error: called with a picture that cannot be read, or does not fit into memory, and the error; the
                picture is then skipped. Without it the error is raised.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size: got {batch_size}; expected 1 or more", where="batch_size")
        report = on_error or _raise
        batch: list[tuple[images.Picture, images.ReadImage]] = []
        for picture, reading in _read_ahead(pictures, batch_size, self.model.channels, self.max_pixels):
            try:
                read = reading.result()
            except FullyConvError as error:
                report(picture, error)
                continue
            if batch and batch[0][1].pixels.shape != read.pixels.shape:
                yield from self._segment_or_report(batch, report)
                batch = []
            batch.append((picture, read))
            if len(batch) == batch_size:
                yield from self._segment_or_report(batch, report)
                batch = []
        if batch:
            yield from self._segment_or_report(batch, report)

    def _segment_or_report(
        self,
        batch: Sequence[tuple[images.Picture, images.ReadImage]],
        report: Callable[[images.Picture, FullyConvError], None],
    ) -> list[Segmentation]:
        try:
            return self._segment(batch)
        except FullyConvError as error:
            for picture, _ in batch:
                report(picture, error)
            return []

    def _scores(self, stacked: Tensor) -> tuple[dict[str, Tensor], str]:
        """Score maps, and a note where `choose` did not take the plain strategy."""
        with autocast(self.device, self.precision):
            strategy, note = choice(self.model, stacked) if self.strategy is choose else (self.strategy, "")
            return strategy(self.model, stacked), note

    @torch.inference_mode()
    def _segment(self, batch: Sequence[tuple[images.Picture, images.ReadImage]]) -> list[Segmentation]:
        """Segment pictures of one size."""
        pixels = [torch.from_numpy(read.pixels)[None] for _, read in batch]
        stacked = (pixels[0] if len(pixels) == 1 else torch.cat(pixels)).permute(0, 3, 1, 2)
        size = (stacked.shape[2], stacked.shape[3])
        try:
            scores, note = self._scores(stacked)
        except RuntimeError as error:  # of which a GPU's lack of memory is one; the CPU's has no class of its own
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise ImageError(
                _source(batch[0][0]) or "<image>",
                f"{len(batch)} of {size[0]} x {size[1]} pixels (height x width) do not fit into the memory of "
                f"{self.device}; use strategy tiled, smaller tiles or smaller batches",
            ) from None
        heads = _heads(self.model)
        labels = {
            name: dense.argmax(scores[name], heads[name].pixels, size).cpu().numpy()
            .astype(np.uint8 if heads[name].classes <= 255 else np.uint16, copy=False)
            for name in heads
        }  # fmt: skip
        return [
            Segmentation(
                labels={name: labels[name][i] for name in heads},
                classes=self.classes,
                image=read.pixels,
                source=_source(picture),
                notes=(*read.notes, note) if note else read.notes,
                score_maps={n: ScoreMap(scores[n][i : i + 1], heads[n].pixels, size) for n in heads}
                if self.keeps_scores
                else {},
            )
            for i, (picture, read) in enumerate(batch)
        ]


def _raise(_: images.Picture, error: FullyConvError) -> None:
    raise error


def _source(picture: images.Picture) -> str:
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else ""


def _read_ahead(
    pictures: Iterable[images.Picture], batch_size: int, channels: int, max_pixels: int
) -> Iterator[tuple[images.Picture, Future[images.ReadImage]]]:
    """Read pictures in threads, so many ahead that a batch is ready when the device is."""
    readers = min(4, os.cpu_count() or 1)
    waiting: deque[tuple[images.Picture, Future[images.ReadImage]]] = deque()
    pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
    try:
        for picture in pictures:
            waiting.append((picture, pool.submit(images.read_image, picture, channels=channels, max_pixels=max_pixels)))
            if len(waiting) >= batch_size + readers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)
