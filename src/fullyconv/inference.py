"""From a picture to its label map: strategies, `Predictor`, `Segmentation`.

A strategy is a function ``(model, image (B, C, H, W)) -> {head: score map (B, K, h, w)}``. It decides in what pieces
the net sees the picture; upsampling and the largest class are taken once, afterwards, from the whole score map and in
bands (`fullyconv.dense`). A strategy with options is bound with `functools.partial(tiled, tile=2048)`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from fullyconv import checkpoint, dense, images
from fullyconv.config import Classes, MultiScale
from fullyconv.devices import autocast, device_of, free_memory, pick_device, serial_threads
from fullyconv.errors import ConfigError, FullyConvError, ImageError
from fullyconv.model import FCN
from fullyconv.multiscale import averaged, looks_of
from fullyconv.opening import MAX_PIXELS
from fullyconv.runners import Driven, runner
from fullyconv.segmentation import ScoreMap, Segmentation
from fullyconv.tiling import BLENDED, cost, heads_of, why_whole
from fullyconv.tiling import tiled as tiled  # a strategy like the others

Strategy = Callable[[FCN, Tensor], dict[str, Tensor]]
Batch = list[tuple[images.Picture, images.ReadImage]]
"""Pictures of one size, as they were given and as they were read."""

SMALL = 1024 * 1024
"""Pixels up to which a batch is never cut, and several are computed side by side."""


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
    device = device_of(model)
    if device.type == "cuda" and image.device.type == "cpu":
        # From pinned memory a device copies by itself while Python goes on.
        return model.score_maps(image.pin_memory().to(device, non_blocking=True))
    return model.score_maps(image.to(device))


def choose(model: FCN, image: Tensor) -> dict[str, Tensor]:
    """What `choice` says for this picture."""
    return choice(model, image)[0](model, image)


def choice(model: FCN, image: Tensor) -> tuple[Strategy, str]:
    """`whole` where the picture fits into half of the free memory; else `tiled`.

    Returns:
        the strategy, and a note for the user where it is not the plain one.
    """
    if _fits(model, image):
        return whole, ""
    if why := why_whole(model):
        return tiled, f"in tiles, since it may not fit into memory in one piece, and {BLENDED}, since {why}"
    return tiled, "in tiles, since it may not fit into memory in one piece"


STRATEGIES: dict[str, Strategy] = {"auto": choose, "whole": whole, "tiled": tiled}


def _fits(model: FCN, image: Tensor) -> bool:
    """Whether the picture in one piece takes at most half of the free memory."""
    batch, _, height, width = image.shape
    if height * width <= SMALL:
        return True
    bytes_per_pixel, values_per_pixel = cost(model)
    pixels = batch * height * width
    # Convolutions index with 32 bits on some devices.
    return pixels * bytes_per_pixel < free_memory(device_of(model)) / 2 and pixels * values_per_pixel < 2**31


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
        engine: what computes score maps: "torch" (the model itself), "openvino" or
            "onnxruntime", or "auto", what ``fullyconv tune`` found for the folder; see `fullyconv.runners.runner`.
        folder: that the model was loaded from, if any, where ``fullyconv tune`` puts what it found.
        multiscale: how often, and at which sizes, a picture is looked at; None: as the model's config says, which is
            once where nobody has asked for more.

    Raises:
        ConfigError: no such device, precision or engine, or one that is not installed; no `MultiScale`.

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
        max_pixels: int = MAX_PIXELS,
        engine: str = "torch",
        folder: str | os.PathLike[str] | None = None,
        multiscale: MultiScale | None = None,
    ) -> None:
        if multiscale is not None and not isinstance(multiscale, MultiScale):
            expected = "expected a MultiScale, such as fullyconv.MultiScale(scales=(0.5, 1))"
            raise ConfigError(f"multiscale: got {multiscale!r}; {expected}", where="multiscale")
        self.device = pick_device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.strategy, self.precision, self.keeps_scores = strategy, precision, probabilities
        self.max_pixels = max_pixels
        self.multiscale = multiscale or looks_of(model)
        autocast(self.device, precision)
        sizes = 4 * len(self.multiscale.scales)
        self.runner = runner(self.model, engine, precision=precision, folder=folder, sizes=sizes)
        self.classes = {
            name: model.classes.get(name) or Classes.of(*(f"class {i}" for i in range(head.classes)))
            for name, head in heads_of(model).items()
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
        max_pixels: int = MAX_PIXELS,
        engine: str = "auto",
        backbone: nn.Module | None = None,
        multiscale: MultiScale | None = None,
    ) -> Self:
        """The predictor of a saved model; the options are those of `Predictor`, and ``backbone`` that of `load`.

        Raises:
            CheckpointError: the folder holds no model, or a damaged one.
            ConfigError: no such device, precision or engine, or one that is not installed.
        """
        model = checkpoint.load(folder, backbone=backbone)
        return cls(
            model,
            strategy=strategy,
            device=device,
            precision=precision,
            probabilities=probabilities,
            max_pixels=max_pixels,
            engine=engine,
            folder=folder,
            multiscale=multiscale,
        )

    def __call__(self, image: images.Picture) -> Segmentation:
        """Segment one picture: a path, a PIL image, or an array (H, W), (H, W, 3) or (H, W, 4) uint8.

        Raises:
            ImageError: the file is no picture that can be used, or does not fit into the device's memory.
        """
        return self._segment(
            [(image, images.read_image(image, channels=self.model.channels, max_pixels=self.max_pixels))]
        )[0]

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
        for batch, segmenting in self._in_threads(self._batches(pictures, batch_size, report)):
            try:
                segmented = segmenting()
            except FullyConvError as error:
                for picture, _ in batch:
                    report(picture, error)
                continue
            yield from segmented

    def _batches(
        self,
        pictures: Iterable[images.Picture],
        batch_size: int,
        report: Callable[[images.Picture, FullyConvError], None],
    ) -> Iterator[Batch]:
        """Neighbours of equal size."""
        batch: Batch = []
        for picture, reading in _read_ahead(pictures, batch_size, self.model.channels, self.max_pixels):
            try:
                read = reading.result()
            except FullyConvError as error:
                report(picture, error)
                continue
            if batch and (len(batch) == batch_size or batch[0][1].pixels.shape != read.pixels.shape):
                yield batch
                batch = []
            batch.append((picture, read))
        if batch:
            yield batch

    def _in_threads(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Callable[[], list[Segmentation]]]]:
        """Each batch, in order, and what waits for its result.

        On the CPU several small ones are computed side by side, each by one thread: threads that share the operations
        of one batch wait for each other after each, the longer the more else there is to do (decoding, encoding).
        """
        first, second = next(batches, None), next(batches, None)
        alone = second is None or self.device.type != "cpu" or isinstance(self.runner, Driven)
        threads = 1 if alone else torch.get_num_threads()
        computing: deque[tuple[Batch, Future[list[Segmentation]]]] = deque()

        def computed(left: int) -> Iterator[tuple[Batch, Callable[[], list[Segmentation]]]]:
            while len(computing) > left:
                batch, future = computing.popleft()
                yield batch, future.result

        try:
            for batch in chain([one for one in (first, second) if one], batches):
                # No thread may ask `cost`, whose hooks would see what the others compute.
                height, width = self.multiscale.largest(*batch[0][1].pixels.shape[:2])
                if threads > 1 and len(batch) * height * width <= SMALL:
                    computing.append((batch, serial_threads().submit(self._segment, batch)))
                    yield from computed(threads)
                else:
                    yield from computed(0)
                    yield batch, partial(self._segment, batch)
            yield from computed(0)
        finally:
            for _, future in computing:
                future.cancel()

    def _scores(self, stacked: Tensor) -> tuple[dict[str, Tensor], str]:
        """Score maps, and a note where `choose` did not take the plain strategy."""
        with autocast(self.device, self.precision):
            strategy, note = self.strategy, ""
            if strategy is choose:
                size = self.multiscale.largest(stacked.shape[2], stacked.shape[3])
                strategy, note = choice(self.model, stacked.new_empty((*stacked.shape[:2], *size), device="meta"))
            in_tiles = strategy is tiled or getattr(strategy, "func", None) is tiled
            if in_tiles and not note and (why := why_whole(self.model)):
                note = f"in tiles, {BLENDED}, since {why}"
            if self.multiscale.looks == 1:
                return strategy(self.runner, stacked), note
            # Looks are made where the picture is, since in tiles it may not fit the device, and must give the same.
            return averaged(self.runner, stacked, self.multiscale, strategy=strategy), note

    @torch.inference_mode()
    def _segment(self, batch: Batch) -> list[Segmentation]:
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
        heads = heads_of(self.model)
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
