"""Pictures that are never whole in memory. The theorem: their labels are those of the picture in one piece."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_inference import Stack, array, excited, fcn, nets, picture, takes
from torch import Tensor

from fullyconv import dense, images, tiling
from fullyconv.backbones import Backbone
from fullyconv.building import build
from fullyconv.config import INPUTS, HeadConfig, ModelConfig, SkipConfig
from fullyconv.errors import ConfigError, ImageError
from fullyconv.geometry import Grid
from fullyconv.inference import Predictor, tiled, whole
from fullyconv.maps import Tap
from fullyconv.model import FCN
from fullyconv.opening import read_size
from fullyconv.streaming import choose_tile, label_rows, segment_raster
from fullyconv.tiling import heads_of, plan
from fullyconv.values import read_values


def streamed(model: FCN, image: Tensor, tile: tuple[int, int]) -> dict[str, np.ndarray]:
    """Labels, and on the way that the picture is asked for from top to bottom."""
    lowest = 0

    def read(down: slice, across: slice) -> Tensor:
        nonlocal lowest
        assert down.start >= lowest
        lowest = down.start
        return image[..., down, across]

    size = (image.shape[2], image.shape[3])
    parts = list(label_rows(model, read, size, tile=tile, heads=heads_of(model)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_one_piece(model: FCN, image: Tensor) -> dict[str, np.ndarray]:
    size = (image.shape[2], image.shape[3])
    by_name = heads_of(model)
    return {n: dense.argmax(s, by_name[n].pixels, size)[0].numpy() for n, s in whole(model, image).items()}


@settings(max_examples=30, deadline=None)
@given(nets(), st.integers(1, 120), st.integers(1, 120), st.sampled_from(((1, 16), (8, 64), (17, 17), (64, 8))))
def test_streamed_labels_equal_those_of_the_whole_picture(
    model: FCN, height: int, width: int, tile: tuple[int, int]
) -> None:
    image = picture(height, width)
    assume(min(height, width) >= model.field or takes(model, image))
    with torch.no_grad():
        np.testing.assert_array_equal(streamed(model, image, tile)["out"], in_one_piece(model, image)["out"])


HEADS = {
    "plain": {},
    "learned": {"upsampling": "learned", "last_upsampling": "learned"},
    "in steps": {"stepwise": True},
    "at half resolution": {"resolution": "half"},
    "at double resolution": {"resolution": "double"},
}


def net(**head: object) -> FCN:
    """Three convolutions of stride 2, of which two are read; a cell sees 36 pixels."""
    layers = [torch.nn.Sequential(torch.nn.Conv2d(inputs, 8, 4, 2, 1), torch.nn.ReLU()) for inputs in (3, 8, 8)]
    grids = list(itertools.accumulate([Grid()] * 4, lambda grid, _: grid.conv(4, stride=2, padding=1)))[1:]
    taps = {"stride8": Tap(8, grids[2]), "stride4": Tap(8, grids[1])}
    skips = tuple(SkipConfig(tap=tap, init="gaussian") for tap in taps)
    backbone = Backbone(Stack(layers, [1, 2]), dict(reversed(taps.items())), input=INPUTS["imagenet"])
    model = excited(FCN(backbone, {"out": HeadConfig(classes=4, skips=skips, **head)}))
    for name, parameter in model.named_parameters():
        if ".align." in name or ".upsample." in name:  # a kernel that was learned is not bilinear
            torch.nn.init.uniform_(parameter, 0.1, 1)
    with torch.no_grad():
        # No class is larger than the others everywhere, so that there is something to be wrong about.
        model.heads["out"].score["stride4"][-1].bias -= model.score_maps(picture(96, 96))["out"].mean((0, 2, 3))
    return model


@pytest.mark.parametrize("kind", HEADS)
def test_streamed_labels_equal_those_of_the_whole_picture_however_a_head_upsamples(kind: str) -> None:
    model = net(**HEADS[kind])
    image = picture(203, 150)
    with torch.no_grad():
        expected = in_one_piece(model, image)["out"]
        assert len(np.unique(expected)) > 1
        assert len(plan(model, (203, 150), tile=(24, 64))[0]) > 5
        np.testing.assert_array_equal(streamed(model, image, (24, 64))["out"], expected)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(net().float(), precision="32", device="cpu", strategy=whole)


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
@pytest.mark.parametrize("tile", [None, 64])
def test_a_file_becomes_the_label_map_that_the_predictor_gives(
    predictor: Predictor, tmp_path: Path, name: str, tile: int | None
) -> None:
    images.write_image(tmp_path / name, array(210, 333))
    progress: list[float] = []
    result = segment_raster(predictor, tmp_path / name, tmp_path / "labels.png", tile=tile, on_progress=progress.append)
    expected = predictor(tmp_path / name)
    expected.save(tmp_path / "expected.png")
    written, whole_ = (read_values(tmp_path / f"{n}.png") for n in ("labels", "expected"))
    assert (written == whole_).mean() > 0.9999
    assert result.size == (210, 333)
    assert result.area["out"] == pytest.approx(expected.area(), abs=1e-3)
    assert progress == sorted(progress)
    assert progress[-1] == 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_several_heads_are_written_in_one_go(tmp_path: Path) -> None:
    skips = (SkipConfig(tap="stride32", init="gaussian"),)
    heads = {name: HeadConfig(classes=3, skips=skips) for name in ("parts", "things")}
    model = Predictor(build(ModelConfig(backbone="tinyvgg", weights=None, heads=heads)), device="cpu")
    images.write_image(tmp_path / "a.png", array(80, 70))
    with pytest.raises(ConfigError, match="head: got None; expected one of parts, things"):
        segment_raster(model, tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(ConfigError, match="head: got 'x'; expected one of parts, things"):
        segment_raster(model, tmp_path / "a.png", tmp_path / "b.png", head="x")
    targets = {name: tmp_path / f"{name}.png" for name in heads}
    assert segment_raster(model, tmp_path / "a.png", targets, tile=32).outputs == targets
    assert read_size(targets["things"]) == (80, 70)


def test_a_picture_of_more_pixels_than_the_limit_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    images.write_image(tmp_path / "a.png", array(20, 30))
    with pytest.raises(ImageError, match=r"declares 20 x 30 = 600 pixels, more than the limit of 599; raise the limit"):
        segment_raster(predictor, tmp_path / "a.png", tmp_path / "b.png", max_pixels=599)
    assert not (tmp_path / "b.png").exists()


def test_a_damaged_file_leaves_nothing_behind(predictor: Predictor, tmp_path: Path) -> None:
    images.write_image(tmp_path / "a.png", array(400, 300))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"a\.png: .*"):
        segment_raster(predictor, tmp_path / "a.png", tmp_path / "b.png", tile=64)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


# --- nets that see the whole picture ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def excite() -> FCN:
    return excited(fcn("mobilenet_v3_small", "stride32", "stride16"))


@torch.no_grad()
def test_where_tiles_cannot_be_exact_they_are_blended_and_that_is_said(excite: FCN, tmp_path: Path) -> None:
    image = array(300, 260)
    images.write_image(tmp_path / "a.png", image)
    predictor = Predictor(fcn("mobilenet_v3_small", "stride32"), device="cpu", precision="32")
    result = segment_raster(predictor, tmp_path / "a.png", tmp_path / "b.png", tile=128)
    assert (
        "in tiles, blended where they meet, which is not exact, since each cell of the map 'stride32'"
        in result.notes[-1]
    )
    notes = segment_raster(predictor, tmp_path / "a.png", tmp_path / "b.png", tile=512).notes
    assert not any("blended" in note for note in notes)


@torch.no_grad()
@pytest.mark.parametrize("size", [(300, 260), (64, 500), (129, 97)])
def test_blended_scores_are_near_the_whole_and_change_smoothly(excite: FCN, size: tuple[int, int]) -> None:
    image = picture(1, 1).expand(1, 3, *size)  # all alike, so that what a window sees of the rest is the same
    image = image + (torch.arange(size[1]) % 2).to(torch.uint8)
    one, other = whole(excite, image)["out"], tiled(excite, image, tile=96)["out"]
    assert one.shape == other.shape
    assert torch.isfinite(other).all()
    whole_one = tiled(excite, image, tile=1024)["out"]
    torch.testing.assert_close(whole_one, one, rtol=0, atol=1e-12 * float(one.abs().max()))
    inner = (..., slice(3, -3), slice(3, -3))
    if one[inner].numel():
        assert float((one - other)[inner].abs().max()) < 0.5 * float(one.abs().max())


@pytest.mark.parametrize("stride", [8, 32])
def test_the_weights_of_windows_add_up_to_one(excite: FCN, stride: int) -> None:
    rows, _ = plan(excite, (1000, 1000), tile=(128, 128))
    total = torch.zeros(rows[-1].stop // stride, dtype=torch.float64)
    for row in rows:
        weights = tiling._fade(row, row.length // stride, Fraction(stride))
        assert weights.min() > 0
        total[row.start // stride : row.stop // stride] += weights
    assert len(rows) > 5
    torch.testing.assert_close(total, torch.ones_like(total))


@torch.no_grad()
def test_blending_equals_the_whole_where_windows_agree(excite: FCN, monkeypatch: pytest.MonkeyPatch) -> None:
    # A net whose score is the colour under it sees the same in every window: the weights have to sum to one.
    model = fcn("mobilenet_v3_small", "stride32").double()
    shrink = torch.nn.AvgPool2d(32)
    monkeypatch.setattr(model, "scores_of", lambda window: {"out": shrink(window)})
    image = picture(400, 330)
    torch.testing.assert_close(tiled(model, image, tile=96)["out"], whole(model, image)["out"], rtol=1e-12, atol=1e-12)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_the_tile_is_the_largest_that_memory_allows_and_costs_the_least() -> None:
    model = net().float()
    sizes = [choose_tile(model, memory << 20, (20_000, 20_000)) for memory in (64, 256, 1024)]
    seen = []
    for tile in sizes:
        rows, columns = plan(model, (20_000, 20_000), tile=tile)
        seen.append(sum(r.length for r in rows) * sum(c.length for c in columns) / 4e8)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1.5
    assert all(side % model.stride == 0 for tile in sizes for side in tile)
    # A narrow picture needs no columns.
    assert choose_tile(model, 256 << 20, (20_000, 300))[1] >= 300
    with pytest.raises(ConfigError, match="memory: 1 MiB are not enough for tiles of a picture 20000 pixels wide"):
        choose_tile(model, 1 << 20, (20_000, 20_000))
