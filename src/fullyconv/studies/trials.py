"""Nets that learn under equal conditions, so that what differs between them is what is studied.

A study names its variants, each of one stage or several. `learn` gives every variant the same share of the budget, the
same data and the same seed, trains it by `fullyconv.training.train` in a run folder of its own, and scores it once, at
the end, at native size. Val chooses nothing, so that no variant gains by being scored more often.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch

from fullyconv import backbones, checkpoint
from fullyconv.config import INPUTS, DataConfig, FitConfig, InputConfig, ModelConfig, Recipe, Stage
from fullyconv.datasets import SegmentationDataset, dataset
from fullyconv.demo import train_classifier
from fullyconv.errors import ConfigError
from fullyconv.events import Event, Said
from fullyconv.lookup import lookup
from fullyconv.model import FCN
from fullyconv.records import writing
from fullyconv.runs import read_log
from fullyconv.studies.base import Row, Value
from fullyconv.training import train
from fullyconv.weights import write_weights

Tell = Callable[[Event], None]

SCENES = "count=100 size=160x160"
"""What is learnt from, and as many to be scored on, where no data is named."""
STEPS = 100
"""Of each variant, where no budget is given: what suits generated scenes."""
DRAWN = 1200
"""Pictures of single things that the classifier learns from, where no weights are named."""
TRUNK = 0.1
"""Factor on the rate of a backbone that starts from trained weights. At the full rate a coarse net forgets more than it
learns in a few hundred steps: FCN-16s on SqueezeNet 1.0, 250 steps on CamVid, has a mean IU of 31, and of 41 with this.
"""
NEAR = 1.0
"""Points of mean IU, between which one seed does not tell."""
NEVER = 1_000_000_000
UNALTERED: Mapping[str, Any] = {"scale": (1.0, 1.0), "mirror": False, "jitter": 0.0}
"""Settings of `DataConfig` for pictures as they are, which is what the papers learn from."""


@dataclass(frozen=True)
class Setup:
    """What a study that trains is told: the options of its command.

    Attributes:
        data: folder; None: generated scenes.
        dataset: kind of data in the folder.
        backbone: name; None: squeezenet1_0 for a folder, tinyvgg for scenes.
        weights: of the classifier: a file, "default" (the published ones; for tinyvgg, one trained on scenes), or None
            for random ones.
        input: the preprocessing that goes with them, by name; None: the published weights' own.
        minutes: budget of all variants together; of wall clock, so equal only where nothing else runs.
        steps: budget of each variant, in place of a time; `STEPS` where neither is given.
        batch: pictures a step.
        crop: (height, width), "whole", or None: by the pictures.
        seed: of everything that is random.
        device: auto, cpu, cuda or cuda:N.
        out: folder for the runs, below ``nets``.

    Raises:
        ConfigError: both budgets are given, or a kind of data without its folder.
        UnknownName: no backbone or preprocessing of that name.
    """

    data: str | None = None
    dataset: str = "folder"
    backbone: str | None = None
    weights: str | None = "default"
    input: str | None = None
    minutes: float | None = None
    steps: int | None = None
    batch: int = 8
    crop: tuple[int, int] | str | None = None
    seed: int = 0
    device: str = "auto"
    out: Path = Path("runs/study")

    def __post_init__(self) -> None:
        if self.minutes is not None and self.steps is not None:
            raise ConfigError("--minutes and --steps: got both; a budget is one of them", where="steps")
        if self.data is None and self.dataset not in ("folder", "scenes"):
            raise ConfigError(f"--dataset {self.dataset}: where is it? Name its folder with --data", where="data")
        if self.input is not None:
            lookup("input", self.input, INPUTS)
        if not self.net.startswith("timm/"):
            lookup("backbone", self.net, backbones.BACKBONES)

    @property
    def net(self) -> str:
        """Name of the backbone."""
        return self.backbone or ("tinyvgg" if self.data is None else "squeezenet1_0")

    @property
    def source(self) -> tuple[str, str]:
        """Kind and root of the data, as `fullyconv.datasets.dataset` takes them."""
        return ("scenes", SCENES) if self.data is None else (self.dataset, self.data)

    @property
    def known(self) -> InputConfig:
        """What the weights expect of a picture in colour."""
        return backbones.describe(self.net).inputs[0] if self.input is None else INPUTS[self.input]

    def open(self, split: str, inputs: Sequence[str] = ("color",)) -> SegmentationDataset:
        """One split of the data."""
        kind, root = self.source
        return dataset(kind, root, split=split, inputs=inputs)

    def strides(self, count: int) -> list[int]:
        """The coarsest strides at which the backbone has maps, coarse to fine."""
        there = sorted({int(of.grid.stride) for of in backbones.describe(self.net).taps.values()}, reverse=True)
        if len(there) < count:
            raise ConfigError(
                f"--backbone {self.net}: it has maps of {len(there)} strides; expected {count}", where="backbone"
            )
        return there[:count]

    def starting_weights(self, tell: Tell) -> str | None:
        """The weights that every variant starts from; a classifier of generated things is trained where none are named.

        Returns:
            as `ModelConfig.weights`.
        """
        if self.weights != "default" or self.net != "tinyvgg":
            return self.weights
        path = self.out / "nets" / "classifier.safetensors"
        if not path.exists():
            with writing(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
            classifier, accuracy = train_classifier(DRAWN, tell)
            tell(Said(f"classifier: {accuracy:.1%} of 400 pictures of single things right"))
            write_weights(path, classifier.state_dict(), {"made_by": "fullyconv study"})
        return str(path)

    def described(self, scored: SegmentationDataset, *, of: int = 0) -> str:
        """The data in words; ``of`` how many pictures, where not all were scored."""
        height, width = scored[0].image.shape[:2]
        kind, root = self.source
        demonstration = "generated scenes (to see it work; --data and a longer budget give numbers that mean something)"
        name = demonstration if kind == "scenes" else f"{Path(root).resolve().name} ({kind})"
        drawn = f"{len(scored)} of the {of}" if of > len(scored) else f"the {len(scored)}"
        return f"{name}, scored on {drawn} pictures of {scored.split} at native size, the first {width}x{height}"

    def net_described(self) -> str:
        """The net in words, with what it started from."""
        if self.weights is None:
            start = "random weights"
        elif self.weights != "default":
            start = f"the weights of {Path(self.weights).name}"
        else:
            start = "a classifier of single things" if self.net == "tinyvgg" else "the published ImageNet weights"
        return f"{self.net} from {start}"


@dataclass(frozen=True)
class Part:
    """One stage of a variant.

    Attributes:
        name: of the stage.
        model: the net.
        start: as of `Stage`.
        inputs: what a picture is made of.
        fit: settings of `FitConfig` that differ from its defaults.
        data: the same of `DataConfig`; a crop that the user names comes before one named here.
    """

    name: str
    model: ModelConfig
    start: str | Mapping[str, str] = "previous"
    inputs: tuple[str, ...] = ("color",)
    fit: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One of the nets that are compared.

    Attributes:
        name: of its row.
        parts: its stages, in order, which share its budget evenly.
        open_data: opens its data.
        steps: its own factor on a budget in steps, where one step of it is worth several of the others'.
    """

    name: str
    parts: Sequence[Part]
    open_data: Callable[..., SegmentationDataset] = dataset
    steps: float = 1.0


@dataclass(frozen=True)
class Learnt:
    """What became of a variant.

    Attributes:
        name: of the variant.
        folder: its run, which `fullyconv.load` reads.
        recipe: of the run, resolved.
        pictures: that were learnt from.
        scores: of the first head, as `ConfusionMatrix.as_dict` gives them.
        log: (step, seconds of training so far, loss per pixel) after each step of its last stage.
        steps: that all its stages took.
        seconds: that they took, without scoring.
    """

    name: str
    folder: Path
    recipe: Recipe
    pictures: int
    scores: Mapping[str, Any]
    log: Sequence[tuple[int, float, float]]
    steps: int
    seconds: float

    def model(self) -> FCN:
        """The net, in evaluation mode."""
        return checkpoint.load(self.folder)

    def row(self, *more: Value) -> Row:
        """The four scores in percent, the steps, and ``more``."""
        names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu")
        scores = [None if self.scores[name] is None else 100 * self.scores[name] for name in names]
        return Row(self.name, (*scores, self.steps, *more))


def learn(setup: Setup, variants: Sequence[Variant], tell: Tell) -> list[Learnt]:
    """Train and score each variant, in order, with equal shares of the budget.

    A variant whose run is there and done is not trained again, and one that was interrupted goes on.

    Raises:
        ConfigError: a run in the folder is of other settings.
        DatasetError, TrainingError: as `fullyconv.training.train`.
        KeyboardInterrupt: stopped; the state is saved.
    """
    kind, root = setup.source
    done = []
    for number, variant in enumerate(variants):
        stages = []
        parts = len(variant.parts)
        budgets: list[dict[str, Any]] = (
            [{"steps": steps} for steps in dealt(round((setup.steps or STEPS) * variant.steps), parts)]
            if setup.minutes is None
            else [{"minutes": setup.minutes / len(variants) / parts}] * parts
        )
        for part, budget in zip(variant.parts, budgets, strict=True):
            trunk = 1.0 if setup.weights is None else TRUNK
            shared = {"batch": setup.batch, "seed": setup.seed, "device": setup.device, "backbone_lr": trunk}
            once = {"evaluate_every": NEVER, "val_pictures": NEVER}
            crop = part.data.get("crop") if setup.crop is None else setup.crop
            data = {**part.data, "root": root, "name": kind, "inputs": part.inputs, "crop": crop}
            stages.append(
                Stage(
                    name=part.name,
                    start=part.start,  # type: ignore[arg-type]
                    model=part.model,
                    data=DataConfig.parse(data),
                    fit=FitConfig.parse({**shared, **once, **budget, **part.fit}),
                )
            )
        folder = setup.out / "nets" / slug(variant.name)
        tell(Said(f"{variant.name}: {number + 1} of {len(variants)}"))
        recipe = Recipe(name=slug(variant.name), stages=tuple(stages))
        try:
            train(recipe, out=folder, resume=True, on_event=tell, check=number == 0, open_data=variant.open_data)
        except ConfigError as error:
            if "differs from the run's own" not in str(error):
                raise
            raise ConfigError(
                f"{folder}: holds a net that learnt otherwise ({error.where}), of another study or of other options; "
                "name another --out, or remove it",
                where="out",
            ) from None
        done.append(outcome(variant.name, folder))
    return done


def outcome(name: str, folder: Path) -> Learnt:
    """What became of a run that is done."""
    recipe, stages = Recipe.read(folder / "recipe.json"), checkpoint.read_json(folder / "run.json")["stages"]
    pictures = len(stages[recipe.stages[-1].name]["pictures"]["train"])
    results = checkpoint.read_json(folder / "results.json")
    heads = results.get("heads", {"": results})
    # A run that was killed and resumed has some steps twice; the later ones count.
    steps: dict[tuple[str, int], dict[str, Any]] = {
        (event["stage"], event["step"]): event for event in read_log(folder) if event["event"] == "step"
    }
    log, seconds = [], 0.0
    for (stage, step), event in steps.items():
        if stage == recipe.stages[-1].name:
            seconds += event["seconds"]
            log.append((step, seconds, event["loss"]))
    total = sum(event["seconds"] for event in steps.values())
    return Learnt(name, folder, recipe, pictures, next(iter(heads.values())), log, len(steps), total)


def learning(one: Learnt, *, of: str = "all") -> str:
    """How a net learnt, in a sentence or two, for those who would compare it with the papers'.

    Args:
        one: the net.
        of: whom it is said of.
    """
    stage = one.recipe.stages[-1]
    fit, data, starts = stage.fit, stage.data, stage.model.weights is not None
    optimizer = "AdamW" if fit.optimizer == "adamw" else f"sgd with momentum {fit.momentum:g}"
    crop = "whole" if data.crop in (None, "whole") else "crops of {}x{}".format(*data.crop)
    changed = [
        "no size is changed" if data.scale == (1, 1) else f"sizes {data.scale[0]:g} to {data.scale[1]:g}",
        "mirrored" if data.mirror else "not mirrored",
        f"colours jittered by {data.jitter:g}" if data.jitter else "colours as they are",
    ]
    course = f"{fit.schedule}{f' after a rise over {fit.warmup} steps' if fit.warmup else ''}"
    backbone = f", {fit.backbone_lr:g} of it for the backbone, which starts from weights" if starts else ""
    scored = f"the mean of weights, {fit.ema:g}, is scored" if fit.ema else "the last weights are scored"
    threads = torch.get_num_threads()
    return (
        f"How {of} learnt: {one.pictures} pictures of {data.train}, {fit.pictures * fit.accumulate} a step, {crop}, "
        f"{', '.join(changed)}; {optimizer}, rate {fit.lr:.2g} ({course}){backbone}; {scored}; "
        f"{threads} {'thread' if threads == 1 else 'threads'}. The papers: sgd at a fixed rate, whole pictures as they "
        "are."
    )


def history(model: Path) -> list[str]:
    """How somebody's model learnt, for the notes; or that it is not known, where its folder is not that of a run."""
    if not all((model / name).is_file() for name in ("recipe.json", "run.json", "results.json")):
        return ["How this net learnt is not known: its folder is not that of a run."]
    one = outcome(model.name, model)
    fit, weights = one.recipe.stages[-1].fit, one.recipe.stages[0].model.weights
    start = "random weights" if weights is None else f"weights {Path(weights).name}"
    return [
        f"The net had {one.steps:,} steps in {one.seconds / 60:.1f} minutes, seed {fit.seed}, from {start}.",
        learning(one, of="it"),
    ]


def settings_of(one: Learnt) -> dict[str, Any]:
    """The same in full, as plain data."""
    stage = one.recipe.stages[-1].model_dump(mode="json")
    return {"fit": stage["fit"], "data": {**stage["data"], "root": Path(stage["data"]["root"]).name}}


def dealt(steps: int, parts: int) -> list[int]:
    """Steps in so many parts, as even as can be, each of one at least.

    Example:
        >>> dealt(8, 3), dealt(1, 2)
        ([3, 3, 2], [1, 1])
    """
    return [max(1, steps // parts + (number < steps % parts)) for number in range(parts)]


def slug(name: str) -> str:
    """A name that files and recipes may have.

    Example:
        >>> slug("8s at once, scaled")
        '8s-at-once-scaled'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")


def classes_of(setup: Setup) -> dict[str, int]:
    """How many classes each head of the data has."""
    return {head: len(table) for head, table in setup.open("train").classes.items()}


def ordering(rows: Sequence[Row], names: Sequence[str], at: int, why: str, *, papers: Sequence[str] = ()) -> str:
    """Whether rows come in the order that the papers have, in a sentence or two.

    Args:
        rows: those measured.
        names: of rows, from the lowest to the highest that the papers have.
        at: which value is compared, in %.
        why: what may be the reason where the order is another.
        papers: what the papers call them, where that is something else.

    Example:
        >>> ordering([Row("32s", [60.0]), Row("16s", [58.0])], ["32s", "16s"], 0, "the budget is short")
        'The papers have 32s < 16s; here it is 16s (58.0) < 32s (60.0): the budget is short.'
    """
    values = {row.name: row.values[at] for row in rows}
    found = [(name, value) for name in names if isinstance(value := values[name], int | float) and math.isfinite(value)]
    broken = any(low - high > NEAR for (_, low), (_, high) in combinations(found, 2))
    if broken:
        found.sort(key=lambda one: one[1])
    told = [f"{name} ({value:.1f})" for name, value in found]
    near = [
        f"{low} and {high}"
        for (low, high), ((_, a), (_, b)) in zip(pairwise(told), pairwise(found), strict=True)
        if abs(b - a) <= NEAR
    ]
    said = " < ".join(papers or names)
    alike = f"Within a point of each other, of which one seed says nothing: {'; '.join(near)}."
    if broken:
        return f"The papers have {said}; here it is {' < '.join(told)}: {why}.{f' {alike}' if near else ''}"
    if missing := [name for name in names if name not in dict(found)]:
        return f"Whether the papers' order appears, {said}, cannot be told: {', '.join(missing)} without a score."
    if not near:
        return f"The papers' order appears: {said}."
    if len(near) == len(found) - 1:
        return f"Whether the papers' order appears, {said}, cannot be told. {alike}"
    return f"The papers' order appears: {said}, as far as it can be told. {alike}"


def smooth(points: Sequence[tuple[float, float]], span: int) -> list[tuple[float, float]]:
    """The running mean of y over ``span`` points, at most 200 points of it.

    Example:
        >>> smooth([(1, 2.0), (2, 4.0), (3, 6.0)], 2)
        [(1, 2.0), (2, 3.0), (3, 5.0)]
    """
    means: list[tuple[float, float]] = []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, i - span + 1) : i + 1]]
        means.append((x, sum(window) / len(window)))
    every = max(1, -(-len(means) // 200))
    return means[::-1][::every][::-1]


@dataclass
class Clock:
    """Minutes since it was made."""

    started: float = field(default_factory=time.monotonic)

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    def minutes_of(self, learnt: Sequence[Learnt]) -> float:
        """Minutes since it was made; where nets had learnt before, those at least for which they learnt."""
        return max(self.minutes, sum(one.seconds for one in learnt) / 60)
