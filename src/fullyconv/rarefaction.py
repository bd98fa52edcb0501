"""Filter rarefaction: the same net, denser (paper, section 3.2; Giusti et al. 2013; Holschneider's algorithme à trous).

A layer that strides keeps every s-th cell of its output. Taking the stride out keeps them all, and whatever comes
behind must then skip as many cells inside its window as it used to: its dilation and its padding are multiplied by the
strides taken out before it. The cells that the net had are still there, every s-th, with the same values.
"""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fullyconv import postconditions
from fullyconv.errors import ConfigError, SurgeryError
from fullyconv.locate import Located, locate, locate_outputs
from fullyconv.places import Lost, Place
from fullyconv.tracing import copied, place_of, trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Pair = tuple[int, int]
EXPECTED = (
    "expected convolutions, maximum and average pools, constant padding, slices, and layers that work on each cell by "
    "itself, from the first stride that is taken out"
)


def rarefy(net: nn.Module, *, stride: int = 1, channels: int = 3, size: int = 224, verify: bool = True) -> nn.Module:
    """A denser copy of a net: its output map has a cell every ``stride`` pixels, with the same weights.

    Along each axis, every map whose stride is S in the net has the greatest common divisor of S and ``stride`` in the
    copy. So with f = S / stride at the output, ``rarefy(net)(x)[..., ::f, ::f]`` equals ``net(x)`` at every size, to
    rounding, padding included; the cells between are those of the net on shifted pictures
    (`fullyconv.stitching.shift_and_stitch`). Where the output has that stride already, nothing changes. Every layer
    behind a stride s that is taken out costs s * s times as much.

    Args:
        net: returns a map (B, C, h, w), or several in a tuple, list or dict.
        stride: pixels between cells wanted; a divisor of the stride that the (coarsest) output has. 8 of a net of
            stride 32 is today's dilated net.
        channels: of the picture.
        size: side of a square picture that the net runs on, in pixels.
        verify: check the equality above on a small picture, and that it is not met by a dead net.

    Returns:
        a traced copy with the same parameter names. What the net does only in training is gone.

    Raises:
        ConfigError: ``stride`` does not divide the net's.
        SurgeryError: the net cannot be traced, does not run at ``size``, does not return maps, or has a layer without a
            rarefied equal: one that sees the whole picture, interpolates, or moves cells about; says where and why.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)).eval()
        >>> dense = rarefy(net)
        >>> x = torch.rand(1, 3, 41, 50)
        >>> net(x).shape, dense(x).shape
        (torch.Size([1, 4, 7, 9]), torch.Size([1, 4, 27, 36]))
        >>> torch.allclose(dense(x)[..., ::4, ::4], net(x), atol=1e-6)
        True
    """
    rarefied, outputs, least = _rarefied(net, stride, channels, size)
    if verify:
        try:
            locate_outputs(net, channels=channels, size=(least, least))
        except SurgeryError:  # such as a reflection, which needs more than a cell
            least = size
        _verify(net, rarefied, outputs, stride, channels, least)
    return rarefied


class DilatedAvgPool2d(nn.Module):
    """`nn.AvgPool2d` with a dilation, which torch's has not: a depthwise convolution with ones.

    Args:
        kernel_size, stride, padding: (rows, columns), as in `nn.AvgPool2d`.
        dilation: cells from one that is averaged to the next.
        beyond: further cells at the end that windows may cover, never counted: ceil mode.
        count_include_pad, divisor_override: as in `nn.AvgPool2d`.

    Example:
        >>> x = torch.rand(1, 3, 9, 9)
        >>> torch.allclose(DilatedAvgPool2d((2, 2), stride=(2, 2))(x), nn.AvgPool2d(2)(x))
        True
    """

    def __init__(
        self,
        kernel_size: Pair,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        beyond: Pair = (0, 0),
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = kernel_size, stride, padding, dilation
        self.beyond, self.count_include_pad, self.divisor_override = beyond, count_include_pad, divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h', w')."""
        sums = self._sum(self._pad(input, 0))
        if self.divisor_override is not None:
            return sums / self.divisor_override
        if self.beyond == (0, 0) and (self.count_include_pad or self.padding == (0, 0)):
            return sums / math.prod(self.kernel_size)
        # Ones made from the map itself, whatever it holds: they lie where it lies.
        ones = input[:, :1].pow(0)
        return sums / self._sum(self._pad(ones, int(self.count_include_pad)))

    def _pad(self, x: Tensor, value: float) -> Tensor:
        (top, left), (below, right) = self.padding, self.beyond
        return F.pad(F.pad(x, (left, left, top, top), value=value), (0, right, 0, below))

    def _sum(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[1], 1, *self.kernel_size, dtype=x.dtype, device=x.device)
        return F.conv2d(x, ones, None, self.stride, 0, self.dilation, groups=x.shape[1])

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"beyond={self.beyond}, count_include_pad={self.count_include_pad}"
        )


def _rarefied(net: nn.Module, stride: int, channels: int, size: int) -> tuple[torch.fx.GraphModule, list[Place], int]:
    """The rarefied net, where the net's own outputs lie, and the smallest picture that gives each of them two cells."""
    graph_module = trace(copied(net))
    located = locate(graph_module, channels=channels, size=(size, size))
    outputs = _outputs(net, graph_module, located)
    places = list(outputs.values())
    coarsest = max(grid.stride for place in places for grid in (place.down, place.across))
    if stride < 1 or coarsest % stride:
        raise ConfigError(
            f"stride: got {stride}; expected a divisor of {float(coarsest):g}, the pixels between the cells of what "
            f"{type(net).__name__} returns",
            where="stride",
        )
    if any(_removed(grid.stride, stride) > 1 for place in places for grid in (place.down, place.across)):
        _Rarefier(graph_module, located, stride).walk()
        graph_module.delete_all_unused_submodules()
        graph_module.graph.lint()
        graph_module.recompile()
    graph_module.training = net.training  # that of its layers was copied with them
    spare = min(
        (entry.shape[axis] - (2 if name in outputs else 1)) * grid.stride
        for name, entry in located.items()
        if isinstance(place := entry.where, Place)
        for grid, axis in zip((place.down, place.across), place.axes, strict=True)
    )
    return graph_module, places, size - math.floor(spare)


def _outputs(net: nn.Module, graph_module: torch.fx.GraphModule, located: Mapping[str, Located]) -> dict[str, Place]:
    """Where what the net returns lies, by node, in order.

    Raises:
        SurgeryError: some of it is no map.
    """
    (returned,) = (node.args for node in graph_module.graph.nodes if node.op == "output")
    outputs = {}
    for node in (leaf for leaf in tree_leaves(returned) if isinstance(leaf, torch.fx.Node)):
        entry = located.get(node.name)
        place = entry.where if entry is not None else None
        if entry is None or not isinstance(place, Place) or len(entry.shape) != 4 or place.axes != (-2, -1):
            reason = (
                place.reason if isinstance(place, Lost) else f"its shape is {entry.shape}" if entry else "no tensor"
            )
            raise SurgeryError(
                f"{type(net).__name__} returns '{place_of(node)}', which is no map (B, C, h, w) of cells on the "
                f"picture: {reason}; expected a net that returns maps. Turn a classifier into one with "
                "convolutionalize first",
                path=place_of(node),
            )
        outputs[node.name] = place
    return outputs


def _verify(
    net: nn.Module,
    rarefied: torch.fx.GraphModule,
    outputs: Sequence[Place],
    stride: int,
    channels: int,
    size: int,
) -> None:
    """Check that the net's own cells are among those of the rarefied net.

    Raises:
        SurgeryError: they are not.
    """
    parameter = next(iter(net.parameters()), torch.empty(0))
    pictures = postconditions.random_pictures(channels, size, torch.Generator().manual_seed(0)).to(parameter)
    training = [m for m in (*net.modules(), *rarefied.modules()) if m.training]
    net.eval()
    rarefied.eval()
    try:
        with torch.no_grad():
            want = _maps(net(pictures))
            if any(postconditions.too_alike(one) for one in want):
                # Untrained weights often let the signal die, and a dead net equals anything.
                net = copy.deepcopy(net)
                postconditions.revive(net, pictures)
                rarefied, _, _ = _rarefied(net, stride, channels, size)
                want = _maps(net(pictures))
                if any(postconditions.too_alike(one) for one in want):
                    raise SurgeryError(
                        f"{type(net).__name__} gives two different pictures the same maps, so that nothing can be "
                        "checked; expected live activations. Load trained weights, or pass verify=False"
                    )
            got = _maps(rarefied(pictures))
    finally:
        for m in training:
            m.training = True
    for one, other, place in zip(want, got, outputs, strict=True):
        own = other[..., :: _removed(place.down.stride, stride), :: _removed(place.across.stride, stride)]
        error = float((own - one).abs().max() / (one[0] - one[1]).abs().max()) if own.shape == one.shape else math.inf
        tolerance = 1000 * torch.finfo(one.dtype).eps
        if not error < tolerance:
            raise SurgeryError(
                f"at {size}x{size} the cells {tuple(own.shape)} that the rarefied net shares with {type(net).__name__} "
                f"{tuple(one.shape)} differ by {error:.1e} of the difference between two pictures, expected less than "
                f"{tolerance:.0e}: some layer's result depends on how many cells its map has"
            )


def _maps(returned: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class _Window:
    """What a convolution or a pool was called with, (rows, columns) each.

    Attributes:
        before, after: cells of padding at either end.
        beyond: further cells at the end that are covered in ceil mode.
    """

    kind: Literal["convolution", "maximum pool", "average pool"]
    kernel: Pair
    stride: Pair
    dilation: Pair
    before: Pair
    after: Pair
    beyond: Pair = (0, 0)
    groups: int = 1
    count_include_pad: bool = True
    divisor_override: int | None = None

    def rarefied(self, stride: Pair, removed: Pair) -> _Window:
        """The same window with another stride, on a map from which strides were removed."""
        return _Window(
            self.kind,
            self.kernel,
            stride,
            _times(self.dilation, removed),
            _times(self.before, removed),
            _times(self.after, removed),
            _times(self.beyond, removed),
            self.groups,
            self.count_include_pad,
            self.divisor_override,
        )


def _times(a: Pair, b: Pair) -> Pair:
    return a[0] * b[0], a[1] * b[1]


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    first, last = int(value[0]), int(value[-1])
    return first, last


def first_unbounded(graph: torch.fx.Graph, located: Mapping[str, Located]) -> torch.fx.Node | None:
    """The first node of a graph whose result depends on the whole picture, or lies nowhere on it."""
    wheres = ((node, located[node.name].where) for node in graph.nodes if node.name in located)
    return next((node for node, where in wheres if isinstance(where, Lost) or _sees_everything(where)), None)


def _sees_everything(where: Place | Lost | None) -> bool:
    return isinstance(where, Place) and math.inf in (where.down.field, where.across.field)


def _removed(grid_stride: Fraction, stride: int) -> int:
    """By how much a map of this stride becomes denser when all are to have its common divisor with ``stride``."""
    return grid_stride.numerator // math.gcd(grid_stride.numerator, stride * grid_stride.denominator)


_SIGNATURES = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    "pad": ("input", "pad", "mode", "value"),
}


class _Rarefier:
    """One walk over one graph, which is changed on the way."""

    def __init__(self, graph_module: torch.fx.GraphModule, located: Mapping[str, Located], stride: int) -> None:
        self.graph_module, self.graph = graph_module, graph_module.graph
        self.located, self.stride = located, stride
        self.modules = dict(graph_module.named_modules())
        self.calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")

    def walk(self) -> None:
        # What is known of a node is known by its name, and nodes that are put in have none that was located.
        for node in list(self.graph.nodes):
            if node.op in ("placeholder", "get_attr", "output") or node.name not in self.located:
                continue
            sources = [n for n in self._sources(node) if self._where(n) is not None]
            removed = {self._removed(n) for n in (node, *sources)}
            if removed == {(1, 1)} or self._cell_by_cell(node, sources):
                continue
            self._refuse_unplaced(node)
            if not (self._rarefy_window(node) or self._rarefy_pad(node) or self._rarefy_slice(node)):
                self._refuse(node, "has no rarefied equal")

    # What is known of a node

    def _where(self, node: torch.fx.Node) -> Place | Lost | None:
        entry = self.located.get(node.name)
        return entry.where if entry is not None else None

    def _shape(self, node: Any) -> tuple[int, ...]:
        entry = self.located.get(node.name) if isinstance(node, torch.fx.Node) else None
        return entry.shape if entry is not None else ()

    def _removed(self, node: torch.fx.Node) -> Pair:
        where = self._where(node)
        if not isinstance(where, Place):
            return (1, 1)
        return _removed(where.down.stride, self.stride), _removed(where.across.stride, self.stride)

    def _sources(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """The tensors that a node reads, at once or out of a tuple or a size."""
        found = []
        for n in node.all_input_nodes:
            found += [n] if n.name in self.located else self._sources(n)
        return found

    def _cell_by_cell(self, node: torch.fx.Node, sources: Sequence[torch.fx.Node]) -> bool:
        """Whether each cell of the result depends on the same cell of the sources, and on no other."""
        where, places = self._where(node), [self._where(n) for n in sources]
        if not isinstance(where, Place) or _sees_everything(where):
            return False
        maps = [p for p in places if isinstance(p, Place)]
        joined = maps[0].join(*maps[1:])
        extents = {self._extent(n) for n in (node, *sources)}
        return (
            len(maps) == len(places)
            and len(extents) == 1
            and (where.down, where.across) == (joined.down, joined.across)
        )

    def _extent(self, node: torch.fx.Node) -> Pair:
        where, shape = self._where(node), self._shape(node)
        assert isinstance(where, Place)
        return shape[where.axes[0]], shape[where.axes[1]]

    def _module(self, node: torch.fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    # What is refused

    def _refuse_unplaced(self, node: torch.fx.Node) -> None:
        where = self._where(node)
        if isinstance(where, Lost):
            self._refuse(node, f"cannot be rarefied: {where.reason}")
        if _sees_everything(where):
            first = first_unbounded(self.graph, self.located)
            since = f", from '{place_of(first)}' on" if first is not None and first is not node else ""
            self._refuse(node, f"cannot be rarefied: it sees the whole picture{since}, and so how dense its map is")

    def _refuse(self, node: torch.fx.Node, why: str) -> None:
        if node.target is operator.getitem and not self._shape(node.args[0]):
            node = node.all_input_nodes[0]  # what gave the tuple is at fault, not who took it apart
        place, module = place_of(node), self._module(node)
        what = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        raise SurgeryError(f"'{place}' ({what}) {why}; {EXPECTED}", path=place)

    # What is changed

    def _rarefy_window(self, node: torch.fx.Node) -> bool:
        window = self._window(node)
        if window is None:
            return False
        source = node.all_input_nodes[0]
        before, after = self._removed(source), self._removed(node)
        stride = (window.stride[0] * before[0] // after[0], window.stride[1] * before[1] // after[1])
        new = window.rarefied(stride, before)
        if new.kind == "convolution":
            self._put_convolution(node, source, new)
        elif new.kind == "maximum pool":
            self._put_module(node, source, _max_pool(new))
        else:
            self._put_module(node, source, _average_pool(new))
        return True

    def _window(self, node: torch.fx.Node) -> _Window | None:
        """What a node that slides a window was called with; None if it is no such node.

        Raises:
            SurgeryError: it is, but with options that have no rarefied equal.
        """
        module = self._module(node)
        if isinstance(module, nn.Conv2d):
            padded = any(_pair(module.padding)) if not isinstance(module.padding, str) else module.padding == "same"
            if module.padding_mode != "zeros" and padded:
                self._refuse(node, f"pads with padding_mode '{module.padding_mode}', which has no rarefied equal")
            options: dict[str, Any] = {
                name: getattr(module, name) for name in ("kernel_size", "stride", "padding", "dilation", "groups")
            }
            return _convolution(options)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            name = "max_pool2d" if isinstance(module, nn.MaxPool2d) else "avg_pool2d"
            options = {key: getattr(module, key) for key in _SIGNATURES[name][1:]}
        elif (called := self._called(node)) is not None and called[0] != "pad":
            name, options = called
        else:
            return None
        if name == "conv2d":
            weight = options["weight"]
            return _convolution(options | {"kernel_size": self._shape(weight)[2:]})
        return _pool(options, average=name == "avg_pool2d")

    def _called(self, node: torch.fx.Node) -> tuple[str, dict[str, Any]] | None:
        """Name and arguments of a function that is known here.

        Raises:
            SurgeryError: an option that must be a constant depends on the picture.
        """
        name = getattr(node.target, "__name__", "")
        if node.op != "call_function" or name not in _SIGNATURES:
            return None
        options = dict(zip(_SIGNATURES[name], node.args, strict=False)) | dict(node.kwargs)
        for key, value in options.items():
            computed = any(isinstance(leaf, torch.fx.Node) for leaf in tree_leaves(value))
            if computed and key not in ("input", "weight", "bias"):
                self._refuse(node, f"has no rarefied equal, since its '{key}' is computed from the size of the picture")
        return name, options

    def _put_convolution(self, node: torch.fx.Node, source: torch.fx.Node, window: _Window) -> None:
        module, padding = self._module(node), window.before
        if window.before != window.after:
            (top, left), (bottom, right) = window.before, window.after
            with self.graph.inserting_before(node):
                padded = self.graph.call_function(F.pad, (source, (left, right, top, bottom)))
            node.replace_input_with(source, padded)
            source, padding = padded, (0, 0)
        if isinstance(module, nn.Conv2d) and self.calls[node.target] == 1:
            module.stride, module.dilation, module.padding = window.stride, window.dilation, padding
            return
        with self.graph.inserting_before(node):
            if isinstance(module, nn.Conv2d):
                # Called elsewhere too, at other dilations perhaps: the weights are read where they are.
                weight = self.graph.get_attr(f"{node.target}.weight")
                bias = self.graph.get_attr(f"{node.target}.bias") if module.bias is not None else None
            else:
                called = self._called(node)
                assert called is not None
                weight, bias = called[1]["weight"], called[1].get("bias")
            fresh = self.graph.call_function(
                F.conv2d, (source, weight, bias, window.stride, padding, window.dilation, window.groups)
            )
        self._replace(node, fresh)

    def _put_module(self, node: torch.fx.Node, source: torch.fx.Node, module: nn.Module) -> None:
        """Put a layer without weights in place of a node; one that is called elsewhere too stays as it is there."""
        alone = node.op == "call_module" and self.calls[node.target] == 1
        path = str(node.target) if alone else f"{node.name}_rarefied"
        self.graph_module.add_submodule(path, module)
        with self.graph.inserting_before(node):
            fresh = self.graph.call_module(path, (source,))
        self._replace(node, fresh)

    def _replace(self, node: torch.fx.Node, fresh: torch.fx.Node) -> None:
        name = node.name
        fresh.meta = node.meta
        node.replace_all_uses_with(fresh)
        self.graph.erase_node(node)
        fresh.name = name

    def _rarefy_pad(self, node: torch.fx.Node) -> bool:
        module, called = self._module(node), self._called(node)
        if isinstance(module, nn.ConstantPad2d):
            amounts, value = module.padding, module.value
        elif called is not None and called[0] == "pad" and called[1].get("mode", "constant") == "constant":
            amounts, value = called[1]["pad"], called[1].get("value") or 0.0
        else:
            return False
        down, across = self._removed(node)
        factors = (across, across, down, down)
        more = tuple(a * f for a, f in zip(amounts, factors, strict=False)) + tuple(amounts[4:])
        source = node.all_input_nodes[0]
        if module is not None:
            self._put_module(node, source, nn.ConstantPad2d(more, value))  # type: ignore[arg-type]
            return True
        with self.graph.inserting_before(node):
            fresh = self.graph.call_function(F.pad, (source, more), {"value": value})
        self._replace(node, fresh)
        return True

    def _rarefy_slice(self, node: torch.fx.Node) -> bool:
        """``x[..., a:b:s, c:d:t]`` with constants; ends that count from the far border do so in denser cells."""
        if node.target is not operator.getitem:
            return False
        source, index = node.args
        rank = len(self._shape(source))
        slices = _slices(index, rank)
        if slices is None or rank != 4:
            return False
        assert isinstance(source, torch.fx.Node)
        before, after = self._removed(source), self._removed(node)
        for axis in (0, 1):
            old = slices[2 + axis]
            start, stop, step = (old.start, old.stop, 1 if old.step is None else old.step)
            slices[2 + axis] = slice(
                None if start is None else start * before[axis],
                None if stop is None else stop * before[axis],
                step * before[axis] // after[axis],
            )
        node.update_arg(1, tuple(slices))
        return True


def _slices(index: Any, rank: int) -> list[slice] | None:
    """An index as one slice for each axis; None if it is not made of constant slices."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [item if item is Ellipsis else None for item in items]:
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (rank - len(items) + 1)
    items += [slice(None)] * (rank - len(items))
    for item in items:
        if not isinstance(item, slice):
            return None
        if any(not isinstance(v, int | None) for v in (item.start, item.stop, item.step)):
            return None
    return items


def _convolution(options: Mapping[str, Any]) -> _Window:
    kernel, dilation = _pair(options["kernel_size"]), _pair(options.get("dilation", 1))
    padding = options.get("padding", 0)
    if padding == "same":
        # torch puts the odd one at the end.
        total = _times((kernel[0] - 1, kernel[1] - 1), dilation)
        before = (total[0] // 2, total[1] // 2)
        after = (total[0] - before[0], total[1] - before[1])
    else:
        before = after = _pair(0 if padding == "valid" else padding)
    stride, groups = _pair(options.get("stride", 1)), int(options.get("groups", 1))
    return _Window("convolution", kernel, stride, dilation, before, after, groups=groups)


def _pool(options: Mapping[str, Any], *, average: bool) -> _Window:
    kernel, dilation = _pair(options["kernel_size"]), _pair(options.get("dilation", 1))
    stride, padding = _pair(options.get("stride") or kernel), _pair(options.get("padding", 0))
    beyond = (0, 0)
    if options.get("ceil_mode"):
        # The last window may hang over the end by less than a stride, but must begin on the map or the padding before.
        rows, columns = (
            min(s - 1, d * (k - 1) - p) for s, d, k, p in zip(stride, dilation, kernel, padding, strict=True)
        )
        beyond = (rows, columns)
    return _Window(
        "average pool" if average else "maximum pool",
        kernel,
        stride,
        dilation,
        padding,
        padding,
        beyond,
        count_include_pad=bool(options.get("count_include_pad", True)),
        divisor_override=options.get("divisor_override"),
    )


def _max_pool(window: _Window) -> nn.Module:
    fits = all(
        2 * p <= k for p, k in zip(window.before, window.kernel, strict=True)
    )  # torch refuses more, dilated or not
    if fits and window.beyond == (0, 0):
        return nn.MaxPool2d(window.kernel, window.stride, window.before, window.dilation)
    (top, left), (bottom, right) = window.before, window.beyond
    around = (left, left + right, top, top + bottom)
    pool = nn.MaxPool2d(window.kernel, window.stride, 0, window.dilation)
    return nn.Sequential(nn.ConstantPad2d(around, -math.inf), pool)


def _average_pool(window: _Window) -> nn.Module:
    return DilatedAvgPool2d(
        window.kernel,
        stride=window.stride,
        padding=window.before,
        dilation=window.dilation,
        beyond=window.beyond,
        count_include_pad=window.count_include_pad,
        divisor_override=window.divisor_override,
    )
