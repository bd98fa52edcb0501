"""Where every map lies, for any module, against the measured impulse response."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from impulse import check_grid, dependence
from rarefiable import Do
from torch import Tensor, nn

from fullyconv import build, presets
from fullyconv.errors import AlignmentError, SurgeryError
from fullyconv.geometry import Grid
from fullyconv.locate import locate, locate_outputs, positions
from fullyconv.places import Lost, Place
from fullyconv.tracing import trace

C = 2


def place_of(net: nn.Module, size: int = 64, channels: int = C) -> Place | Lost | None:
    (located,) = locate_outputs(net, channels=channels, size=(size, size))
    return located.where


def check(net: nn.Module, size: int, *, even: bool = True) -> int:
    """Compare what locate says of both axes with the impulse response; how many cells lie wholly inside."""
    net = net.double().eval()
    place = place_of(net, size)
    assert isinstance(place, Place), place
    assert place.axes == (-2, -1)
    down = check_grid(place.down, dependence(net, size, size, 0, C), even=even)
    return min(down, check_grid(place.across, dependence(net, size, size, 1, C), even=even))


def test_a_net_is_built_alike_in_inference_mode() -> None:
    net = nn.Sequential(nn.Conv2d(C, C, 3, 2, 1), nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    outside = place_of(net)
    with torch.inference_mode():
        assert place_of(net) == outside
        inside = build(presets.fcn16s("tinyvgg", 3, weights=None)).eval()
        inside.load_state_dict((plain := build(presets.fcn16s("tinyvgg", 3, weights=None)).eval()).state_dict())
        picture = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
        assert torch.equal(inside(picture)["out"], plain(picture)["out"])
    assert isinstance(outside, Place)


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def write(x: Tensor, f: nn.Module) -> Tensor:
    y = torch.empty_like(x)
    y[:, :1], y[:, 1:] = x[:, 1:], f(x)[:, :1]
    return y


def assign(x: Tensor, rows: slice, value: Tensor | float) -> Tensor:
    x = torch.zeros_like(x) if isinstance(value, Tensor) else x.clone()
    x[:, :, rows] = value
    return x


def strided_view(x: Tensor, f: nn.Module) -> Tensor:
    y = f(x)
    view = y[..., ::2, ::2]
    y.add_(x).relu_()
    return view


def fill_by_channels(x: Tensor, f: nn.Module) -> Tensor:
    """What the buffer held before is not known: it may have been coordinates."""
    y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    y[:, :1], y[:, 1:] = x[:, 1:], f(x)[:, :1]
    return y


def clear_channel(x: Tensor, f: nn.Module) -> Tensor:
    y = f(x)
    y[:, :1] = 0
    return y + x


def expanded_bias(x: Tensor, f: nn.Module) -> Tensor:
    y = f(x)
    return y * f.bias.view(1, -1, 1, 1).expand(y.shape) + x


def squeeze_view(x: Tensor, f: nn.Module) -> Tensor:
    y = f(x)
    y[:, :1].squeeze_(1)
    return y


def fill(x: Tensor, f: nn.Module) -> Tensor:
    """Buffers that are no maps yet, on the picture's device and on another."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    y.copy_(f(x))
    z = torch.zeros(x.shape, dtype=x.dtype)
    z[:] = f(y)
    return z + y.relu_() + torch.zeros_like(y).copy_(x)


def view_and_write(x: Tensor, f: nn.Module) -> Tensor:
    """The view, taken before, shows the convolution."""
    y = x.clone()
    view = y.permute(0, 2, 3, 1)
    y.add_(f(x))
    return view.permute(0, 3, 1, 2)


def conv(kernel: int = 3, stride: int = 1, padding: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(C, C, kernel, stride, padding, dilation, groups)


# Blocks that keep two channels; each is built anew for every net
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "convolution": conv,
    "even kernel, no padding": lambda: conv(4, padding=0),
    "strided": lambda: conv(3, 2),
    "dilated": lambda: conv(3, padding=2, dilation=2),
    "depthwise, too much padding": lambda: conv(3, padding=3, groups=C),
    "maximum pool, ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(2),
    "residual": lambda: Do(lambda x, f: F.relu(x + f(x)), conv()),
    "strided residual": lambda: Do(lambda x, f, g: f(x) + g(x), conv(3, 2), conv(1, 2, 0)),
    "residual of a slice": lambda: Do(lambda x, f: x[..., 1:-1, 1:-1] + f(x), conv(3, padding=0)),
    "concatenated branches": lambda: Do(
        lambda x, a, b, c: c(torch.cat([a(x), b(x), F.max_pool2d(x, 3, 1, 1)], 1)),
        conv(1, padding=0),
        conv(5, padding=2),
        nn.Conv2d(3 * C, C, 1),
    ),
    "split and joined": lambda: Do(lambda x, f: torch.cat([f(x).chunk(2, 1)[0], x[:, 1:]], 1), conv()),
    "asymmetric kernels": lambda: nn.Sequential(
        nn.Conv2d(C, C, (1, 7), padding=(0, 3)), nn.Conv2d(C, C, (7, 1), padding=(3, 0))
    ),
    "channels last": lambda: Do(
        lambda x, norm, a, b: x + b(F.gelu(a(norm(x.permute(0, 2, 3, 1))))).permute(0, 3, 1, 2),
        nn.LayerNorm(C),
        nn.Linear(C, 3),
        nn.Linear(3, C),
    ),
    "transposed twice": lambda: Do(lambda x, f: f(x.transpose(1, 3)).transpose(1, 3), nn.Linear(C, C)),
    "channel shuffle": lambda: Do(lambda x, f: shuffle(f(x)), conv()),
    "padded as TensorFlow does": lambda: Do(lambda x, f: f(F.pad(x, (0, 1, 0, 1))), conv(3, 2, 0)),
    "padded unevenly": lambda: Do(lambda x, f: f(F.pad(x, (2, 1, 1, 0))), conv(3, padding=0)),
    "reflected border": lambda: nn.Sequential(nn.ReflectionPad2d(1), conv(3, padding=0)),
    "every other cell": lambda: Do(lambda x: x[:, :, 1::2, ::2]),
    "in place": lambda: nn.Sequential(conv(), nn.ReLU(inplace=True), nn.Hardswish(inplace=True)),
    "norms": lambda: nn.Sequential(conv(), nn.BatchNorm2d(C), nn.PReLU(C), nn.Dropout(), nn.Softmax(1)),
    "a mean over channels": lambda: Do(lambda x: x * x.mean(1, keepdim=True) + x.amax(1)[:, None]),
    "a norm over channels": lambda: Do(lambda x, f: F.normalize(f(x)) / (1 + x.norm(p=1, dim=1, keepdim=True)), conv()),
    "channels picked": lambda: Do(
        lambda x, f: x[:, [1, 0]] + f(x).flip(1) + x.index_select(1, torch.tensor([0, 0])), conv()
    ),
    "channels repeated": lambda: Do(lambda x, f: f(x.repeat(1, 2, 1, 1)), nn.Conv2d(2 * C, C, 3, padding=1)),
    "gated by channels": lambda: Do(lambda x, f: F.glu(torch.cat([x, f(x)], 1), 1), conv()),
    "the least channel": lambda: Do(lambda x, f: f(x) - x.min(1, keepdim=True)[0], conv()),
    "zeros beside it": lambda: Do(
        lambda x, f: f(torch.cat([torch.zeros_like(x), x], 1)), nn.Conv2d(2 * C, C, 3, padding=1)
    ),
    "a leaky ReLU, random in training": lambda: nn.Sequential(conv(), nn.RReLU()),
    "channels written in place": lambda: Do(write, conv()),
    "statistics of channels": lambda: Do(
        lambda x, f: f(x) * x.std(1, keepdim=True) + x.logsumexp(1, keepdim=True) + x.prod(1, keepdim=True), conv()
    ),
    "channels in order": lambda: Do(
        lambda x, f: f(x).sort(1)[0] + x.topk(2, 1).values.roll(1, 1) + x.cumsum(1) + x.median(1, keepdim=True)[0],
        conv(),
    ),
    "the largest channel, gathered": lambda: Do(lambda x, f: f(x) + x.gather(1, x.argmax(1, keepdim=True)), conv()),
    "channels taken apart and stacked": lambda: Do(lambda x, f: torch.stack(f(x).unbind(1)[::-1], 1), conv()),
    "stacked behind the columns": lambda: Do(lambda x, f: torch.stack([x, f(x)], -1).sum(-1), conv()),
    "torch's channel shuffle": lambda: Do(lambda x, f: F.channel_shuffle(f(x), 2), conv()),
    "every other cell, seen before a ReLU": lambda: Do(strided_view, conv()),
    "a channel that is cleared": lambda: Do(clear_channel, conv()),
    "a constant as large as the map": lambda: Do(expanded_bias, conv()),
    "a view that is squeezed in place": lambda: Do(squeeze_view, conv()),
    "a buffer that is filled": lambda: Do(fill, conv()),
    "a view of what is then written": lambda: Do(view_and_write, conv()),
    "scaled by a parameter": lambda: Do(lambda x, f: x * f.bias.view(1, -1, 1, 1) + 0.5, conv()),
    "a real constant": lambda: Do(lambda x: x - torch.tensor([0.5, 0.25], dtype=x.dtype).view(1, 2, 1, 1)),
}
UNEVEN: dict[str, Callable[[], nn.Module]] = {
    "pixel unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * C, C, 1)),
    "pixel shuffle": lambda: nn.Sequential(nn.Conv2d(C, 4 * C, 1), nn.PixelShuffle(2)),
    "nearest": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    "bilinear by four": lambda: Do(lambda x: F.interpolate(x, size=(4 * x.shape[2], 4 * x.shape[3]), mode="bilinear")),
    "transposed convolution": lambda: nn.ConvTranspose2d(C, C, 4, 2, 1),
    "transposed convolution, gaps": lambda: nn.ConvTranspose2d(C, C, 3, 2, 1, output_padding=1),
    "transposed convolution, blocks": lambda: nn.ConvTranspose2d(C, C, 2, 2),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_lies_where_its_impulse_response_says(block: str) -> None:
    assert check(nn.Sequential(conv(3, 2), BLOCKS[block](), conv()), 40) > 0


@pytest.mark.parametrize("block", UNEVEN)
def test_a_refined_map_lies_where_its_impulse_response_says(block: str) -> None:
    assert check(nn.Sequential(conv(4, 4, 0), UNEVEN[block]()), 40, even=False) > 0


@settings(max_examples=25, deadline=None)
@given(names=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=4))
def test_any_stack_of_blocks_lies_where_its_impulse_response_says(names: list[str]) -> None:
    net = nn.Sequential(*(BLOCKS[name]() for name in names))
    place = place_of(net.double().eval(), 256)
    assert isinstance(place, Place)
    size = int(max(place.down.field, place.across.field) + 2 * place.down.stride + 6)
    assume(size <= 90)
    check(net, size)


def test_the_grid_of_a_known_net_is_exact() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=1))
    place = place_of(net, channels=3)
    assert isinstance(place, Place)
    assert place.grid == Grid(Fraction(4), Fraction(0), Fraction(7 + 2 * 2 + 4 * 2))


# Maps that are added a part of a cell apart


@pytest.mark.parametrize(
    ("net", "place", "spread"),
    [
        # A ResNet-D's shortcut averages 2x2 cells beside a convolution of stride 2.
        (Do(lambda x, f: f(x) + F.avg_pool2d(x, 2), conv(3, 2)), Grid(Fraction(2), Fraction(1, 2), Fraction(4)), "1/2"),
        # A coarser map is repeated beside a finer one, as in HRNet.
        (Do(lambda x, f: x + F.interpolate(f(x), scale_factor=2), conv(3, 2)), Grid(field=Fraction(5)), "1/2"),
        (
            Do(lambda x: torch.cat([x[..., 1:, 1:], x[..., :-1, :-1]], 1)),
            Grid(Fraction(1), Fraction(1), Fraction(3)),
            "1",
        ),
    ],
    ids=["ResNet-D", "HRNet", "neighbours"],
)
def test_a_sum_lies_where_its_most_local_part_does_and_its_field_holds_all(
    net: nn.Module, place: Grid, spread: str
) -> None:
    net = net.double()
    located = place_of(net, 24)
    assert isinstance(located, Place)
    assert (located.grid, located.spread) == (place, Fraction(spread))
    assert check_grid(located.down, dependence(net, 24, 24, 0, C), even=False) > 0


def test_a_reshaped_map_of_one_cell_has_the_axes_that_a_larger_one_has() -> None:
    net = nn.Sequential(nn.Conv2d(C, 4, 8, 8), Do(shuffle))
    assert place_of(net, 8) == place_of(net, 64)
    assert isinstance(place_of(net, 8), Place)


# What depends on the whole picture


class Excite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(F.adaptive_avg_pool2d(x, 1)).sigmoid()


def gate_of_a_buffer(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    view = y.permute(0, 2, 3, 1)
    y.add_(x)
    return x * view.mean((1, 2))[:, :, None, None]


def gate_of_a_real_buffer(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape, dtype=x.dtype)
    y.copy_(x)
    return x * y.mean((2, 3), keepdim=True)


def gate_of_a_view_of_a_real_buffer(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape, dtype=x.dtype)
    y.copy_(x)
    view = y[:, :C]
    y.mul_(x.mean((2, 3), keepdim=True))
    return view


def gate_behind_detach(x: Tensor) -> Tensor:
    y = x.clone()
    y.detach().mul_(x.mean((2, 3), keepdim=True))
    return y


def gate_behind_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    view = y[:, :C]
    y.mul_(x.mean((2, 3), keepdim=True))
    return view


@pytest.mark.parametrize(
    "net",
    [
        Excite(),
        nn.GroupNorm(1, C),
        nn.InstanceNorm2d(C),
        nn.LayerNorm([20, 20]),
        Do(lambda x: x - x.mean((2, 3), keepdim=True)),
        Do(lambda x: x.softmax(-1)),
        Do(lambda x: x / x.amax((-1, -2), keepdim=True)),
        Do(lambda x: x / x.norm(p=1, dim=(2, 3), keepdim=True)),
        Do(lambda x: x / x.norm()),
        Do(lambda x: x / x.std()),
        Do(gate_behind_a_view),
        Do(gate_of_a_buffer),
        Do(gate_of_a_real_buffer),
        Do(gate_of_a_view_of_a_real_buffer),
        Do(gate_behind_detach),
        Do(lambda x: x * x.mean((2, 3)).unsqueeze_(2).unsqueeze_(3)),
        Do(lambda x: F.batch_norm(x, x.mean((0, 2, 3)), x.var((0, 2, 3)))),
        Do(lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (C,), x.mean((0, 2, 3))).permute(0, 3, 1, 2)),
        Do(lambda x: x - x[..., :1]),
        Do(lambda x: F.conv2d(x, x.mean((0, 2, 3)).repeat(C).view(C, C, 1, 1))),
        Do(lambda x: F.conv2d(x, torch.ones(C, C, 1, 1, dtype=x.dtype), x.mean((0, 2, 3)))),
        Do(lambda x: F.linear(x.permute(0, 2, 3, 1), x.mean((0, 2, 3)).repeat(C).view(C, C)).permute(0, 3, 1, 2)),
    ],
    ids=[
        "squeeze and excite",
        "GroupNorm",
        "InstanceNorm",
        "LayerNorm over cells",
        "mean",
        "softmax",
        "maximum",
        "norm of each channel",
        "norm",
        "standard deviation",
        "seen through a view",
        "through a buffer",
        "through a real buffer",
        "through a view of a real buffer",
        "through what is detached",
        "a gate of axes added in place",
        "statistics of the picture",
        "a norm's weights of the picture",
        "the first column",
        "kernels of the picture",
        "bias of the picture",
        "a linear layer's weights of the picture",
    ],
)
def test_what_reads_the_whole_picture_keeps_its_cells_and_has_no_bounded_field(net: nn.Module) -> None:
    net = nn.Sequential(conv(3, 2), net).double()
    place = place_of(net, 40)
    assert isinstance(place, Place)
    assert (place.grid.stride, place.grid.offset, place.grid.field) == (2, 0, math.inf)
    # It is true: some cell sees a pixel far off.
    rows, columns = (dependence(net, 40, 40, axis, C) for axis in (0, 1))
    distance = (torch.arange(40)[:, None] - 2 * torch.arange(20)).abs()
    assert bool(((rows | columns) & (distance > 10)).any())


# What lies nowhere


def coordinates(x: Tensor) -> Tensor:
    """As CoordConv does."""
    y = torch.empty_like(x[:, :1])
    y[:, 0] = torch.linspace(0, 1, x.shape[3])
    return y


def transpose_into(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.transpose(2, 3).copy_(x)
    return y


def double(x: Tensor, part: Callable[[Tensor], Tensor], seen: Callable[[Tensor], Tensor]) -> Tensor:
    """A view of a map of which then a part is doubled."""
    y = x.clone()
    view = seen(y)
    part(y).mul_(2)
    return view


def double_each(x: Tensor) -> Tensor:
    y = x.clone()
    torch._foreach_mul_([y], 2.0)
    return y


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Do(lambda x: x.flatten(1)), "a reshape takes the rows or columns of the map apart"),
        (Do(lambda x: x.flatten(2).transpose(1, 2)), "a reshape takes the rows or columns of the map apart"),
        (Do(lambda x: x + torch.rand(1, 1, 64, 64)), "a constant of a fixed size, such as a position embedding"),
        (Do(lambda x: x.mean((2, 3))), "a mean or maximum over the whole picture"),
        (nn.AdaptiveAvgPool2d(3), "mixes or moves positions"),
        (Do(lambda x: torch.cat([x, x], 3)), "maps are put side by side"),
        (Do(lambda x: x[:, :, -8:]), "a slice counts from the far border"),
        (Do(lambda x: x[:, :, 3]), "one row or column of the map is picked"),
        (Do(lambda x: x + x.transpose(2, 3)), "different axes"),
        (Do(lambda x: x.flip(3)), "aten.flip mixes or moves positions"),
        (Do(lambda x: x[:, :, [1, 0]]), "aten.index mixes or moves positions"),
        (Do(lambda x: x[:, [[0, 1], [1, 0]]]), "aten.index mixes or moves positions"),
        (Do(lambda x: x[:, x.mean((0, 2, 3)).sort()[1]]), "aten.index mixes or moves positions"),
        (Do(lambda x: x.repeat(1, 1, 2, 1)), "aten.repeat mixes or moves positions"),
        (Do(lambda x: F.glu(x)), "aten.glu mixes or moves positions"),
        (Do(lambda x: assign(x, slice(1, None), x[:, :, :-1])), "a part of a map is written in place"),
        (Do(lambda x: assign(x, slice(8), 0.0)), "a part of a map is written in place"),
        (Do(lambda x: torch.roll(x, 1, 2)), "aten.roll mixes or moves positions"),
        (Do(lambda x: torch.roll(x, 1)), "aten.roll mixes or moves positions"),
        (Do(lambda x: x.sort()[0]), "aten.sort mixes or moves positions"),
        (Do(lambda x: x.topk(9, 2)[0]), "aten.topk mixes or moves positions"),
        (Do(lambda x: x.gather(3, x.argmax(1, keepdim=True))), "aten.gather mixes or moves positions"),
        (Do(lambda x: x.gather(1, torch.ones(2, 1, 64, 64, dtype=torch.long))), "a constant of a fixed size"),
        (Do(lambda x: x.unbind(3)[0]), "one row or column of the map is picked"),
        (Do(lambda x: torch.stack([x, torch.ones(1, 1, 1, 1).expand_as(x)])), "stacked with a constant"),
        (Do(lambda x: x[..., :1].expand(-1, -1, -1, 64)), "one row or column is repeated"),
        (Do(lambda x: x[..., :1] * torch.ones(64)), "one row or column is repeated"),
        (Do(lambda x: F.channel_shuffle(x.permute(0, 2, 3, 1), 2)), "treated as channels"),
        (Do(lambda x, f: f(x.permute(0, 2, 3, 1)), nn.BatchNorm2d(64)), "treated as channels"),
        (Do(lambda x: x.clone().unsqueeze_(-1)), "a map gets other axes in place"),
        (Do(lambda x: x.clone().transpose_(2, 3)), "a map gets other axes in place"),
        (Do(double_each), "writes to a map"),
        (Do(coordinates), "a part of a map is written in place"),
        (Do(lambda x, f: fill_by_channels(x, f), conv()), "a part of a map is written in place"),
        (Do(transpose_into), "a part of a map is written in place"),
        (Do(lambda x: double(x, lambda y: y[..., ::2, ::2], lambda y: y)), "a part of a map is written in place"),
        (Do(lambda x: double(x, lambda y: y[:, :, 8:], lambda y: y[:, :, :32])), "a part of a map is written in place"),
        (Do(lambda x: F.interpolate(x, scale_factor=2.01)), "a factor that is not whole"),
        (Do(lambda x: x.argmax()), "a mean or maximum over the whole picture"),
        (Do(lambda x: x[..., ::2, ::2] + x[..., :32, :32]), "their cells lie on different pixels"),
        (Do(lambda x: F.interpolate(x, size=(50, 50), mode="bilinear")), "a factor that is not whole"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "align_corners"),
        (Do(lambda x: F.pixel_shuffle(x.transpose(1, 3), 8)), "resized along axes that are not the picture's"),
        (Do(lambda x: F.pixel_unshuffle(x.transpose(1, 3), 2)), "cells along axes that are not the picture's"),
    ],
)
def test_what_lies_nowhere_is_lost_with_the_reason(net: nn.Module, reason: str) -> None:
    place = place_of(net)
    assert isinstance(place, Lost), place
    assert reason in place.reason


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(C, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(b, c, h, w)


def test_attention_leaves_no_cell_its_place_but_what_it_is_added_to_keeps_it() -> None:
    assert isinstance(place_of(nn.Sequential(conv(8, 8, 0), Attention())), Lost)
    place = place_of(nn.Sequential(conv(8, 8, 0), Do(lambda x, f: x + f(x), Attention())))
    assert isinstance(place, Place)
    assert place.grid == Grid(Fraction(8), Fraction(7, 2), math.inf)


def test_what_does_not_come_from_the_picture_is_nowhere() -> None:
    assert place_of(Do(lambda x: torch.zeros(1, 2, 8, 8))) is None


def test_batch_statistics_read_the_whole_picture() -> None:
    norm = nn.BatchNorm2d(C, track_running_stats=False)
    place = place_of(norm)
    assert isinstance(place, Place)
    assert place.grid.field == math.inf


# The interface


def test_axes_that_differ_have_no_one_grid() -> None:
    place = place_of(nn.Conv2d(C, C, 1, (1, 2)))
    assert isinstance(place, Place)
    assert (place.down.stride, place.across.stride) == (1, 2)
    with pytest.raises(AlignmentError, match="expected the same along both axes"):
        _ = place.grid


def test_a_net_that_does_not_run_is_told_in_one_line() -> None:
    for run in (
        lambda: locate_outputs(nn.Conv2d(C, C, 9), channels=C, size=(4, 4)),
        lambda: locate(trace(nn.Conv2d(C, C, 9)), channels=C, size=(4, 4)),
    ):
        with pytest.raises(SurgeryError, match="does not run on a 4x4 picture") as caught:
            run()
        assert "\n" not in str(caught.value)


def test_locating_leaves_the_net_as_it_was() -> None:
    net = nn.Sequential(conv(), nn.BatchNorm2d(C), nn.Dropout())
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    parameters = list(net.parameters())
    place_of(net)
    assert [m.training for m in net.modules()] == [True, True, False, True]
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_every_node_of_a_traced_net_is_located_and_maps_are_told_apart() -> None:
    net = nn.Sequential(conv(3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(C * 32 * 32, 5))
    located = locate(trace(net), channels=C, size=(64, 64))
    maps = dict(positions(located))
    assert [name for name in maps if name in ("_0", "_1", "_2", "_3")] == ["_0", "_1"]
    assert maps["_1"].grid == Grid().conv(3, 2, 1)
    assert isinstance(located["_3"].where, Lost)


def test_torchs_local_response_normalisation_leaves_a_map_where_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LocalResponseNorm(5), nn.Conv2d(8, 4, 3, 2, 1))
    (out,) = locate_outputs(net, channels=3, size=(64, 64))
    assert isinstance(out.where, Place)
    assert out.where.grid == Grid().conv(3, 2, 1).conv(3, 2, 1)
    (out,) = locate_outputs(nn.Sequential(nn.Unflatten(1, (1, 3)), nn.AvgPool3d(2)), channels=3, size=(8, 8))
    assert isinstance(out.where, Lost)
