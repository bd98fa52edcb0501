"""Depthwise convolutions that learn in bfloat16 on a CPU, with gradients in float32 where bfloat16 has no fast ones.

Of a depthwise convolution's gradients torch computes two in bfloat16 slower than in float32: that by the input where
there is a stride, and that by the weights where the kernel is dilated or larger than 3x3. In float32, conversions
included, a strided layer's gradients take a fifth to a tenth of the time, others half (`benchmarks/depthwise.py`).
MobileNets and their kin have a strided one at each halving, and learn a quarter faster (`benchmarks/training.py`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.utils import _pair

Pair = tuple[int, int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``; of a depthwise convolution in bfloat16 on a CPU, with gradients that are quick to compute.

    What it computes forward is the same; gradients are those of the same products, rounded less.

    Example:
        >>> weight = torch.ones(8, 1, 3, 3, dtype=torch.bfloat16, requires_grad=True)
        >>> scores = conv2d(torch.ones(1, 8, 5, 5, dtype=torch.bfloat16), weight, stride=2, groups=8)
        >>> scores.sum().backward()
        >>> weight.grad[0, 0, 0]
        tensor([4., 4., 4.], dtype=torch.bfloat16)
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
    depthwise = groups > 1 and input.ndim == 4 and weight.shape[:2] == (groups, 1)
    on_cpu = input.device.type == "cpu" and dtype == torch.bfloat16
    if depthwise and on_cpu and not isinstance(padding, str) and torch.is_grad_enabled():
        slow = _is_strided(_pair(stride)), _is_wide(weight, _pair(dilation))
        if any(slow):
            cast = (None if each is None else each.to(dtype) for each in (input, weight, bias))
            scores: Tensor = _Depthwise.apply(*cast, _pair(stride), _pair(padding), _pair(dilation))
            return scores
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _is_strided(stride: Pair) -> bool:
    return max(stride) > 1


def _is_wide(weight: Tensor, dilation: Pair) -> bool:
    return max(*dilation, *(side - 2 for side in weight.shape[2:])) > 1


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution; each gradient is taken in the precision that is quicker."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.bias_sizes = None if bias is None else [len(bias)]
        ctx.geometry = (stride, padding, dilation)
        return torch.conv2d(input, weight, bias, stride, padding, dilation, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        input, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        by_input, by_weight, by_bias = ctx.needs_input_grad[:3]

        def gradients(source: Tensor, *which: bool) -> list[Tensor | None]:
            """By input, weight and bias, in the precision of ``source``, which is the input or like it."""
            dtype, groups = source.dtype, len(weight)
            found = torch.ops.aten.convolution_backward(
                slope.to(dtype), source, weight.to(dtype), ctx.bias_sizes, stride, padding, dilation, False, (0, 0),
                groups, which,
            )  # fmt: skip
            return [None if each is None else each.to(input.dtype) for each in found]

        # The gradient by the input reads the input's shape and memory format, and none of its numbers.
        like = torch.empty_like(input, dtype=torch.float32) if _is_strided(stride) else input
        source = input.float() if _is_wide(weight, dilation) else input
        to_input = gradients(like, True, False, False)[0] if by_input else None
        _, to_weight, to_bias = gradients(source, False, by_weight, by_bias)
        return to_input, to_weight, to_bias, None, None, None
