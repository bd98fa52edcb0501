"""The changes that surgery makes to a graph, as data, and how each is made."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Literal

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["valid", "same"]
Kind = Literal["convolution", "average pool", "maximum pool", "sum pool", "remove", "norm", "axis", "constant"]


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
            a fixed factor; a layer is removed; a norm, an axis or a constant with an entry for each channel is moved
            from vectors to maps.
        before: the layer as it was.
        after: the layer as it becomes; "" when removed.
        why: the reason, for people.
        node: name of the node in the graph; a module that is called twice has two.
        kernel: of the convolution or the pool, (rows, columns); of a pool that is dropped, too.
        stride: of the pool.
        dilation: of a maximum pool.
        divisor: of an average pool; None: the number of cells in its kernel.
        rest: cells of the map at native size that a pool of one cell does not reach, in the order of `F.pad`.
    """

    path: str
    kind: Kind
    before: str
    after: str
    why: str
    node: str
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    divisor: int | None = None
    rest: tuple[int, int, int, int] = (0, 0, 0, 0)


def perform(dense: torch.fx.GraphModule, edit: Edit, padding: Padding) -> None:
    """Make one edit, in place."""
    node = next(n for n in dense.graph.nodes if n.name == edit.node)
    source = node.all_input_nodes[0]
    if edit.kind == "remove":
        node.replace_all_uses_with(source)
        dense.graph.erase_node(node)
        return
    old = dense.get_submodule(str(node.target)) if node.op == "call_module" else None
    if edit.kind == "axis" and old is None:
        _move_axis(node)
        return
    if edit.kind == "constant":
        for constant in (n for n in node.all_input_nodes if not reads_picture(n)):
            with dense.graph.inserting_before(node):
                node.replace_input_with(constant, dense.graph.call_method("reshape", (constant, -1, 1, 1)))
        return
    if edit.kind == "convolution" and old is None:
        _convolve_functional(dense, node, edit, padding)
        return
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = as_convolution(old, edit.kernel, padding=padding)
    elif edit.kind.endswith("pool"):
        new = _pool(edit, padding)
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


def reads_picture(node: torch.fx.Node) -> bool:
    """Whether a node's value depends on the picture, and is no constant of the net."""
    seen, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if one.op == "placeholder":
            return True
        fresh = set(one.all_input_nodes) - seen
        seen |= fresh
        waiting += fresh
    return False


def _move_axis(node: torch.fx.Node) -> None:
    """Let a function of the last axis of vectors work on channels."""
    if node.target is operator.getitem:
        node.update_arg(1, (slice(None), node.args[1][-1]))  # type: ignore[index]
        return
    position = 2 if node.target is F.normalize else 1
    node.update_arg(position, 1) if len(node.args) > position else node.update_kwarg("dim", 1)


def _pool(edit: Edit, padding: Padding) -> nn.Module:
    pads = padding == "same" and edit.stride == (1, 1)
    rows, columns = (d * (k - 1) + 1 for k, d in zip(edit.kernel, edit.dilation, strict=True))
    same = (rows // 2, columns // 2) if pads else 0
    new: nn.Module
    if edit.kind == "maximum pool" and pads and edit.dilation != (1, 1):
        # A pool pads by half of its kernel at most, however far apart its cells are.
        border = nn.ConstantPad2d((columns // 2, columns // 2, rows // 2, rows // 2), -math.inf)
        new = nn.Sequential(border, nn.MaxPool2d(edit.kernel, edit.stride, 0, edit.dilation))
    elif edit.kind == "maximum pool":
        new = nn.MaxPool2d(edit.kernel, edit.stride, same, edit.dilation)
    else:
        divisor = 1 if edit.kind == "sum pool" else edit.divisor
        new = nn.AvgPool2d(edit.kernel, edit.stride, same, divisor_override=divisor)
    # Without padding there is one cell at native size, whatever the pool does not reach there.
    left, right, top, bottom = edit.rest
    return nn.Sequential(nn.ZeroPad2d((-left, -right, -top, -bottom)), new) if any(edit.rest) and not pads else new


def _convolve_functional(dense: torch.fx.GraphModule, node: torch.fx.Node, edit: Edit, padding: Padding) -> None:
    """`F.linear` to `F.conv2d`, the weight reshaped where it is read, so that a weight that is computed stays so."""
    arguments = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    rows, columns = edit.kernel
    same = (rows // 2, columns // 2) if padding == "same" else 0
    with dense.graph.inserting_before(node):
        weight = dense.graph.call_method("unflatten", (arguments["weight"], 1, (-1, rows, columns)))
        fresh = dense.graph.call_function(
            F.conv2d, (arguments["input"], weight, arguments.get("bias")), {"padding": same}
        )
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
    weight = weight.reshape(linear.out_features, inputs, rows, columns)
    convolution.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        convolution.bias = nn.Parameter(linear.bias.detach(), requires_grad=linear.bias.requires_grad)
    return convolution


def _on_maps(norm: nn.BatchNorm1d | nn.LayerNorm) -> nn.Module:
    new: nn.Module
    if isinstance(norm, nn.LayerNorm):
        new = ChannelLayerNorm(norm.normalized_shape[0], norm.eps, norm.elementwise_affine, norm.bias is not None)
    else:
        new = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new.load_state_dict(norm.state_dict(), assign=True)
    for name, parameter in norm.named_parameters():
        new.get_parameter(name).requires_grad = parameter.requires_grad
    return new
