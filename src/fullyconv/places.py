"""Where a map lies on the picture: a grid along each axis; or that its cells lie nowhere in particular, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid


@dataclass(frozen=True)
class Place:
    """Where a map lies: a grid down and a grid across, and which axes of the tensor they are (from the end).

    Many nets add maps whose cells lie a part of a cell apart: a shortcut that averages 2x2 cells beside a convolution
    of stride 2, say, or a coarser map repeated beside a finer one. The sum is then placed where its most local part
    lies, the one with the smallest field, and ``spread`` says how many pixels others lie off.

    A map may be made of coarser ones, as in an hourglass. Its cells are the same wherever a picture is cut only if the
    cuts lie between whole cells of all of them: on multiples of ``alignment`` pixels, a multiple of their strides.
    """

    down: Grid
    across: Grid
    axes: tuple[int, int] = (-2, -1)
    spread: Fraction = Fraction(0)
    alignment: int = 1

    def join(self, *others: Place) -> Place:
        """The place of a sum or a concatenation.

        Raises:
            AlignmentError: the strides differ.
        """
        down, off_down = _join([self.down, *(other.down for other in others)])
        across, off_across = _join([self.across, *(other.across for other in others)])
        return replace(
            self, down=down, across=across, spread=max(off_down, off_across, *(p.spread for p in (self, *others)))
        )

    def made_of(self, *sources: Where) -> Place:
        """The same, aligned with all that it was made of."""
        strides = (self.down.stride.numerator, self.across.stride.numerator)
        return replace(self, alignment=math.lcm(*strides, *(source.alignment for source in sources)))

    def move(self, down: Grid, across: Grid) -> Place:
        return replace(self, down=down, across=across)

    def seeing(self, other: Place) -> Place:
        """The same cells, each of which sees at least as much as those of another place."""
        fields = [max(grid.field, seen.field) for grid, seen in zip(self.grids, other.grids, strict=True)]
        moved = self.move(replace(self.down, field=fields[0]), replace(self.across, field=fields[1]))
        return replace(moved, spread=max(self.spread, other.spread))

    @property
    def grids(self) -> tuple[Grid, Grid]:
        """Down and across."""
        return self.down, self.across

    def unbounded(self) -> Place:
        """The same cells, each of which depends on the whole picture."""
        return self.move(replace(self.down, field=math.inf), replace(self.across, field=math.inf))

    @property
    def grid(self) -> Grid:
        """The one grid of both axes.

        Raises:
            AlignmentError: the cells lie differently along the two axes.
        """
        if (self.down.stride, self.down.offset) != (self.across.stride, self.across.offset):
            raise AlignmentError(
                f"cells lie at {self.down} down and at {self.across} across; expected the same along both axes",
                grids=(self.down, self.across),
            )
        return replace(self.down, field=max(self.down.field, self.across.field))


def _join(grids: list[Grid]) -> tuple[Grid, Fraction]:
    """The grid of the most local of several maps, with a field that holds all of theirs; how far they lie off."""
    local = min(grids, key=lambda grid: grid.field)
    off = [abs(grid.offset - local.offset) for grid in grids]
    for grid in grids:
        if grid.stride != local.stride:
            local.join(grid)
    return replace(local, field=max(grid.field + 2 * o for grid, o in zip(grids, off, strict=True))), max(off)


@dataclass(frozen=True)
class Lost:
    """A tensor that comes from the picture, but whose entries lie nowhere in particular on it."""

    reason: str
    alignment: int = 1

    def made_of(self, *sources: Where) -> Lost:
        """The same, aligned with all that it was made of: a map may be joined with it, and find its place again."""
        return replace(self, alignment=math.lcm(*(source.alignment for source in sources)))


WHOLE_PICTURE = "a mean or maximum over the whole picture"
"""Why the result of a global pool is lost."""

Where = Place | Lost
