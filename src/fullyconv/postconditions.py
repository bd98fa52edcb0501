"""Whether a dense net is what surgery promised: compared with the classifier, on live activations."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.errors import SurgeryError, first_line
from fullyconv.tracing import place_of, trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from fullyconv.surgery import Plan


def random_pictures(channels: int, size: int, generator: torch.Generator) -> Tensor:
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
            place = place_of(n)
            raise SurgeryError(
                f"'{place}' works on vectors in a way that has no convolutional equal: {first_line(error)}", path=place
            ) from error


def verify(plan: Plan, dense: torch.fx.GraphModule) -> None:
    """Check three things: at native size the dense net equals the classifier, on two pictures to which it gives
    different scores; on a larger picture it has more cells; and there its last layers give a cell what they give the
    window of the last map that the cell sees, so that they do not ask how large the map or the picture is.

    Raises:
        SurgeryError: one does not hold; names the node from which on the two differ.
    """
    net = plan.net
    assert net is not None
    parameter = next(iter(net.parameters()), torch.empty(0))
    pictures = random_pictures(plan.channels, plan.image_size, torch.Generator().manual_seed(0)).to(parameter)
    training = [m for m in net.modules() if m.training]
    net.eval()
    dense.eval()
    larger, apart = plan.image_size + 2 * plan.alignment, 0.0
    try:
        with torch.no_grad():
            want = _first(net(pictures))
            if too_alike(want):
                # Untrained weights often let the signal die, and a dead net equals anything.
                net = copy.deepcopy(net)
                revive(net, pictures)
                want = _first(net(pictures))
                dense = replace(plan, net=net).apply(verify=False)
            native = _Steps(dense, keep=True)
            got = _first(native.run(pictures))
            if plan.exact and not _difference(want, got) < _tolerance(want):
                net, dense, pictures, want, native, got = _in_double(plan, net, dense, pictures, want, native, got)
            if plan.exact:
                _compare(plan, want, got, lambda: _parting(net, dense, pictures))
            beyond = _Steps(dense, keep=True)
            others = random_pictures(plan.channels, larger, torch.Generator().manual_seed(2)).to(pictures)
            grown = _first(beyond.run(others))
            if plan.exact and grown.dim() == 4:
                apart = _apart_beyond(plan, dense, native, beyond, grown)
    finally:
        for m in training:
            m.training = True
    if grown.dim() != 4 or grown.shape[2] <= got.shape[2] or grown.shape[3] <= got.shape[3]:
        raise SurgeryError(
            f"a picture of {larger}x{larger} gives scores of shape {tuple(grown.shape)}; expected more cells than the "
            f"{got.shape[-2]}x{got.shape[-1]} at {plan.image_size}: a layer still works on the whole picture"
        )
    if apart > 1e-3:
        raise SurgeryError(
            f"on a picture of {larger}x{larger} a cell differs by {apart:.1e} of the difference between two "
            f"pictures from what the classifier's last layers make of its window of the map '{plan.features}': they "
            "use the size of the map or of the picture. Expected a pool or a mean over both axes for a sum that is "
            "divided by a size",
            path=plan.features,
        )


def _apart_beyond(plan: Plan, dense: torch.fx.GraphModule, native: _Steps, beyond: _Steps, scores: Tensor) -> float:
    """Largest difference between a cell of a larger picture and the same layers on the window of the map that it sees,
    relative to the difference between two pictures.

    Only what follows the last map is compared: the map itself may pad, and then differs near the window's border.

    Args:
        native, beyond: have run at native size, and on two larger pictures, of which these are the scores.
    """
    nodes = list(dense.graph.nodes)
    last = next((node for node in nodes if node.name == plan.features), None)
    if last is None:
        return 0.0
    step = [max(edit.stride[axis] for edit in plan.edits) for axis in (0, 1)]
    sides = native.env[last].shape[2:]
    rows, columns = (slice(first, first + side) for first, side in zip(step, sides, strict=True))
    window = beyond.env[last][:, :, rows, columns]
    if window.shape[2:] != sides or min(scores.shape[2:]) < 2:
        return 0.0
    before = {node: native.env[node] for node in nodes[: nodes.index(last)] if node in native.env}
    small = _first(_Steps(dense).run(initial_env={**before, last: window}))
    return float((small[..., 0, 0] - scores[..., 1, 1]).abs().max() / (scores[0] - scores[1]).abs().max())


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


def too_alike(scores: Tensor) -> bool:
    spread = (scores[0] - scores[1]).abs().max()
    return bool(spread <= 1e-3 * scores.abs().max()) or not bool(torch.isfinite(scores).all())


def revive(net: nn.Module, pictures: Tensor) -> None:
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


def _in_double(
    plan: Plan,
    net: nn.Module,
    dense: torch.fx.GraphModule,
    pictures: Tensor,
    want: Tensor,
    native: _Steps,
    got: Tensor,
) -> tuple[nn.Module, torch.fx.GraphModule, Tensor, Tensor, _Steps, Tensor]:
    """The same comparison in float64, where nothing that differs is due to rounding; as it is, where none can be had.

    In single precision two sums in different orders differ by more than a tolerance that finds small errors, where
    what distinguishes two pictures is small beside what they have in common.
    """
    try:
        exact = copy.deepcopy(net).double()
        read = replace(plan, net=exact).apply(verify=False).eval()
        scores = _first(exact(pictures.double()))
        steps = _Steps(read, keep=True)
        return exact, read, pictures.double(), scores, steps, _first(steps.run(pictures.double()))
    except (RuntimeError, SurgeryError):  # a forward that makes tensors of a type of its own
        return net, dense, pictures, want, native, got


def _vectors(got: Tensor, want: Tensor) -> Tensor:
    """Scores of a dense net as the classifier gives them: one class may have lost its axis."""
    # A dropped pool leaves a map, whose mean is the classifier's score.
    got = got.mean((2, 3)) if got.dim() == 4 else got
    return got[:, 0] if want.dim() == 1 and got.dim() == 2 and got.shape[1] == 1 else got


def _tolerance(want: Tensor) -> float:
    return 1e-5 if want.dtype == torch.float64 else 1e-4


def _difference(want: Tensor, got: Tensor) -> float:
    """Largest difference, relative to what distinguishes two pictures, not to a common offset that any net with the
    right bias would have; ``inf`` where the shapes differ."""
    got = _vectors(got, want)
    if got.shape != want.shape:
        return math.inf
    return float((got - want).abs().max() / (want[0] - want[1]).abs().max())


def _compare(plan: Plan, want: Tensor, got: Tensor, parting: Callable[[], str]) -> None:
    got = _vectors(got, want)
    if got.shape != want.shape:
        raise SurgeryError(
            f"the dense net gives {tuple(got.shape)} at native size, expected {tuple(want.shape)}; they part at "
            f"'{parting()}'"
        )
    if too_alike(want):
        raise SurgeryError(
            "two different pictures get the same scores, so that nothing can be checked; expected live activations: "
            "load trained weights first"
        )
    error, tolerance = _difference(want, got), _tolerance(want)
    if not error < tolerance:
        raise SurgeryError(
            f"at {plan.image_size}x{plan.image_size} the dense net differs from the classifier by {error:.1e} of the "
            f"difference between two pictures, expected less than {tolerance:.0e}; they part at '{parting()}'"
        )
