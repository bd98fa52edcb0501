"""The graph of a net, as surgery reads it, and the names of places in it."""

from __future__ import annotations

import contextlib
import copy
import inspect
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
    """Whether a layer behaves differently in training, so that tracing through it would freeze it.

    Norms over the batch may have children (timm's have their activation); of all else only the childless are layers.
    """
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return True
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names and next(module.children(), None) is None


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or _reads_training(m)


def _defaults(net: nn.Module) -> dict[str, Any] | None:
    """What a forward takes beside the picture where it is given nothing else, such as flags on which it branches."""
    _, *others = inspect.signature(net.forward).parameters.values()
    plain = (bool, int, float, str, type(None))
    return {other.name: other.default for other in others if isinstance(other.default, plain)} or None


def _forget_defaults(graph: torch.fx.Graph) -> None:
    """Let a graph take the picture alone: drop what stands for defaults, and the checks that they are the same."""
    _, *others = graph.find_nodes(op="placeholder")
    for node in others:
        for check in [*(user for test in node.users for user in test.users), *node.users]:
            graph.erase_node(check)
        graph.erase_node(node)


def _bind_training(graph: torch.fx.Graph) -> None:
    """Let functions that are told whether a net is in training ask the module that calls them, as they did in its code.

    Nets are traced in evaluation mode, which would else be written down as a constant.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or getattr(node.target, "__module__", "") != F.__name__:
            continue
        parameters = list(inspect.signature(node.target).parameters)
        if "training" not in parameters:
            continue
        at = parameters.index("training")
        told = node.args[at] if at < len(node.args) else node.kwargs.get("training")
        if told is not False:
            continue
        around = list(node.meta.get("nn_module_stack", {}))
        with graph.inserting_before(node):
            asked = graph.create_node("get_attr", ".".join([*around[-1:], "training"]))
        if at < len(node.args):
            node.update_arg(at, asked)
        else:
            node.update_kwarg("training", asked)


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


def copied(net: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        SurgeryError: some of the net cannot be copied, as weights that hooks compute.
    """
    try:
        return copy.deepcopy(net)
    except (RuntimeError, TypeError) as error:
        raise SurgeryError(
            f"{type(net).__name__} cannot be copied: {first_line(error)} Expected layers whose weights are parameters; "
            "make them so first, with torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove"
        ) from error


@contextlib.contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Give every module of a net back what it had before: its mode, and whatever its forward writes down in itself,
    which within is a proxy or has no values."""
    before = [(module, dict(module.__dict__), dict(module._buffers)) for module in net.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def trace(net: nn.Module) -> torch.fx.GraphModule:
    """The graph of a net in evaluation mode (auxiliary classifiers and other parts used only in training fall away).

    The layers are the net's own, not copies.

    Raises:
        SurgeryError: its forward depends on the values in the picture, so that it has no one graph.
    """
    try:
        with untouched(net), _recorded_pools():
            graph = _Tracer().trace(net.eval(), concrete_args=_defaults(net))
            # Tensors that the forward makes, which fx writes down in the net.
            constants = {name: value for name, value in vars(net).items() if name.startswith("_tensor_constant")}
        _forget_defaults(graph)
        _bind_training(graph)
        with untouched(net):
            vars(net).update(constants)
            graph_module = torch.fx.GraphModule(net, graph)
    except Exception as error:  # a user's forward may raise anything when it meets a proxy
        raise SurgeryError(
            f"{type(net).__name__} cannot be traced: {first_line(error)}; expected a forward without control flow that "
            "depends on the picture, its size, or gradients. Split the net by hand and pass the part up to its last "
            "map as a backbone"
        ) from error
    modes = {name: module.training for name, module in net.named_modules(remove_duplicate=False)}
    for name, module in graph_module.named_modules():
        module.training = modes[name] if name else False  # of those that stand for modules which were traced through
    return graph_module


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
