"""The same model, which computes what lies around a picture once for each size: the authors' geometry at less cost.

Padded by 100, a picture of 500x500 is one of 700x700, and half of that is frame. Cells that do not see the picture have
values that depend on the weights and the size alone. So the trunk is cut where its maps get coarser, and behind each
layer where they are small, and each part runs like a tile: on what the cells that see the picture read. Around what it
gives is put what a first, ordinary run gave there. Scores are those of the plain run.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import NamedTuple

import torch
import torch.fx
from torch import Tensor, nn

from fullyconv.geometry import Grid
from fullyconv.model import FCN
from fullyconv.parts import Part, parts_of

WHOLE = 0.9
"""Share of a map from which on a part reads all of it: less is saved than putting maps together costs."""


class Margined(FCN):
    """A model that keeps the maps around the picture, as far as the picture does not reach, for sizes that come again.

    The first picture of a size runs as ever and leaves its margins, a few MB: 6 in bf16 and 12 in float32 for VGG16 at
    500x500, with FCN-8s. Further ones, in batches of any size, are computed inside them only. Other weights get other
    margins, but for what is written through ``weight.data``, which nothing counts. Where gradients are wanted, in train
    mode, and where `parts_of` finds nothing, the model runs as ever.
    Threads may share it.

    Args:
        model: in eval mode; is shared, not copied.
        keep: sizes whose margins are kept; those that were not used for longest go.

    Example:
        >>> import fullyconv
        >>> config = fullyconv.presets.fcn8s("tinyvgg", classes=3, weights=None, geometry="pad100")
        >>> model = fullyconv.build(config).eval()
        >>> margined, picture = Margined(model), torch.rand(1, 3, 50, 70)
        >>> with torch.no_grad():
        ...     first, second = (margined.score_maps(picture)["out"] for _ in range(2))
        >>> torch.allclose(first, second, atol=1e-5)
        True
    """

    def __init__(self, model: FCN, *, keep: int = 4) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(model.__dict__)
        read = [skip.tap for head in self._heads.values() for skip in head.skips]
        frame = self.frame(1, 1)
        smallest = (1 + frame.top + frame.bottom, 1 + frame.left + frame.right)
        self._parts: Sequence[Part] = ()
        if isinstance(self.backbone.net, torch.fx.GraphModule):
            (output,) = self.backbone.net.graph.find_nodes(op="output")
            taps = {node.name: tap for node, tap in zip(output.args[0], self.backbone.taps, strict=True) if tap in read}
            self._parts = parts_of(self.backbone.net, taps, channels=self.channels, size=smallest)
        self._keep = keep
        self._kept: OrderedDict[Hashable, list[Margin | None]] = OrderedDict()
        self._weights: list[tuple[Tensor, int]] = []
        self._lock = Lock()

    def score_maps(self, image: Tensor) -> dict[str, Tensor]:
        framed = self.preprocess(image)
        weights = [*self.backbone.parameters(), *self.backbone.buffers()]
        fixed = not any(module.training for module in self.backbone.modules())
        traced = not any(weight.is_inference() for weight in weights)  # changes of these are not counted
        if not (self._parts and fixed and traced) or torch.is_grad_enabled():
            return self.scores_of(framed)
        kind, size = framed.device.type, (image.shape[2], image.shape[3])
        casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        key = (size, framed.dtype, framed.device, casts and torch.get_autocast_dtype(kind))
        with self._lock:
            self._forget_if_changed(weights)
            margins = self._kept.get(key)
            if margins is not None:
                self._kept.move_to_end(key)
        if margins is not None:
            maps = self._inside(framed, margins)
        else:
            maps, margins = self._measure(framed, size)
            with self._lock:
                self._kept[key] = margins
                if len(self._kept) > self._keep:
                    self._kept.popitem(last=False)
        return {name: head.score_map(maps) for name, head in self._heads.items()}

    def _forget_if_changed(self, weights: Sequence[Tensor]) -> None:
        now = [(weight.data_ptr(), weight._version) for weight in weights]
        if now != [(weight.data_ptr(), version) for weight, version in self._weights]:
            self._kept.clear()
            # Held, so that others cannot come to lie where they lay.
            self._weights = [(weight.detach(), weight._version) for weight in weights]

    def _measure(self, framed: Tensor, size: tuple[int, int]) -> tuple[dict[str, Tensor], list[Margin | None]]:
        """The maps that heads read, from a plain run, and the margins of all parts."""
        maps = [framed]
        for part in self._parts:
            maps.append(part.run(maps[-1])[0])
        frame = self.frame(*size)
        picture = (Span(frame.top, frame.top + size[0]), Span(frame.left, frame.left + size[1]))
        read = {part.tap: of for part, of in zip(self._parts, maps[1:], strict=True) if part.tap}
        return read, list(_margins(self._parts, maps, picture))

    def _inside(self, framed: Tensor, margins: Sequence[Margin | None]) -> dict[str, Tensor]:
        """The maps that heads read, computed inside their margins."""
        read, map_ = {}, framed
        for part, margin in zip(self._parts, margins, strict=True):
            map_ = part.run(map_)[0] if margin is None else margin.around(part.run(map_[(..., *margin.reads)])[0])
            if part.tap:
                read[part.tap] = map_
        return read


class Span(NamedTuple):
    """Pixels or cells along one axis, from ``start`` up to but not with ``stop``."""

    start: int
    stop: int

    def after(self, start: int) -> slice:
        """The same, counted from another first."""
        return slice(self.start - start, self.stop - start)


Spans = tuple[Span, Span]
"""Rows and columns."""


@dataclass(frozen=True)
class Margin:
    """What a part computes for pictures of one size, and what is put around it.

    Attributes:
        reads: rows and columns of the map that comes in.
        gives: of what the part makes of them, the rows and columns that see the picture.
        place: their rows and columns in the map that goes out.
        size: (h, w) of that.
        sides: what surrounds them there: rows, columns, values (1, C, rows, columns).
    """

    reads: tuple[slice, slice]
    gives: tuple[slice, slice]
    place: tuple[slice, slice]
    size: tuple[int, int]
    sides: tuple[tuple[slice, slice, Tensor], ...]

    def around(self, computed: Tensor) -> Tensor:
        last = computed.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        shape = (*computed.shape[:2], *self.size)
        whole = torch.empty(shape, dtype=computed.dtype, device=computed.device, memory_format=layout)
        whole[(..., *self.place)] = computed[(..., *self.gives)]
        for rows, columns, values in self.sides:
            whole[..., rows, columns] = values
        return whole


def _margins(parts: Sequence[Part], maps: Sequence[Tensor], picture: Spans) -> Iterator[Margin | None]:
    """The margin of each part, None for one that reads all there is.

    Args:
        maps: the framed picture and, whole, what each part gave.
        picture: its rows and columns inside its frame.
    """
    everything = [(Span(0, of.shape[2]), Span(0, of.shape[3])) for of in maps]
    seeing: list[Spans] = []
    reads: list[Spans] = []
    for part, before, after in zip(parts, everything, everything[1:], strict=False):
        down, across = (_seeing(part.grid, pixels, of.stop) for pixels, of in zip(picture, after, strict=True))
        seeing.append((down, across))
        needed = (_needed(part, down, before[0].stop), _needed(part, across, before[1].stop))
        reads.append(needed if _area(needed) < WHOLE * _area(before) else before)
    held = everything[0]
    for i, part in enumerate(parts):
        if reads[i] == everything[i]:
            held = everything[i + 1]
            yield None
            continue
        step = int(part.grid.stride / part.source.stride)
        target = everything[i + 1] if part.tap else reads[i + 1]
        window = [
            Span(min(max(span.start, of.start), of.stop), max(of.start, min(span.stop, of.stop)))
            for span, of in zip(seeing[i], target, strict=True)
        ]
        (top, bottom), (left, right) = window
        sides = [
            (Span(target[0].start, top), target[1]),
            (Span(bottom, target[0].stop), target[1]),
            (window[0], Span(target[1].start, left)),
            (window[0], Span(right, target[1].stop)),
        ]
        yield Margin(
            reads=_relative(reads[i], [span.start for span in held]),
            gives=_relative(window, [span.start // step for span in reads[i]]),
            place=_relative(window, [span.start for span in target]),
            size=(target[0].stop - target[0].start, target[1].stop - target[1].start),
            sides=tuple(
                (
                    *_relative(side, [span.start for span in target]),
                    maps[i + 1][:1, :, slice(*side[0]), slice(*side[1])].clone(),
                )
                for side in sides
                if _area(side)
            ),
        )
        held = target


def _seeing(grid: Grid, pixels: Span, cells: int) -> Span:
    """The cells of a map that see some of these pixels; at least one."""
    reach = (grid.field - 1) / 2
    first = math.ceil((pixels.start - reach - grid.offset) / grid.stride)
    last = math.floor((pixels.stop - 1 + reach - grid.offset) / grid.stride)
    first = min(max(first, 0), cells - 1)
    return Span(first, min(max(last, first) + 1, cells))


def _needed(part: Part, cells: Span, there: int) -> Span:
    """What a part reads for these cells, from where whole strides of it begin.

    Beyond the borders that the map has itself, layers pad as they always do.
    """
    step = part.grid.stride / part.source.stride
    first = (part.grid.offset - part.source.offset) / part.source.stride
    reach = (part.grid.field - part.source.field) / (2 * part.source.stride)
    start = math.floor((first + step * cells.start - reach) / step) * int(step)
    stop = math.floor(first + step * (cells.stop - 1) + reach) + 1
    return Span(max(0, start), min(stop, there))


def _area(spans: Sequence[Span]) -> int:
    return math.prod(span.stop - span.start for span in spans)


def _relative(spans: Sequence[Span], starts: Sequence[int]) -> tuple[slice, slice]:
    down, across = (span.after(start) for span, start in zip(spans, starts, strict=True))
    return down, across
