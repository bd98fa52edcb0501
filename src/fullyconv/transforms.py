"""What is done to a picture and its labels together while training, on torchvision's v2 functionals.

Picture and labels go through one geometry, drawn once per sample from the generator that is passed: the global random
state is neither read nor changed. Labels are gathered, never interpolated, so no id appears that was not there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import v2

from fullyconv.errors import ConfigError

MEAN = (124.0, 116.0, 104.0)
"""Mean colour of ImageNet, RGB 0..255: what pictures are padded with, since it is near 0 once normalised."""

Tensors = tuple[Tensor, dict[str, Tensor]]
"""A picture (C, H, W) uint8 or float32 and, for each head, its labels (H, W) uint8 or int32."""


class Sampled(Protocol):
    """What is transformed: a picture (H, W, C) uint8 or float32 and, for each head, labels (H, W): a `Sample`."""

    @property
    def image(self) -> npt.NDArray[Any]: ...
    @property
    def labels(self) -> Mapping[str, npt.NDArray[Any]]: ...


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, crop, mirror, colour jitter and translation.

    Attributes:
        crop: (height, width) of what comes out, cut at a random place, padded where the scaled picture is smaller;
            None: the whole scaled picture.
        scale: smallest and largest factor on both sides, drawn evenly on a logarithmic scale, so that halving is as
            likely as doubling.
        mirror: flip left and right in half of the samples.
        jitter: 0..1; brightness, contrast and saturation are each multiplied by 1 - jitter .. 1 + jitter. Of the first
            three channels only, and only where the picture is ``coloured``.
        shift: translation by up to so many pixels each way, as in the paper (32), on the whole picture.
        void: the label of padding.
        fill: what padding holds, a number for each channel, such as the mean that the model subtracts; RGB 0..255 first
            where the picture is coloured.
        coloured: whether the first three channels are RGB 0..255.

    Raises:
        ConfigError: a shift goes with a crop; or, when called, ``fill`` has not the channels of the picture.

    Example:
        >>> from types import SimpleNamespace
        >>> sample = SimpleNamespace(image=np.zeros((9, 12, 3), np.uint8), labels={"out": np.zeros((9, 12), np.uint8)})
        >>> image, labels = TrainTransform(crop=(6, 8))(sample, torch.Generator().manual_seed(0))
        >>> image.shape, labels["out"].shape
        (torch.Size([3, 6, 8]), torch.Size([6, 8]))
    """

    crop: tuple[int, int] | None = None
    scale: tuple[float, float] = (0.5, 2.0)
    mirror: bool = True
    jitter: float = 0.25
    shift: int = 0
    void: int = 255
    fill: tuple[float, ...] = MEAN
    coloured: bool = True

    def __post_init__(self) -> None:
        if self.crop is not None and self.shift:
            raise ConfigError(f"a shift of {self.shift} px goes with whole pictures only; a crop moves them already")

    def __call__(self, sample: Sampled, generator: torch.Generator) -> Tensors:
        """Transform one sample; always draws ten numbers, whatever the settings."""
        fill = _padding(self.fill, channels=sample.image.shape[2], dtype=torch.from_numpy(sample.image[:0]).dtype)
        draw = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
        low, high = self.scale
        factor = low * (high / low) ** draw[0] if low < high else low
        rows = _axis(sample.image.shape[0], factor, self.crop and self.crop[0], self.shift, draw[1:3])
        columns = _axis(sample.image.shape[1], factor, self.crop and self.crop[1], self.shift, draw[3:5])
        flip = self.mirror and draw[5] < 0.5

        # The window is cut out before it is resized: pixels that nobody will see cost nothing.
        window = np.array(sample.image[rows.start : rows.stop, columns.start : columns.stop])
        image = torch.from_numpy(window).permute(2, 0, 1)
        if image.shape[1:] != (rows.scaled, columns.scaled):
            image = v2.functional.resize(image, [rows.scaled, columns.scaled], antialias=True)
        image = image.contiguous()
        if self.jitter and self.coloured:
            image[:3] = _recolour(image[:3], *(1 + self.jitter * (2 * number - 1) for number in draw[6:9]))
        image = _place(image, rows, columns, fill)
        labels = {
            head: _place(torch.from_numpy(_gather(truth, rows, columns)), rows, columns, torch.tensor(self.void))
            for head, truth in sample.labels.items()
        }
        if flip:
            image = v2.functional.horizontal_flip(image)
            labels = {head: truth.flip(-1) for head, truth in labels.items()}
        return image.contiguous(), labels


NONE = TrainTransform(scale=(1.0, 1.0), mirror=False, jitter=0.0)
"""Changes nothing: a sample as tensors."""


def collate(batch: Sequence[Tensors], *, void: int = 255, fill: tuple[float, ...] = MEAN) -> Tensors:
    """Stack samples of any sizes, padding each at the right and the bottom to the largest height and width.

    Returns:
        pictures (B, C, H, W) of the samples' type, padded with ``fill``; for each head, labels (B, H, W) int64, padded
        with ``void``.

    Raises:
        ConfigError: ``fill`` has not the channels of the pictures.
    """
    first = batch[0][0]
    height = max(image.shape[1] for image, _ in batch)
    width = max(image.shape[2] for image, _ in batch)
    padding = _padding(fill, channels=len(first), dtype=first.dtype)
    images = padding.expand(len(batch), len(first), height, width).contiguous()
    labels = {head: torch.full((len(batch), height, width), void) for head in batch[0][1]}
    for i, (image, truths) in enumerate(batch):
        images[i, :, : image.shape[1], : image.shape[2]] = image
        for head, truth in truths.items():
            labels[head][i, : truth.shape[0], : truth.shape[1]] = truth
    return images, labels


@dataclass(frozen=True)
class _Axis:
    """One axis of the geometry: source pixels start..stop become ``scaled`` pixels, put at ``at`` of ``size``."""

    start: int
    stop: int
    scaled: int
    size: int
    at: int


def _axis(length: int, factor: float, crop: int | None, shift: int, draw: Sequence[float]) -> _Axis:
    if crop is None:
        size = max(1, round(length * factor))
        return _Axis(0, length, size, size, math.floor(draw[1] * (2 * shift + 1)) - shift)
    window = max(1, min(length, round(crop / factor)))
    start = math.floor(draw[0] * (length - window + 1))
    scaled = max(1, min(crop, round(window * factor)))
    if window < length:
        scaled = crop  # the window was rounded to whole pixels; a gap of one would be padded
    return _Axis(start, start + window, scaled, crop, math.floor(draw[1] * (crop - scaled + 1)))


def _gather(labels: npt.NDArray[Any], rows: _Axis, columns: _Axis) -> npt.NDArray[Any]:
    """Nearest neighbours, by pixel centres like the picture's bilinear resize (torchvision's masks go by corners)."""
    chosen = [
        axis.start + ((np.arange(axis.scaled) + 0.5) * (axis.stop - axis.start) / axis.scaled).astype(np.intp)
        for axis in (rows, columns)
    ]
    gathered = labels[chosen[0][:, None], chosen[1]]
    return gathered if gathered.dtype == np.uint8 else gathered.astype(np.int32)


def _place(values: Tensor, rows: _Axis, columns: _Axis, fill: Tensor) -> Tensor:
    """``values`` (..., h, w) at its place in (..., H, W), cut where it sticks out, ``fill`` where it does not reach."""
    if (rows.at, columns.at) == (0, 0) and values.shape[-2:] == (rows.size, columns.size):
        return values
    canvas = fill.to(values.dtype).expand(*values.shape[:-2], rows.size, columns.size).contiguous()
    inside, source = [], []
    for axis in (rows, columns):
        first, last = max(0, axis.at), min(axis.size, axis.at + axis.scaled)
        inside.append(slice(first, max(first, last)))
        source.append(slice(first - axis.at, max(first, last) - axis.at))
    canvas[..., inside[0], inside[1]] = values[..., source[0], source[1]]
    return canvas


def _padding(fill: Sequence[float], *, channels: int, dtype: torch.dtype) -> Tensor:
    """``fill`` as (C, 1, 1) of this type."""
    if len(fill) != channels:
        raise ConfigError(
            f"fill: got {len(fill)} numbers for pictures of {channels} channels; expected one each, such as the mean "
            "that the model subtracts",
            where="fill",
        )
    values = torch.tensor(fill, dtype=torch.float32)
    return (values if dtype.is_floating_point else values.round().clamp(0, 255)).to(dtype)[:, None, None]


def _recolour(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Brightness, contrast about the mean grey, and saturation in one go: all three are linear in the colours."""
    grey = torch.tensor([0.299, 0.587, 0.114])
    pixels = image.flatten(1).float()  # (3, H*W): a product with 3 x 3 is ten times faster from this side
    mean = float(grey @ pixels.mean(1)) * brightness
    mix = brightness * contrast * (saturation * torch.eye(3) + (1 - saturation) * grey)
    if image.is_floating_point():
        return torch.addmm(torch.full((3, 1), (1 - contrast) * mean), mix, pixels).clamp_(0, 255).view(image.shape)
    coloured = torch.addmm(torch.full((3, 1), (1 - contrast) * mean + 0.5), mix, pixels)
    return coloured.clamp_(0, 255.5).to(torch.uint8).view(image.shape)
