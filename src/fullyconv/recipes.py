"""What a recipe asks for, stage by stage, and what its numbers come to: as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fullyconv.building import build
from fullyconv.config import FitConfig, ModelConfig, Published, Recipe, Stage
from fullyconv.errors import ConfigError, FullyConvError
from fullyconv.model import FCN
from fullyconv.rates import PICTURE, Rate, learning

SIZES = {"siftflow": (256, 256)}
"""(height, width) of all pictures, in data sets that have but one size."""


@dataclass(frozen=True)
class HeadReport:
    """One output of a stage's net: its classes, the taps it reads with the strides of their maps, and how."""

    classes: int
    taps: dict[str, int]
    """Pixels from one cell to the next, by tap, coarse to fine."""
    scales: tuple[float, ...]
    fusion: str
    upsampling: str
    last_upsampling: str


@dataclass(frozen=True)
class RateReport:
    """How far a step of a stage moves its weights (`fullyconv.rates`).

    Attributes:
        lr: as it is given.
        per_pixel: the rate of a mean over pixels that makes steps as long; None with adamw, which does not feel how
            large a loss is.
        factor: steps that each gradient is worth in the long run; None with adamw.
        long_run: their product.
        pixels: of one step.
        picture: (height, width) of the pictures that these pixels are of.
        nominal: whether that is no setting but the size that stands for pictures of unknown size.
        biases: factor on the rate of biases.
        backbone: factor on the rate of the backbone.
        frozen: stride up to which its layers have no rate; 0: none.
    """

    lr: float
    per_pixel: float | None
    factor: float | None
    long_run: float | None
    pixels: int
    picture: tuple[int, int]
    nominal: bool
    biases: float
    backbone: float
    frozen: int


@dataclass(frozen=True)
class StageReport:
    """One stage, with what follows from its settings."""

    name: str
    start: str | dict[str, str]
    backbone: str
    weights: dict[str, str | None]
    """Of the classifier, by stream ("" where there is one)."""
    geometry: str
    stride: int
    heads: dict[str, HeadReport]
    data: dict[str, Any]
    budget: dict[str, float]
    batch: int
    accumulate: int
    pictures: int
    """At a time, as patch sampling enlarges the batch."""
    learning: str | None
    """What the papers call this batch and momentum: accumulated, online or heavy."""
    optimizer: str
    momentum: float
    loss: str
    reduction: str
    rate: RateReport
    weight_decay: float
    schedule: str
    warmup: int
    keep: float
    class_weights: str


@dataclass(frozen=True)
class RecipeReport:
    """Everything `explain` finds in a recipe."""

    name: str
    stages: tuple[StageReport, ...]
    published: tuple[Published, ...]

    def json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "stages": [asdict(stage) for stage in self.stages],
            "published": [entry.model_dump(mode="json") for entry in self.published],
        }

    def text(self) -> str:
        """For reading in a terminal."""
        lines = [f"{self.name}: {len(self.stages)} stage{'s' if len(self.stages) > 1 else ''}"]
        for stage in self.stages:
            said_of = _lines(stage)
            width = max(12, *(len(name) + 1 for name, _ in said_of))
            lines += ["", stage.name, *(f"  {name:<{width}}{said}" for name, said in said_of)]
        if self.published:
            lines += ["", "published"]
            for entry in self.published:
                scores = entry.model_dump(exclude={"source", "head"}, exclude_none=True)
                said = ", ".join(f"{name.replace('_', ' ')} {100 * score:.1f}" for name, score in scores.items())
                lines.append(f"  {said} %, head {entry.head}: {entry.source}")
        return "\n".join(lines)


def explain(recipe: Recipe) -> RecipeReport:
    """What a recipe asks for; its nets are built without memory for their weights.

    Raises:
        ConfigError, UnknownName, SurgeryError, AlignmentError: a net cannot be built.

    Example:
        >>> from fullyconv.presets import fcn16s
        >>> fit = {"steps": 9, "batch": 1, "optimizer": "sgd", "momentum": 0.99, "reduction": "sum", "lr": 1e-10}
        >>> stage = {"name": "16s", "model": fcn16s("tinyvgg", 21), "data": {"root": "", "crop": "whole"}, "fit": fit}
        >>> report = explain(Recipe.parse({"stages": [stage]}))
        >>> report.stages[0].learning, f"{report.stages[0].rate.per_pixel:.2g}"
        ('heavy', '1.9e-05')
    """
    stages = tuple(_stage(stage, first=index == 0) for index, stage in enumerate(recipe.stages))
    return RecipeReport(recipe.name, stages, recipe.published)


def _stage(stage: Stage, *, first: bool) -> StageReport:
    model, fit = stage.model, stage.fit
    try:
        with torch.device("meta"):
            net = build(model, weights=False)
    except FullyConvError as error:
        raise ConfigError(f"stage '{stage.name}': {error}", where="stages") from None
    budget = {name: getattr(fit, name) for name in ("epochs", "steps", "minutes")}
    return StageReport(
        name=stage.name,
        start="classifier" if first and stage.start == "previous" else stage.start,
        backbone=model.backbone,
        weights={name: one.weights for name, one in model.streams.items()} or {"": model.weights},
        geometry=model.geometry,
        stride=net.stride,
        heads=_heads(model, net),
        data=stage.data.model_dump(mode="json"),
        budget={name: value for name, value in budget.items() if value is not None},
        batch=fit.batch,
        accumulate=fit.accumulate,
        pictures=fit.pictures,
        learning=learning(momentum=fit.momentum, pictures=fit.batch * fit.accumulate)
        if fit.optimizer == "sgd"
        else None,
        optimizer=fit.optimizer,
        momentum=fit.momentum,
        loss=fit.loss,
        reduction=fit.reduction,
        rate=_rate(fit, stage.data.crop if isinstance(stage.data.crop, tuple) else SIZES.get(stage.data.name)),
        weight_decay=fit.weight_decay,
        schedule=fit.schedule,
        warmup=fit.warmup,
        keep=fit.keep,
        class_weights=fit.class_weights,
    )


def _heads(model: ModelConfig, net: FCN) -> dict[str, HeadReport]:
    return {
        name: HeadReport(
            classes=head.classes,
            taps={skip.tap: int(net.backbone.taps[skip.tap].grid.stride) for skip in head.skips},
            scales=tuple(skip.scale for skip in head.skips),
            fusion=head.fusion,
            upsampling=head.upsampling,
            last_upsampling=head.last_upsampling,
        )
        for name, head in model.heads.items()
    }


def _rate(fit: FitConfig, size: tuple[int, int] | None) -> RateReport:
    picture = size or PICTURE
    # Of an enlarged batch as many pixels count as of the batch that is enlarged.
    pixels = fit.batch * fit.accumulate * picture[0] * picture[1]
    rate = Rate(fit.lr, fit.reduction, momentum=fit.momentum, pixels=pixels)
    felt = fit.optimizer == "sgd"
    return RateReport(
        lr=fit.lr,
        per_pixel=rate.per_pixel if felt else None,
        factor=rate.factor if felt else None,
        long_run=rate.long_run if felt else None,
        pixels=pixels,
        picture=picture,
        nominal=size is None,
        biases=2.0 if felt else 1.0,
        backbone=fit.backbone_lr,
        frozen=fit.freeze,
    )


def _lines(stage: StageReport) -> list[tuple[str, str]]:
    """Name and value of each line of a stage."""
    start = stage.start
    if isinstance(start, dict):
        start = ", ".join(f"{stream} of stage {name}" for stream, name in start.items())
    elif start == "classifier":
        given = [f"{stream}: {weights}" if stream else f"{weights}" for stream, weights in stage.weights.items()]
        start = f"the classifier's weights ({', '.join(given)})"
    else:
        start = "the stage before"
    streams = "" if "" in stage.weights else f" for each of {', '.join(stage.weights)}"
    lines = [
        ("starts from", start),
        ("net", f"{stage.backbone}{streams}, stride {stage.stride}, geometry {stage.geometry}"),
    ]
    for name, head in stage.heads.items():
        taps = [
            f"{tap} ({stride}{'' if scale == 1 else f', x {scale:g}'})"
            for (tap, stride), scale in zip(head.taps.items(), head.scales, strict=True)
        ]
        lines.append((f"head {name}", f"{head.classes} classes from {', '.join(taps)}, fusion {head.fusion}"))
    data, rate = stage.data, stage.rate
    crop = f"crops of {rate.picture[0]}x{rate.picture[1]}" if isinstance(data["crop"], list) else data["crop"]
    lines += [
        ("data", f"{data['name']} in {data['root']}, {' + '.join(data['inputs'])}, {crop or 'crops by the pictures'}"),
        ("budget", ", ".join(f"{value:,g} {name}" for name, value in stage.budget.items())),
        (
            "batch",
            f"{stage.batch} x {stage.accumulate} accumulated, momentum {stage.momentum:g}"
            + (f" ({stage.learning} learning)" if stage.learning else ""),
        ),
        ("loss", f"{stage.loss}, reduction {stage.reduction}, class weights {stage.class_weights}"),
        ("rate", f"{rate.lr:g} of {stage.optimizer}, schedule {stage.schedule}, warm-up {stage.warmup} steps"),
    ]
    frozen = f", none of it up to stride {rate.frozen}" if rate.frozen else ""
    backbone = f"the backbone at {rate.backbone:g} times{frozen}"
    if rate.per_pixel is not None:
        of = f"{rate.pixels:,} pixels a step, pictures of {rate.picture[1]}x{rate.picture[0]}"
        nominal = " taken for granted" if rate.nominal else ""
        lines += [
            ("", f"per pixel {rate.per_pixel:.2g} ({of}{nominal})"),
            ("", f"in the long run x {rate.factor:.4g}, {rate.long_run:.2g} per pixel"),
            ("", f"biases at {rate.biases:g} times the rate, {backbone}"),
        ]
    else:
        lines.append(("", f"per weight, however large the loss; {backbone}"))
    lines.append(("decay", f"{stage.weight_decay:g} of weights, 0 of biases"))
    sampled = f", {stage.pictures} pictures at a time in place of {stage.batch}" if stage.keep < 1 else ""
    lines.append(("keep", f"{stage.keep:g} of the cells{sampled}"))
    return lines
