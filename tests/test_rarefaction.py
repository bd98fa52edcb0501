"""A rarefied net has the net's own cells, every f-th, and between them those of shifted pictures."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from impulse import check_grid, dependence
from rarefiable import PADDED, POINTWISE, UNPADDED, C, Do, alive, conv, live, nets, output_of, picture, same
from torch import Tensor, nn

from fullyconv.backbones import TinyVGG
from fullyconv.errors import ConfigError, SurgeryError
from fullyconv.places import Place
from fullyconv.rarefaction import DilatedAvgPool2d, rarefy
from fullyconv.surgery import convolutionalize
from fullyconv.tracing import trace

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def strides_of(net: nn.Module, size: int, channels: int = C) -> tuple[int, int]:
    place = output_of(net, size, size, channels).where
    assert isinstance(place, Place), place
    return int(place.down.stride), int(place.across.stride)


def own_cells(net: nn.Module, rarefied: nn.Module, x: Tensor, *, stride: int, located_at: int = 200) -> Tensor:
    """Those of the rarefied net's cells that the net has."""
    down, across = strides_of(net, located_at, x.shape[1])
    with torch.no_grad():
        return rarefied(x)[..., :: down // math.gcd(down, stride), :: across // math.gcd(across, stride)]


# --- the theorem ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.booleans().flatmap(lambda padded: nets(padded=padded)), st.data())
def test_the_cells_of_the_net_are_among_those_of_the_rarefied_net(
    case: tuple[nn.Module, tuple[int, int]], data: st.DataObject
) -> None:
    net, size = case
    stride = data.draw(st.sampled_from(divisors(max(strides_of(net, 200)))))
    rarefied = rarefy(net, stride=stride, channels=C, size=200, verify=False)
    x = picture(*size, C)
    want = net(x)
    assume(alive(want))
    assert same(want, own_cells(net, rarefied, x, stride=stride))


@pytest.mark.parametrize("name", sorted(POINTWISE | UNPADDED | PADDED))
def test_every_layer_behind_a_stride_that_is_taken_out(name: str) -> None:
    layer = (POINTWISE | UNPADDED | PADDED)[name]
    net = live(nn.Sequential(conv(2, 2), nn.LeakyReLU(), layer(), conv(2, padding=1), nn.MaxPool2d(2)))
    f = max(strides_of(net, 100))
    for stride in {1, f // 2}:
        rarefied = rarefy(net, stride=stride, channels=C, size=100)
        for size in [(40, 40), (43, 38), (41, 45)]:
            x = picture(*size, C)
            assert same(net(x), own_cells(net, rarefied, x, stride=stride)), (stride, size)


@pytest.mark.parametrize("name", sorted(UNPADDED))
def test_cells_lie_where_the_net_has_them_but_closer(name: str) -> None:
    net = live(nn.Sequential(conv(3, 2), UNPADDED[name](), nn.AvgPool2d(2)))
    before = output_of(net, 40, 40).where
    rarefied = rarefy(net, channels=C, size=40)
    after = output_of(rarefied, 40, 40).where
    assert isinstance(before, Place)
    assert isinstance(after, Place)
    for axis, (one, other) in enumerate(((before.down, after.down), (before.across, after.across))):
        assert other.stride == 1
        assert (other.offset, other.field) == (one.offset, one.field)
        # Between the slots of a dilated window lies nothing, so that not all of the field is read.
        check_grid(other, dependence(rarefied, 40, 40, axis, C), even=False)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_dilated_average_pool_without_dilation_is_torchs(data: st.DataObject) -> None:
    kernel = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    stride = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    include, divisor = data.draw(st.booleans()), data.draw(st.sampled_from([None, 3]))
    ceil = data.draw(st.booleans())
    pool = nn.AvgPool2d(kernel, stride, padding, ceil, include, divisor)
    # A stride before that is taken out, so that the pool is dilated
    net = nn.Sequential(conv(1, 1), nn.MaxPool2d(1, data.draw(st.integers(1, 3))), pool).double()
    f = net[1].stride
    x = picture(data.draw(st.integers(4 * f, 8 * f)), data.draw(st.integers(4 * f, 8 * f)), C)
    down, across = strides_of(net, 64)
    rarefied = rarefy(net, channels=C, size=64, verify=False)
    assert torch.allclose(rarefied(x)[..., ::down, ::across], net(x), rtol=1e-12, atol=1e-12)


# --- the copy ---------------------------------------------------------------------------------------------------------


def test_names_weights_and_mode_stay_and_the_net_is_not_touched() -> None:
    shared = Do(lambda x, f, p: p(f(p(f(x)))), conv(3, padding=1), nn.MaxPool2d(2))
    net = nn.Sequential(conv(3, 2), nn.BatchNorm2d(C), shared, nn.Dropout()).train()
    net[1].eval()
    before, printed = copy.deepcopy(net.state_dict()), str(net)
    modes = [m.training for m in net.modules()]
    rarefied = rarefy(net, channels=C, size=64)
    assert str(net) == printed
    assert [m.training for m in net.modules()] == modes
    assert rarefied.training
    assert not rarefied.get_submodule("1").training
    assert rarefied.state_dict().keys() == before.keys()
    assert [name for name, _ in rarefied.named_parameters()] == [name for name, _ in net.named_parameters()]
    for name, value in rarefied.state_dict().items():
        assert value.equal(before[name])
        assert value.equal(net.state_dict()[name])
        assert value.data_ptr() != net.state_dict()[name].data_ptr(), "a copy shares no weights"


def test_a_rarefied_net_learns() -> None:
    net = live(nn.Sequential(conv(3, 2), nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), conv(2)))
    rarefied = rarefy(net, channels=C, size=64)
    x = picture(21, 22, C)
    for one in (net, rarefied):
        one(x)[..., ::4, ::4].square().sum().backward() if one is rarefied else one(x).square().sum().backward()
    for (name, one), other in zip(net.named_parameters(), rarefied.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9), name


def test_layers_before_the_first_stride_that_is_taken_out_stay_as_they_are() -> None:
    net = nn.Sequential(
        nn.Conv2d(C, C, 3, 2, padding=1, padding_mode="reflect"), nn.GELU(), nn.MaxPool2d(2, ceil_mode=True), conv(3, 2)
    )
    rarefied = rarefy(net, stride=4, channels=C, size=64)
    for i in (0, 1, 2):
        assert str(rarefied.get_submodule(str(i))) == str(net[i])
    assert rarefied.get_submodule("3").stride == (1, 1)
    same_stride = rarefy(net, stride=8, channels=C, size=64)
    assert str(same_stride.get_submodule("3")) == str(net[3])


def test_negative_padding_crops_denser_cells() -> None:
    net = live(nn.Sequential(conv(3, 2), nn.ConstantPad2d((-1, 2, 1, -2), 0.5), conv(3, 2)))
    x = picture(30, 33, C)
    assert same(net(x), rarefy(net, channels=C, size=32)(x)[..., ::4, ::4])


def test_one_layer_may_keep_part_of_its_stride() -> None:
    rarefied = rarefy(nn.Sequential(conv(5, 4), conv(4, 3)), stride=6, channels=C, size=64)
    first, second = (rarefied.get_submodule(name) for name in "01")
    assert (first.stride, first.dilation) == ((2, 2), (1, 1))
    assert (second.stride, second.dilation) == ((3, 3), (2, 2))


def test_several_maps_each_get_the_divisor_they_share_with_the_stride() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3, 2, 1), conv(3, 2, 1), conv(3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            fine = self.a(x)
            middle = self.b(fine.relu())
            return {"coarse": self.c(middle.relu()), "fine": fine, "middle": middle}

    net = live(Pyramid())
    x = picture(45, 50, C)
    want, got = net(x), rarefy(net, stride=4, channels=C, size=64)(x)
    assert want.keys() == got.keys()
    assert want["fine"].equal(got["fine"])
    assert want["middle"].equal(got["middle"])
    assert same(want["coarse"], got["coarse"][..., ::2, ::2])


# --- nets that people have --------------------------------------------------------------------------------------------


def torchvision_net(name: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torchvision.models.get_model(name, weights=None)


REAL: dict[str, Callable[[], nn.Module]] = {
    "alexnet": lambda: torchvision_net("alexnet").features,
    "squeezenet1_0": lambda: torchvision_net("squeezenet1_0").features,
    "vgg11": lambda: torchvision_net("vgg11").features,
    "resnet18": lambda: nn.Sequential(*list(torchvision_net("resnet18").children())[:-2]),
    "googlenet": lambda: nn.Sequential(*list(torchvision_net("googlenet").children())[:16]),
    "shufflenet_v2_x0_5": lambda: nn.Sequential(*list(torchvision_net("shufflenet_v2_x0_5").children())[:-1]),
    "densenet121": lambda: torchvision_net("densenet121").features,
    "tinyvgg": lambda: convolutionalize(TinyVGG(), image_size=96),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_nets_that_people_have_at_a_lower_stride(name: str) -> None:
    stride = 4 if name in ("alexnet", "tinyvgg") else 8
    net = live(REAL[name]())
    size = 130 if name == "tinyvgg" else 75
    f = strides_of(net, 224, 3)[0]
    rarefied = rarefy(net, stride=stride, verify=False)
    x = picture(size, size + 14)
    with torch.no_grad():
        want, got = net(x), rarefied(x)
    assert got.shape[2] > want.shape[2]
    assert same(want, got[..., :: f // stride, :: f // stride])


def test_a_rarefied_resnet_is_torchvisions_dilated_one() -> None:
    plain = live(torchvision_net("resnet50")).float()
    dilated = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    dilated.load_state_dict(plain.state_dict())
    ours, theirs = (nn.Sequential(*list(net.children())[:-2]) for net in (plain, dilated))
    rarefied = rarefy(ours, stride=8, verify=False)
    x = picture(65, 80).float()
    with torch.no_grad():
        want, got = theirs(x), rarefied(x)
    assert want.shape == got.shape == (1, 2048, 9, 10)
    assert (want - got).abs().max() <= 1e-5 * want.abs().max()


def test_verification_revives_untrained_weights() -> None:
    rarefied = rarefy(convolutionalize(TinyVGG(), image_size=96), stride=16, size=96)
    assert strides_of(rarefied, 128, 3) == (16, 16)


# --- what is refused --------------------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(self.pool(x)))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "global pool in a block": (SqueezeExcite, "'1.pool' (AdaptiveAvgPool2d) cannot be rarefied: a mean or maximum"),
    "group norm": (lambda: nn.GroupNorm(2, C), "'1' (GroupNorm) cannot be rarefied: it sees the whole picture, and"),
    "interpolation": (lambda: Do(lambda x: F.interpolate(x, scale_factor=2)), "'1.interpolate' (interpolate) has no"),
    "transposed convolution": (lambda: nn.ConvTranspose2d(C, C, 2, 2), "'1' (ConvTranspose2d) has no rarefied equal"),
    "transposed convolution, stride 1": (lambda: nn.ConvTranspose2d(C, C, 3), "'1' (ConvTranspose2d) has no rarefied"),
    "pixel unshuffle": (
        lambda: Do(lambda x: F.pixel_unshuffle(x[..., 1:, 1:], 2)),
        "(pixel_unshuffle) has no rarefied equal",
    ),
    "reflection": (lambda: nn.ReflectionPad2d(1), "'1' (ReflectionPad2d) has no rarefied equal"),
    "functional reflection": (lambda: Do(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")), "(pad) has no rarefied"),
    "reflecting convolution": (
        lambda: nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect"),
        "'1' (Conv2d) pads with padding_mode 'reflect'",
    ),
    "computed padding": (
        lambda: Do(lambda x: F.pad(x, (0, x.shape[-1] % 2 + 1, 0, 1))),
        "since its 'pad' is computed from the size of the picture",
    ),
    "indices": (
        lambda: Do(lambda x, p: p(x)[0], nn.MaxPool2d(2, return_indices=True)),
        "'1.layers.0' (MaxPool2d) has no rarefied equal",
    ),
    "slice from the far border": (lambda: Do(lambda x: x[..., -9:, :]), "a slice counts from the far border"),
    "flipped": (lambda: Do(lambda x: x.flip(-1)), "flip"),
    "norm over the map": (lambda: nn.LayerNorm((15, 15)), "(LayerNorm) cannot be rarefied: it sees the whole"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_has_no_rarefied_equal_is_refused_with_its_place(name: str) -> None:
    layer, message = REFUSED[name]

    class Net(nn.Sequential):
        """Its output has positions, whatever the layer in question does."""

        def forward(self, input: Tensor) -> Tensor:
            x = super().forward(input)
            y = F.avg_pool2d(input, 4)[..., :1, :1]
            return y + x.mean((2, 3), keepdim=True)[:, :C]

    with pytest.raises(SurgeryError) as error:
        rarefy(Net(conv(3, 2, 0), layer()), channels=C, size=32)
    assert message in str(error.value)
    assert error.value.path.startswith("1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["reflection", "functional reflection", "transposed convolution, stride 1"])
def test_nothing_is_refused_before_the_first_stride_that_is_taken_out(name: str) -> None:
    net = live(nn.Sequential(conv(3, 2, 1), REFUSED[name][0](), conv(3, 2, 1), conv(2)))
    x = picture(40, 42, C)
    assert same(net(x), rarefy(net, stride=2, channels=C, size=32)(x)[..., ::2, ::2])


def test_what_sees_the_whole_picture_is_refused_before_it_too() -> None:
    # The map would be denser where it is gated, and nobody could say whether the gate saw the same.
    net = nn.Sequential(conv(3, 2, 1), SqueezeExcite(), conv(3, 2, 1), nn.GroupNorm(2, C))
    with pytest.raises(SurgeryError, match=r"^'2' \(Conv2d\) cannot be rarefied: it sees .* from '1.pool' on,"):
        rarefy(net, stride=2, channels=C, size=32)


def test_an_output_that_is_as_dense_already_is_left_alone() -> None:
    net = live(nn.Sequential(conv(3, 2, 1), SqueezeExcite(), nn.Upsample(scale_factor=2, mode="bilinear"), conv(3)))
    x = picture(32, 32, C)
    assert rarefy(net, channels=C, size=32)(x).equal(net(x))


@pytest.mark.parametrize("stride", [0, -1, 3, 8])
def test_a_stride_that_does_not_divide_the_nets_is_refused(stride: int) -> None:
    with pytest.raises(
        ConfigError, match=f"^stride: got {stride}; expected a divisor of 4, the pixels between"
    ) as error:
        rarefy(nn.Sequential(conv(3, 4)), stride=stride, channels=C, size=32)
    assert error.value.where == "stride"


def test_a_classifier_is_refused_with_the_way_out() -> None:
    with pytest.raises(SurgeryError, match=r"returns 'classifier.3', which is no map .* convolutionalize first"):
        rarefy(TinyVGG(), size=96)


def test_verification_finds_what_depends_on_the_number_of_cells() -> None:
    net = nn.Sequential(conv(3, 2), Do(lambda x: x / x.shape[2]), conv(3)).double()
    with pytest.raises(SurgeryError, match="some layer's result depends on how many cells its map has"):
        rarefy(net, channels=C, size=32)


def test_verification_refuses_a_net_that_stays_dead() -> None:
    with pytest.raises(SurgeryError, match="expected live activations"):
        rarefy(nn.Sequential(conv(3, 2), Do(lambda x: x * 0)), channels=C, size=32)


def test_a_traced_net_is_rarefied_too() -> None:
    net = live(nn.Sequential(conv(3, 2), conv(3)))
    x = picture(30, 31, C)
    assert rarefy(trace(net), channels=C, size=32)(x).equal(rarefy(net, channels=C, size=32)(x))


def test_a_dilated_average_pool_says_what_it_is() -> None:
    assert str(DilatedAvgPool2d((2, 2), dilation=(4, 4))) == (
        "DilatedAvgPool2d(kernel_size=(2, 2), stride=(1, 1), padding=(0, 0), dilation=(4, 4), beyond=(0, 0), "
        "count_include_pad=True)"
    )


def test_a_reflection_is_checked_on_a_picture_that_is_large_enough() -> None:
    net = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, 8, 3, stride=2, padding=1)).eval()
    picture = torch.rand(1, 3, 40, 50)
    assert torch.allclose(rarefy(net)(picture)[..., ::2, ::2], net(picture), atol=1e-6)


def test_weights_that_are_computed_are_refused_in_one_line() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3, 2, 1)))
    with pytest.raises(SurgeryError, match=r"Sequential cannot be copied: .*remove_weight_norm"):
        rarefy(net)
