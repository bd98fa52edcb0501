"""Turns a classifier into a fully convolutional network, and moves weights between nets.

Surgery starts at the flatten, the point where a map becomes a vector, and walks: down, through the classifier's
layers, each of which becomes its convolutional equal; up, through whatever works on a single cell, to the pool. It
never sweeps the net by layer type, so a pool inside a squeeze-and-excite block stays what it is. `plan` says what will
be done, as data; `Plan.apply` does it to a copy and then checks that it is true (paper, section 3.1 and figure 2).
"""

from __future__ import annotations

import copy
import math
import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.errors import SurgeryError
from fullyconv.locate import WHOLE_PICTURE, Located, Lost, Place, locate, positions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Pool = Literal["keep", "drop"]
Padding = Literal["valid", "same"]
EXPECTED = "expected convolutions and pools up to one flatten or global pool"
Kind = Literal["convolution", "average pool", "maximum pool", "remove", "norm", "axis"]


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, h, w), at every position by itself."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Edit:
    """One change to the net.

    Attributes:
        path: module path, or node name where no module is concerned.
        kind: what is done: a linear layer becomes a convolution; a pool reads every position (stride 1) or shrinks by
            a fixed factor; a layer is removed; a norm or an axis is moved from vectors to maps.
        before: the layer as it was.
        after: the layer as it becomes; "" when removed.
        why: the reason, for people.
        node: name of the node in the graph; a module that is called twice has two.
        kernel: of the convolution or the pool, (rows, columns).
        stride: of the pool.
    """

    path: str
    kind: Kind
    before: str
    after: str
    why: str
    node: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)


def _reads_training(module: nn.Module) -> bool:
    """Whether a childless module behaves differently in training, so that tracing through it would freeze it."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names and next(module.children(), None) is None


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _reads_training(m)


def trace(net: nn.Module) -> torch.fx.GraphModule:
    """The graph of a net in evaluation mode (auxiliary classifiers and other parts used only in training fall away).

    The layers are the net's own, not copies.

    Raises:
        SurgeryError: its forward depends on the values in the picture, so that it has no one graph.
    """
    training = [m for m in net.modules() if m.training]
    net.eval()
    try:
        graph = _Tracer().trace(net)
        return torch.fx.GraphModule(net, graph)
    except Exception as error:  # a user's forward may raise anything when it meets a proxy
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SurgeryError(
            f"{type(net).__name__} cannot be traced: {line}; expected a forward without control flow that depends on "
            "the picture. Split the net by hand and pass the part up to its last map as a backbone"
        ) from error
    finally:
        for m in training:
            m.training = True


@dataclass(frozen=True)
class Plan:
    """What surgery will do to a classifier.

    Attributes:
        net: the classifier; never changed.
        image_size: side of the square picture that it was made for, in pixels.
        channels: of that picture.
        edits: in the order of the graph.
        features: name of the node that is the last map before the pool or the flatten.
        scores: name of the node that reads the last layer's input: what a new score layer reads.
        stride: of the scores, in pixels.
        exact: whether the mean of the dense scores equals the classifier's, for a dropped pool; always true for "keep".
        notes: what else a reader should know.
    """

    net: nn.Module
    image_size: int
    channels: int
    edits: tuple[Edit, ...]
    features: str
    scores: str
    stride: int
    exact: bool
    notes: tuple[str, ...] = ()

    @property
    def hidden(self) -> bool:
        """Whether the scores read a hidden linear layer that sees more than one cell, such as VGG's fc6 and fc7."""
        after_map = self.scores != self.features
        return after_map and any(e.kind == "convolution" and e.kernel != (1, 1) for e in self.edits[:-1])

    def __str__(self) -> str:
        lines = [f"{type(self.net).__name__} at {self.image_size}x{self.image_size}: {len(self.edits)} edits"]
        for edit in self.edits:
            lines.append(f"  {edit.path}: {edit.before} -> {edit.after or 'removed'} ({edit.why})")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def apply(self, *, padding: Padding = "valid", verify: bool = True) -> torch.fx.GraphModule:
        """The fully convolutional net, as a copy with the same parameter names.

        Args:
            padding: "valid" adds none, so that at ``image_size`` there is exactly one cell; "same" pads the
                convolutions that were linear layers by half their kernel, so that no cell is lost at the border.
            verify: check the postconditions (only without padding): at native size the dense net equals the
                classifier, on pictures to which it gives different scores; on a larger picture it has more cells.

        Raises:
            SurgeryError: a postcondition does not hold.
        """
        dense = trace(copy.deepcopy(self.net))
        for edit in self.edits:
            _perform(dense, edit, padding)
        dense.graph.eliminate_dead_code()
        dense.delete_all_unused_submodules()
        dense.graph.lint()
        dense.recompile()
        if verify and padding == "valid":
            _verify(self, dense)
            if not self.exact:
                # Scores without the pool are others by design; with it, the other edits must give the classifier's.
                plan(self.net, image_size=self.image_size, channels=self.channels).apply()
        dense.train(self.net.training)
        return dense


def convolutionalize(
    classifier: nn.Module, *, image_size: int = 224, pool: Pool = "keep", channels: int = 3
) -> nn.Module:
    """A fully convolutional copy of a classifier: (B, C, H, W) -> (B, classes, h, w), one cell at native size.

    Args:
        classifier: any net with one flatten (or global pool) between its maps and its class scores.
        image_size: side of the picture it was made for, in pixels.
        pool: "keep" turns a global pool into an average at every position and is exact; "drop" removes it, as the
            paper does for GoogLeNet, for scores that are as sharp as the map.
        channels: of that picture.

    Raises:
        SurgeryError: there is no such point, or the result would not equal the classifier; says where and why.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 10))
        >>> convolutionalize(net, image_size=15)(torch.rand(1, 3, 31, 47)).shape
        torch.Size([1, 10, 9, 17])
    """
    return plan(classifier, image_size=image_size, pool=pool, channels=channels).apply()


def plan(net: nn.Module, *, image_size: int = 224, pool: Pool = "keep", channels: int = 3) -> Plan:
    """Work out the edits that make a classifier fully convolutional, without touching it.

    Raises:
        SurgeryError: no point where a map becomes a vector, a layer that has no convolutional equal, or a net that
            cannot be traced or does not run at ``image_size``.
    """
    graph_module = trace(net)
    located = locate(graph_module, channels=channels, size=(image_size, image_size))
    return _Planner(net, graph_module, located, image_size, channels, pool).plan()


def _place(node: torch.fx.Node) -> str:
    """Where in the net a node is, for people: a module's path, or the module it is in and its own name."""
    if node.op == "call_module":
        return str(node.target)
    around = list(node.meta.get("nn_module_stack", {}))
    return f"{around[-1]}.{node.name}" if around else node.name


class _Planner:
    """One walk over one graph."""

    def __init__(
        self,
        net: nn.Module,
        graph_module: torch.fx.GraphModule,
        located: Mapping[str, Located],
        size: int,
        channels: int,
        pool: Pool,
    ) -> None:
        self.net, self.size, self.channels, self.pool = net, size, channels, pool
        self.nodes = list(graph_module.graph.nodes)
        self.modules = dict(graph_module.named_modules())
        self.located = located
        self.edits: dict[torch.fx.Node, Edit] = {}
        self.notes: list[str] = []
        self.dropped = False

    def plan(self) -> Plan:
        flattens = [node for node in self.nodes if self._flattens(node)]
        if not flattens:
            raise SurgeryError(self._why_no_flatten())
        tops = {top for node in flattens for top in self._walk_up(node)}
        after = self._walk_down(flattens)
        order = {node: i for i, node in enumerate(self.nodes)}
        features = max(tops, key=lambda node: order[node])
        self._refuse_attention(self.nodes[: order[features]])
        exact = not (self.dropped and self._nonlinear_behind(tops))
        edits = tuple(self.edits[node] for node in self.nodes if node in self.edits)
        scores = self._skip_removed(self._last_layer_input(features, after, flattens[0]))
        stride = math.ceil(next(place.grid.stride for name, place in positions(self.located) if name == features.name))
        stride *= max(max(edit.stride) for edit in edits)
        return Plan(
            self.net, self.size, self.channels, edits, features.name, scores.name, stride, exact, tuple(self.notes)
        )

    def _last_layer_input(
        self, features: torch.fx.Node, after: Sequence[torch.fx.Node], flatten: torch.fx.Node
    ) -> torch.fx.Node:
        """What the layer that scores classes reads: where a segmentation net puts its own scores instead."""
        linears = [node for node in after if isinstance(self._module(node), nn.Linear)]
        if linears:
            # Behind a global pool, hidden layers see one vector for the whole picture; as maps they would be blurred.
            return features if self._cells(flatten) == (1, 1) else linears[-1].all_input_nodes[0]
        node: torch.fx.Node | None = features
        while node is not None and not isinstance(self._module(node), nn.Conv2d):
            node = self._source(node) if len(node.all_input_nodes) == 1 else None
        layer = self._module(node) if node is not None else None
        # A score is read off one cell; a larger kernel, or a stride, is a layer of the net itself.
        if node is None or not isinstance(layer, nn.Conv2d) or (layer.kernel_size, layer.stride) != ((1, 1), (1, 1)):
            return features
        return node.all_input_nodes[0]

    # What a node is

    def _shape(self, node: Any) -> tuple[int, ...]:
        entry = self.located.get(node.name) if isinstance(node, torch.fx.Node) else None
        return entry.shape if entry is not None else ()

    def _module(self, node: torch.fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _path(self, node: torch.fx.Node) -> str:
        return str(node.target) if node.op == "call_module" else node.name

    def _describe(self, node: torch.fx.Node) -> str:
        module = self._module(node)
        if isinstance(module, nn.Linear):
            return f"Linear({module.in_features}, {module.out_features})"
        if module is not None:
            return repr(module) if next(module.children(), None) is None else type(module).__name__
        return getattr(node.target, "__name__", str(node.target))

    def _source(self, node: torch.fx.Node) -> torch.fx.Node | None:
        """The first tensor that a node reads."""
        return next((n for n in node.all_input_nodes if self._shape(n)), None)

    def _reduces(self, node: torch.fx.Node) -> bool:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return node.op in ("call_function", "call_method") and name in {"mean", "amax"}

    def _is_pool(self, node: torch.fx.Node) -> Literal["average", "maximum"] | None:
        """Whether a node pools a map, and how."""
        module, name = self._module(node), getattr(node.target, "__name__", str(node.target))
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AvgPool2d) or (
            node.op == "call_function" and name in {"adaptive_avg_pool2d", "avg_pool2d"}
        ):
            return "average"
        if isinstance(module, nn.AdaptiveMaxPool2d | nn.MaxPool2d) or (
            node.op == "call_function" and name in {"adaptive_max_pool2d", "max_pool2d"}
        ):
            return "maximum"
        if self._reduces(node):
            return "average" if "mean" in name else "maximum"
        return None

    def _flattens(self, node: torch.fx.Node) -> bool:
        """Whether a node takes a map (B, C, h, w) to vectors (B, C*h*w), or pools it to (B, C)."""
        source = self._source(node)
        before, after = self._shape(source), self._shape(node)
        if self._pooled_map(node) is not None:
            return True
        if len(before) != 4 or not after or len(after) > 3 or isinstance(self._module(node), nn.Linear):
            return False
        elements = before[1] * before[2] * before[3]
        # One axis may still follow, of one element, where a net squeezes its axes one by one.
        flat = after[0] == before[0] and (after[1:] == (elements,) or after[1:] == (elements, 1))
        return flat and self._reaches_map(source)

    def _pooled_map(self, node: torch.fx.Node) -> torch.fx.Node | None:
        """The map that a mean or maximum takes to vectors (B, C).

        At once, or axis by axis (``x.mean(3).mean(2)``), or over flattened cells (``x.flatten(2).mean(2)``).
        """
        kind, source = self._is_pool(node), self._source(node)
        if kind is None or source is None:
            return None
        if len(before := self._shape(source)) == 3:
            first, source = source, self._source(source)
            above = self._shape(source)
            if self._is_pool(first) != kind and before != (*above[:2], math.prod(above[2:])):
                return None
        return source if self._positioned(source) and self._shape(node) == self._shape(source)[:2] else None

    def _positioned(self, node: torch.fx.Node | None) -> bool:
        entry = self.located.get(node.name) if node is not None else None
        return entry is not None and isinstance(entry.where, Place) and entry.where.axes == (-2, -1)

    def _reaches_map(self, node: torch.fx.Node | None) -> bool:
        """Whether a map with positions lies at or above a node, nothing but single cells in between."""
        if node is None or len(self._shape(node)) != 4:
            return False
        if self._positioned(node):
            return True
        source = self._source(node)
        if self._is_pool(node):
            return self._positioned(source) or self._reaches_map(source)
        return self._single(node) and any(self._reaches_map(n) for n in node.all_input_nodes)

    def _single(self, node: torch.fx.Node) -> bool:
        """Whether a tensor is one cell, in whatever order its axes are."""
        shape = self._shape(node)
        return bool(shape) and math.prod(shape[1:]) == max(shape[1:], default=0)

    def _cells(self, flatten: torch.fx.Node) -> tuple[int, int]:
        """Rows and columns of the map that becomes a vector."""
        if self._is_pool(flatten):
            return (1, 1)
        _, _, rows, columns = self._shape(self._source(flatten))
        return (rows, columns)

    def _refuse_attention(self, nodes: Sequence[torch.fx.Node]) -> None:
        """Raise if some map on the way loses its place on the picture, even where another beside it keeps its own.

        A pool inside a block loses it too, but leaves one cell, which says nothing about where.
        """
        for node in nodes:
            entry = self.located.get(node.name)
            lost = entry.where if entry is not None and isinstance(entry.where, Lost) else None
            if entry is None or lost is None or len(entry.shape) < 3 or lost.reason == WHOLE_PICTURE:
                continue
            raise SurgeryError(
                f"{type(self.net).__name__} is not convolutional up to its classifier: at '{_place(node)}' "
                f"{lost.reason}, so cells beyond lie nowhere on the picture (as in vision transformers); {EXPECTED}",
                path=_place(node),
            )

    def _why_no_flatten(self) -> str:
        self._refuse_attention(self.nodes)
        name = type(self.net).__name__
        last = next(node for node in reversed(self.nodes) if self._positioned(node) and node.op != "output")
        reader = next(iter(last.users))
        if reader.op == "output":
            return f"{name} ends in a map and is fully convolutional already; take it as it is"
        return (
            f"{name} has no point where a map becomes a vector of class scores: the last map is '{_place(last)}', and "
            f"what '{_place(reader)}' ({self._describe(reader)}) makes of it is not understood; {EXPECTED}"
        )

    # The walks

    def _walk_up(self, flatten: torch.fx.Node) -> list[torch.fx.Node]:
        """Edit the flatten and the pools above it; return the maps that they read."""
        source = self._source(flatten)
        assert source is not None
        pooled = self._pooled_map(flatten)
        if pooled is not None:
            if source is not pooled:
                self._remove(source, f"the first step of '{flatten.name}'")
            return [self._edit_pool(flatten, pooled)]
        self._remove(flatten, "the map stays a map")
        return self._find_pools(source)

    def _find_pools(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        kind = self._is_pool(node)
        fixed = isinstance(self._module(node), nn.AvgPool2d | nn.MaxPool2d)
        if kind and not (fixed and not self._single(node)):
            source = self._source(node)
            assert source is not None
            if not self._positioned(source):
                return self._find_pools(source)
            return [self._edit_pool(node, source)]
        if self._positioned(node):
            return [node]
        tops = [top for source in node.all_input_nodes if self._reaches_map(source) for top in self._find_pools(source)]
        if not tops:
            raise SurgeryError(
                f"'{_place(node)}' ({self._describe(node)}) stands between the pool and the classifier and has no "
                "convolutional equal",
                path=_place(node),
            )
        return tops

    def _edit_pool(self, node: torch.fx.Node, source: torch.fx.Node) -> torch.fx.Node:
        kind = self._is_pool(node)
        h, w = self._shape(source)[2:]
        out = self._shape(node)
        rows, columns = (out[2], out[3]) if len(out) == 4 else (1, 1)
        if (h, w) == (rows, columns):
            self._remove(node, f"at native size it maps {h}x{w} to {h}x{w}")
            return source
        if h % rows or w % columns:
            raise SurgeryError(
                f"'{_place(node)}' pools {h}x{w} cells to {rows}x{columns}, which no fixed pool does; expected "
                f"whole factors: give the image_size that the classifier was made for, not {self.size}",
                path=_place(node),
            )
        kernel = (h // rows, w // columns)
        single = (rows, columns) == (1, 1)
        if single and self.pool == "drop":
            self.dropped = True
            self._remove(node, "the pool is dropped, so that each position has its own score")
            return source
        stride = (1, 1) if single else kernel
        self._edit(
            node,
            "average pool" if kind == "average" else "maximum pool",
            f"{'AvgPool2d' if kind == 'average' else 'MaxPool2d'}({kernel[0]}x{kernel[1]}, stride {stride[0]})",
            "read at every position" if single else "the same factor at every size",
            kernel,
            stride,
        )
        return source

    def _edit(
        self,
        node: torch.fx.Node,
        kind: Kind,
        after: str,
        why: str,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        self.edits[node] = Edit(self._path(node), kind, self._describe(node), after, why, node.name, kernel, stride)

    def _remove(self, node: torch.fx.Node, why: str) -> None:
        self._edit(node, "remove", "", why)

    def _walk_down(self, flattens: Sequence[torch.fx.Node]) -> list[torch.fx.Node]:
        """Edit everything that works on vectors; return those nodes in order."""
        # The map under each vector, as (rows, columns) that are folded into its entries.
        folded = {flatten: self._cells(flatten) for flatten in flattens}
        after = []
        for node in self.nodes:
            sources = [n for n in node.all_input_nodes if n in folded]
            if node in folded or not sources or node.op == "output":
                continue
            after.append(node)
            cells = folded[sources[0]]
            module, shape = self._module(node), self._shape(node)
            if not shape:
                continue  # x.size(0) and the like, which fall away with the reshape that they feed
            folded[node] = (1, 1) if isinstance(module, nn.Linear) else cells
            if isinstance(module, nn.Linear):
                self._edit_linear(node, module, cells)
            elif isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
                self._edit_norm(node, module, cells)
            elif isinstance(module, nn.Softmax | nn.LogSoftmax) or self._describe(node) in {"softmax", "log_softmax"}:
                self._edit_axis(node)
            elif isinstance(module, nn.GroupNorm):
                raise SurgeryError(
                    f"'{_place(node)}' ({self._describe(node)}) normalises a vector, and would mix the positions of "
                    "a map; expected LayerNorm or BatchNorm1d there",
                    path=_place(node),
                )
            elif self._squeezes(node, sources[0]):
                self._remove(node, "the map stays a map")
            elif self._describe(node) in {"cat", "concat"}:
                if cells != (1, 1):
                    raise SurgeryError(
                        f"'{_place(node)}' puts flattened maps of {cells[0]}x{cells[1]} cells one after the other, "
                        "which no one convolution reads; expected single cells there",
                        path=_place(node),
                    )
                if node.kwargs.get("dim", node.args[-1]) != 1:
                    self._edit_axis(node)
        return after

    def _squeezes(self, node: torch.fx.Node, source: torch.fx.Node) -> bool:
        """Whether a node only reshapes vectors to vectors."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        module = self._module(node)
        reshapes = name in {"squeeze", "flatten", "view", "reshape"} or isinstance(module, nn.Flatten)
        if not reshapes and not (name == "getitem" and node.target is operator.getitem):
            return False
        before, after = self._shape(source), self._shape(node)
        if torch.Size(before).numel() != torch.Size(after).numel() or len(after) > 3:
            raise SurgeryError(
                f"'{_place(node)}' reshapes vectors {before[1:]} to {after[1:]}, which has no convolutional equal",
                path=_place(node),
            )
        return True

    def _edit_linear(self, node: torch.fx.Node, module: nn.Linear, cells: tuple[int, int]) -> None:
        rows, columns = cells
        if module.in_features % (rows * columns):
            raise SurgeryError(
                f"'{node.target}' has {module.in_features} inputs, not a multiple of the {rows}x{columns} cells of the "
                "map before it",
                path=str(node.target),
            )
        inputs = module.in_features // (rows * columns)
        self._edit(
            node,
            "convolution",
            f"Conv2d({inputs}, {module.out_features}, {rows}x{columns})",
            "a linear layer on a map is a convolution whose kernel covers it",
            cells,
        )

    def _edit_norm(self, node: torch.fx.Node, module: nn.BatchNorm1d | nn.LayerNorm, cells: tuple[int, int]) -> None:
        if cells != (1, 1):
            raise SurgeryError(
                f"'{node.target}' ({type(module).__name__}) normalises a flattened map of {cells[0]}x{cells[1]} cells, "
                "each by its own numbers; expected it behind a linear layer or a pool",
                path=str(node.target),
            )
        name = "BatchNorm2d" if isinstance(module, nn.BatchNorm1d) else "ChannelLayerNorm"
        self._edit(node, "norm", name, "the same numbers, at every position")

    def _edit_axis(self, node: torch.fx.Node) -> None:
        self._edit(
            node, "axis", f"{self._describe(node)} over channels", "the entries of a vector are channels of a map"
        )

    def _nonlinear_behind(self, tops: set[torch.fx.Node]) -> bool:
        """Whether anything between the pool and the last score is not linear, so that means do not commute with it."""
        behind: set[torch.fx.Node] = set()
        for node in self.nodes:
            if node not in tops and any(n in behind or n in tops for n in node.all_input_nodes):
                behind.add(node)
        offenders = [node for node in self.nodes if node in behind and self._shape(node) and not self._affine(node)]
        if offenders:
            self.notes.append(
                f"'{_place(offenders[0])}' follows the dropped pool and is not linear, so the mean of the scores "
                "differs from the classifier's"
            )
        return bool(offenders)

    def _affine(self, node: torch.fx.Node) -> bool:
        """Whether what becomes of a node commutes with a mean over positions."""
        if node.op == "output":
            return True
        if node in self.edits and self.edits[node].kind == "remove":
            return self._is_pool(node) != "maximum"
        affine = nn.Linear | nn.Conv2d | nn.Dropout | nn.BatchNorm1d | nn.BatchNorm2d | nn.Identity
        names = {"cat", "add", "permute", "transpose"}
        return isinstance(self._module(node), affine) or self._describe(node) in names

    def _skip_removed(self, node: torch.fx.Node) -> torch.fx.Node:
        """The node that stands for this one once the edits are done."""
        while node in self.edits and self.edits[node].kind == "remove":
            source = self._source(node)
            assert source is not None
            node = source
        return node


def _perform(dense: torch.fx.GraphModule, edit: Edit, padding: Padding) -> None:
    node = next(n for n in dense.graph.nodes if n.name == edit.node)
    source = node.all_input_nodes[0]
    if edit.kind == "remove":
        node.replace_all_uses_with(source)
        dense.graph.erase_node(node)
        return
    old = dense.get_submodule(str(node.target)) if node.op == "call_module" else None
    if edit.kind == "axis" and old is None:
        node.update_arg(1, 1) if len(node.args) > 1 else node.update_kwarg("dim", 1)
        return
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = as_convolution(old, edit.kernel, padding=padding)
    elif edit.kind in ("average pool", "maximum pool"):
        pool = nn.AvgPool2d if edit.kind == "average pool" else nn.MaxPool2d
        same = (edit.kernel[0] // 2, edit.kernel[1] // 2) if padding == "same" and edit.stride == (1, 1) else 0
        new = pool(edit.kernel, edit.stride, same)
    elif isinstance(old, nn.BatchNorm1d | nn.LayerNorm):
        new = _on_maps(old)
    elif isinstance(old, nn.Softmax | nn.LogSoftmax):
        new = type(old)(dim=1)
    else:
        return  # a layer that is called twice was changed at its first call
    # Layers with weights keep their names; a pool may also be called where it is not to change.
    keeps_name = old is not None and next(new.parameters(), None) is not None
    path = str(node.target) if keeps_name else f"{node.name}_dense"
    dense.add_submodule(path, new)
    with dense.graph.inserting_after(node):
        fresh = dense.graph.call_module(path, (source,))
    node.replace_all_uses_with(fresh)
    dense.graph.erase_node(node)
    fresh.name = edit.node


def as_convolution(linear: nn.Linear, kernel: tuple[int, int], *, padding: Padding = "valid") -> nn.Conv2d:
    """The convolution that equals a linear layer on a flattened map of ``kernel`` cells (rows, columns).

    The weight (out, C*h*w) becomes (out, C, h, w): the flattening order of both PyTorch and Caffe.
    """
    rows, columns = kernel
    inputs = linear.in_features // (rows * columns)
    weight = linear.weight.detach()
    convolution = nn.Conv2d(
        inputs,
        linear.out_features,
        kernel,
        padding=(rows // 2, columns // 2) if padding == "same" else 0,
        bias=linear.bias is not None,
        device="meta",
    )
    convolution.weight = nn.Parameter(weight.reshape(linear.out_features, inputs, rows, columns))
    if linear.bias is not None:
        convolution.bias = nn.Parameter(linear.bias.detach())
    return convolution


def _on_maps(norm: nn.BatchNorm1d | nn.LayerNorm) -> nn.Module:
    new: nn.Module
    if isinstance(norm, nn.LayerNorm):
        new = ChannelLayerNorm(norm.normalized_shape[0], norm.eps, norm.elementwise_affine, norm.bias is not None)
    else:
        new = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new.load_state_dict(norm.state_dict(), assign=True)
    return new


def _pictures(channels: int, size: int, generator: torch.Generator) -> Tensor:
    """Two pictures that differ at every scale: noise over coarse blobs, roughly of unit variance."""
    blobs = F.interpolate(torch.randn(2, channels, 5, 5, generator=generator), size=(size, size), mode="bicubic")
    return blobs + 0.5 * torch.randn(2, channels, size, size, generator=generator)


class _Steps(torch.fx.Interpreter):
    """Runs a graph node by node, and says at which it fails."""

    def __init__(self, graph_module: torch.fx.GraphModule, *, keep: bool = False) -> None:
        super().__init__(graph_module, garbage_collect_values=not keep)
        self.extra_traceback = False

    def run_node(self, n: torch.fx.Node) -> Any:
        try:
            return super().run_node(n)
        except Exception as error:
            place = _place(n)
            line = str(error).strip().splitlines()[0]
            raise SurgeryError(
                f"'{place}' works on vectors in a way that has no convolutional equal: {line}", path=place
            ) from error


def _verify(plan: Plan, dense: torch.fx.GraphModule) -> None:
    """Both postconditions, on live activations."""
    net = plan.net
    parameter = next(iter(net.parameters()), torch.empty(0))
    pictures = _pictures(plan.channels, plan.image_size, torch.Generator().manual_seed(0)).to(parameter)
    training = [m for m in net.modules() if m.training]
    net.eval()
    dense.eval()
    larger = plan.image_size + 2 * plan.stride
    try:
        with torch.no_grad():
            want = _first(net(pictures))
            grown = _first(_Steps(dense).run(pictures.new_zeros(1, plan.channels, larger, larger)))
            if _too_alike(want):
                # Untrained weights often let the signal die, and a dead net equals anything.
                net = copy.deepcopy(net)
                _revive(net, pictures)
                want = _first(net(pictures))
                dense = replace(plan, net=net).apply(verify=False)
            got = _first(_Steps(dense).run(pictures))
            if plan.exact:
                _compare(plan, want, got, lambda: _parting(net, dense, pictures))
    finally:
        for m in training:
            m.training = True
    if grown.dim() != 4 or grown.shape[2] <= got.shape[2] or grown.shape[3] <= got.shape[3]:
        raise SurgeryError(
            f"a picture of {larger}x{larger} gives scores of shape {tuple(grown.shape)}; expected more cells than the "
            f"{got.shape[-2]}x{got.shape[-1]} at {plan.image_size}: a layer still works on the whole picture"
        )


def _parting(net: nn.Module, dense: torch.fx.GraphModule, pictures: Tensor) -> str:
    """Name of the first node whose value in the dense net is no longer the classifier's."""
    runs = []
    for graph_module in (trace(net), dense):
        steps = _Steps(graph_module, keep=True)
        steps.run(pictures)
        runs.append({node.name: value for node, value in steps.env.items() if isinstance(value, Tensor)})
    want, got = runs
    for name in want:
        if name in got:
            one, other = want[name].ravel(), got[name].ravel()
            if one.shape != other.shape or not torch.allclose(one, other, 1e-3, 1e-5):
                return name
    return "output"


def _first(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise SurgeryError(f"the net returns {type(output).__name__} in evaluation mode; expected one tensor of scores")


def _too_alike(scores: Tensor) -> bool:
    spread = (scores[0] - scores[1]).abs().max()
    return bool(spread <= 1e-3 * scores.abs().max()) or not bool(torch.isfinite(scores).all())


def _revive(net: nn.Module, pictures: Tensor) -> None:
    """Give every convolution and linear layer weights, and every norm statistics, that keep the signal alive."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            noise = torch.randn(module.weight.shape, generator=generator).to(module.weight)
            module.weight.copy_(noise * (2 / fan_in) ** 0.5)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
            module.reset_parameters()
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for module in norms:
        module.train()
        module.momentum = None
    net(pictures)
    for module in norms:
        module.eval()


def _compare(plan: Plan, want: Tensor, got: Tensor, parting: Callable[[], str]) -> None:
    # A dropped pool leaves a map, whose mean is the classifier's score.
    got = got.mean((2, 3)) if got.dim() == 4 else got
    if got.shape != want.shape:
        raise SurgeryError(
            f"the dense net gives {tuple(got.shape)} at native size, expected {tuple(want.shape)}; they part at "
            f"'{parting()}'"
        )
    if _too_alike(want):
        raise SurgeryError(
            "two different pictures get the same scores, so that nothing can be checked; expected live activations: "
            "load trained weights first"
        )
    # Relative to what distinguishes pictures, not to a common offset that any net with the right bias would have.
    error = float((got - want).abs().max() / (want[0] - want[1]).abs().max())
    tolerance = 1e-5 if want.dtype == torch.float64 else 1e-4
    if not error < tolerance:
        raise SurgeryError(
            f"at {plan.image_size}x{plan.image_size} the dense net differs from the classifier by {error:.1e} of the "
            f"difference between two pictures, expected less than {tolerance:.0e}; they part at '{parting()}'"
        )


# Cutting a trunk out of a net


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


def find_taps(dense: torch.fx.GraphModule, coarsest: str, located: Mapping[str, Located]) -> dict[int, str]:
    """For every stride up to the coarsest map's, the last node through which all that is coarser must pass.

    Returns:
        From stride in pixels (2 and more) to node name, coarsest last.

    Raises:
        SurgeryError: the coarsest map has no position, so that nothing can be placed on the picture.
    """
    nodes = {node.name: node for node in dense.graph.nodes}
    goal = nodes[coarsest]
    ancestors = {goal}
    for node in reversed(dense.graph.nodes):
        if any(user in ancestors for user in node.users):
            ancestors.add(node)
    order = [node for node in dense.graph.nodes if node in ancestors]
    last_use = {
        node: max((i for i, user in enumerate(order) if node in user.all_input_nodes), default=-1) for node in order
    }
    places = dict(positions(located))
    if coarsest not in places:
        where = located[coarsest].where if coarsest in located else None
        reason = where.reason if isinstance(where, Lost) else "it does not come from the picture"
        raise SurgeryError(f"the map '{coarsest}' lies nowhere on the picture: {reason}", path=coarsest)
    taps: dict[int, str] = {}
    alive: set[torch.fx.Node] = set()
    for i, node in enumerate(order):
        alive = {n for n in alive if last_use[n] > i} | {node}
        place = places.get(node.name)
        tensors = [n for n in alive if n.name in located and located[n.name].where is not None]
        if place is None or (tensors != [node] and node is not goal):
            continue
        stride = place.grid.stride
        if stride.denominator == 1 and stride >= 2:
            taps[int(stride)] = node.name
    taps[int(places[coarsest].grid.stride)] = coarsest
    return dict(sorted(taps.items()))


# Weights from anywhere


@dataclass(frozen=True)
class Transplant:
    """What `transplant` did, by parameter name."""

    used: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.used)} tensors taken over ({len(self.reshaped)} of them reshaped), {len(self.missing)} of the "
            f"model's left as they were, {len(self.unexpected)} of the source's unused"
        )


def transplant(
    source: Mapping[str, Tensor], target: nn.Module, *, rename: Callable[[str], str | None] = lambda name: name
) -> Transplant:
    """Copy tensors into a net by name: a classifier's, an earlier stage's, another file's.

    A tensor whose shape differs but whose entries are as many is reshaped (a linear layer's weight into its
    convolution's, as the authors' `surgery.transplant` does); one that does not fit is left, and told.

    Args:
        source: tensors by name.
        target: changed in place.
        rename: the target's name for a source's name; None to leave that tensor out.

    Returns:
        What was used, missing and unexpected, so that nothing stays uninitialised unnoticed.
    """
    own = target.state_dict()
    used, reshaped, unexpected = [], [], []
    with torch.no_grad():
        for name, tensor in source.items():
            goal = rename(name)
            if goal is None or goal not in own or not _fits(tensor, own[goal]):
                unexpected.append(name)
                continue
            if own[goal].shape != tensor.shape:
                reshaped.append(goal)
            own[goal].copy_(tensor.reshape(own[goal].shape))
            used.append(goal)
    taken = set(used)
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    missing = tuple(name for name in own if name not in taken and name not in counters)
    return Transplant(tuple(used), missing, tuple(unexpected), tuple(reshaped))


def _fits(tensor: Tensor, goal: Tensor) -> bool:
    """Whether a tensor has another's entries in the same order.

    Every output's weights stay together, as from a linear layer (out, C*h*w) to its convolution (out, C, h, w), or
    only axes of length 1 differ, as in Caffe's biases.
    """
    if tensor.numel() != goal.numel():
        return False
    return tensor.shape[:1] == goal.shape[:1] or [n for n in tensor.shape if n > 1] == [n for n in goal.shape if n > 1]
