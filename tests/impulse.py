"""The oracle for everything that says where cells lie: which pixels does a cell depend on, by trial?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fullyconv.geometry import Grid


def dependence(net: nn.Module, height: int, width: int, axis: int, channels: int = 3) -> Tensor:
    """Whether each cell along an axis (0 down, 1 across) depends on each row or column of pixels, (pixels, cells).

    A NaN reaches whatever depends on it, through any activation and any maximum, and nothing else.
    """
    pixels = (height, width)[axis]
    pictures = torch.rand(pixels, channels, height, width, dtype=torch.float64)
    for i in range(pixels):
        pictures[i].select(1 + axis, i).fill_(math.nan)
    with torch.no_grad():
        reached = net(pictures).isnan().any(1)
    return reached.any(2 - axis)


def check_grid(grid: Grid, depends: Tensor, *, even: bool = True) -> int:
    """Assert that a grid says truly what each cell depends on; return how many cells lie wholly inside the picture.

    Every cell depends on nothing outside its field. One that lies wholly inside the picture depends on both ends of it;
    with ``even=False`` (after upsampling, where cells read unevenly), some cell does on each.
    """
    pixels, cells = depends.shape
    assert grid.field != math.inf
    inside, at_start, at_end = 0, False, False
    for cell in range(cells):
        centre, half = grid.offset + grid.stride * cell, (grid.field - 1) / 2
        rows = depends[:, cell].nonzero().flatten().tolist()
        first, last = centre - half, centre + half
        if not rows:
            assert first < 0 or last > pixels - 1, f"cell {cell} depends on nothing"
            continue
        within = first >= 0 and last <= pixels - 1
        if even or within:  # interpolation at a border multiplies what it does not need by 0, which NaN survives
            assert first <= rows[0], (cell, float(first), rows[0])
            assert rows[-1] <= last, (cell, float(last), rows[-1])
        if within:
            inside += 1
            at_start, at_end = at_start or rows[0] == first, at_end or rows[-1] == last
            if even:
                assert (rows[0], rows[-1]) == (first, last), (cell, float(first), float(last), rows[0], rows[-1])
    if inside:
        assert even or at_start or at_end, "no cell reaches either end of its field"
    return inside
