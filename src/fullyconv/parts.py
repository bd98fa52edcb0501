"""A traced net as a chain of parts, each of which can be run on a window of its map as the whole net on a tile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch.fx
from torch import nn

from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid
from fullyconv.locate import locate, positions
from fullyconv.places import Place
from fullyconv.taps import bottlenecks

SMALL = 4
"""Pixels from one cell to the next from which on maps are small, so that it costs little to cut behind each layer."""


class Part(NamedTuple):
    """A part of the trunk, from one map through which all must pass to the next: map (B, C, h, w) -> (map,)."""

    run: torch.fx.GraphModule
    source: Grid
    grid: Grid
    tap: str
    """What heads call the map that it gives; "" if none reads it."""


def parts_of(net: torch.fx.GraphModule, taps: Mapping[str, str], *, channels: int, size: tuple[int, int]) -> list[Part]:
    """A trunk in parts, cut at the first map of each stride, behind each layer of small maps and at what heads read.

    Args:
        net: image -> maps.
        taps: node -> name of what heads read, the coarsest last.
        channels, size: of a picture on which the net runs.

    Returns:
        none where the net is not a chain of such parts, or where a map sees the whole picture.
    """
    located = locate(net, channels=channels, size=size)
    places = dict(positions(located))
    chosen: dict[Grid, str] = {}
    try:
        for name, place in bottlenecks(net, [*taps][-1], located):
            # Behind what works on each cell alone, if it is not read before.
            if name in taps or chosen.get(place.grid) not in taps:
                chosen[place.grid] = name
    except AlignmentError:  # rows and columns lie differently
        return []
    if not {*taps} <= {*chosen.values()}:
        return []
    parts: list[Part] = []
    source, start = Grid(), next(node.name for node in net.graph.nodes)
    for grid, name in chosen.items():
        if name in taps or grid.stride > source.stride or grid.stride >= SMALL:
            run = _between(net, start, name, places)
            if run is None or math.isinf(grid.field):
                return []
            parts.append(Part(run, source, grid, taps.get(name, "")))
            source, start = grid, name
    return parts


def _between(
    net: torch.fx.GraphModule, start: str, end: str, places: Mapping[str, Place]
) -> torch.fx.GraphModule | None:
    """The part of a net from one node to another; None if it cannot be run like a tile. The layers are the net's own.

    That is if it reads other maps or their sizes, has maps whose cells are no whole parts of those at its end, repeats
    edges, or changes the map that it reads, which may be read elsewhere, too.
    """
    nodes = list(net.graph.nodes)
    first, last = ([node.name for node in nodes].index(name) for name in (start, end))
    graph = torch.fx.Graph()
    copies = {nodes[first]: graph.placeholder("map")}
    stride = places[end].grid.stride
    for node in nodes[first : last + 1]:
        place = places.get(node.name)
        if node.op != "get_attr" and (
            place is None or any((stride / grid.stride).denominator != 1 for grid in (place.down, place.across))
        ):
            return None
        if node is nodes[first]:
            continue
        layer = net.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not {*node.all_input_nodes} <= {*copies} or _repeats_edges(layer, node):
            return None
        if first and nodes[first] in node.all_input_nodes and _is_in_place(layer, node):
            return None
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output((copies[nodes[last]],))
    return torch.fx.GraphModule(net, graph)


def _repeats_edges(layer: nn.Module | None, node: torch.fx.Node) -> bool:
    """Whether an operation gives values of cells at the border to such as lie beyond."""
    modes = (getattr(layer, "padding_mode", "zeros"), node.kwargs.get("mode", "constant"))
    return modes != ("zeros", "constant") or type(layer).__name__.startswith(("Reflection", "Replication", "Circular"))


def _is_in_place(layer: nn.Module | None, node: torch.fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    flagged = getattr(layer, "inplace", False) or node.kwargs.get("inplace", False)
    return bool(flagged) or name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv")
