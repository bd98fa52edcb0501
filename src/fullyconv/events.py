"""What training tells while it runs. Plain data, no torch: a display, a log and a web page can all read it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """One step of the optimizer was taken.

    Attributes:
        stage: name of the stage.
        step: steps taken so far, from 1.
        steps_total: steps in all; None when the budget is a time.
        epoch: how often each picture has been seen, a fraction.
        loss: cross-entropy (or what the recipe says) per pixel that is not void, whatever the reduction; the weighted
            sum over heads.
        lr: learning rate of the heads' weights in this step.
        images_per_s: pictures learnt from a second, over the last steps, without scoring.
        progress: share of the budget that is spent, 0..1.
        seconds_left: estimate, scoring included.
        seconds: how long the step took.
        seconds_waiting: of these, until its pictures were there; the rest is computing.
    """

    stage: str
    step: int
    steps_total: int | None
    epoch: float
    loss: float
    lr: float
    images_per_s: float
    progress: float
    seconds_left: float
    seconds: float = 0.0
    seconds_waiting: float = 0.0


@dataclass(frozen=True)
class Evaluated:
    """The model was scored on val.

    Attributes:
        scores: for each head what `ConfusionMatrix.as_dict` gives.
        mean_iu: mean over heads, 0..1, by which the best is chosen; nan when no pixel of val counts.
        best: no earlier scoring was better.
        pictures: how many were scored.
        seconds: how long it took.
    """

    stage: str
    step: int
    scores: dict[str, dict[str, Any]]
    mean_iu: float
    best: bool
    pictures: int
    seconds: float


@dataclass(frozen=True)
class Saved:
    """A folder was written whole: a model (best, last) or what is needed to go on (resume)."""

    stage: str
    step: int
    path: Path


@dataclass(frozen=True)
class Alarm:
    """Something is probably wrong.

    Attributes:
        kind: "collapsed" (one class everywhere), "diverged" (training stops), "start" (a bad first loss), "recipe"
            (settings that cannot work), "uninitialised" (weights that nothing set), "unscored" (val has no labels).
        message: what was found and what to do, one line.
    """

    stage: str
    step: int
    kind: str
    message: str


@dataclass(frozen=True)
class Said:
    """A note: a choice that was made for the user, with its reason."""

    message: str


Event = Step | Evaluated | Saved | Alarm | Said


def as_json(event: Event) -> dict[str, Any]:
    """The event as plain data, its kind under "event"; numbers that JSON lacks become None.

    Example:
        >>> as_json(Said("crop 256x320"))
        {'event': 'said', 'message': 'crop 256x320'}
    """
    values = {f.name: getattr(event, f.name) for f in fields(event)}
    return {"event": type(event).__name__.lower()} | {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value
