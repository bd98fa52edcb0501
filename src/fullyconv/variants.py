"""Variants of a classifier, made before surgery: more input channels, or convolutions in the place of pools.

Both work on a copy, need no names, and give nets that `fullyconv.surgery.plan` accepts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.fx
from torch import Tensor, nn

from fullyconv.errors import SurgeryError
from fullyconv.locate import Located, locate
from fullyconv.tracing import POOL_ARGUMENTS, copied, functional_pool, place_of, trace


def widen(weight: Tensor, channels: int) -> Tensor:
    """A convolution's weight (out, in, h, w) for more input channels: (out, ``channels``, h, w).

    The first channels keep their weights, and each new one gets their mean, as the authors do for RGB-D (section 5 of
    the paper, NYUDv2).

    Example:
        >>> widen(torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1), 4).flatten().tolist()
        [1.0, 2.0, 6.0, 3.0]
    """
    new = channels - weight.shape[1]
    return torch.cat([weight, weight.mean(1, keepdim=True).expand(-1, new, -1, -1)], 1)


def widen_input(net: nn.Module, channels: int, *, reads: int = 3) -> nn.Module:
    """A copy of a net that reads pictures of more channels, for early fusion of colour with depth.

    Every convolution that reads the picture is widened by `widen`, and keeps its bias. Where the new channels are zero,
    the copy gives what the net gives. Load weights published for ``reads`` channels before widening.

    Args:
        net: takes (B, reads, H, W).
        channels: of the copy, at least ``reads``.
        reads: channels that the net takes now.

    Raises:
        SurgeryError: something other than an ungrouped convolution of ``reads`` channels reads the picture, or
            ``channels`` are fewer, or the net cannot be traced; says where.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> widen_input(net, 4)(torch.rand(1, 4, 7, 7)).shape
        torch.Size([1, 8, 5, 5])
    """
    if channels < reads:
        raise SurgeryError(f"cannot widen {type(net).__name__} from {reads} to {channels} channels; expected more")
    wide = copied(net)
    for layer in set(_first_convolutions(wide, reads)):
        if "weight" not in layer._parameters:
            raise SurgeryError(
                f"{type(net).__name__}: the weights of the {type(layer).__name__} that reads the picture are computed, "
                "as by weight norm; expected a parameter. Make them one first, with "
                "torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm"
            )
        layer.weight = nn.Parameter(widen(layer.weight.detach(), channels), layer.weight.requires_grad)
        layer.in_channels = channels
    return wide


def _first_convolutions(net: nn.Module, reads: int) -> Iterator[nn.Conv2d]:
    """The convolutions of a net that read its picture."""
    reading = [next(iter(trace(net).graph.nodes))]
    while reading:
        source = reading.pop()
        for node in source.users:
            if _asks_shape(node):
                continue
            if _works_by_channel(net, node):
                reading.append(node)
                continue
            layer = _layer(net, node)
            if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
                raise SurgeryError(
                    f"'{place_of(node)}' ({_describe(net, node)}) reads the picture; expected an ungrouped Conv2d, "
                    "whose weights can be widened. Leave what comes before it, such as a normalisation, to the "
                    "model's input",
                    path=place_of(node),
                )
            if layer.in_channels != reads:
                raise SurgeryError(
                    f"'{place_of(node)}' reads pictures of {layer.in_channels} channels, expected {reads}; say how "
                    f"many with reads={layer.in_channels}",
                    path=place_of(node),
                )
            yield layer


def _name(node: torch.fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _describe(net: nn.Module, node: torch.fx.Node) -> str:
    if node.op != "call_module":
        return _name(node)
    layer = net.get_submodule(str(node.target))
    return repr(layer) if next(layer.children(), None) is None else type(layer).__name__


def _asks_shape(node: torch.fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in {"shape", "dtype", "device"}
    return node.op == "call_method" and node.target in {"size", "dim"}


def _works_by_channel(net: nn.Module, node: torch.fx.Node) -> bool:
    """Whether a node leaves each channel of the picture as it is, but for its border."""
    if node.op == "call_module":
        return isinstance(net.get_submodule(str(node.target)), nn.Identity | nn.ZeroPad2d | nn.ReflectionPad2d)
    return _name(node) in {"pad", "contiguous", "float"}


def _layer(net: nn.Module, node: torch.fx.Node) -> nn.Module | None:
    """The layer whose work a node is: a leaf of the graph, or a convolution with a forward of its own."""
    if node.op == "call_module":
        return net.get_submodule(str(node.target))
    around = list(node.meta.get("nn_module_stack", {}))
    # A weight that is computed, as by weight standardisation, would not be the same one beside others.
    held = len(node.args) > 1 and isinstance(node.args[1], torch.fx.Node) and node.args[1].op == "get_attr"
    return net.get_submodule(around[-1]) if around and held and _name(node) == "conv2d" else None


_OTHERS = {"lp_pool2d", "max_pool2d_with_indices", "fractional_max_pool2d", "fractional_max_pool2d_with_indices"}


def convolve_pools(net: nn.Module, *, channels: int = 3, size: int = 224) -> torch.fx.GraphModule:
    """A copy of a net whose pools are strided convolutions (Springenberg et al. 2015): is pooling needed?

    Every maximum or average pool, module or function, becomes a convolution of the same kernel, stride, padding and
    dilation from all channels to all channels, so that every map lies where it lay. It begins as the average over the
    window, each channel for itself: a net of average pools gives what it gave, but for windows of which a part is not
    counted (``count_include_pad=False`` at the border, ceil mode at the far edge), where zeros count. Global pools, by
    kind or because one cell is left at ``size``, stay for surgery.

    Args:
        net: takes (B, channels, size, size) and more.
        channels: of that picture.
        size: of the picture that the net was made for, in pixels.

    Returns:
        The traced net. A pool called once keeps its name, so that its weight is ``<name>.weight``.

    Raises:
        SurgeryError: a pool of another kind, or one with a kernel that depends on the picture; a net that cannot be
            traced or does not run at ``size``; says where.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
        >>> convolve_pools(net, size=32).get_submodule("2")
        Conv2d(8, 8, kernel_size=(2, 2), stride=(2, 2))
    """
    convolved = trace(copied(net))
    located = locate(convolved, channels=channels, size=(size, size))
    nodes = list(convolved.graph.nodes)
    called = [node.target for node in nodes if node.op == "call_module"]
    like = next(iter(net.parameters()), torch.empty(0))
    for node in nodes:
        pool = _pool(convolved, node, located)
        if pool is None:
            continue
        inputs = located[node.all_input_nodes[0].name].shape[1]
        end = _end_padding(pool, node)
        once = node.op == "call_module" and called.count(node.target) == 1
        path = str(node.target) if once else f"{node.name}_convolution"
        source = node.all_input_nodes[0]
        if any(end):
            convolved.add_submodule(f"{path}_end", nn.ZeroPad2d((0, end[1], 0, end[0])))
            with convolved.graph.inserting_before(node):
                source = convolved.graph.call_module(f"{path}_end", (source,))
        convolved.add_submodule(path, _averaging(pool, inputs, like))
        with convolved.graph.inserting_after(node):
            fresh = convolved.graph.call_module(path, (source,))
        node.replace_all_uses_with(fresh)
        convolved.graph.erase_node(node)
        fresh.name = node.name
    convolved.delete_all_unused_submodules()
    convolved.graph.lint()
    convolved.recompile()
    convolved.train(net.training)
    return convolved


def _pool(
    graph_module: torch.fx.GraphModule, node: torch.fx.Node, located: Mapping[str, Located]
) -> nn.MaxPool2d | nn.AvgPool2d | None:
    """The pool that a node is, as a module; None for anything else, and for a global pool."""
    name = _name(node)
    layer = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    functional = node.op == "call_function" and name in POOL_ARGUMENTS
    other = isinstance(layer, nn.LPPool2d | nn.FractionalMaxPool2d) or (layer is None and name in _OTHERS)
    if not (functional or other or isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)):
        return None
    if node.name in located and located[node.name].shape[2:] == (1, 1):
        return None
    if functional:
        layer = functional_pool(node)
        if layer is None:
            raise SurgeryError(
                f"'{place_of(node)}' ({name}) has a kernel, stride or padding that depends on the picture, which no "
                "convolution has; expected constants",
                path=place_of(node),
            )
    if other or (isinstance(layer, nn.MaxPool2d) and layer.return_indices):
        raise SurgeryError(
            f"'{place_of(node)}' ({_describe(graph_module, node)}) has no strided convolution in its place; expected "
            "maximum or average pools that return a map",
            path=place_of(node),
        )
    assert isinstance(layer, nn.MaxPool2d | nn.AvgPool2d)
    return layer


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _end_padding(pool: nn.MaxPool2d | nn.AvgPool2d, node: torch.fx.Node) -> tuple[int, int]:
    """Rows and columns of zeros at the end, with which a convolution makes as many cells as a pool in ceil mode."""
    if not pool.ceil_mode:
        return (0, 0)
    kernel, stride, padding = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)
    dilation = _pair(pool.dilation) if isinstance(pool, nn.MaxPool2d) else (1, 1)
    # A window that would begin in the padding at the end is left out, at some sizes and not at others.
    if any(s + p > d * (k - 1) + 1 for k, s, p, d in zip(kernel, stride, padding, dilation, strict=True)):
        raise SurgeryError(
            f"'{place_of(node)}' ({pool}) pools in ceil mode with a stride and padding beyond its kernel, so that the "
            "number of its cells is not a convolution's; expected stride + padding up to the kernel",
            path=place_of(node),
        )
    return (stride[0] - 1, stride[1] - 1)


def _averaging(pool: nn.MaxPool2d | nn.AvgPool2d, channels: int, like: Tensor) -> nn.Conv2d:
    """A convolution where a pool was, that takes the average over its window."""
    dilation = _pair(pool.dilation) if isinstance(pool, nn.MaxPool2d) else (1, 1)
    kernel, stride, padding = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)
    convolution = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, device="meta")
    divisor = getattr(pool, "divisor_override", None) or math.prod(kernel)
    share = torch.eye(channels, dtype=like.dtype, device=like.device) / divisor
    convolution.weight = nn.Parameter(share[:, :, None, None].repeat(1, 1, *kernel))
    convolution.bias = nn.Parameter(share.new_zeros(channels))
    return convolution
