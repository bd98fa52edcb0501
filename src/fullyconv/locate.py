"""Runs a net on meta tensors and follows where on the picture every map lies.

No tensor is computed: each operation that PyTorch dispatches moves a `Grid` along each axis instead. What an operation
does is read off the operation itself (PyTorch tags those that are element-wise), so it works on any module, traced or
not, functional or not, and what is not understood is never guessed: the map's position is then `Lost`, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

from fullyconv.errors import SurgeryError, first_line
from fullyconv.geometry import Grid
from fullyconv.operations import where_of
from fullyconv.places import Lost, Place, Where
from fullyconv.tracing import untouched


class Locating(TorchDispatchMode):
    """While active, every operation on a tensor that was `put` somewhere says where its result lies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensor is kept beside its place, since an id is only good while its object lives. Meta tensors are free.
        self._places: dict[int, tuple[Tensor, Where]] = {}
        self._memory = _Memory()

    def put(self, tensor: Tensor, where: Where) -> None:
        self._places[id(tensor)] = (tensor, where)
        self._memory.share(tensor)

    def of(self, tensor: Any) -> Where | None:
        """Where a tensor lies; None if it does not come from the picture."""
        held = self._places.get(id(tensor))
        return held[1] if held is not None and held[0] is tensor else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        places = [place for leaf in tree_leaves((args, kwargs)) if (place := self.of(leaf)) is not None]
        written = [(tensor, self.of(tensor), tensor.shape, tensor.stride()) for tensor in _written(func, args, kwargs)]
        viewed = args[0] if func.is_view else None
        if places:
            # Constants that are neither parameters nor buffers are still real.
            args, kwargs = tree_map_only(Tensor, self._on_meta, (args, kwargs))
        result = func(*args, **kwargs)
        outs = [out for out in tree_leaves(result) if isinstance(out, Tensor)]
        if viewed is not None:
            self._memory.share(viewed, *outs)
        if not places:
            return result
        wheres = [where_of(func, self.of, places, args, kwargs, out) for out in outs]
        for out, where in zip(outs, wheres, strict=True):
            self.put(out, where)
        for tensor, before, *layout in written:
            if torch.Tag.inplace_view in func.tags:
                same = isinstance(before, Lost) or [tensor.shape, tensor.stride()] == layout
                self.put(tensor, before if before and same else Lost("a map gets other axes in place"))
                continue
            if not any(tensor is out for out in outs):
                self.put(tensor, wheres[0] if len(wheres) == 1 else Lost(f"{func.overloadpacket} writes to a map"))
            others = [t for t in self._memory.of(tensor) if t is not tensor and not any(t is out for out in outs)]
            for other, where in self._seen_through(others, tensor, before):
                self.put(other, where)
        return result

    def _on_meta(self, tensor: Tensor) -> Tensor:
        """A tensor's twin on the meta device, always the same one, which lies where it does."""
        twin = tensor if tensor.is_meta else self._memory.twin(tensor)
        where = self.of(tensor)
        if twin is not tensor and where is not None:
            self.put(twin, where)
        return twin

    def _seen_through(
        self, others: Sequence[Tensor], part: Tensor, before: Where | None
    ) -> Iterator[tuple[Tensor, Where]]:
        """Where the other tensors of a memory lie once ``part`` of it has been written, which lay at ``before``."""
        after = self.of(part)
        spans = [_span(one, place) for one in (part, *others) if isinstance(place := self.of(one), Place)]
        # What is written to some rows or columns only, others keep: cells are no longer alike.
        ends = [
            (min(first), max(last)) for first, last in (zip(*along, strict=True) for along in zip(*spans, strict=True))
        ]
        for other in others:
            place = self.of(other)
            if isinstance(place, Lost):
                continue
            where: Where = Lost("a part of a map is written in place")
            if (
                place is None
                and before is None
                and isinstance(after, Place)
                and (other.shape, other.stride()) == (part.shape, part.stride())
            ):
                where = after  # a constant, all of which is filled
            elif (
                isinstance(place, Place)
                and isinstance(before, Place)
                and isinstance(after, Place)
                and _span(part, after) == ends
                and (before.axes, *map(_cells, before.grids)) == (after.axes, *map(_cells, after.grids))
                and not any(one.stride % grid.stride for one, grid in zip(place.grids, after.grids, strict=True))
            ):
                where = place.seeing(after).made_of(place, after)
            yield other, where


def _cells(grid: Grid) -> tuple[Fraction, Fraction]:
    return grid.stride, grid.offset


def _span(tensor: Tensor, place: Place) -> list[tuple[Fraction, Fraction]]:
    """The pixels on which the first and the last cells are centred, down and across."""
    return [
        (grid.offset, grid.offset + grid.stride * (tensor.shape[axis] - 1))
        for grid, axis in zip(place.grids, place.axes, strict=True)
    ]


class _Memory:
    """Which tensors are views of the same memory: what is written through one is read through all.

    All are kept, so that the address of a memory is good for as long as this lives.
    """

    def __init__(self) -> None:
        self._tensors: dict[int, list[Tensor]] = {}
        self._twins: dict[int, tuple[Tensor, Tensor]] = {}

    def share(self, tensor: Tensor, *views: Tensor) -> None:
        for one in (tensor, *views):
            # A view of a real tensor lies in the memory of its twin, and is a view of both.
            for key in {_address(tensor), _address(one)}:
                known = self._tensors.setdefault(key, [])
                if not any(one is other for other in known):
                    known.append(one)

    def of(self, tensor: Tensor) -> list[Tensor]:
        return list(self._tensors.get(_address(tensor), ()))

    def twin(self, real: Tensor) -> Tensor:
        if id(real) not in self._twins:
            twin = real.to("meta")
            self._twins[id(real)] = (real, twin)
            self.share(real, twin)
            self.share(twin, real)
        return self._twins[id(real)][1]


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


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


@dataclass(frozen=True)
class Located:
    """What is known of one tensor: its shape at the size it was located at, and where it lies."""

    shape: tuple[int, ...]
    where: Where | None


@torch.inference_mode(False)  # in which layers are dispatched whole, and not as the operations that they consist of
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
    with untouched(module), torch.no_grad(), _LinearPerPosition(locating), locating:
        module.eval()
        # A layer under two names has a replacement for each.
        return torch.func.functional_call(
            runner_module, {f"net.{k}": v for k, v in weights.items()}, (image,), tie_weights=False
        )


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
        raise SurgeryError(f"the net does not run on a {size[0]}x{size[1]} picture: {first_line(error)}") from error
    return located


def positions(located: Mapping[str, Located]) -> Iterator[tuple[str, Place]]:
    """The nodes that are maps laid out as (B, C, h, w), in order."""
    for name, entry in located.items():
        if isinstance(entry.where, Place) and len(entry.shape) == 4 and entry.where.axes == (-2, -1):
            yield name, entry.where
