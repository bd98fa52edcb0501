"""Variants: wider inputs and convolutions for pools leave everything else as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullyconv.classifiers import BVLCGoogLeNet, TinyVGG
from fullyconv.errors import SurgeryError
from fullyconv.locate import locate, positions
from fullyconv.surgery import plan
from fullyconv.tracing import trace
from fullyconv.variants import convolve_pools, widen, widen_input


def pictures(channels: int, height: int, width: int, *, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


class OwnPadding(nn.Conv2d):
    """A convolution with a forward of its own, as in nets that came from TensorFlow."""

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(F.pad(input, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class TwoReaders(nn.Module):
    """Two convolutions read the picture, one of them twice; the shape is asked for on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.size(0)
        both = self.a(x) + self.b(F.pad(x, (1, 1, 1, 1)))[..., 1:-1, 1:-1] + self.b(x)
        return self.c(both.relu()).reshape(batch, 4, x.shape[2] - 2, -1)


# More input channels


READERS: dict[str, Callable[[], nn.Module]] = {
    "a plain stack": lambda: nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, groups=1)),
    "no bias": lambda: nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)),
    "a frame first": lambda: nn.Sequential(nn.Identity(), nn.ZeroPad2d(2), nn.Conv2d(3, 5, 3)),
    "padding of its own": lambda: nn.Sequential(OwnPadding(3, 5, 3, 2), nn.ReLU()),
    "several readers": TwoReaders,
    "a traced net": lambda: trace(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())),
}


@pytest.mark.parametrize("channels", [3, 4, 6])
@pytest.mark.parametrize("kind", READERS)
def test_a_widened_net_gives_what_the_net_gives_where_new_channels_are_zero(kind: str, channels: int) -> None:
    torch.manual_seed(1)
    net = READERS[kind]().double().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    wide = widen_input(net, channels)
    colour = pictures(3, 11, 14)
    with torch.no_grad():
        framed = torch.cat([colour, colour.new_zeros(2, channels - 3, 11, 14)], 1)
        torch.testing.assert_close(wide(framed), net(colour), rtol=1e-12, atol=1e-14)
        if channels > 3:
            framed[:, 3:] += pictures(channels - 3, 11, 14)
            assert (wide(framed) - net(colour)).abs().max() > 1e-3, "new channels are read"
    assert type(wide).__name__ == type(net).__name__
    assert list(wide.state_dict()) == list(before)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())


@settings(max_examples=25, deadline=None)
@given(new=st.integers(1, 3), kernel=st.integers(1, 5), stride=st.integers(1, 3), padding=st.integers(0, 2))
def test_new_channels_add_their_convolution_with_the_mean_weights(
    new: int, kernel: int, stride: int, padding: int
) -> None:
    torch.manual_seed(kernel)
    net = nn.Conv2d(3, 4, kernel, stride, padding).double()
    colour, depth = pictures(3, 9, 8), pictures(new, 9, 8)
    with torch.no_grad():
        wide = widen_input(nn.Sequential(net), 3 + new)(torch.cat([colour, depth], 1))
        mean = net.weight.mean(1, keepdim=True)
        added = F.conv2d(depth.sum(1, keepdim=True), mean, stride=stride, padding=padding)
        torch.testing.assert_close(wide, net(colour) + added, rtol=1e-11, atol=1e-13)


def test_widening_keeps_what_is_frozen_and_in_half_precision() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).half().requires_grad_(False)
    layer = widen_input(net, 4)[0]
    assert (layer.weight.dtype, layer.weight.requires_grad, layer.in_channels) == (torch.float16, False, 4)
    assert widen(net[0].weight, 6).shape == (4, 6, 3, 3)


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "densenet121", "mobilenet_v2", "convnext_tiny"])
def test_torchvisions_nets_are_widened_and_cut_as_before(name: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None)
        assert plan(widen_input(net, 4), channels=4).edits == plan(net).edits


@pytest.mark.parametrize(
    ("net", "channels", "message"),
    [
        (
            nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
            4,
            r"'0' \(BatchNorm2d.*reads the picture; expected an un",
        ),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3)), 4, r"'0' \(Conv2d.*groups=3.*expected an ungrouped Conv2d"),
        (
            nn.Sequential(nn.Conv2d(4, 6, 3)),
            5,
            "'0' reads pictures of 4 channels, expected 3; say how many with reads=4",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(27, 2)), 4, r"'0' \(Flatten.*expected an ungrouped Conv2d"),
        (nn.Sequential(Standardised(3, 4, 3)), 4, r"'0.conv2d' \(conv2d\) reads the picture; expected an ungrouped"),
        (nn.Sequential(nn.Conv2d(3, 6, 3)), 2, "cannot widen Sequential from 3 to 2 channels; expected more"),
        (torchvision.models.GoogLeNet(transform_input=True, init_weights=False), 4, r"'getitem' \(getitem\) reads the"),
    ],
)
def test_what_cannot_be_widened_is_refused_in_one_line(net: nn.Module, channels: int, message: str) -> None:
    with pytest.raises(SurgeryError, match=message) as caught:
        widen_input(net, channels)
    assert "\n" not in str(caught.value)
    assert caught.value.path == ("" if channels == 2 else str(caught.value).split("'")[1])


# Convolutions for pools


class Pools(nn.Module):
    """Functional pools of both kinds, by position and by name, and one module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.a(x)))
        x = F.avg_pool2d(x, 3, 1, padding=1) + F.max_pool2d(x, 3, stride=1, padding=1)
        x = self.pool(F.relu(self.b(x)))
        x = torch.max_pool2d(x, 2, 1)
        return self.fc(F.avg_pool2d(x, x.size()[2:]).flatten(1))


AVERAGE_NETS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.ELU(), nn.AvgPool2d((3, 2), (2, 1))),
    "padding that counts": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 1, (1, 0))),
    "a divisor of its own": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3, 2, 1, divisor_override=5)),
}


@pytest.mark.parametrize("kind", AVERAGE_NETS)
@pytest.mark.parametrize(("height", "width"), [(20, 33), (23, 30)])
def test_a_net_of_average_pools_gives_what_it_gave(kind: str, height: int, width: int) -> None:
    torch.manual_seed(0)
    net = AVERAGE_NETS[kind]().double()
    convolved = convolve_pools(net, size=32)
    assert not [m for m in convolved.modules() if isinstance(m, nn.AvgPool2d)]
    with torch.no_grad():
        x = pictures(3, height, width)
        torch.testing.assert_close(convolved(x), net(x), rtol=1e-12, atol=1e-13)


def test_where_a_window_is_not_whole_the_missing_cells_count_as_zeros() -> None:
    """Padding that does not count and ceil mode: equal wherever the window lies inside, smaller where it does not."""
    for pool, inside in (
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), (slice(1, None), slice(1, -1))),
        (nn.AvgPool2d(3, 2, ceil_mode=True), (slice(None, -1), slice(None))),
    ):
        x = pictures(3, 12, 11).abs()
        with torch.no_grad():
            want, got = pool(x), convolve_pools(nn.Sequential(pool).double(), size=32).double()(x)
        assert want.shape == got.shape
        torch.testing.assert_close(got[:, :, *inside], want[:, :, *inside], rtol=1e-6, atol=0)
        assert (got <= want + 1e-6).all()
        assert (got < 0.9 * want).any()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_pool_keeps_its_cells_in_number_and_place(data: st.DataObject) -> None:
    dilation = data.draw(st.integers(1, 2))
    kernel = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    padding = (data.draw(st.integers(0, kernel[0] // 2)), data.draw(st.integers(0, kernel[1] // 2)))
    ceil = data.draw(st.booleans())
    largest = [dilation * (k - 1) + 1 - p if ceil else 4 for k, p in zip(kernel, padding, strict=True)]
    stride = (data.draw(st.integers(1, max(1, largest[0]))), data.draw(st.integers(1, max(1, largest[1]))))
    pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    height, width = data.draw(st.integers(8, 20)), data.draw(st.integers(8, 20))
    net = nn.Sequential(nn.Conv2d(3, 2, 1), pool)
    convolved = convolve_pools(net, size=64)
    before = locate(trace(net), size=(height, width))
    after = locate(convolved, size=(height, width))
    assert {name: entry.shape for name, entry in after.items() if name in before} == {
        name: entry.shape for name, entry in before.items()
    }
    assert dict(positions(before)).items() <= dict(positions(after)).items()


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (TinyVGG, 96),
        (BVLCGoogLeNet, 224),
        (lambda: torchvision.models.squeezenet1_0(), 224),
        (lambda: torchvision.models.resnet18(), 224),
        (lambda: torchvision.models.inception_v3(init_weights=False), 299),
        (lambda: torchvision.models.vgg16(), 224),
    ],
)
def test_every_map_of_a_classifier_lies_where_it_lay(make: Callable[[], nn.Module], size: int) -> None:
    with torch.device("meta"):
        net = make()
        convolved = convolve_pools(net, size=size)
        pools = (nn.MaxPool2d, nn.AvgPool2d)
        left = [m for m in convolved.modules() if isinstance(m, pools)]
        assert len(left) == (1 if isinstance(net, BVLCGoogLeNet) else 0), "only global pools stay"
        cut = [plan(m, image_size=size).apply(verify=False) for m in (net, convolved)]
        for height, width in ((size, size), (size + 37, size + 50)):
            before, after = (
                [
                    (located[name].shape, place)
                    for located in (locate(dense, size=(height, width)),)
                    for name, place in positions(located)
                    if not name.endswith("_end")
                ]
                for dense in cut
            )
            assert before == after


def test_functional_pools_and_shared_ones_get_convolutions_of_their_own() -> None:
    torch.manual_seed(0)
    net = Pools().double().train()
    net.a.eval()
    convolved = convolve_pools(net, size=32)
    added = {k: v.shape[0] for k, v in convolved.state_dict().items() if k not in net.state_dict() and "weight" in k}
    assert added == {
        "pool_convolution.weight": 4,
        "avg_pool2d_convolution.weight": 4,
        "max_pool2d_convolution.weight": 4,
        "pool_1_convolution.weight": 6,
        "max_pool2d_1_convolution.weight": 6,
    }
    assert convolved.training
    assert isinstance(net.pool, nn.AvgPool2d), "the net itself is never touched"
    made = plan(convolved, image_size=32)
    assert made.edits[0].kind == "average pool", "the global pool is surgery's"
    assert made.apply()(pictures(3, 64, 64)).shape[2:] > (1, 1)


def test_a_pool_called_once_keeps_its_name_and_learns_from_all_channels() -> None:
    net = TinyVGG()
    convolved = convolve_pools(net, size=96)
    assert set(convolved.state_dict()) - set(net.state_dict()) == {
        f"features.{i}.{kind}" for i in (3, 7, 11, 15, 19) for kind in ("weight", "bias")
    }
    convolved(torch.randn(2, 3, 96, 96)).square().sum().backward()
    gradient = convolved.get_submodule("features.3").weight.grad
    assert (gradient.abs().amax((2, 3)) > 0).float().mean() > 0.9


def test_both_variants_go_together_and_through_surgery() -> None:
    torch.manual_seed(0)
    net = TinyVGG().double().eval()
    one = convolve_pools(widen_input(net, 4), channels=4, size=96)
    other = widen_input(convolve_pools(net, size=96), 4)
    assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in other.state_dict().items()}
    for variant in (one, other):
        made = plan(variant, image_size=96, channels=4)
        assert (made.stride, made.hidden) == (32, True)
        assert made.scores == plan(net, image_size=96).scores
        assert made.apply()(pictures(4, 128, 160)).shape == (2, 8, 2, 3)
    x = pictures(4, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (nn.MaxPool2d(2, return_indices=True), r"'1' \(MaxPool2d.*has no strided convolution in its place"),
        (nn.LPPool2d(2, 2), r"'1' \(LPPool2d.*expected maximum or average pools"),
        (nn.FractionalMaxPool2d(2, output_size=5), r"'1' \(FractionalMaxPool2d.*expected maximum or average pools"),
        (nn.AvgPool2d(2, 2, 1, ceil_mode=True), r"'1' \(AvgPool2d.*stride \+ padding up to the kernel"),
    ],
)
def test_pools_that_no_convolution_replaces_are_refused_in_one_line(pool: nn.Module, message: str) -> None:
    with pytest.raises(SurgeryError, match=message) as caught:
        convolve_pools(nn.Sequential(nn.Conv2d(3, 4, 3), pool), size=32)
    assert "\n" not in str(caught.value)
    assert caught.value.path == "1"


class HalfOfThePicture(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, (x.size(2) // 2, x.size(3) // 2))


def test_a_pool_whose_kernel_depends_on_the_picture_is_refused() -> None:
    with pytest.raises(SurgeryError, match=r"'max_pool2d' .*depends on the picture.*expected constants"):
        convolve_pools(HalfOfThePicture(), size=32)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_weights_that_are_computed_are_not_widened(norm: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(norm(nn.Conv2d(3, 8, 3)))
    with pytest.raises(SurgeryError, match="Conv2d that reads the picture are computed, as by weight norm"):
        widen_input(net, 4)
