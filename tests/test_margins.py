"""What is kept around pictures changes no number, whatever the net and the picture, and saves the work it is to save."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

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
from fullyconv import Predictor, margins, presets, runners
from fullyconv.backbones import Backbone, Tap
from fullyconv.config import HeadConfig, InputConfig, SkipConfig
from fullyconv.devices import autocast
from fullyconv.errors import SurgeryError
from fullyconv.locate import locate, positions
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
