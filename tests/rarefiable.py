"""Random nets, and live weights for them: what `rarefy` and `shift_and_stitch` are tested on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from fullyconv.errors import SurgeryError
from fullyconv.locate import Located, locate_outputs

C = 4


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def conv(
    kernel: int | tuple[int, int] = 3,
    stride: int | tuple[int, int] = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Conv2d:
    return nn.Conv2d(C, C, kernel, stride, padding, dilation, groups)


class Weighted(nn.Conv2d):
    """A convolution whose weights are made anew at every call, as standardised ones are."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, groups=self.groups)


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


# Blocks keep C channels; each is built anew for every net
POINTWISE: dict[str, Callable[[], nn.Module]] = {
    "leaky ReLU": nn.LeakyReLU,
    "batch norm": lambda: nn.BatchNorm2d(C),
    "channel shuffle": lambda: Do(shuffle),
    "split and joined": lambda: Do(lambda x, f: torch.cat([f(x).chunk(2, 1)[1], x[:, :2]], 1), conv(1)),
    "softmax over channels": lambda: Do(lambda x: x + torch.softmax(x, 1)),
    "norm over neighbouring channels": lambda: Do(
        lambda x: x / (1 + sum(F.pad(x.pow(2), (0, 0, 0, 0, 1, 1))[:, i : i + C] for i in range(3)))
    ),
    "linear over permuted channels": lambda: Do(
        lambda x, f: f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.Linear(C, C)
    ),
}

UNPADDED: dict[str, Callable[[], nn.Module]] = {
    "convolution": conv,
    "even kernel": lambda: conv(4, 2),
    "strided": lambda: conv(3, 2),
    "strided by 3": lambda: conv(3, 3, groups=2),
    "kernel below stride": lambda: conv(1, 2),
    "dilated": lambda: conv(2, 1, dilation=2, groups=C),
    "dilated and strided": lambda: conv(3, 2, dilation=2),
    "other rows than columns": lambda: conv((1, 3), (2, 1)),
    "functional convolution": lambda: Weighted(C, C, 3, 2),
    "maximum pool": lambda: nn.MaxPool2d(2),
    "overlapping maximum pool": lambda: nn.MaxPool2d(3, 2),
    "dilated maximum pool": lambda: nn.MaxPool2d((2, 3), 1, dilation=2),
    "average pool": lambda: nn.AvgPool2d(2),
    "average pool, own divisor": lambda: nn.AvgPool2d((3, 2), 2, divisor_override=5),
    "functional pools": lambda: Do(lambda x: F.max_pool2d(x, 2, stride=1) - F.avg_pool2d(x, kernel_size=2, stride=1)),
    "functional strided pools": lambda: Do(lambda x: F.max_pool2d(x, 2) - F.avg_pool2d(x, kernel_size=2)),
    "residual of a crop": lambda: Do(lambda x, f: x[..., 1:-1, 1:-1] + f(x), conv()),
    "strided slice": lambda: Do(lambda x: x[:, :, 1::2, :-1:2]),
    "crop at the end": lambda: Do(lambda x: x[:, :, :-1]),
    "strided residual": lambda: Do(lambda x, f, g: f(x[:, :, 1:-1, 1:-1]) + g(x), conv(1, 2), conv(3, 2)),
    "concatenated branches": lambda: Do(
        lambda x, a, b, c: c(torch.cat([a(x), b(x)], 1)), conv(3, 2), nn.MaxPool2d(3, 2), nn.Conv2d(2 * C, C, 1)
    ),
    "one convolution twice": lambda: Do(lambda x, f, p: f(p(f(x))), conv(2), nn.MaxPool2d(2)),
    "one strided convolution twice": lambda: Do(lambda x, f: f(f(x)), nn.Conv2d(C, C, 2, 2, bias=False)),
    "one pool twice": lambda: Do(lambda x, f, p: p(f(p(x))), conv(2), nn.AvgPool2d(3, 2)),
}

PADDED: dict[str, Callable[[], nn.Module]] = {
    "padded convolution": lambda: conv(3, padding=1),
    "strided and padded": lambda: conv(3, 2, padding=1),
    "same, even kernel": lambda: conv((4, 3), padding="same"),
    "too much padding": lambda: conv(1, 1, padding=2),
    "one padded convolution twice": lambda: Do(lambda x, f, p: f(p(f(x))), conv(2, padding="same"), nn.MaxPool2d(2)),
    "padded maximum pool": lambda: nn.MaxPool2d(3, 2, padding=1),
    "even padded maximum pool": lambda: nn.MaxPool2d(2, 2, padding=1),
    "maximum pool, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "padded maximum pool, ceil": lambda: nn.MaxPool2d((2, 3), (2, 3), padding=1, ceil_mode=True),
    "padded average pool": lambda: nn.AvgPool2d(3, 2, padding=1),
    "padded average pool, padding not counted": lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    "average pool, ceil": lambda: nn.AvgPool2d((2, 3), (3, 2), ceil_mode=True),
    "padded average pool, ceil": lambda: nn.AvgPool2d(3, 3, padding=1, ceil_mode=True),
    "padded average pool, ceil, padding not counted": lambda: nn.AvgPool2d(
        3, 2, padding=1, ceil_mode=True, count_include_pad=False
    ),
    "constant padding": lambda: nn.ConstantPad2d((1, 0, 2, 1), 0.5),
    "functional padding": lambda: Do(lambda x: F.pad(x, (2, 1, 0, 1), value=-1.0)),
    "residual": lambda: Do(lambda x, f: x + f(x), conv(3, padding=1)),
}


def live(net: nn.Module, seed: int = 0) -> nn.Module:
    """The net in double precision, with weights and statistics that keep a signal alive, in place."""
    generator = torch.Generator().manual_seed(seed)

    def randn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(randn(module.weight) * (2 / module.weight[0].numel()) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(0.1 * randn(module.bias))
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(1 + 0.1 * randn(module.weight))
                module.bias.copy_(0.1 * randn(module.bias))
                module.running_mean.copy_(0.1 * randn(module.running_mean))
                module.running_var.copy_(0.5 + randn(module.running_var) ** 2)
    return net.double().eval()


def picture(height: int, width: int, channels: int = 3, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def output_of(net: nn.Module, height: int, width: int, channels: int = C) -> Located:
    (located,) = locate_outputs(net, channels=channels, size=(height, width))
    return located


def alive(one: Tensor) -> bool:
    """Whether a map has more than one value, so that another can be told from it."""
    return one.numel() < 10 or bool(one.std() > 1e-6 * one.abs().max())


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two live maps are equal to rounding."""
    assert alive(one), "a dead net equals anything"
    return one.shape == other.shape and bool((one - other).abs().max() <= 1e-11 * one.abs().max())


@st.composite
def nets(draw: st.DrawFn, *, padded: bool) -> tuple[nn.Module, tuple[int, int]]:
    """A net of C channels with stride 2 to 12, and a picture's (height, width) for it."""
    table = POINTWISE | UNPADDED | (PADDED if padded else {})
    names = draw(st.lists(st.sampled_from(sorted(table)), min_size=2, max_size=6))
    net = live(nn.Sequential(*(table[name]() for name in names)), seed=draw(st.integers(0, 1000)))
    try:
        place = output_of(net, 200, 200).where
        strides = int(place.down.stride), int(place.across.stride)
        assume(2 <= max(strides) <= 12)
        least = [1 if padded else int(grid.field) for grid in (place.down, place.across)]
        height, width = (draw(st.integers(n, n + 2 * max(strides) + 5)) for n in least)
        assume(min(output_of(net, height, width).shape) > 0)
    except SurgeryError:  # not a cell is left
        assume(False)
    return net, (height, width)
