"""The authors' own nets, written out as they released them, against ours in the geometry pad100, number for number."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullyconv.backbones import Streams, backbone
from fullyconv.config import INPUTS, HeadConfig, SkipConfig, Upsampling
from fullyconv.inference import tiled, whole
from fullyconv.model import FCN
from fullyconv.upsample import bilinear_kernel

K = 5
TAPS = {"pool3": "features.16", "pool4": "features.23", "fc7": "classifier.5"}
READ = {32: ["fc7"], 16: ["fc7", "pool4"], 8: ["fc7", "pool4", "pool3"]}
SIZES = [(1, 1), (33, 47), (64, 96), (101, 66), (75, 130)]


class NarrowVGG16(nn.Module):
    """VGG16 with few channels: the same layers, strides and paddings."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width, depth in ((4, 2), (6, 2), (8, 3), (8, 3), (8, 3)):
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(8 * 49, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 9)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return scores


def alive(net: nn.Module, seed: int = 0) -> None:
    """Weights that keep the signal alive, biases and kernels included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * (2 / fan_in) ** 0.5)


@functools.cache
def model(stride: int, kernel: Upsampling, *, scales: bool = False) -> FCN:
    trunk = backbone(NarrowVGG16(), taps=TAPS, input=INPUTS["caffe"], geometry="pad100")
    skips = tuple(SkipConfig(tap=tap, scale=0.1**i if scales else 1) for i, tap in enumerate(READ[stride]))
    made = FCN(trunk, {"out": HeadConfig(classes=K, skips=skips, upsampling=kernel, last_upsampling=kernel)})
    alive(made.double())
    return made.eval()


def conv(x: Tensor, state: Mapping[str, Tensor], name: str, padding: int = 0) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state[f"{name}.bias"], padding=padding)


def deconv(x: Tensor, state: Mapping[str, Tensor], name: str, taps: int, stride: int) -> Tensor:
    """Unpadded, from every class to every class, as Caffe's Deconvolution layer."""
    weight = state.get(f"{name}.weight")
    if weight is None:
        weight = torch.zeros(K, K, taps, taps, dtype=torch.float64)
        weight[range(K), range(K)] = bilinear_kernel(taps).double()
    if weight.shape[1] == 1:
        weight = torch.eye(K, dtype=torch.float64)[:, :, None, None] * weight
    assert weight.shape == (K, K, taps, taps)
    return F.conv_transpose2d(x, weight, stride=stride)


def as_released(image: Tensor, state: Mapping[str, Tensor], stride: int, scales: bool = False) -> Tensor:
    """The nets of the release: padding 100, pools in ceil mode, crops of 5, 9, 19, 27 and 31 as written there."""
    # Our mean is a float32.
    x = image[:, [2, 1, 0]] - torch.tensor(INPUTS["caffe"].mean).double().view(1, 3, 1, 1)
    pools = []
    for name in sorted((n for n in state if n.startswith("backbone.net.features")), key=lambda n: int(n.split(".")[3])):
        if name.endswith("bias"):
            continue
        layer = int(name.split(".")[3])
        x = F.relu(conv(x, state, name.removesuffix(".weight"), 100 if layer == 0 else 1))
        if layer in (2, 7, 14, 21, 28):
            x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
    x = F.relu(conv(x, state, "backbone.net.classifier.0"))
    x = F.relu(conv(x, state, "backbone.net.classifier.3"))
    x = conv(x, state, "heads.out.score.fc7.0")
    height, width = image.shape[2:]
    if stride == 32:
        return deconv(x, state, "heads.out.upsample", 64, 32)[..., 19 : 19 + height, 19 : 19 + width]
    x = deconv(x, state, "heads.out.align.pool4", 4, 2)
    score = conv(pools[3] * (0.1 if scales else 1), state, "heads.out.score.pool4.0")
    x = x + score[..., 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
    if stride == 16:
        return deconv(x, state, "heads.out.upsample", 32, 16)[..., 27 : 27 + height, 27 : 27 + width]
    x = deconv(x, state, "heads.out.align.pool3", 4, 2)
    score = conv(pools[2] * (0.1**2 if scales else 1), state, "heads.out.score.pool3.0")
    x = x + score[..., 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
    return deconv(x, state, "heads.out.upsample", 16, 8)[..., 31 : 31 + height, 31 : 31 + width]


def picture(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return 255 * torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kernel", ["fixed", "learned", "full"])
@pytest.mark.parametrize("stride", [32, 16, 8])
def test_logits_are_those_of_the_released_net_at_any_size(stride: int, kernel: Upsampling) -> None:
    made = model(stride, kernel)
    state = made.state_dict()
    for size in SIZES:
        with torch.no_grad():
            ours, theirs = made(picture(*size))["out"], as_released(picture(*size), state, stride)
        assert ours.shape == (1, K, *size)
        assert float(theirs.std()) > 1e-3 * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()))


def test_scaled_skips_are_those_of_the_net_that_learns_at_once() -> None:
    made = model(8, "fixed", scales=True)
    with torch.no_grad():
        ours = made(picture(61, 90))["out"]
        theirs = as_released(picture(61, 90), made.state_dict(), 8, scales=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * float(theirs.abs().max()))


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), tile=st.sampled_from([32, 96, 128]))
def test_tiles_give_what_the_whole_gives(height: int, width: int, tile: int) -> None:
    made = model(8, "fixed")
    image = picture(height, width)
    with torch.no_grad():
        one, cut = whole(made, image)["out"], tiled(made, image, tile=tile)["out"]
    torch.testing.assert_close(cut, one, rtol=1e-9, atol=1e-9 * float(one.abs().max()))


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_crops_come_out_of_the_grids(stride: int) -> None:
    head = model(stride, "full").heads["out"]
    assert head.upsample.crop == {32: 19, 16: 27, 8: 31}[stride]
    assert {tap: own for tap, (_, own) in head.crops.items()} == {
        32: {},
        16: {"pool4": 5},
        8: {"pool4": 5, "pool3": 9},
    }[stride]


def test_late_fusion_averages_the_scores_of_two_streams() -> None:
    streams = {
        name: backbone(NarrowVGG16(), taps=TAPS, input=INPUTS[f"nyud-{name}"], geometry="pad100")
        for name in ("color", "hha")
    }
    head = HeadConfig(classes=K, fusion="mean", skips=tuple(SkipConfig(tap=f"{name}/fc7") for name in streams))
    both = FCN(Streams(streams), {"out": head})
    alive(both.double().eval())
    alone = []
    image = torch.cat([picture(50, 70), picture(50, 70).flip(3)], 1)
    for i, name in enumerate(streams):
        one = FCN(
            backbone(NarrowVGG16(), taps=TAPS, input=INPUTS[f"nyud-{name}"], geometry="pad100"),
            {"out": HeadConfig(classes=K, skips=(SkipConfig(tap="fc7"),))},
        )
        prefixes = {"backbone.": f"backbone.streams.{name}.", "heads.out.score.": f"heads.out.score.{name}/"}
        state = {
            key: both.state_dict()[new + key.removeprefix(old)]
            for key in one.state_dict()
            for old, new in prefixes.items()
            if key.startswith(old)
        }
        one.double().eval().load_state_dict(state)
        with torch.no_grad():
            alone.append(one(image[:, 3 * i : 3 * i + 3])["out"])
    with torch.no_grad():
        fused = both(image)["out"]
    assert float((alone[0] - alone[1]).abs().max()) > 0.1 * float(alone[0].abs().max())
    torch.testing.assert_close(fused, (alone[0] + alone[1]) / 2, rtol=1e-10, atol=1e-10 * float(fused.abs().max()))
