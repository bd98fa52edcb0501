"""The published rows as recipes: their settings, their scores, and that they run."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fullyconv import datasets
from fullyconv.building import build
from fullyconv.commands.train import train as train_command
from fullyconv.config import Classes, ClassInfo, HeadConfig, Recipe
from fullyconv.datasets import Sample
from fullyconv.errors import ConfigError
from fullyconv.events import Event, Said, Step
from fullyconv.fitting import fit
from fullyconv.flags import adjusted, recipe_of
from fullyconv.recipes import explain
from fullyconv.training import train

FOLDER = Path(__file__).parents[1] / "recipes"
PATHS = sorted(path for path in FOLDER.glob("*.toml") if path.stem != "camvid")
README = {"32s": 63.6, "16s": 65.0, "8s": 65.5, "8s-at-once": 65.4, "32s-alexnet": 48.0}
"""Mean IU on seg11valid, as the authors' release gives it."""
CVPR = {
    "voc-fcn32s-fixed": (83.0, 59.7, 45.4, 72.0),
    "voc-fcn32s": (89.1, 73.3, 59.4, 81.4),
    "voc-fcn16s": (90.0, 75.7, 62.4, 83.0),
    "voc-fcn8s": (90.3, 75.9, 62.7, 83.2),
    "nyud-fcn32s-color": (60.0, 42.2, 29.2, 43.9),
    "nyud-fcn32s-color-depth": (61.5, 42.4, 30.5, 45.5),
    "nyud-fcn32s-hha": (57.1, 35.2, 24.2, 40.4),
    "nyud-fcn32s-color-hha": (64.3, 44.9, 32.8, 48.0),
    "nyud-fcn16s-color-hha": (65.4, 46.1, 34.0, 49.5),
    "siftflow-fcn16s": (85.2, 51.7, 39.5, 76.1),
    "voc-fcn32s-googlenet": (None, None, 42.5, None),
    "context-fcn32s": (63.8, 42.7, 31.8, 48.3),
    "context-fcn16s": (65.7, 46.2, 34.8, 50.7),
    "context-fcn8s": (65.9, 46.5, 35.1, 51.0),
}
"""Pixel accuracy, mean accuracy, mean IU and frequency-weighted IU of the CVPR paper's tables 1, 2 and 4 to 6."""


def read(name: str) -> Recipe:
    return Recipe.read(FOLDER / f"{name}.toml")


def test_there_is_one_for_each_published_row() -> None:
    voc = {f"voc-fcn{row}" for row in ("32s", "16s", "8s", "8s-at-once", "32s-fixed", "32s-alexnet", "32s-googlenet")}
    nyud = {f"nyud-fcn{s}-{kind}" for s in ("32s", "16s") for kind in ("color", "color-depth", "hha", "color-hha")}
    others = {f"{data}-fcn{stride}" for data in ("siftflow", "context") for stride in ("32s", "16s", "8s")}
    assert {path.stem for path in PATHS} == voc | nyud | others
    assert all(read(path.stem).name == path.stem for path in PATHS)


def test_their_scores_are_those_of_the_release_and_of_the_papers_tables() -> None:
    for path in PATHS:
        found = {}
        for entry in read(path.stem).published:
            scores = [entry.pixel_accuracy, entry.mean_accuracy, entry.mean_iu, entry.fw_iu]
            found[(entry.source.split(",")[0], entry.head)] = tuple(s and round(100 * s, 1) for s in scores)
        expected: dict[tuple[str, str], Any] = {}
        head = "semantic" if path.stem.startswith("siftflow") else "out"
        if path.stem in CVPR:
            expected[("Long", head)] = CVPR[path.stem]
        if (row := path.stem.removeprefix("voc-fcn")) in README:
            expected[("fcn.berkeleyvision.org", "out")] = (None, None, README[row], None)
        if path.stem == "siftflow-fcn16s":
            expected[("Long", "geometric")] = (94.3, None, None, None)
        assert found == expected, path.stem
        heads = read(path.stem).stages[-1].model.heads
        assert all(entry.head in heads for entry in read(path.stem).published)


@pytest.mark.parametrize(
    ("data", "rates", "steps"),
    [
        ("voc-fcn8s", [1e-10, 1e-12, 1e-14], 100_000),
        ("voc-fcn8s-at-once", [1e-10], 300_000),
        ("context-fcn8s", [1e-10, 1e-12, 1e-14], 300_000),
        ("siftflow-fcn8s", [1e-10, 1e-12, 1e-12], 300_000),
        ("nyud-fcn32s-color", [1e-10], 300_000),
        ("nyud-fcn32s-color-depth", [1e-10], 300_000),
        ("nyud-fcn32s-hha", [1e-10], 300_000),
    ],
)
def test_rates_and_steps_are_the_releases(data: str, rates: list[float], steps: int) -> None:
    stages = read(data).stages
    assert [stage.fit.lr for stage in stages] == rates
    assert {stage.fit.steps for stage in stages} == {steps}


def test_all_learn_as_was_published() -> None:
    for path in PATHS:
        for stage in read(path.stem).stages:
            fit, data = stage.fit, stage.data
            accumulated = {"voc-fcn32s-alexnet": "image", "voc-fcn32s-googlenet": "mean"}.get(path.stem)
            way = (fit.reduction, fit.momentum, fit.batch, fit.accumulate)
            assert way == ((accumulated, 0.9, 1, 20) if accumulated else ("sum", 0.99, 1, 1)), path.stem
            assert (fit.optimizer, fit.schedule, fit.warmup, fit.ema, fit.weight_decay) == ("sgd", "fixed", 0, 0, 5e-4)
            assert (fit.keep, fit.class_weights, fit.loss) == (1, "none", "cross_entropy")
            assert (data.crop, data.scale, data.mirror, data.jitter, data.shift) == ("whole", (1, 1), False, 0, 0)
            assert stage.model.geometry == "pad100"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_each_is_explained_and_its_nets_can_be_built(path: Path) -> None:
    recipe = Recipe.read(path)
    report = explain(recipe)
    plain = json.loads(json.dumps(report.json()))
    assert [stage["name"] for stage in plain["stages"]] == [stage.name for stage in recipe.stages]
    text = report.text()
    for stage, said in zip(recipe.stages, report.stages, strict=True):
        assert said.stride == 32
        finest = min(min(head.taps.values()) for head in said.heads.values())
        row = re.search(r"(\d+)s", stage.name)
        assert finest == (int(row[1]) if row else 32)
        # SIFT Flow has but one size.
        one_size = stage.data.name == "siftflow"
        assert said.rate.nominal is not one_size
        pixels = 256 * 256 if one_size else 500 * 375
        assert said.rate.per_pixel == pytest.approx(stage.fit.lr * (pixels if stage.fit.reduction == "sum" else 1))
        assert said.learning == ("accumulated" if stage.fit.accumulate == 20 else "heavy")
    assert "biases at 2 times the rate" in text
    assert ("pictures of 256x256" if recipe.stages[0].data.name == "siftflow" else "pictures of 500x375") in text
    for entry in recipe.published:
        assert entry.source in text


def test_explain_says_what_one_step_of_heavy_learning_is_worth() -> None:
    text = explain(read("voc-fcn16s")).text()
    assert "per pixel 1.9e-05 (187,500 pixels a step" in text
    assert "x 100, 0.0019 per pixel" in text
    assert "heavy learning" in text
    assert "starts from the stage before" in text
    assert "mean iu 65.0 %" in text


def test_explain_says_what_does_not_learn() -> None:
    assert "the backbone at 0.3 times, none of it up to stride 2" in explain(read("camvid")).text()
    assert "up to stride" not in explain(read("voc-fcn16s")).text()


# They run ------------------------------------------------------------------------------------------------------------


class Miniature:
    """Three pictures of noise with labels for the heads of a recipe."""

    name, notes = "miniature", ()
    names = ("0", "1", "2")

    def __init__(self, heads: dict[str, HeadConfig], inputs: tuple[str, ...], split: str) -> None:
        self.split = split
        self.inputs = inputs
        self.classes = {
            head: Classes(
                entries=tuple(ClassInfo(id=i, name=f"{head}{i}", colour=(i, i, i)) for i in range(config.classes))
            )
            for head, config in heads.items()
        }

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        random = np.random.default_rng([index, *self.split.encode()])
        depth = self.inputs[-1] == "depth"
        channels = sum({"color": 3, "hha": 3, "depth": 1}[name] for name in self.inputs)
        image = random.integers(0, 256, (40 + 8 * index, 56, channels)).astype(np.float32 if depth else np.uint8)
        labels = {
            head: random.integers(0, len(table), image.shape[:2]).astype(np.uint8)
            for head, table in self.classes.items()
        }
        for truth in labels.values():
            truth[:3] = 255
        return Sample(str(index), image, labels)

    def paths(self, index: int) -> tuple[None, None]:
        return None, None


def shrunk(recipe: Recipe, tiny: dict[str, str]) -> Recipe:
    """A recipe on TinyVGG, of two steps a stage."""
    plain = adjusted(recipe, Path(recipe.name), {"steps": 2, "weights": "none", "device": "cpu", "workers": 0})
    data = plain.model_dump()
    for stage in data["stages"]:
        stage["model"]["backbone"] = "tinyvgg"
        for head in stage["model"]["heads"].values():
            for skip in head["skips"]:
                stream, slash, tap = skip["tap"].rpartition("/")
                skip["tap"] = stream + slash + tiny[tap]
    return Recipe.parse(data)


@pytest.fixture
def miniature(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Opens any data set as pictures of noise, for the heads of a recipe."""

    def open_for(recipe: Recipe) -> None:
        heads = recipe.stages[0].model.heads

        def opened(root: str, *, split: str, seed: int, inputs: tuple[str, ...]) -> Miniature:
            return Miniature(heads, inputs, split)

        for name in ("voc", "sbd", "nyud", "siftflow", "pascal-context"):
            monkeypatch.setitem(datasets.DATASETS, name, opened)  # type: ignore[arg-type]

    return open_for


def tiny_taps() -> dict[str, str]:
    from fullyconv.backbones import describe

    by_stride = {int(tap.grid.stride): name for name, tap in describe("tinyvgg").taps.items()}
    return {"fc7": by_stride[32], "inception_5b": by_stride[32], "pool4": by_stride[16], "pool3": by_stride[8]}


@pytest.mark.parametrize(
    "name",
    [
        *(f"voc-fcn{row}" for row in ("8s", "8s-at-once", "32s-fixed", "32s-alexnet", "32s-googlenet")),
        *("siftflow-fcn8s", "context-fcn8s"),
        *(f"nyud-fcn16s-{kind}" for kind in ("color", "hha", "color-depth", "color-hha")),
    ],
)
def test_each_kind_runs_on_a_small_net(name: str, tmp_path: Path, miniature: Any) -> None:
    recipe = shrunk(read(name), tiny_taps())
    miniature(recipe)
    seen: list[Event] = []
    model = train(recipe, out=tmp_path, on_event=seen.append)
    steps = [event.stage for event in seen if isinstance(event, Step)]
    assert steps == [stage.name for stage in recipe.stages for _ in range(2)]
    said = [event.message for event in seen if isinstance(event, Said) and "tensors from" in event.message]
    froms = [stage.start for stage in recipe.stages[1:] if stage.start != "classifier"]
    assert len(said) == sum(len(start) if isinstance(start, dict) else 1 for start in froms)
    assert set(model.heads) == set(recipe.stages[-1].model.heads)
    results = json.loads((tmp_path / "results.json").read_text())
    own = results.get("heads", {"out": results})
    assert all(entry.head in own for entry in recipe.published)


def test_camvids_is_what_the_command_does_without_it(sound: Path) -> None:
    written = Recipe.read(FOLDER / "camvid.toml").stages[0]
    names = [name for name in inspect.signature(train_command).parameters if name != "context"]
    defaults = {name: inspect.signature(train_command).parameters[name].default for name in names}
    options = {"data": str(sound), "backbone": "squeezenet1_0", "input": "caffe", "weights": written.model.weights}
    made = recipe_of(defaults | options | {"minutes": written.fit.minutes}).stages[0]
    assert made.model == written.model
    assert made.fit == written.fit
    assert made.data.model_copy(update={"root": written.data.root}) == written.data


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 8e9, reason="takes several gigabytes of free memory"
)
def test_a_recipe_takes_a_step_on_its_own_net() -> None:
    given = {"steps": 1, "weights": "none", "device": "cpu", "workers": 0}
    (stage,) = adjusted(read("voc-fcn32s"), FOLDER, given).stages
    data = Miniature(dict(stage.model.heads), stage.data.inputs, "train")
    events = fit(build(stage.model), data, None, stage.fit, data=stage.data)
    (step,) = [event for event in events if isinstance(event, Step)]
    assert step.loss == pytest.approx(np.log(21), rel=1e-4)


# What may be said beside them ----------------------------------------------------------------------------------------


def test_beside_a_recipe_data_weights_and_budget_hold_for_every_stage() -> None:
    given = {"data": "there", "weights": "vgg.pth", "minutes": 2.0, "seed": 7, "device": "cpu", "precision": "bf16"}
    changed = adjusted(read("nyud-fcn16s-color-hha"), Path("r.toml"), given | {"workers": 3})
    for stage in changed.stages:
        assert (stage.data.root, stage.data.name, stage.data.workers) == ("there", "nyud", 3)
        assert (stage.fit.minutes, stage.fit.steps, stage.fit.epochs) == (2.0, None, None)
        assert (stage.fit.seed, stage.fit.device, stage.fit.precision) == (7, "cpu", "bf16")
        weights = {stage.model.weights, *(stream.weights for stream in stage.model.streams.values())}
        assert weights == {"vgg.pth"}
    bare = adjusted(changed, Path("r.toml"), {"weights": "none"})
    assert {s.weights for stage in bare.stages for s in (stage.model, *stage.model.streams.values())} == {None}
    assert bare.stages[0].fit == changed.stages[0].fit


def test_what_a_recipe_settles_is_refused_beside_it() -> None:
    with pytest.raises(ConfigError, match=r"--lr: r\.toml settles this"):
        adjusted(read("voc-fcn32s"), Path("r.toml"), {"lr": 1.0, "steps": 2})


# Whose weights a stage starts from -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"color": "color", "hha": "haa"}, r"no earlier stage for stages\.2\.start\.hha 'haa'; did you mean 'hha'\?"),
        ({"colour": "color", "hha": "hha"}, r"no stream of stages\.2\.start 'colour'; did you mean 'color'\?"),
        ({"color": "color"}, r"stages\.2\.start: no stage for the streams hha; expected one for each"),
        ({"color": "color", "hha": "32s"}, r"no earlier stage for stages\.2\.start\.hha '32s'"),
        ("last", r"stages\.2\.start: Input should be 'previous' or 'classifier', got 'last'"),
    ],
)
def test_a_start_that_is_not_there_is_refused_with_what_is_near(start: Any, said: str) -> None:
    plain = read("nyud-fcn32s-color-hha").model_dump()
    plain["stages"][2]["start"] = start
    with pytest.raises(Exception, match=said):
        Recipe.parse(plain)


def test_streams_can_only_start_where_there_are_some() -> None:
    plain = read("nyud-fcn32s-color-hha").model_dump()
    plain["stages"][1]["start"] = {"color": "color"}
    with pytest.raises(ConfigError, match=r"stages\.1\.start: the model has no streams"):
        Recipe.parse(plain)
    again = plain["stages"][2] | {"name": "again", "start": {"color": "32s", "hha": "hha"}}
    plain["stages"][1]["start"] = "classifier"
    with pytest.raises(ConfigError, match=r"stages\.3\.start\.color: the stage '32s' has streams itself"):
        Recipe.parse(plain | {"stages": [*plain["stages"], again]})
