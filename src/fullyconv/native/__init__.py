"""Labels, probabilities, entropies and the loss at full resolution on the CPU, by a library in C++ (``kernel.cpp``).

The library is compiled when the package is built (``hatch_build.py``) and knows nothing of Python or torch. Where it is
not there, `fullyconv.dense` does the same in plain torch, slower. ``FULLYCONV_NATIVE=0`` in the environment, read at
the first use, switches it off. Nor is torch imported here before tensors come in, for `fullyconv.quick` has none.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    Taps = tuple[Tensor, Tensor, Tensor]
    """Of the pixels of an axis: (index int32, lower, upper float32), each is ``lower`` of cell ``index`` and ``upper``
    of the next. Cells that are not there are zeros. Weights are 0 or more, the two sum to 1."""

VERSION = 3
"""Of the library's functions, as ``fullyconv_version`` in ``kernel.cpp``."""

WIDEST = 16
"""Floats in the widest vector, up to whole ones of which the classes of a slope are stored."""

LIBRARY = Path(__file__).parent / {"win32": "_kernel.dll", "darwin": "_kernel.dylib"}.get(sys.platform, "_kernel.so")


class Kernel(NamedTuple):
    """The library, or why there is none."""

    library: ctypes.CDLL | None
    targets: tuple[str, ...] = ()
    """Instruction sets of this machine that it is compiled for, best first."""
    reason: str = ""


@cache
def kernel() -> Kernel:
    if os.environ.get("FULLYCONV_NATIVE", "1") == "0":
        return Kernel(None, reason="switched off (FULLYCONV_NATIVE=0)")
    if not LIBRARY.exists():
        return Kernel(None, reason="not built (no C++ compiler at installation)")
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return Kernel(None, reason=f"not loaded ({error})")
    if library.fullyconv_version() != VERSION:
        return Kernel(None, reason="built from other source (install the package again)")
    library.fullyconv_target.restype = ctypes.c_char_p
    targets: list[str] = []
    while name := library.fullyconv_target(len(targets)):
        targets.append(name.decode())
    return Kernel(library, tuple(targets))


def available() -> bool:
    return kernel().library is not None


def describe() -> str:
    """One line on what computes, for people.

    Example:
        >>> describe().startswith("native kernel: ")
        True
    """
    found = kernel()
    if found.library is None:
        return f"native kernel: {found.reason}; torch is used"
    import torch

    threads = torch.get_num_threads()
    return f"native kernel: {found.targets[0]}, {threads} {'thread' if threads == 1 else 'threads'}"


def reduce(
    scores: Tensor,
    rows: Taps,
    columns: Taps,
    *,
    labels: Tensor | None = None,
    probability: Tensor | None = None,
    entropy: Tensor | None = None,
    target: str | None = None,
) -> None:
    """Fill ``labels``, ``labels`` and ``probability``, or ``entropy``.

    The score of a pixel is ``wy0 * (wx0 * a + wx1 * b) + wy1 * (wx0 * c + wx1 * d)`` of its four cells in float32, each
    product and sum rounded, on every machine; a cell of weight 0 is left out, whatever it holds.

    Args:
        scores: (B, K, h, w) float32 on the CPU, any strides.
        rows, columns: what pixels take of cells.
        labels: (B, H, W) uint8 or int32, contiguous, as are the others: the first of the largest scores, or first NaN.
        probability: (B, H, W) float32, 1/K..1, of the label, to 1e-6 of itself.
        entropy: (B, H, W) float32, 0..ln K nats, of the softmax, to 1e-6.
        target: one of `Kernel.targets`; None: the best.

    Raises:
        MemoryError: no room for a few rows of cells to each thread.
    """
    import torch

    library, targets, _ = kernel()
    assert library is not None
    values = entropy if probability is None else probability
    mode = 2 if entropy is not None else 0 if probability is None else 1
    assert scores.dtype == torch.float32
    assert scores.device.type == "cpu"
    assert mode == 2 or (labels is not None and labels.dtype in (torch.uint8, torch.int32) and labels.is_contiguous())
    assert values is None or (values.dtype == torch.float32 and values.is_contiguous())
    failed = library.fullyconv_reduce(
        *_arguments(scores, rows, columns),
        mode,
        ctypes.c_void_p(None if labels is None else labels.data_ptr()),
        int(labels is not None and labels.dtype == torch.int32),
        ctypes.c_void_p(None if values is None else values.data_ptr()),
        torch.get_num_threads(),
        _team(),
        0 if target is None else targets.index(target),
    )
    if failed:
        raise MemoryError("no memory for a few rows of scores")


def cross_entropy(
    scores: Tensor,
    rows: Taps,
    columns: Taps,
    labels: Tensor,
    *,
    void: int,
    weights: Tensor | None,
    slope: bool,
    target: str | None = None,
) -> tuple[float, float, Tensor | None]:
    """The loss summed over pixels, the sum of their weights, and the slope by the scores if it is wanted.

    Args:
        scores: (B, K, h, w) float32 on the CPU, any strides, finite.
        rows, columns: what pixels take of cells.
        labels: (B, H, W) int64, 0..K-1 or ``void``.
        weights: (K,) float32, 0 or more; None: 1.
        slope: whether to give it: (B, K, h, w) float32, the same bits by however many threads.
        target: one of `Kernel.targets`; None: the best.

    Raises:
        IndexError: a label is neither a class nor void.
        MemoryError: no room for a few rows of cells to each thread.
    """
    import torch

    library, targets, _ = kernel()
    assert library is not None
    pictures, classes, height, width = scores.shape
    assert scores.dtype == torch.float32
    assert scores.device.type == "cpu"
    assert labels.dtype == torch.int64
    assert labels.shape == (pictures, len(rows[0]), len(columns[0]))
    labels = labels.contiguous()
    weights = None if weights is None else weights.detach().float().contiguous()
    assert weights is None or weights.shape == (classes,)
    padded = -(-classes // WIDEST) * WIDEST
    slopes = torch.zeros(pictures, height, width, padded) if slope else None
    sums = (ctypes.c_double * 2)()
    failed = library.fullyconv_cross_entropy(
        *_arguments(scores, rows, columns),
        _Pointer(labels),
        ctypes.c_int64(void),
        ctypes.c_void_p(None if weights is None else weights.data_ptr()),
        ctypes.c_void_p(None if slopes is None else slopes.data_ptr()),
        ctypes.c_int64(padded),
        sums,
        torch.get_num_threads(),
        _team(),
        0 if target is None else targets.index(target),
    )
    if failed == 3:
        raise IndexError(f"labels: some are neither 0..{classes - 1} nor {void}")
    if failed:
        raise MemoryError("no memory for a few rows of scores")
    return sums[0], sums[1], None if slopes is None else slopes[..., :classes].permute(0, 3, 1, 2)


@cache
def _team() -> ctypes.c_void_p:
    """By which the library works in the threads that torch computes with; null: in threads of its own.

    Those of torch spin for some milliseconds after each operation, in wait for the next one, and others beside them
    would have to share their cores. They are those of the OpenMP runtime that torch has loaded, where it is one that
    knows ``GOMP_parallel``, as on Linux.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p)
    except (AttributeError, OSError, TypeError):
        return ctypes.c_void_p(None)


def _arguments(scores: Tensor, rows: Taps, columns: Taps) -> list[object]:
    """What both functions take first: the scores, how they lie, and the axes."""
    import torch

    axes = [axis.contiguous() for axis in (*rows, *columns)]
    assert [axis.dtype for axis in axes] == [torch.int32, torch.float32, torch.float32] * 2
    shape = (ctypes.c_int64 * 6)(*scores.shape, len(axes[0]), len(axes[3]))
    strides = (ctypes.c_int64 * 4)(*scores.stride())
    return [_Pointer(scores), shape, strides, *map(_Pointer, axes)]


class _Pointer:
    """An argument of ctypes that keeps its tensor alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._as_parameter_ = ctypes.c_void_p(tensor.data_ptr())
