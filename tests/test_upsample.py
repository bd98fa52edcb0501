"""Upsampling: bilinear, on the pixels that the grids say, off by nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid
from fullyconv.upsample import Upsample, bilinear_kernel

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
    fixed, learned = Upsample(source, target, 3), Upsample(source, target, 3, learned=True).double()
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
        assert torch.equal(up.matrix(6, rows, start=start), whole[start : start + rows])
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
    up = Upsample(vgg(4), PIXELS, 2, learned=learned)
    scores = random(1, 2, 3, 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = up(scores, (12, 12))
    assert out.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(out, up(scores.float(), (12, 12)), rtol=0, atol=0)


def test_gradients_flow_through_both() -> None:
    for learned in (False, True):
        up = Upsample(vgg(2), PIXELS, 2, learned=learned).double()
        assert torch.autograd.gradcheck(lambda x, up=up: up(x, (5, 7)), random(1, 2, 3, 4).requires_grad_())
        assert [name for name, _ in up.named_parameters()] == (["weight"] if learned else [])


def test_channels_do_not_mix() -> None:
    up = Upsample(vgg(2), PIXELS, 3, learned=True)
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
        Upsample(source, target, 1, learned=learned)
    assert caught.value.grids == (source, target)


@pytest.mark.parametrize(
    ("size", "line"),
    [(3, [0.5, 1, 0.5]), (4, [0.25, 0.75, 0.75, 0.25]), (1, [1.0]), (5, [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])],
)
def test_the_bilinear_kernel_is_the_papers(size: int, line: list[float]) -> None:
    want = torch.tensor(line)
    torch.testing.assert_close(bilinear_kernel(size), torch.outer(want, want))
