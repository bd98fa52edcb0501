"""The paper's figure 3 as code: a backbone's taps, scored and joined coarse to fine, upsampled to pixels.

Letters: B pictures, C channels, H x W pixels, K classes, h x w cells of a coarse map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.backbones import Backbone
from fullyconv.config import Classes, HeadConfig, InputConfig, ModelConfig, SkipConfig, Upsampling
from fullyconv.errors import AlignmentError, ConfigError
from fullyconv.geometry import Grid, Pixels
from fullyconv.lookup import lookup
from fullyconv.maps import Tap
from fullyconv.upsample import Border, Interpolate, Nearest, Steps, Upsample, transposed_geometry

RESOLUTIONS = {"half": Fraction(1, 2), "equal": Fraction(1), "double": Fraction(2)}
"""Logits to a pixel, along one axis."""


class Context(nn.Sequential):
    """Two 3x3 convolutions with batch norm, the second dilated by 2: sees 7x7 cells, keeps the grid."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )

    @staticmethod
    def grid(source: Grid) -> Grid:
        return source.conv(3, padding=1).conv(3, padding=2, dilation=2)


class Head(nn.Module):
    """Maps -> logits of one set of classes.

    Args:
        taps: what the backbone offers.
        config: what to read, and how to join and upsample it.
        shift: pixels that the net adds before the picture.
        border: what lies beyond the outermost scores. With "edge", skips keep all their cells; with "zero", coarse
            scores go through the authors' unpadded transposed convolutions, and the finer ones are cropped to them.
        interpolate: upsample as `F.interpolate` does, see `fullyconv.upsample.Interpolate`.

    Attributes:
        classes: K.
        skips: coarse to fine.
        grid: where the cells of the score map lie on the picture that the user gave.
        crops: for each finer skip with zeros beyond the border, the cells cut from the front of what comes from coarser
            maps, and of its own scores (the paper's 5 and 9).
        upsample: from the score map to the logits.

    Raises:
        UnknownName: a skip reads a tap that the backbone does not have.
        ConfigError: two skips read the same tap, or a learned kernel is to interpolate.
        AlignmentError: the skips are not listed coarse to fine, or their grids cannot be joined.
    """

    def __init__(
        self,
        taps: Mapping[str, Tap],
        config: HeadConfig,
        *,
        shift: int = 0,
        border: Border = "edge",
        interpolate: bool = False,
    ) -> None:
        super().__init__()
        self.classes = config.classes
        self.skips = config.skips
        self.fusion, self.resolution = config.fusion, config.resolution
        self.score = nn.ModuleDict()
        self.align = nn.ModuleDict()
        if interpolate and {config.upsampling, config.last_upsampling} != {"fixed"}:
            raise ConfigError("align 'interpolate' has no kernels to learn; expected upsampling 'fixed'")

        def between(source: Grid, target: Grid, kernel: Upsampling) -> Upsample | Steps:
            if interpolate:
                return Interpolate(source, target, config.classes)
            steps = Steps if config.stepwise and source.stride > 2 * target.stride else Upsample
            return steps(source, target, config.classes, kernel=kernel, border=border)

        grids = {skip.tap: self._add_score(lookup("tap", skip.tap, taps), skip, config.dropout) for skip in self.skips}
        cells = [(grid.stride, grid.offset) for grid in grids.values()]
        # Of several maps on one grid, such as those of two streams, the mean.
        self._shares = {tap: 1 / cells.count((g.stride, g.offset)) for tap, g in grids.items()}
        self.crops: dict[str, tuple[int, int]] = {}
        (before, total), *finer = grids.items()
        for tap, grid in finer:
            if (grids[before].stride, grids[before].offset) == (grid.stride, grid.offset):
                self.align[tap] = nn.Identity()
                if before in self.crops:
                    # As the first of this grid was, which everything so far has been cropped to.
                    self.crops[tap] = (0, self.crops[before][1])
                    grid = grid.crop(self.crops[tap][1])
            elif total.stride <= grid.stride:
                raise AlignmentError(
                    f"the skip '{tap}' at {grid} does not follow a coarser one, {total}; list skips coarse to fine",
                    grids=(total, grid),
                )
            elif border == "edge":
                align = self.align[tap] = between(total, grid, config.upsampling)
                total = align.grid
            else:
                size, _ = transposed_geometry(total, grid)
                natural = grid if size is None else total.deconv(size, int(total.stride / grid.stride))
                align = self.align[tap] = between(total, natural, config.upsampling)
                ahead = int((natural.offset - grid.offset) / grid.stride)
                self.crops[tap] = (max(0, -ahead), max(0, ahead))
                total, grid = align.grid.crop(max(0, -ahead)), grid.crop(max(0, ahead))
            total, before = total.join(grid), tap
        self.grid = total.shift(shift)
        self.upsample = between(self.grid, self._output(config.last_upsampling), config.last_upsampling)

    def _add_score(self, tap: Tap, skip: SkipConfig, dropout: float) -> Grid:
        """Make the score layer of a skip; where its scores lie."""
        if skip.tap in self.score:
            raise ConfigError(f"the tap '{skip.tap}' is listed twice; expected each skip to read a map of its own")
        score = nn.Conv2d(skip.context or tap.channels, self.classes, 1)
        nn.init.zeros_(score.weight) if skip.init == "zeros" else nn.init.normal_(score.weight, std=0.01)
        assert score.bias is not None
        nn.init.zeros_(score.bias)
        context = [Context(tap.channels, skip.context)] if skip.context else []
        self.score[skip.tap] = nn.Sequential(*context, *([nn.Dropout(dropout)] if dropout else []), score)
        return Context.grid(tap.grid) if skip.context else tap.grid

    def _output(self, kernel: Upsampling) -> Grid:
        """Where the logits lie: the first on the first pixel, or, where a learned kernel cannot, in its middle."""
        stride = 1 / RESOLUTIONS[self.resolution]
        first = Grid(stride)
        learnable = kernel == "fixed" or transposed_geometry(self.grid, first)[0] is not None
        return first if learnable else Grid(stride, (stride - 1) / 2)

    def score_map(self, maps: Mapping[str, Tensor]) -> Tensor:
        """(B, K, h, w) at the finest tap, float32 at least: what strategies stitch. The fold is the DAG."""
        total: Tensor | None = None
        for skip in self.skips:
            scores = self.score[skip.tap](maps[skip.tap] * skip.scale if skip.scale != 1 else maps[skip.tap])
            if scores.dtype in (torch.float16, torch.bfloat16):
                scores = scores.float()
            if self.fusion == "mean":
                scores = scores * self._shares[skip.tap]
            total = scores if total is None else self._join(skip.tap, total, scores)
        assert total is not None
        return total

    def _join(self, tap: str, coarse: Tensor, scores: Tensor) -> Tensor:
        align = self.align[tap]
        if isinstance(align, (Upsample, Steps)):  # a union stops torch.export of torch 2.6
            size = (scores.shape[2], scores.shape[3])
            if tap in self.crops:
                front, own = self.crops[tap]
                factor = int(align.factor)
                taps = 2 * factor - int((align.target.offset - align.source.offset) / align.target.stride % 1 == 0)
                size = (factor * (coarse.shape[2] - 1) + taps, factor * (coarse.shape[3] - 1) + taps)
                coarse = align(coarse, size)[..., front:, front:]
                scores = scores[..., own:, own:]
                h, w = min(coarse.shape[2], scores.shape[2]), min(coarse.shape[3], scores.shape[3])
                coarse, scores = coarse[..., :h, :w], scores[..., :h, :w]
            else:
                coarse = align(coarse, size)
        elif tap in self.crops:
            own = self.crops[tap][1]
            scores = scores[..., own : own + coarse.shape[2], own : own + coarse.shape[3]]
        return torch.maximum(coarse, scores) if self.fusion == "max" else coarse + scores

    @property
    def pixels(self) -> Upsample | Steps | Nearest:
        """From the score map to the pixels of the picture, whatever the resolution of the logits."""
        return self.upsample if self.resolution == "equal" else Nearest(self.upsample, RESOLUTIONS[self.resolution])

    def size(self, picture: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the logits for a picture of this (height, width)."""
        scale = RESOLUTIONS[self.resolution]
        height, width = (-(-side * scale.numerator // scale.denominator) for side in picture)
        return height, width

    def labels_on(self, labels: Tensor) -> Tensor:
        """Labels of a picture (B, H, W) -> of the logits."""
        if self.resolution == "half":
            return labels[..., ::2, ::2]
        if self.resolution == "double":
            return labels.repeat_interleave(2, -2).repeat_interleave(2, -1)
        return labels

    def labels_at_cells(self, labels: Tensor, cells: tuple[int, int], *, void: int) -> Tensor:
        """Labels of a picture (B, H, W) -> those on which the cells (h, w) of the score map lie; void beyond it."""
        for axis, count in ((1, cells[0]), (2, cells[1])):
            places = [math.floor(self.grid.offset + self.grid.stride * i + Fraction(1, 2)) for i in range(count)]
            index = torch.tensor(places, device=labels.device)
            beyond = (index < 0) | (index >= labels.shape[axis])
            labels = labels.index_select(axis, index.clamp(0, labels.shape[axis] - 1))
            labels = labels.masked_fill(beyond.view(-1, 1) if axis == 1 else beyond, void)
        return labels

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Maps -> logits (B, K, H, W) of a picture of this size, or of half or double its height and width."""
        logits: Tensor = self.upsample(self.score_map(maps), self.size(size))
        return logits


class Preprocess(nn.Module):
    """What the backbone's weights expect of a picture: reorder, subtract, divide. (B, C, H, W) in 0..255 -> float.

    Args:
        inputs: one for each stream, which get the picture's channels in turn.
    """

    def __init__(self, *inputs: InputConfig) -> None:
        super().__init__()
        self.order: list[int] = []
        for config in inputs:
            channels = list(range(len(config.mean)))
            first = channels[:3][::-1] if config.order == "BGR" else channels[:3]
            self.order += [len(self.order) + channel for channel in first + channels[3:]]
        self.mean: Tensor
        self.std: Tensor
        # Part of the config, so not of the state dict as well.
        for name in ("mean", "std"):
            values = [value for config in inputs for value in getattr(config, name)]
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] != len(self.order):
            raise ConfigError(f"got a picture of {image.shape[1]} channels, expected {len(self.order)}")
        image = image.to(self.mean.dtype)
        if self.order != sorted(self.order):
            image = image[:, self.order]
        return (image - self.mean) / self.std


class Frame(NamedTuple):
    """Pixels added around a picture inside the net, so that cells cover it: of the mean colour, 0 once normalised."""

    left: int
    top: int
    right: int
    bottom: int


class FCN(nn.Module):
    """A fully convolutional network: image -> logits by head name.

    Pictures are in 0..255 (uint8 or float), (B, C, H, W), RGB first, of any size from 1x1; logits are (B, K, H, W), for
    every pixel of the picture (or of half or double its height and width where a head says so).

    Args:
        backbone: gives the maps.
        heads: what is made of them, by name.
        interpolate: upsample as `F.interpolate` does, and add nothing around pictures.

    Attributes:
        backbone, heads: its two parts.
        channels: C.
        stride: of the coarsest map that is read, in pixels.
        alignment: pixels of which sizes and first pixels of windows are multiples: the stride mostly, more where maps
            inside are coarser than those that are read (hourglasses), or strides do not divide each other.
        field: pixels along one axis that one cell of the score map depends on; ``math.inf`` where it is all.
        interpolate: as it was given; such a net gives other scores where a picture is cut.
        config: what it was built from, for saving.
        classes: class table of each head, as far as known.

    Example:
        >>> from fullyconv.config import InputConfig
        >>> net = Backbone(nn.ModuleList(), {"c": Tap(4, Grid().conv(2, stride=2))}, input=InputConfig())
        >>> FCN(net, {"out": HeadConfig(classes=5, skips=(SkipConfig(tap="c"),))}).stride
        2
    """

    def __init__(self, backbone: Backbone, heads: Mapping[str, HeadConfig], *, interpolate: bool = False) -> None:
        super().__init__()
        self.normalise = Preprocess(*backbone.inputs)
        self.channels = len(self.normalise.order)
        self.backbone = backbone
        self.interpolate = interpolate
        read = [lookup("tap", skip.tap, backbone.taps) for head in heads.values() for skip in head.skips]
        coarse = max(read, key=lambda tap: (tap.grid.stride, tap.grid.offset))
        if coarse.grid.stride.denominator != 1:
            raise AlignmentError(
                f"the coarsest map lies at {coarse.grid}; expected a whole stride", grids=[coarse.grid]
            )
        self.stride = int(coarse.grid.stride)
        self._coarse = coarse
        # Maps that are not read are computed, too; what they join must have whole cells.
        joined = [tap for tap in backbone.taps.values() if tap.alignment != tap.grid.stride]
        self.alignment = math.lcm(*(tap.alignment for tap in (*read, *joined)))
        self._fixed = backbone.border is not None or interpolate
        # A frame that depends on nothing leaves whatever size there is, if the net takes it.
        self._multiple = 1 if interpolate or (self._fixed and not joined) else self.alignment
        if backbone.border is not None:
            self._front = backbone.border
        elif interpolate:
            self._front = 0
        else:
            # Nets that do not pad place their first cell well inside the picture; pixels before it are given to it.
            self._front = max(0, math.ceil(coarse.grid.offset - (coarse.grid.stride - 1) / 2))
        border: Border = "edge" if backbone.border is None else "zero"
        self.heads = nn.ModuleDict(
            {
                name: Head(backbone.taps, head, shift=self._front, border=border, interpolate=interpolate)
                for name, head in heads.items()
            }
        )
        # All that meets a map has the type of the trunk's weights.
        dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), self.normalise.mean.dtype)
        self.normalise.to(dtype)
        for made in self._heads.values():
            made.score.to(dtype)
        self.field: Pixels = max(head.grid.field for head in self._heads.values())
        self.config: ModelConfig | None = None
        self.classes: dict[str, Classes] = {}

    @property
    def _heads(self) -> dict[str, Head]:
        return {name: head for name, head in self.heads.items() if isinstance(head, Head)}

    def frame(self, height: int, width: int) -> Frame:
        """What is added around a picture of this size.

        Up to multiples of the alignment at which cells reach its borders; or, in the authors' geometry, the same on all
        sides.
        """
        right, bottom = (self._end(n) for n in (width, height))
        return Frame(self._front, self._front, right, bottom)

    def _end(self, pixels: int) -> int:
        if self._fixed:
            reached = 2 * self._front + pixels
        else:
            cells = self._coarse.grid.shift(self._front).cells_up_to(pixels - 1)
            reached = max(self._front + pixels, (cells - self._coarse.surplus) * self.stride)
        return -(-max(reached, self.backbone.minimum) // self._multiple) * self._multiple - self._front - pixels

    def preprocess(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in 0..255 -> normalised and framed, float.

        Raises:
            ValueError: a picture of another shape.
        """
        if image.dim() != 4:
            raise ValueError(f"got a picture of shape {tuple(image.shape)}; expected (B, C, H, W)")
        frame = self.frame(image.shape[2], image.shape[3])
        normalised: Tensor = self.normalise(image)
        return F.pad(normalised, (frame.left, frame.right, frame.top, frame.bottom))

    def scores_of(self, framed: Tensor) -> dict[str, Tensor]:
        """Score maps of a normalised picture, or of a window of one that starts at a multiple of `alignment`."""
        maps = self.backbone(framed)
        return {name: head.score_map(maps) for name, head in self._heads.items()}

    def score_maps(self, image: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) in 0..255 -> score maps (B, K, h, w) by head name, before the last upsampling."""
        return self.scores_of(self.preprocess(image))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        scores = self.score_maps(image)
        size = (image.shape[2], image.shape[3])
        return {name: head.upsample(scores[name], head.size(size)) for name, head in self._heads.items()}
