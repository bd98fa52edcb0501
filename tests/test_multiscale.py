"""Looks at a picture at several sizes, averaged on the cells of the picture's own map. The theorem: planes stay."""

from __future__ import annotations

import copy
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from exported import lively, tuned_folder
from exported import picture as noise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inference import nets
from torch import Tensor, nn

import fullyconv
from fullyconv import checkpoint, images
from fullyconv.backbones import Backbone
from fullyconv.config import Classes, HeadConfig, InputConfig, MultiScale, SkipConfig
from fullyconv.errors import ConfigError
from fullyconv.evaluation import evaluate, protocol
from fullyconv.geometry import Grid
from fullyconv.inference import Predictor, choose, tiled, whole
from fullyconv.labels import write_labels
from fullyconv.maps import Tap
from fullyconv.model import FCN
from fullyconv.multiscale import averaged
from fullyconv.quick import open_quick
from fullyconv.streaming import segment_raster
from fullyconv.tuning import measure
from fullyconv.values import read_values

SIX = MultiScale(scales=(0.5, 1, 1.5), mirror=True)
STRIPES = np.arange(60 * 80, dtype=np.uint8).reshape(60, 80) % 5
LOOKS = st.builds(
    MultiScale,
    scales=st.sampled_from([(1.0,), (0.5, 1.0), (1.0, 2.0), (0.5, 1.0, 1.5), (1.0, 1.25, 3.0), (0.25, 1.0)]),
    mirror=st.booleans(),
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return 255 * torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the theorem ------------------------------------------------------------------------------------------------------


class Means(nn.Module):
    """Means of squares of pixels, one after the other: a plane goes in, and a plane comes out."""

    def __init__(self, specs: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.AvgPool2d(kernel, stride) for kernel, stride in specs)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for layer in self.layers:
            x = layer(x)
        return (x,)


def plain(specs: list[tuple[int, int]], interpolate: bool = False) -> FCN:
    """A net whose only score is the mean of the red pixels around each cell."""
    grid = Grid()
    for spec in specs:
        grid = grid.conv(*spec)
    stride = int(grid.stride)
    net = Means(specs)
    side = stride * (8 + 2 * math.ceil(grid.field / stride))
    tap = Tap(3, grid, net(torch.zeros(1, 3, side, side))[0].shape[2] - side // stride)
    backbone = Backbone(net, {"last": tap}, input=InputConfig(mean=(0, 0, 0), std=(1, 1, 1)))
    head = HeadConfig(classes=1, skips=(SkipConfig(tap="last"),))
    model = FCN(backbone, {"out": head}, interpolate=interpolate).double().eval()
    for tensor in model.heads.out.score.parameters():
        tensor.data.zero_()
    model.heads.out.score["last"][-1].weight.data[0, 0] = 1
    return model


@settings(max_examples=60, deadline=None)
@given(
    specs=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 3)), min_size=1, max_size=3),
    looks=LOOKS,
    more=st.tuples(st.integers(8, 60), st.integers(8, 60)),
)
def test_a_plane_is_the_same_at_every_look(
    specs: list[tuple[int, int]], looks: MultiScale, more: tuple[int, int]
) -> None:
    model = plain(specs)
    grid = model.heads.out.grid
    # Cells whose surroundings lie in the picture, in the smallest look as well.
    margin = math.ceil((grid.field / 2 + 2 * grid.stride + 2) / min(looks.scales))
    # Whole and even parts of the pixels, so that the smaller copies of a plane are planes, exactly.
    height, width = (4 * math.ceil((2 * (margin + grid.stride) + pixels) / 4) for pixels in more)
    rows, columns = torch.arange(height, dtype=torch.float64)[:, None], torch.arange(width, dtype=torch.float64)
    plane = (2 * rows + 3 * columns).expand(1, 3, height, width)
    found = averaged(model, plane, looks, strategy=whole)["out"][0, 0]
    pixels = [
        torch.arange(cells, dtype=torch.float64) * float(grid.stride) + float(grid.offset) for cells in found.shape
    ]
    inner = [(at >= margin) & (at < side - margin) for at, side in zip(pixels, (height, width), strict=True)]
    want = 2 * pixels[0][:, None] + 3 * pixels[1]
    assert inner[0].any()
    assert inner[1].any()
    # Resizing is in float32.
    torch.testing.assert_close(found[inner[0]][:, inner[1]], want[inner[0]][:, inner[1]], rtol=1e-5, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(model=nets(), looks=LOOKS, height=st.integers(30, 90), width=st.integers(30, 90), tile=st.integers(8, 40))
def test_looks_in_tiles_equal_looks_at_the_whole(
    model: FCN, looks: MultiScale, height: int, width: int, tile: int
) -> None:
    image = random(1, 3, height, width)
    want = averaged(model, image, looks, strategy=whole)
    found = averaged(model, image, looks, strategy=partial(tiled, tile=tile))
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(height=st.integers(40, 90), width=st.integers(40, 90), looks=LOOKS)
def test_a_mirrored_picture_has_mirrored_scores_where_cells_are_spread_evenly(
    height: int, width: int, looks: MultiScale
) -> None:
    # Where scores are interpolated, whatever the grid, cells lie as they do in the mirror.
    model = plain([(3, 2), (4, 3)], interpolate=True)
    looks = looks.model_copy(update={"mirror": True})
    image = random(1, 3, height, width)
    found = averaged(model, image, looks, strategy=whole)["out"]
    mirrored = averaged(model, image.flip(3), looks, strategy=whole)["out"]
    # Resizing is in float32.
    torch.testing.assert_close(mirrored, found.flip(3), rtol=1e-5, atol=1e-4)
    assert found.std() > 1


def test_one_look_is_what_the_strategy_gives() -> None:
    model = lively("tinyvgg")
    image = torch.from_numpy(noise(50, 70)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        found, want = averaged(model, image, MultiScale(), strategy=whole), whole(model, image)
    assert torch.equal(found["out"], want["out"])


def test_what_is_averaged_is_looks_each_on_its_own() -> None:
    # Of one cell by one cell there is nothing to place, so the mean can be written down.
    model = plain([(4, 4)])
    image = random(1, 3, 4, 4)
    twice = nn.functional.interpolate(image.float(), scale_factor=2.0, mode="bilinear").double()
    found = averaged(model, image, MultiScale(scales=(1, 2)), strategy=whole)["out"]
    there = whole(model, twice)["out"]
    # The only cell lies in the middle of the four of the larger copy.
    torch.testing.assert_close(found, (whole(model, image)["out"] + there.mean((2, 3), keepdim=True)) / 2)


@pytest.mark.parametrize("backbone", ["tinyvgg", "squeezenet1_0"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 50)])
def test_pictures_of_any_size_are_looked_at(backbone: str, size: tuple[int, int]) -> None:
    model = lively(backbone)
    found = Predictor(model, device="cpu", multiscale=SIX)(noise(*size)).labels["out"]
    assert found.shape == size


@pytest.mark.parametrize("geometry", ["same", "pad100"])
@pytest.mark.parametrize("resolution", ["half", "equal", "double"])
@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
def test_looks_change_scores_and_not_what_comes_after(geometry: str, resolution: str, upsampling: str) -> None:
    torch.manual_seed(0)
    config = fullyconv.presets.fcn8s("tinyvgg", 5, weights=None, geometry=geometry)
    head = config.heads["out"].model_copy(update={"resolution": resolution, "last_upsampling": upsampling})
    model = fullyconv.build(config.model_copy(update={"heads": {"out": head}})).eval()
    for score in model.heads.out.score.values():
        nn.init.normal_(score[-1].weight, std=1.0)
    image = torch.from_numpy(noise(60, 83)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        scores = averaged(model, image, SIX, strategy=whole)["out"]
        want = model.heads.out.upsample(scores, (60, 83)) if resolution == "equal" else None
    assert scores.shape == whole(model, image)["out"].shape
    found = Predictor(model, device="cpu", precision="32", multiscale=SIX)(noise(60, 83)).labels["out"]
    assert found.shape == (60, 83)
    if want is not None:
        assert (torch.from_numpy(found.astype(np.int64)) == want.argmax(1)[0]).float().mean() > 0.999


def test_every_head_is_averaged() -> None:
    model = lively("tinyvgg", classes={"out": 5, "more": 3})
    image = random(1, 3, 40, 60).float()
    with torch.inference_mode():
        found = averaged(model, image, SIX, strategy=whole)
        for name, other in (("out", "more"), ("more", "out")):
            alone = copy.deepcopy(model)
            del alone.heads[other]
            torch.testing.assert_close(found[name], averaged(alone, image, SIX, strategy=whole)[name])
            assert not torch.allclose(found[name], whole(model, image)[name], rtol=0.1)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_looks_the_same(engine: str) -> None:
    pytest.importorskip(engine)
    model = lively("tinyvgg")
    want = Predictor(model, device="cpu", precision="32", multiscale=SIX)(noise(41, 60)).labels["out"]
    found = Predictor(model, device="cpu", precision="32", engine=engine, multiscale=SIX)(noise(41, 60)).labels["out"]
    assert (found == want).mean() > 0.999


def test_a_frame_that_is_kept_for_every_size_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively("tinyvgg", geometry="pad100")
    ours = Predictor(model, device="cpu", precision="32", multiscale=SIX)
    first, again = ours(noise(60, 80)).labels["out"], ours(noise(60, 80)).labels["out"]
    assert len(ours.runner._kept) == 3
    assert (first == again).mean() > 0.999
    five = MultiScale(scales=(0.5, 0.75, 1, 1.25, 1.5))
    many = Predictor(model, device="cpu", precision="32", multiscale=five)
    many(noise(60, 80))
    assert len(many.runner._kept) == 5


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_pictures_of_other_channels_are_looked_at(channels: int) -> None:
    grid = Grid().conv(3, 2, 1)
    net = nn.Conv2d(channels, 4, 3, 2, 1)

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return (self.net(x),)

    input = InputConfig(mean=(100.0,) * channels, std=(50.0,) * channels)
    backbone = Backbone(Maps(), {"last": Tap(4, grid, 0)}, input=input, minimum=4)
    head = HeadConfig(classes=3, skips=(SkipConfig(tap="last", init="gaussian"),))
    model = FCN(backbone, {"out": head}).eval()
    image = random(2, channels, 30, 41).to(torch.uint8)
    found = averaged(model, image, SIX, strategy=whole)["out"]
    alone = [averaged(model, one[None], SIX, strategy=whole)["out"][0] for one in image]
    torch.testing.assert_close(found, torch.stack(alone))
    # Whole numbers or not, a larger copy of a picture is nearly the same.
    torch.testing.assert_close(found, averaged(model, image.float(), SIX, strategy=whole)["out"], rtol=0, atol=0.05)


def test_small_pictures_side_by_side_never_measure_what_a_net_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whose hooks would see what other threads compute: so a picture is small if its largest look is.
    monkeypatch.setattr("fullyconv.inference.SMALL", 60 * 80)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("fullyconv.inference.serial_threads", lambda: pytest.fail("in threads"))
    predictor = Predictor(lively("tinyvgg"), device="cpu", multiscale=MultiScale(scales=(1, 1.5)))
    assert [s.size for s in predictor.map([noise(60, 80)] * 3)] == [(60, 80)] * 3


# --- who asks for it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([0.5], "expected 1 among them"),
        ([1, 1], "1 is listed twice"),
        ([0.01, 1], "expected factors of 0.1 to 4"),
        ([1, 5], "expected factors of 0.1 to 4"),
        ([1, float("nan")], "should be a finite number"),
        (["x", 1], "unable to parse string as a number, got 'x'"),
        ([], "expected 1 among them"),
        ([1, *(2 + i / 10 for i in range(16))], "17 of them; expected 16 at most"),
    ],
)
def test_scales_that_cannot_be_are_refused(scales: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MultiScale.parse({"scales": scales})


def test_what_is_no_multiscale_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"multiscale: got \(0.5, 1\); expected a MultiScale"):
        Predictor(lively("tinyvgg"), device="cpu", multiscale=(0.5, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(("looks", "said"), [(SIX, 1), (MultiScale(), 0)])
def test_tune_says_that_it_times_one_look_of_several(tmp_path: Path, looks: MultiScale, said: int) -> None:
    config = fullyconv.presets.fcn8s("tinyvgg", classes=3, weights=None).model_copy(update={"multiscale": looks})
    folder = checkpoint.save(fullyconv.build(config), tmp_path / "model")
    heard: list[str] = []
    with pytest.raises(ConfigError, match="nowhere"):
        measure(folder, pictures="nowhere", on_progress=heard.append)
    assert heard == [f"one look is timed; this model labels each picture by 6 ({SIX})"][:said]


def test_a_saved_model_says_how_pictures_are_looked_at_and_a_predictor_may_say_otherwise(tmp_path: Path) -> None:
    model = lively("tinyvgg")
    assert model.config is not None
    asked = fullyconv.build(model.config.model_copy(update={"multiscale": SIX})).eval()
    asked.load_state_dict(model.state_dict())
    folder, once = checkpoint.save(asked, tmp_path / "six"), checkpoint.save(model, tmp_path / "one")
    image = noise(60, 80)
    six = Predictor.load(folder, device="cpu")
    assert six.multiscale == SIX
    found = six(image).labels["out"]
    told = Predictor.load(once, device="cpu", multiscale=SIX)(image).labels["out"]
    alone = Predictor.load(folder, device="cpu", multiscale=MultiScale())(image).labels["out"]
    assert (found == told).all()
    assert (alone == Predictor.load(once, device="cpu")(image).labels["out"]).all()
    assert (found != alone).any()


def test_memory_is_judged_by_the_largest_look(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[int, ...]] = []

    def choice(_: FCN, image: Tensor) -> tuple[Any, str]:
        judged.append(tuple(image.shape))
        return whole, ""

    monkeypatch.setattr("fullyconv.inference.choice", choice)
    Predictor(lively("tinyvgg"), strategy=choose, device="cpu", multiscale=SIX)(noise(41, 60))
    assert judged == [(1, 3, 62, 90)]


def noisy_data(folder: Path) -> Path:
    """A data set of a picture of noise, whose labels are stripes of five classes."""
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir(parents=True)
    images.write_image(folder / "images" / "val" / "a.png", noise(60, 80))
    write_labels(folder / "labels" / "val" / "a.png", STRIPES, Classes.of(*"abcde"))
    (folder / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    return folder


def test_evaluate_looks_as_often_as_it_is_told_and_says_so(tmp_path: Path) -> None:
    model, val = lively("tinyvgg"), fullyconv.dataset("folder", noisy_data(tmp_path / "data"), split="val")
    for looks in (None, SIX):
        counts = evaluate(model, val, device="cpu", multiscale=looks)["out"].counts
        found = Predictor(model, device="cpu", multiscale=looks)(noise(60, 80)).labels["out"]
        assert (counts == np.bincount((5 * STRIPES + found).ravel(), minlength=25).reshape(5, 5)).all()
    assert protocol(val, multiscale=SIX)["multiscale"] == "scales 0.5, 1, 1.5, mirrored too"


def test_training_scores_single_looks_and_saves_a_model_that_looks_six_times(
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    data: Path,
    tmp_path: Path,
) -> None:
    looked: list[MultiScale | None] = []
    monkeypatch.setattr(
        "fullyconv.fitting.evaluate",
        lambda *given, multiscale=None, **named: looked.append(multiscale) or evaluate(*given, **named),
    )
    options = "--backbone tinyvgg --weights none --steps 2 --batch 2 --workers 0 --device cpu"
    out = tmp_path / "run"
    code, _, err = run("train", data, "--out", out, *options.split(), "--scales", "0.5,1,1.5", "--mirror")
    assert code == 0, err
    assert set(looked) == {MultiScale()}
    assert json.loads((out / "config.json").read_text())["model"]["multiscale"]["scales"] == [0.5, 1.0, 1.5]

    def said(*more: str) -> str:
        code, _, err = run("evaluate", out, data, "--device", "cpu", "--json", tmp_path / "scores.json", *more)
        assert code == 0, err
        return str(json.loads((tmp_path / "scores.json").read_text())["protocol"]["multiscale"])

    assert (
        run("explain", out)[1].count("looked at 6 times, scales 0.5, 1, 1.5, mirrored too: 7 times the operations") == 1
    )
    assert said() == "scales 0.5, 1, 1.5, mirrored too"
    assert said("--scales", "1") == "scales 1, mirrored too"
    assert said("--no-mirror") == "scales 0.5, 1, 1.5"
    code, _, err = run("predict", out, data / "images/val", "--out", tmp_path / "maps", "--device", "cpu")
    assert code == 0, err
    written = json.loads((tmp_path / "maps" / "results.json").read_text())
    assert {file["multiscale"] for file in written["files"]} == {"scales 0.5, 1, 1.5, mirrored too"}
    assert "one look at each; above and below it is scales 0.5, 1, 1.5" in (out / "report.html").read_text()


@pytest.mark.parametrize("tuned", [False, True])
def test_predict_looks_as_it_is_told(run: Run, tmp_path: Path, tuned: bool) -> None:
    saved = tuned_folder(tmp_path / "m", "onnxruntime") if tuned else checkpoint.save(lively("tinyvgg"), tmp_path / "m")
    head = next(iter(checkpoint.load(saved).heads))
    picture = tmp_path / "a.png"
    images.write_image(picture, noise(60, 80))
    labels = {}
    for name, flags, looks in (("once", (), MultiScale()), ("six", ("--scales", "0.5,1,1.5", "--mirror"), SIX)):
        out = tmp_path / name
        options = ["--out", out, "--device", "cpu", "--precision", "32"]
        code, _, err = run("predict", saved, picture, *options, *flags)
        assert code == 0, err
        predictor = Predictor.load(saved, device="cpu", precision="32", multiscale=looks)
        want = predictor(picture).labels[head]
        (written,) = [p for p in out.glob("a*.png") if len(predictor.classes) == 1 or head in p.name]
        labels[name] = read_values(written)
        assert (labels[name] == want).mean() > 0.999
        assert json.loads((out / "results.json").read_text())["files"][0]["multiscale"] == str(looks)
    assert (labels["once"] != labels["six"]).mean() > 0.01


def test_evaluate_looks_as_the_flags_say(run: Run, tmp_path: Path) -> None:
    folder = noisy_data(tmp_path / "data")
    saved = checkpoint.save(lively("tinyvgg"), tmp_path / "m")
    val = fullyconv.dataset("folder", folder, split="val")
    scores = []
    for flags, looks in (((), MultiScale()), (("--scales", "0.5,1,1.5", "--mirror"), SIX)):
        code, out, err = run("evaluate", saved, folder, "--device", "cpu", "--json", "-", *flags)
        assert code == 0, err
        want = evaluate(checkpoint.load(saved), val, device="cpu", multiscale=looks)["out"].mean_iu
        scores.append(json.loads(out)["mean_iu"])
        assert scores[-1] == pytest.approx(want)
    assert scores[0] != pytest.approx(scores[1])


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
@pytest.mark.parametrize(
    ("scales", "message"),
    [("0.5,x", "unable to parse string as a number, got 'x'"), ("0.5,2", "expected 1 among them"), ("", "got ''")],
)
def test_scales_that_cannot_be_are_one_line_that_names_the_flag(
    run: Run,
    data: Path,
    tmp_path: Path,
    command: str,
    scales: str,
    message: str,
) -> None:
    given: list[object] = {
        "train": [data, "--backbone", "tinyvgg", "--weights", "none", "--out", tmp_path / "out"],
        "evaluate": [checkpoint.save(lively("tinyvgg", classes=3), tmp_path / "model"), data],
        "predict": [checkpoint.save(lively("tinyvgg"), tmp_path / "m"), data / "images/val", "--out", tmp_path / "out"],
    }[command]
    code, _, err = run(command, *given, "--scales", scales)
    assert code == 2
    assert f"--scales {scales}: " in err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# --- where a picture is looked at once --------------------------------------------------------------------------------


def test_what_does_without_torch_leaves_several_looks_to_it(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    images.write_image(picture, noise(64, 64))
    assert open_quick(tuned_folder(tmp_path / "once", "onnxruntime"), [picture]) is not None
    twice = tuned_folder(tmp_path / "twice", "onnxruntime", multiscale=MultiScale(mirror=True))
    assert open_quick(twice, [picture]) is None


def test_a_picture_that_is_read_by_rows_is_looked_at_once_and_that_is_said(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    images.write_image(source, noise(60, 80))
    predictor = Predictor(lively("tinyvgg"), device="cpu", multiscale=SIX)
    found = segment_raster(predictor, source, tmp_path / "b.png")
    assert "looked at once" in str(found)
    once = Predictor(lively("tinyvgg"), device="cpu")(noise(60, 80)).labels["out"]
    assert (read_values(tmp_path / "b.png") == once).all()


def test_predict_says_which_pictures_were_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("fullyconv.folders.LARGE", 60 * 80 - 1)
    saved = checkpoint.save(lively("tinyvgg"), tmp_path / "m")
    (tmp_path / "photos").mkdir()
    for name, side in (("large", 60), ("small", 50)):
        images.write_image(tmp_path / "photos" / f"{name}.png", noise(side, 80))
    options = ["--out", tmp_path / "out", "--device", "cpu", "--scales", "0.5,1,1.5", "--mirror"]
    code, _, err = run("predict", saved, tmp_path / "photos", *options)
    assert code == 0, err
    assert "1 of them looked at once, and not at scales 0.5, 1, 1.5, mirrored too: GeoTIFFs and" in err
    written = json.loads((tmp_path / "out" / "results.json").read_text())["files"]
    assert {Path(file["input"]).stem: file["multiscale"] for file in written} == {
        "large": "scales 1",
        "small": str(SIX),
    }
