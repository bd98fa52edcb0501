"""A model for inference in torch: batch norm folded into convolutions, weights laid out for the processor once.

Called plainly, a convolution on the CPU copies its weights at every call into the blocks that the processor's kernels
read, and under autocast casts them first. Here both are done once, and what can be is computed along the way: batch
norm becomes part of the weights, ReLU of the convolution.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fullyconv.model import FCN


class PackedConv2d(nn.Module):
    """A convolution whose weights lie as oneDNN wants them, for the CPU; as exact as the plain one.

    Args:
        conv: padded by zeros, if at all.
        dtype: to multiply in; what comes out has it, too.
        relu: apply it to what comes out.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, *, relu: bool) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self._how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.dtype, self._after = dtype, "relu" if relu else "none"
        with torch.no_grad():
            plain = conv.weight.detach().to(dtype).to_mkldnn()
            self.weight: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(plain, *self._how)
            bias = None if conv.bias is None else nn.Parameter(conv.bias.detach().to(dtype), requires_grad=False)
        self.bias = bias

    def forward(self, image: Tensor) -> Tensor:
        image = image.to(self.dtype)
        done: Tensor = torch.ops.mkldnn._convolution_pointwise(
            image, self.weight, self.bias, *self._how, self._after, [], ""
        )
        return done


def freeze(model: FCN, *, bf16: bool) -> FCN:
    """A copy of a model that gives the same score maps faster, and does nothing else: no training, saving or moving.

    Args:
        model: in eval mode, on the device where it is to run; stays as it was. Weights that need no change are shared.
        bf16: multiply in bfloat16. Call it under autocast all the same, for what is no convolution.

    Example:
        >>> import fullyconv
        >>> model = fullyconv.build(fullyconv.presets.fcn8s("tinyvgg", classes=3, weights=None)).eval()
        >>> freeze(model, bf16=False).score_maps(torch.zeros(1, 3, 50, 70))["out"].shape
        torch.Size([1, 3, 8, 12])
    """
    # Copying a traced net puts it into training mode.
    frozen = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())}).eval()
    packs = model.normalise.mean.device.type == "cpu" and _can_pack()
    dtype = torch.bfloat16 if bf16 else torch.float32
    rectified: set[nn.Module] = set()
    for head in frozen.heads.children():
        for tap, score in [*head.get_submodule("score").named_children()]:
            setattr(head.score, tap, torch.fx.symbolic_trace(score))
    for part in [*frozen.modules()]:
        if isinstance(part, torch.fx.GraphModule):
            rectified |= _fold(part, relu=packs)
    for part in [*frozen.modules()]:
        for name, layer in [*part.named_children()]:
            if packs and isinstance(layer, nn.Conv2d) and _takes(layer):
                setattr(part, name, PackedConv2d(layer, dtype, relu=layer in rectified))
            elif bf16 and isinstance(layer, nn.Conv2d | nn.Linear):
                setattr(part, name, _cast(layer))
    return frozen


def _fold(net: torch.fx.GraphModule, *, relu: bool) -> set[nn.Module]:
    """Fold batch norms, and ReLUs where asked to, into the convolutions before them; those with a ReLU come back."""
    layers = dict(net.named_modules())
    called = Counter(node.target for node in net.graph.nodes if node.op == "call_module")
    rectified: set[nn.Module] = set()
    for node in [*net.graph.nodes]:
        conv = _layer(node, layers)
        # One that is called twice may be followed by something else the second time.
        if not isinstance(conv, nn.Conv2d) or called[node.target] > 1:
            continue
        norm = _layer(_next(node), layers)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            conv = layers[node.target] = fuse_conv_bn_eval(conv, norm)
            parent, _, name = str(node.target).rpartition(".")
            setattr(net.get_submodule(parent), name, conv)
            _skip(_next(node))
        if relu and _takes(conv) and isinstance(_layer(_next(node), layers), nn.ReLU):
            rectified.add(conv)
            _skip(_next(node))
    net.delete_all_unused_submodules()
    net.recompile()
    return rectified


def _next(node: torch.fx.Node) -> torch.fx.Node | None:
    """The one that reads a node, where there is only one."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _layer(node: torch.fx.Node | None, layers: Mapping[str, nn.Module]) -> nn.Module | None:
    return layers[str(node.target)] if node is not None and node.op == "call_module" else None


def _skip(node: torch.fx.Node | None) -> None:
    assert node is not None
    node.replace_all_uses_with(node.all_input_nodes[0])
    node.graph.erase_node(node)


def _takes(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and conv.weight.dtype == torch.float32


def _cast(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The same layer with its weights in bfloat16, so that autocast has nothing to cast."""
    parameters = {id(p): nn.Parameter(p.detach().bfloat16(), requires_grad=False) for p in layer.parameters()}
    return copy.deepcopy(layer, parameters)


def _can_pack() -> bool:
    """Whether this torch has the operations that its own compiler uses."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
