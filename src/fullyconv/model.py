"""The paper's figure 3 as code: a backbone's taps, scored and joined coarse to fine, upsampled to pixels.

Letters: B pictures, C channels, H x W pixels, K classes, h x w cells of a coarse map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.backbones import Backbone, Tap
from fullyconv.config import Classes, InputConfig, ModelConfig
from fullyconv.errors import AlignmentError, ConfigError
from fullyconv.geometry import Grid, Pixels
from fullyconv.lookup import lookup
from fullyconv.upsample import Upsample


@dataclass(frozen=True)
class Skip:
    """One line of the skip DAG: read this tap, scale it, score it (paper, section 4.2).

    Attributes:
        tap: name of the backbone's map.
        scale: factor on the map; 1e-2 and 1e-4 at pool4 and pool3 for learning all at once (PAMI, section 4.3).
        init: how the score layer starts; zeros leave the predictions of a coarser net unchanged.
        context: channels of a context block before the score; 0 for none. A net that ends in a global pool has no
            layer like VGG's fc6 and fc7, which see 7x7 cells, and this stands in for them.
    """

    tap: str
    scale: float = 1.0
    init: Literal["zeros", "gaussian"] = "zeros"
    context: int = 0


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

    Attributes:
        classes: K.
        skips: coarse to fine.
        grid: where the cells of the score map lie on the picture that the user gave.
        upsample: from there to its pixels.

    Raises:
        UnknownName: a skip reads a tap that the backbone does not have.
        ConfigError: two skips read the same tap.
        AlignmentError: the skips are not listed coarse to fine, or their grids cannot be joined.
    """

    def __init__(
        self,
        taps: Mapping[str, Tap],
        skips: Sequence[Skip],
        classes: int,
        *,
        shift: int = 0,
        learned: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.skips = tuple(skips)
        self.score = nn.ModuleDict()
        self.align = nn.ModuleDict()
        total: Grid | None = None
        for skip in self.skips:
            tap = lookup("tap", skip.tap, taps)
            if skip.tap in self.score:
                raise ConfigError(f"the tap '{skip.tap}' is listed twice; expected each skip to read a map of its own")
            layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
            score = nn.Conv2d(skip.context or tap.channels, classes, 1)
            nn.init.zeros_(score.weight) if skip.init == "zeros" else nn.init.normal_(score.weight, std=0.01)
            assert score.bias is not None
            nn.init.zeros_(score.bias)
            context = [Context(tap.channels, skip.context)] if skip.context else []
            self.score[skip.tap] = nn.Sequential(*context, *layers, score)
            grid = Context.grid(tap.grid) if skip.context else tap.grid
            if total is None:
                total = grid
            else:
                if (total.stride, total.offset) == (grid.stride, grid.offset):
                    self.align[skip.tap] = nn.Identity()
                elif total.stride <= grid.stride:
                    raise AlignmentError(
                        f"the skip '{skip.tap}' at {grid} does not follow a coarser one, {total}; list skips coarse "
                        "to fine",
                        grids=(total, grid),
                    )
                else:
                    align = Upsample(total, grid, classes, learned=learned)
                    self.align[skip.tap] = align
                    total = align.grid
                total = total.join(grid)
        assert total is not None
        self.grid = total.shift(shift)
        # The last upsampling is fixed, as in the paper; those between skips are learned (section 4.2).
        self.upsample = Upsample(self.grid, Grid(), classes)

    def score_map(self, maps: Mapping[str, Tensor]) -> Tensor:
        """(B, K, h, w) at the finest tap, float32 at least: what strategies stitch. The fold is the DAG."""
        total: Tensor | None = None
        for skip in self.skips:
            scores = self.score[skip.tap](maps[skip.tap] * skip.scale if skip.scale != 1 else maps[skip.tap])
            if scores.dtype in (torch.float16, torch.bfloat16):
                scores = scores.float()
            if total is None:
                total = scores
            else:
                align = self.align[skip.tap]
                fine = align(total, (scores.shape[2], scores.shape[3])) if isinstance(align, Upsample) else total
                total = fine + scores
        assert total is not None
        return total

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """Maps -> logits (B, K, H, W)."""
        logits: Tensor = self.upsample(self.score_map(maps), size)
        return logits


class Preprocess(nn.Module):
    """What the backbone's weights expect of a picture: reorder, subtract, divide. (B, C, H, W) in 0..255 -> float."""

    def __init__(self, config: InputConfig) -> None:
        super().__init__()
        self.order = config.order
        self.mean: Tensor
        self.std: Tensor
        # Part of the config, so not of the state dict as well.
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] != self.mean.shape[1]:
            raise ConfigError(f"got a picture of {image.shape[1]} channels, expected {self.mean.shape[1]}")
        image = image.to(self.mean.dtype)
        if self.order == "BGR":
            image = torch.cat((image[:, :3].flip(1), image[:, 3:]), 1)
        return (image - self.mean) / self.std


class Frame(NamedTuple):
    """Pixels added around a picture inside the net, so that cells cover it: of the mean colour, 0 once normalised."""

    left: int
    top: int
    right: int
    bottom: int


class FCN(nn.Module):
    """A fully convolutional network: image -> logits by head name.

    Pictures are RGB in 0..255 (uint8 or float), (B, 3, H, W), of any size from 1x1; logits are (B, K, H, W), for every
    pixel of the picture.

    Attributes:
        backbone, heads: its two parts.
        stride: of the coarsest map that is read, in pixels.
        field: pixels along one axis that one cell of the score map depends on; ``math.inf`` where it is all.
        config: what it was built from, for saving.
        classes: class table of each head, as far as known.

    Example:
        >>> from fullyconv.config import InputConfig
        >>> net = Backbone(nn.ModuleList(), {"c": Tap(4, Grid().conv(2, stride=2))}, input=InputConfig())
        >>> FCN(net, {"out": [Skip("c")]}, {"out": 5}).stride
        2
    """

    def __init__(
        self,
        backbone: Backbone,
        skips: Mapping[str, Sequence[Skip]],
        classes: Mapping[str, int],
        *,
        learned: Mapping[str, bool] | None = None,
        dropout: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.normalise = Preprocess(backbone.input)
        self.backbone = backbone
        read = [lookup("tap", skip.tap, backbone.taps) for head in skips.values() for skip in head]
        coarse = max(read, key=lambda tap: (tap.grid.stride, tap.grid.offset))
        if coarse.grid.stride.denominator != 1:
            raise AlignmentError(
                f"the coarsest map lies at {coarse.grid}; expected a whole stride", grids=[coarse.grid]
            )
        self.stride = int(coarse.grid.stride)
        # Nets that do not pad place their first cell well inside the picture; pixels before it are given to it.
        self._front = max(0, math.ceil(coarse.grid.offset - (coarse.grid.stride - 1) / 2))
        self._coarse = coarse
        self.heads = nn.ModuleDict(
            {
                name: Head(
                    backbone.taps,
                    skips[name],
                    classes[name],
                    shift=self._front,
                    learned=(learned or {}).get(name, False),
                    dropout=(dropout or {}).get(name, 0.0),
                )
                for name in skips
            }
        )
        self.field: Pixels = max(head.grid.field for head in self._heads.values())
        self.config: ModelConfig | None = None
        self.classes: dict[str, Classes] = {}

    @property
    def _heads(self) -> dict[str, Head]:
        return {name: head for name, head in self.heads.items() if isinstance(head, Head)}

    def frame(self, height: int, width: int) -> Frame:
        """What is added around a picture of this size: up to whole strides at which cells reach its borders."""
        right, bottom = (self._end(n) for n in (width, height))
        return Frame(self._front, self._front, right, bottom)

    def _end(self, pixels: int) -> int:
        cells = self._coarse.grid.shift(self._front).cells_up_to(pixels - 1)
        needed = max(self._front + pixels, self.backbone.minimum)
        blocks = max(cells - self._coarse.surplus, -(-needed // self.stride))
        return blocks * self.stride - self._front - pixels

    def preprocess(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..255 -> normalised and framed, float."""
        frame = self.frame(image.shape[2], image.shape[3])
        normalised: Tensor = self.normalise(image)
        return F.pad(normalised, (frame.left, frame.right, frame.top, frame.bottom))

    def scores_of(self, framed: Tensor) -> dict[str, Tensor]:
        """Score maps of a normalised picture, or of a window of one that starts at a multiple of `stride`."""
        maps = self.backbone(framed)
        return {name: head.score_map(maps) for name, head in self._heads.items()}

    def score_maps(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) in 0..255 -> score maps (B, K, h, w) by head name, before the last upsampling."""
        return self.scores_of(self.preprocess(image))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        size = (image.shape[2], image.shape[3])
        return {name: self._heads[name].upsample(scores, size) for name, scores in self.score_maps(image).items()}
