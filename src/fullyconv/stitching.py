"""Shift and stitch: dense maps from a net that strides, by running it on shifted pictures (paper, section 3.2).

The picture is cut from the top left by every shift below the net's stride, and the maps are interlaced. The result is
what `fullyconv.rarefaction.rarefy` gives in one run, from the net as it is and in the memory that one run of it takes.
Sermanet et al. (OverFeat) read their classifier so.
"""

from __future__ import annotations

import bisect
import math

import torch
from torch import Tensor, nn

from fullyconv.errors import ConfigError, SurgeryError
from fullyconv.locate import locate, locate_outputs
from fullyconv.places import Lost, Place
from fullyconv.rarefaction import first_unbounded
from fullyconv.tracing import place_of, trace

Pair = tuple[int, int]


def shift_and_stitch(net: nn.Module, image: Tensor, *, stride: int = 1) -> Tensor:
    """The net's map with a cell every ``stride`` pixels, stitched from its maps of shifted pictures.

    With f the net's own stride, found by `fullyconv.locate`, and q = f / stride:
    ``out[..., i*q + a, j*q + b] = net(image[..., a*stride:, b*stride:])[..., i, j]``. Row p of the result is centred on
    pixel ``offset + p * stride``, where ``offset`` is that of the net's own `Grid`, and sees the same field. Its height
    is the largest that all shifts fill without a gap; columns likewise.

    It equals ``rarefy(net, stride=stride)(image)`` to rounding: everywhere for a net that does not pad; else in shape,
    and wherever the field lies on the part of the picture that the cell comes from. For row p that begins at pixel
    ``(p % q) * stride``: a field that begins at pixel f - stride or later, and ends on the picture, always does. (Of a
    padding net on a picture smaller than f, the cells whose shift would leave nothing are lacking.)

    Args:
        net: returns one map (B, K, h, w). It is run in evaluation mode and without gradients, q * q times.
        image: (B, C, H, W) in the net's dtype and on its device, as large as the net needs for one cell.
        stride: pixels between cells wanted; a divisor of the net's stride.

    Returns:
        (B, K, h', w'), as the net's maps are.

    Raises:
        ConfigError: ``stride`` does not divide the net's, or the picture is no (B, C, H, W).
        SurgeryError: the net does not run on the picture, or on what a shift leaves of it; returns no single map, or
            one whose cells lie nowhere on the picture, not a whole number of pixels apart, or see all of it; says
            which and why.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.MaxPool2d(2))
        >>> shift_and_stitch(net, torch.rand(1, 3, 20, 31)).shape
        torch.Size([1, 4, 14, 25])
    """
    if image.dim() != 4:
        raise ConfigError(f"image: got shape {tuple(image.shape)}; expected (B, C, H, W)", where="image")
    shape, place = _map_of(net, image)
    coarsest = max(grid.stride for grid in place.grids)
    if stride < 1 or coarsest % stride:
        raise ConfigError(
            f"stride: got {stride}; expected a divisor of {coarsest}, the pixels between the cells of what "
            f"{type(net).__name__} returns",
            where="stride",
        )
    steps = [math.gcd(int(grid.stride), stride) for grid in place.grids]
    factors = [int(grid.stride) // step for grid, step in zip(place.grids, steps, strict=True)]
    coarser = [place.alignment > grid.stride for grid in place.grids]
    lengths = [_length(net, image, shape, axis, steps[axis], factors[axis], coarser=coarser[axis]) for axis in (0, 1)]
    shifts = [min(factor, length) for factor, length in zip(factors, lengths, strict=True)]
    smallest = [n - (count - 1) * step for n, count, step in zip(image.shape[2:], shifts, steps, strict=True)]
    try:
        locate_outputs(net, channels=image.shape[1], size=(smallest[0], smallest[1]))
    except SurgeryError as too_small:  # padding that mirrors needs pixels that a cut may not leave
        raise SurgeryError(
            f"a {image.shape[2]}x{image.shape[3]} picture leaves too little where it is shifted most: {too_small}. "
            "Give a larger picture"
        ) from None
    training = [m for m in net.modules() if m.training]
    net.eval()
    stitched: Tensor | None = None
    try:
        with torch.no_grad():
            for a in range(shifts[0]):
                for b in range(shifts[1]):
                    part = net(image[..., a * steps[0] :, b * steps[1] :])
                    if stitched is None:
                        stitched = part.new_empty(*part.shape[:2], *lengths)
                    phase = stitched[..., a :: factors[0], b :: factors[1]]
                    phase.copy_(part[..., : phase.shape[2], : phase.shape[3]])
    finally:
        for m in training:
            m.training = True
    assert stitched is not None
    return stitched


def _length(net: nn.Module, image: Tensor, shape: Pair, axis: int, step: int, factor: int, *, coarser: bool) -> int:
    """Rows (axis 0) or columns that the maps of all shifts fill without a gap, in cells ``step`` pixels apart.

    Args:
        coarser: whether maps inside the net may be coarser than its result along this axis.
    """

    def cells(shift: int) -> int:
        """Of the map of a picture that is cut by so many steps; no tensor is computed."""
        size = [image.shape[2], image.shape[3]]
        size[axis] -= shift * step
        try:
            (cut,) = locate_outputs(net, channels=image.shape[1], size=(size[0], size[1]))
        except SurgeryError:
            if shape[axis] > 1:
                raise
            return 0  # torch refuses a map without cells
        return cut.shape[2 + axis]

    possible = min(factor, -(-image.shape[2 + axis] // step))
    if coarser:
        length = min(cells(shift) * factor + shift for shift in range(possible))
    else:
        # A cut by less than a stride costs one cell at most, and the first that costs one leaves the first gap.
        short = bisect.bisect_left(range(possible), True, key=lambda shift: cells(shift) < shape[axis])
        length = (shape[axis] - 1) * factor + short
    # A picture smaller than the stride has no pixel left for some shifts.
    return length if possible == factor else min(length, possible)


def _map_of(net: nn.Module, image: Tensor) -> tuple[Pair, Place]:
    """Rows and columns of the one map that a net returns, and where it lies.

    Raises:
        SurgeryError: there is no such map, or its cells have no bounded window each.
    """
    name, channels, (height, width) = type(net).__name__, image.shape[1], image.shape[2:]
    outputs = locate_outputs(net, channels=channels, size=(height, width))
    if len(outputs) != 1:
        raise SurgeryError(
            f"{name} returns {len(outputs)} tensors; expected one map. Wrap it in a net that returns one"
        )
    (output,) = outputs
    # Where cells lie does not depend on the size, but shows only where there are several.
    (larger,) = locate_outputs(net, channels=channels, size=(max(2 * height, 224), max(2 * width, 224)))
    place = larger.where
    if not isinstance(place, Place) or len(output.shape) != 4 or place.axes != (-2, -1):
        reason = place.reason if isinstance(place, Lost) else f"its shape is {output.shape}"
        raise SurgeryError(
            f"what {name} returns lies nowhere on the picture: {reason}; expected a map (B, K, h, w). Turn a "
            "classifier into a net that returns one with convolutionalize first"
        )
    if math.inf in (place.down.field, place.across.field):
        layer = _first_unbounded(net, image)
        raise SurgeryError(
            f"every cell of what {name} returns sees the whole picture{f', from {layer!r} on' if layer else ''}, so a "
            "shifted picture would change them all; expected a bounded receptive field: no global pools, attention or "
            "norms over the picture",
            path=layer,
        )
    for grid in place.grids:
        if grid.stride.denominator != 1:
            raise SurgeryError(
                f"the cells of what {name} returns lie {grid.stride} pixels apart; expected a whole number"
            )
    return (output.shape[2], output.shape[3]), place


def _first_unbounded(net: nn.Module, image: Tensor) -> str:
    """The first layer that sees the whole picture; "" where the net cannot be traced."""
    try:
        graph_module = trace(net)
        located = locate(graph_module, channels=image.shape[1], size=(image.shape[2], image.shape[3]))
    except SurgeryError:
        return ""
    node = first_unbounded(graph_module.graph, located)
    return place_of(node) if node is not None else ""
