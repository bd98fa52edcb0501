"""What is done at full resolution without ever holding K scores for every pixel.

A score map is 1/s of the picture's height and width, so upsampled whole it would be s squared times as large, only to
be reduced to one label or one loss a pixel. Fixed upsampling is linear and separable, ``A_h X A_w^T``, so any block of
pixels is two products of small matrices with the few cells that it lies on. Here pixels are made block by block, small
enough for the cache, and are gone before the next: faster than the plain way, the more so the more classes, in the
memory of a few blocks and of a score map as wide as they are (``benchmarks/loss.py``). On the CPU a compiled
kernel (`fullyconv.native`), where it was built, does what ends in one label or number a pixel, many times as fast
again (``benchmarks/tail.py``), and the loss in half the time. On CUDA, where Triton is there, `fullyconv.fused` does.

The sums are the plain ones in another order, so results agree to rounding: of classes whose scores differ by less,
either may win, of equal ones the first does. Scores are upsampled in float32 at least, whatever autocast says. Learned
upsampling is no such product; it is the layer itself, run on bands of rows.

B, K, h, w: score map; H, W: picture, ``size``; R, C: block of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache, partial
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fullyconv import losses, native
from fullyconv.devices import serial_threads
from fullyconv.losses import Reduction

if TYPE_CHECKING:
    from fullyconv.fused import Axis

Result = TypeVar("Result")
Size = tuple[int, int]
"""(height, width) in pixels."""


class Upsampling(Protocol):
    """What is needed of `fullyconv.upsample.Upsample`."""

    @property
    def learned(self) -> bool: ...

    def parameters(self) -> Iterator[Tensor]: ...

    def matrix(
        self,
        cells: int,
        pixels: int,
        *,
        start: int = ...,
        stop: int | None = ...,
        device: torch.device | None = ...,
        dtype: torch.dtype = ...,
    ) -> Tensor: ...

    def __call__(self, scores: Tensor, size: Size) -> Tensor: ...


@runtime_checkable
class Bilinear(Protocol):
    """Upsampling in which a pixel takes of two cells an axis; where it does not after all, None."""

    def taps(self, cells: int, pixels: int) -> native.Taps | None: ...


@runtime_checkable
class Periodic(Protocol):
    """Upsampling that does the same at every cell: shifted by a cell, it is shifted by `factor` pixels."""

    @property
    def factor(self) -> Fraction: ...


def argmax(scores: Tensor, upsample: Upsampling, size: Size, *, block: Size | None = None) -> Tensor:
    """The class with the largest upsampled score, at every pixel.

    Args:
        scores: (B, K, h, w), float.
        upsample: how scores reach the pixels.
        size: of the picture.
        block: pixels made at a time by torch, (rows, columns); None: as many as fit the cache, or a compiled kernel.

    Returns:
        (B, H, W), uint8 where K <= 255, else int32. Of equal scores the first class wins, of NaNs the first NaN, as
        with `torch.argmax`.

    Example:
        >>> from fullyconv.geometry import Grid
        >>> from fullyconv.upsample import Upsample
        >>> scores = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two classes, two cells
        >>> argmax(scores, Upsample(Grid().conv(3, stride=3), Grid(), channels=2), (1, 6))
        tensor([[[0, 0, 0, 1, 1, 1]]], dtype=torch.uint8)
    """
    dtype = _label_type(scores)
    if block is None and (kernel := _kernel(scores, upsample, size)):
        labels = _empty(scores, size, dtype)
        kernel(labels=labels)
        return labels

    def reduce(fine: Tensor) -> tuple[Tensor]:
        # max gives the first index too, and on the CPU is an order of magnitude faster than argmax over this axis.
        return (fine.max(2).indices.to(dtype),)

    return _reduced(scores, upsample, size, block, reduce)[0]


def probability(
    scores: Tensor, upsample: Upsampling, size: Size, *, block: Size | None = None
) -> tuple[Tensor, Tensor]:
    """What `argmax` gives, and how probable the net holds it.

    Returns:
        labels as from `argmax`, and (B, H, W) float32 in 1/K..1, the largest softmax probability.
    """
    dtype = _label_type(scores)
    if block is None and (kernel := _kernel(scores, upsample, size)):
        labels, probabilities = _empty(scores, size, dtype), _empty(scores, size, torch.float32)
        kernel(labels=labels, probability=probabilities)
        return labels, probabilities

    def reduce(fine: Tensor) -> tuple[Tensor, Tensor]:
        largest, index = fine.max(2, keepdim=True)
        return index.squeeze(2).to(dtype), (fine - largest).exp_().sum(2).reciprocal().float()

    labels, probabilities = _reduced(scores, upsample, size, block, reduce)
    return labels, probabilities


def entropy(scores: Tensor, upsample: Upsampling, size: Size, *, block: Size | None = None) -> Tensor:
    """How undecided the net is, at every pixel: the entropy of the softmax.

    Args:
        scores, upsample, size, block: as for `argmax`.

    Returns:
        (B, H, W) float32 in nats, 0 (one class is certain) to ln K (all are as probable).

    Example:
        >>> from fullyconv.geometry import Grid
        >>> from fullyconv.upsample import Upsample
        >>> entropy(torch.zeros(1, 4, 1, 1), Upsample(Grid().conv(2, stride=2), Grid(), channels=4), (1, 2))
        tensor([[[1.3863, 1.3863]]])
    """
    if block is None and (kernel := _kernel(scores, upsample, size)):
        entropies = _empty(scores, size, torch.float32)
        kernel(entropy=entropies)
        return entropies

    def reduce(fine: Tensor) -> tuple[Tensor]:
        # Nothing has a share below, and 0 * -inf would be NaN.
        below = (fine - fine.amax(2, keepdim=True)).clamp_(min=-1000)
        powers = below.exp()
        total = powers.sum(2)
        return ((total.log() - (powers * below).sum(2) / total).float(),)

    return _reduced(scores, upsample, size, block, reduce)[0]


def probabilities_bands(
    scores: Tensor, upsample: Upsampling, size: Size, *, rows: int | None = None
) -> Iterator[Tensor]:
    """The softmax probabilities of all classes, in bands of whole rows from the top of the picture to the bottom.

    Args:
        scores, upsample, size: as for `argmax`.
        rows: of a band; None: about a million probabilities.

    Yields:
        (B, K, rows, W), float32 (float64 from float64 scores), summing to 1 over K.
    """
    if upsample.learned:
        for fine in _learned_bands(scores, upsample, size, rows):
            yield fine.softmax(1)
        return
    coarse = _rows_first(scores)
    if rows is None:
        rows = max(1, (1 << 20) // max(1, coarse.shape[1] * coarse.shape[2] * size[1]))
    down, across = _cut(coarse, upsample, size, (rows, 128))

    def compute(band: _Strip) -> Tensor:
        narrow = band.spread_down(coarse)
        fine = torch.cat([columns.spread_across(narrow) for columns in across], dim=3)
        return fine.softmax(2).permute(1, 2, 0, 3)

    for band in down:
        yield from _each([band], compute)


def cross_entropy(
    scores: Tensor,
    upsample: Upsampling,
    labels: Tensor,
    *,
    void: int,
    reduction: Reduction = "mean",
    weights: Tensor | None = None,
    block: Size | None = None,
) -> Tensor:
    """``losses.cross_entropy(upsample(scores, size), labels, ...)``, value and gradient, block by block.

    Args:
        scores: (B, K, h, w), float.
        upsample: how scores reach the pixels. If it is learned, its kernels get their gradient, too.
        labels: (B, H, W) int64, 0..K-1 or ``void``; their size is the picture's.
        void, reduction, weights: as in `fullyconv.losses`. No gradient reaches ``weights``.
        block: pixels made at a time; None: as many as fit the cache, or a kernel where there is one.

    Returns:
        scalar, 0 or more, best 0. It can be differentiated once.

    Raises:
        ValueError: labels or weights of another shape or type.
    """
    _refuse_misfit(scores, labels, weights)
    if reduction == "image":
        # A picture of nothing but void is left out of the mean, as in `fullyconv.losses`.
        means = [
            cross_entropy(one, upsample, truth, void=void, weights=weights, block=block)
            for one, truth in zip(scores.split(1), labels.split(1), strict=True)
            if bool((truth != void).any())
        ]
        if means:
            return torch.stack(means).mean()
        reduction = "sum"  # of nothing
    if upsample.learned:
        kernels = [kernel for kernel in upsample.parameters() if kernel.requires_grad and torch.is_grad_enabled()]
        total = _LearnedCrossEntropy.apply(scores, upsample, labels, void, weights, block and block[0], *kernels)
        counted = labels != void
        count = counted if weights is None else weights.to(total)[labels.masked_fill(~counted, 0)] * counted
        return losses.reduce(total, count.sum(), reduction)
    total, count = _CrossEntropy.apply(scores, upsample, labels, void, weights, block)
    return losses.reduce(total, count, reduction)


def _refuse_misfit(scores: Tensor, labels: Tensor, weights: Tensor | None) -> None:
    """Refuse labels and weights that would be spread over pictures or classes that they are not of."""
    pictures, classes = scores.shape[:2]
    if labels.dtype != torch.int64 or labels.dim() != 3 or len(labels) != pictures:
        raise ValueError(
            f"labels: got {tuple(labels.shape)} {labels.dtype}; expected ({pictures}, H, W) torch.int64, beside scores "
            f"{tuple(scores.shape)}"
        )
    if weights is not None and weights.shape != (classes,):
        raise ValueError(f"weights: got shape {tuple(weights.shape)}; expected ({classes},), one for each class")


class _CrossEntropy(torch.autograd.Function):
    """The loss summed over pixels and the sum of their weights; the gradient comes from the same pass over blocks."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        upsample: Upsampling,
        labels: Tensor,
        void: int,
        weights: Tensor | None,
        block: Size | None,
    ) -> tuple[Tensor, Tensor]:
        wants_slope: bool = ctx.needs_input_grad[0]
        size = (labels.shape[1], labels.shape[2])
        if block is None and (found := _by_kernel(scores.detach(), upsample, labels, void, weights, wants_slope)):
            total, count, slope = found
            if slope is not None:
                ctx.save_for_backward(slope.to(scores.dtype))
            ctx.mark_non_differentiable(count)
            return total, count
        # In powers of 2, which cost a third of powers of e on the CPU; log2(e) goes in where scores are few.
        coarse = _rows_first(scores) * math.log2(math.e)
        down, across = _cut(coarse, upsample, size, block)

        def compute(columns: _Strip) -> tuple[Tensor, Tensor, Tensor | None]:
            truth = labels[..., columns.pixels].transpose(0, 1).unsqueeze(2)  # (H, B, 1, C)
            counted = truth != void
            truth = truth.masked_fill(~counted, 0)
            weight = counted.to(coarse) if weights is None else weights.to(coarse)[truth] * counted
            wide = columns.spread_across(coarse)
            wide_slope = torch.zeros_like(wide) if wants_slope else None
            total = wide.new_zeros(())
            for rows in down:
                true_class, share = truth[rows.pixels], weight[rows.pixels]
                fine = rows.spread_down(wide)
                fine -= fine.amax(2, keepdim=True)
                true_score = fine.gather(2, true_class)
                powers = fine.exp2_()
                sum_of_powers = powers.sum(2, keepdim=True)
                total += ((sum_of_powers.log2() - true_score) * share).sum()
                if wide_slope is not None:
                    # share * (probability - 1 where true)
                    powers.mul_(share / sum_of_powers).scatter_add_(2, true_class, -share)
                    rows.gather_down(powers, wide_slope)
            return total, weight.sum(), None if wide_slope is None else columns.gather_across(wide_slope)

        totals, counts, slopes = zip(*_each(across, compute), strict=True)
        if wants_slope:
            slope = torch.zeros_like(coarse)
            for columns, part in zip(across, slopes, strict=True):
                slope[..., columns.cells] += part
            ctx.save_for_backward(slope.permute(1, 2, 0, 3).to(scores.dtype))
        total, count = torch.stack(totals).sum() * math.log(2), torch.stack(counts).sum()
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return slope * upstream, None, None, None, None, None


class _LearnedCrossEntropy(torch.autograd.Function):
    """As `_CrossEntropy`, with the kernels' gradient: that of a band is taken before the next band is made."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        upsample: Upsampling,
        labels: Tensor,
        void: int,
        weights: Tensor | None,
        rows: int | None,
        *kernels: Tensor,
    ) -> Tensor:
        wants_slopes = any(ctx.needs_input_grad)
        coarse = _wide(scores).detach()
        slopes = [torch.zeros_like(part) for part in (coarse, *kernels)]
        total = coarse.new_zeros(())
        # Of one picture at a time: the taller a band, the fewer cells are spread for two bands.
        bands = list(_learned_cut(coarse[:1], upsample, (labels.shape[1], labels.shape[2]), rows))
        for picture, band in product(range(len(coarse)), bands):
            at = (slice(picture, picture + 1), slice(None), band.cells)
            truth = labels[picture : picture + 1, band.pixels]
            with torch.set_grad_enabled(wants_slopes):
                cells = coarse[at].requires_grad_(wants_slopes)
                fine = band.spread(cells, upsample, labels.shape[2])
                loss = losses.cross_entropy(fine, truth, void=void, reduction="sum", weights=weights)
            total += loss.detach()
            if wants_slopes:
                sums = (slopes[0][at], *slopes[1:])
                for slope, more in zip(sums, torch.autograd.grad(loss, (cells, *kernels)), strict=True):
                    slope += more
        if wants_slopes:
            ctx.save_for_backward(*slopes)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Autograd rounds to the dtype of the scores, once.
        slope, *kernel_slopes = (slope * upstream for slope in ctx.saved_tensors)
        return slope, None, None, None, None, None, *kernel_slopes


class _Strip(NamedTuple):
    """Some neighbouring pixels of one axis, the cells they lie on, and how much of each cell each pixel takes."""

    pixels: slice
    cells: slice
    shares: Tensor
    """(pixels, cells)."""

    def spread_down(self, coarse: Tensor) -> Tensor:
        """(h, B, K, C) -> (R, B, K, C)."""
        return (self.shares @ coarse[self.cells].flatten(1)).view(len(self.shares), *coarse.shape[1:])

    def gather_down(self, slope: Tensor, coarse_slope: Tensor) -> None:
        """Add the gradient of what `spread_down` gave to that of what it took."""
        coarse_slope[self.cells].flatten(1).addmm_(self.shares.T, slope.flatten(1))

    def spread_across(self, coarse: Tensor) -> Tensor:
        """(R, B, K, w) -> (R, B, K, C)."""
        return (coarse.flatten(0, 2)[:, self.cells] @ self.shares.T).view(*coarse.shape[:3], len(self.shares))

    def gather_across(self, slope: Tensor) -> Tensor:
        """The gradient of what `spread_across` took, at `cells`, from that of what it gave."""
        return (slope.flatten(0, 2) @ self.shares).view(*slope.shape[:3], self.shares.shape[1])


def _reduced(
    scores: Tensor,
    upsample: Upsampling,
    size: Size,
    block: Size | None,
    reduce: Callable[[Tensor], tuple[Tensor, ...]],
) -> list[Tensor]:
    """(B, H, W) each: what ``reduce``, (R, B, K, C) -> (R, B, C) each, makes of all blocks."""
    bands = None
    if upsample.learned:
        bands = _learned_bands(scores, upsample, size)
    elif (taps := _taps(scores, upsample, size)) and not scores.isfinite().all():
        bands = _bilinear_bands(scores, taps)
    if bands is not None:
        reduced = [reduce(band.permute(2, 0, 1, 3)) for band in bands]
        return [torch.cat(part).transpose(0, 1).contiguous() for part in zip(*reduced, strict=True)]
    coarse = _rows_first(scores)
    down, across = _cut(coarse, upsample, size, block)

    def compute(columns: _Strip) -> list[Tensor]:
        wide = columns.spread_across(coarse)
        parts = [reduce(rows.spread_down(wide)) for rows in down]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    columns = _each(across, compute)
    return [torch.cat(part, dim=2).transpose(0, 1).contiguous() for part in zip(*columns, strict=True)]


class _Band(NamedTuple):
    """Some neighbouring rows of pixels, and the rows of cells of which learned upsampling makes them."""

    pixels: slice
    cells: slice
    before: int
    """Rows of pixels that are made with them and do not belong to them."""

    def spread(self, cells: Tensor, upsample: Upsampling, width: int) -> Tensor:
        """(B, K, those cells, w) -> (B, K, R, W)."""
        rows = self.before + self.pixels.stop - self.pixels.start
        return upsample(cells, (rows, width))[:, :, self.before :]


def _learned_cut(scores: Tensor, upsample: Upsampling, size: Size, rows: int | None) -> Iterator[_Band]:
    """The rows of a picture, cut into bands; where upsampling is not the same at every cell, one of all."""
    (pictures, classes, cells, _), (height, width) = scores.shape, size
    if not isinstance(upsample, Periodic) or upsample.factor.denominator != 1:
        yield _Band(slice(0, height), slice(0, cells), 0)
        return
    factor = int(upsample.factor)
    rows = rows or max(factor, (1 << 22) // max(1, pictures * classes * width))
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        touched = upsample.matrix(cells, height, start=start, stop=stop).any(0).nonzero()
        first, last = (int(touched[0]), int(touched[-1])) if len(touched) else (0, cells)
        first = min(first, start // factor)
        yield _Band(slice(start, stop), slice(first, last + 1), start - first * factor)


def _learned_bands(scores: Tensor, upsample: Upsampling, size: Size, rows: int | None = None) -> Iterator[Tensor]:
    """(B, K, rows, W) each: the layer itself, of the cells that a band lies on."""
    for band in _learned_cut(scores, upsample, size, rows):
        with torch.no_grad():
            fine = band.spread(scores[:, :, band.cells], upsample, size[1])
        yield fine


def _bilinear_bands(scores: Tensor, taps: tuple[native.Taps, native.Taps]) -> Iterator[Tensor]:
    """(B, K, R, W) each: sum by sum as the native kernel does it, so that NaN and infinity stay where they belong."""
    rows, columns = taps
    coarse = scores.detach() if scores.dtype == torch.float64 else scores.detach().float()
    per_row = max(1, len(coarse) * coarse.shape[1] * len(columns[0]))
    for band in zip(*(tap.split(max(1, (1 << 22) // per_row)) for tap in rows), strict=True):
        yield _between(_between(coarse, columns, 3).contiguous(), band, 2)


def _between(cells: Tensor, taps: native.Taps, axis: int) -> Tensor:
    """Pixels along one axis. Without weight an infinity has no say, but a NaN has."""
    there = cells.shape[axis]
    shape = [1] * cells.dim()
    shape[axis] = -1
    index = taps[0].to(cells.device).long()
    total = torch.zeros((), device=cells.device)
    for place, weight in ((index, taps[1]), (index + 1, taps[2])):
        missing = (place < 0) | (place >= there)
        share = weight.to(cells).masked_fill(missing, 0).view(shape)
        cell = cells.index_select(axis, place.clamp(0, there - 1))
        term = share * cell
        nothing = (share == 0) & (~cell.isnan() | missing.view(shape))
        total = total + term.masked_fill(nothing, 0)
    return total


def _each(strips: Sequence[_Strip], compute: Callable[[_Strip], Result]) -> list[Result]:
    """``compute`` of every strip, in order.

    On the CPU the strips are shared out among serial threads, several times as fast as torch's own.
    """
    device = strips[0].shares.device

    def alone(strip: _Strip) -> Result:
        # Under autocast products would be rounded to bfloat16, and labels with them.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return compute(strip)

    threads = torch.get_num_threads() if device.type == "cpu" else 1
    if min(threads, len(strips)) == 1:
        return [alone(strip) for strip in strips]
    return list(serial_threads().map(alone, strips))


def _rows_first(scores: Tensor) -> Tensor:
    """(B, K, h, w) -> (h, B, K, w), in which either axis spreads by one product of matrices, whatever B and K."""
    return _wide(scores).permute(2, 0, 1, 3).contiguous()


def _wide(scores: Tensor) -> Tensor:
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores


def _cut(coarse: Tensor, upsample: Upsampling, size: Size, block: Size | None) -> tuple[list[_Strip], list[_Strip]]:
    """The rows and the columns of a picture, cut into blocks."""
    rows, columns = block or _block_that_fits(coarse, size[1])
    return _strips(coarse, upsample, 0, size[0], rows), _strips(coarse, upsample, 3, size[1], columns)


def _block_that_fits(coarse: Tensor, width: int) -> Size:
    """A CPU wants its block in the cache, narrow, for the product across costs by the width, and every thread busy."""
    per_pixel = max(1, coarse.shape[1] * coarse.shape[2])
    if coarse.device.type != "cpu":
        return max(1, (1 << 24) // (512 * per_pixel)), 512
    scores, threads = 3 << 17, torch.get_num_threads()
    columns = min(max(scores // (32 * per_pixel), 64), 256)
    strips = math.ceil(math.ceil(width / columns) / threads) * threads
    columns = max(math.ceil(width / strips), min(width, 32))
    return min(max(scores // (columns * per_pixel), 1), 32), columns


def _strips(coarse: Tensor, upsample: Upsampling, axis: int, pixels: int, length: int) -> list[_Strip]:
    cells = coarse.shape[axis]
    strips = []
    for start in range(0, pixels, length):
        stop = min(start + length, pixels)
        # On the CPU, since Python has to know which cells are touched.
        shares = upsample.matrix(cells, pixels, start=start, stop=stop, dtype=coarse.dtype)
        touched = shares.any(0).nonzero()
        # Where zeros lie beyond the border, pixels far out touch no cell.
        first, last = (int(touched[0]), int(touched[-1]) + 1) if len(touched) else (0, 1)
        strips.append(_Strip(slice(start, stop), slice(first, last), shares[:, first:last].to(coarse.device)))
    return strips


def _by_kernel(
    scores: Tensor, upsample: Upsampling, labels: Tensor, void: int, weights: Tensor | None, slope: bool
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The loss, the sum of weights and the slope without torch, if anything gives them."""
    size = (labels.shape[1], labels.shape[2])
    if (fused := _fused(scores)) and (axes := _axes(scores, upsample, size)):
        loss, count, by_scores = fused.cross_entropy(scores, *axes, labels, void=void, weights=weights, slope=slope)
        return loss, count, by_scores
    taps = _native_taps(scores, upsample, size)
    if taps is None or not (coarse := scores.float()).sum().isfinite():  # the kernel would hide what is not finite
        return None
    total, weight, by_scores = native.cross_entropy(coarse, *taps, labels, void=void, weights=weights, slope=slope)
    return coarse.new_tensor(total), coarse.new_tensor(weight), by_scores


def _kernel(scores: Tensor, upsample: Upsampling, size: Size) -> Callable[..., None] | None:
    """What fills labels and numbers without torch, if anything does."""
    if (fused := _fused(scores)) and (axes := _axes(scores, upsample, size)):
        return partial(fused.reduce, scores.detach(), *axes)
    taps = _native_taps(scores, upsample, size)
    return partial(native.reduce, scores.detach().float(), *taps) if taps else None


def _fused(scores: Tensor) -> ModuleType | None:
    """`fullyconv.fused`, where it computes such scores."""
    return _fused_on(scores.device) if scores.is_cuda and scores.dtype != torch.float64 else None


@cache
def _fused_on(device: torch.device) -> ModuleType | None:
    try:
        from fullyconv import fused
    except ImportError:  # a torch that came without Triton
        return None
    return None if fused.why_not(device) else fused


def _axes(scores: Tensor, upsample: Upsampling, size: Size) -> tuple[Axis, Axis] | None:
    """What the Triton kernels need of the rows and of the columns."""
    if upsample.learned or not isinstance(upsample, Bilinear):
        return None
    rows = _axis(upsample, scores.shape[2], size[0], scores.device)
    columns = _axis(upsample, scores.shape[3], size[1], scores.device)
    return (rows, columns) if rows is not None and columns is not None else None


@lru_cache(maxsize=64)
def _axis(upsample: Bilinear, cells: int, pixels: int, device: torch.device) -> Axis | None:
    """Kept, since making it on the CPU and sending it would take longer than a kernel runs."""
    from fullyconv.fused import Axis

    taps = upsample.taps(cells, pixels)
    with torch.inference_mode(False):  # what is kept serves training too
        return None if taps is None else Axis.of(taps, cells, device)


def _native_taps(scores: Tensor, upsample: Upsampling, size: Size) -> tuple[native.Taps, native.Taps] | None:
    """What the native kernel needs, if it is to be used."""
    if upsample.learned or scores.device.type != "cpu" or scores.dtype == torch.float64 or not native.available():
        return None
    return _taps(scores, upsample, size)


def _taps(scores: Tensor, upsample: Upsampling, size: Size) -> tuple[native.Taps, native.Taps] | None:
    """For the rows and for the columns, where pixels lie on no more than two cells."""
    if not isinstance(upsample, Bilinear):
        return None
    rows, columns = upsample.taps(scores.shape[2], size[0]), upsample.taps(scores.shape[3], size[1])
    return (rows, columns) if rows is not None and columns is not None else None


def _empty(scores: Tensor, size: Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(len(scores), *size, dtype=dtype, device=scores.device)


def _label_type(scores: Tensor) -> torch.dtype:
    return torch.uint8 if scores.shape[1] <= 255 else torch.int32
