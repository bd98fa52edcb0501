"""The same model with its launches recorded: CUDA graphs, one for each shape that comes again.

A net of many small layers spends more time on launching kernels than in them when pictures are small or few. A graph
is launched at once. It is good for one shape only; framed pictures are whole strides high and wide, so that pictures of
many sizes share few shapes.

What a CPU can test is tested there, with recorders that record nothing; no device has run `Recorder` yet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import cached_property
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from fullyconv.model import FCN

Scores = Callable[[Tensor], dict[str, Tensor]]
"""Framed picture (B, C, H, W) -> score maps (B, K, h, w) by head name."""
Record = Callable[[Scores, Tensor], Scores]
"""A function, and an input of the shape for which it is to be recorded -> the same function, for that shape."""

LIMIT = 1 << 21
"""Pixels of a batch above which a device is busy without graphs."""


class Graphed(FCN):
    """A model that replays its score maps on CUDA for shapes that come again.

    The first picture of a shape runs as ever; the second is recorded; from then on the graph is replayed. Where
    gradients are wanted, or more than `LIMIT` pixels come, nothing is recorded. Numbers are those of the model.

    Args:
        model: in eval mode, on its device, where it stays; is shared, not copied.
        keep: shapes that are remembered; the one that was not used for longest goes.
        record: makes a graph; None: a `Recorder` does.
    """

    def __init__(self, model: FCN, *, keep: int = 16, record: Record | None = None) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(model.__dict__)
        self._plain = model.scores_of
        self._keep = keep
        self._record = record or Recorder()
        self._shapes: OrderedDict[Hashable, Scores | None] = OrderedDict()
        # One input and one output for each graph: two threads would write over each other's.
        self._lock = Lock()

    def scores_of(self, framed: Tensor) -> dict[str, Tensor]:
        if torch.is_grad_enabled() or len(framed) * framed.shape[2] * framed.shape[3] > LIMIT:
            return self._plain(framed)
        kind = framed.device.type
        key = (framed.shape, framed.dtype, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind))
        with self._lock:
            again = key in self._shapes
            replay = self._shapes.pop(key, None)
            if again and replay is None:
                replay = self._recorded(framed)
            self._shapes[key] = replay
            if len(self._shapes) > self._keep:
                self._shapes.popitem(last=False)
            return (replay or self._plain)(framed)

    def _recorded(self, framed: Tensor) -> Scores:
        try:
            return self._record(self._plain, framed)
        except RuntimeError:
            # A net that asks the device something on its way cannot be recorded. It runs as ever; so will an error that
            # has other causes come again, and from there.
            return self._plain


class Recorder:
    """Records functions as CUDA graphs, which share one pool of memory.

    They may share it because whatever a graph gives is copied before the next one is launched.
    """

    @cached_property
    def _pool(self) -> Any:  # opaque
        return torch.cuda.graph_pool_handle()

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()  # memory is shared by what is recorded on one stream

    def __call__(self, scores_of: Scores, framed: Tensor) -> Scores:
        """Warm up on a side stream, record, and give what replays."""
        kind = framed.device.type
        with torch.inference_mode(False):  # else only inference mode could ever write to it
            given = torch.empty_like(framed)
        graph = torch.cuda.CUDAGraph()
        # Autocast keeps weights that it has cast until its context ends: a graph would go on reading them.
        uncached = torch.autocast(
            kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind), cache_enabled=False
        )
        with torch.cuda.device(framed.device), uncached:
            given.copy_(framed)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(3):  # libraries choose algorithms and take workspaces, which cannot be recorded
                    scores_of(given)
            torch.cuda.current_stream().wait_stream(self._stream)
            # Other threads may go on with pictures of their own.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                made = scores_of(given)

        def replay(framed: Tensor) -> dict[str, Tensor]:
            given.copy_(framed)
            graph.replay()
            return {name: scores.clone() for name, scores in made.items()}

        return replay
