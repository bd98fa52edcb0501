"""The graph of a net, as surgery reads it, and the names of places in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch.fx
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from fullyconv.errors import SurgeryError, first_line

POOL_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "avg_pool2d": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
}
"""The functional pools and their arguments, in order."""


def _reads_training(module: nn.Module) -> bool:
    """Whether a childless module behaves differently in training, so that tracing through it would freeze it."""
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names and next(module.children(), None) is None


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _reads_training(m)


# Bound here, so that whoever traces at the same time puts back the same function.
_AVERAGE = F.avg_pool2d


def _recorded_average(*args: Any, **kwargs: Any) -> Any:
    proxy = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.fx.Proxy)), None)
    if proxy is None:
        return _AVERAGE(*args, **kwargs)
    return proxy.tracer.create_proxy("call_function", _AVERAGE, args, kwargs)


@contextlib.contextmanager
def _recorded_pools() -> Iterator[None]:
    """Before torch 2.9 ``F.avg_pool2d`` cannot be traced where its kernel is a proxy, such as the size of the map.

    People's nets call it by the one name, and nets that were traced before by the other.
    """
    owners = F, torch._C._nn
    for owner in owners:
        setattr(owner, "avg_pool2d", _recorded_average)  # noqa: B010 - stubs have it as a function
    try:
        yield
    finally:
        for owner in owners:
            setattr(owner, "avg_pool2d", _AVERAGE)  # noqa: B010


def trace(net: nn.Module) -> torch.fx.GraphModule:
    """The graph of a net in evaluation mode (auxiliary classifiers and other parts used only in training fall away).

    The layers are the net's own, not copies.

    Raises:
        SurgeryError: its forward depends on the values in the picture, so that it has no one graph.
    """
    training = [m for m in net.modules() if m.training]
    net.eval()
    try:
        with _recorded_pools():
            graph = _Tracer().trace(net)
        return torch.fx.GraphModule(net, graph)
    except Exception as error:  # a user's forward may raise anything when it meets a proxy
        raise SurgeryError(
            f"{type(net).__name__} cannot be traced: {first_line(error)}; expected a forward without control flow that "
            "depends on the picture. Split the net by hand and pass the part up to its last map as a backbone"
        ) from error
    finally:
        for m in training:
            m.training = True


def place_of(node: torch.fx.Node) -> str:
    """Where in the net a node is, for people: a module's path, or the module it is in and its own name."""
    if node.op == "call_module":
        return str(node.target)
    around = list(node.meta.get("nn_module_stack", {}))
    return f"{around[-1]}.{node.name}" if around else node.name


def functional_pool(node: torch.fx.Node) -> nn.MaxPool2d | nn.AvgPool2d | None:
    """A pool that is called as a function, as the module that does the same; None where its kernel, stride or padding
    depends on the picture, and for anything else.

    Example:
        >>> from torch.nn import functional as F
        >>> graph = torch.fx.symbolic_trace(lambda x: F.max_pool2d(x, 3, 2)).graph
        >>> [functional_pool(node) for node in graph.nodes if node.op == "call_function"]
        [MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)]
    """
    name = getattr(node.target, "__name__", "")
    if node.op != "call_function" or name not in POOL_ARGUMENTS:
        return None
    settings: dict[str, Any] = dict(zip(POOL_ARGUMENTS[name], node.args, strict=False)) | node.kwargs
    settings.pop("input")
    if any(isinstance(value, torch.fx.Node) for value in tree_leaves(settings)):
        return None
    return nn.MaxPool2d(**settings) if name == "max_pool2d" else nn.AvgPool2d(**settings)
