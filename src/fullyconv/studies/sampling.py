"""Whole pictures against sampled patches: the loss over iterations and over time (CVPR 2015, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fullyconv.events import Event
from fullyconv.presets import fcn
from fullyconv.studies.base import SCORES, Column, Panel, Result, Row
from fullyconv.studies.trials import (
    NEAR,
    UNALTERED,
    Clock,
    Part,
    Setup,
    Tell,
    Variant,
    classes_of,
    learn,
    learning,
    settings_of,
    smooth,
)

KEEP = {"whole pictures": 1.0, "half of the cells": 0.5, "a quarter of the cells": 0.25}
"""Chance with which a cell of the final layer counts; batches are enlarged by its inverse."""
SPAN = 20
"""Steps over which the drawn loss is averaged."""


def against(rows: Sequence[Row], *, timed: bool) -> str:
    """Whether nets of patches end higher than those of whole pictures, which they do not in the paper, in a sentence.

    Args:
        rows: whole pictures first, then those that were sampled; the third value of each is its mean IU in %.
        timed: whether all had equal times, and not equally many steps.

    Example:
        >>> against([Row("whole", [0, 0, 60.0]), Row("half", [0, 0, 60.5])], timed=True)
        'In equal times no sampled net ends above whole (60.0) by more than a point, as in the paper.'
    """
    (whole, at), *others = [(row.name, float(row.values[2] or 0)) for row in rows]
    budget = "equal times" if timed else "equally many steps"
    above = [f"{name} ({value:.1f})" for name, value in others if value > at + NEAR]
    if not above:
        return f"In {budget} no sampled net ends above {whole} ({at:.1f}) by more than a point, as in the paper."
    why = "" if timed else " A step of them looks at more pictures, and takes longer."
    return f"Against the paper, {' and '.join(above)} end above {whole} ({at:.1f}) in {budget}.{why}"


def loss_at(points: Sequence[tuple[float, float]], end: float) -> float:
    """The loss of a net up to a place on its curve: the mean over the last fifth of the way there.

    Args:
        points: (place, loss), in order; places are steps or seconds.
        end: a place, at or after the first.

    Example:
        >>> loss_at([(1, 9.0), (2, 3.0), (9, 2.0), (10, 4.0), (11, 7.0)], 10)
        3.0
    """
    there = [(x, y) for x, y in points if x <= end] or list(points[:1])
    late = [y for x, y in there if x > 0.8 * end] or [there[-1][1]]
    return sum(late) / len(late)


def beside(curves: Mapping[str, Sequence[tuple[float, float]]], unit: str) -> str:
    """The losses of all nets where the first of them to stop has stopped, in a sentence.

    Args:
        curves: (place, loss) of each net, by name, whole pictures first.
        unit: of places, "iterations" or "seconds".

    Example:
        >>> beside({"whole": [(1, 1.0), (2, 0.75)], "half": [(1, 0.5)]}, "iterations")
        'After 1 iterations, which all have, the loss is 1.000 (whole), 0.500 (half: 50 % less).'
    """
    end = min(points[-1][0] for points in curves.values())
    (first, at), *others = [(name, loss_at(points, end)) for name, points in curves.items()]
    told = [
        f"{value:.3f} ({name}: {abs(1 - value / at):.0%} {'less' if value <= at else 'more'})".replace("%", " %")
        for name, value in others
    ]
    return f"After {end:,.0f} {unit}, which all have, the loss is {', '.join([f'{at:.3f} ({first})', *told])}."


def _quiet(event: Event) -> None: ...


def run(setup: Setup, *, on_event: Tell = _quiet) -> Result:
    """Train one net on all cells, on half and on a quarter of them, the batch enlarged to as many cells.

    At a fixed rate, so that equal iterations are equal whatever the budget, on whole pictures as they are.

    Raises:
        ConfigError: a folder holds other runs.
        DatasetError, TrainingError: see `fullyconv.training.train`.
    """
    clock = Clock()
    coarse, weights = setup.strides(1)[0], setup.starting_weights(on_event)
    model = fcn(coarse, setup.net, classes_of(setup), weights=weights, input=setup.known)
    fixed = {"schedule": "fixed", "warmup": 0, "ema": 0.0}
    pictures = {**UNALTERED, "crop": "whole"}
    variants = [
        Variant(name, [Part(f"{coarse}s", model, fit={**fixed, "keep": keep}, data=pictures)])
        for name, keep in KEEP.items()
    ]
    learnt = learn(setup, variants, on_event)
    rows = [
        one.row(round(setup.batch / keep), one.seconds / 60, 1000 * one.seconds / one.steps)
        for one, keep in zip(learnt, KEEP.values(), strict=True)
    ]

    def curves(at: Callable[[int, float], float]) -> dict[str, list[tuple[float, float]]]:
        return {one.name: [(at(step, seconds), loss) for step, seconds, loss in one.log] for one in learnt}

    by_step, by_time = curves(lambda step, _: step), curves(lambda _, seconds: seconds)
    return Result(
        study="sampling",
        question="Are whole pictures as good as sampled patches?",
        columns=(
            *SCORES,
            Column("steps", "", 0),
            Column("pictures a step", "", 0),
            Column("learning", "minutes"),
            Column("a step", "ms", 0),
        ),
        rows=rows,
        paper=(
            "sampling has no significant effect on how fast a net converges by iterations, and takes more time, since "
            "more pictures are looked at for each of them (CVPR, section 4.3)."
        ),
        data=setup.described(setup.open("val")),
        net=f"FCN-{coarse}s on {setup.net_described()}",
        minutes=clock.minutes_of(learnt),
        seed=setup.seed,
        notes=[
            beside(by_step, "iterations"),
            beside(by_time, "seconds"),
            against(rows, timed=setup.minutes is not None),
            f"All have {'equal times' if setup.minutes is not None else 'equally many steps'}.",
            learning(learnt[0]),
            "The batch is enlarged by the inverse of the share of cells, so that as many cells count in each step.",
            f"The loss is that of the cells that count, per pixel, averaged over {SPAN} steps.",
            "The papers give curves for this question, no numbers.",
        ],
        panels=[
            Panel(across, "loss per pixel", {name: smooth(points, SPAN) for name, points in lines.items()})
            for across, lines in (("iterations", by_step), ("time, s", by_time))
        ],
        settings=settings_of(learnt[0]),
    )
