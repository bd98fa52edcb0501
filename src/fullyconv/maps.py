"""The maps of a net: where they lie on the picture, whether at every size, and from which size on there are any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fullyconv.errors import AlignmentError, SurgeryError
from fullyconv.geometry import Grid
from fullyconv.locate import Located, locate_outputs
from fullyconv.places import Lost, Place


@dataclass(frozen=True)
class Tap:
    """A map that a backbone offers.

    Attributes:
        channels: of the map.
        grid: where its cells lie on the picture that goes in.
        surplus: cells beyond size / stride, at sizes that are multiples of the alignment; negative for nets that do not
            pad.
        spread: pixels by which maps that the net adds up lie off that grid, see `fullyconv.locate.Place`.
        inside: pixels of which the strides of all maps that it is made of are divisors.
    """

    channels: int
    grid: Grid
    surplus: int = 0
    spread: Fraction = Fraction(0)
    inside: int = 1

    @property
    def alignment(self) -> int:
        """Pixels of which sizes and cuts of a picture are to be multiples, so that no map inside has part of a cell.

        Example:
            An hourglass: a map of stride 4, to which one of stride 16 was added.

            >>> Tap(8, Grid().conv(4, stride=4), inside=16).alignment
            16
        """
        return math.lcm(self.inside, self.grid.stride.numerator)


def measure(name: str, located: Located, size: int) -> Tap:
    """What a map is, from where it was found on a picture.

    Args:
        name: for the message.
        located: the map; its shape tells channels and cells.
        size: side of that picture, in pixels, a multiple of the map's stride, so that cells beyond are the borders'.

    Raises:
        SurgeryError: it has no rows and columns, or they lie nowhere on the picture.
    """
    place = located.where
    if not isinstance(place, Place) or place.axes != (-2, -1) or len(located.shape) != 4:
        reason = place.reason if isinstance(place, Lost) else f"it has shape {located.shape}, expected (B, C, h, w)"
        raise SurgeryError(
            f"the map '{name}' lies nowhere on the picture: {reason}; expected a net of convolutions and pools, whose "
            "maps keep their rows and columns (vision transformers do not)",
            path=name,
        )
    try:
        grid = place.grid
    except AlignmentError as error:
        raise SurgeryError(f"the map '{name}': {error}", path=name) from None
    return Tap(located.shape[1], grid, located.shape[2] - int(size / grid.stride), place.spread, place.alignment)


def refuse_moved(name: str, taps: Mapping[str, Tap], located: Sequence[Located], size: int, side: int) -> None:
    """Refuse maps that lie elsewhere on a picture of another size, of which one place would be told for all sizes.

    Args:
        taps: as they lie on pictures of ``size``.
        located: the same maps on pictures of ``side``, in order.

    Raises:
        SurgeryError: a map lies elsewhere, or has another channel count or border.
    """
    for (label, tap), out in zip(taps.items(), located, strict=True):
        try:
            there = measure(label, out, side)
        except SurgeryError as error:
            raise SurgeryError(f"{name}, on pictures of {side}x{side}: {error}", path=label) from None
        if there != tap:
            raise SurgeryError(
                f"{name}: the map '{label}' has stride {float(tap.grid.stride):g} and offset "
                f"{float(tap.grid.offset):g} on pictures of {size}x{size}, and {float(there.grid.stride):g} and "
                f"{float(there.grid.offset):g} on those of {side}x{side}, as where a picture is padded, cropped or "
                "resized to a size inside the net; expected maps that lie alike on pictures of all sizes. Do that "
                "before the net",
                path=label,
            )


def smallest(net: nn.Module, channels: int, alignment: int, size: int) -> int:
    """The smallest multiple of the alignment at which a net runs, found by trying (nothing is computed).

    Args:
        size: a multiple at which it does.
    """
    return next(side for side in range(alignment, size + 1, alignment) if side == size or runs(net, channels, side))


def runs(net: nn.Module, channels: int, side: int) -> bool:
    """Whether every map of a net has a cell on a picture of this side; nothing is computed."""
    try:
        outputs = locate_outputs(net, channels=channels, size=(side, side))
    except SurgeryError:
        return False
    return all(min(out.shape) >= 1 for out in outputs)


class Maps(nn.Module):
    """The maps of a net, however it returns them: as `locate_outputs` finds them, nothing but tensors."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        # While a net is traced, what stands for its maps is no tensor yet.
        maps: list[Any] = tree_leaves(self.net(image))
        return tuple(of for of in maps if isinstance(of, (Tensor, torch.fx.Proxy)))  # type: ignore[misc]
