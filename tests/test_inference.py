"""Strategies, the predictor and what it returns. The theorem: tiled equals whole."""

from __future__ import annotations

import itertools
import math
import threading
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fullyconv import images, inference
from fullyconv.backbones import Backbone, backbone
from fullyconv.building import build
from fullyconv.config import INPUTS, HeadConfig, ModelConfig, SkipConfig
from fullyconv.errors import ConfigError, ImageError
from fullyconv.geometry import Grid
from fullyconv.inference import Predictor, tiled, whole
from fullyconv.maps import Tap
from fullyconv.model import FCN
from fullyconv.tiling import plan

# --- nets -------------------------------------------------------------------------------------------------------------


def layer(kind: str, kernel: int, stride: int, padding: int, dilation: int, ceil: bool, inputs: int) -> nn.Module:
    if kind == "conv":
        return nn.Sequential(nn.Conv2d(inputs, 4, kernel, stride, padding, dilation), nn.ReLU())
    return (nn.MaxPool2d if kind == "max" else nn.AvgPool2d)(kernel, stride, padding, ceil_mode=ceil)


class Stack(nn.Module):
    """Layers one after the other, with the outputs of some of them as maps."""

    def __init__(self, layers: list[nn.Module], tapped: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.tapped = tapped

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for i, one in enumerate(self.layers):
            x = one(x)
            if i in self.tapped:
                maps.append(x)
        return tuple(maps)


Spec = tuple[str, int, int, int, int, bool]
"""Kind, kernel, stride, padding, dilation, ceil mode."""


def stacked(specs: list[Spec], tapped: list[int], context: int = 0) -> FCN:
    """An FCN on layers, that reads some of them; of those with one stride all that lie on the same cells."""
    layers, grids, grid = [], [], Grid()
    for spec in specs:
        layers.append(layer(*spec, inputs=4 if layers else 3))
        grid = grid.conv(*spec[1:5])
        grids.append(grid)
    stack = Stack(layers, tapped)
    side = int(grid.stride) * (8 + 2 * math.ceil(grid.field / grid.stride))
    sizes = [m.shape[2] for m in stack(torch.zeros(1, 3, side, side))]
    taps = {
        f"layer{i}": Tap(4, grids[i], cells - side // int(grids[i].stride))
        for i, cells in zip(tapped, sizes, strict=True)
    }
    skips: list[SkipConfig] = []
    for name, tap in reversed(taps.items()):
        last = taps[skips[-1].tap].grid if skips else None
        if (
            last is None
            or last.stride > tap.grid.stride
            or (last.stride, last.offset) == (tap.grid.stride, tap.grid.offset)
        ):
            skips.append(SkipConfig(tap=name, init="gaussian", context=context))
    return excited(FCN(Backbone(stack, taps, input=INPUTS["imagenet"]), {"out": HeadConfig(classes=3, skips=skips)}))


@st.composite
def nets(draw: st.DrawFn) -> FCN:
    """FCNs on random stacks of convolutions and pools: any kernels, strides, paddings, dilations, ceil mode, skips."""
    specs: list[Spec] = []
    padded = draw(st.sampled_from(("same", "none", "any")))
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(("conv", "conv", "max", "avg"))) if i else "conv"
        kernel, stride = draw(st.integers(1, 6)), draw(st.sampled_from((1, 2, 2, 3)))
        dilation = draw(st.integers(1, 2)) if kind == "conv" else 1
        half = dilation * (kernel - 1) // 2 if kind == "conv" else kernel // 2
        padding = {"same": half, "none": 0, "any": draw(st.integers(0, half + (kind == "conv")))}[padded]
        specs.append((kind, kernel, stride, padding, dilation, draw(st.booleans())))
    tapped = [i for i in range(len(specs) - 1) if draw(st.booleans())] + [len(specs) - 1]
    return stacked(specs, tapped, draw(st.sampled_from((0, 0, 3))))


def excited(model: FCN) -> FCN:
    """The model in float64 and eval mode, with weights that let every layer and every skip matter."""
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.1)
    return model.double().eval()


def fcn(backbone: str, *taps: str, classes: int = 5) -> FCN:
    skips = tuple(SkipConfig(tap=tap, init="gaussian") for tap in taps)
    heads = {"out": HeadConfig(classes=classes, skips=skips)}
    return build(ModelConfig(backbone=backbone, weights=None, heads=heads)).eval()


@pytest.fixture(scope="module")
def net() -> FCN:
    model = excited(fcn("tinyvgg", "stride32", "stride16", "stride8")).float()
    with torch.no_grad():
        # No class is larger than the others everywhere, so that label maps have something to show.
        model.heads["out"].score["stride8"][-1].bias -= model.score_maps(picture(96, 96))["out"].mean((0, 2, 3))
    return model


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Coloured squares with some noise on them: what a net answers differently to from place to place."""
    generator = torch.Generator().manual_seed(seed)
    squares = torch.rand(1, 3, -(-height // 24), -(-width // 24), generator=generator)
    noise = torch.rand(1, 3, height, width, generator=generator)
    coloured = squares.repeat_interleave(24, 2).repeat_interleave(24, 3)[..., :height, :width]
    return (200 * coloured + 55 * noise).to(torch.uint8)


def array(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.ascontiguousarray(picture(height, width, seed)[0].permute(1, 2, 0).numpy())


# --- strategies -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def difference(model: FCN, image: Tensor, tile: int) -> float:
    """Largest difference between tiled and whole score maps, relative to the largest score."""
    (one,), (other,) = whole(model, image).values(), tiled(model, image, tile=tile).values()
    assert one.shape == other.shape
    assert one.std() > 0
    return float((one - other).abs().max() / one.abs().max())


def takes(model: FCN, image: Tensor) -> bool:
    try:
        whole(model, image)
    except RuntimeError:
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(nets(), st.integers(1, 150), st.integers(1, 150), st.sampled_from((1, 8, 17, 32, 64)))
def test_tiles_with_halo_equal_the_whole_picture(model: FCN, height: int, width: int, tile: int) -> None:
    # An unpadded layer followed by one with more padding than it needs: no frame helps the smallest pictures then.
    assume(min(height, width) >= model.field or takes(model, picture(height, width)))
    assert difference(model, picture(height, width), tile) <= 1e-12


@pytest.mark.parametrize("tile", [1, 8, 24])
def test_tiles_equal_the_whole_picture_where_a_net_does_not_pad_and_its_skips_begin_far_apart(tile: int) -> None:
    unpadded: list[Spec] = (
        [("conv", 2, 1, 0, 1, False)] + [("conv", 6, 2, 0, 2, False)] * 2 + [("conv", 5, 1, 0, 2, False)]
    )
    model = stacked(unpadded, [0, 3])
    assert model.frame(100, 100).left > 7 * model.stride
    assert difference(model, picture(100, 90), tile) <= 1e-12


@pytest.mark.parametrize(
    ("backbone", "taps"),
    [
        ("tinyvgg", ("stride32", "stride16", "stride8")),
        ("squeezenet1_1", ("stride16", "stride8", "stride4")),  # pools in ceil mode, nothing padded
        ("resnet18", ("stride32", "stride16", "stride8")),  # cells that lie on whole pixels
    ],
)
def test_tiles_equal_the_whole_picture_on_real_backbones(backbone: str, taps: tuple[str, ...]) -> None:
    model = excited(fcn(backbone, *taps))
    assert difference(model, picture(120, 171), 32) <= 1e-12


class Hourglass(nn.Module):
    """A map of stride 4, alone or with coarser ones, that is made of one of stride 16, as in U-Nets and FPNs."""

    def __init__(self, mode: str, kind: str) -> None:
        super().__init__()
        self.mode, self.kind = mode, kind
        self.a = nn.Conv2d(3, 8, 3, 4, 1)
        self.b, self.c = (nn.Conv2d(8, 8, 3, 2, 1) for _ in range(2))

    def up(self, coarse: Tensor, fine: Tensor) -> Tensor:
        factor = {"size": fine.shape[-2:]} if self.kind == "size" else {"scale_factor": 4 if self.mode == "one" else 2}
        return F.interpolate(coarse, **factor, mode="bilinear" if self.kind == "bilinear" else "nearest")

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        a = self.a(x).relu()
        b = self.b(a).relu()
        c = self.c(b).relu()
        if self.mode == "one":
            return a + self.up(c, a)
        middle = b + self.up(c, b)
        return a + self.up(middle, a), middle, c


class Apart(nn.Module):
    """Maps whose strides do not divide each other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 5, 4, 2), nn.Conv2d(3, 6, 6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x).relu(), self.b(x).relu()


def reading(net: nn.Module, *taps: str, **options: int) -> FCN:
    skips = tuple(SkipConfig(tap=tap, init="gaussian") for tap in taps)
    return excited(FCN(backbone(net, **options), {"out": HeadConfig(classes=3, skips=skips)}))


@pytest.mark.parametrize("size", [(160, 160), (97, 131), (22, 5)])
@pytest.mark.parametrize("kind", ["size", "nearest", "bilinear"])
@pytest.mark.parametrize(
    ("mode", "taps"),
    [
        ("one", ("stride4",)),
        ("many", ("stride4",)),
        ("many", ("stride8", "stride4")),
        ("many", ("stride16", "stride4")),
    ],
)
def test_tiles_equal_the_whole_picture_where_a_net_is_coarser_inside_than_what_is_read(
    mode: str, taps: tuple[str, ...], kind: str, size: tuple[int, int]
) -> None:
    model = reading(Hourglass(mode, kind), *taps)
    assert difference(model, picture(*size), 36) <= 1e-12
    assert (model.stride, model.alignment) == (int(taps[0].removeprefix("stride")), 16)


def test_a_map_that_is_not_read_needs_whole_cells_too_where_it_is_joined_with_coarser_ones() -> None:
    class Decoder(Hourglass):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return super().forward(x)[0], self.b(self.a(x))

    model = reading(Decoder("many", "nearest"), "stride8")
    assert difference(model, picture(40, 87), 8) <= 1e-12
    assert (model.stride, model.alignment) == (8, 16)


@pytest.mark.parametrize("size", [(96, 96), (100, 70)])
def test_tiles_equal_the_whole_picture_where_strides_do_not_divide_each_other(size: tuple[int, int]) -> None:
    model = reading(Apart(), "stride6", "stride4")
    assert difference(model, picture(*size), 18) <= 1e-12
    assert (model.stride, model.alignment) == (6, 12)


@pytest.mark.parametrize("factor", [2, 4])
def test_tiles_equal_the_whole_picture_where_a_classifier_is_coarser_inside_than_its_last_map(factor: int) -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 5, factor, 2)
            self.score = nn.Linear(12 * 8 * 8, 5)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x).relu()
            return self.score(torch.cat([a, F.interpolate(self.b(a), scale_factor=factor)], 1).flatten(1))

    model = reading(Classifier(), "stride2", image_size=16)
    for size in ((22, 22), (70, 61)):
        assert difference(model, picture(*size), 10) <= 1e-12
    assert (model.stride, model.alignment) == (2, 2 * factor)


def test_windows_of_every_net_begin_and_end_on_whole_cells(net: FCN) -> None:
    for model in (net, reading(Hourglass("one", "nearest"), "stride4")):
        lengths = []
        for axis in plan(model, (2000, 1701), tile=(100, 130)):
            assert len(axis) > 3
            for window in axis:
                assert window.start % model.alignment == 0
                assert window.core % model.alignment == 0
            lengths += [window.length for window in axis if window.end is not None]
        assert {length % model.alignment for length in lengths} == {0}


def test_tiles_with_less_than_their_halo_do_not_equal_the_whole(net: FCN, monkeypatch: pytest.MonkeyPatch) -> None:
    model = excited(fcn("tinyvgg", "stride32", "stride16", "stride8"))
    monkeypatch.setattr(model, "field", Fraction(30))
    assert difference(model, picture(300, 300), 64) > 1e-6


def test_tiles_bound_what_is_computed_at_once(net: FCN, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, scores_of = [], net.scores_of
    monkeypatch.setattr(net, "scores_of", lambda window: seen.append(window.shape[-2:]) or scores_of(window))
    monkeypatch.setattr(net, "preprocess", lambda _: pytest.fail("the whole picture was made floats at once"))
    with torch.no_grad():
        tiled(net, picture(500, 700), tile=64)
    most = 64 + net.field + 4 * net.stride
    assert len(seen) > 20
    assert max(max(size) for size in seen) <= most


def test_tiles_of_a_net_that_sees_the_whole_picture_are_blended() -> None:
    model = fcn("mobilenet_v3_small", "stride32")
    image = picture(200, 170)
    with torch.no_grad():
        one, other = whole(model, image)["out"], tiled(model, image, tile=64)["out"]
    assert one.shape == other.shape
    assert float((one - other).abs().max()) > 0
    assert float((one - other).abs().mean()) < float((one - one.mean((2, 3), keepdim=True)).abs().mean())


@pytest.mark.parametrize("tile", [0, -5])
def test_a_tile_without_pixels_is_refused(net: FCN, tile: int) -> None:
    with pytest.raises(ConfigError, match=f"tile: got {tile}; expected a side in pixels, 1 or more"):
        tiled(net, picture(8, 8), tile=tile)


def test_choose_tiles_what_does_not_fit_into_memory(net: FCN, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = picture(1030, 1030), picture(1024, 1024)
    assert inference.choice(net, large) == (whole, "")
    monkeypatch.setattr(inference, "free_memory", lambda _: 10_000_000)
    strategy, note = inference.choice(net, large)
    assert strategy is tiled
    assert "in tiles" in note
    assert inference.choice(net, small)[0] is whole


def test_choose_says_where_tiles_are_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "free_memory", lambda _: 10_000_000)
    strategy, note = inference.choice(fcn("mobilenet_v3_small", "stride32"), picture(1030, 1030))
    assert strategy is tiled
    assert "blended where they meet, which is not exact, since each cell of the map 'stride32' sees the whole" in note


# --- predictor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 1), (47, 61), (96, 64)])
def test_labels_are_the_largest_logits_at_the_size_of_the_picture(net: FCN, size: tuple[int, int]) -> None:
    image = array(*size)
    labels = Predictor(net, precision="32", device="cpu")(image).labels["out"]
    with torch.no_grad():
        logits = net(torch.from_numpy(image).permute(2, 0, 1)[None])["out"]
    assert labels.shape == size
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) > 1 or min(size) == 1
    np.testing.assert_array_equal(labels, logits.argmax(1)[0].numpy())


def test_more_than_255_classes_make_16_bit_labels() -> None:
    model = fcn("tinyvgg", "stride32", classes=300)
    with torch.no_grad():
        model.heads["out"].score["stride32"][-1].bias[280] = 1000
    labels = Predictor(model, device="cpu")(array(20, 30)).labels["out"]
    assert labels.dtype == np.uint16
    assert (labels == 280).all()


def test_strategies_bound_with_options_give_the_same_labels(net: FCN) -> None:
    image = array(200, 150)
    one, other = (
        Predictor(net, strategy=strategy, precision="32", device="cpu")(image).labels["out"]
        for strategy in (whole, partial(tiled, tile=64))
    )
    np.testing.assert_array_equal(one, other)


def test_bf16_gives_nearly_the_same_labels(net: FCN) -> None:
    image = array(96, 96)
    one, other = (Predictor(net, precision=p, device="cpu")(image).labels["out"] for p in ("32", "bf16"))
    assert (one == other).mean() > 0.9
    assert len(np.unique(one)) > 1


def test_a_model_without_a_table_of_classes_has_numbered_ones(net: FCN) -> None:
    assert Predictor(net, device="cpu").classes["out"].names == ("class 0", "class 1", "class 2", "class 3", "class 4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device: got 'gpu'; expected auto, cpu, cuda"),
        ({"device": "cuda:99"}, "device: got 'cuda:99'; expected"),
        ({"precision": "16"}, "precision: got '16'; expected auto, 32 or bf16"),
    ],
)
def test_a_device_or_precision_that_is_not_is_refused(net: FCN, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Predictor(net, **options)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four pictures of two sizes, the third of which is broken."""
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for i, path in enumerate(paths):
        images.write_image(path, array(40, 50 if i < 3 else 30, seed=i))
    paths[2].write_bytes(paths[2].read_bytes()[:100])
    return paths


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_map_gives_what_single_calls_give_in_order_and_reports_what_is_broken(
    net: FCN, files: list[Path], batch_size: int
) -> None:
    predictor = Predictor(net, precision="32", device="cpu")
    broken: list[object] = []
    found = list(predictor.map(files, batch_size=batch_size, on_error=lambda p, e: broken.append((p, type(e)))))
    assert broken == [(files[2], ImageError)]
    assert [one.source for one in found] == [str(files[i]) for i in (0, 1, 3)]
    for one in found:
        np.testing.assert_array_equal(one.labels["out"], predictor(one.source).labels["out"])


def test_small_batches_are_computed_side_by_side_by_serial_threads_and_a_single_one_by_all(net: FCN) -> None:
    seen: list[tuple[bool, int]] = []
    entered = threading.Barrier(2, timeout=20)

    def watched(model: FCN, image: Tensor) -> dict[str, Tensor]:
        aside = threading.current_thread() is not threading.main_thread()
        seen.append((aside, torch.get_num_threads()))
        if aside:
            entered.wait()  # the other one is here at the same time
        return whole(model, image)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        predictor = Predictor(net, precision="32", device="cpu", strategy=watched)
        pictures = [array(40, 50, seed=i) for i in range(6)]
        assert len(list(predictor.map(pictures[:1]))) == 1
        assert seen == [(False, 2)]
        found = list(predictor.map(pictures))
        assert seen[1:] == 6 * [(True, 1)]
        plain = Predictor(net, precision="32", device="cpu")
        for picture, one in zip(pictures, found, strict=True):
            np.testing.assert_array_equal(one.labels["out"], plain(picture).labels["out"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_map_raises_what_nobody_wants_to_hear_of(net: FCN, files: list[Path]) -> None:
    with pytest.raises(ImageError, match=r"c\.png"):
        list(Predictor(net, device="cpu").map(files))


def test_map_takes_pictures_as_it_needs_them_and_leaves_no_thread(net: FCN) -> None:
    taken = itertools.count()
    endless = (array(20, 20) for _ in taken)
    stream = Predictor(net, device="cpu").map(endless)
    assert next(stream).size == (20, 20)
    stream.close()
    assert next(taken) < 10
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


def test_batches_of_no_pictures_are_refused(net: FCN) -> None:
    with pytest.raises(ConfigError, match="batch_size: got 0; expected 1 or more"):
        list(Predictor(net, device="cpu").map([], batch_size=0))


def test_a_picture_that_does_not_fit_into_memory_is_reported_like_a_bad_one(net: FCN, files: list[Path]) -> None:
    def greedy(model: FCN, image: Tensor) -> dict[str, Tensor]:
        if image.shape[3] == 30:
            raise torch.OutOfMemoryError
        return whole(model, image)

    predictor = Predictor(net, strategy=greedy, device="cpu")
    failed: list[str] = []
    done = list(predictor.map([files[0], files[3]], on_error=lambda _, error: failed.append(str(error))))
    assert [one.source for one in done] == [str(files[0])]
    advice = "do not fit into the memory of cpu; use strategy tiled, smaller tiles or smaller batches"
    assert failed == [f"{files[3]}: 1 of 40 x 30 pixels (height x width) {advice}"]
    with pytest.raises(ImageError, match="do not fit"):
        predictor(files[3])
