"""The model: any size in, exactly that size out, and every score where it belongs."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullyconv.backbones import Backbone, Streams, backbone
from fullyconv.building import build
from fullyconv.config import INPUTS, HeadConfig, InputConfig, ModelConfig, SkipConfig
from fullyconv.errors import AlignmentError, ConfigError, UnknownName
from fullyconv.model import FCN, Preprocess
from fullyconv.presets import fcn, fcn8s, fcn16s, fcn32s
from fullyconv.transplant import transplant


class Maps(nn.Module):
    """A net that gives a map after every stage."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def unpadded() -> nn.Module:
    """Loses pixels at every border, by an odd number here and an even one there."""
    return Maps(
        nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
    )


def skips(*taps: str, init: str = "zeros") -> tuple[SkipConfig, ...]:
    return tuple(SkipConfig(tap=tap, init=init) for tap in taps)  # type: ignore[arg-type]


def one_head(trunk: Backbone, *taps: str, classes: int = 2) -> FCN:
    return FCN(trunk, {"out": HeadConfig(classes=classes, skips=skips(*taps))})


@functools.cache
def model(name: str) -> FCN:
    torch.manual_seed(0)
    if name == "unpadded":
        trunk = backbone(unpadded(), image_size=96)
        made = one_head(trunk, *reversed(trunk.taps), classes=4)
    else:
        # The coarsest score reads no context, which would only cost time here.
        made = build(fcn(16 if name == "alexnet" else 8, name, 4, weights=None, context=0))
    enliven(made)
    return made.eval()


def enliven(made: FCN) -> None:
    """Score layers that start at zero say nothing."""
    with torch.no_grad():
        for name, parameter in made.heads.named_parameters():
            if "score" in name:
                parameter.normal_(std=0.1)


# Any size


@pytest.mark.parametrize(
    "name", ["tinyvgg", "squeezenet1_0", "resnet18", "alexnet", "mobilenet_v3_small", "unpadded", "timm/regnetx_002"]
)
@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 97), width=st.integers(1, 97))
def test_a_picture_of_any_size_gives_logits_of_exactly_that_size(name: str, height: int, width: int) -> None:
    picture = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    made = model(name)
    with torch.no_grad():
        scores = made.score_maps(picture)["out"]
        logits = made(picture)["out"]
    assert logits.shape == (1, 4, height, width)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())
    # Cells begin within half a stride of the first pixel, and less than a stride lies beyond the last.
    grid = made.heads["out"].grid
    for pixels, cells in ((height, scores.shape[2]), (width, scores.shape[3])):
        last = grid.offset + grid.stride * (cells - 1)
        assert grid.offset <= made.stride / 2
        assert last > pixels - 1 - made.stride


@pytest.mark.parametrize("name", ["tinyvgg", "squeezenet1_0", "resnet18", "alexnet", "unpadded"])
@given(height=st.integers(1, 500), width=st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_the_frame_makes_whole_strides_and_begins_at_the_same_place(name: str, height: int, width: int) -> None:
    made = model(name)
    frame = made.frame(height, width)
    assert (frame.left, frame.top) == made.frame(1, 1)[:2]
    assert min(frame) >= 0
    for total in (frame.top + height + frame.bottom, frame.left + width + frame.right):
        assert total % made.stride == 0
        assert total >= made.backbone.minimum


@functools.cache
def coarsest_only(name: str) -> FCN:
    with torch.device("meta"):
        trunk = backbone(unpadded() if name == "unpadded" else name, image_size=96)
        return one_head(trunk, list(trunk.taps)[-1], classes=1).eval()


@pytest.mark.parametrize("name", ["tinyvgg", "squeezenet1_0", "resnet18", "alexnet", "unpadded"])
@given(height=st.integers(1, 300), width=st.integers(1, 300))
@settings(max_examples=15, deadline=None)
def test_the_coarsest_cells_reach_the_borders(name: str, height: int, width: int) -> None:
    made = coarsest_only(name)
    scores = made.score_maps(torch.zeros(1, 3, height, width, device="meta"))["out"]
    grid = made.heads["out"].grid
    for pixels, cells in ((height, scores.shape[2]), (width, scores.shape[3])):
        assert grid.offset <= made.stride / 2
        assert grid.offset + grid.stride * (cells - 1) > pixels - 1 - made.stride


def test_pictures_of_one_batch_do_not_mix() -> None:
    made = model("tinyvgg")
    pictures = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    with torch.no_grad():
        together = made(pictures)["out"]
        alone = torch.cat([made(picture[None])["out"] for picture in pictures])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# Where scores lie


class Average(nn.Conv2d):
    """The mean over its kernel: what it makes of a ramp is the ramp at the centre of each cell."""

    def __init__(self, kernel: int, stride: int, padding: int, dilation: int) -> None:
        super().__init__(1, 1, kernel, stride, padding, dilation, bias=False, dtype=torch.float64)
        nn.init.constant_(self.weight, 1 / kernel**2)


@settings(max_examples=40, deadline=None)
@given(
    stages=st.lists(
        st.lists(st.tuples(*(st.integers(a, b) for a, b in ((1, 4), (1, 2), (0, 3), (1, 2)))), min_size=1, max_size=2),
        min_size=1,
        max_size=3,
    ),
    learned=st.booleans(),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_a_ramp_comes_out_of_any_averaging_net_as_it_went_in(
    stages: list[list[tuple[int, int, int, int]]], learned: bool, extra: tuple[int, int]
) -> None:
    net = Maps(*(nn.Sequential(*(Average(*layer) for layer in stage)) for stage in stages))
    raw = InputConfig(mean=(0.0,), std=(1.0,))
    # The deepest of these nets has a field of 379 pixels, and a picture of one cell would make it a classifier.
    trunk = backbone(net, input=raw, image_size=700)
    taps = list(reversed(trunk.taps))
    try:
        head = HeadConfig(classes=1, skips=skips(*taps), upsampling="learned" if learned else "fixed")
        made = FCN(trunk, {"out": head}).double()
    except AlignmentError as error:
        # Odd paddings may put a finer map a part of a cell off, which a transposed convolution cannot follow.
        assert learned or "does not follow a coarser one" in str(error)  # noqa: PT017
        return
    with torch.no_grad():
        for name, parameter in made.heads.named_parameters():
            if "score" in name:
                parameter.fill_(0.0 if name.endswith("bias") else 1 / len(taps))
    edge = math.ceil(made.field / 2 + made.stride)
    size = [2 * edge + 5 + n for n in extra]
    if max(size) > 300:
        return
    down, across = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    ramp = 3 * down - 2 * across + 5
    with torch.no_grad():
        out = made(ramp[None, None])["out"][0, 0]
    inner = (slice(edge, size[0] - edge), slice(edge, size[1] - edge))
    torch.testing.assert_close(out[inner], ramp[inner], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["tinyvgg", "squeezenet1_0", "unpadded"])
@given(height=st.integers(1, 60), width=st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_labels_at_cells_are_those_of_the_pixels_nearest_to_them(name: str, height: int, width: int) -> None:
    made = model(name)
    head = made.heads["out"]
    with torch.no_grad():
        scores = made.score_maps(torch.zeros(1, 3, height, width))["out"]
    labels = torch.arange(height * width).view(1, height, width)
    at = head.labels_at_cells(labels, (scores.shape[2], scores.shape[3]), void=-1)[0]  # type: ignore[operator]
    assert at.shape == scores.shape[2:]
    grid = head.grid
    for i, j in itertools.product(range(at.shape[0]), range(at.shape[1])):
        y, x = (float(grid.offset + grid.stride * n) for n in (i, j))
        if at[i, j] >= 0:
            row, column = divmod(int(at[i, j]), width)
            assert abs(row - y) <= 0.5
            assert abs(column - x) <= 0.5
        else:
            assert not (0 <= y <= height - 1 and 0 <= x <= width - 1)


def bounded() -> FCN:
    """Two taps and no norm that reads the whole picture."""
    torch.manual_seed(1)
    net = Maps(
        nn.Sequential(nn.Conv2d(3, 6, 5, 2, 1), nn.ELU()),
        nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.ELU()),
        nn.Sequential(nn.Conv2d(6, 6, 4, 2, 1), nn.ELU(), nn.Conv2d(6, 6, 3, padding=2, dilation=2)),
    )
    trunk = backbone(net, image_size=96)
    read = (SkipConfig(tap="stride8", context=4), *skips("stride4", "stride2"))
    made = FCN(trunk, {"out": HeadConfig(classes=3, skips=read)})
    enliven(made)
    return made.double().eval()


def test_shifting_the_picture_by_the_stride_shifts_the_scores_inside_exactly() -> None:
    made = bounded()
    size, stride = 176, made.stride
    picture = 255 * torch.rand(1, 3, size + stride, size + stride, dtype=torch.float64)
    with torch.no_grad():
        here = made(picture[..., :size, :size])["out"]
        there = made(picture[..., stride:, stride:])["out"]
    edge = math.ceil(made.field / 2 + stride)
    inner = slice(edge, size - edge - stride)
    assert inner.stop - inner.start > stride
    moved = slice(inner.start + stride, inner.stop + stride)
    assert torch.equal(here[..., moved, moved], there[..., inner, inner])
    shifted = slice(moved.start - 1, moved.stop - 1)
    assert not torch.allclose(here[..., shifted, shifted], there[..., inner, inner]), "by a pixel less, they do not"


def test_no_score_depends_on_pixels_outside_its_field() -> None:
    made = bounded()
    size = int(made.field) + 40
    picture = 255 * torch.rand(1, 3, size, size, dtype=torch.float64)
    grid = made.heads["out"].grid
    with torch.no_grad():
        before = made.score_maps(picture)["out"]
        touched = torch.zeros(size, before.shape[2], dtype=torch.bool)
        for row in range(size):
            other = picture.clone()
            other[:, :, row] = 255 * torch.rand(3, size, dtype=torch.float64)
            touched[row] = (made.score_maps(other)["out"] != before).any(3).any(1)[0]
    reach = 0.0
    for cell in range(before.shape[2]):
        rows = touched[:, cell].nonzero().flatten()
        centre = float(grid.offset + grid.stride * cell)
        assert float((rows - centre).abs().max()) <= (made.field - 1) / 2
        reach = max(reach, float((rows - centre).abs().max()))
    assert reach >= (made.field - 1) / 2 - 1, "the field is no wider than it must be"


def test_the_field_of_squeeze_and_excite_nets_is_the_whole_picture() -> None:
    assert model("mobilenet_v3_small").field == math.inf
    assert model("tinyvgg").field < 300


# The skip DAG


def grown(name: str) -> tuple[FCN, FCN]:
    torch.manual_seed(2)
    coarse = build(fcn32s(name, 5, weights=None, context=0))
    enliven(coarse)
    fine = build(fcn16s(name, 5, weights=None, context=0))
    done = transplant(coarse.state_dict(), fine)
    assert not done.unexpected
    assert {name.split(".")[3] for name in done.missing} == set(fine.heads["out"].score) - set(
        coarse.heads["out"].score
    )
    return coarse.double().eval(), fine.double().eval()


def test_a_16s_grown_from_32s_on_a_resnet_predicts_the_same_exactly() -> None:
    # Its cells of stride 32 lie on cells of stride 16, so that interpolating twice is interpolating once.
    coarse, fine = grown("resnet18")
    picture = torch.randint(0, 256, (1, 3, 100, 150), dtype=torch.uint8)
    with torch.no_grad():
        want, got = coarse(picture)["out"], fine(picture)["out"]
    assert float(want.std()) > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_16s_grown_from_32s_on_a_vgg_predicts_the_same_within_the_bend_of_the_scores() -> None:
    # Its cells of stride 32 lie between cells of stride 16. A bend in the middle between two samples is cut by an
    # eighth of the second difference, along each axis.
    coarse, fine = grown("tinyvgg")
    picture = torch.randint(0, 256, (1, 3, 128, 192), dtype=torch.uint8)
    with torch.no_grad():
        want, got = coarse(picture)["out"], fine(picture)["out"]
        scores = coarse.score_maps(picture)["out"]
    padded = nn.functional.pad(scores, (1, 1, 1, 1), mode="replicate")  # as upsampling does beyond the last cells
    bend = sum(float(padded.diff(2, dim).abs().max()) for dim in (2, 3))
    difference = float((got - want).abs().max())
    assert 0 < difference <= bend / 8
    assert float((got - want).abs().mean()) < 0.02 * float(want.std())


def test_skips_must_be_listed_coarse_to_fine() -> None:
    with pytest.raises(
        AlignmentError, match=r"the skip 'stride32' at .* does not follow a coarser one.*coarse to fine"
    ):
        one_head(backbone("tinyvgg"), "stride16", "stride32")


def test_a_tap_is_read_once() -> None:
    with pytest.raises(ConfigError, match="the tap 'stride16' is listed twice"):
        one_head(backbone("tinyvgg"), "stride16", "stride16")


def test_an_unknown_tap_is_told_with_near_names() -> None:
    with pytest.raises(UnknownName, match="no tap 'stride12'; did you mean 'stride") as caught:
        one_head(backbone("tinyvgg"), "stride12")
    assert "stride2" in caught.value.near


def test_several_heads_have_their_own_classes_skips_and_upsampling() -> None:
    made = FCN(
        backbone("tinyvgg"),
        {
            "semantic": HeadConfig(classes=33, skips=skips("stride32", "stride16", "stride8"), upsampling="learned"),
            "geometric": HeadConfig(classes=3, skips=skips("stride32")),
        },
    ).eval()
    logits = made(torch.zeros(1, 3, 33, 65))
    assert {name: tuple(out.shape) for name, out in logits.items()} == {
        "semantic": (1, 33, 33, 65),
        "geometric": (1, 3, 33, 65),
    }
    assert [name for name, _ in made.named_parameters() if "align" in name] == [
        "heads.semantic.align.stride16.weight",
        "heads.semantic.align.stride8.weight",
    ]
    maps = made.score_maps(torch.zeros(1, 3, 64, 64))
    assert {name: m.shape[2] for name, m in maps.items()} == {"semantic": 8, "geometric": 2}


def test_the_scale_of_a_skip_multiplies_its_map() -> None:
    trunk = backbone("tinyvgg").eval()
    plain, scaled = (
        FCN(trunk, {"out": HeadConfig(classes=2, skips=(SkipConfig(tap="stride32", scale=s),))}).eval()
        for s in (1.0, 0.01)
    )
    enliven(plain)
    transplant(plain.state_dict(), scaled)
    bias = plain.heads["out"].score["stride32"][-1].bias.view(1, -1, 1, 1)
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        a, b = (m.score_maps(picture)["out"] - bias for m in (plain, scaled))
    assert float(a.abs().max()) > 1e-3
    torch.testing.assert_close(b, 0.01 * a, rtol=1e-3, atol=1e-7)


def test_score_layers_start_at_zero_or_gaussian_as_asked() -> None:
    made = FCN(
        backbone("tinyvgg"),
        {"out": HeadConfig(classes=50, skips=skips("stride32", init="gaussian") + skips("stride16"), dropout=0.5)},
    )
    coarse, fine = (made.heads["out"].score[tap] for tap in ("stride32", "stride16"))
    assert 0.008 < float(coarse[-1].weight.detach().std()) < 0.012
    assert not bool(fine[-1].weight.any())
    assert isinstance(coarse[0], nn.Dropout)


# Preprocessing is the first layer


def test_bgr_minus_mean_is_what_caffe_nets_are_fed() -> None:
    red = torch.tensor([255, 10, 0], dtype=torch.uint8).view(1, 3, 1, 1)
    blue_first = Preprocess(INPUTS["caffe"])(red).flatten().tolist()
    assert blue_first == pytest.approx([0 - 104.00699, 10 - 116.66877, 255 - 122.67892])
    assert Preprocess(INPUTS["unit"])(red).flatten().tolist() == pytest.approx([1, 10 / 255, 0])


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_uint8_and_float_pictures_agree(name: str) -> None:
    layer = Preprocess(INPUTS[name])
    picture = torch.randint(0, 256, (2, len(INPUTS[name].mean), 5, 7), dtype=torch.uint8)
    assert torch.equal(layer(picture), layer(picture.float()))
    assert layer(picture).dtype == torch.float32


def test_a_fourth_channel_stays_behind_the_colours() -> None:
    layer = Preprocess(InputConfig(order="BGR", mean=(0.0,) * 4, std=(1.0,) * 4))
    assert layer(torch.tensor([1, 2, 3, 4]).view(1, 4, 1, 1)).flatten().tolist() == [3, 2, 1, 4]


def test_a_picture_of_other_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="got a picture of 1 channels, expected 3"):
        model("tinyvgg")(torch.zeros(1, 1, 8, 8))


def test_the_frame_is_of_the_mean_colour() -> None:
    made = model("squeezenet1_0")
    framed = made.preprocess(torch.full((1, 3, 20, 20), 255, dtype=torch.uint8))
    left, top, right, _ = made.frame(20, 20)
    assert min(left, right) > 0
    inner = framed[..., top : top + 20, left : left + 20]
    assert float(inner.abs().min()) > 1
    assert float(framed.abs().sum()) == pytest.approx(float(inner.abs().sum()))


def test_a_saved_state_has_no_preprocessing_in_it() -> None:
    # It is part of the config; twice would be once too often.
    assert not [name for name in model("tinyvgg").state_dict() if "normalise" in name]


def test_training_reaches_every_parameter() -> None:
    made = build(fcn8s("tinyvgg", 3, weights=None))
    enliven(made)
    made(torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8))["out"].square().mean().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


# What a head can be


HEAD = {"classes": 3, "skips": skips("stride32", "stride16", "stride8", init="gaussian")}


def variant(**options: object) -> FCN:
    """On one trunk, alive and the same for all but what the options change."""
    torch.manual_seed(0)
    made = FCN(backbone("tinyvgg").double(), {"out": HeadConfig.parse(HEAD | options)}).double()
    enliven(made)
    return made.eval()


def pictures(*size: int, channels: int = 3) -> Tensor:
    return 255 * torch.rand(1, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_max_fusion_keeps_the_larger_of_two_scores() -> None:
    made, summed = variant(fusion="max"), variant()
    head = made.heads["out"]
    maps = made.backbone(made.preprocess(pictures(64, 96)))
    scores = {skip.tap: head.score[skip.tap](maps[skip.tap]) for skip in head.skips}
    total = scores["stride32"]
    for tap in ("stride16", "stride8"):
        total = torch.maximum(head.align[tap](total, tuple(scores[tap].shape[2:])), scores[tap])
    torch.testing.assert_close(head.score_map(maps), total)
    assert not torch.allclose(summed.score_maps(pictures(64, 96))["out"], total)


def test_maps_on_one_grid_are_averaged_and_strides_are_summed() -> None:
    streams = Streams({name: backbone("tinyvgg").double().eval() for name in ("a", "b")})
    read = skips("a/stride32", "b/stride32", "a/stride16", "b/stride16", init="gaussian")
    image = pictures(64, 96, channels=6)
    made = {}
    for fusion in ("sum", "mean"):
        torch.manual_seed(1)
        made[fusion] = FCN(streams, {"out": HeadConfig(classes=3, skips=read, fusion=fusion)}).double().eval()  # type: ignore[arg-type]
        enliven(made[fusion])
    made["mean"].load_state_dict(made["sum"].state_dict())
    with torch.no_grad():
        total, mean = (one.score_maps(image)["out"] for one in made.values())
    assert float(total.abs().max()) > 1e-3
    torch.testing.assert_close(mean, total / 2)


def test_streams_read_their_own_channels() -> None:
    inputs = {"color": INPUTS["nyud-color"], "hha": INPUTS["nyud-hha"]}
    streams = Streams({name: backbone("tinyvgg", input=of).double().eval() for name, of in inputs.items()})
    made = FCN(streams, {"out": HeadConfig(classes=2, skips=skips("color/stride32", "hha/stride32"))}).double().eval()
    image = pictures(40, 50, channels=6)
    with torch.no_grad():
        maps = made.backbone(made.preprocess(image))
        changed = made.backbone(made.preprocess(torch.cat([image[:, :3], image[:, 3:].flip(3)], 1)))
        alone = streams.streams["color"](Preprocess(inputs["color"]).double()(image[:, :3]))  # type: ignore[operator]
    assert made.channels == 6
    assert torch.equal(maps["color/stride8"], changed["color/stride8"])
    assert not torch.allclose(maps["hha/stride8"], changed["hha/stride8"])
    inner = maps["color/stride2"][..., 4:16, 4:16]
    torch.testing.assert_close(inner, alone["stride2"][..., 4:16, 4:16], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resolution", ["half", "double"])
@pytest.mark.parametrize("size", [(33, 50), (1, 1), (64, 31)])
def test_logits_of_another_resolution_lie_on_the_pixels_that_they_share(resolution: str, size: tuple[int, int]) -> None:
    made, equal = variant(resolution=resolution), variant()
    with torch.no_grad():
        logits, want = made(pictures(*size))["out"], equal(pictures(*size))["out"]
    if resolution == "half":
        assert logits.shape[2:] == (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
        torch.testing.assert_close(logits, want[..., ::2, ::2])
    else:
        assert logits.shape[2:] == (2 * size[0], 2 * size[1])
        torch.testing.assert_close(logits[..., ::2, ::2], want)
    head = made.heads["out"]
    labels = torch.arange(size[0] * size[1]).view(1, *size)
    assert head.labels_on(labels).shape[1:] == logits.shape[2:]
    with torch.no_grad():
        found = head.pixels(made.score_maps(pictures(*size))["out"], size)
    assert found.shape[2:] == size
    if resolution == "double":
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("resolution", ["half", "equal", "double"])
@pytest.mark.parametrize("kernel", ["learned", "full"])
@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize("net", ["tinyvgg", "resnet18"])
def test_learned_kernels_start_bilinear_in_every_form(net: str, stepwise: bool, kernel: str, resolution: str) -> None:
    trunk = backbone(net).eval()
    options = {"upsampling": kernel, "last_upsampling": kernel, "stepwise": stepwise, "resolution": resolution}
    head = HeadConfig.parse({"classes": 2, "skips": skips("stride32", "stride16", init="gaussian")} | options)
    made = FCN(trunk, {"out": head}).eval()
    enliven(made)
    fixed = FCN(trunk, {"out": head.model_copy(update={"upsampling": "fixed", "last_upsampling": "fixed"})}).eval()
    transplant(made.state_dict(), fixed)
    kernels = [name for name, _ in made.named_parameters() if "upsample" in name or "align" in name]
    per_step = {"half": 3, "equal": 4, "double": 5}[resolution] if stepwise else 1
    assert len(kernels) == 1 + per_step
    with torch.no_grad():
        ours, want = made(pictures(50, 61))["out"], fixed(pictures(50, 61))["out"]
    if made.heads["out"].upsample.target == fixed.heads["out"].upsample.target:
        torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    assert ours.shape == want.shape
    made(pictures(50, 61))["out"].square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in made.named_parameters() if n in kernels)


def test_early_fusion_widens_the_first_layer_by_its_mean() -> None:
    three = build(fcn(8, "tinyvgg", 3, weights=None)).eval()
    depth = INPUTS["nyud-color-depth"]
    four = build(fcn(8, "tinyvgg", 3, weights=None, input=depth)).eval()
    assert four.channels == 4
    first = four.backbone.net.features.get_submodule("0").weight
    torch.testing.assert_close(first[:, 3], first[:, :3].mean(1))
    assert four(torch.zeros(1, 4, 33, 40))["out"].shape == (1, 3, 33, 40)
    assert three.channels == 3


def test_a_net_of_convolutions_alone_has_the_maps_where_they_were() -> None:
    pooled, convolved = (backbone("tinyvgg", pools=pools) for pools in ("keep", "convolution"))  # type: ignore[arg-type]
    assert not [m for m in convolved.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    assert {name: tap.grid for name, tap in pooled.taps.items()} == {n: t.grid for n, t in convolved.taps.items()}
    made = build(fcn(8, "tinyvgg", 3, weights=None).model_copy(update={"pools": "convolution"}))
    enliven(made)
    made(torch.rand(1, 3, 70, 50) * 255)["out"].square().mean().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None] == []


def test_interpolation_to_the_picture_refuses_crops_and_kernels() -> None:
    head = HeadConfig(classes=2, skips=skips("stride32"), last_upsampling="learned")
    with pytest.raises(ConfigError, match="no kernels to learn"):
        FCN(backbone("tinyvgg"), {"out": head}, interpolate=True)
    with pytest.raises(ConfigError, match="knows no crops"):
        ModelConfig.parse(
            {"backbone": "vgg16", "align": "interpolate", "geometry": "pad100", "heads": {"out": HEAD | {"classes": 2}}}
        )


def test_a_compiled_net_takes_pictures_of_all_sizes() -> None:
    torch.manual_seed(0)
    model = build(fcn8s("tinyvgg", classes=4, weights=None)).eval()
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=0.05)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for size in ((64, 96), (81, 101)):
            picture = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
            assert torch.equal(compiled(picture)["out"], model(picture)["out"])


def test_a_picture_without_its_axes_is_refused_in_words() -> None:
    model = build(fcn8s("tinyvgg", classes=4, weights=None)).eval()
    with pytest.raises(ValueError, match=r"got a picture of shape \(3, 20, 30\); expected \(B, C, H, W\)"):
        model(torch.zeros(3, 20, 30))
