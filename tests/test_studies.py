"""Studies that train: equal conditions, masks that hide what they say, and results that can be read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fullyconv import backbones, checkpoint, cli, training
from fullyconv.building import build
from fullyconv.config import INPUTS, Classes, Recipe
from fullyconv.datasets import Sample, dataset
from fullyconv.errors import ConfigError, DatasetError, UnknownName
from fullyconv.images import read_image
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import Preprocess
from fullyconv.presets import fcn
from fullyconv.sampling import INITIAL, mix
from fullyconv.studies import STUDIES, fusion, masking, momentum, strides, study, timing, trials, upper_bound
from fullyconv.studies.base import SCORES, Column, Panel, Result, Row
from fullyconv.studies.fusion import measured, open_relief
from fullyconv.studies.masking import SHAPE, Kept, Masked, foreground_iu, mask_colour
from fullyconv.studies.sampling import against, beside, loss_at
from fullyconv.studies.strides import at_once, levelled
from fullyconv.studies.trials import Clock, Learnt, Setup, learn, ordering, smooth

TINY = "count=3 size=64x64"
TRAIN = ("masking", "strides", "fusion", "sampling", "momentum")
MASK = (124, 116, 104)


# --- Masks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class One:
    """A data set of one picture."""

    image: np.ndarray
    truth: np.ndarray
    classes: Mapping[str, Classes]
    name: str = "one"
    split: str = "val"
    names: tuple[str, ...] = ("0",)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample("0", self.image, {"out": self.truth})

    def paths(self, index: int) -> tuple[Path | None, ...]:
        return None, None


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))
CLASSES = {"out": Classes.of("ground", "sky", "cat", "dog")}


@st.composite
def labelled(draw: st.DrawFn) -> One:
    height, width = draw(SHAPES)
    image = draw(arrays.arrays(np.uint8, (height, width, 3)))
    truth = draw(arrays.arrays(np.uint8, (height, width), elements=st.sampled_from((0, 1, 2, 3, 255))))
    return One(image, truth, CLASSES)


def masked(one: One, kept: Kept) -> np.ndarray:
    return Masked(one, kept, background=(0, 1), mask=MASK)[0].image


@given(labelled())
@settings(deadline=None)
def test_a_mask_shows_the_picture_where_it_says_and_one_colour_elsewhere(one: One) -> None:
    behind, before = one.truth <= 1, (one.truth == 2) | (one.truth == 3)
    for kept, left in (("foreground", before), ("background", behind)):
        seen = masked(one, kept)  # type: ignore[arg-type]
        assert np.array_equal(seen[left], one.image[left])
        assert (seen[~left] == MASK).all()
    assert np.array_equal(masked(one, "all"), one.image)


@given(labelled(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_a_shape_is_a_function_of_the_silhouette_alone(one: One, random: Any) -> None:
    shape = masked(one, "shape")
    before = (one.truth == 2) | (one.truth == 3)
    assert (shape[before] == SHAPE).all()
    assert (shape[~before] == MASK).all()
    # Neither the picture, nor which thing or which ground it is, nor void changes anything.
    other = {0: random.choice((0, 1, 255)), 1: 255, 2: 3, 3: 2, 255: random.choice((0, 1, 255))}
    truth = np.vectorize(other.__getitem__, otypes=[np.uint8])(one.truth)
    assert np.array_equal(masked(replace(one, image=255 - one.image, truth=truth), "shape"), shape)


def test_a_mask_leaves_the_data_set_as_it_is() -> None:
    scenes = dataset("scenes", TINY)
    before = [scenes[i].image.copy() for i in range(len(scenes))]
    hidden = Masked(scenes, "shape", (0,), MASK)
    assert (hidden.name, hidden.split, len(hidden), hidden.names) == ("scenes", "train", 3, scenes.names)
    assert hidden.notes[-1] == "of each picture is left: shape"
    assert np.array_equal(hidden[1].labels["out"], scenes[1].labels["out"])
    assert all(np.array_equal(scenes[i].image, image) for i, image in enumerate(before))


@pytest.mark.parametrize("name", ["imagenet", "caffe", "inception"])
def test_the_mask_is_nothing_to_the_net(name: str) -> None:
    colour = torch.tensor(mask_colour(INPUTS[name]), dtype=torch.uint8).view(1, 3, 1, 1)
    seen = Preprocess(INPUTS[name])(colour).flatten()
    assert (seen.abs() <= 0.5 / torch.tensor(INPUTS[name].std)).all()


def test_the_mean_without_background_leaves_it_out() -> None:
    # A cat's 10 pixels: 6 are found, 1 is called dog, 3 ground; and 2 of ground are called cat. No dog is there.
    matrix = ConfusionMatrix(["ground", "cat", "dog"], [[88, 2, 0], [3, 6, 1], [0, 0, 0]])
    assert foreground_iu(matrix, ["ground"]) == pytest.approx((60.0, 50.0))
    assert foreground_iu(matrix, ["ground", "cat"]) == (None, None)
    dog = ConfusionMatrix(matrix.classes, matrix.counts + np.diag([0, 0, 4]))
    assert foreground_iu(dog, ["ground"]) == (
        pytest.approx(100 * (0.6 + 0.8) / 2),
        pytest.approx(100 * (0.5 + 0.8) / 2),
    )
    assert foreground_iu(dog, []) == pytest.approx((100 * float(np.mean(dog.iu)),) * 2)


# --- Depth ------------------------------------------------------------------------------------------------------------


def test_channels_that_weights_know_nothing_of_get_the_mean_and_spread_of_colours() -> None:
    pictures = open_relief("scenes", TINY, inputs=("color", "depth"))
    for known in (INPUTS["imagenet"], INPUTS["caffe"]):
        found = measured(known, pictures, keep=3)
        assert (found.order, found.mean[:3], found.std[:3]) == (known.order, known.mean, known.std)
        images = torch.stack([torch.from_numpy(pictures[i].image).permute(2, 0, 1) for i in range(len(pictures))])
        depth = Preprocess(found)(images)[:, 3]
        assert float(depth.mean()) == pytest.approx(0, abs=0.05)
        assert float(depth.std()) == pytest.approx(58 / np.mean(known.std), rel=0.05)
    hha = open_relief("scenes", TINY, inputs=("hha",))
    assert measured(INPUTS["caffe"], hha, keep=0).order == "RGB"


def test_drawn_depth_is_beside_the_colours_and_repeats() -> None:
    plain, both = dataset("scenes", TINY), open_relief("scenes", TINY, inputs=("color", "hha"))
    assert np.array_equal(both[2].image[..., :3], plain[2].image)
    assert np.array_equal(both[2].image, both[2].image)
    assert open_relief("scenes", TINY, inputs=("hha", "color"))[2].image.shape == (64, 64, 6)
    depth = open_relief("scenes", TINY, inputs=("depth",))[0]
    things = (depth.labels["out"] > 0) & (depth.labels["out"] < 255)
    assert np.exp(depth.image[things].mean()) < np.exp(depth.image[depth.labels["out"] == 0].mean())  # things are near
    with pytest.raises(UnknownName, match="no input 'touch'"):
        open_relief("scenes", TINY, inputs=("touch",))


# --- Runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "SCENES", TINY)
        patch.setattr(training, "write_report", lambda *_, **__: None)  # has tests of its own
        yield


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Result, Path]]:
    """The result of a study of a few steps, and its folder; each is run once."""
    done: dict[str, tuple[Result, Path]] = {}

    def found(name: str) -> tuple[Result, Path]:
        if name not in done:
            out = tmp_path_factory.mktemp(name)
            setup = Setup(weights=None, steps=10 if name == "momentum" else 3, batch=2, device="cpu", out=out)
            done[name] = study(name).run(setup), out
        return done[name]

    return found


def recipes(out: Path) -> dict[str, Recipe]:
    return {path.parent.name: Recipe.read(path) for path in (out / "nets").glob("*/recipe.json")}


@pytest.mark.parametrize("name", TRAIN)
def test_a_study_gives_a_table_that_can_be_read(found: Any, name: str, tmp_path: Path) -> None:
    result, _ = found(name)
    assert (result.study, result.question) == (name, STUDIES[name].question)
    titles = [column.title for column in result.columns]
    for row in result.rows:
        values = dict(zip(titles, row.values, strict=True))
        assert 0 <= values["mean IU, %"] <= 100
        assert not row.source
    assert len({row.name for row in result.rows}) == len(result.rows)
    assert all(row.source and row.name in {own.name for own in result.rows} for row in result.published)
    assert result.shown or result.panels
    json_path, text_path, picture_path = result.write(tmp_path)
    again = json.loads(json_path.read_text())
    assert [row["name"] for row in again["rows"]] == [row.name for row in result.rows]
    assert again["rows"][0]["mean IU, %"] == dict(zip(titles, result.rows[0].values, strict=True))["mean IU, %"]
    assert all(f"| {row.name} |" in text_path.read_text() for row in result.rows)
    drawn = read_image(picture_path).pixels
    assert min(drawn.shape[:2]) > 300
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 10


def test_published_rows_are_those_of_the_papers() -> None:
    # Written down once more, from CVPR 2015 (tables 1 to 4; arXiv v2, appendix A), PAMI 2017 (table 8), the release.
    assert [(row.name, row.values[:4]) for row in strides.PUBLISHED] == [
        ("32s-fixed", (83.0, 59.7, 45.4, 72.0)),
        ("32s", (89.1, 73.3, 59.4, 81.4)),
        ("16s", (90.0, 75.7, 62.4, 83.0)),
        ("8s", (90.3, 75.9, 62.7, 83.2)),
        ("32s", (None, None, 63.6, None)),
        ("16s", (None, None, 65.0, None)),
        ("8s", (None, None, 65.5, None)),
        ("8s at once, scaled", (None, None, 65.4, None)),
    ]
    assert [(row.name, row.values[:4]) for row in fusion.PUBLISHED] == [
        ("colour", (60.0, 42.2, 29.2, 43.9)),
        ("colour and depth, early", (61.5, 42.4, 30.5, 45.5)),
        ("HHA", (57.1, 35.2, 24.2, 40.4)),
        ("colour and HHA, late", (64.3, 44.9, 32.8, 48.0)),
    ]
    assert [(row.name, *row.values[:3]) for row in masking.PUBLISHED] == [
        ("Reference", "keep / keep", "keep / keep", 84.8),
        ("Reference-FG", "keep / keep", "keep / mask", 81.0),
        ("Reference-BG", "keep / keep", "mask / keep", 19.8),
        ("FG-only", "keep / mask", "keep / mask", 76.1),
        ("BG-only", "mask / keep", "mask / keep", 37.8),
        ("Shape", "mask / mask", "mask / mask", 29.1),
    ]
    assert [(row.name, row.values[:4]) for row in momentum.PUBLISHED] == [
        ("accumulated", (89.1, 73.3, 59.4, 81.4)),
        ("heavy", (None, None, 63.6, None)),
    ]
    assert upper_bound.PUBLISHED == {128: 50.9, 64: 73.3, 32: 86.1, 16: 92.8, 8: 96.4, 4: 98.5}
    assert [(net.name, net.ms, net.parameters, net.field) for net in timing.NETS] == [
        ("FCN-AlexNet", 50, 57, 355),
        ("FCN-VGG16", 210, 134, 404),
        ("FCN-GoogLeNet", 59, 6, 907),
        ("FCN-8s", 175, None, None),
    ]


def test_a_long_question_is_not_cut_off_at_the_edge_of_the_figure(tmp_path: Path) -> None:
    rows = [Row("32s", [48.0])]
    result = Result("long", "minimum " * 30 + "?", SCORES[2:3], rows, shown=SCORES[2].name)
    result.draw(tmp_path / "long.png")
    drawn = read_image(tmp_path / "long.png").pixels[..., :3]
    assert (drawn[:100] < 100).any()
    assert (drawn[:, -5:] == 255).all()


@pytest.mark.parametrize("name", ["masking", "strides", "fusion", "sampling"])
def test_every_net_has_the_same_budget_seed_and_data(found: Any, name: str) -> None:
    result, out = found(name)
    made = recipes(out)
    for recipe in made.values():
        assert sum(stage.fit.steps or 0 for stage in recipe.stages) == 3
        for stage in recipe.stages:
            assert (stage.fit.seed, stage.fit.batch, stage.data.root) == (0, 2, TINY)
    assert {row.name for row in result.rows} - {"Reference-FG", "Reference-BG"} == {
        row.name for row in result.rows if trials.slug(row.name) in made
    }


def test_minutes_count_what_was_learnt_before() -> None:
    recipe = Recipe.model_construct(stages=())
    nets = [Learnt(name, Path(), recipe, 1, {}, [], 10, seconds) for name, seconds in (("a", 120.0), ("b", 60.0))]
    assert Clock().minutes_of(nets) == 3.0
    assert Clock(started=time.monotonic() - 600).minutes_of(nets) == pytest.approx(10, abs=0.5)


def test_a_budget_in_minutes_is_dealt_out_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    class Enough(Exception):  # noqa: N818
        pass

    def train(recipe: Recipe, *, out: Path, **_: Any) -> None:
        seen.append(recipe)
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps({"per_class": {}, "mean_iu": 0.0}))
        stages = {stage.name: {"pictures": {"train": ["1"]}} for stage in recipe.stages}
        (out / "run.json").write_text(json.dumps({"started": [], "stages": stages}))
        (out / "recipe.json").write_text(recipe.model_dump_json())
        if len(seen) == 3:
            raise Enough

    monkeypatch.setattr(trials, "train", train)
    with pytest.raises(Enough):
        study("strides").run(Setup(weights=None, minutes=8, device="cpu", out=tmp_path))
    assert [[stage.fit.minutes for stage in recipe.stages] for recipe in seen] == [[1.0], [1.0], [0.5, 0.5]]


def test_stages_start_from_the_one_before_and_a_fixed_trunk_stays(found: Any) -> None:
    result, out = found("strides")
    made = recipes(out)
    assert [stage.name for stage in made["8s"].stages] == ["32s", "16s", "8s"]
    assert [stage.name for stage in made["8s-at-once"].stages] == ["8s"]
    scales = {name: [skip.scale for skip in made[name].stages[-1].model.heads["out"].skips] for name in made}
    assert scales["8s"] == scales["8s-at-once"] == [1.0, 1.0, 1.0]
    assert scales["8s-at-once-scaled"] == result.settings["scales"]
    assert [skip.tap for skip in made["stride-8-alone"].stages[0].model.heads["out"].skips] == ["stride8"]
    with torch.random.fork_rng([]):
        torch.manual_seed(mix(0, INITIAL))
        start = build(made["32s"].stages[0].model).state_dict()
    for name, moved in (("32s-fixed", False), ("32s", True)):
        now = checkpoint.load(out / "nets" / name).state_dict()
        same = all(torch.equal(now[key], start[key]) for key in start if key.startswith("backbone."))
        assert same is not moved
        learnt = [key for key in start if key.startswith("heads.") and not torch.equal(now[key], start[key])]
        assert any(key.endswith("weight") for key in learnt)


@pytest.mark.parametrize("backbone", ["tinyvgg", "squeezenet1_0"])
def test_levelled_maps_are_as_large_as_the_coarsest(backbone: str) -> None:
    scenes = dataset("scenes", TINY)
    strides = sorted({int(of.grid.stride) for of in backbones.describe(backbone).taps.values()})[-3:]
    config = fcn(strides[0], backbone, 11, weights=None)
    scales = [skip.scale for skip in levelled(config, scenes, 3).heads["out"].skips]
    with torch.random.fork_rng([]):
        torch.manual_seed(mix(3, INITIAL))
        model = build(config).eval()
    sizes = []
    for skip, scale in zip(config.heads["out"].skips, scales, strict=True):
        with torch.no_grad():
            maps = [
                model.backbone(model.preprocess(torch.from_numpy(scenes[i].image).permute(2, 0, 1)[None]))[skip.tap]
                for i in range(len(scenes))
            ]
        sizes.append(scale * sum(float(found.abs().mean()) for found in maps))
    assert scales[0] == 1
    assert max(scales[1:]) != 1
    assert sizes == pytest.approx([sizes[0]] * 3, rel=0.06)  # scales have two digits


def test_pictures_are_as_they_are_where_the_papers_learn_from_such(found: Any) -> None:
    for name, sizes, jitter in (("sampling", (1, 1), 0), ("momentum", (1, 1), 0), ("masking", (0.5, 2), 0)):
        result, out = found(name)
        for recipe in recipes(out).values():
            (stage,) = recipe.stages
            assert (stage.data.scale, stage.data.jitter) == (sizes, jitter)
            assert stage.data.mirror is (name == "masking")
            assert (stage.data.crop == "whole") is (name != "masking")
            if name == "sampling":  # so that iterations are equal whatever the budget
                assert (stage.fit.schedule, stage.fit.warmup, stage.fit.ema) == ("fixed", 0, 0)
        told = " ".join(result.notes)
        assert ("whole, no size is changed, not mirrored" in told) is (name != "masking")
        assert "colours as they are" in told
        assert result.settings["data"]["jitter"] == 0
        assert "/" not in result.settings["data"]["root"]


@pytest.mark.parametrize(("steps", "pictures"), [(1, 20), (2, 20), (3, 20), (4, 40), (9, 80), (100, 800)])
def test_equally_many_pictures_are_whole_steps_of_every_way(
    steps: int, pictures: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taken = captured(monkeypatch, "momentum", tmp_path, steps=steps)
    fits = [variant.parts[0].fit for variant in taken]
    counts = [round(steps * variant.steps) * fit["accumulate"] for variant, fit in zip(taken, fits, strict=True)]
    assert counts == [pictures] * 3


def test_a_named_crop_comes_before_whole_pictures(found: Any, tmp_path: Path) -> None:
    setup = Setup(weights=None, steps=1, batch=1, crop=(32, 48), device="cpu", out=tmp_path)
    study("sampling").run(setup)
    assert {recipe.stages[0].data.crop for recipe in recipes(tmp_path).values()} == {(32, 48)}


def test_each_net_of_masking_sees_its_own_pictures(found: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result, _ = found("masking")
    masks = {row.name: row.values[:2] for row in result.rows}
    published = {row.name: row.values[:2] for row in result.published}
    assert masks == published
    seen = {}

    def spy(recipe: Recipe, *, out: Path, open_data: Any, **_: Any) -> None:
        opened = [open_data("scenes", TINY, split=split, inputs=("color",)) for split in ("train", "val")]
        seen[recipe.name] = [data.kept for data in opened]
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "train", spy)
    for variant in captured(monkeypatch, "masking", tmp_path):
        with pytest.raises(KeyboardInterrupt):
            learn(Setup(weights=None, steps=1, out=tmp_path), [variant], lambda event: None)
    kept = {"Reference": "all", "FG-only": "foreground", "BG-only": "background", "Shape": "shape"}
    assert seen == {name: [left, left] for name, left in kept.items()}


def captured(monkeypatch: pytest.MonkeyPatch, name: str, out: Path, steps: int = 1) -> list[trials.Variant]:
    """The variants of a study, which is not run."""
    taken: list[trials.Variant] = []

    def learn(setup: Setup, variants: list[trials.Variant], tell: Any) -> None:
        taken.extend(variants)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"fullyconv.studies.{name}.learn", learn)
        with pytest.raises(KeyboardInterrupt):
            study(name).run(Setup(weights=None, steps=steps, device="cpu", out=out))
    return taken


def test_background_is_named_by_classes_that_exist(tmp_path: Path) -> None:
    setup = Setup(weights=None, steps=1, device="cpu", out=tmp_path)
    with pytest.raises(UnknownName, match="no class 'grund'; did you mean 'ground'"):
        study("masking").run(setup, background=["grund"])
    every = dataset("scenes", TINY).classes["out"].names
    with pytest.raises(ConfigError, match="all 11 classes; expected some that are not background"):
        study("masking").run(setup, background=every)


def test_batches_grow_as_cells_are_left_out(found: Any) -> None:
    result, out = found("sampling")
    assert {name: recipe.stages[0].fit.keep for name, recipe in recipes(out).items()} == {
        "whole-pictures": 1.0,
        "half-of-the-cells": 0.5,
        "a-quarter-of-the-cells": 0.25,
    }
    at = [column.name for column in result.columns].index("pictures a step")
    assert [row.values[at] for row in result.rows] == [2, 4, 8]
    by_step, by_time = result.panels
    for panel in (by_step, by_time):
        assert list(panel.lines) == [row.name for row in result.rows]
        for points in panel.lines.values():
            assert len(points) == 3
            assert all(a[0] < b[0] for a, b in pairwise(points))
    assert [x for x, _ in by_step.lines["whole pictures"]] == [1, 2, 3]


def test_momentum_gives_each_picture_one_rate_and_each_way_as_many_pictures(found: Any) -> None:
    result, out = found("momentum")
    fits = {name: recipe.stages[0].fit for name, recipe in recipes(out).items()}
    assert {name: (fit.accumulate, fit.momentum) for name, fit in fits.items()} == {
        "accumulated": (20, 0.9),
        "online": (1, 0.9),
        "heavy": (1, 0.99),
    }
    assert {round(fit.lr / fit.accumulate, 12) for fit in fits.values()} == {round(result.settings["rate"], 12)}
    assert all(fit.batch == 1 and fit.reduction == "mean" and not fit.ema for fit in fits.values())
    at = [column.name for column in result.columns].index("pictures")
    assert [row.values[at] for row in result.rows] == [20, 20, 20]
    highest = max(result.rows, key=lambda row: row.values[2])
    said = [note for note in result.notes if note.startswith(f"The highest here is {highest.name}")]
    assert len(said) == (highest.name != "heavy")
    with pytest.raises(ConfigError, match=r"--rate: got -1; expected a rate above 0"):
        study("momentum").run(Setup(weights=None), rate=-1)


def test_late_fusion_joins_the_two_nets_that_have_learnt(found: Any) -> None:
    _, out = found("fusion")
    made = recipes(out)
    late = made["colour-and-HHA-late"]
    assert [stage.data.inputs for stage in late.stages] == [("color",), ("hha",), ("color", "hha")]
    assert late.stages[-1].start == {"color": "color", "hha": "hha"}
    assert late.stages[1].start == "classifier"
    assert late.stages[-1].model.heads["out"].fusion == "mean"
    early = made["colour-and-depth-early"].stages[0].model.input
    assert early is not None
    assert len(early.mean) == 4


def test_fusion_says_what_the_data_lacks(tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for name in ("1.png", "2.png"):
            (tmp_path / part / name).write_bytes(b"")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DatasetError, match="depth"):
        study("fusion").run(Setup(data=str(tmp_path), backbone="tinyvgg", weights=None, steps=1))


def test_a_study_goes_on_where_it_was_and_refuses_other_settings(found: Any) -> None:
    result, out = found("sampling")
    logs = {path: path.stat().st_size for path in (out / "nets").glob("*/*/best/model.safetensors")}
    assert len(logs) == 3
    stamps = {path: path.stat().st_mtime_ns for path in logs}
    setup = Setup(weights=None, steps=3, batch=2, device="cpu", out=out)
    again = study("sampling").run(setup)
    assert {path: path.stat().st_mtime_ns for path in logs} == stamps
    assert [row.values[:5] for row in again.rows] == [row.values[:5] for row in result.rows]
    with pytest.raises(
        ConfigError,
        match=r"holds a net that learnt otherwise \(stages\.0\.fit\.steps\).*; name another --out, or remove it",
    ):
        study("sampling").run(replace(setup, steps=4))


def test_a_setup_is_refused_where_it_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--minutes and --steps: got both"):
        Setup(minutes=1, steps=1)
    with pytest.raises(UnknownName, match="no backbone 'tinyvg'; did you mean 'tinyvgg'"):
        Setup(backbone="tinyvg")
    with pytest.raises(UnknownName, match="no input 'cafe'; did you mean 'caffe'"):
        Setup(input="cafe")
    with pytest.raises(ConfigError, match="--backbone tinyvgg: it has maps of 5 strides; expected 9"):
        Setup().strides(9)
    assert Setup().source == ("scenes", TINY)
    assert (Setup().net, Setup(data="x").net) == ("tinyvgg", "squeezenet1_0")
    assert Setup(data="x", input="caffe").known == INPUTS["caffe"]


def test_orders_are_told_as_they_are() -> None:
    rows = [Row("a", [10.0]), Row("b", [20.0]), Row("c", [20.0]), Row("d", [20.9])]
    alike = "Within a point of each other, of which one seed says nothing: b (20.0) and c (20.0)."
    assert ordering(rows, ["a", "b"], 0, "why") == "The papers' order appears: a < b."
    assert ordering(rows, ["b", "a", "c"], 0, "why") == (
        f"The papers have b < a < c; here it is a (10.0) < b (20.0) < c (20.0): why. {alike}"
    )
    assert ordering(rows, ["a", "b", "c"], 0, "why") == (
        f"The papers' order appears: a < b < c, as far as it can be told. {alike}"
    )
    assert ordering(rows, ["b", "c", "a"], 0, "why", papers=["x", "y", "z"]) == (
        f"The papers have x < y < z; here it is a (10.0) < b (20.0) < c (20.0): why. {alike}"
    )
    assert ordering(rows, ["c", "b", "d"], 0, "why") == (
        "Whether the papers' order appears, c < b < d, cannot be told. Within a point of each other, of which one seed "
        "says nothing: c (20.0) and b (20.0); b (20.0) and d (20.9)."
    )
    for nothing in (None, float("nan")):
        assert ordering([Row("a", [nothing]), Row("b", [nothing])], ["a", "b"], 0, "why") == (
            "Whether the papers' order appears, a < b, cannot be told: a, b without a score."
        )
        assert ordering([*rows[:2], Row("c", [nothing])], ["a", "c", "b"], 0, "why") == (
            "Whether the papers' order appears, a < c < b, cannot be told: c without a score."
        )
        assert ordering([*rows[:2], Row("c", [nothing])], ["c", "b", "a"], 0, "why") == (
            "The papers have c < b < a; here it is a (10.0) < b (20.0): why."
        )
    falling = [Row(name, [60 - 0.9 * i]) for i, name in enumerate("abcd")]
    assert ordering(falling, [*"abcd"], 0, "why").startswith(
        "The papers have a < b < c < d; here it is d (57.3) < c (58.2) < b (59.1) < a (60.0): why. Within a point"
    )


def test_what_is_against_the_paper_is_told() -> None:
    def rows(*ious: float) -> list[Row]:
        return [Row(name, [0.0, 0.0, iou, 0.0]) for name, iou in zip(("whole", "half", "quarter"), ious, strict=True)]

    assert against(rows(60, 60.9, 55), timed=False) == (
        "In equally many steps no sampled net ends above whole (60.0) by more than a point, as in the paper."
    )
    told = against(rows(16.3, 31.1, 10), timed=False)
    assert told.startswith("Against the paper, half (31.1) end above whole (16.3) in equally many steps. A step of")
    assert against(rows(16.3, 31.1, 31.4), timed=True).endswith(
        "half (31.1) and quarter (31.4) end above whole (16.3) in equal times."
    )


def test_losses_are_compared_where_all_nets_have_one() -> None:
    curves = {"whole": [(x, 1.0 if x <= 5 else 0.1) for x in range(1, 11)], "half": [(x, 1.25) for x in range(1, 6)]}
    assert beside(curves, "iterations") == (
        "After 5 iterations, which all have, the loss is 1.000 (whole), 1.250 (half: 25 % more)."
    )
    assert loss_at([(1, 8.0), (2, 4.0)], 0.5) == 8  # nothing is there yet


def test_whether_at_once_is_as_good_as_in_stages_is_told() -> None:
    assert at_once(61.0, 60.5).endswith("here it is within a point (60.5, 61.0).")
    assert at_once(61.0, 59.0).endswith("here it is 2.0 points below (59.0, 61.0).")
    assert at_once(59.0, 61.0).endswith("here it is 2.0 points above (61.0, 59.0).")


@given(st.integers(1, 900), st.integers(1, 50))
def test_a_smoothed_curve_is_short_and_within_its_points(count: int, span: int) -> None:
    values = np.random.default_rng(count).normal(size=count).tolist()
    points = list(enumerate(values))
    found = smooth(points, span)
    assert len(found) <= 200
    assert found[-1][0] == points[-1][0]
    assert found[-1][1] == pytest.approx(np.mean(values[-span:]), abs=1e-9)
    assert all(min(values) - 1e-9 <= y <= max(values) + 1e-9 for _, y in found)


# --- Rendering --------------------------------------------------------------------------------------------------------


def test_a_result_says_what_it_was_measured_on() -> None:
    result = Result(
        "x",
        "Why?",
        (*SCORES[:1], Column("time", "ms", 0)),
        [Row("a", (12.34, None)), Row("b", (float("nan"), 1234.5))],
        published=[Row("a", (50.0, None), "Paper, table 1")],
        paper="because.",
        data="three pictures",
        net="a net",
        seed=7,
        notes=["a note"],
        panels=[Panel("x", "y", {"a": [(1.0, 2.0)]})],
    )
    text = result.markdown()
    for line in ("| a | 12.3 | - |", "| b | - | 1,234 |", "| *Paper, table 1* | | |", "| a | 50.0 | - |", "- a note"):
        assert line in text.splitlines()
    assert "three pictures. a net. 0.0 minutes, seed 7;" in text
    plain = json.loads(json.dumps(result.json(), allow_nan=False))
    assert plain["rows"][0] == {"name": "a", "pixel acc., %": 12.34, "time, ms": None}
    assert plain["rows"][1]["pixel acc., %"] is None
    assert plain["published"][0]["source"] == "Paper, table 1"
    assert plain["panels"][0]["lines"] == {"a": [[1.0, 2.0]]}


def test_a_result_that_cannot_be_written_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/x: cannot be written: Not a directory"):
        Result("x", "Why?", SCORES[:1], []).write(tmp_path / "file" / "x")


# --- Command line -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main(["study", *(str(argument) for argument in arguments)])
    return int(done.value.code or 0)


def test_the_command_alone_lists_the_questions(capfd: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    said = capfd.readouterr().out
    assert all(one.name in said and one.question in said for one in STUDIES.values())


@pytest.mark.parametrize("name", TRAIN)
def test_every_study_explains_itself(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    said = capfd.readouterr().out
    assert f"fullyconv study {name}" in said
    assert STUDIES[name].question in " ".join(said.split())
    assert "Examples:" in said


def test_the_command_writes_what_it_prints(found: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, out = found("masking")  # whose nets are scored again, not trained
    arguments = ("masking", "--weights", "none", "--steps", 3, "--batch", 2, "--device", "cpu", "--out", out)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "nets").glob("*/*/best/model.safetensors")}
    assert len(stamps) == 4
    assert run(*arguments, "--background", "ground, ground", "--json", tmp_path / "m.json") == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    said = capfd.readouterr().out
    assert all(name in said for name in ("FG-only", "84.8", "PAMI 2017, table 8", "mean IU without background"))
    written = json.loads((tmp_path / "m.json").read_text())
    assert written == json.loads((out / "masking.json").read_text())
    assert [row["mean IU, %"] for row in written["rows"]] == [row.values[4] for row in result.rows]
    assert written["settings"]["background"] == ["ground"]
    assert (out / "masking.png").read_bytes().startswith(b"\x89PNG")
    # What is background is in no recipe, and nets that learnt with another are no nets of this experiment.
    assert run(*arguments, "--background", "ground, ball") == 2
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"fullyconv: error: {out / 'nets'}: its nets have learnt with --background ground, got ball,ground; name the "
        "same, or choose another --out"
    )
    assert json.loads((out / "masking.json").read_text()) == written


@pytest.mark.parametrize("rate", ["nan", "inf", "0", "-1"])
def test_a_rate_that_is_none_is_refused_before_anything_learns(
    rate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials, "train_classifier", lambda *_: pytest.fail("it learns"))
    assert run("momentum", "--rate", rate, "--out", tmp_path) == 2
    assert f"--rate: got {rate}; expected a rate above 0" in capfd.readouterr().err


def test_wrong_options_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("strides", "--steps", 1, "--minutes", 1) == 2
    assert capfd.readouterr().err == ("fullyconv: error: --minutes and --steps: got both; a budget is one of them\n")
    assert run("masking", "--data", tmp_path / "none", "--steps", 1) == 2
    assert capfd.readouterr().err.count("\n") == 1
