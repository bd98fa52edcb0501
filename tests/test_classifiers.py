"""The papers' classifiers: layer by layer what was published, against an independent computation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, nn

from fullyconv.classifiers import BVLCGoogLeNet, CaffeNet, LocalResponseNorm, TinyVGG
from fullyconv.geometry import Grid
from fullyconv.locate import locate, locate_outputs
from fullyconv.places import Place
from fullyconv.surgery import Pool, plan

Array = np.ndarray[Any, np.dtype[np.float64]]


def alive(make: type[nn.Module]) -> nn.Module:
    """Random float64 weights, a unit signal behind every layer, and biases that tell channels apart.

    Random numbers are tiled, since sixty million take seconds.
    """
    with torch.device("meta"):
        net = make().double()
    net.to_empty(device="cpu")
    block = torch.randn(1_000_003, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            noise = block.repeat(-(-tensor.numel() // len(block)))[: tensor.numel()].view(tensor.shape)
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.1 * noise)
    return net.eval()


def picture(height: int, width: int) -> Tensor:
    """As the Caffe nets expect them: some tens of grey levels about 0, so that normalisation bites."""
    return 60 * torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# Caffe's layers in numpy, one picture (C, H, W) at a time


def conv(
    x: Array, weights: Mapping[str, Array], name: str, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    parts = zip(np.split(windows, groups), np.split(weight, groups), strict=True)
    out = np.concatenate([np.tensordot(w, part, ((1, 2, 3), (0, 3, 4))) for part, w in parts])
    return out + bias[:, None, None]


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def pool(x: Array, stride: int = 2, padding: int = 0) -> Array:
    """Maximum over 3x3, in ceil mode: windows that hang over the edge count what they hold."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)), constant_values=-math.inf)
    _, height, width = x.shape
    rows, columns = (-(-(n - 3) // stride) + 1 for n in (height, width))
    out = np.empty((len(x), rows, columns))
    for i in range(rows):
        for j in range(columns):
            out[:, i, j] = x[:, i * stride : i * stride + 3, j * stride : j * stride + 3].max((1, 2))
    return out


def lrn(x: Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Array:
    out = np.empty_like(x)
    for c in range(len(x)):
        window = x[max(0, c - size // 2) : c + (size - 1) // 2 + 1]
        out[c] = x[c] / (k + alpha / size * (window**2).sum(0)) ** beta
    return out


def inner_product(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    return weights[f"{name}.weight"] @ x.ravel() + weights[f"{name}.bias"]


def caffenet(x: Array, weights: Mapping[str, Array]) -> Array:
    x = lrn(pool(relu(conv(x, weights, "conv1", stride=4))))
    x = lrn(pool(relu(conv(x, weights, "conv2", padding=2, groups=2))))
    x = relu(conv(x, weights, "conv3", padding=1))
    x = relu(conv(x, weights, "conv4", padding=1, groups=2))
    x = pool(relu(conv(x, weights, "conv5", padding=1, groups=2)))
    x = relu(inner_product(x, weights, "fc6"))
    return inner_product(relu(inner_product(x, weights, "fc7")), weights, "fc8")


def inception(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    at = f"inception_{name}."
    threes = relu(conv(x, weights, f"{at}reduce3x3"))
    fives = relu(conv(x, weights, f"{at}reduce5x5"))
    return relu(
        np.concatenate(
            [
                conv(x, weights, f"{at}branch1x1"),
                conv(threes, weights, f"{at}branch3x3", padding=1),
                conv(fives, weights, f"{at}branch5x5", padding=2),
                conv(pool(x, stride=1, padding=1), weights, f"{at}project"),
            ]
        )
    )


def googlenet_features(x: Array, weights: Mapping[str, Array]) -> Array:
    x = lrn(pool(relu(conv(x, weights, "conv1", stride=2, padding=3))))
    x = relu(conv(x, weights, "conv2_reduce"))
    x = pool(lrn(relu(conv(x, weights, "conv2", padding=1))))
    for names in (("3a", "3b"), ("4a", "4b", "4c", "4d", "4e"), ("5a", "5b")):
        for name in names:
            x = inception(x, weights, name)
        x = pool(x) if names[-1] != "5b" else x
    return x


def as_numpy(net: nn.Module) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


# Normalisation


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 12),
    size=st.integers(1, 9),
    alpha=st.floats(1e-5, 10),
    beta=st.floats(0.1, 2),
    k=st.floats(0.5, 3),
    scale=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_local_response_norm_is_its_formula_and_torchs(
    channels: int, size: int, alpha: float, beta: float, k: float, scale: float
) -> None:
    x = scale * torch.randn(2, channels, 3, 4, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    got = LocalResponseNorm(size, alpha, beta, k)(x)
    formula = torch.stack([torch.from_numpy(lrn(picture.numpy(), size, alpha, beta, k)) for picture in x])
    torch.testing.assert_close(got, formula, rtol=1e-12, atol=0)
    torch.testing.assert_close(got, nn.LocalResponseNorm(size, alpha, beta, k)(x), rtol=1e-12, atol=0)


def test_local_response_norm_has_the_gradient_of_torchs() -> None:
    x = (30 * torch.randn(1, 7, 2, 2, dtype=torch.float64)).requires_grad_()
    gradients = [
        torch.autograd.grad(norm(x).square().sum(), x)[0] for norm in (LocalResponseNorm(5), nn.LocalResponseNorm(5))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=0)


def test_local_response_norm_leaves_every_cell_where_it_was() -> None:
    for norm in (LocalResponseNorm(5), nn.LocalResponseNorm(5)):
        (out,) = locate_outputs(norm, channels=6, size=(9, 9))
        assert out.shape == (2, 6, 9, 9)
        assert isinstance(out.where, Place)
        assert out.where.grid == Grid()


# The nets


@pytest.mark.parametrize(("height", "width"), [(199, 227), (227, 200)])
def test_caffenet_is_the_published_net(height: int, width: int) -> None:
    """At 199 pixels and 200 the last windows of pools hang over the edge, and fc6 still sees 6x6 cells."""
    net, x = alive(CaffeNet), picture(height, width)
    want = caffenet(x[0].numpy(), as_numpy(net))
    with torch.no_grad():
        got = net(x)[0].numpy()
    assert np.abs(want).std() > 0.1, "a dead net equals anything"
    assert np.abs(want - got).max() < 1e-10 * np.abs(want).max()


def test_googlenet_is_the_published_net() -> None:
    """Without its pool, on a picture of whose 64 rows every pool has windows that hang over the edge."""
    net, x = alive(BVLCGoogLeNet), picture(64, 101)
    weights = as_numpy(net)
    features = googlenet_features(x[0].numpy(), weights)
    want = np.tensordot(weights["fc.weight"], features, 1) + weights["fc.bias"][:, None, None]
    assert want.shape == (1000, 2, 3)
    with torch.no_grad():
        got = plan(net, pool="drop").apply(verify=False)(x)[0].numpy()
    assert np.abs(want - got).max() < 1e-10 * np.abs(want).max()


@pytest.mark.parametrize(
    ("make", "size", "parameters", "scored_21"),
    [
        # conv1 to conv5: 34,944 + 307,456 + 885,120 + 663,936 + 442,624; fc6: 4096 x 9217; fc7: 4096 x 4097;
        # fc8: 1000 x 4097. With 21 classes instead, 86,037: table 1's 57 M.
        (CaffeNet, 227, 60_965_224, 56_954_261),
        # Without its classifier (1000 x 1025) 5,973,552, and 21,525 for 21 classes: table 1's 6 M.
        (BVLCGoogLeNet, 224, 6_998_552, 5_995_077),
        (TinyVGG, 96, 269_944, None),
    ],
)
def test_parameters_and_shapes_are_as_published(
    make: type[nn.Module], size: int, parameters: int, scored_21: int | None
) -> None:
    with torch.device("meta"):
        net = make()
        scores = net(torch.empty(2, 3, size, size))
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert scores.shape == (2, 8 if make is TinyVGG else 1000)
    if scored_21 is not None:
        with torch.device("meta"):
            assert sum(p.numel() for p in make(classes=21).parameters()) == scored_21


def test_layers_are_initialised_as_published() -> None:
    torch.manual_seed(0)
    net, goog = CaffeNet(classes=10).requires_grad_(False), BVLCGoogLeNet().requires_grad_(False)
    assert [float(getattr(net, f"conv{i}").bias[0]) for i in range(1, 6)] == [0, 1, 0, 1, 1]
    assert [float(getattr(net, f"fc{i}").bias[0]) for i in (6, 7, 8)] == [1, 1, 0]
    assert float(net.conv2.weight.std()) == pytest.approx(0.01, rel=0.02)
    assert float(net.fc7.weight[:100].std()) == pytest.approx(0.005, rel=0.02)
    weight = goog.inception_4a.branch5x5.weight
    bound = math.sqrt(3 / (16 * 25))
    assert 0.99 * bound < float(weight.abs().max()) <= bound
    assert {float(m.bias[0]) for m in goog.modules() if isinstance(m, nn.Conv2d)} == {float(torch.tensor(0.2))}
    assert float(goog.fc.bias.abs().max()) == 0
    assert (net.drop6.p, net.drop7.p, goog.drop.p) == (0.5, 0.5, 0.4)


def test_fresh_nets_tell_pictures_apart() -> None:
    torch.manual_seed(0)
    net, x = BVLCGoogLeNet().eval(), torch.cat([picture(224, 224), picture(224, 224).flip(2)]).float()
    with torch.no_grad():
        one, other = net(x)
    assert (one - other).abs().max() > 1e-2 * one.abs().max()


# Surgery and geometry


@pytest.mark.parametrize("pool", ["keep", "drop"])
@pytest.mark.parametrize(("make", "size"), [(CaffeNet, 227), (BVLCGoogLeNet, 224)])
def test_surgery_makes_them_fully_convolutional(make: type[nn.Module], size: int, pool: Pool) -> None:
    made = plan(alive(make).float(), image_size=size, pool=pool)
    assert (made.stride, made.exact, made.notes) == (32, True, ())
    made.apply(verify=pool == "drop" or make is BVLCGoogLeNet)


def grid_of(net: nn.Module, node: str, size: int = 224) -> tuple[int, float]:
    dense = plan(net, image_size=size).apply(verify=False)
    where = locate(dense, size=(size, size))[node].where
    assert isinstance(where, Place)
    return int(where.grid.stride), float(where.grid.field)


def test_strides_and_receptive_fields_are_those_of_table_1() -> None:
    with torch.device("meta"):
        assert grid_of(CaffeNet(), "fc6", 227) == (32, 355)
        assert grid_of(torchvision.models.vgg16(), "classifier_0") == (32, 404)
        # Table 1's 907 is the classifier's, through its 7x7 pool: 6 cells of 32 pixels more than its last map sees.
        assert grid_of(BVLCGoogLeNet(), "fc") == (32, 907)
        assert grid_of(BVLCGoogLeNet(), "inception_5b_output") == (32, 907 - 6 * 32)
