"""The graph of a net, as surgery reads it, and the names of places in it."""

from __future__ import annotations

import torch.fx
from torch import nn

from fullyconv.errors import SurgeryError


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


def place_of(node: torch.fx.Node) -> str:
    """Where in the net a node is, for people: a module's path, or the module it is in and its own name."""
    if node.op == "call_module":
        return str(node.target)
    around = list(node.meta.get("nn_module_stack", {}))
    return f"{around[-1]}.{node.name}" if around else node.name
