"""Turns a classifier into a fully convolutional network.

Surgery starts at the flatten, the point where a map becomes a vector, and walks: down, through the classifier's
layers, each of which becomes its convolutional equal; up, through whatever works on a single cell, to the pool. It
never sweeps the net by layer type, so a pool inside a squeeze-and-excite block stays what it is. `plan` says what will
be done, as data; `Plan.apply` does it to a copy and then checks that it is true (paper, section 3.1 and figure 2).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from fullyconv import postconditions
from fullyconv.edits import Edit, Kind, Padding, perform, reads_picture
from fullyconv.errors import ConfigError, SurgeryError
from fullyconv.locate import Located, locate, positions
from fullyconv.lookup import lookup
from fullyconv.places import WHOLE_PICTURE, Lost, Place
from fullyconv.tracing import copied, functional_pool, place_of, trace

if TYPE_CHECKING:
    from collections.abc import Sequence

Pool = Literal["keep", "drop"]
PoolKind = Literal["average pool", "maximum pool", "sum pool"]
_REDUCTIONS: Mapping[str, PoolKind] = {"mean": "average pool", "amax": "maximum pool", "sum": "sum pool"}
_ARITHMETIC = {"add", "iadd", "sub", "isub", "mul", "imul", "div", "truediv", "itruediv"}
EXPECTED = "expected convolutions and pools up to one flatten or global pool"


@dataclass(frozen=True)
class Plan:
    """What surgery will do to a classifier.

    Attributes:
        net: the classifier, never changed; None in a plan that was carried out, which is kept for what it tells.
        name: of its class.
        image_size: side of the square picture that it was made for, in pixels.
        channels: of that picture.
        edits: in the order of the graph.
        features: name of the node that is the last map before the pool or the flatten.
        scores: name of the node that reads the last layer's input: what a new score layer reads.
        stride: of the scores, in pixels.
        alignment: of which the sides of pictures are multiples where the net is to run, in pixels: more than the stride
            if maps inside are coarser than the last.
        exact: whether the mean of the dense scores equals the classifier's, for a dropped pool; always true for "keep".
        notes: what else a reader should know.
    """

    net: nn.Module | None
    name: str
    image_size: int
    channels: int
    edits: tuple[Edit, ...]
    features: str
    scores: str
    stride: int
    alignment: int
    exact: bool
    notes: tuple[str, ...] = ()

    @property
    def hidden(self) -> bool:
        """Whether the scores read a hidden linear layer that sees more than one cell, such as VGG's fc6 and fc7."""
        after_map = self.scores != self.features
        return after_map and any(e.kind == "convolution" and e.kernel != (1, 1) for e in self.edits[:-1])

    def __str__(self) -> str:
        lines = [f"{self.name} at {self.image_size}x{self.image_size}: {len(self.edits)} edits"]
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
            SurgeryError: a postcondition does not hold, or the plan was carried out.
        """
        if self.net is None:
            raise SurgeryError(f"{self.name}: this plan was carried out; expected a new one, of `plan`")
        dense = trace(copied(self.net))
        for edit in self.edits:
            perform(dense, edit, padding)
        dense.graph.eliminate_dead_code()
        dense.delete_all_unused_submodules()
        dense.graph.lint()
        dense.recompile()
        if verify and padding == "valid":
            postconditions.verify(self, dense)
            if not self.exact:
                # Scores without the pool are others by design; with it, the other edits must give the classifier's.
                plan(self.net, image_size=self.image_size, channels=self.channels).apply()
        # Layers that were frozen stay so.
        modes = {name: module.training for name, module in self.net.named_modules()}
        for name, module in dense.named_modules():
            module.training = modes.get(name, self.net.training)
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
        AlignmentError: rows and columns of the last map lie differently on the picture.

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
        AlignmentError: rows and columns of the last map lie differently on the picture.
        UnknownName: no such pool.
        ConfigError: not a module, or not a size of square pictures.
    """
    refuse_mistaken(net, image_size)
    lookup("pool", pool, dict.fromkeys(get_args(Pool)))
    graph_module = trace(net)
    located = locate(graph_module, channels=channels, size=(image_size, image_size))
    return _Planner(net, graph_module, located, image_size, channels, pool).plan()


def refuse_mistaken(net: object, image_size: object) -> None:
    """Refuse a name in place of a classifier, and two sides in place of one, which fail deep inside otherwise.

    Raises:
        ConfigError: says what was given and what is expected.
    """
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"classifier: got {net!r:.80}; expected a torch.nn.Module; fullyconv.backbones.backbone takes names",
            where="classifier",
        )
    if not isinstance(image_size, int) or image_size < 1:
        raise ConfigError(
            f"image_size: got {image_size!r:.80}; expected the side, in pixels, of the square pictures that the net "
            "was made for, such as 224",
            where="image_size",
        )


@dataclass(frozen=True)
class _Window:
    """What the one window of a fixed pool reads along one axis of a map.

    Attributes:
        kernel: cells that it reads.
        dilation: from one of them to the next.
        rest: cells of the map before the first and behind the last of them.
        counted: cells that an average counts, padding among them.
    """

    kernel: int
    dilation: int
    rest: tuple[int, int]
    counted: int

    @classmethod
    def of(cls, pool: nn.AvgPool2d | nn.MaxPool2d, axis: int, cells: int) -> _Window:
        def along(value: Any) -> int:
            return value if isinstance(value, int) else int(value[-axis])

        kernel, padding = along(pool.kernel_size), along(pool.padding)
        dilation = along(pool.dilation) if isinstance(pool, nn.MaxPool2d) else 1
        read = [cell for i in range(kernel) if 0 <= (cell := dilation * i - padding) < cells]
        # In ceil mode a kernel may reach beyond the padding, where nothing is counted.
        counted = min(kernel, cells + 2 * padding)
        return cls(len(read), dilation if len(read) > 1 else 1, (read[0], cells - 1 - read[-1]), counted)


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
        # Whether what was dropped is no mean of all cells.
        self.partial = False

    def plan(self) -> Plan:
        inside = self._inside_trunk()
        flattens = [node for node in self.nodes if node not in inside and self._flattens(node)]
        if not flattens:
            raise SurgeryError(self._why_no_flatten())
        tops = {top for node in flattens for top in self._walk_up(node)}
        after = self._walk_down(flattens)
        order = {node: i for i, node in enumerate(self.nodes)}
        features = max(tops, key=lambda node: order[node])
        self._refuse_attention(self.nodes[: order[features]])
        exact = not (self.dropped and (self._nonlinear_behind(tops) or self.partial))
        edits = tuple(self.edits[node] for node in self.nodes if node in self.edits)
        scores = self._skip_removed(self._last_layer_input(features, after, flattens[0]))
        last = next(place for name, place in positions(self.located) if name == features.name)
        stride = math.ceil(last.grid.stride) * max(max(edit.stride) for edit in edits)
        return Plan(
            net=self.net,
            name=type(self.net).__name__,
            image_size=self.size,
            channels=self.channels,
            edits=edits,
            features=features.name,
            scores=scores.name,
            stride=stride,
            alignment=math.lcm(stride, last.alignment),
            exact=exact,
            notes=tuple(self.notes),
        )

    def _last_layer_input(
        self, features: torch.fx.Node, after: Sequence[torch.fx.Node], flatten: torch.fx.Node
    ) -> torch.fx.Node:
        """What the layer that scores classes reads: where a segmentation net puts its own scores instead."""
        linears = [node for node in after if self._is_linear(node)]
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

    def _is_linear(self, node: torch.fx.Node) -> bool:
        return isinstance(self._module(node), nn.Linear) or node.target is F.linear

    def _source(self, node: torch.fx.Node) -> torch.fx.Node | None:
        """The first tensor that a node reads."""
        return next((n for n in node.all_input_nodes if self._shape(n)), None)

    def _is_pool(self, node: torch.fx.Node) -> PoolKind | None:
        """Whether a node pools a map, and how."""
        module, name = self._module(node), getattr(node.target, "__name__", str(node.target))
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AvgPool2d) or (
            node.op == "call_function" and name in {"adaptive_avg_pool2d", "avg_pool2d"}
        ):
            return "average pool"
        if isinstance(module, nn.AdaptiveMaxPool2d | nn.MaxPool2d) or (
            node.op == "call_function" and name in {"adaptive_max_pool2d", "max_pool2d"}
        ):
            return "maximum pool"
        return _REDUCTIONS.get(name) if node.op in ("call_function", "call_method") else None

    def _fixed_pool(self, node: torch.fx.Node) -> nn.AvgPool2d | nn.MaxPool2d | None:
        """The pool of a kernel of its own that a node is, module or function; None for one to a number of cells."""
        module = self._module(node)
        return module if isinstance(module, nn.AvgPool2d | nn.MaxPool2d) else functional_pool(node)

    def _flattens(self, node: torch.fx.Node) -> bool:
        """Whether a node takes a map (B, C, h, w) to vectors (B, C*h*w), or pools it to (B, C)."""
        source = self._source(node)
        before, after = self._shape(source), self._shape(node)
        if self._pooled_map(node) is not None:
            return True
        if len(before) != 4 or not after or len(after) > 3 or self._is_linear(node):
            return False
        elements = before[1] * before[2] * before[3]
        # One axis may still follow, of one element, where a net squeezes its axes one by one.
        flat = after[0] == before[0] and (after[1:] == (elements,) or after[1:] == (elements, 1))
        return flat and self._reaches_map(source)

    def _inside_trunk(self) -> set[torch.fx.Node]:
        """The nodes that some map reads, such as the vectors of a squeeze-and-excite block."""
        inside: set[torch.fx.Node] = set()
        for node in reversed(self.nodes):
            if any(user in inside or self._positioned(user) for user in node.users):
                inside.add(node)
        return inside

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
                f"{type(self.net).__name__} is not convolutional up to its classifier: at '{place_of(node)}' "
                f"{lost.reason}, so cells beyond lie nowhere on the picture (as in vision transformers); {EXPECTED}",
                path=place_of(node),
            )

    def _why_no_flatten(self) -> str:
        self._refuse_attention(self.nodes)
        name = type(self.net).__name__
        last = next(node for node in reversed(self.nodes) if self._positioned(node) and node.op != "output")
        reader = next(iter(last.users))
        if reader.op == "output":
            return f"{name} ends in a map and is fully convolutional already; take it as it is"
        return (
            f"{name} has no point where a map becomes a vector of class scores: the last map is '{place_of(last)}', "
            f"and what '{place_of(reader)}' ({self._describe(reader)}) makes of it is not understood; {EXPECTED}"
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
        # A fixed pool that leaves several cells is a layer like any other, and stays as it is.
        if kind and not (self._fixed_pool(node) is not None and not self._single(node)):
            source = self._source(node)
            assert source is not None
            if not self._positioned(source):
                return self._find_pools(source)
            return [self._edit_pool(node, source)]
        if self._positioned(node) and not self._behind_pool(node):
            return [node]
        tops = [top for source in node.all_input_nodes if self._reaches_map(source) for top in self._find_pools(source)]
        if not tops:
            raise SurgeryError(
                f"'{place_of(node)}' ({self._describe(node)}) stands between the pool and the classifier and has no "
                "convolutional equal",
                path=place_of(node),
            )
        return tops

    def _behind_pool(self, node: torch.fx.Node) -> bool:
        """Whether a node's one cell is what a fixed pool above it left."""
        source = self._source(node)
        if source is None or not self._single(node):
            return False
        if not self._single(source):
            return self._is_pool(node) is not None
        # One that takes steps would take them where the pool is read at every cell: such a pool is a layer as it is.
        return not self._steps(node, source) and self._behind_pool(source)

    def _steps(self, node: torch.fx.Node, source: torch.fx.Node) -> bool:
        """Whether a node's map has a larger stride than the one that it reads."""
        here, above = (self.located[each.name].where if self._positioned(each) else None for each in (node, source))
        return isinstance(here, Place) and isinstance(above, Place) and here.grid.stride > above.grid.stride

    def _edit_pool(self, node: torch.fx.Node, source: torch.fx.Node) -> torch.fx.Node:
        kind = self._is_pool(node)
        assert kind is not None
        h, w = self._shape(source)[2:]
        out = self._shape(node)
        fixed = self._fixed_pool(node)
        if fixed is not None and out[2:] == (1, 1):
            return self._edit_window(node, source, kind, fixed)
        rows, columns = (out[2], out[3]) if len(out) == 4 else (1, 1)
        if (h, w) == (rows, columns):
            self._remove(node, f"at native size it maps {h}x{w} to {h}x{w}")
            return source
        if h % rows or w % columns:
            raise SurgeryError(
                f"'{place_of(node)}' pools {h}x{w} cells to {rows}x{columns}, which no fixed pool does; expected "
                f"whole factors: give the image_size that the classifier was made for, not {self.size}",
                path=place_of(node),
            )
        kernel = (h // rows, w // columns)
        single = (rows, columns) == (1, 1)
        if single and self.pool == "drop":
            self.dropped = True
            self._edit(node, "remove", "", "the pool is dropped, so that each position has its own score", kernel)
            return source
        stride = (1, 1) if single else kernel
        name = "MaxPool2d" if kind == "maximum pool" else "AvgPool2d"
        divisor = ", divisor 1" if kind == "sum pool" else ""
        self._edit(
            node,
            kind,
            f"{name}({kernel[0]}x{kernel[1]}, stride {stride[0]}{divisor})",
            "read at every position" if single else "the same factor at every size",
            kernel,
            stride,
        )
        return source

    def _edit_window(
        self, node: torch.fx.Node, source: torch.fx.Node, kind: PoolKind, pool: nn.AvgPool2d | nn.MaxPool2d
    ) -> torch.fx.Node:
        """Read a fixed pool that leaves one cell at every position: the cells that it reads, divided as it divides.

        It need not cover the map: some cells may lie beyond its kernel, and some of its kernel in the padding.
        """
        cells = self._shape(source)[2:]
        down, across = (_Window.of(pool, axis, count) for axis, count in enumerate(cells))
        kernel, dilation = (down.kernel, across.kernel), (down.dilation, across.dilation)
        divisor = None
        if isinstance(pool, nn.AvgPool2d):
            counted = down.counted * across.counted if pool.count_include_pad else math.prod(kernel)
            divisor = pool.divisor_override or counted
            divisor = None if divisor == math.prod(kernel) else divisor
        rest = (*across.rest, *down.rest)
        if cells == (1, 1) and divisor is None:
            self._remove(node, "at native size it maps 1x1 to 1x1")
            return source
        if self.pool == "drop":
            self.dropped = True
            if any(rest) or divisor is not None or dilation != (1, 1):
                self.partial = True
                self.notes.append(
                    f"'{place_of(node)}', which is dropped, does not average the {cells[0]}x{cells[1]} cells of its "
                    "map, so the mean of the scores differs from the classifier's"
                )
            self._edit(node, "remove", "", "the pool is dropped, so that each position has its own score", kernel)
            return source
        options = "".join(
            f", {name} {value}"
            for name, value in (
                ("dilation", f"{dilation[0]}x{dilation[1]}" if dilation != (1, 1) else ""),
                ("divisor", divisor or ""),
            )
            if value
        )
        self._edit(
            node,
            kind,
            f"{type(pool).__name__}({kernel[0]}x{kernel[1]}, stride 1{options})",
            "read at every position",
            kernel,
            dilation=dilation,
            divisor=divisor,
            rest=rest,
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
        **options: Any,
    ) -> None:
        self.edits[node] = Edit(
            self._path(node), kind, self._describe(node), after, why, node.name, kernel, stride, **options
        )

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
            folded[node] = (1, 1) if self._is_linear(node) else cells
            if self._is_linear(node):
                self._edit_linear(node, self._shape(sources[0])[-1], shape[-1], cells)
            elif isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
                self._edit_norm(node, module, cells)
            elif isinstance(module, nn.Softmax | nn.LogSoftmax) or self._describe(node) in {"softmax", "log_softmax"}:
                self._edit_axis(node)
            elif isinstance(module, nn.GroupNorm):
                raise SurgeryError(
                    f"'{place_of(node)}' ({self._describe(node)}) normalises a vector, and would mix the positions of "
                    "a map; expected LayerNorm or BatchNorm1d there",
                    path=place_of(node),
                )
            elif self._describe(node) == "normalize":
                self._edit_normalize(node, cells)
            elif self._slices_channels(node, sources[0], cells):
                if node.args[1][0] is Ellipsis:
                    self._edit_axis(node)
            elif cells == (1, 1) and self._by_channel(node, sources[0]):
                self._edit(
                    node,
                    "constant",
                    f"{self._describe(node)} by channel",
                    "a constant with an entry for each entry of a vector has one for each channel of a map",
                )
            elif self._squeezes(node, sources[0]):
                self._remove(node, "the map stays a map")
            elif self._describe(node) in {"cat", "concat"}:
                if cells != (1, 1):
                    raise SurgeryError(
                        f"'{place_of(node)}' puts flattened maps of {cells[0]}x{cells[1]} cells one after the other, "
                        "which no one convolution reads; expected single cells there",
                        path=place_of(node),
                    )
                if node.kwargs.get("dim", node.args[-1]) != 1:
                    self._edit_axis(node)
        return after

    def _slices_channels(self, node: torch.fx.Node, source: torch.fx.Node, cells: tuple[int, int]) -> bool:
        """Whether a node takes some entries of vectors (B, C), as ``[:, 2:5]`` or ``[..., 2:5]``, and nothing else."""
        if node.target is not operator.getitem or cells != (1, 1) or len(self._shape(source)) != 2:
            return False
        index: Any = node.args[1]
        if not isinstance(index, tuple) or len(index) != 2 or not isinstance(index[1], slice):
            return False
        return index[0] is Ellipsis or index[0] == slice(None)

    def _by_channel(self, node: torch.fx.Node, source: torch.fx.Node) -> bool:
        """Whether a node computes on vectors with constants of the net that have an entry for each channel."""
        if self._describe(node).strip("_") not in _ARITHMETIC or self._shape(node) != self._shape(source):
            return False
        channels = self._shape(source)[-1]
        constants = {self._shape(n) for n in node.all_input_nodes if not reads_picture(n)}
        return bool(constants) and constants <= {(channels,), (1, channels)}

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
                f"'{place_of(node)}' reshapes vectors {before[1:]} to {after[1:]}, which has no convolutional equal",
                path=place_of(node),
            )
        return True

    def _edit_linear(self, node: torch.fx.Node, entries: int, outputs: int, cells: tuple[int, int]) -> None:
        rows, columns = cells
        module = self._module(node)
        if module is not None and "weight" not in module._parameters:
            remedy = (
                'torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")'
                if parametrize.is_parametrized(module)
                else "torch.nn.utils.remove_weight_norm(layer) or remove_spectral_norm(layer)"
            )
            raise SurgeryError(
                f"'{place_of(node)}' ({self._describe(node)}) computes its weight from others, as by weight norm, and "
                f"the convolution in its place would not; expected a weight of its own: {remedy} gives it one",
                path=place_of(node),
            )
        if entries % (rows * columns):
            raise SurgeryError(
                f"'{place_of(node)}' has {entries} inputs, not a multiple of the {rows}x{columns} cells of the map "
                "before it",
                path=place_of(node),
            )
        self._edit(
            node,
            "convolution",
            f"Conv2d({entries // (rows * columns)}, {outputs}, {rows}x{columns})",
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

    def _edit_normalize(self, node: torch.fx.Node, cells: tuple[int, int]) -> None:
        if cells != (1, 1):
            raise SurgeryError(
                f"'{place_of(node)}' (normalize) takes the length of a flattened map of {cells[0]}x{cells[1]} cells, "
                "which no layer of a map does; expected it behind a linear layer or a pool",
                path=place_of(node),
            )
        if (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 1)) != 1:
            self._edit_axis(node)

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
                f"'{place_of(offenders[0])}' follows the dropped pool and is not linear, so the mean of the scores "
                "differs from the classifier's"
            )
        return bool(offenders)

    def _affine(self, node: torch.fx.Node) -> bool:
        """Whether what becomes of a node commutes with a mean over positions."""
        if node.op == "output":
            return True
        if node in self.edits and self.edits[node].kind == "remove":
            return self._is_pool(node) not in ("maximum pool", "sum pool")
        if node in self.edits and self.edits[node].kind == "constant":
            return "div" not in self._describe(node) or reads_picture(node.all_input_nodes[0])
        affine = nn.Linear | nn.Conv2d | nn.Dropout | nn.BatchNorm1d | nn.BatchNorm2d | nn.Identity
        names = {"cat", "concat", "add", "permute", "transpose", "getitem"}
        return isinstance(self._module(node), affine) or self._is_linear(node) or self._describe(node) in names

    def _skip_removed(self, node: torch.fx.Node) -> torch.fx.Node:
        """The node that stands for this one once the edits are done."""
        while node in self.edits and self.edits[node].kind == "remove":
            source = self._source(node)
            assert source is not None
            node = source
        return node
