"""Surgery: a classifier read at every position gives, at every position, what the classifier gives there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullyconv.backbones import BACKBONES
from fullyconv.edits import as_convolution
from fullyconv.errors import SurgeryError
from fullyconv.surgery import Plan, Pool, convolutionalize, plan
from fullyconv.tracing import trace

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


# Every backbone, and families that are not in the table


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"fcn_resnet50", "fcn_resnet101"}))
def test_dense_equals_classifier_at_native_size_on_live_activations(name: str) -> None:
    spec = BACKBONES[name]
    with torch.device("meta"):
        net = spec.classifier()
    net.to_empty(device="cpu")
    pictures = pictures_of(spec.image_size)
    enliven(net, pictures[:1])
    made = plan(net, image_size=spec.image_size)
    dense = made.apply(verify=False)
    with torch.no_grad():
        want = net(pictures)
        got = dense(pictures[:1])
    assert got.shape == (1, want.shape[1], 1, 1)
    assert (want[0] - want[1]).abs().max() > 0.05 * want.abs().max(), "two pictures must get different scores"
    assert float((want[:1] - got[..., 0, 0]).abs().max() / (want[0] - want[1]).abs().max()) < 2e-5


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("inception_v3", 299),
        ("shufflenet_v2_x1_0", 224),
        ("mnasnet0_5", 224),
        ("regnet_y_400mf", 224),
        ("regnet_x_400mf", 224),
        ("efficientnet_v2_s", 224),
        ("resnext50_32x4d", 224),
        ("wide_resnet50_2", 224),
        ("convnext_tiny", 224),
    ],
)
def test_families_that_no_table_names_pass_both_postconditions(name: str, size: int) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = torchvision.models.get_model(name, weights=None)
    made = plan(net, image_size=size)
    assert made.exact
    assert made.stride == 32
    assert made.apply()(torch.zeros(1, 3, size, size + 64)).shape == (1, 1000, 1, 3)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("vit_b_16", "'reshape'"),
        ("swin_t", "'features.1.0.attn.shifted_window_attention'"),
        ("swin_v2_t", "'features.1.0.attn.shifted_window_attention'"),
        ("maxvit_t", "window_attention.partition_op.reshape'"),
    ],
)
def test_transformers_are_refused_with_the_place_and_the_reason(name: str, place: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None)
    with pytest.raises(
        SurgeryError,
        match=r"not convolutional up to its classifier.*vision transformers",
    ) as caught:
        plan(net)
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


# Nets that users make

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
}
USERS = POOLED | POOLED_AND_NOT_LINEAR | FLATTENED
SIZE = 27  # gives 6x6 cells at stride 4


def prepared(make: Callable[[], nn.Module]) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    net = make().double()
    channels = next(m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    enliven(net, pictures_of(SIZE, channels, torch.float64))
    return net, channels


@pytest.mark.parametrize("kind", USERS)
def test_a_users_classifier_is_read_at_every_position(kind: str) -> None:
    net, channels = prepared(USERS[kind])
    assert_read_at_every_position(net, plan(net, image_size=SIZE, channels=channels))


@pytest.mark.parametrize("kind", POOLED)
def test_the_mean_of_scores_without_the_pool_is_the_classifiers_score(
    kind: str,
) -> None:
    net, channels = prepared(POOLED[kind])
    made = plan(net, image_size=SIZE, channels=channels, pool="drop")
    assert made.exact
    assert not made.notes
    pictures = pictures_of(SIZE, channels, torch.float64)
    with torch.no_grad():
        scores = made.apply()(pictures)
        assert scores.shape[2:] == (6, 6), "a dropped pool leaves one score a cell"
        assert relative_error(net(pictures), scores.mean((2, 3))) < 1e-9


@pytest.mark.parametrize("kind", POOLED_AND_NOT_LINEAR)
def test_a_dropped_pool_before_something_not_linear_is_said_to_be_inexact(
    kind: str,
) -> None:
    net, _ = prepared(POOLED_AND_NOT_LINEAR[kind])
    made = plan(net, image_size=SIZE, pool="drop")
    assert not made.exact
    assert "is not linear, so the mean of the scores differs" in made.notes[0]
    pictures = pictures_of(SIZE, dtype=torch.float64)
    with torch.no_grad():
        difference = relative_error(net(pictures), made.apply()(pictures).mean((2, 3)))
    assert difference > 1e-3, "it is inexact in truth, too"
    assert plan(net, image_size=SIZE, pool="keep").exact


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_unpadded_stack_and_head_is_read_at_every_position(
    data: st.DataObject,
) -> None:
    stack: list[nn.Module] = []
    size, stride, width = 1, 1, 3
    drawn = data.draw(
        st.lists(
            st.tuples(
                st.integers(1, 4),
                st.integers(1, 2),
                st.sampled_from(["conv", "max", "average"]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    for kernel, step, kind in drawn:
        if kind == "conv":
            stack += [nn.Conv2d(width, 4, kernel, step), nn.BatchNorm2d(4), nn.ELU()]
            width = 4
        else:
            stack.append(nn.MaxPool2d(kernel, step) if kind == "max" else nn.AvgPool2d(kernel, step))
        stride *= step
    cells = data.draw(st.integers(1, 4))
    size = cells
    for kernel, step, _ in reversed(drawn):
        size = (size - 1) * step + kernel
    head: list[nn.Module] = data.draw(
        st.sampled_from(
            [
                [nn.Flatten(), nn.Linear(width * cells**2, 3)],
                [
                    nn.Flatten(),
                    nn.Linear(width * cells**2, 6),
                    nn.Tanh(),
                    nn.Linear(6, 3),
                ],
                [
                    nn.AdaptiveAvgPool2d(1),
                    nn.Flatten(),
                    nn.BatchNorm1d(width),
                    nn.Linear(width, 3),
                ],
                [
                    nn.AdaptiveMaxPool2d(1),
                    nn.Flatten(),
                    nn.Linear(width, 3),
                    nn.LayerNorm(3),
                ],
            ]
        )
    )
    net = nn.Sequential(*stack, *head).double()
    made = plan(net.eval(), image_size=size)
    # A fixed pool that leaves one cell is a global pool in disguise, and is read at every cell of its map.
    assert stride % made.stride == 0
    try:
        assert_read_at_every_position(net, made, blocks=2)
    except AssertionError as error:
        if "a dead net" not in str(error):
            raise


def test_vectors_inside_a_squeeze_and_excite_block_stay_what_they_are() -> None:
    net, _ = prepared(lambda: GatedByVectors(lambda s, x: x))
    made = plan(net, image_size=SIZE)
    assert [edit.path for edit in made.edits] == ["mean", "fc"]
    picture = pictures_of(43, dtype=torch.float64)
    with torch.no_grad():
        x = net.trunk(picture)
        x = x * net.gate(x.mean((2, 3)))[..., None, None]
        want = F.conv2d(F.avg_pool2d(x, 6, 1), net.fc.weight[..., None, None], net.fc.bias)
        torch.testing.assert_close(made.apply()(picture), want)


def test_a_pool_inside_a_squeeze_and_excite_block_stays_what_it_is() -> None:
    class Excite(nn.Module):
        """One pool, called in the block and at the end."""

        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.pool = trunk(), nn.AdaptiveAvgPool2d(1)
            self.gate, self.fc = nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.trunk(x)
            return self.fc(self.pool(x * self.gate(self.pool(x)).sigmoid()).flatten(1))

    net, _ = prepared(Excite)
    dense = plan(net, image_size=SIZE).apply()
    assert isinstance(dense.get_submodule("pool"), nn.AdaptiveAvgPool2d)
    picture = pictures_of(43, dtype=torch.float64)
    with torch.no_grad():
        x = net.trunk(picture)
        x = x * net.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        want = F.conv2d(F.avg_pool2d(x, 6, 1), net.fc.weight[..., None, None], net.fc.bias)
        torch.testing.assert_close(dense(picture), want)


class Branches(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return self.fc((x if x.mean() > 0 else -x).mean((2, 3)))


class Scaled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x).mean((2, 3)) * self.trunk[2].bias)


class Dictionary(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.fc(self.trunk(x).mean((2, 3)))}


class SizeOfPicture(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return self.fc(F.interpolate(x, (1, 1), mode="nearest").flatten(1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            layers(nn.Conv2d(WIDTH, 5, 1)),
            "ends in a map and is fully convolutional already",
        ),
        (
            Branches(lambda s, x: x),
            "Branches cannot be traced: .*expected a forward without control flow",
        ),
        (
            Net(lambda s, x: s.fc(x.std((2, 3)))),
            r"the last map is 'trunk.3', and what 'std' \(std\) makes of it is not",
        ),
        (
            Net(lambda s, x: s.fc(x.permute(0, 2, 3, 1).flatten(1)), WIDTH * CELLS),
            "what 'permute'",
        ),
        (
            Scaled(lambda s, x: x),
            "'mul' works on vectors in a way that has no convolutional equal",
        ),
        (
            Dictionary(lambda s, x: x),
            "the net returns dict in evaluation mode; expected one tensor of scores",
        ),
        (SizeOfPicture(lambda s, x: x), r"a layer still works on the whole picture"),
        (
            layers(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(WIDTH * 16, 5)),
            "'1' pools 6x6 cells to 4x4, which no fixed pool does; expected whole factors: give the image_size",
        ),
        (
            layers(nn.Flatten(), nn.BatchNorm1d(WIDTH * CELLS), nn.Linear(WIDTH * CELLS, 5)),
            r"'2' \(BatchNorm1d\) normalises a flattened map of 6x6 cells",
        ),
        (
            layers(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.GroupNorm(2, WIDTH),
                nn.Linear(WIDTH, 5),
            ),
            r"'3' \(GroupNorm.*would mix the positions of a map",
        ),
        (
            layers(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(WIDTH, 10),
                nn.GLU(),
                nn.Linear(5, 5),
            ),
            "'4' works on vectors",
        ),
        (
            layers(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(WIDTH, 10),
                nn.Unflatten(1, (2, 5)),
            ),
            "expected",
        ),
        (
            Net(lambda s, x: s.fc(x.flatten(1).narrow(1, 0, 100)), 100),
            "'fc' has 100 inputs, not a multiple of the 6x6 cells of the map before it",
        ),
        (
            Net(lambda s, x: s.fc((x.flatten(2).softmax(-1).reshape(x.shape) * x).mean((2, 3)))),
            "Net is not convolutional up to its classifier: at 'flatten' a reshape takes the rows or columns of",
        ),
        (
            Net(lambda s, x: s.fc(x.mean((2, 3))).view(x.size(0), 5, 1, 1)),
            r"'view' reshapes vectors \(5,\) to \(5, 1, 1\), which has no convolutional equal",
        ),
        (
            Net(
                lambda s, x: s.fc(torch.cat([x.flatten(1), x.flatten(1)], 1)),
                2 * WIDTH * CELLS,
            ),
            "'cat' puts flattened maps of 6x6 cells one after the other",
        ),
        (
            layers(nn.Flatten(), nn.Linear(17, 5)),
            f"does not run on a {SIZE}x{SIZE} picture",
        ),
    ],
)
def test_what_has_no_convolutional_equal_is_refused_in_one_line(
    net: nn.Module, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SurgeryError, match=message) as caught:
        convolutionalize(net.eval(), image_size=SIZE)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "torch.fx prints a traceback of its own"


# What surgery promises about itself


@pytest.mark.parametrize("channels", [1, 4])
def test_a_picture_of_other_channels_is_said_once(channels: int) -> None:
    net = layers(nn.Flatten(), nn.Linear(WIDTH * CELLS, 5), channels=channels)
    dense = convolutionalize(net, image_size=SIZE, channels=channels)
    assert dense(torch.zeros(1, channels, SIZE, SIZE + 4)).shape == (1, 5, 1, 2)


def test_the_input_is_never_touched() -> None:
    net = POOLED_AND_NOT_LINEAR["both pools, norms, dropout"]()
    calls: list[int] = []
    hook = net[0].register_forward_hook(lambda *args: calls.append(1))
    net.train()
    net[0].eval()
    modules, flags = list(net.modules()), [m.training for m in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        net[3].weight.zero_()  # a dead net, which surgery revives for its check
        before["3.weight"].zero_()
    dense = convolutionalize(net, image_size=SIZE)
    for parameter in dense.parameters():
        parameter.data.fill_(9.0)
    assert [m.training for m in net.modules()] == flags
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert list(net[0]._forward_hooks) == [hook.id]


def test_the_copy_keeps_parameter_names_and_shares_nothing() -> None:
    net, _ = prepared(FLATTENED["hidden layers"])
    dense = plan(net, image_size=SIZE).apply()
    assert set(dense.state_dict()) == set(net.state_dict())
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_the_dense_net_trains_as_the_classifier_did() -> None:
    net, _ = prepared(FLATTENED["hidden layers"])
    net.train()
    dense = plan(net, image_size=SIZE).apply()
    assert all(m.training for m in dense.modules())
    dense(pictures_of(SIZE + 8, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in dense.parameters())


@pytest.mark.parametrize(
    "sabotage",
    ["an edit is left out", "a maximum for an average", "another layer's kernel"],
)
def test_a_plan_that_is_not_true_is_found_out(sabotage: str) -> None:
    net, _ = prepared(POOLED["mean over two axes"])
    made = plan(net, image_size=SIZE)
    pool, linear = made.edits
    assert (pool.kind, linear.kind) == ("average pool", "convolution")
    edits = {
        "an edit is left out": (linear,),
        "a maximum for an average": (replace(pool, kind="maximum pool"), linear),
        "another layer's kernel": (replace(pool, kernel=(5, 5)), linear),
    }
    with pytest.raises(SurgeryError):
        replace(made, edits=edits[sabotage]).apply()


def test_a_difference_is_told_with_its_size_and_the_place_where_it_begins() -> None:
    net, _ = prepared(POOLED["mean over two axes"])
    made = plan(net, image_size=SIZE)
    wrong = replace(made, edits=(replace(made.edits[0], kind="maximum pool"), made.edits[1]))
    with pytest.raises(SurgeryError, match=r"differs from the classifier by .* they part at 'mean'"):
        wrong.apply()


def test_dead_weights_do_not_hide_a_wrong_plan() -> None:
    net = POOLED["mean over two axes"]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    made = plan(net, image_size=SIZE)
    made.apply()  # right, and shown to be so on other weights
    with pytest.raises(SurgeryError, match="differs from the classifier"):
        replace(made, edits=(replace(made.edits[0], kind="maximum pool"), made.edits[1])).apply()


def test_a_net_that_cannot_be_brought_to_life_is_refused() -> None:
    net = Net(lambda s, x: s.fc(x.mean((2, 3)) * 0.0))
    with pytest.raises(SurgeryError, match="two different pictures get the same scores"):
        convolutionalize(net, image_size=SIZE)


def test_a_plan_reads_as_a_list_of_edits_with_reasons() -> None:
    text = str(plan(torchvision.models.alexnet()))
    assert "AlexNet at 224x224: 5 edits" in text
    assert "classifier.1: Linear(9216, 4096) -> Conv2d(256, 4096, 6x6) (a linear layer on a map is a conv" in text
    assert "avgpool: AdaptiveAvgPool2d(output_size=(6, 6)) -> removed (at native size it maps 6x6 to 6x6)" in text


CONVOLVES = "(a linear layer on a map is a convolution whose kernel covers it)"
CHANNELS = "(the entries of a vector are channels of a map)"
DIFFERS = "follows the dropped pool and is not linear, so the mean of the scores differs from the classifier's"
DROPPED = "(the pool is dropped, so that each position has its own score)"


@pytest.mark.parametrize(
    ("kind", "pool", "edits"),
    [
        (
            "one mean after the other",
            "keep",
            [
                "mean: mean -> removed (the first step of 'mean_1')",
                "mean_1: mean -> AvgPool2d(6x6, stride 1) (read at every position)",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
            ],
        ),
        (
            "softmax over axis 1",
            "drop",
            [
                f"mean: mean -> removed {DROPPED}",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
                f"softmax: softmax -> softmax over channels {CHANNELS}",
                f"note: 'softmax' {DIFFERS}",
            ],
        ),
        (
            "two score layers",
            "drop",
            [
                f"mean: mean -> removed {DROPPED}",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
                f"mean_1: mean -> removed {DROPPED}",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
                f"cat: cat -> cat over channels {CHANNELS}",
            ],
        ),
        (
            "sum, kept axes",
            "keep",
            [
                "sum_1: sum -> AvgPool2d(6x6, stride 1, divisor 1) (read at every position)",
                "flatten: flatten -> removed (the map stays a map)",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
            ],
        ),
        (
            "adaptive maximum to 3x3",
            "keep",
            [
                "1: AdaptiveMaxPool2d(output_size=3) -> MaxPool2d(2x2, stride 2) (the same factor at every size)",
                "2: Flatten(start_dim=1, end_dim=-1) -> removed (the map stays a map)",
                f"3: Linear(72, 5) -> Conv2d(8, 5, 3x3) {CONVOLVES}",
            ],
        ),
        (
            "F.linear on a map",
            "keep",
            [
                "flatten: flatten -> removed (the map stays a map)",
                f"linear: linear -> Conv2d(8, 5, 6x6) {CONVOLVES}",
            ],
        ),
        (
            "squeezed by axis",
            "keep",
            [
                "adaptive_avg_pool2d: adaptive_avg_pool2d -> AvgPool2d(6x6, stride 1) (read at every position)",
                "squeeze: squeeze -> removed (the map stays a map)",
                "squeeze_1: squeeze -> removed (the map stays a map)",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
            ],
        ),
        (
            "a module of one's own",
            "keep",
            [
                "view: view -> removed (the map stays a map)",
                f"2: Linear(288, 5) -> Conv2d(8, 5, 6x6) {CONVOLVES}",
            ],
        ),
    ],
)
def test_a_plan_says_of_every_edit_what_becomes_of_it_and_why(kind: str, pool: Pool, edits: list[str]) -> None:
    net = USERS[kind]()
    first, *others = str(plan(net, image_size=SIZE, pool=pool)).splitlines()
    count = sum(not edit.startswith("note") for edit in edits)
    assert first == f"{type(net).__name__} at 27x27: {count} edits"
    assert others == [f"  {edit}" for edit in edits]


@pytest.mark.parametrize("kind", ["both pools, norms, dropout", "layer norm"])
def test_norms_of_vectors_become_norms_of_maps(kind: str) -> None:
    norm = next(edit for edit in plan(USERS[kind](), image_size=SIZE).edits if edit.kind == "norm")
    assert norm.after == ("ChannelLayerNorm" if kind == "layer norm" else "BatchNorm2d")
    assert norm.why == "the same numbers, at every position"


@pytest.mark.parametrize(
    ("kind", "features", "scores", "stride", "hidden"),
    [
        (
            "view",
            "trunk_3",
            "trunk_3",
            4,
            False,
        ),  # the score layer itself covers the map
        ("hidden layers", "_0_3", "_5", 4, True),
        ("one hidden layer", "_0_3", "_3", 4, True),
        (
            "residual hidden layers",
            "_0_3",
            "_0_3",
            4,
            False,
        ),  # behind a global pool they see one vector
        ("adaptive maximum to 3x3", "_0_3", "_1", 8, False),  # two cells of four pixels
        ("adaptive pool to 2x2", "_0_3", "_1", 12, False),
        ("fixed pool to 2x2", "_1", "_1", 12, False),
        ("scored by a convolution", "_1", "_0_3", 4, False),
        ("scored by a rectified convolution", "_2", "_0_3", 4, False),
        ("last layer Identity", "_0_3", "_0_3", 4, False),
    ],
)
def test_a_plan_knows_what_new_scores_would_read(
    kind: str, features: str, scores: str, stride: int, hidden: bool
) -> None:
    made = plan(USERS[kind](), image_size=SIZE)
    assert (made.features, made.scores, made.stride, made.hidden) == (
        features,
        scores,
        stride,
        hidden,
    )


def test_same_padding_keeps_every_cell_and_agrees_with_valid_inside() -> None:
    net, _ = prepared(FLATTENED["hidden layers"])
    made = plan(net, image_size=SIZE)
    picture = pictures_of(SIZE + 40, dtype=torch.float64)
    with torch.no_grad():
        valid, same = made.apply()(picture), made.apply(padding="same")(picture)
    cells = valid.shape[-1]
    assert same.shape[-1] == cells + 5 + 1  # an even kernel of 6 is padded by 3 on both sides
    torch.testing.assert_close(same[..., 3 : 3 + cells, 3 : 3 + cells], valid)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (2, 5)])
def test_a_linear_layer_on_a_map_is_the_convolution_that_covers_it(rows: int, columns: int) -> None:
    linear = nn.Linear(4 * rows * columns, 7).double()
    x = torch.randn(3, 4, rows, columns, dtype=torch.float64)
    torch.testing.assert_close(as_convolution(linear, (rows, columns))(x)[..., 0, 0], linear(x.flatten(1)))


def test_tracing_leaves_the_training_flags_as_they_were() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout())
    net.train()
    net[0].eval()
    trace(net)
    assert [m.training for m in net.modules()] == [True, False, True]


def test_frozen_layers_of_a_net_in_training_stay_frozen() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 64, 5),
    ).train()
    net[1].eval()
    dense = plan(net, image_size=16).apply()
    assert dense.training
    assert [m.training for m in dense.modules() if isinstance(m, nn.BatchNorm2d)] == [False]
