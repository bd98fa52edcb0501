"""What is said of a net is what can be counted by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from fullyconv import presets
from fullyconv.backbones import Backbone, backbone, describe
from fullyconv.building import build
from fullyconv.config import INPUTS, Geometry, HeadConfig, SkipConfig
from fullyconv.explanation import explain, transposed_geometry
from fullyconv.geometry import Grid
from fullyconv.model import FCN


def test_vgg16_as_fcn8s_has_the_papers_figures() -> None:
    with torch.device("meta"):
        model = build(presets.fcn8s("vgg16", 21, weights=None))
    report = explain(model)
    assert report.receptive_field == 404
    assert report.stride == 32
    assert round(report.parameters / 1e6) == 134
    assert [(c["from"], c["to"], c["factor"], c["kernel"]) for c in report.crops] == [
        ("fc7", "pool4", 2, 4),
        ("pool4", "pool3", 2, 4),
        ("pool3", "pixels", 8, 16),
    ]
    assert [tap.name for tap in report.taps if tap.used] == ["pool3", "pool4", "fc7"]


def test_crops_are_those_of_the_authors_geometry() -> None:
    # conv1_1 pads by 100; five blocks; fc6 is 7x7 without padding; then the score is upsampled by 64/32.
    grid = Grid().conv(3, padding=100).conv(3, padding=1).conv(2, stride=2)
    for convolutions in (2, 3, 3, 3):
        for _ in range(convolutions):
            grid = grid.conv(3, padding=1)
        grid = grid.conv(2, stride=2)
    assert transposed_geometry(grid.conv(7), Grid()) == (64, 19)


def test_costs_are_counted_by_stage() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, padding=1, groups=1, bias=False)
    )
    report = explain(backbone(net), size=(16, 24))
    first, second = (cost for cost in report.costs if cost.part.startswith("backbone"))
    assert (first.part, first.parameters, first.flops) == ("backbone stride 1", 3 * 4 * 9 + 4, 2 * 27 * 4 * 16 * 24)
    assert (second.part, second.parameters, second.flops) == ("backbone stride 2", 4 * 5 * 9, 2 * 36 * 5 * 8 * 12)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "mobilenet_v3_small", "tinyvgg", "densenet121"])
def test_parts_add_up_to_the_whole(name: str) -> None:
    with torch.device("meta"):
        model = build(presets.fcn8s(name, 5, weights=None))
    report = explain(model, size=(100, 133))
    assert sum(cost.parameters for cost in report.costs) == report.parameters
    assert all(cost.flops >= 0 for cost in report.costs)


def test_edits_and_places_are_in_text_and_json() -> None:
    report = explain(describe("resnet18"))
    text = report.text()
    assert "avgpool" in text
    assert "AvgPool2d(7x7, stride 1)" in text
    plain = json.loads(json.dumps(report.json(), allow_nan=False))
    assert plain["receptive_field"] == 435
    assert {"parameters", "receptive_field", "stride", "crops", "taps", "edits", "flops"} <= plain.keys()


def test_an_unbounded_field_is_said_in_a_way_that_json_allows() -> None:
    report = explain(describe("mobilenet_v3_small"))
    assert report.receptive_field == math.inf
    assert json.loads(json.dumps(report.json(), allow_nan=False))["receptive_field"] == "inf"


def test_explaining_changes_nothing() -> None:
    model = build(presets.fcn16s("tinyvgg", 3, weights=None, input=INPUTS["unit"])).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    explain(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("geometry", ["same", "pad100"])
def test_a_net_of_another_precision_is_explained_and_runs(dtype: torch.dtype, geometry: Geometry) -> None:
    def made(of: torch.dtype) -> Backbone:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 5))
        return backbone(net.to(of), image_size=16, geometry=geometry)

    assert explain(made(dtype), size=(40, 40)) == explain(made(torch.float32), size=(40, 40))
    model = FCN(made(dtype), {"out": HeadConfig(classes=3, skips=(SkipConfig(tap="stride2", context=4),))})
    explain(model, size=(40, 40))
    with torch.no_grad():
        logits = model(torch.zeros(1, 3, 9, 7, dtype=torch.uint8))["out"]
    assert logits.shape == (1, 3, 9, 7)
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_net_with_a_constant_that_is_no_buffer_is_explained() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mean = nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.rand(1, 3, 1, 1)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.a(x - self.mean),)

    cost = explain(backbone(Centred()), size=(40, 40)).costs[0]
    assert (cost.part, cost.flops) == ("backbone stride 2", 2 * 27 * 6 * 20 * 20)


def test_a_classifier_is_explained_as_it_is() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 112 * 112, 5))
    report = explain(net)
    assert [edit.kind for edit in report.edits] == ["remove", "convolution"]
