"""Runs a net on meta tensors and follows where on the picture every map lies.

No tensor is computed: each operation that PyTorch dispatches moves a `Grid` along each axis instead. What an operation
does is read off the operation itself (PyTorch tags those that are element-wise), so it works on any module, traced or
not, functional or not, and what is not understood is never guessed: the map's position is then `Lost`, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fullyconv.errors import AlignmentError, SurgeryError
from fullyconv.geometry import Grid

aten = torch.ops.aten


@dataclass(frozen=True)
class Place:
    """Where a map lies: a grid down and a grid across, and which axes of the tensor they are (from the end).

    Many nets add maps whose cells lie a part of a cell apart: a shortcut that averages 2x2 cells beside a convolution
    of stride 2, say, or a coarser map repeated beside a finer one. The sum is then placed where its most local part
    lies, the one with the smallest field, and ``spread`` says how many pixels others lie off.

    A map may be made of coarser ones, as in an hourglass. Its cells are the same wherever a picture is cut only if the
    cuts lie between whole cells of all of them: on multiples of ``alignment`` pixels, a multiple of their strides.
    """

    down: Grid
    across: Grid
    axes: tuple[int, int] = (-2, -1)
    spread: Fraction = Fraction(0)
    alignment: int = 1

    def join(self, *others: Place) -> Place:
        """The place of a sum or a concatenation.

        Raises:
            AlignmentError: the strides differ.
        """
        down, off_down = _join([self.down, *(other.down for other in others)])
        across, off_across = _join([self.across, *(other.across for other in others)])
        return replace(
            self, down=down, across=across, spread=max(off_down, off_across, *(p.spread for p in (self, *others)))
        )

    def made_of(self, *sources: Where) -> Place:
        """The same, aligned with all that it was made of."""
        strides = (self.down.stride.numerator, self.across.stride.numerator)
        return replace(self, alignment=math.lcm(*strides, *(source.alignment for source in sources)))

    def move(self, down: Grid, across: Grid) -> Place:
        return replace(self, down=down, across=across)

    def unbounded(self) -> Place:
        """The same cells, each of which depends on the whole picture."""
        return self.move(replace(self.down, field=math.inf), replace(self.across, field=math.inf))

    @property
    def grid(self) -> Grid:
        """The one grid of both axes.

        Raises:
            AlignmentError: the cells lie differently along the two axes.
        """
        if (self.down.stride, self.down.offset) != (self.across.stride, self.across.offset):
            raise AlignmentError(
                f"cells lie at {self.down} down and at {self.across} across; expected the same along both axes",
                grids=(self.down, self.across),
            )
        return replace(self.down, field=max(self.down.field, self.across.field))


def _join(grids: list[Grid]) -> tuple[Grid, Fraction]:
    """The grid of the most local of several maps, with a field that holds all of theirs; how far they lie off."""
    local = min(grids, key=lambda grid: grid.field)
    off = [abs(grid.offset - local.offset) for grid in grids]
    for grid in grids:
        if grid.stride != local.stride:
            local.join(grid)
    return replace(local, field=max(grid.field + 2 * o for grid, o in zip(grids, off, strict=True))), max(off)


@dataclass(frozen=True)
class Lost:
    """A tensor that comes from the picture, but whose entries lie nowhere in particular on it."""

    reason: str
    alignment: int = 1

    def made_of(self, *sources: Where) -> Lost:
        """The same, aligned with all that it was made of: a map may be joined with it, and find its place again."""
        return replace(self, alignment=math.lcm(*(source.alignment for source in sources)))


WHOLE_PICTURE = "a mean or maximum over the whole picture"
"""Why the result of a global pool is lost."""

Where = Place | Lost

Rule = Callable[["Locating", list[Where], tuple[Any, ...], dict[str, Any], Tensor], Where]


class Locating(TorchDispatchMode):
    """While active, every operation on a tensor that was `put` somewhere says where its result lies."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The tensor is kept beside its place, since an id is only good while its object lives. Meta tensors are free.
        self._places: dict[int, tuple[Tensor, Where]] = {}
        # The views of each tensor that lies somewhere, by its id: what is written to it is read through them.
        self._views: dict[int, list[Tensor]] = {}

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
        if places:
            # Constants that are neither parameters nor buffers are still real.
            args, kwargs = tree_map_only(Tensor, lambda t: t if t.is_meta else t.to("meta"), (args, kwargs))
        result = func(*args, **kwargs)
        if places:
            rule = _rule(func)
            for out in tree_leaves(result):
                if not isinstance(out, Tensor):
                    continue
                if rule is not None:
                    where = rule(self, places, args, kwargs, out)
                else:
                    where = _lost(places) or Lost(f"{func.overloadpacket} mixes or moves positions")
                self.put(out, where.made_of(*places))
                if func.is_view and self.of(args[0]) is not None:
                    self._views.setdefault(id(_base(args[0])), []).append(out)
                if func._schema.is_mutable:
                    base = _base(out)
                    for other in (base, *self._views.get(id(base), ())):
                        if other is not out:
                            self._write(other, out)
        return result

    def _write(self, base: Tensor, part: Tensor) -> None:
        """Say where a tensor lies of which a part, all of its rows and columns or not, was written in place."""
        whole, written = self.of(base), self.of(part)
        if isinstance(whole, Lost):
            return

        def axes(tensor: Tensor, place: Place) -> list[tuple[Fraction, Fraction, int]]:
            grids = zip((place.down, place.across), place.axes, strict=True)
            return [(grid.stride, grid.offset, tensor.shape[axis]) for grid, axis in grids]

        if isinstance(whole, Place) and isinstance(written, Place) and axes(base, whole) == axes(part, written):
            self.put(base, whole.join(written).made_of(whole, written))
        else:
            self.put(base, Lost("a part of a map is written in place"))


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
            place = self.locating.of(_argument(args, kwargs or {}, 0, "input", None))
            if isinstance(place, Place) and -1 not in place.axes:
                self.locating.put(result, place)
        return result


def _base(tensor: Tensor) -> Tensor:
    """What a tensor is a view of; itself where it is none."""
    return tensor if tensor._base is None else tensor._base


def _shape(args: tuple[Any, ...]) -> torch.Size:
    shape: torch.Size = args[0].shape
    return shape


def _pair(value: Any, default: Any = None) -> tuple[int, int]:
    if value is None or (isinstance(value, list | tuple) and not value):
        value = default
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str, default: Any) -> Any:
    return args[index] if len(args) > index else kwargs.get(name, default)


def _lost(places: list[Where]) -> Lost | None:
    return next((p for p in places if isinstance(p, Lost)), None)


def _pointwise(
    mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    positioned = [p for p in places if isinstance(p, Place)]
    if not positioned:
        return places[0]
    first = positioned[0]
    if any(p.axes != first.axes for p in positioned):
        return Lost("maps with different axes are combined")
    for leaf in tree_leaves((args, kwargs)):
        # A weight with extent along the picture's axes, such as a position embedding, fits one size and one position.
        fixed = isinstance(leaf, Tensor) and mode.of(leaf) is None
        if fixed and any(leaf.dim() >= -axis and leaf.shape[axis] > 1 for axis in first.axes):
            return Lost("a constant of a fixed size, such as a position embedding, is combined with a map")
    try:
        joined = first.join(*positioned[1:])
    except AlignmentError as error:
        return Lost(str(error))
    return joined.unbounded() if len(positioned) < len(places) else joined


def _convolution(
    mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    place = mode.of(args[0])
    if not isinstance(place, Place):
        return _lost(places) or Lost("a convolution's weights depend on the picture")
    if place.axes != (-2, -1) or out.dim() != 4:
        return Lost("a convolution runs along axes that are not the picture's")
    kernel, strides, paddings, dilations = args[1].shape[2:], args[3], args[4], args[5]
    grids = []
    for grid, k, s, p, d in zip((place.down, place.across), kernel, strides, paddings, dilations, strict=True):
        grids.append(grid.deconv(d * (k - 1) + 1, s, p) if args[6] else grid.conv(k, s, p, d))
    return place.move(*grids)


def _pool(has_dilation: bool) -> Rule:
    def rule(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
        place = places[0]
        if not isinstance(place, Place):
            return place
        if place.axes != (-2, -1):
            return Lost("a pooling runs along axes that are not the picture's")
        kernel = _pair(args[1])
        stride = _pair(_argument(args, kwargs, 2, "stride", None), kernel)
        padding = _pair(_argument(args, kwargs, 3, "padding", 0))
        dilation = _pair(_argument(args, kwargs, 4, "dilation", 1)) if has_dilation else (1, 1)
        return place.move(
            place.down.conv(kernel[0], stride[0], padding[0], dilation[0]),
            place.across.conv(kernel[1], stride[1], padding[1], dilation[1]),
        )

    return rule


def _pad(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    if not isinstance(place, Place):
        return place
    front = {-(i // 2) - 1: amount for i, amount in enumerate(args[1]) if i % 2 == 0}
    return place.move(place.down.crop(-front.get(place.axes[0], 0)), place.across.crop(-front.get(place.axes[1], 0)))


def _keep(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    return places[0]


def _batch_norm(
    mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    place = places[0]
    # aten's variants agree on nothing but that an evaluating one has no flag, or a false one.
    training = any(a is True for a in args[3:]) or kwargs.get("training", False)
    return place.unbounded() if isinstance(place, Place) and training else place


def _whole_picture(
    mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    place = places[0]
    return place.unbounded() if isinstance(place, Place) else place


def _layer_norm(
    mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    place = places[0]
    if isinstance(place, Place) and any(axis >= -len(args[1]) for axis in place.axes):
        return place.unbounded()
    return place


def _softmax(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    dim = args[1] - args[0].dim() if args[1] >= 0 else args[1]
    return place.unbounded() if isinstance(place, Place) and dim in place.axes else place


def _reduce(index: int) -> Rule:
    """A sum, maximum, rank or norm over the axes that the argument ``index`` names."""

    def rule(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
        place, rank = places[0], args[0].dim()
        if not isinstance(place, Place):
            return place
        dims = _argument(args, kwargs, index, "dim", None)
        if dims is None or dims == []:
            return Lost(WHOLE_PICTURE)
        dims = {d - rank if d >= 0 else d for d in ([dims] if isinstance(dims, int) else dims)}
        if dims & set(place.axes):
            return Lost(WHOLE_PICTURE)
        if out.dim() == rank:
            return place
        down, across = (axis + sum(1 for d in dims if d > axis) for axis in place.axes)
        return replace(place, axes=(down, across))

    return rule


def _view(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, before, after = places[0], list(_shape(args)), list(out.shape)
    if not isinstance(place, Place):
        return place
    axes: dict[int, int] = {}
    end = len(after)
    # From the last axis, since on a map of one cell many axes look alike: each becomes one of its own, in their order.
    for axis in sorted(place.axes, reverse=True):
        ahead = math.prod(before[:axis])
        # The axis survives if one of the same length has as many elements ahead of it.
        kept = [i for i in range(end) if math.prod(after[:i]) == ahead and after[i] == before[axis]]
        if not kept:
            return Lost("a reshape takes the rows or columns of the map apart, or joins them")
        end = kept[-1]
        axes[axis] = end - len(after)
    return replace(place, axes=(axes[place.axes[0]], axes[place.axes[1]]))


def _volume_pool(
    mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    """A pool over channels alone, as in torch's local response normalisation, moves no rows or columns."""
    place, kernel = places[0], args[1]
    stride = _argument(args, kwargs, 2, "stride", None) or kernel
    if isinstance(place, Place) and any((kernel[axis], stride[axis]) != (1, 1) for axis in place.axes):
        return Lost("a pooling over a volume")
    return place


def _permute(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, rank = places[0], args[0].dim()
    if not isinstance(place, Place):
        return place
    order = [d % rank for d in args[1]]
    down, across = (order.index(axis % rank) - rank for axis in place.axes)
    return replace(place, axes=(down, across))


def _transpose(
    mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    rank = args[0].dim()
    order = list(range(rank))
    a, b = args[1] % rank, args[2] % rank
    order[a], order[b] = order[b], order[a]
    return _permute(mode, places, (args[0], order), kwargs, out)


def _cat(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    tensors, dim = args[0], _argument(args, kwargs, 1, "dim", 0)
    dim = dim - out.dim() if dim >= 0 else dim
    joined = _pointwise(mode, places, (), {}, out)
    if isinstance(joined, Place) and (dim in joined.axes or any(mode.of(t) is None for t in tensors)):
        return Lost("maps are put side by side")
    return joined


def _stack(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    joined = _pointwise(mode, places, (), {}, out)
    if not isinstance(joined, Place):
        return joined
    if any(mode.of(tensor) is None for tensor in args[0]):
        return Lost("a map is stacked with a constant")
    dim = _argument(args, kwargs, 1, "dim", 0) % out.dim()
    down, across = (axis - 1 if axis + out.dim() - 1 < dim else axis for axis in joined.axes)
    return replace(joined, axes=(down, across))


def _slice(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, rank = places[0], args[0].dim()
    if not isinstance(place, Place):
        return place
    dim = _argument(args, kwargs, 1, "dim", 0)
    dim = dim - rank if dim >= 0 else dim
    if dim not in place.axes:
        return place
    start, step = _argument(args, kwargs, 2, "start", 0) or 0, _argument(args, kwargs, 4, "step", 1)
    if start < 0:
        return Lost("a slice counts from the far border of the map")
    down, across = (
        grid.crop(start).conv(1, step) if axis == dim else grid
        for grid, axis in zip((place.down, place.across), place.axes, strict=True)
    )
    return place.move(down, across)


def _select(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, rank = places[0], args[0].dim()
    dim = args[1] - rank if args[1] >= 0 else args[1]
    if not isinstance(place, Place):
        return place
    if dim in place.axes:
        return Lost("one row or column of the map is picked")
    down, across = (axis + 1 if dim > axis else axis for axis in place.axes)
    return replace(place, axes=(down, across))


def _index(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, indices = places[0], args[1]
    if not isinstance(place, Place):
        return place
    chosen = [(i - args[0].dim(), index) for i, index in enumerate(indices) if index is not None]
    # Of several lists, or one with more axes, the axes of the result are others.
    if len(places) > 1 or len(chosen) > 1 or chosen[0][1].dim() != 1 or chosen[0][0] in place.axes:
        return Lost("aten.index mixes or moves positions")
    return place


def _repeat(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    if isinstance(place, Place) and any(args[1][axis] != 1 for axis in place.axes):
        return Lost("aten.repeat mixes or moves positions")
    return place


def _along(operation: Any, index: int = 1, name: str = "dim", default: Any = -1) -> Rule:
    """An operation along the axes that the argument ``index`` names: elsewhere it moves nothing."""

    def rule(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
        place, rank = places[0], args[0].dim()
        dims = _argument(args, kwargs, index, name, default)
        dims = {d - rank if d >= 0 else d for d in ([dims] if isinstance(dims, int) else dims)}
        if isinstance(place, Place) and (len(places) > 1 or not dims or dims & set(place.axes)):
            return Lost(f"{operation} mixes or moves positions")
        return place

    return rule


def _gather(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    """Entries picked along one axis, by numbers that lie as the map does."""
    place = places[0]
    if isinstance(place, Place) and args[1] % args[0].dim() - args[0].dim() in place.axes:
        return Lost("aten.gather mixes or moves positions")
    return _pointwise(mode, places, args, kwargs, out)


def _unbind(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    return _select(mode, places, (args[0], _argument(args, kwargs, 1, "dim", 0)), {}, out)


def _split(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, rank = places[0], args[0].dim()
    dim = _argument(args, kwargs, 2, "dim", 0)
    dim = dim - rank if dim >= 0 else dim
    return Lost("the map is cut into pieces") if isinstance(place, Place) and dim in place.axes else place


def _resize(smooth: bool) -> Rule:
    def rule(mode: Locating, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
        place = places[0]
        if not isinstance(place, Place):
            return place
        if smooth and args[2] is True:
            return Lost("an interpolation with align_corners moves cells by an amount that depends on the size")
        grids = []
        for grid, n_in, n_out in zip((place.down, place.across), args[0].shape[-2:], out.shape[-2:], strict=True):
            if n_out % n_in:
                return Lost("a map is resized by a factor that is not whole")
            f = n_out // n_in
            fine = grid.stride / f
            reach = 2 * grid.stride - fine if smooth else grid.stride - fine
            grids.append(Grid(fine, grid.offset - (grid.stride - fine) / 2, grid.field + (reach if f > 1 else 0)))
        return place.move(*grids)

    return rule


_RULES: dict[Any, Rule] = {
    aten.convolution: _convolution,
    aten.max_pool2d_with_indices: _pool(has_dilation=True),
    aten.avg_pool2d: _pool(has_dilation=False),
    aten.avg_pool3d: _volume_pool,
    aten.constant_pad_nd: _pad,
    aten.reflection_pad2d: _pad,
    aten.replication_pad2d: _pad,
    aten._native_batch_norm_legit_no_training: _keep,
    aten._native_batch_norm_legit: _batch_norm,
    aten._batch_norm_no_update: _keep,
    aten.native_batch_norm: _batch_norm,
    aten.native_layer_norm: _layer_norm,
    aten._fused_rms_norm: _layer_norm,
    aten.native_group_norm: _whole_picture,
    aten._softmax: _softmax,
    aten._log_softmax: _softmax,
    **dict.fromkeys(
        (
            aten.mean,
            aten.sum,
            aten.prod,
            aten.amax,
            aten.amin,
            aten.aminmax,
            aten.max,
            aten.min,
            aten.argmax,
            aten.argmin,
            aten.median,
            aten.var_mean,
            aten.var,
            aten.std_mean,
            aten.std,
            aten.logsumexp,
        ),
        _reduce(1),
    ),
    **dict.fromkeys((aten.linalg_vector_norm, aten.kthvalue), _reduce(2)),  # behind the order of the norm, and k
    **dict.fromkeys(
        (aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.unsqueeze, aten.squeeze), _view
    ),
    # Element-wise in fact, though not by their tags.
    **dict.fromkeys(
        (aten.hardswish, aten._prelu_kernel, aten.log_sigmoid_forward, aten.rsub, aten.copy, aten.rrelu_with_noise),
        _pointwise,
    ),
    **dict.fromkeys((aten.native_channel_shuffle, aten.channel_shuffle), _keep),
    # Constants, but as large as the map.
    **dict.fromkeys((aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like), _keep),
    aten.index: _index,
    aten.repeat: _repeat,
    **{
        operation: _along(operation)
        for operation in (aten.flip, aten.glu, aten.index_select, aten.sort, aten.cumsum, aten.cumprod)
    },
    aten.topk: _along(aten.topk, 2),
    aten.roll: _along(aten.roll, 2, "dims", ()),
    aten.gather: _gather,
    aten.unbind: _unbind,
    aten.permute: _permute,
    aten.transpose: _transpose,
    aten.cat: _cat,
    aten.stack: _stack,
    aten.slice: _slice,
    aten.select: _select,
    **dict.fromkeys((aten.split, aten.split_with_sizes), _split),
    **dict.fromkeys(
        (aten.clone, aten.detach, aten.alias, aten._to_copy, aten.expand, aten.lift_fresh, aten.contiguous), _keep
    ),
    aten.upsample_nearest2d: _resize(smooth=False),
    aten.upsample_bilinear2d: _resize(smooth=True),
}


def _rule(func: Any) -> Rule | None:
    """What is known of an operation; one in place (``relu_``) does what its namesake (``relu``) does."""
    name = func.overloadpacket.__name__
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else func.overloadpacket
    if packet is None:
        return None
    overload = getattr(packet, func._overloadname, None)
    tagged = torch.Tag.pointwise in (*func.tags, *(overload.tags if overload is not None else ()))
    return _RULES.get(packet) or (_pointwise if tagged else None)


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
