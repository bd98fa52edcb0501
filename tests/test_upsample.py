"""Upsampling: bilinear, on the pixels that the grids say, off by nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullyconv.config import Upsampling
from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid
from fullyconv.upsample import Border, Interpolate, Nearest, Steps, Upsample, bilinear_kernel

PIXELS = Grid()


def vgg(factor: int) -> Grid:
    """Cells in the middle of blocks of so many pixels."""
    return Grid(Fraction(factor), Fraction(factor - 1, 2))


def resnet(factor: int) -> Grid:
    """Cells on the first pixel of their blocks."""
    return Grid(Fraction(factor))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


FACTORS = st.sampled_from([2, 3, 4, 8, 16])
CELLS = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=60, deadline=None)
@given(factor=FACTORS, cells=CELLS)
def test_on_a_vgg_grid_it_is_interpolate_without_aligned_corners(factor: int, cells: tuple[int, int]) -> None:
    scores = random(2, 3, *cells)
    size = (cells[0] * factor, cells[1] * factor)
    want = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Upsample(vgg(factor), PIXELS, 3)(scores, size), want, rtol=0, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    factor=st.integers(1, 9),
    halves=st.integers(-30, 30),
    cells=CELLS,
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_learned_upsampling_starts_as_the_fixed_one(
    factor: int, halves: int, cells: tuple[int, int], size: tuple[int, int]
) -> None:
    # A transposed convolution of factor 1 has one weight a cell and cannot lie half a cell off.
    assume(factor > 1 or halves % 2 == 0)
    source = Grid(Fraction(2 * factor), Fraction(halves))
    target = Grid(Fraction(2))
    fixed, learned = Upsample(source, target, 3), Upsample(source, target, 3, kernel="learned").double()
    scores = random(1, 3, *cells)
    with torch.no_grad():
        torch.testing.assert_close(learned(scores, size), fixed(scores, size), rtol=0, atol=1e-6)
    assert learned.weight.shape[-1] == (2 * factor if halves % 2 else 2 * factor - 1)
    assert learned.grid == fixed.grid


@settings(max_examples=100, deadline=None)
@given(
    stride=st.integers(1, 12),
    fine=st.integers(1, 12),
    offset=st.fractions(-20, 20, max_denominator=4),
    cells=st.tuples(st.integers(2, 7), st.integers(2, 7)),
)
def test_a_ramp_is_reproduced_between_the_outermost_cells_and_held_beyond(
    stride: int, fine: int, offset: Fraction, cells: tuple[int, int]
) -> None:
    assume(fine <= stride)
    source, target = Grid(Fraction(stride), offset), Grid(Fraction(fine), Fraction(1, 2))
    y, x = (
        torch.tensor([float(source.offset + source.stride * i) for i in range(n)], dtype=torch.float64) for n in cells
    )
    size = (35, 28)
    v, u = (
        torch.tensor([float(target.offset + target.stride * i) for i in range(n)], dtype=torch.float64) for n in size
    )
    out = Upsample(source, target, 1)((3 * y[:, None] - 2 * x[None])[None, None], size)[0, 0]
    want = 3 * v.clamp(y[0], y[-1])[:, None] - 2 * u.clamp(x[0], x[-1])[None]
    torch.testing.assert_close(out, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("factor", [8, 32])
@pytest.mark.parametrize("grid", [vgg, resnet])
def test_a_blob_peaks_where_it_was_put(factor: int, grid: object) -> None:
    source: Grid = grid(factor)  # type: ignore[operator]
    centre = 7.3 * factor
    cells = torch.tensor([float(source.offset + source.stride * i) for i in range(16)], dtype=torch.float64)
    line = torch.exp(-(((cells - centre) / (1.5 * factor)) ** 2))
    scores = torch.outer(line, line)[None, None]
    pixels = 16 * factor

    def centroid(out: Tensor) -> float:
        weights = out[0, 0].sum(1)
        return float((weights * torch.arange(pixels)).sum() / weights.sum())

    ours = centroid(Upsample(source, PIXELS, 1)(scores, (pixels, pixels)))
    theirs = centroid(F.interpolate(scores, size=(pixels, pixels), mode="bilinear", align_corners=False))
    assert ours == pytest.approx(centre, abs=0.005)
    # What `interpolate` does to a ResNet's map is the reason for this layer: 3.5 px at stride 8, 15.5 at 32.
    assert theirs - centre == pytest.approx(0 if grid is vgg else (factor - 1) / 2, abs=0.005)


def test_rows_of_a_band_are_rows_of_the_whole() -> None:
    up = Upsample(Grid(Fraction(8), Fraction(7, 2)), PIXELS, 1)
    whole = up.matrix(6, 50)
    for start, rows in ((0, 7), (7, 20), (27, 23)):
        assert torch.equal(up.matrix(6, 50, start=start, stop=start + rows), whole[start : start + rows])
    scores = random(1, 2, 6, 5).float()
    by_hand = whole @ scores @ up.matrix(5, 37).T
    torch.testing.assert_close(up(scores, (50, 37)), by_hand)


@given(
    cells=st.integers(1, 9),
    pixels=st.integers(1, 60),
    stride=st.integers(1, 9),
    offset=st.fractions(-9, 9, max_denominator=3),
)
def test_every_row_is_an_average_of_two_neighbours_at_most(
    cells: int, pixels: int, stride: int, offset: Fraction
) -> None:
    matrix = Upsample(Grid(Fraction(stride), offset), PIXELS, 1).matrix(cells, pixels, dtype=torch.float64)
    assert matrix.shape == (pixels, cells)
    torch.testing.assert_close(matrix.sum(1), torch.ones(pixels, dtype=torch.float64))
    assert float(matrix.min()) >= 0
    for row in matrix:
        places = row.nonzero().flatten().tolist()
        assert len(places) <= 2
        assert places[-1] - places[0] <= 1


@given(
    stride=st.integers(1, 12), fine=st.integers(1, 12), offset=st.fractions(-9, 9, max_denominator=4),
)  # fmt: skip
def test_the_field_holds_both_cells_that_are_read_and_no_more(stride: int, fine: int, offset: Fraction) -> None:
    assume(fine <= stride)
    source, target = Grid(Fraction(stride), offset, Fraction(11)), Grid(Fraction(fine))
    up = Upsample(source, target, 1)
    cells, pixels = 40, 30 * stride // fine
    matrix = up.matrix(cells, pixels, dtype=torch.float64)
    farthest = 0.0
    for i, row in enumerate(matrix):
        at = fine * i
        if source.offset <= at <= source.offset + stride * (cells - 1):
            # Exactly on a cell the other one has a share of nothing, or of rounding.
            read = (row > 1e-9).nonzero().flatten().tolist()
            farthest = max(farthest, *(abs(at - float(source.offset + stride * j)) for j in read))
    assert float(up.grid.field) == pytest.approx(11 + 2 * farthest, abs=1e-6)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_out_in_float32(learned: bool, dtype: torch.dtype) -> None:
    up = Upsample(vgg(4), PIXELS, 2, kernel="learned" if learned else "fixed")
    scores = random(1, 2, 3, 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = up(scores, (12, 12))
    assert out.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(out, up(scores.float(), (12, 12)), rtol=0, atol=0)


def test_gradients_flow_through_both() -> None:
    for learned in (False, True):
        up = Upsample(vgg(2), PIXELS, 2, kernel="learned" if learned else "fixed").double()
        assert torch.autograd.gradcheck(lambda x, up=up: up(x, (5, 7)), random(1, 2, 3, 4).requires_grad_())
        assert [name for name, _ in up.named_parameters()] == (["weight"] if learned else [])


def test_channels_do_not_mix() -> None:
    up = Upsample(vgg(2), PIXELS, 3, kernel="learned")
    scores = torch.zeros(1, 3, 2, 2)
    scores[:, 1] = 1
    out = up(scores, (4, 4)).detach()
    assert float(out[:, [0, 2]].abs().max()) == 0
    assert bool((out[:, 1] == 1).all())


@pytest.mark.parametrize(
    ("source", "target", "learned", "message"),
    [
        (Grid(), vgg(2), False, r"from \(stride 1, .* to the coarser \(stride 2, .*list skips coarse to fine"),
        (Grid(Fraction(3)), Grid(Fraction(2)), True, "factor 1.5, 0 fine cells apart; expected a whole factor"),
        (Grid(Fraction(4), Fraction(1, 4)), Grid(), True, "factor 4, -0.25 fine cells apart; expected .* half cells"),
    ],
)
def test_what_cannot_be_is_refused_with_the_numbers(source: Grid, target: Grid, learned: bool, message: str) -> None:
    with pytest.raises(AlignmentError, match=message) as caught:
        Upsample(source, target, 1, kernel="learned" if learned else "fixed")
    assert caught.value.grids == (source, target)


@pytest.mark.parametrize(
    ("size", "line"),
    [(3, [0.5, 1, 0.5]), (4, [0.25, 0.75, 0.75, 0.25]), (1, [1.0]), (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])],
)
def test_the_bilinear_kernel_is_the_papers(size: int, line: list[float]) -> None:
    want = torch.tensor(line)
    torch.testing.assert_close(bilinear_kernel(size), torch.outer(want, want))


# Zeros beyond the border: the authors' unpadded transposed convolution


@settings(max_examples=60, deadline=None)
@given(
    factor=FACTORS,
    whole=st.booleans(),
    kernel=st.sampled_from(["fixed", "learned", "full"]),
    crop=st.integers(0, 20),
    cells=CELLS,
)
def test_with_zeros_beyond_the_border_it_is_the_transposed_convolution_cropped(
    factor: int, whole: bool, kernel: Upsampling, crop: int, cells: tuple[int, int]
) -> None:
    taps = 2 * factor - 1 if whole else 2 * factor
    source = Grid(Fraction(factor), Fraction(taps - 1, 2) - crop)
    up = Upsample(source, PIXELS, 3, kernel=kernel, border="zero").double()
    if up.learned:
        assert up.crop == crop
        with torch.no_grad():
            up.weight.copy_(random(*up.weight.shape))
        weight = up.weight if kernel == "full" else torch.eye(3)[:, :, None, None] * up.weight
    else:
        weight = torch.eye(3)[:, :, None, None] * bilinear_kernel(taps).double()
    scores = random(2, 3, *cells)
    everything = F.conv_transpose2d(scores, weight.double(), stride=factor)
    size = (everything.shape[2] - crop, everything.shape[3] - crop)
    if min(size) < 1:
        return
    with torch.no_grad():
        torch.testing.assert_close(up(scores, size), everything[..., crop:, crop:], rtol=0, atol=1e-6)
        # Pixels further out see no cell.
        wider = up(scores, (size[0] + 2, size[1] + 3))
    assert float(wider[..., size[0] :, :].abs().max()) < 1e-12
    assert float(wider[..., size[1] :].abs().max()) < 1e-12


# In steps of two


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 5),
    offset=st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(7, 2), Fraction(-3), Fraction(1, 3)]),
    border=st.sampled_from(["edge", "zero"]),
    cells=CELLS,
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_steps_are_the_product_of_their_matrices(
    steps: int, offset: Fraction, border: Border, cells: tuple[int, int], size: tuple[int, int]
) -> None:
    up = Steps(Grid(Fraction(2**steps), offset), PIXELS, 2, border=border)
    scores = random(1, 2, *cells)
    down, across = (up.matrix(n, m, dtype=torch.float64) for n, m in zip(cells, size, strict=True))
    torch.testing.assert_close(up(scores, size), down @ scores @ across.T, rtol=0, atol=1e-12)
    band = slice(size[0] // 3, size[0] // 2 + 1)
    part = up.matrix(cells[0], size[0], start=band.start, stop=band.stop, dtype=torch.float64)
    torch.testing.assert_close(part, down[band], rtol=0, atol=1e-12)
    if border == "edge":
        torch.testing.assert_close(down.sum(1), torch.ones(size[0], dtype=torch.float64))


@pytest.mark.parametrize("offset", [Fraction(7, 2), Fraction(0)])
@pytest.mark.parametrize("border", ["edge", "zero"])
def test_learned_steps_start_as_the_fixed_ones_and_keep_ramps(offset: Fraction, border: Border) -> None:
    source = Grid(Fraction(8), offset - 16)
    fixed, learned = (Steps(source, PIXELS, 2, kernel=kernel, border=border).double() for kernel in ("fixed", "full"))
    scores = random(1, 2, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(learned(scores, (37, 30)), fixed(scores, (37, 30)), rtol=0, atol=1e-9)
    assert len(list(learned.parameters())) == 3
    ramp = (torch.arange(9, dtype=torch.float64) * 8 + float(source.offset)).expand(1, 2, 9, 9)
    pixels = fixed(ramp, (40, 40))[0, 0, 0]
    torch.testing.assert_close(pixels[8:], torch.arange(8, 40, dtype=torch.float64), rtol=0, atol=1e-9)


def test_steps_of_two_need_a_power_of_two() -> None:
    with pytest.raises(AlignmentError, match="the factor is 12; expected a power of 2"):
        Steps(Grid(Fraction(12)), PIXELS, 1)


# As torch interpolates


@settings(max_examples=40, deadline=None)
@given(cells=CELLS, extra=st.tuples(st.integers(0, 50), st.integers(0, 50)), offset=st.integers(-9, 9))
def test_interpolate_is_torchs_whatever_the_grid_says(
    cells: tuple[int, int], extra: tuple[int, int], offset: int
) -> None:
    scores = random(1, 3, *cells)
    size = (cells[0] + extra[0], cells[1] + extra[1])
    up = Interpolate(Grid(Fraction(8), Fraction(offset)), PIXELS, 3)
    want = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up(scores, size), want, rtol=0, atol=1e-10)
    rows = up.matrix(cells[0], size[0], start=size[0] // 2, dtype=torch.float64)
    torch.testing.assert_close(rows, up.matrix(cells[0], size[0], dtype=torch.float64)[size[0] // 2 :])


# Logits coarser or finer than pixels


@settings(max_examples=40, deadline=None)
@given(scale=st.sampled_from([Fraction(1, 2), Fraction(2)]), cells=CELLS, size=CELLS, kernel=st.booleans())
def test_every_pixel_gets_the_logit_that_lies_on_it(
    scale: Fraction, cells: tuple[int, int], size: tuple[int, int], kernel: bool
) -> None:
    upsample = Upsample(vgg(8), Grid(1 / scale), 2, kernel="learned" if kernel and scale == 2 else "fixed").double()
    nearest = Nearest(upsample, scale)
    scores = random(1, 2, *cells)
    with torch.no_grad():
        logits = upsample(scores, (nearest.size(size[0]), nearest.size(size[1])))
        pixels = nearest(scores, size)
    step = 2 if scale == 2 else 1
    again = 1 if scale == 2 else 2
    want = logits[..., ::step, ::step].repeat_interleave(again, 2).repeat_interleave(again, 3)
    torch.testing.assert_close(pixels, want[..., : size[0], : size[1]], rtol=0, atol=0)
    if not nearest.learned:
        down, across = (nearest.matrix(n, m, dtype=torch.float64) for n, m in zip(cells, size, strict=True))
        torch.testing.assert_close(down @ scores @ across.T, pixels, rtol=0, atol=1e-12)
        assert torch.equal(nearest.matrix(cells[0], size[0], start=size[0] - 1, dtype=torch.float64), down[-1:])
