"""What torch is slow at on a CPU while a net learns, and what does the same sooner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from fullyconv import depthwise
from fullyconv.dropout import dropout

SUBSTITUTES: Mapping[Any, Callable[..., Any]] = {torch.conv2d: depthwise.conv2d, F.dropout: dropout}


class Substitutes(TorchFunctionMode):
    """While it is entered, calls of torch's functions go to `SUBSTITUTES`, where there is one.

    It sees every call, whether by a module or not, so nets need no change. What a substitute is no better at, it leaves
    to torch; other calls pass through.

    Example:
        >>> conv = torch.nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        >>> with torch.autocast("cpu", torch.bfloat16), Substitutes():
        ...     scores = conv(torch.rand(1, 8, 32, 32))
        >>> scores.float().sum().backward()
        >>> scores.dtype, conv.weight.grad.shape
        (torch.bfloat16, torch.Size([8, 1, 3, 3]))
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return SUBSTITUTES.get(func, func)(*args, **(kwargs or {}))
