"""Classifiers that users make, of every shape that surgery has met, and how they are brought to life."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fullyconv.surgery import Plan

Forward = Callable[["Net", Tensor], Tensor]


def enliven(net: nn.Module, pictures: Tensor) -> None:
    """Random values everywhere, statistics included, and a unit signal behind every layer.

    Independent of surgery's own way of doing so. Random numbers are tiled, since a hundred million take seconds.
    """
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if not tensor.is_floating_point():
                tensor.zero_()
                continue
            noise = block.repeat(-(-tensor.numel() // len(block)))[: tensor.numel()].view(tensor.shape).to(tensor)
            # Norms' weights, variances and layer scales lie about 1; biases and means about 0.
            about_one = tensor.dim() == 3 or (tensor.dim() == 1 and name.endswith(("weight", "running_var")))
            tensor.copy_(1 + 0.3 * noise.tanh() if about_one else 0.2 * noise if tensor.dim() == 1 else noise)

    def to_unit(module: nn.Module, args: object, out: Tensor) -> Tensor:
        spread = out.std()
        module.weight.div_(spread)
        if module.bias is not None:
            module.bias.div_(spread)
        return out / spread

    hooks = [m.register_forward_hook(to_unit) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net.eval()(pictures)
    for hook in hooks:
        hook.remove()


def pictures_of(size: int, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    blobs = F.interpolate(
        torch.randn(2, channels, 5, 5, generator=generator, dtype=dtype),
        size=size,
        mode="nearest",
    )
    return blobs * torch.tensor([1.0, 3.0], dtype=dtype).view(2, 1, 1, 1) + 0.2 * torch.randn(
        2, channels, size, size, generator=generator, dtype=dtype
    )


def relative_error(want: Tensor, got: Tensor) -> float:
    """Largest difference, in units of what distinguishes two pictures."""
    return float((want - got).abs().max() / (want[0] - want[1]).abs().max())


def assert_read_at_every_position(net: nn.Module, made: Plan, *, blocks: int = 3) -> None:
    """Without padding, cell (i, j) of the dense net is the classifier on the crop that begins at (i, j) strides."""
    net = net.eval()
    dense = made.apply(verify=False).eval()
    size, stride = made.image_size, made.stride
    dtype = next(net.parameters()).dtype
    picture = torch.randn(
        1,
        made.channels,
        size + (blocks - 1) * stride,
        size + blocks * stride,
        generator=torch.Generator().manual_seed(5),
        dtype=dtype,
    )
    with torch.no_grad():
        scores = dense(picture)
        crops = [
            net(picture[:, :, i * stride : i * stride + size, j * stride : j * stride + size].repeat(2, 1, 1, 1))[:1]
            for i in range(blocks)
            for j in range(blocks + 1)
        ]
    assert scores.shape[2:] == (blocks, blocks + 1)
    want = torch.stack(crops, -1).view(1, -1, blocks, blocks + 1)
    assert (want[..., 0, 0] - want[..., 1, 1]).abs().max() > 1e-6, "a dead net equals anything"
    torch.testing.assert_close(scores, want, rtol=1e-9, atol=1e-11)


WIDTH = 8


class Net(nn.Module):
    """An unpadded trunk of stride 4 and a head of one's own."""

    def __init__(self, head: Forward, inputs: int = WIDTH, channels: int = 3) -> None:
        super().__init__()
        self.trunk = trunk(channels)
        self.fc = nn.Linear(inputs, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.act = nn.ReLU()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self, self.trunk(x))


def trunk(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, WIDTH, 3, 2),
        nn.ReLU(),
    )


def layers(*head: nn.Module, channels: int = 3) -> nn.Module:
    return nn.Sequential(trunk(channels), *head)


class View(nn.Module):
    """A childless module of one's own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1)


class BothPools(nn.Module):
    """The head of fastai's learners."""

    def __init__(self) -> None:
        super().__init__()
        self.average, self.maximum = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.maximum(x), self.average(x)], 1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(F.gelu(self.a(x)))


class LayerTwice(nn.Module):
    """One linear layer and one convolution, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.act = (
            nn.Conv2d(3, WIDTH, 3, 2),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.ReLU(),
        )
        self.hidden, self.fc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(self.act(self.conv(self.stem(x)[..., ::2, ::2]))))
        return self.fc(self.act(self.hidden(self.act(self.hidden(x.mean((2, 3)))))))


class ReadsTraining(Net):
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        scores = self.fc(self.trunk(x).mean((2, 3)))
        return (scores, scores) if self.training else scores


class GatedByVectors(Net):
    """A squeeze-and-excite block as most write it: the gate is computed on vectors, and viewed as a map again."""

    def __init__(self, head: Forward) -> None:
        super().__init__(head)
        self.gate = nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, WIDTH), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        b, c, _, _ = x.size()
        gate = self.gate(self.pool(x).view(b, c)).view(b, c, 1, 1)
        return self.fc((x * gate.expand_as(x)).mean((2, 3)))


class PowerMean(Net):
    """The generalised mean of Radenovic et al., whose pool has the size of the map for its kernel."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x).clamp(min=1e-6).pow(3)
        return self.fc(F.avg_pool2d(x, (x.size(-2), x.size(-1))).pow(1 / 3).flatten(1))


class WidthFromShape(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        b, c, h, w = x.shape
        return self.fc(x.reshape(b, c * h * w))


class Calibrated(Net):
    """Scores and pooled values with a scale and a bias of their own."""

    def __init__(self) -> None:
        super().__init__(lambda s, x: x)
        self.scale, self.bias = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(1, 5))
        self.mean = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale.exp() * (self.mean - self.trunk(x).mean((2, 3)))
        x = torch.mul(x, self.scale) / (self.mean + 1)
        return self.fc(x).mul(self.bias) + self.bias


CELLS = 6 * 6

POOLED: dict[str, Callable[[], nn.Module]] = {
    "mean over two axes": lambda: Net(lambda s, x: s.fc(x.mean([2, 3]))),
    "mean over the last axes": lambda: Net(lambda s, x: s.fc(x.mean(dim=(-1, -2)))),
    "one mean after the other": lambda: Net(lambda s, x: s.fc(x.mean(3).mean(2))),
    "F.linear": lambda: Net(lambda s, x: F.linear(x.mean((2, 3)), s.fc.weight, s.fc.bias)),
    "mean of flattened cells": lambda: Net(lambda s, x: s.fc(x.flatten(2).mean(2))),
    "mean of viewed cells": lambda: Net(lambda s, x: s.fc(x.view(x.size(0), x.size(1), -1).mean(-1))),
    "torch.mean, kept axes": lambda: Net(lambda s, x: s.fc(torch.mean(x, (2, 3), keepdim=True).flatten(1))),
    "squeezed by axis": lambda: Net(lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1))),
    "squeezed at once": lambda: Net(lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).squeeze())),
    "squeezed by functions": lambda: Net(
        lambda s, x: s.fc(torch.squeeze(torch.squeeze(F.adaptive_avg_pool2d(x, 1), -1), -1))
    ),
    "squeezed, then flattened": lambda: Net(lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).flatten(1))),
    "squeezed, viewed, reshaped": lambda: Net(
        lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).view(x.size(0), -1).reshape(x.size(0), -1))
    ),
    "indexed by axis": lambda: Net(lambda s, x: s.fc(x.mean((2, 3), keepdim=True)[..., 0][..., 0])),
    "indexed": lambda: Net(lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0])),
    "fixed average pool": lambda: layers(nn.AvgPool2d(6), nn.Flatten(), nn.Linear(WIDTH, 5)),
    "pool as large as the map": lambda: Net(lambda s, x: s.fc(F.avg_pool2d(x, x.size()[2:]).view(x.size(0), -1))),
    "a forward that reads self.training": lambda: ReadsTraining(lambda s, x: x),
    "scored by a convolution": lambda: layers(nn.Conv2d(WIDTH, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "scored by a rectified convolution": lambda: layers(
        nn.Conv2d(WIDTH, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "last layer Identity": lambda: layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Identity()),
    "a scale and a bias": Calibrated,
    "some of the classes": lambda: Net(lambda s, x: s.fc(x.mean((2, 3)))[:, 1:4]),
    "every other entry": lambda: Net(lambda s, x: s.fc(x.mean((2, 3))[..., ::2]), WIDTH // 2),
    "two score layers": lambda: Net(lambda s, x: torch.cat([s.fc(x.mean((2, 3))), s.fc(x.mean((2, 3)))], -1)),
    "two score layers by concat": lambda: Net(
        lambda s, x: torch.concat([s.fc(x.mean((2, 3))), s.fc(x.mean((2, 3)))], dim=-1)
    ),
    "float64": lambda: layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(WIDTH, 5)).double(),
    "grey picture": lambda: Net(lambda s, x: s.fc(x.mean((2, 3))), channels=1),
    "four channels": lambda: Net(lambda s, x: s.fc(x.mean((2, 3))), channels=4),
}

POOLED_AND_NOT_LINEAR: dict[str, Callable[[], nn.Module]] = {
    "one layer called twice": LayerTwice,
    "amax": lambda: Net(lambda s, x: s.fc(x.amax((2, 3)))),
    "one amax after the other": lambda: Net(lambda s, x: s.fc(x.amax(3).amax(2))),
    "fixed maximum pool": lambda: Net(lambda s, x: s.fc(F.max_pool2d(x, 6).view(x.size(0), -1))),
    "both pools, norms, dropout": lambda: layers(
        BothPools(),
        nn.Flatten(),
        nn.BatchNorm1d(2 * WIDTH),
        nn.Dropout(0.25),
        nn.Linear(2 * WIDTH, 12, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(12),
        nn.Dropout(0.5),
        nn.Linear(12, 5, bias=False),
    ),
    "layer norm": lambda: layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)),
    "layer norm without bias": lambda: layers(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(WIDTH, bias=False),
        nn.Linear(WIDTH, 5),
    ),
    "log_softmax over the last axis": lambda: Net(lambda s, x: F.log_softmax(s.fc(x.mean((2, 3))), dim=-1)),
    "softmax over axis 1": lambda: Net(lambda s, x: torch.softmax(s.fc(x.mean((2, 3))), 1)),
    "softmax method": lambda: Net(lambda s, x: s.fc(x.mean((2, 3))).softmax(-1)),
    "LogSoftmax": lambda: layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 5), nn.LogSoftmax(-1)),
    "residual hidden layers": lambda: layers(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Residual(), nn.Linear(WIDTH, 5)),
    "PReLU": lambda: layers(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, 6),
        nn.PReLU(6),
        nn.Linear(6, 5),
    ),
    "power mean": lambda: PowerMean(lambda s, x: x),
    "fixed pool, then an activation": lambda: layers(nn.AvgPool2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(WIDTH, 5)),
    "sum over two axes": lambda: Net(lambda s, x: s.fc(x.sum((2, 3)))),
    "sum, kept axes": lambda: Net(lambda s, x: s.fc(torch.sum(x, (2, 3), keepdim=True).flatten(1))),
    "cosine of weights": lambda: Net(
        lambda s, x: 7 * F.linear(F.normalize(x.mean((2, 3))), F.normalize(s.fc.weight), s.fc.bias)
    ),
    "normalised over the last axis": lambda: Net(lambda s, x: s.fc(F.normalize(x.mean((2, 3)), dim=-1))),
    "normalised in another norm": lambda: Net(lambda s, x: s.fc(F.normalize(x.mean((2, 3)), 1.0, -1))),
    "normalised vectors": lambda: Net(lambda s, x: s.fc(F.normalize(x.mean((2, 3))))),
}

FLATTENED: dict[str, Callable[[], nn.Module]] = {
    "view": lambda: Net(lambda s, x: s.fc(x.view(x.size(0), -1)), WIDTH * CELLS),
    "view by shape": lambda: Net(lambda s, x: s.fc(x.view(x.shape[0], -1)), WIDTH * CELLS),
    "view to a known length": lambda: Net(lambda s, x: s.fc(x.view(-1, WIDTH * CELLS)), WIDTH * CELLS),
    "reshape by its own shape": lambda: WidthFromShape(lambda s, x: x, WIDTH * CELLS),
    "torch.flatten": lambda: Net(lambda s, x: s.fc(torch.flatten(x, start_dim=1)), WIDTH * CELLS),
    "x.flatten": lambda: Net(lambda s, x: s.fc(x.flatten(1)), WIDTH * CELLS),
    "F.linear on a map": lambda: Net(lambda s, x: F.linear(input=x.flatten(1), weight=s.fc.weight), WIDTH * CELLS),
    "nn.Flatten": lambda: layers(nn.Flatten(), nn.Linear(WIDTH * CELLS, 5)),
    "a module of one's own": lambda: layers(View(), nn.Linear(WIDTH * CELLS, 5)),
    "hidden layers": lambda: layers(
        nn.Flatten(),
        nn.Linear(WIDTH * CELLS, 16),
        nn.BatchNorm1d(16),
        nn.Hardswish(),
        nn.Dropout(),
        nn.Linear(16, 5),
    ),
    "one hidden layer": lambda: layers(nn.Flatten(), nn.Linear(WIDTH * CELLS, 16), nn.ReLU(), nn.Linear(16, 5)),
    "adaptive pool to 2x2": lambda: layers(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * WIDTH, 5)),
    "adaptive maximum to 3x3": lambda: layers(nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(9 * WIDTH, 5)),
    "adaptive pool to its own size": lambda: layers(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(36 * WIDTH, 5)),
    "fixed pool to 2x2": lambda: layers(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(4 * WIDTH, 5)),
    "F.max_pool2d to 2x2": lambda: Net(lambda s, x: s.fc(F.max_pool2d(x, 3).flatten(1)), 4 * WIDTH),
    "F.max_pool2d over a part": lambda: Net(lambda s, x: s.fc(F.max_pool2d(x, 3, 2).flatten(1)), 4 * WIDTH),
    "F.avg_pool2d over a part": lambda: Net(lambda s, x: s.fc(F.avg_pool2d(x, 4, 1).flatten(1)), 9 * WIDTH),
}

USERS = POOLED | POOLED_AND_NOT_LINEAR | FLATTENED

SIZE = 27  # gives 6x6 cells at stride 4


def prepared(make: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    net = make().double()
    channels = next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    enliven(net, pictures_of(SIZE, channels, torch.float64))
    return net, channels
