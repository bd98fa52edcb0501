"""Studies that measure: bounds, dense scores, times, and what each skip decides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import miniatures as mini
import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn
from torch.nn import functional as F

from fullyconv import building, checkpoint, cli, evaluation, presets
from fullyconv.config import Classes
from fullyconv.datasets import dataset
from fullyconv.errors import ConfigError, DatasetError, ImageError
from fullyconv.labels import write_labels
from fullyconv.locate import locate_outputs
from fullyconv.model import FCN
from fullyconv.stitching import shift_and_stitch
from fullyconv.studies import dense, study, timing
from fullyconv.studies.contributions import BANDS, band_names, bands, contributions
from fullyconv.studies.fusion import open_relief
from fullyconv.studies.trials import Setup
from fullyconv.studies.upper_bound import PUBLISHED, STRIDES, LabelFiles, LabelsOf, coarsened, triangles, upper_bounds

VOID = 255
TWO = "count=2 size=64x96"
Labels = npt.NDArray[np.uint8]

label_maps = arrays.arrays(
    np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.sampled_from([0, 1, 2, 5, VOID])
)


def live(name: str, stride: int, *, seed: int = 0) -> FCN:
    """A net whose scores differ from place to place, for the classes of the scenes."""
    torch.manual_seed(seed)
    classes = dataset("scenes", TWO).classes["out"]
    model = building.build(presets.fcn(stride, name, len(classes), weights=None), classes={"out": classes}).eval()
    for parameter in model.heads.parameters():
        if parameter.dim() == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def run_command(*arguments: str) -> None:
    """Run a study's command, which must succeed."""
    with pytest.raises(SystemExit) as exited:
        cli.main(["study", *arguments])
    assert exited.value.code == 0


# --- Upper bound ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(label_maps)
def test_at_stride_1_labels_come_back_and_void_is_background(labels: Labels) -> None:
    assert np.array_equal(coarsened(labels, 1, void=VOID), np.where(labels == VOID, 0, labels))


@settings(deadline=None, max_examples=50)
@given(label_maps, st.sampled_from([2, 3, 8, 128]))
def test_coarse_labels_are_of_classes_that_are_there(labels: Labels, stride: int) -> None:
    coarse = coarsened(labels, stride, void=VOID)
    assert coarse.shape == labels.shape
    assert set(np.unique(coarse)) <= set(np.unique(np.where(labels == VOID, 0, labels)))


@settings(deadline=None, max_examples=30)
@given(label_maps, st.sampled_from([2, 4, 16]))
def test_turning_a_map_turns_its_coarse_labels(labels: Labels, stride: int) -> None:
    # Ties go to the first class either way, but rounding may decide them, and does in maps of a few pixels.
    turned = coarsened(labels.T.copy(), stride, void=VOID).T
    assert (turned != coarsened(labels, stride, void=VOID)).mean() <= 0.1


@pytest.mark.parametrize(("size", "cells"), [((48, 64), (12, 16)), ((50, 61), (2, 3)), ((37, 40), (37, 5))])
def test_shrinking_is_what_pillow_and_torch_do(size: tuple[int, int], cells: tuple[int, int]) -> None:
    maps = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
    small = triangles(size[0], cells[0]) @ maps @ triangles(size[1], cells[1]).T
    assert torch.allclose(small, F.interpolate(maps, cells, mode="bilinear", antialias=True), atol=1e-6)
    pillow = Image.fromarray(maps[0, 0].numpy()).resize(cells[::-1], Image.Resampling.BILINEAR)
    assert np.allclose(small[0, 0].numpy(), np.asarray(pillow), atol=1e-6)


def test_bands_as_wide_as_two_cells_survive_exactly_whatever_the_shape_of_the_picture() -> None:
    for stride in (4, 8, 16):
        stripes = np.arange(6, dtype=np.uint8).repeat(2 * stride)
        labels = np.broadcast_to(stripes[:, None], (len(stripes), stride)).copy()
        assert np.array_equal(coarsened(labels, stride, void=VOID), labels)
        assert np.array_equal(coarsened(labels.T.copy(), stride, void=VOID), labels.T)


def test_a_thing_smaller_than_a_cell_is_lost_and_a_larger_one_is_not() -> None:
    labels = np.zeros((64, 64), np.uint8)
    labels[20:24, 20:24], labels[32:64, 32:64] = 1, 2
    coarse = coarsened(labels, 16, void=VOID)
    assert set(np.unique(coarse)) == {0, 2}


@pytest.fixture(scope="module")
def scenes() -> LabelsOf:
    return LabelsOf.of("scenes", "count=6 size=160x160", "val")


def test_larger_strides_never_gain_on_average(scenes: LabelsOf) -> None:
    matrices = upper_bounds(scenes, (*STRIDES, 1))
    found = [matrices[stride].mean_iu for stride in sorted(matrices)]
    assert found[0] == 1
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two palette PNGs and a grey one of the same numbers."""
    place = tmp_path / "labels"
    place.mkdir()
    classes = Classes.of(*map(str, range(21)))
    labels = np.zeros((50, 60), np.uint8)
    labels[10:30, 20:45], labels[9] = 15, VOID
    write_labels(place / "a.png", labels, classes)
    write_labels(place / "b.png", labels[::-1].copy(), classes)
    Image.fromarray(labels).save(place / "c.png")
    return place


def test_the_command_writes_a_row_for_each_stride(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "bound.json"
    run_command("upper-bound", "--labels", str(folder), "--classes", "21", "--json", str(out))
    rows = json.loads(out.read_text())["rows"]
    assert [set(row) for row in rows] == [{"stride", "mean_iu", "published"}] * 6
    assert {row["stride"]: row["published"] for row in rows} == PUBLISHED
    scores = [row["mean_iu"] for row in rows]
    assert scores[-1] > 95 > 50 > scores[0] > 20  # in per cent
    assert {path.name for path in tmp_path.iterdir()} == {"labels", "bound.json"}


def test_palette_and_grey_files_are_read_alike(folder: Path) -> None:
    files = LabelFiles.of(folder, 21)
    assert len(files) == 3
    assert np.array_equal(files[0], files[2])


def test_what_is_wrong_with_a_folder_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        LabelFiles.of(tmp_path / "nowhere", 21)
    with pytest.raises(DatasetError, match=r"no PNG in it, but 1 other entries; expected label maps of ids 0\.\.20"):
        LabelFiles.of(tmp_path, 21)
    with pytest.raises(ConfigError, match="classes: got 300; expected 1 to 255"):
        LabelFiles.of(folder, 300)
    with pytest.raises(ImageError, match=r"a\.png.*15.*expected ids 0\.\.4"):
        upper_bounds(LabelFiles.of(folder, 5))


def test_a_wrong_label_is_one_line(run: Run, folder: Path) -> None:
    for options, said in (
        (("--dataset", "voc"), "--dataset voc: where is it? Name its folder with --data"),
        (("--labels", folder, "--split", "train"), "--split: --labels is a bare folder"),
        (("--labels", folder, "--dataset", "voc"), "--dataset: --labels is a bare folder"),
        (("--classes", 5), "--classes: only --labels asks for it"),
    ):
        code, _, err = run("study", "upper-bound", *options, "--json", "-")
        assert code == 2
        assert said in err
    code, _, err = run("study", "upper-bound", "--labels", folder, "--classes", 5)
    assert code == 2
    assert err.startswith(f"fullyconv: error: {folder / 'a.png'}: ")
    assert err.count("\n") == 1


def test_labels_of_nothing_but_void_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 9), 255, np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="masks: no pixel of 1 label maps has a class; all are void"):
        study("upper-bound").run(LabelFiles.of(tmp_path, 21), data="masks")


def test_of_several_labels_the_ones_that_are_taken_are_named(tmp_path: Path) -> None:
    root = mini.siftflow(tmp_path, trainval=["coast_a1", "forest_b2"], test=["street_c3"])
    maps = LabelsOf.of("siftflow", str(root), "test")
    notes = " ".join(study("upper-bound").run(maps).notes)
    assert "Of the labels semantic, geometric, these are semantic." in notes
    assert "Void counts as class 0, 'awning'" in notes


def test_real_masks_of_voc_are_bounded_as_the_paper_orders_them(shared: Path) -> None:
    result = study("upper-bound").run(LabelFiles.of(shared / "voc_pairs" / "masks", 21))
    found = [row["mean_iu"] for row in result.json()["rows"]]
    # Three pictures of 736: near the published row only where the bound is high.
    assert found == sorted(found)
    assert abs(found[-1] - PUBLISHED[4]) < 0.5
    assert abs(found[-2] - PUBLISHED[8]) < 1
    assert "14 of 21 classes do not occur" in " ".join(result.notes)
    told = [f"{value - PUBLISHED[stride]:+.1f} at {stride}" for stride, value in zip(STRIDES, found, strict=True)]
    assert ", ".join(told) in " ".join(result.notes)


# --- Contributions ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(label_maps)
def test_bands_are_distances_to_the_nearest_pixel_on_a_boundary(labels: Labels) -> None:
    height, width = labels.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    beside = ((0, 1), (1, 0), (0, -1), (-1, 0))
    boundary = [
        (y, x)
        for y, x in places
        if any(
            0 <= y + dy < height and 0 <= x + dx < width and labels[y + dy, x + dx] != labels[y, x] for dy, dx in beside
        )
    ]
    found = bands(labels)
    for y, x in places[:: max(1, len(places) // 40)]:
        nearest = min((np.hypot(y - v, x - u) for v, u in boundary), default=np.inf)
        assert found[y, x] == sum(nearest >= low for low in BANDS) - 1


def test_skips_whose_scores_are_zero_decide_exactly_nothing() -> None:
    model = live("tinyvgg", 8)
    coarse, *finer = model.heads["out"].score
    for tap in finer:
        nn.init.zeros_(model.heads["out"].score[tap][-1].weight)
        nn.init.zeros_(model.heads["out"].score[tap][-1].bias)
    first, *rest = contributions(model, dataset("scenes", TWO))
    assert first.tap == coarse
    assert first.share() > 0
    for one in rest:
        assert one.share() == 0
        assert one.gained() == 0
        assert not one.changed.any()


@pytest.fixture(scope="module")
def trained() -> tuple[FCN, list]:
    model = live("tinyvgg", 8, seed=1)
    return model, contributions(model, dataset("scenes", TWO))


def test_shares_of_bands_and_of_classes_sum_to_the_whole(trained: tuple[FCN, list]) -> None:
    for one in trained[1]:
        pixels = np.stack([matrix.pixels for matrix in one.whole])
        by_band = [one.share(band) * pixels[band].sum() for band in range(len(BANDS)) if pixels[band].any()]
        by_class = [one.share(index=k) * n for k, n in enumerate(pixels.sum(0)) if n]
        whole = one.share() * pixels.sum()
        assert whole > 0
        assert sum(by_band) == pytest.approx(whole, rel=1e-12)
        assert sum(by_class) == pytest.approx(whole, rel=1e-12)


def test_the_whole_net_is_scored_as_evaluate_scores_it(trained: tuple[FCN, list]) -> None:
    model, found = trained
    expected = evaluation.evaluate(model, dataset("scenes", TWO), device="cpu", precision="32")["out"]
    for one in found:
        assert np.array_equal(sum(matrix.counts for matrix in one.whole), expected.counts)


def test_without_a_skip_a_net_is_the_one_whose_score_layer_is_zero(trained: tuple[FCN, list]) -> None:
    model, found = trained
    for one in found:
        score = model.heads["out"].score[one.tap][-1]
        kept = {name: value.clone() for name, value in score.state_dict().items()}
        nn.init.zeros_(score.weight)
        nn.init.zeros_(score.bias)
        try:
            expected = evaluation.evaluate(model, dataset("scenes", TWO), device="cpu", precision="32")["out"]
        finally:
            score.load_state_dict(kept)
        assert np.array_equal(sum(matrix.counts for matrix in one.without), expected.counts)
        assert one.share() > 0


def test_a_trained_model_is_looked_at_where_it_lies(tmp_path: Path) -> None:
    folder = checkpoint.save(live("tinyvgg", 16), tmp_path / "model")
    out = tmp_path / "out"
    given = ["--model", str(folder), "--data", TWO, "--dataset", "scenes", "--device", "cpu"]
    run_command("contributions", *given, "--out", str(out))
    found = json.loads((out / "contributions.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert names[: 1 + len(BANDS)] == ["all pixels", *(f"{name} pixels from a boundary" for name in band_names())]
    assert found["columns"][::2] == ["stride 32: changed, %", "stride 16: changed, %"]
    assert 0 < found["rows"][0]["stride 16: changed, %"] <= 100
    assert [len(panel["lines"]) for panel in found["panels"]] == [2, 2]
    assert (out / "contributions.png").stat().st_size > 10_000
    assert "How this net learnt is not known: its folder is not that of a run." in found["notes"]
    with pytest.raises(ConfigError, match=r"model: heads\.out\.classes: got 11; the data has \d+"):
        study("contributions").run(Setup(data=str(_folder(tmp_path)), device="cpu"), model=folder)


@pytest.mark.parametrize("name", ["contributions", "dense"])
@pytest.mark.parametrize(
    "option", ["--backbone", "--weights", "--input", "--minutes", "--steps", "--batch", "--crop", "--seed"]
)
def test_options_of_training_are_refused_beside_a_model(run: Run, tmp_path: Path, name: str, option: str) -> None:
    code, _, err = run("study", name, "--model", tmp_path, option, "1")
    assert code == 2
    assert err == f"fullyconv: error: {option}: --model has learnt, and nothing is trained; drop one of the two\n"


def test_skips_of_one_stride_are_told_apart_by_their_taps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = ("color", "hha")
    monkeypatch.setattr(Setup, "open", lambda _, split, inputs=inputs: open_relief("scenes", TWO, inputs=inputs))
    config = presets.late_fusion(dict.fromkeys(inputs), "tinyvgg", {"out": 11}, stride=16, weights=None)
    folder = checkpoint.save(building.build(config), tmp_path / "model", provenance={"inputs": inputs})
    result = study("contributions").run(Setup(device="cpu"), model=folder)
    taps = [skip.tap for skip in config.heads["out"].skips]
    assert len(set(taps)) == 4
    assert [column.name for column in result.columns[::2]] == [f"{tap}: changed" for tap in taps]
    assert result.json()["rows"][0].keys() >= {f"{tap}: changed, %" for tap in taps}
    assert [list(panel.lines) for panel in result.panels] == [taps, taps]


def _folder(base: Path) -> Path:
    """A labelled folder of two classes."""
    (base / "data").mkdir()
    (base / "data" / "classes.txt").write_text("ground\nline\n")
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (base / "data" / kind / split).mkdir(parents=True)
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(base / "data" / "images" / split / "a.png")
        Image.fromarray(np.eye(40, dtype=np.uint8)).save(base / "data" / "labels" / split / "a.png")
    return base / "data"


# --- Dense scores -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coarse:
    """A net of one tap, its three ways, and a picture."""

    model: FCN
    ways: dict[str, dense.Way]
    image: torch.Tensor


@pytest.fixture(scope="module", params=["tinyvgg", "squeezenet1_1"])
def coarse(request: pytest.FixtureRequest) -> Coarse:
    name = request.param
    model = live(name, {"tinyvgg": 32, "squeezenet1_1": 16}[name])
    image = torch.from_numpy(dataset("scenes", TWO)[0].image).permute(2, 0, 1)[None]
    return Coarse(model, {way.name: way for way in dense.ways(model)}, image)


def test_stitched_equals_rarefied_where_no_border_is_seen(coarse: Coarse) -> None:
    same = dense.agreement(coarse.model, coarse.image, stride=coarse.model.stride // 2)
    assert same.cells > 50
    assert same.difference < 1e-12


def test_a_difference_between_stitched_and_rarefied_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(net: nn.Module, image: torch.Tensor, *, stride: int) -> torch.Tensor:
        return shift_and_stitch(net, image, stride=stride).roll(1, dims=3)

    monkeypatch.setattr(dense, "shift_and_stitch", wrong)
    assert dense.agreement(live("tinyvgg", 32), 255 * torch.rand(1, 3, 64, 64), stride=16).difference > 1e-3


def test_deconvolution_gives_what_the_predictor_gives(coarse: Coarse) -> None:
    way = coarse.ways["deconvolution"]
    data = dataset("scenes", TWO)
    expected = evaluation.evaluate(coarse.model, data, device="cpu", precision="32")["out"]
    assert np.array_equal(dense.scored(way, data, "out").counts, expected.counts)


def test_denser_scores_keep_those_that_were_there(coarse: Coarse) -> None:
    framed = coarse.model.preprocess(coarse.image)
    plain = coarse.ways["deconvolution"]
    with torch.no_grad():
        want = plain.scores(framed)
        assert want.std() > 0
        for way in coarse.ways.values():
            factor = plain.stride // way.stride
            got = way.scores(framed)[..., ::factor, ::factor][..., : want.shape[2], : want.shape[3]]
            assert torch.allclose(got, want[..., : got.shape[2], : got.shape[3]], rtol=1e-4, atol=1e-4)
            assert got.shape[2] >= want.shape[2] - 1


def test_scores_are_upsampled_from_where_they_lie(coarse: Coarse) -> None:
    front = coarse.model.frame(*coarse.image.shape[2:]).top
    for way in coarse.ways.values():
        if isinstance(way.scores, nn.Module):
            (found,) = locate_outputs(way.scores, channels=3, size=(224, 224))
            where = found.where.down.shift(front)
        source = way.pixels.source
        # Shift-and-stitch follows the rarefaction to its stride, and lies where that does.
        assert (source.stride, source.offset) == (where.stride, where.offset) == (way.stride, source.offset)


def test_a_net_of_several_taps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the model reads .*stride32, .*stride16; expected one tap"):
        dense.ways(live("tinyvgg", 16))


def test_several_heads_are_refused_before_anything_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = building.build(presets.fcn32s("tinyvgg", {"a": 3, "b": 2}, weights=None))
    with pytest.raises(ConfigError, match="the model has the heads a, b; expected one"):
        dense.ways(model)
    with pytest.raises(ConfigError, match="the model has the heads a, b; expected one"):
        study("dense").run(Setup(device="cpu"), model=checkpoint.save(model, tmp_path / "model"))
    monkeypatch.setattr(dense, "classes_of", lambda setup: {"a": 3, "b": 2})
    monkeypatch.setattr(dense, "_learn", lambda *_: pytest.fail("it learns"))
    with pytest.raises(ConfigError, match="the data has labels for the heads a, b; expected one"):
        study("dense").run(Setup(device="cpu"))


def test_peak_memory_is_that_of_the_tensors_that_live_together() -> None:
    x = torch.zeros(1000, 1000)  # 4 MB, there before

    def chain() -> torch.Tensor:
        y = x + 1  # 4
        z = y * 2  # 8
        del y
        return z + z  # 8

    assert dense.peak_bytes(chain, nn.Linear(1, 1)) == 8_000_000


def test_the_study_compares_ways_of_a_model(tmp_path: Path) -> None:
    folder = checkpoint.save(live("tinyvgg", 32), tmp_path / "model")
    out = tmp_path / "out"
    given = ["--model", str(folder), "--data", TWO, "--dataset", "scenes", "--rounds", "1", "--pictures", "1"]
    run_command("dense", *given, "--device", "cpu", "--out", str(out))
    found = json.loads((out / "dense.json").read_text())
    assert [row["name"] for row in found["rows"]] == [
        "deconvolution",
        "rarefaction to 16",
        "shift-and-stitch to 16",
        "rarefaction to 8",
        "shift-and-stitch to 8",
    ]
    assert [row["passes"] for row in found["rows"]] == [1, 1, 4, 1, 16]
    assert all(row["time, ms"] > 0 and row["memory, MB"] > 0 for row in found["rows"])
    assert found["settings"]["agreement"]["difference"] < 1e-12


def test_without_a_model_three_nets_learn_under_equal_conditions(tmp_path: Path) -> None:
    setup = Setup(
        data="count=2 size=64x64", dataset="scenes", backbone="tinyvgg", weights=None, steps=1, batch=2,
        crop=(64, 64), device="cpu", out=tmp_path,
    )  # fmt: skip
    result = study("dense").run(setup, rounds=1, pictures=1)
    names = [row.name for row in result.rows]
    assert names[-2:] == ["dilation to 8, learnt", "skips to 8, learnt"]
    kept = {
        path.name: checkpoint.read_json(path / "recipe.json")["stages"][0] for path in (tmp_path / "nets").iterdir()
    }
    assert set(kept) == {"32s", "8s-with-skips", "8s-dilated"}
    assert kept["8s-dilated"]["fit"] == kept["32s"]["fit"] == kept["8s-with-skips"]["fit"]
    assert [len(stage["model"]["heads"]["out"]["skips"]) for _, stage in sorted(kept.items())] == [
        1,
        1,
        3,
    ]  # 32s, dilated, skips


# --- Times ------------------------------------------------------------------------------------------------------------


def test_calls_take_their_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    now = 0.0

    def takes(name: str, first: float, later: float) -> None:
        nonlocal now
        now += later if name in calls else first
        calls.append(name)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    ms = timing.in_turns([lambda: takes("a", 100, 1), lambda: takes("b", 100, 2)], rounds=1, device=torch.device("cpu"))
    assert calls == ["a", "b"] * 2
    assert ms == [1000, 2000]


def test_the_times_stand_beside_the_published_ones() -> None:
    tiny = timing.Timed("FCN-GoogLeNet", "bvlc_googlenet", 32, 59, timing.TABLE_1, 6, 907)
    result = study("timing").run(nets=[tiny], size=(32, 32), rounds=1, device="cpu")
    (row,), (published,) = result.rows, result.published
    assert row.values[0] > 0
    assert round(row.values[2]) == 6
    assert row.values[3] == 715  # 907 with the pool that is discarded
    assert list(published.values) == [59, None, 6, 907]


def test_the_nets_that_are_timed_are_those_of_the_papers_table() -> None:
    with torch.device("meta"):
        for net in timing.NETS[:2]:
            model = net.build()
            assert model.stride == 32
            assert round(sum(p.numel() for p in model.parameters()) / 1e6) == net.parameters
            assert max(head.grid.field for head in model.heads.values()) == net.field
