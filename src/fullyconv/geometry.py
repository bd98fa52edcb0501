"""Where on the picture does each cell of a map lie? Exact arithmetic, no tensors.

A fully convolutional network is a classifier read at every position, so every map in it is a grid of cells laid over
the picture. A `Grid` says where: cell ``i`` is centred on pixel ``offset + stride * i`` and sees ``field`` pixels.
Convolution, pooling, cropping and transposed convolution move grids by rational arithmetic; the paper's crop offsets
(19, 27, 31, 5, 9, 18) and receptive fields (355, 404, 907) are what comes out.

Both axes of a picture are treated alike and separately: a `Grid` describes one axis, and the kernels that occur in
classifiers are the same along both (`fullyconv.locate` refuses a net where they are not).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from fullyconv.errors import AlignmentError

Pixels = Fraction | float
"""A length in pixels: a whole or half number as a `Fraction`, or ``math.inf`` for a field that is the whole picture."""


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map lie on the picture, along one axis.

    Attributes:
        stride: pixels from one cell to the next.
        offset: pixel on which cell 0 is centred; pixel 0 is the first one, so 0.5 lies between the first two.
        field: pixels that one cell depends on (receptive field), as the smallest window centred on it that holds them;
            ``math.inf`` where it depends on all of them.

    Example:
        Five blocks of VGG, the first two convolutions of each written out:

        >>> g = Grid().conv(3, padding=1).conv(3, padding=1).conv(2, stride=2)
        >>> g.stride, g.offset, g.field
        (Fraction(2, 1), Fraction(1, 2), Fraction(6, 1))
    """

    stride: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    field: Pixels = Fraction(1)

    def conv(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Grid:
        """The grid after a convolution or a pooling of this kernel, stride, (left) padding and dilation.

        Ceil mode changes how many cells there are, not where they lie.
        """
        reach = dilation * (kernel - 1)
        return Grid(
            stride=self.stride * stride,
            offset=self.offset + self.stride * (Fraction(reach, 2) - padding),
            field=self.field + self.stride * reach,
        )

    def deconv(self, kernel: int, stride: int = 1, padding: int = 0) -> Grid:
        """The grid after a transposed convolution (the paper's deconvolution) of this kernel and stride.

        Which coarse cells a fine one reads differs from cell to cell, so that they do not lie evenly about it: the
        field holds them for all.
        """
        fine = self.stride / stride
        return Grid(
            stride=fine,
            offset=self.offset + fine * (padding - Fraction(kernel - 1, 2)),
            field=self.field + fine * (kernel - 1),
        )

    def crop(self, cells: int) -> Grid:
        """The grid after ``cells`` cells are dropped at the start (a negative number: added)."""
        return replace(self, offset=self.offset + self.stride * cells)

    def shift(self, pixels: int | Fraction) -> Grid:
        """The same cells seen from a picture whose first pixel was pixel ``pixels`` of the old one."""
        return replace(self, offset=self.offset - pixels)

    def join(self, *others: Grid) -> Grid:
        """The grid of a sum or a concatenation: the same cells, the widest field.

        Raises:
            AlignmentError: the strides or offsets differ.
        """
        for other in others:
            if (other.stride, other.offset) != (self.stride, self.offset):
                raise AlignmentError(
                    f"cannot join a map at {self} with one at {other}; their cells lie on different pixels",
                    grids=(self, *others),
                )
        return replace(self, field=max(self.field, *(other.field for other in others)) if others else self.field)

    def crop_to(self, finer: Grid) -> int:
        """How many cells of this grid come before cell 0 of ``finer``, a grid of the same stride: the paper's crop.

        Raises:
            AlignmentError: the strides differ, or the distance is no whole number of cells, or negative.
        """
        cells = (finer.offset - self.offset) / self.stride
        if self.stride != finer.stride or cells.denominator != 1 or cells < 0:
            raise AlignmentError(
                f"cannot crop a map at {self} to one at {finer}: they are {float(cells):g} cells of "
                f"{float(self.stride):g} px apart; expected equal strides and a whole number, 0 or more",
                grids=(self, finer),
            )
        return int(cells)

    def cells_up_to(self, pixel: int | Fraction) -> int:
        """How many cells are centred up to this pixel, at least 1. Less than a stride lies beyond the last."""
        # In whole numbers, since in a compiled net a size may be a symbol, which no Fraction takes.
        parts = math.lcm(self.offset.denominator, self.stride.denominator)
        offset, stride = int(self.offset * parts), int(self.stride * parts)
        return max(1, (pixel * parts - offset) // stride + 1)

    def __str__(self) -> str:
        return f"(stride {float(self.stride):g}, offset {float(self.offset):g}, field {float(self.field):g})"
