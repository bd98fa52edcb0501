"""From a coarse map to a fine one, bilinear, on whatever pixels the two grids say.

The paper's layer is a transposed convolution with a bilinear kernel, fixed or learned (section 3.3). Fixed, it is
linear and separable, so it is computed as two small matrix products, exact at any offset and any size, deterministic
on every device, and cut into bands of rows at will (`fullyconv.dense` does). Learned, it is the grouped transposed
convolution itself. Beyond the outermost cells both repeat the edge, where `F.interpolate` does so only for nets whose
cells happen to lie in the middle of their blocks.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid


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
        target: grid of the maps that go out; its stride divides the source's.
        channels: K, used by the learned kernel only.
        learned: make the kernel a parameter, initialised to bilinear (paper, section 3.3). This is a real transposed
            convolution, so the grids must lie a whole or a half number of fine cells apart; the kernel has ``2f``
            taps a side where they lie a half, ``2f - 1`` where a whole number apart.

    Attributes:
        factor: source stride / target stride.
        crop: rows (and columns) cut from the front of the transposed convolution's output; None when fixed.
        grid: where the output lies, and how much of the picture it depends on.

    Raises:
        AlignmentError: the factor is below 1, or ``learned`` with a factor that is not whole or offsets that no crop
            of whole cells can match; the message holds the numbers.

    Example:
        >>> up = Upsample(Grid().conv(2, stride=2), Grid(), channels=1)
        >>> up(torch.tensor([[[[0., 4.], [0., 4.]]]]), (4, 4))[0, 0, 0]
        tensor([0., 1., 3., 4.])
    """

    def __init__(self, source: Grid, target: Grid, channels: int, *, learned: bool = False) -> None:
        super().__init__()
        self.source, self.target, self.learned = source, target, learned
        self.factor = source.stride / target.stride
        if self.factor < 1:
            raise AlignmentError(
                f"cannot upsample from {source} to the coarser {target}; list skips coarse to fine",
                grids=(source, target),
            )
        self.grid = Grid(target.stride, target.offset, source.field + 2 * self._farthest())
        self.crop: int | None = None
        if learned:
            self._ring, self.crop, kernel = self._transposed_geometry()
            self.weight = nn.Parameter(bilinear_kernel(kernel).expand(channels, 1, kernel, kernel).contiguous())

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
        apart = (self.target.offset - self.source.offset) / self.target.stride
        if self.factor.denominator != 1 or (2 * apart).denominator != 1:
            raise AlignmentError(
                f"no learned upsampling from {self.source} to {self.target}: factor {float(self.factor):g}, "
                f"{float(apart):g} fine cells apart; expected a whole factor and whole or half cells",
                grids=(self.source, self.target),
            )
        f = int(self.factor)
        kernel = 2 * f - 1 if apart.denominator == 1 else 2 * f
        ring = 0
        while apart + ring * f + Fraction(kernel - 1, 2) < kernel - f:
            ring += 1
        return ring, int(apart + ring * f + Fraction(kernel - 1, 2)), kernel

    def matrix(
        self,
        cells: int,
        pixels: int,
        *,
        start: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Rows ``start .. start + pixels`` of the interpolation along one axis, (pixels, cells).

        Fixed upsampling of a map X, (h, w), is ``matrix(h, H) @ X @ matrix(w, W).T``; each row has at most two
        entries that are not zero, and they sum to 1.
        """
        first = (self.target.offset + self.target.stride * start - self.source.offset) / self.source.stride
        step = self.target.stride / self.source.stride
        at = torch.arange(pixels, device=device, dtype=torch.float64) * float(step) + float(first)
        at = at.clamp(0, cells - 1)
        low = at.floor().clamp(max=max(cells - 2, 0))
        high_share = (at - low).to(dtype)
        low_index = low.long()
        matrix = torch.zeros(pixels, cells, device=device, dtype=dtype)
        matrix.scatter_(1, low_index[:, None], (1 - high_share)[:, None])
        if cells > 1:
            matrix.scatter_(1, low_index[:, None] + 1, high_share[:, None])
        return matrix

    def forward(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, K, h, w) -> (B, K, H, W), computed in float32 at least, whatever autocast says."""
        kind = scores.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
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
        f = int(self.factor)
        ends = [
            max(0, math.ceil((self.crop + n) / f) - cells - self._ring)
            for n, cells in zip(size, scores.shape[-2:], strict=True)
        ]
        ringed = F.pad(scores, (self._ring, ends[1], self._ring, ends[0]), mode="replicate")
        fine = F.conv_transpose2d(ringed, self.weight.to(scores.dtype), stride=f, groups=scores.shape[1])
        return fine[..., self.crop : self.crop + size[0], self.crop : self.crop + size[1]]

    def extra_repr(self) -> str:
        kernel = f", kernel={self.weight.shape[-1]}, crop={self.crop}" if self.learned else ""
        return f"{self.source} -> {self.target}, {'learned' if self.learned else 'fixed'}{kernel}"
