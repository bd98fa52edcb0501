"""From a coarse map to a fine one, bilinear, on whatever pixels the two grids say.

The paper's layer is a transposed convolution with a bilinear kernel, fixed or learned (section 3.3). Fixed, it is
linear and separable, so it is computed as two small matrix products, exact at any offset and any size, deterministic
on every device, and cut into bands of rows at will (`fullyconv.dense` does). Learned, it is the grouped transposed
convolution itself. Beyond the outermost cells both repeat the edge, where `F.interpolate` does so only for nets whose
cells happen to lie in the middle of their blocks; the authors' nets have zeros there, and so has ``border="zero"``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.config import Upsampling
from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid

Border = Literal["edge", "zero"]
"""What lies beyond the outermost cells: the same again, or zeros, as around Caffe's unpadded deconvolution."""


def bilinear_kernel(size: int) -> Tensor:
    """The bilinear kernel of a transposed convolution, (size, size) float32, peak 1 (odd) or 0.75 per axis at size 4.

    Example:
        >>> bilinear_kernel(3)[1]
        tensor([0.5000, 1.0000, 0.5000])
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = 1 - (torch.arange(size, dtype=torch.float64) - centre).abs() / factor
    return torch.outer(line, line).float()


class Upsample(nn.Module):
    """Bilinear upsampling of score maps from one grid to a finer one.

    Args:
        source: grid of the maps that come in.
        target: grid of the maps that go out; its stride is the smaller.
        channels: K, used by learned kernels only.
        kernel: "fixed"; "learned", one for each class, initialised to bilinear (paper, section 3.3); or "full", from
            every class to every class, as the Caffe nets store it. Learned ones are real transposed convolutions, so
            the grids must lie a whole or a half number of fine cells apart; they have ``2f`` taps a side where the
            grids lie a half, ``2f - 1`` where they lie a whole number apart.
        border: what lies beyond the outermost cells.

    Attributes:
        factor: source stride / target stride.
        learned: whether the kernel is a parameter.
        crop: rows (and columns) cut from the front of the transposed convolution's output; None when fixed.
        grid: where the output lies, and how much of the picture it depends on.

    Raises:
        AlignmentError: the factor is below 1, or a learned kernel with a factor that is not whole or offsets that no
            crop of whole cells can match; the message holds the numbers.

    Example:
        >>> up = Upsample(Grid().conv(2, stride=2), Grid(), channels=1)
        >>> up(torch.tensor([[[[0., 4.], [0., 4.]]]]), (4, 4))[0, 0, 0]
        tensor([0., 1., 3., 4.])
    """

    def __init__(
        self,
        source: Grid,
        target: Grid,
        channels: int,
        *,
        kernel: Upsampling = "fixed",
        border: Border = "edge",
    ) -> None:
        super().__init__()
        self.source, self.target, self.kernel, self.border = source, target, kernel, border
        self.learned = kernel != "fixed"
        self.factor = source.stride / target.stride
        if self.factor < 1:
            raise AlignmentError(
                f"cannot upsample from {source} to the coarser {target}; list skips coarse to fine",
                grids=(source, target),
            )
        self.grid = Grid(target.stride, target.offset, source.field + 2 * self._farthest())
        self.crop: int | None = None
        if self.learned:
            self._ring, self.crop, taps = self._transposed_geometry()
            line = bilinear_kernel(taps)
            weight = line.expand(channels, 1, taps, taps)
            if kernel == "full":
                weight = torch.eye(channels)[:, :, None, None] * line
            self.weight = nn.Parameter(weight.contiguous())

    def _farthest(self) -> Fraction:
        """Pixels from a fine cell to the farther of the two coarse cells that it reads, at most."""
        coarse, fine = self.source.stride, self.target.stride
        # Fine cells lie at these distances behind coarse ones: a remainder, and whole steps from there.
        scale = coarse.denominator * fine.denominator
        step = Fraction(math.gcd(int(coarse * scale), int(fine * scale)), scale)
        remainder = (self.target.offset - self.source.offset) % step
        return coarse - (min(remainder, step - remainder) or step)

    def _transposed_geometry(self) -> tuple[int, int, int]:
        """Rings of replicated edge at the front, crop, kernel size."""
        taps, apart = transposed_geometry(self.source, self.target)
        if taps is None:
            raise AlignmentError(
                f"no learned upsampling from {self.source} to {self.target}: factor {float(self.factor):g}, "
                f"{float(apart):g} fine cells apart; expected a whole factor and whole or half cells",
                grids=(self.source, self.target),
            )
        f, ring, crop = int(self.factor), 0, int(apart)
        while self.border == "edge" and crop + ring * f < taps - f:
            ring += 1
        if crop + ring * f < 0:
            raise AlignmentError(
                f"no upsampling from {self.source} to {self.target} with zeros beyond the border: the first cell would "
                f"lie {-crop} cells before the first there is",
                grids=(self.source, self.target),
            )
        return ring, crop + ring * f, taps

    def places(self, cells: int, pixels: int, rows: Tensor) -> Tensor:
        """Where output rows lie among the cells: 0 on the first, 0.5 half way to the second. Both float64."""
        first = (self.target.offset - self.source.offset) / self.source.stride
        return rows * float(self.target.stride / self.source.stride) + float(first)

    def matrix(
        self,
        cells: int,
        pixels: int,
        *,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Rows ``start..stop`` of the interpolation of ``cells`` onto ``pixels`` along one axis, (stop - start, cells).

        Fixed upsampling of a map X, (h, w), is ``matrix(h, H) @ X @ matrix(w, W).T``; each row has at most two
        entries that are not zero, and they sum to 1 where no zeros lie beyond the border.
        """
        stop = pixels if stop is None else stop
        low, high_share = self._shares(cells, pixels, torch.arange(start, stop, device=device, dtype=torch.float64))
        high_share = high_share.to(dtype)
        # One cell more at either end takes what falls beyond.
        index = low.long()[:, None] + 1
        matrix = torch.zeros(stop - start, cells + 3, device=device, dtype=dtype)
        matrix.scatter_(1, index, (1 - high_share)[:, None])
        matrix.scatter_(1, index + 1, high_share[:, None])
        return matrix[:, 1 : cells + 1]

    def taps(self, cells: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
        """What `matrix` says of a fixed upsampling, pixel by pixel: (index int32, lower, upper float32), on the CPU.

        A pixel is ``lower`` of cell ``index`` and ``upper`` of the next. Cells that are not there are zeros.
        """
        low, upper = self._shares(cells, pixels, torch.arange(pixels, dtype=torch.float64))
        upper = upper.float()
        return low.int(), 1 - upper, upper

    def _shares(self, cells: int, pixels: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The lower of the two cells that each row lies between, and the share of the upper; both float64."""
        at = self.places(cells, pixels, rows)
        if self.border == "edge":
            at = at.clamp(0, cells - 1)
        low = at.clamp(-1, cells).floor()
        return low, (at - low).clamp(0, 1)

    def forward(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, h, w) -> (B, K, H, W), computed in float32 at least, whatever autocast says."""
        kind = scores.device.type
        # Only where there is something to switch off: exported programs of older torch cannot hold the switch.
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if casts else nullcontext():
            if scores.dtype in (torch.float16, torch.bfloat16):
                scores = scores.float()
            if self.learned:
                return self._transposed(scores, size)
            (h, w), (height, width) = scores.shape[-2:], size
            across = self.matrix(w, width, device=scores.device, dtype=scores.dtype)
            down = self.matrix(h, height, device=scores.device, dtype=scores.dtype)
            return down @ (scores @ across.T)

    def _transposed(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        assert self.crop is not None
        f, taps = int(self.factor), self.weight.shape[-1]
        if self.border == "edge":
            ends = [
                max(0, math.ceil((self.crop + n) / f) - cells - self._ring)
                for n, cells in zip(size, scores.shape[-2:], strict=True)
            ]
            scores = F.pad(scores, (self._ring, ends[1], self._ring, ends[0]), mode="replicate")
        groups = scores.shape[1] if self.kernel == "learned" else 1
        fine = F.conv_transpose2d(scores, self.weight.to(scores.dtype), stride=f, groups=groups)
        short = [
            max(0, self.crop + n - (f * (cells - 1) + taps)) for n, cells in zip(size, scores.shape[-2:], strict=True)
        ]
        fine = F.pad(fine, (0, short[1], 0, short[0])) if any(short) else fine
        return fine[..., self.crop : self.crop + size[0], self.crop : self.crop + size[1]]

    def extra_repr(self) -> str:
        taps = f", {self.weight.shape[-1]} taps, crop {self.crop}" if self.learned else ""
        return f"{self.source} -> {self.target}, {self.kernel}{taps}"


class Interpolate(Upsample):
    """`F.interpolate(mode="bilinear", align_corners=False)`: spreads the cells evenly over the pixels.

    For weights that were trained so, such as torchvision's: wherever cells do not lie in the middle of equal blocks,
    it puts scores beside the pixels that they belong to (3.5 px for a ResNet at stride 8), and the net has learnt to
    live with that.
    """

    def places(self, cells: int, pixels: int, rows: Tensor) -> Tensor:
        return (rows + 0.5) * (cells / pixels) - 0.5


class Steps(nn.Module):
    """Upsampling by two, and two, and two, in place of one step; arguments and attributes as of `Upsample`.

    The grids between are those of the transposed convolutions themselves, so only the last step is cropped.

    Raises:
        AlignmentError: the factor is no power of two; or as `Upsample`.

    Example:
        >>> grid = Grid().conv(8, stride=8)
        >>> [step.grid.stride.numerator for step in Steps(grid, Grid(), channels=3).steps]
        [4, 2, 1]
    """

    def __init__(
        self,
        source: Grid,
        target: Grid,
        channels: int,
        *,
        kernel: Upsampling = "fixed",
        border: Border = "edge",
    ) -> None:
        super().__init__()
        self.source, self.target, self.kernel, self.border = source, target, kernel, border
        self.learned, self.factor = kernel != "fixed", source.stride / target.stride
        if self.factor.denominator != 1 or self.factor < 2 or int(self.factor) & (int(self.factor) - 1):
            raise AlignmentError(
                f"no steps of 2 from {source} to {target}: the factor is {float(self.factor):g}; expected a power of 2",
                grids=(source, target),
            )
        # Where a kernel of 4 taps a step, which puts two cells evenly about each, leads to the target's cells, take it;
        # else 3 taps, which keep each cell and put one half way to the next.
        apart = (target.offset - source.offset) / target.stride
        self._taps = taps = 3 if apart.denominator == 1 else 4
        steps: list[Upsample] = []
        grid = source
        while grid.stride > 2 * target.stride:
            natural = grid.deconv(taps, 2)
            # Beyond the border: cells there are none of where it is the edge that goes on.
            step = Upsample(
                grid, natural if border == "zero" else natural.crop(1), channels, kernel=kernel, border=border
            )
            steps.append(step)
            grid = step.grid
        steps.append(Upsample(grid, target, channels, kernel=kernel, border=border))
        self.steps = nn.ModuleList(steps)
        self.grid = steps[-1].grid

    @property
    def _steps(self) -> Sequence[Upsample]:
        return [step for step in self.steps if isinstance(step, Upsample)]

    def _cells(self, cells: int) -> int:
        """Cells after one step that is not the last."""
        return 2 * (cells - 1) + self._taps if self.border == "zero" else 2 * cells

    def matrix(
        self,
        cells: int,
        pixels: int,
        *,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """As `Upsample.matrix`: the product of the steps' matrices."""
        *first, last = self._steps
        matrix = torch.eye(cells, device=device, dtype=dtype)
        for step in first:
            matrix = step.matrix(len(matrix), self._cells(len(matrix)), device=device, dtype=dtype) @ matrix
        return last.matrix(len(matrix), pixels, start=start, stop=stop, device=device, dtype=dtype) @ matrix

    def forward(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, h, w) -> (B, K, H, W), computed in float32 at least, whatever autocast says."""
        *first, last = self._steps
        for step in first:
            scores = step(scores, (self._cells(scores.shape[-2]), self._cells(scores.shape[-1])))
        fine: Tensor = last(scores, size)
        return fine


@dataclass(frozen=True)
class Nearest:
    """What a picture's pixels get of logits that are coarser or finer than they: the logit that lies on each.

    Attributes:
        upsample: from scores to logits.
        scale: logits to a pixel, 1/2 or 2.
    """

    upsample: Upsample | Steps
    scale: Fraction

    @property
    def learned(self) -> bool:
        return self.upsample.learned

    @property
    def factor(self) -> Fraction:
        """Pixels from one score to the next."""
        return self.upsample.factor / self.scale

    def parameters(self) -> Iterator[nn.Parameter]:
        """The learned kernels."""
        return self.upsample.parameters()

    def size(self, pixels: int) -> int:
        """Logits along an axis of so many pixels.

        Example:
            >>> Nearest(Upsample(Grid().conv(4, stride=4), Grid(), 1), Fraction(1, 2)).size(5)
            3
        """
        return math.ceil(pixels * self.scale)

    def matrix(
        self,
        cells: int,
        pixels: int,
        *,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """As `Upsample.matrix`."""
        chosen = self._chosen(start, pixels if stop is None else stop)
        rows = self.upsample.matrix(
            cells, self.size(pixels), start=chosen[0], stop=chosen[-1] + 1, device=device, dtype=dtype
        )
        return rows[[row - chosen[0] for row in chosen]]

    def taps(self, cells: int, pixels: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """As `Upsample.taps`; None where pixels lie on more than two cells."""
        if isinstance(self.upsample, Steps):
            return None
        chosen = torch.tensor(self._chosen(0, pixels))
        index, lower, upper = self.upsample.taps(cells, self.size(pixels))
        return index[chosen], lower[chosen], upper[chosen]

    def __call__(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, h, w) -> (B, K, H, W)."""
        height, width = size
        logits: Tensor = self.upsample(scores, (self.size(height), self.size(width)))
        return logits[..., self._chosen(0, height), :][..., self._chosen(0, width)]

    def _chosen(self, start: int, stop: int) -> list[int]:
        return [math.floor(pixel * self.scale) for pixel in range(start, stop)]


def transposed_geometry(source: Grid, target: Grid) -> tuple[int | None, Fraction]:
    """Kernel size and crop of the unpadded transposed convolution that upsamples from one grid to the other.

    The crop is the paper's (19, 5, 27, 31, ...). A negative one means that cells have to be added at the front. Where
    no transposed convolution does it, the kernel is None and the crop the distance in fine cells.

    Example:
        >>> transposed_geometry(Grid(Fraction(32), Fraction(25, 2)), Grid())  # FCN-32s on VGG16, padded by 100
        (64, Fraction(19, 1))
    """
    factor, apart = source.stride / target.stride, (target.offset - source.offset) / target.stride
    if factor.denominator != 1 or (2 * apart).denominator != 1:
        return None, apart
    f = int(factor)
    taps = 2 * f - 1 if apart.denominator == 1 else 2 * f
    return taps, apart + Fraction(taps - 1, 2)
