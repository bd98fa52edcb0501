"""An exported trunk gives the model's scores at any size, and what has to be done around it is all in the JSON file."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import lively, picture
from hypothesis import given, settings
from hypothesis import strategies as st

import fullyconv
from fullyconv.config import HeadConfig, SkipConfig
from fullyconv.engines import TrunkInfo
from fullyconv.errors import ConfigError, ExportError
from fullyconv.exporters import export, trunk_info
from fullyconv.model import FCN

NETS = {
    "same": lambda: lively("tinyvgg", classes={"out": 5, "more": 3}),
    "pad100": lambda: lively("tinyvgg", geometry="pad100"),
    "squeezenet": lambda: lively("squeezenet1_1"),
    "resnet": lambda: lively("resnet18"),
}


@pytest.mark.parametrize("net", NETS)
def test_onnx_gives_the_scores_of_the_model_at_odd_sizes(net: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    report = export(NETS[net](), tmp_path / "net.onnx")
    assert report.largest_score > 1e-2
    assert report.largest_difference < 1e-5 * report.largest_score
    assert (report.format, report.size > 1000) == ("onnx", True)


def test_openvino_gives_the_scores_of_the_model_at_odd_sizes(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    report = export(NETS["same"](), tmp_path / "net.xml")
    assert report.largest_difference < 1e-5 * report.largest_score


def test_a_program_of_torch_gives_the_scores_of_the_model_at_odd_sizes(tmp_path: Path) -> None:
    report = export(NETS["same"](), tmp_path / "net.pt2", format="torch")
    assert report.largest_difference < 1e-5 * report.largest_score


def test_a_file_that_differs_from_the_model_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fullyconv import exporters

    other = lively("tinyvgg")
    for score in other.heads["out"].score.values():
        score[-1].weight.data *= 1.01
    write = exporters.WRITERS[".pt2"]
    monkeypatch.setitem(exporters.WRITERS, ".pt2", lambda _, path: write(other, path))
    with pytest.raises(ExportError, match=r"net.pt2: differs from the model by .* at \d+x\d+") as caught:
        export(lively("tinyvgg"), tmp_path / "net.pt2")
    assert caught.value.largest_difference > 0
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("name", "format"), [("net.tflite", None), ("net.onnx", "openvino"), ("net", "nonsense")])
def test_unknown_formats_are_refused(tmp_path: Path, name: str, format: str | None) -> None:
    with pytest.raises(ConfigError, match=r"\.onnx, \.xml \(openvino\) or \.pt2"):
        export(lively("tinyvgg"), tmp_path / name, format=format)


@pytest.fixture(scope="module", params=["same", "pad100", "caffe", "half", "double", "inside"])
def around(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[FCN, TrunkInfo]:
    if request.param in ("same", "pad100"):
        model = NETS[request.param]()
    elif request.param == "caffe":
        model = fullyconv.build(fullyconv.presets.fcn8s("caffenet", 3, weights=None))
    else:
        body = fullyconv.backbones.backbone("tinyvgg")
        body.taps["stride16"] = replace(body.taps["stride16"], inside=48 if request.param == "inside" else 1)
        resolution = "equal" if request.param == "inside" else request.param
        head = HeadConfig(classes=3, skips=(SkipConfig(tap="stride16"),), resolution=resolution)
        model = FCN(body, {"out": head})
    path = tmp_path_factory.mktemp("info") / "trunk.json"
    path.write_text(json.dumps(trunk_info(model).json()))
    return model, TrunkInfo.read(path)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
def test_numpy_prepares_a_picture_bit_by_bit_as_the_model_does(
    around: tuple[FCN, TrunkInfo], height: int, width: int
) -> None:
    model, info = around
    pixels = picture(height, width)
    want = model.preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None]).numpy()
    np.testing.assert_array_equal(info.prepare(pixels), want, strict=True)


@pytest.mark.parametrize("geometry", ["same", "pad100"])
def test_a_file_without_multiples_is_of_a_net_whose_coarsest_stride_is_all_that_counts(
    tmp_path: Path, geometry: str
) -> None:
    info = trunk_info(NETS[geometry]())
    data = info.json()
    del data["framing"]["multiple"]
    (tmp_path / "trunk.json").write_text(json.dumps(data))
    assert TrunkInfo.read(tmp_path / "trunk.json") == info


@settings(max_examples=25, deadline=None)
@given(cells=st.integers(1, 20), pixels=st.integers(1, 200))
def test_numpy_puts_pixels_on_cells_as_the_model_does(around: tuple[FCN, TrunkInfo], cells: int, pixels: int) -> None:
    model, info = around
    for name, head in info.heads.items():
        for got, want in zip(head.taps(cells, pixels), model.heads[name].pixels.taps(cells, pixels), strict=True):
            np.testing.assert_array_equal(got, want.numpy(), strict=True)


def test_a_learned_last_upsampling_is_not_taken_for_a_fixed_one() -> None:
    config = fullyconv.presets.fcn8s("tinyvgg", 3, weights=None)
    heads = {"out": config.heads["out"].model_copy(update={"last_upsampling": "learned"})}
    info = trunk_info(fullyconv.build(config.model_copy(update={"heads": heads})))
    assert info.heads["out"].first is None
    assert info.heads["out"].scale == Fraction(1)
