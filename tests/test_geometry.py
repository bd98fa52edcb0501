"""Grids: the paper's magic numbers, and the measured impulse response of any stack of layers."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from impulse import check_grid, dependence
from torch import nn

from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid

# The authors' nets, layer by layer as in their prototxt files


def vgg16(padding: int) -> tuple[Grid, Grid, Grid]:
    """pool3, pool4 and fc7 of VGG-16, the first convolution padded by so much (the authors: 100)."""
    grid, pools = Grid(), []
    for block, convolutions in enumerate((2, 2, 3, 3, 3)):
        for layer in range(convolutions):
            grid = grid.conv(3, padding=padding if block == layer == 0 else 1)
        grid = grid.conv(2, stride=2)
        pools.append(grid)
    return pools[2], pools[3], grid.conv(7)


def alexnet(padding: int) -> Grid:
    """fc7 of CaffeNet."""
    return (
        Grid().conv(11, stride=4, padding=padding).conv(3, stride=2).conv(5, padding=2).conv(3, stride=2)
        .conv(3, padding=1).conv(3, padding=1).conv(3, padding=1).conv(3, stride=2).conv(6)
    )  # fmt: skip


def googlenet() -> Grid:
    """The last average pool of GoogLeNet; an inception module's widest branch is its 5x5."""
    grid = Grid().conv(7, stride=2, padding=3).conv(3, stride=2).conv(1).conv(3, padding=1).conv(3, stride=2)
    for inceptions in (2, 5, 2):
        for _ in range(inceptions):
            grid = grid.conv(1).join(grid.conv(3, padding=1), grid.conv(5, padding=2), grid.conv(3, padding=1))
        grid = grid.conv(3, stride=2) if inceptions != 2 or grid.stride == 8 else grid.conv(7)
    return grid


def test_fcn32s_crops_19_pixels() -> None:
    *_, fc7 = vgg16(padding=100)
    assert fc7.deconv(64, stride=32).crop_to(Grid()) == 19


def test_fcn16s_crops_5_cells_then_27_pixels() -> None:
    _, pool4, fc7 = vgg16(padding=100)
    twice = fc7.deconv(4, stride=2)
    crop = pool4.crop_to(twice)
    assert crop == 5
    assert twice.join(pool4.crop(crop)).deconv(32, stride=16).crop_to(Grid()) == 27


def test_fcn8s_crops_5_and_9_cells_then_31_pixels() -> None:
    pool3, pool4, fc7 = vgg16(padding=100)
    twice = fc7.deconv(4, stride=2)
    first = pool4.crop_to(twice)
    four_times = twice.join(pool4.crop(first)).deconv(4, stride=2)
    second = pool3.crop_to(four_times)
    assert (first, second) == (5, 9)
    assert four_times.join(pool3.crop(second)).deconv(16, stride=8).crop_to(Grid()) == 31


def test_fcn_alexnet_crops_18_pixels() -> None:
    assert alexnet(padding=100).deconv(63, stride=32).crop_to(Grid()) == 18


@pytest.mark.parametrize(
    ("grid", "field"),
    [(alexnet(0), 355), (vgg16(1)[2], 404), (googlenet(), 907)],
    ids=["AlexNet", "VGG16", "GoogLeNet"],
)
def test_receptive_fields_of_table_1(grid: Grid, field: int) -> None:
    assert (grid.field, grid.stride) == (field, 32)


# Theorems

LAYERS = st.lists(
    st.tuples(
        st.sampled_from(["conv", "max", "average"]),
        st.integers(1, 4),  # kernel
        st.integers(1, 3),  # stride
        st.integers(0, 2),  # padding
        st.integers(1, 2),  # dilation
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=40, deadline=None)
@given(layers=LAYERS, extra=st.integers(0, 5))
def test_the_grid_of_any_stack_equals_its_measured_impulse_response(
    layers: list[tuple[str, int, int, int, int]], extra: int
) -> None:
    grid, stack = Grid(), []
    for kind, kernel, stride, padding, dilation in layers:
        if kind == "conv":
            stack.append(nn.Conv2d(1, 1, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1)))
        elif kind == "max":
            padding = min(padding, kernel // 2)
            stack.append(nn.MaxPool2d((kernel, 1), (stride, 1), (padding, 0), (dilation, 1), ceil_mode=True))
        else:
            padding, dilation = min(padding, kernel // 2), 1
            stack.append(nn.AvgPool2d((kernel, 1), (stride, 1), (padding, 0)))
        grid = grid.conv(kernel, stride, padding, dilation)
    size = int(grid.field + 2 * grid.stride + abs(grid.offset)) + extra
    depends = dependence(nn.Sequential(*stack).double(), size, 1, axis=0, channels=1)
    assert check_grid(grid, depends) > 0


@settings(max_examples=40, deadline=None)
@given(kernel=st.integers(1, 7), stride=st.integers(1, 4), padding=st.integers(0, 3))
def test_a_transposed_convolution_puts_an_impulse_back_where_it_came_from(
    kernel: int, stride: int, padding: int
) -> None:
    coarse = Grid(Fraction(8), Fraction(7, 2), Fraction(11))
    fine = coarse.deconv(kernel, stride, padding)
    assert fine.stride == coarse.stride / stride
    impulse = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    impulse[..., 4, 4] = 1
    weight = torch.ones(1, 1, kernel, kernel, dtype=torch.float64)
    response = F.conv_transpose2d(impulse, weight, stride=stride, padding=padding)
    rows = response[0, 0].sum(1).nonzero().flatten().tolist()
    assert len(rows) == kernel
    origin = coarse.offset + coarse.stride * 4
    distances = [fine.offset + fine.stride * row - origin for row in rows]
    assert sum(distances) == 0
    # A fine cell's field holds those of all coarse cells that it reads, and ends where the farthest one's does.
    assert fine.field == coarse.field + 2 * max(distances)


def test_layers_step_by_one_cell_and_pad_nothing_unless_told() -> None:
    grid = Grid(Fraction(2), Fraction(3), Fraction(5))
    # Three cells of 2 px are centred one cell on, transposed one cell back, and reach a cell further each way.
    assert grid.conv(3) == Grid(Fraction(2), Fraction(5), Fraction(9))
    assert grid.deconv(3) == Grid(Fraction(2), Fraction(1), Fraction(9))


@given(kernel=st.integers(1, 9), stride=st.integers(1, 5), padding=st.integers(0, 4))
def test_a_transposed_convolution_undoes_the_stride_and_offset_of_its_convolution(
    kernel: int, stride: int, padding: int
) -> None:
    grid = Grid(Fraction(4), Fraction(3, 2))
    there_and_back = grid.conv(kernel, stride, padding).deconv(kernel, stride, padding)
    assert (there_and_back.stride, there_and_back.offset) == (grid.stride, grid.offset)


@given(cells=st.integers(-5, 50), field=st.integers(1, 99))
def test_a_crop_of_so_many_cells_is_found_again(cells: int, field: int) -> None:
    grid = Grid(Fraction(16), Fraction(15, 2), Fraction(field))
    if cells >= 0:
        assert grid.crop_to(grid.crop(cells)) == cells
    else:
        with pytest.raises(AlignmentError, match=f"they are {cells} cells of 16 px apart"):
            grid.crop_to(grid.crop(cells))


@given(pixels=st.integers(-40, 40))
def test_a_shifted_picture_shifts_the_offset_and_nothing_else(pixels: int) -> None:
    grid = Grid(Fraction(8), Fraction(7, 2), Fraction(31))
    assert grid.shift(pixels) == Grid(Fraction(8), Fraction(7, 2) - pixels, Fraction(31))


@given(stride=st.sampled_from([1, 2, 4, 8, 16, 32]), half_offset=st.integers(-40, 80), pixel=st.integers(0, 300))
def test_a_pixel_lies_at_or_beyond_the_last_cell_counted_but_less_than_a_stride(
    stride: int, half_offset: int, pixel: int
) -> None:
    grid = Grid(Fraction(stride), Fraction(half_offset, 2))
    cells = grid.cells_up_to(pixel)
    last = grid.offset + grid.stride * (cells - 1)
    assert pixel < last + stride
    assert cells == 1 or last <= pixel


# Errors


def test_maps_on_different_pixels_cannot_be_joined() -> None:
    a, b = Grid(Fraction(8), Fraction(7, 2)), Grid(Fraction(8), Fraction(0))
    with pytest.raises(
        AlignmentError, match=r"\(stride 8, offset 3.5, field 1\) with one at \(stride 8, offset 0,"
    ) as e:
        a.join(b)
    assert e.value.grids == (a, b)


def test_a_join_takes_the_widest_field() -> None:
    a, b = Grid(field=Fraction(3)), Grid(field=Fraction(7))
    assert a.join(b) == b.join(a) == b
    assert a.join() == a
    assert a.join(Grid(field=math.inf)).field == math.inf


@pytest.mark.parametrize(
    ("finer", "apart"),
    [(Grid(Fraction(8), Fraction(2)), r"0\.25 cells of 8 px"), (Grid(Fraction(4), Fraction(8)), "1 cells of 8 px")],
)
def test_a_crop_of_no_whole_number_of_cells_is_refused_with_the_numbers(finer: Grid, apart: str) -> None:
    grid = Grid(Fraction(8))
    with pytest.raises(AlignmentError, match=f"{apart} apart; expected equal strides and a whole number") as caught:
        grid.crop_to(finer)
    assert caught.value.grids == (grid, finer)


def test_a_field_without_bound_stays_without_bound() -> None:
    unbounded = Grid(field=math.inf)
    assert unbounded.conv(3).field == unbounded.deconv(4, 2).field == unbounded.crop(1).field == math.inf
