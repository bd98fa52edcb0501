"""Whole pictures against sampled patches: the loss over iterations and over time (CVPR 2015, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence

from fullyconv.events import Event
from fullyconv.presets import fcn
from fullyconv.studies.base import SCORES, Column, Panel, Result, Row
from fullyconv.studies.trials import NEAR, Clock, Part, Setup, Tell, Variant, classes_of, learn, smooth

KEEP = {"whole pictures": 1.0, "half of the cells": 0.5, "a quarter of the cells": 0.25}
"""Chance with which a cell of the final layer counts; batches are enlarged by its inverse."""
SPAN = 20
"""Steps over which the drawn loss is averaged."""


def against(rows: Sequence[Row], *, timed: bool) -> str:
    """Whether patches do better than whole pictures here, which they do not in the paper, in a sentence.

    Args:
        rows: whole pictures first, then those that were sampled; the third value of each is its mean IU in %.
        timed: whether all had equal times, and not equally many steps.

    Example:
        >>> against([Row("whole", [0, 0, 60.0]), Row("half", [0, 0, 60.5])], timed=True)
        'As in the paper, sampling brings nothing: in equal times none is above whole (60.0) by more than a point.'
    """
    (whole, at), *others = [(row.name, float(row.values[2] or 0)) for row in rows]
    budget = "equal times" if timed else "equally many steps"
    above = [f"{name} ({value:.1f})" for name, value in others if value > at + NEAR]
    if not above:
        apart = "by more than a point"
        return f"As in the paper, sampling brings nothing: in {budget} none is above {whole} ({at:.1f}) {apart}."
    more = (
        ""
        if timed
        else ", since more pictures a step teach more while the loss still falls fast; each step takes longer"
    )
    return (
        f"Against the paper, {' and '.join(above)} end above {whole} ({at:.1f}) in {budget}: the budget is short{more}."
    )


def _quiet(event: Event) -> None: ...


def run(setup: Setup, *, on_event: Tell = _quiet) -> Result:
    """Train one net on all cells, on half and on a quarter of them, the batch enlarged to as many cells.

    Raises:
        ConfigError: a folder holds other runs.
        DatasetError, TrainingError: see `fullyconv.training.train`.
    """
    clock = Clock()
    coarse, weights = setup.strides(1)[0], setup.starting_weights(on_event)
    model = fcn(coarse, setup.net, classes_of(setup), weights=weights, input=setup.known)
    variants = [Variant(name, [Part(f"{coarse}s", model, fit={"keep": keep})]) for name, keep in KEEP.items()]
    learnt = learn(setup, variants, on_event)
    rows = [
        one.row(round(setup.batch / keep), one.seconds / 60, 1000 * one.seconds / one.steps)
        for one, keep in zip(learnt, KEEP.values(), strict=True)
    ]
    by_step = {one.name: smooth([(step, loss) for step, _, loss in one.log], SPAN) for one in learnt}
    by_time = {one.name: smooth([(seconds, loss) for _, seconds, loss in one.log], SPAN) for one in learnt}
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
            "sampling patches does not make a net converge in fewer iterations, and takes more time, since more "
            "pictures are looked at for each of them (CVPR, section 4.3)."
        ),
        data=setup.described(setup.open("val")),
        net=f"FCN-{coarse}s on {setup.net_described()}",
        minutes=clock.minutes_of(learnt),
        seed=setup.seed,
        notes=[
            *setup.notes,
            against(rows, timed=setup.minutes is not None),
            f"All have {'equal times' if setup.minutes is not None else 'equally many steps'}.",
            "The batch is enlarged by the inverse of the share of cells, so that as many cells count in each step.",
            f"The loss is that of the cells that count, per pixel, averaged over {SPAN} steps.",
            "The papers give curves for this question, no numbers.",
        ],
        panels=[
            Panel("iterations", "loss per pixel", by_step),
            Panel("time, s", "loss per pixel", by_time),
        ],
    )
