"""The number in a preset's name is its prediction stride, on every backbone."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from fullyconv import presets
from fullyconv.backbones import backbone, describe
from fullyconv.building import build
from fullyconv.config import INPUTS, Classes
from fullyconv.errors import ConfigError, UnknownName


def skips(config: object) -> list[str]:
    return [skip.tap for skip in config.heads["out"].skips]  # type: ignore[attr-defined]


def test_the_papers_nets_read_the_papers_taps() -> None:
    assert skips(presets.fcn32s("vgg16")) == ["fc7"]
    assert skips(presets.fcn16s("vgg16")) == ["fc7", "pool4"]
    assert skips(presets.fcn8s("vgg16")) == ["fc7", "pool4", "pool3"]
    assert skips(presets.fcn2s("vgg16")) == ["fc7", "pool4", "pool3", "pool2", "pool1"]


def test_fcn8s_on_a_net_of_stride_16_has_one_skip() -> None:
    assert skips(presets.fcn8s("squeezenet1_0")) == ["stride16", "stride8"]


def test_a_stride_that_the_backbone_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(
        ConfigError, match="fcn32s on squeezenet1_0: it has no map of stride 32; expected one of 2, 4, 8, 16"
    ):
        presets.fcn32s("squeezenet1_0")
    with pytest.raises(ConfigError, match="expected one of 4, 8, 16, 32"):
        presets.fcn2s("convnext_tiny")


def test_context_stands_in_only_where_there_are_no_hidden_layers() -> None:
    assert presets.fcn8s("vgg16").heads["out"].skips[0].context == 0
    assert presets.fcn8s("resnet18").heads["out"].skips[0].context == presets.CONTEXT
    assert presets.fcn8s("resnet18", context=0).heads["out"].skips[0].context == 0
    assert all(skip.context == 0 for skip in presets.fcn8s("resnet18").heads["out"].skips[1:])


def test_a_backbone_object_may_stand_for_a_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 112 * 112, 5))
    config = presets.fcn2s(net, 3, weights=None)
    model = build(config, backbone=net)
    assert model.stride == 2
    assert model.heads["out"].classes == 3


def test_several_heads_are_built_by_name() -> None:
    model = build(presets.fcn32s("tinyvgg", {"semantic": 5, "geometric": 3}, weights=None))
    assert {name: head.classes for name, head in model.heads.items()} == {"semantic": 5, "geometric": 3}


def test_a_table_of_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="head 'out' has 3 classes and its table 2"):
        build(presets.fcn32s("tinyvgg", 3, weights=None), classes={"out": Classes.of("a", "b")})


def test_an_unknown_backbone_says_which_are_near() -> None:
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        presets.fcn8s("resnet81")


def test_every_preset_is_in_the_table_under_its_own_name() -> None:
    for name, preset in presets.PRESETS.items():
        assert isinstance(preset, functools.partial)
        assert getattr(presets, name.replace("-", "_")) is preset


@pytest.mark.parametrize("name", ["a.b", "../x", "", "keys"])
def test_a_head_that_cannot_be_named_so_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a head"):
        build(presets.fcn32s("tinyvgg", {name: 3}, weights=None))


def test_a_classifier_of_another_size_is_wrapped_with_it() -> None:
    classifier = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 10))
    trunk = backbone(classifier, image_size=32)
    model = build(presets.fcn2s(trunk, 3, weights=None), backbone=trunk)
    assert model.stride == 2


def test_the_finest_preset_is_the_default() -> None:
    assert presets.finest("squeezenet1_0") == "fcn4s"
    assert presets.finest("alexnet") == "fcn8s"


def test_learning_all_at_once_scales_each_skip_by_a_hundredth_of_the_one_before() -> None:
    read = presets.fcn8s_at_once("vgg16").heads["out"].skips
    assert [(skip.tap, skip.scale) for skip in read] == [("fc7", 1.0), ("pool4", 1e-2), ("pool3", 1e-4)]


@pytest.mark.parametrize("tap", ["pool3", "pool4", "pool5"])
def test_a_single_tap_is_scored_alone(tap: str) -> None:
    assert skips(presets.single_tap(tap, "vgg16")) == [tap]
    with torch.device("meta"):
        model = build(presets.single_tap(tap, "vgg16", 3, weights=None))
        assert model(torch.zeros(1, 3, 40, 50))["out"].shape == (1, 3, 40, 50)
    assert model.stride == {"pool3": 8, "pool4": 16, "pool5": 32}[tap]


def test_a_single_tap_that_is_not_there_is_told_with_near_names() -> None:
    with pytest.raises(UnknownName, match="no tap 'pool6'; did you mean 'pool"):
        presets.single_tap("pool6", "vgg16")


@pytest.mark.parametrize("stride", [32, 16, 8])
def test_late_fusion_reads_every_tap_of_every_stream(stride: int) -> None:
    inputs = {"color": INPUTS["nyud-color"], "hha": INPUTS["nyud-hha"]}
    config = presets.late_fusion(inputs, "tinyvgg", 5, stride=stride, weights=None)
    taps = [f"{stream}/stride{s}" for s in (32, 16, 8) if s >= stride for stream in ("color", "hha")]
    assert skips(config) == taps
    model = build(config)
    assert model.channels == 6
    assert model(torch.zeros(1, 6, 70, 33))["out"].shape == (1, 5, 70, 33)
    assert model.config is not None
    assert {name: stream.input for name, stream in model.config.streams.items()} == inputs


@pytest.mark.parametrize("name", ["caffenet", "vgg16", "bvlc_googlenet", "resnet18", "squeezenet1_1"])
@pytest.mark.parametrize("stride", [32, 16, 8, 4, 2])
def test_every_stride_that_a_backbone_has_a_map_of_is_built(name: str, stride: int) -> None:
    strides = {int(tap.grid.stride) for tap in describe(name).taps.values()}
    if stride not in strides:
        with pytest.raises(ConfigError, match="no map of stride"):
            presets.fcn(stride, name)
        return
    with torch.device("meta"):
        model = build(presets.fcn(stride, name, 3, weights=None)).eval()
        assert model(torch.zeros(1, 3, 45, 77))["out"].shape == (1, 3, 45, 77)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"classes": 0}, "classes"),
        ({"classes": 3, "context": -4}, "context"),
        ({"classes": 3, "context": 9000}, "context"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_line(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=f"{said}: .*got {settings[said]}"):
        presets.fcn8s("tinyvgg", weights=None, **settings)
