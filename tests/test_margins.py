"""What is kept around pictures changes no number, whatever the net and the picture, and saves work."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exported import lively, picture
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_authors_geometry import model as narrow_vgg16
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fullyconv
from fullyconv import Predictor, inference, margins, presets, runners
from fullyconv.backbones import Backbone
from fullyconv.config import INPUTS, HeadConfig, InputConfig, SkipConfig
from fullyconv.devices import autocast
from fullyconv.errors import SurgeryError
from fullyconv.locate import locate, positions
from fullyconv.maps import Tap
from fullyconv.margins import Margined
from fullyconv.model import FCN
from fullyconv.taps import cut
from fullyconv.tracing import trace


def image(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 255 * torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64)


def assert_same(margined: FCN, model: FCN, pictures: Tensor) -> None:
    got, want = margined.score_maps(pictures), model.score_maps(pictures)
    assert set(got) == set(want)
    for name, scores in want.items():
        torch.testing.assert_close(got[name], scores, rtol=0, atol=1e-12 * float(scores.abs().max()))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Inception(nn.Module):
    """Branches of different reach side by side, or added up."""

    def __init__(self, channels: int, *, adds: bool) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(channels, 2, 5, padding=2), nn.Conv2d(channels, 2, (1, 3), padding=(0, 1))
        self.pool, self.adds = nn.MaxPool2d(3, 1, 1), adds

    def forward(self, x: Tensor) -> Tensor:
        branches = [F.relu(self.wide(self.pool(x))), self.narrow(x)]
        if self.adds:
            branches[0] += branches[1]
            return branches[0]
        return torch.cat(branches, 1)


@st.composite
def layers(draw: st.DrawFn) -> list[nn.Module]:
    made: list[nn.Module] = []
    channels = 3
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["conv", "conv", "max", "mean", "norm", "branches"]))
        kernel, stride = draw(st.integers(1, 5)), draw(st.sampled_from([1, 1, 2, 3]))
        if kind == "conv":
            padding, dilation = draw(st.integers(0, 3)), draw(st.integers(1, 2))
            made += [nn.Conv2d(channels, 4, kernel, stride, padding, dilation), nn.ReLU(inplace=draw(st.booleans()))]
            channels = 4
        elif kind == "branches":
            made.append(Inception(channels, adds=(adds := draw(st.booleans()))))
            channels = 2 if adds else 4
        elif kind == "norm":
            made.append(draw(st.sampled_from([nn.BatchNorm2d(channels), nn.LocalResponseNorm(3)])))
        else:
            pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            made.append(pool(kernel, stride, draw(st.integers(0, kernel // 2)), ceil_mode=draw(st.booleans())))
    return made


def framed(net: nn.Module, read: list[int] | None, border: int) -> FCN:
    """A model that frames pictures and reads these maps, each with a head of its own; None: the last."""
    graph = trace(net)
    side = 2 * border + 1
    located = locate(graph, size=(side, side))
    places = {name: place.grid for name, place in positions(located)}
    nodes = [name for name in places if name not in ("input_1", "output")]
    read = sorted({i % len(nodes) for i in (read or [len(nodes) - 1])})
    taps = {nodes[i]: Tap(located[nodes[i]].shape[1], places[nodes[i]]) for i in read}
    backbone = Backbone(cut(graph, [*taps]), taps, input=InputConfig(mean=(100, 110, 120)), border=border)
    heads = {name: HeadConfig(classes=2, skips=(SkipConfig(tap=name, init="gaussian"),)) for name in taps}
    made = FCN(backbone, heads).double().eval()
    for layer in made.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean)  # type: ignore[arg-type]
    return made


SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(
    net=layers(),
    read=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    border=st.integers(1, 30),
    first=SIZES,
    second=SIZES,
    whole=st.sampled_from([0.9, 2.0]),
)
def test_scores_are_those_of_the_plain_run(
    net: list[nn.Module],
    read: list[int],
    border: int,
    first: tuple[int, int],
    second: tuple[int, int],
    whole: float,
) -> None:
    torch.manual_seed(0)
    try:
        model = framed(nn.Sequential(*net), read, border)
        model.score_maps(image(1, 1))
    except (SurgeryError, RuntimeError):  # no cell is left
        assume(False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(margins, "WHOLE", whole)
        margined = Margined(model, keep=2)
        for i, size in enumerate([first, first, second, first, second]):
            assert_same(margined, model, image(*size, seed=i, batch=1 + i % 2))


def test_most_nets_are_followed() -> None:
    followed: list[bool] = []

    @settings(max_examples=25, deadline=None, database=None)
    @given(net=layers())
    def count(net: list[nn.Module]) -> None:
        try:
            model = framed(nn.Sequential(*net), None, 30)
        except SurgeryError:
            assume(False)
        followed.append(bool(Margined(model)._parts))

    count()
    assert np.mean(followed) > 0.9


@pytest.fixture
def vgg16() -> FCN:
    """FCN-8s on the layers of VGG16, with few channels."""
    return copy.deepcopy(narrow_vgg16(8, "fixed"))


def test_fcn8s_has_the_scores_of_the_plain_run(vgg16: FCN) -> None:
    margined = Margined(vgg16)
    for seed, size in enumerate([(75, 130), (75, 130), (1, 1), (75, 130), (1, 1), (40, 260), (40, 260)]):
        assert_same(margined, vgg16, image(*size, seed=seed))
    a, b = (margined.score_maps(image(75, 130, seed=seed))["out"] for seed in (1, 2))
    assert float((a - b).abs().max()) > 0.1 * float(a.abs().max())
    assert_same(margined, vgg16, image(75, 130, batch=3))


def test_what_does_not_see_the_picture_is_not_computed_again() -> None:
    with torch.device("meta"):
        model = fullyconv.build(presets.fcn8s("vgg16", 21, weights=None, geometry="pad100")).eval()
    margined = Margined(model)
    work = []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            margined.score_maps(torch.zeros(1, 3, 500, 500, device="meta"))
        work.append(counter.get_total_flops())
    assert work[1] == work[2] < 0.72 * work[0]
    (kept,) = margined._kept.values()
    assert sum(values.nbytes for margin in kept if margin for _, _, values in margin.sides) < 12e6


def test_margins_of_a_few_sizes_are_kept(vgg16: FCN) -> None:
    margined = Margined(vgg16, keep=2)
    for size in ((10, 10), (20, 10), (10, 10), (30, 10)):
        margined.score_maps(image(*size))
    assert [key[0] for key in margined._kept] == [(10, 10), (30, 10)]  # type: ignore[index]


def add_(model: FCN) -> None:
    for weight in model.backbone.parameters():
        weight.add_(0.1 * weight.abs().mean())


def load(model: FCN) -> None:
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})


def round_(model: FCN) -> None:
    model.bfloat16().double()


@pytest.mark.parametrize("change", [add_, load, round_])
def test_other_weights_get_other_margins(vgg16: FCN, change: Callable[[FCN], None]) -> None:
    margined = Margined(vgg16)
    for seed in range(2):
        assert_same(margined, vgg16, image(33, 47, seed))
    before = margined.score_maps(image(33, 47))["out"]
    change(vgg16)
    assert not torch.allclose(margined.score_maps(image(33, 47))["out"], before, rtol=1e-6)
    for seed in range(2):
        assert_same(margined, vgg16, image(33, 47, seed))


def test_with_gradients_the_model_runs_as_ever(vgg16: FCN) -> None:
    margined = Margined(vgg16)
    for _ in range(2):
        margined.score_maps(image(33, 47))
    weights = list(vgg16.backbone.parameters())
    with torch.enable_grad():
        got, want = (
            torch.autograd.grad(one.score_maps(image(33, 47))["out"].sum(), weights) for one in (margined, vgg16)
        )
    torch.testing.assert_close(got, want)


def test_in_train_mode_the_model_runs_as_ever() -> None:
    torch.manual_seed(0)
    model = framed(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)), [-1], 20)
    margined = Margined(model)
    for seed in range(2):
        assert_same(margined, model, image(9, 12, seed))
    model.train()
    for seed in range(2):
        assert_same(margined, model, image(9, 12, seed))


def test_each_precision_has_margins_of_its_own() -> None:
    model = lively("tinyvgg", geometry="pad100")
    margined = Margined(model)
    for precision in ("32", "bf16", "32", "bf16"):
        with autocast(torch.device("cpu"), precision):
            got, want = (one.score_maps(image(40, 50))["out"] for one in (margined, model))
        torch.testing.assert_close(got, want, rtol=0, atol=(2e-2 if precision == "bf16" else 1e-5) * want.abs().max())
    assert len(margined._kept) == 2


def test_threads_may_share_it(vgg16: FCN) -> None:
    margined = Margined(vgg16, keep=1)
    pictures = [image(*size, seed=i) for i, size in enumerate([(20, 30), (20, 30), (30, 20), (20, 30)])]
    failed: list[Exception] = []

    def work(one: Tensor) -> None:
        try:
            with torch.no_grad():
                for _ in range(6):
                    assert_same(margined, vgg16, one)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


class Excites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean((2, 3), keepdim=True)


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.size(2)


class Overwrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.avg_pool2d(F.relu(x, inplace=True), 3, 1, 1)


@pytest.mark.parametrize(
    "layer",
    [
        Excites(),
        Counts(),
        Overwrites(),
        nn.GroupNorm(2, 4),
        nn.ReflectionPad2d(4),
        nn.Conv2d(4, 4, 3, padding_mode="replicate"),
    ],
)
def test_what_cannot_be_followed_runs_as_ever(layer: nn.Module) -> None:
    torch.manual_seed(0)
    strided = nn.Conv2d(3, 4, 3, 2)
    model = framed(nn.Sequential(strided, layer, nn.Conv2d(4, 4, 3)), [-1], 20)
    margined = Margined(model)
    assert not margined._parts
    for seed in range(3):
        assert_same(margined, model, image(9, 12, seed))


def test_two_streams_run_as_ever() -> None:
    streams = {name: INPUTS[f"nyud-{name}"] for name in ("color", "hha")}
    model = fullyconv.build(presets.late_fusion(streams, "tinyvgg", 3, weights=None, geometry="pad100")).double().eval()
    margined = Margined(model)
    for seed in range(2):
        both = torch.cat([image(20, 30, seed), image(20, 30, seed + 2)], 1)
        assert_same(margined, model, both)


def test_a_predictor_keeps_margins_in_the_authors_geometry_and_still_shares_out_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = lively("tinyvgg", geometry="pad100")
    assert runners.runner(lively("tinyvgg"), "torch").__class__ is FCN
    predictor, plain = (Predictor(model, device="cpu", precision="32") for _ in range(2))
    assert isinstance(predictor.runner, Margined)
    plain.runner = model
    pixels = [picture(*size, seed=i) for i, size in enumerate([(40, 50)] * 4 + [(50, 40)] * 4)]
    wanted = [plain(one).labels["out"] for one in pixels]
    shared: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(inference, "serial_threads", lambda: shared.append(1) or ThreadPoolExecutor(2))
    for found, want in zip(predictor.map(pixels), wanted, strict=True):
        assert (found.labels["out"] == want).mean() > 0.999
    assert len(shared) == len(pixels)
