"""Runs a net on meta tensors and follows where on the picture every map lies.

No tensor is computed: each operation that PyTorch dispatches moves a `Grid` along each axis instead. What an operation
does is read off the operation itself (PyTorch tags those that are element-wise), so it works on any module, traced or
not, functional or not, and what is not understood is never guessed: the map's position is then `Lost`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fullyconv.errors import SurgeryError
from fullyconv.geometry import Grid
from fullyconv.operations import where_of
from fullyconv.places import Lost, Place, Where


class Locating(TorchDispatchMode):
    """While active, every operation on a tensor that was `put` somewhere says where its result lies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensor is kept beside its place, since an id is only good while its object lives. Meta tensors are free.
        self._places: dict[int, tuple[Tensor, Where]] = {}
        # The views of each tensor, by its id: what is written to it is read through them.
        self._views: dict[int, tuple[Tensor, list[Tensor]]] = {}

    def put(self, tensor: Tensor, where: Where) -> None:
        self._places[id(tensor)] = (tensor, where)

    def of(self, tensor: Any) -> Where | None:
        """Where a tensor lies; None if it does not come from the picture."""
        held = self._places.get(id(tensor))
        return held[1] if held is not None and held[0] is tensor else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        places = [place for leaf in tree_leaves((args, kwargs)) if (place := self.of(leaf)) is not None]
        written = _written(func, args, kwargs)
        before = [(tensor.shape, tensor.stride()) for tensor in written]
        if places:
            # Constants that are neither parameters nor buffers are still real.
            args, kwargs = tree_map_only(Tensor, self._to_meta, (args, kwargs))
        result = func(*args, **kwargs)
        outs = [out for out in tree_leaves(result) if isinstance(out, Tensor)]
        if func.is_view:
            base = _base(args[0])
            self._views.setdefault(id(base), (base, []))[1].extend(outs)
        if not places:
            return result
        wheres = [where_of(func, self.of, places, args, kwargs, out) for out in outs]
        for out, where in zip(outs, wheres, strict=True):
            self.put(out, where)
        for tensor, layout in zip(written, before, strict=True):
            if (tensor.shape, tensor.stride()) != layout:
                self.put(tensor, Lost("a map gets other axes in place"))
            elif not any(tensor is out for out in outs):
                self.put(tensor, wheres[0] if len(wheres) == 1 else Lost(f"{func.overloadpacket} writes to a map"))
            base = _base(tensor)
            for other in (base, *self._views.get(id(base), (base, []))[1]):
                if other is not tensor:
                    self._write(other, tensor)
        return result

    def _to_meta(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        meta, where = tensor.to("meta"), self.of(tensor)
        if where is not None:
            self.put(meta, where)
        return meta

    def _write(self, tensor: Tensor, part: Tensor) -> None:
        """Say where a tensor lies of whose memory a part, all of its rows and columns or not, was written in place."""
        whole, written = self.of(tensor), self.of(part)
        if isinstance(whole, Lost):
            return

        def axes(tensor: Tensor, place: Place) -> list[tuple[Fraction, Fraction, int]]:
            grids = zip((place.down, place.across), place.axes, strict=True)
            return [(grid.stride, grid.offset, tensor.shape[axis]) for grid, axis in grids]

        if isinstance(whole, Place) and isinstance(written, Place) and axes(tensor, whole) == axes(part, written):
            self.put(tensor, whole.join(written).made_of(whole, written))
        else:
            self.put(tensor, Lost("a part of a map is written in place"))


class _LinearPerPosition(TorchFunctionMode):
    """`F.linear` works on the last axis alone; below this level it is a reshape that hides the other axes."""

    def __init__(self, locating: Locating) -> None:
        super().__init__()
        self.locating = locating

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.linear:
            given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **(kwargs or {})}
            place, *weights = (self.locating.of(given.get(name)) for name in ("input", "weight", "bias"))
            if isinstance(place, Place) and -1 not in place.axes:
                # Weights made of the picture have seen all of it.
                self.locating.put(result, place if weights == [None, None] else place.unbounded())
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to, by its schema."""
    if not func._schema.is_mutable:
        return []
    named = [argument for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
    order = [argument.name for argument in func._schema.arguments]
    values = [kwargs.get(a.name, args[i] if (i := order.index(a.name)) < len(args) else None) for a in named]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _base(tensor: Tensor) -> Tensor:
    """What a tensor is a view of; itself where it is none."""
    return tensor if tensor._base is None else tensor._base


@dataclass(frozen=True)
class Located:
    """What is known of one tensor: its shape at the size it was located at, and where it lies."""

    shape: tuple[int, ...]
    where: Where | None


def _run(module: nn.Module, channels: int, size: tuple[int, int], runner: Callable[[Locating, Tensor], Any]) -> Any:
    """Run ``module`` on a picture of meta tensors, its own weights replaced by meta ones for the time."""
    weights = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]
    }
    # Two pictures, so that a squeeze() takes away no more than it does in training.
    image = torch.empty(
        2,
        channels,
        *size,
        device="meta",
        dtype=next((w.dtype for w in weights.values() if w.is_floating_point()), torch.float32),
    )
    locating = Locating()
    locating.put(image, Place(Grid(), Grid()))
    runner_module = _Runner(module, lambda tensor: runner(locating, tensor))
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad(), _LinearPerPosition(locating), locating:
            # A layer under two names has a replacement for each.
            return torch.func.functional_call(
                runner_module, {f"net.{k}": v for k, v in weights.items()}, (image,), tie_weights=False
            )
    finally:
        for m in training:
            m.training = True


class _Runner(nn.Module):
    def __init__(self, net: nn.Module, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net = net
        self._run = run

    def forward(self, image: Tensor) -> Any:
        return self._run(image)


def locate_outputs(module: nn.Module, *, channels: int = 3, size: tuple[int, int] = (224, 224)) -> list[Located]:
    """Where each tensor that ``module(image)`` returns lies, in order; the module need not be traceable.

    Raises:
        SurgeryError: the module does not run on a picture of this size.
    """

    def run(locating: Locating, image: Tensor) -> list[Located]:
        outputs = module(image)
        return [Located(tuple(t.shape), locating.of(t)) for t in tree_leaves(outputs) if isinstance(t, Tensor)]

    try:
        located: list[Located] = _run(module, channels, size, run)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError) as error:
        raise SurgeryError(f"{type(module).__name__} does not run on a {size[0]}x{size[1]} picture: {error}") from error
    return located


class _Interpreter(torch.fx.Interpreter):
    def __init__(self, graph_module: torch.fx.GraphModule, locating: Locating) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.locating = locating
        self.located: dict[str, Located] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.located[n.name] = Located(tuple(result.shape), self.locating.of(result))
        return result


def locate(
    graph_module: torch.fx.GraphModule, *, channels: int = 3, size: tuple[int, int] = (224, 224)
) -> dict[str, Located]:
    """Where the result of every node of a traced net lies, by node name.

    Raises:
        SurgeryError: the net does not run on a picture of this size.
    """

    def run(locating: Locating, image: Tensor) -> dict[str, Located]:
        interpreter = _Interpreter(graph_module, locating)
        interpreter.run(image)
        return interpreter.located

    try:
        located: dict[str, Located] = _run(graph_module, channels, size, run)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SurgeryError(f"the net does not run on a {size[0]}x{size[1]} picture: {first_line}") from error
    return located


def positions(located: Mapping[str, Located]) -> Iterator[tuple[str, Place]]:
    """The nodes that are maps laid out as (B, C, h, w), in order."""
    for name, entry in located.items():
        if isinstance(entry.where, Place) and len(entry.shape) == 4 and entry.where.axes == (-2, -1):
            yield name, entry.where
