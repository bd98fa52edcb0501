"""Which maps of a dense net a segmentation net may read, and the part of the net up to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch.fx

from fullyconv.errors import SurgeryError
from fullyconv.locate import Located, positions
from fullyconv.places import Lost, Place


def cut(dense: torch.fx.GraphModule, taps: Sequence[str]) -> torch.fx.GraphModule:
    """The part of a traced net up to these nodes: image -> tuple of their maps. Works in place; unused layers go."""
    nodes = {node.name: node for node in dense.graph.nodes}
    output = next(node for node in dense.graph.nodes if node.op == "output")
    output.args = (tuple(nodes[name] for name in taps),)
    dense.graph.eliminate_dead_code()
    dense.delete_all_unused_submodules()
    dense.graph.lint()
    dense.recompile()
    return dense


def alike(place: Place) -> bool:
    """Whether the cells of a map lie alike along both axes."""
    return (place.down.stride, place.down.offset) == (place.across.stride, place.across.offset)


def bottlenecks(dense: torch.fx.GraphModule, goal: str, located: Mapping[str, Located]) -> Iterator[tuple[str, Place]]:
    """The maps through which all must pass that a map is made of, in order, and where they lie; itself is the last."""
    nodes = {node.name: node for node in dense.graph.nodes}
    ancestors = {nodes[goal]}
    for node in reversed(dense.graph.nodes):
        if any(user in ancestors for user in node.users):
            ancestors.add(node)
    order = [node for node in dense.graph.nodes if node in ancestors]
    last_use = {
        node: max((i for i, user in enumerate(order) if node in user.all_input_nodes), default=-1) for node in order
    }
    places = dict(positions(located))
    alive: set[torch.fx.Node] = set()
    for i, node in enumerate(order):
        alive = {n for n in alive if last_use[n] > i} | {node}
        tensors = [n for n in alive if n.name in located and located[n.name].where is not None]
        # Between factorised kernels, rows and columns lie at strides of their own: nothing to read.
        if node.name in places and (node.name == goal or (tensors == [node] and alike(places[node.name]))):
            yield node.name, places[node.name]


def find_taps(dense: torch.fx.GraphModule, coarsest: str, located: Mapping[str, Located]) -> dict[int, str]:
    """For every stride up to the coarsest map's, the last node through which all that is coarser must pass.

    Returns:
        From stride in pixels (2 and more) to node name, coarsest last.

    Raises:
        SurgeryError: the coarsest map has no position, so that nothing can be placed on the picture.
    """
    if coarsest not in dict(positions(located)):
        where = located[coarsest].where if coarsest in located else None
        reason = where.reason if isinstance(where, Lost) else "it does not come from the picture"
        raise SurgeryError(f"the map '{coarsest}' lies nowhere on the picture: {reason}", path=coarsest)
    taps = {
        int(place.grid.stride): name
        for name, place in bottlenecks(dense, coarsest, located)
        if name == coarsest or (place.grid.stride.denominator == 1 and place.grid.stride >= 2)
    }
    return dict(sorted(taps.items()))
