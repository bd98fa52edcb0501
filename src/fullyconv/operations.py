"""What each operation of PyTorch does to where a map lies.

Element-wise operations are known by PyTorch's own tags; the table at the end names a rule for each of the others. What
is in neither is never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fullyconv.errors import AlignmentError
from fullyconv.geometry import Grid
from fullyconv.places import WHOLE_PICTURE, Lost, Place, Where

aten = torch.ops.aten

Of = Callable[[Any], Where | None]
"""Where a tensor lies; None of what does not come from the picture."""

Rule = Callable[[Of, list[Where], tuple[Any, ...], dict[str, Any], Tensor], Where]
"""From where the arguments lie, those that do, and the arguments, to where a result lies."""


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


def _pointwise(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    # One row or column beside a whole map is read by all of its cells.
    repeated = [
        place
        for leaf in tree_leaves((args, kwargs))
        if isinstance(leaf, Tensor) and isinstance(place := of(leaf), Place) and _is_repeated(leaf, out, place)
    ]
    positioned = [p for p in places if isinstance(p, Place) and not any(p is one for one in repeated)]
    if not positioned:
        return Lost("one row or column is repeated") if repeated else places[0]
    first = positioned[0]
    if any(p.axes != first.axes for p in positioned):
        return Lost("maps with different axes are combined")
    for leaf in tree_leaves((args, kwargs)):
        # A weight with extent along the picture's axes, such as a position embedding, fits one size and one position.
        if isinstance(leaf, Tensor) and of(leaf) is None and any(_varies(leaf, axis) for axis in first.axes):
            return Lost("a constant of a fixed size, such as a position embedding, is combined with a map")
    try:
        joined = first.join(*positioned[1:])
    except AlignmentError as error:
        return Lost(str(error))
    return joined.unbounded() if len(positioned) < len(places) else joined


def _varies(constant: Tensor, axis: int) -> bool:
    """Whether a constant has an entry of its own for each row or column; one that is expanded repeats a single one."""
    return constant.dim() >= -axis and constant.shape[axis] > 1 and constant.stride(axis) != 0


def _is_repeated(tensor: Tensor, out: Tensor, place: Place) -> bool:
    """Whether a map of one row or column becomes one of several."""
    return any(tensor.shape[axis] == 1 and out.dim() >= -axis and out.shape[axis] > 1 for axis in place.axes)


def _convolution(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = of(args[0])
    if not isinstance(place, Place):
        return _lost(places) or Lost("a convolution's weights depend on the picture")
    if place.axes != (-2, -1) or out.dim() != 4:
        return Lost("a convolution runs along axes that are not the picture's")
    if 0 in out.shape:  # torch 2.6 says so on every device but this one
        raise RuntimeError(f"a kernel of {tuple(args[1].shape[2:])} is larger than its padded map")
    kernel, strides, paddings, dilations = args[1].shape[2:], args[3], args[4], args[5]
    grids = []
    for grid, k, s, p, d in zip(place.grids, kernel, strides, paddings, dilations, strict=True):
        grids.append(grid.deconv(d * (k - 1) + 1, s, p) if args[6] else grid.conv(k, s, p, d))
    moved = place.move(*grids)
    # Weights made of the picture, as by a gate over kernels, have seen all of it.
    return moved if of(args[1]) is None and of(args[2]) is None else moved.unbounded()


def _pool(has_dilation: bool) -> Rule:
    def rule(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
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


def _pad(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    if not isinstance(place, Place):
        return place
    front = {-(i // 2) - 1: amount for i, amount in enumerate(args[1]) if i % 2 == 0}
    return place.move(place.down.crop(-front.get(place.axes[0], 0)), place.across.crop(-front.get(place.axes[1], 0)))


def _keep(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    return places[0]


def _batch_norm(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = _by_channel(of, places, args, kwargs, out)
    # aten's variants agree on nothing but that an evaluating one has no flag, or a false one.
    training = any(a is True for a in args[3:]) or kwargs.get("training", False)
    return place.unbounded() if isinstance(place, Place) and training else place


def _by_channel(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    """What treats each entry of the second axis by its own numbers."""
    place = places[0]
    if isinstance(place, Place) and 1 - args[0].dim() in place.axes:
        return Lost("rows or columns of the map are treated as channels")
    return _with_weights(places)


def _with_weights(places: list[Where]) -> Where:
    """The first place, unless weights or statistics are made of the picture as well: they have seen all of it."""
    place = places[0]
    return place.unbounded() if isinstance(place, Place) and len(places) > 1 else place


def _whole_picture(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    return place.unbounded() if isinstance(place, Place) else place


def _layer_norm(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    if isinstance(place, Place) and any(axis >= -len(args[1]) for axis in place.axes):
        return place.unbounded()
    return _with_weights(places)


def _softmax(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    dim = args[1] - args[0].dim() if args[1] >= 0 else args[1]
    return place.unbounded() if isinstance(place, Place) and dim in place.axes else place


def _reduce(index: int) -> Rule:
    """A sum, maximum, rank or norm over the axes that the argument ``index`` names."""

    def rule(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
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


def _view(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
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


def _volume_pool(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    """A pool over channels alone, as in torch's local response normalisation, moves no rows or columns."""
    place, kernel = places[0], args[1]
    stride = _argument(args, kwargs, 2, "stride", None) or kernel
    kernel, stride = ([*sizes] * (3 // len(sizes)) for sizes in (kernel, stride))  # one for all axes, or one for each
    if isinstance(place, Place) and any((kernel[axis], stride[axis]) != (1, 1) for axis in place.axes if axis >= -3):
        return Lost("a pooling over a volume")
    return place


def _permute(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, rank = places[0], args[0].dim()
    if not isinstance(place, Place):
        return place
    order = [d % rank for d in args[1]]
    down, across = (order.index(axis % rank) - rank for axis in place.axes)
    return replace(place, axes=(down, across))


def _transpose(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    rank = args[0].dim()
    order = list(range(rank))
    a, b = args[1] % rank, args[2] % rank
    order[a], order[b] = order[b], order[a]
    return _permute(of, places, (args[0], order), kwargs, out)


def _cat(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    tensors, dim = args[0], _argument(args, kwargs, 1, "dim", 0)
    dim = dim - out.dim() if dim >= 0 else dim
    joined = _pointwise(of, places, (), {}, out)
    if isinstance(joined, Place) and (dim in joined.axes or any(of(t) is None for t in tensors)):
        return Lost("maps are put side by side")
    return joined


def _stack(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    joined = _pointwise(of, places, (), {}, out)
    if not isinstance(joined, Place):
        return joined
    if any(of(tensor) is None for tensor in args[0]):
        return Lost("a map is stacked with a constant")
    dim = _argument(args, kwargs, 1, "dim", 0) % out.dim()
    down, across = (axis - 1 if axis + out.dim() - 1 < dim else axis for axis in joined.axes)
    return replace(joined, axes=(down, across))


def _slice(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
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
        for grid, axis in zip(place.grids, place.axes, strict=True)
    )
    return place.move(down, across)


def _select(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, rank = places[0], args[0].dim()
    dim = args[1] - rank if args[1] >= 0 else args[1]
    if not isinstance(place, Place):
        return place
    if dim in place.axes:
        return Lost("one row or column of the map is picked")
    down, across = (axis + 1 if dim > axis else axis for axis in place.axes)
    return replace(place, axes=(down, across))


def _index(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, indices = places[0], args[1]
    if not isinstance(place, Place):
        return place
    chosen = [(i - args[0].dim(), index) for i, index in enumerate(indices) if index is not None]
    # Of several lists, or one with more axes, the axes of the result are others.
    if len(places) > 1 or len(chosen) > 1 or chosen[0][1].dim() != 1 or chosen[0][0] in place.axes:
        return Lost("aten.index mixes or moves positions")
    return place


def _repeat(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    if isinstance(place, Place) and any(args[1][axis] != 1 for axis in place.axes):
        return Lost("aten.repeat mixes or moves positions")
    return place


def _expand(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place = places[0]
    return (
        Lost("one row or column is repeated")
        if isinstance(place, Place) and _is_repeated(args[0], out, place)
        else place
    )


def _copy(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    """What is copied decides; what was there before is gone."""
    source = of(args[1])
    return _pointwise(of, places[:1] if source is None else [source], args[1:], kwargs, out)


def _along(operation: Any, index: int = 1, name: str = "dim", default: Any = -1) -> Rule:
    """An operation along the axes that the argument ``index`` names: elsewhere it moves nothing."""

    def rule(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
        place, rank = places[0], args[0].dim()
        dims = _argument(args, kwargs, index, name, default)
        dims = {d - rank if d >= 0 else d for d in ([dims] if isinstance(dims, int) else dims)}
        if isinstance(place, Place) and (len(places) > 1 or not dims or dims & set(place.axes)):
            return Lost(f"{operation} mixes or moves positions")
        return place

    return rule


def _gather(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    """Entries picked along one axis, by numbers that lie as the map does."""
    place = places[0]
    if isinstance(place, Place) and args[1] % args[0].dim() - args[0].dim() in place.axes:
        return Lost("aten.gather mixes or moves positions")
    return _pointwise(of, places, args, kwargs, out)


def _unbind(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    return _select(of, places, (args[0], _argument(args, kwargs, 1, "dim", 0)), {}, out)


def _split(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    place, rank = places[0], args[0].dim()
    dim = _argument(args, kwargs, 2, "dim", 0)
    dim = dim - rank if dim >= 0 else dim
    return Lost("the map is cut into pieces") if isinstance(place, Place) and dim in place.axes else place


def _pixel_unshuffle(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
    """Blocks of cells become channels of one: what a convolution of that kernel and stride reads."""
    place, factor = places[0], args[1]
    if not isinstance(place, Place):
        return place
    if place.axes != (-2, -1):
        return Lost("cells along axes that are not the picture's become channels")
    return place.move(place.down.conv(factor, factor), place.across.conv(factor, factor))


def _resize(smooth: bool) -> Rule:
    def rule(of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Where:
        place = places[0]
        if not isinstance(place, Place):
            return place
        if place.axes != (-2, -1):
            return Lost("a map is resized along axes that are not the picture's")
        if smooth and args[2] is True:
            return Lost("an interpolation with align_corners moves cells by an amount that depends on the size")
        # Where a scale is given, torch computes with it, and rounds only the size.
        scales = [number for number in tree_leaves((args[1:], kwargs)) if isinstance(number, float)]
        grids = []
        for grid, n_in, n_out in zip(place.grids, args[0].shape[-2:], out.shape[-2:], strict=True):
            if n_out % n_in or not all(scale.is_integer() for scale in scales):
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
    aten._native_batch_norm_legit_no_training: _by_channel,
    aten._native_batch_norm_legit: _batch_norm,
    aten._batch_norm_no_update: _by_channel,
    aten.native_batch_norm: _batch_norm,
    aten.native_layer_norm: _layer_norm,
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
    # Element-wise in fact, though not by their tags (leaky_relu: in older torch).
    **dict.fromkeys(
        (
            aten.hardswish,
            aten.leaky_relu,
            aten._prelu_kernel,
            aten.log_sigmoid_forward,
            aten.rsub,
            aten.rrelu_with_noise,
        ),
        _pointwise,
    ),
    **dict.fromkeys((aten.native_channel_shuffle, aten.channel_shuffle), _by_channel),
    # Constants, but as large as the map.
    **dict.fromkeys((aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like), _keep),
    aten.copy: _copy,
    aten.fill: _pointwise,
    aten.zero: _keep,
    aten.expand: _expand,
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
    **dict.fromkeys((aten.clone, aten.detach, aten.alias, aten._to_copy, aten.lift_fresh, aten.contiguous), _keep),
    aten.pixel_unshuffle: _pixel_unshuffle,
    # Channels of a cell become cells of a block, each of which reads that one cell, as a repeated one does.
    **dict.fromkeys((aten.pixel_shuffle, aten.upsample_nearest2d), _resize(smooth=False)),
    aten.upsample_bilinear2d: _resize(smooth=True),
}
if hasattr(aten, "_fused_rms_norm"):  # older torch takes it apart
    _RULES[aten._fused_rms_norm] = _layer_norm


def where_of(
    func: Any, of: Of, places: list[Where], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
) -> Where:
    """Where a result of an operation lies, of which some arguments lie somewhere.

    Args:
        func: the operation as PyTorch dispatches it.
        of: where any tensor lies.
        places: of the arguments that lie somewhere, in order; one at least.
        args, kwargs: its arguments.
        out: the result, or one of several.
    """
    rule = _rule(func)
    where: Where
    if rule is None:
        where = _lost(places) or Lost(f"{func.overloadpacket} mixes or moves positions")
    else:
        where = rule(of, places, args, kwargs, out)
    return where.made_of(*places)


def _rule(func: Any) -> Rule | None:
    """What is known of an operation; one in place (``relu_``) does what its namesake (``relu``) does."""
    name = func.overloadpacket.__name__
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else func.overloadpacket
    if packet is None:
        return None
    overload = getattr(packet, func._overloadname, None)
    tagged = torch.Tag.pointwise in (*func.tags, *(overload.tags if overload is not None else ()))
    return _RULES.get(packet) or (_pointwise if tagged else None)
