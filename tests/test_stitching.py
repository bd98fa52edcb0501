"""Maps of shifted pictures, interlaced, are the map of the rarefied net."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from impulse import check_grid, dependence
from rarefiable import C, Do, alive, conv, live, nets, output_of, picture, same
from torch import Tensor, nn

from fullyconv.backbones import TinyVGG
from fullyconv.classifiers import CaffeNet
from fullyconv.errors import ConfigError, SurgeryError
from fullyconv.geometry import Grid
from fullyconv.places import Place
from fullyconv.rarefaction import rarefy
from fullyconv.stitching import shift_and_stitch
from fullyconv.surgery import convolutionalize

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")


def grids(net: nn.Module, size: int, channels: int = C) -> tuple[Grid, Grid]:
    place = output_of(net, size, size, channels).where
    assert isinstance(place, Place), place
    return place.down, place.across


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def inside(grid: Grid, stride: int, cells: int, pixels: int) -> Tensor:
    """Which cells of the stitched map see nothing outside of the picture that they come from, (cells,)."""
    step = math.gcd(int(grid.stride), stride)
    half = Fraction(grid.field - 1) / 2
    centres = [grid.offset + step * p for p in range(cells)]
    cut = [step * (p % (int(grid.stride) // step)) for p in range(cells)]
    return torch.tensor([c - half >= d and c + half <= pixels - 1 for c, d in zip(centres, cut, strict=True)])


# --- the theorem ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(nets(padded=False), st.data())
def test_stitched_equals_rarefied(case: tuple[nn.Module, tuple[int, int]], data: st.DataObject) -> None:
    net, size = case
    f = max(int(grid.stride) for grid in grids(net, 200))
    stride = data.draw(st.sampled_from(divisors(f)))
    x = picture(*size, C)
    want = rarefy(net, stride=stride, channels=C, size=200, verify=False)(x)
    assume(alive(want))
    assert same(want, shift_and_stitch(net, x, stride=stride))


@settings(deadline=None, max_examples=30)
@given(nets(padded=True), st.data())
def test_with_padding_stitched_equals_rarefied_where_cells_see_none(
    case: tuple[nn.Module, tuple[int, int]], data: st.DataObject
) -> None:
    net, (height, width) = case
    down, across = grids(net, 200)
    stride = data.draw(st.sampled_from(divisors(int(max(down.stride, across.stride)))))
    # Large enough for a few cells that see no padding, most of the time
    x = picture(height + int(down.field + down.stride), width + int(across.field + across.stride), C)
    want = rarefy(net, stride=stride, channels=C, size=200, verify=False)(x)
    got = shift_and_stitch(net, x, stride=stride)
    assert got.shape == want.shape
    rows = inside(down, stride, got.shape[2], x.shape[2])
    columns = inside(across, stride, got.shape[3], x.shape[3])
    assert torch.allclose(got[:, :, rows][..., columns], want[:, :, rows][..., columns], rtol=1e-11, atol=1e-11)


@settings(deadline=None, max_examples=15)
@given(st.booleans().flatmap(lambda padded: nets(padded=padded)))
def test_every_cell_is_the_nets_own_on_a_shifted_picture(case: tuple[nn.Module, tuple[int, int]]) -> None:
    net, size = case
    f, g = (int(grid.stride) for grid in grids(net, 200))
    size = (size[0] + f, size[1] + g)
    x = picture(*size, C)
    stitched = shift_and_stitch(net, x)
    own = net(x)
    assert stitched[..., ::f, ::g].equal(own[..., : -(-stitched.shape[2] // f), : -(-stitched.shape[3] // g)])
    assert stitched[..., ::f, ::g].shape == own.shape
    # To the last cell that all shifts have, and not one more
    for axis, (length, factor) in enumerate(((stitched.shape[2], f), (stitched.shape[3], g))):
        a = length % factor
        if size[axis] > a:
            try:
                cells = output_of(net, *(n - a * (i == axis) for i, n in enumerate(size))).shape[2 + axis]
            except SurgeryError:
                cells = 0
            assert cells * factor + a == length, "the next cell is lacking at this shift"
    a, b = (f - 1) % stitched.shape[2], (g - 1) % stitched.shape[3]
    assert stitched[..., a % f, b % g].equal(net(x[..., a % f :, b % g :])[..., 0, 0])


@pytest.mark.parametrize("padding", [0, 1])
def test_cells_lie_where_the_nets_do_but_a_pixel_apart(padding: int) -> None:
    net = live(nn.Sequential(conv(3, 2, padding), conv((2, 3), (1, 2)), nn.MaxPool2d(2)))

    class Stitched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return shift_and_stitch(net, x)

    for axis, grid in enumerate(grids(net, 40)):
        dense = Grid(Fraction(1), grid.offset, grid.field)
        assert check_grid(dense, dependence(Stitched(), 30, 33, axis, C), even=False) >= 10


# --- nets that people have --------------------------------------------------------------------------------------------


def test_a_classifier_read_at_every_pixel_is_the_classifier_on_every_crop() -> None:
    """The paper's dense prediction, from end to end: cell (i, j) is the classifier on the crop from pixel (i, j)."""
    classifier = live(
        nn.Sequential(
            conv(3, 2), nn.LeakyReLU(), nn.MaxPool2d(2), conv(3), nn.Flatten(), nn.Linear(4 * C, 8), nn.Linear(8, 3)
        )
    )
    net = convolutionalize(classifier, image_size=17, channels=C).double()
    x = picture(26, 24, C)
    dense = shift_and_stitch(net, x)
    assert dense.shape == (1, 3, 10, 8)
    crops = torch.cat([x[..., i : i + 17, j : j + 17] for i in range(10) for j in range(8)])
    assert same(classifier(crops).T.reshape(1, 3, 10, 8), dense)


@pytest.mark.parametrize(
    ("name", "stride", "size"), [("tinyvgg", 8, 170), ("caffenet", 16, 220), ("alexnet", 8, 230), ("resnet18", 4, 130)]
)
def test_nets_that_people_have(name: str, stride: int, size: int) -> None:
    if name == "tinyvgg":
        net: nn.Module = convolutionalize(TinyVGG(), image_size=96)
    elif name == "caffenet":
        net = nn.Sequential(*list(CaffeNet().children())[:15])
    else:
        net = getattr(torchvision.models, name)(weights=None)
        net = net.features if name == "alexnet" else nn.Sequential(*list(net.children())[:-4])
    net = live(net)
    x = picture(size, size + 9)
    got, want = shift_and_stitch(net, x, stride=stride), rarefy(net, stride=stride, verify=False)(x)
    assert got.shape == want.shape
    down, across = grids(net, 224, 3)
    rows, columns = inside(down, stride, got.shape[2], x.shape[2]), inside(across, stride, got.shape[3], x.shape[3])
    assert rows.any()
    assert columns.any()
    assert same(got[:, :, rows][..., columns], want[:, :, rows][..., columns])


# --- edges ------------------------------------------------------------------------------------------------------------


def test_a_picture_of_one_field_gives_one_cell() -> None:
    net = live(nn.Sequential(conv(5, 4), conv(2, 2)))
    (down, _) = grids(net, 40)
    x = picture(int(down.field), int(down.field) + 3, C)
    assert shift_and_stitch(net, x).shape[2:] == (1, 4)
    assert same(shift_and_stitch(net, x), rarefy(net, channels=C, size=40)(x))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_picture_smaller_than_the_stride_and_its_padding(size: int) -> None:
    net = live(nn.Sequential(conv(1, 1, padding=5), conv(3, 8)))
    stitched = shift_and_stitch(net, picture(size, 20, C))
    assert stitched.shape[2] == size, "there are no further shifts"
    assert stitched.isfinite().all()
    assert stitched[..., ::8, ::8].equal(net(picture(size, 20, C))[..., :1, : stitched[..., ::8].shape[3]])


def test_the_net_stays_as_it_is_and_batches_are_taken() -> None:
    net = nn.Sequential(conv(3, 2), nn.BatchNorm2d(C), nn.Dropout(), nn.MaxPool2d(2)).double().train()
    net[1].eval()
    x = picture(20, 21, C, batch=3).requires_grad_()
    stitched = shift_and_stitch(net, x)
    assert stitched.shape == (3, C, 16, 17)
    assert not stitched.requires_grad
    assert [m.training for m in net] == [True, False, True, True]
    assert stitched.equal(torch.cat([shift_and_stitch(net, one[None]) for one in x]))


def test_a_net_without_stride_runs_once() -> None:
    runs = []
    net = nn.Sequential(conv(3, padding=1))
    net.register_forward_hook(lambda _, inputs, out: runs.append(1) if not out.is_meta else None)
    x = picture(9, 9, C).float()
    stitched = shift_and_stitch(net, x)
    assert len(runs) == 1
    assert stitched.equal(net(x))


def test_a_net_that_cannot_be_traced_is_stitched_too() -> None:
    net = Do(lambda x, f: f(x) if x.shape[2] > 2 else x, live(conv(3, 3)))
    x = picture(14, 15, C)
    assert same(shift_and_stitch(net, x), F.conv2d(x, net.layers[0].weight, net.layers[0].bias))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(conv(), nn.AdaptiveAvgPool2d(1)),
            "lies nowhere on the picture: a mean or maximum over the whole",
        ),
        (nn.Sequential(conv(), nn.Flatten()), "lies nowhere on the picture: a reshape takes the rows or columns"),
        (nn.Sequential(conv(3, 2), nn.GroupNorm(2, C)), "sees the whole picture, from '1' on, so"),
        (
            nn.Sequential(conv(3, 2), Do(lambda x, f: x * f(x.mean((2, 3), keepdim=True)), conv(1)), nn.MaxPool2d(2)),
            "sees the whole picture, from '1.mean' on, so",
        ),
        (nn.Sequential(conv(3, 3), nn.Upsample(scale_factor=2)), "lie 3/2 pixels apart; expected a whole number"),
        (Do(lambda x, f: (x, f(x)), conv()), "returns 2 tensors; expected one map"),
        (Do(lambda x: x.unsqueeze(1)), r"its shape is \(2, 1, 4, 24, 24\)"),
        (nn.Sequential(conv(24), nn.Flatten(), nn.Linear(C, 2)), "does not run on a 224x224 picture"),
        (nn.Conv2d(C + 1, 2, 3), "does not run on a 24x24 picture"),
        (nn.Sequential(conv(25)), "does not run on a 24x24 picture"),
    ],
)
def test_a_map_that_cannot_be_stitched_is_refused_with_the_reason(net: nn.Module, message: str) -> None:
    with pytest.raises(SurgeryError, match=message) as error:
        shift_and_stitch(net, torch.zeros(1, C, 24, 24))
    assert "\n" not in str(error.value)


def test_a_picture_of_which_a_shift_leaves_too_little_is_refused() -> None:
    """Padding that mirrors needs as many pixels; unpadded nets have no cell there, which is no fault."""
    net = nn.Sequential(nn.ReflectionPad2d(2), nn.Conv2d(C, 2, 5, stride=4))
    with pytest.raises(SurgeryError, match=r"a 5x6 picture leaves too little .* does not run on a 2x3 picture"):
        shift_and_stitch(net, torch.rand(1, C, 5, 6))
    assert shift_and_stitch(net, torch.rand(1, C, 6, 7)).shape == (1, 2, 6, 7)


@pytest.mark.parametrize(
    ("finer", "factors"),
    [
        (lambda: nn.PixelShuffle(2), (2, 2)),
        (lambda: nn.Upsample(scale_factor=2), (2, 2)),
        (lambda: nn.ConvTranspose2d(8, 2, 2, 2), (2, 2)),
        (lambda: nn.Upsample(scale_factor=(1.0, 2.0)), (4, 2)),
        (lambda: nn.ConvTranspose2d(8, 2, (4, 1), (4, 1)), (1, 4)),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (33, 42)])
def test_a_map_made_of_coarser_ones_is_stitched_as_far_as_all_shifts_fill_it(
    finer: Callable[[], nn.Module], factors: tuple[int, int], size: tuple[int, int]
) -> None:
    """A cut by a pixel costs such a net several cells at once."""
    net = nn.Sequential(nn.Conv2d(C, 8, 4, 4), finer()).double()
    image = torch.rand(1, C, *size, dtype=torch.float64)
    down, across = factors
    stitched = shift_and_stitch(net, image)
    parts = {(a, b): net(image[..., a:, b:]) for a, b in itertools.product(range(down), range(across))}
    for (a, b), part in parts.items():
        filled = stitched[..., a::down, b::across]
        assert torch.equal(part[..., : filled.shape[2], : filled.shape[3]], filled)
    assert stitched.shape[2] == min(part.shape[2] * down + a for (a, _), part in parts.items())
    assert stitched.shape[3] == min(part.shape[3] * across + b for (_, b), part in parts.items())


def test_the_layer_at_fault_is_named() -> None:
    with pytest.raises(SurgeryError) as error:
        shift_and_stitch(torchvision.models.efficientnet_b0(weights=None).features, torch.zeros(1, 3, 64, 64))
    assert error.value.path.startswith("1.0.block.1.")


@pytest.mark.parametrize("stride", [0, 3, 8])
def test_a_stride_that_does_not_divide_the_nets_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=f"^stride: got {stride}; expected a divisor of 4, the pixels"):
        shift_and_stitch(conv(3, 4), torch.zeros(1, C, 24, 24), stride=stride)


def test_what_is_no_batch_of_pictures_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^image: got shape \(4, 24, 24\); expected \(B, C, H, W\)$"):
        shift_and_stitch(conv(3, 4), torch.zeros(C, 24, 24))
