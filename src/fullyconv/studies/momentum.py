"""Batch and momentum: accumulated, online and heavy learning (PAMI 2017, section 4.2)."""

from __future__ import annotations

import math

from fullyconv.errors import ConfigError
from fullyconv.events import Event
from fullyconv.presets import fcn
from fullyconv.rates import PICTURE
from fullyconv.studies.base import SCORES, Column, Panel, Result, Row
from fullyconv.studies.trials import (
    NEAR,
    STEPS,
    UNALTERED,
    Clock,
    Part,
    Setup,
    Tell,
    Variant,
    classes_of,
    learn,
    learning,
    ordering,
    settings_of,
    smooth,
)

WAYS = {"accumulated": (20, 0.9), "online": (1, 0.9), "heavy": (1, 0.99)}
"""Pictures whose gradients are summed for a step, and momentum."""
RATE = 1e-10 * PICTURE[0] * PICTURE[1]
"""The release's rate as that of a mean over the pixels of one picture, for weights that take 0..255 minus the mean."""
SHORT = "A momentum of 0.99 remembers about 100 steps, which is much of a short budget."
LONG = 1000
"""Pictures, of which those 100 are a tenth."""
SPAN = 200
"""Pictures over which the drawn loss is averaged."""
PUBLISHED = (
    Row(
        "accumulated",
        (89.1, 73.3, 59.4, 81.4, None, None),
        "CVPR 2015, table 2: FCN-32s on VGG16, 20 pictures a step, momentum 0.9; 736 pictures of VOC2011 val",
    ),
    Row(
        "heavy",
        (None, None, 63.6, None, None, None),
        "the authors' release, README: FCN-32s, one picture a step, momentum 0.99; the same 736 pictures",
    ),
)


def _quiet(event: Event) -> None: ...


def rate_of(setup: Setup) -> float:
    """The rate, of a mean over the pixels of one picture, where none is given.

    The release's; and where pictures are divided by a spread before the net, as many times it, since gradients by the
    weights of the first layer are that much smaller.
    """
    return RATE * sum(setup.known.std) / len(setup.known.std)


def run(setup: Setup, *, rate: float | None = None, on_event: Tell = _quiet) -> Result:
    """Train one net in three ways that move as far for each picture, but for what momentum repeats.

    Args:
        setup: data, net and budget; a budget in steps is one in pictures, ``batch`` for each of them, or as many as
            make whole steps in all three ways.
        rate: learning rate of a mean over the pixels of one picture; None: `rate_of`.
        on_event: told what happens.

    Raises:
        ConfigError: the rate moves nothing or too far, or a folder holds other runs.
        DatasetError, TrainingError: see `fullyconv.training.train`.
    """
    clock = Clock()
    if rate is not None and not 0 < rate < math.inf:
        raise ConfigError(f"--rate: got {rate:g}; expected a rate above 0", where="rate")
    chosen = rate_of(setup) if rate is None else rate
    coarse, weights = setup.strides(1)[0], setup.starting_weights(on_event)
    # Without the context block and its BatchNorm, which would see one picture or another number of them.
    model = fcn(coarse, setup.net, classes_of(setup), weights=weights, input=setup.known, context=0)
    fixed = {
        "backbone_lr": 1.0,
        "batch": 1,
        "optimizer": "sgd",
        "schedule": "fixed",
        "warmup": 0,
        "ema": 0.0,
        "weight_decay": 5e-4 / (PICTURE[0] * PICTURE[1]),
    }
    # Equally many pictures in all three ways, 20 at least.
    steps, most = setup.steps or STEPS, max(pictures for pictures, _ in WAYS.values())
    seen = most * max(1, round(steps * setup.batch / most))
    variants = [
        Variant(
            name,
            # A mean over so many pictures at so many times the rate is the papers' sum over their pixels.
            [
                Part(
                    f"{coarse}s",
                    model,
                    fit={**fixed, "accumulate": pictures, "momentum": momentum, "lr": chosen * pictures},
                    data={**UNALTERED, "crop": "whole"},
                )
            ],
            steps=seen / pictures / steps,
        )
        for name, (pictures, momentum) in WAYS.items()
    ]
    learnt = learn(setup, variants, on_event)
    pictures = {name: count for name, (count, _) in WAYS.items()}
    rows = [one.row(one.steps * pictures[one.name]) for one in learnt]
    ious = {row.name: float(row.values[2] or 0) for row in rows}
    best = max(rows, key=lambda row: ious[row.name])
    apart = "by less than a point" if ious[best.name] - ious["heavy"] <= NEAR else "and not heavy"
    most = max(one.steps * pictures[one.name] for one in learnt)
    highest = f"The highest here is {best.name} ({ious[best.name]:.1f}), {apart}.{f' {SHORT}' if most < LONG else ''}"
    curves = {
        one.name: smooth(
            [(step * pictures[one.name], loss) for step, _, loss in one.log], max(1, SPAN // pictures[one.name])
        )
        for one in learnt
    }
    ends = {name: points[-1][1] for name, points in curves.items()}
    return Result(
        study="momentum",
        question="What do batch and momentum change: accumulated, online, heavy?",
        columns=(*SCORES, Column("steps", "", 0), Column("pictures", "", 0)),
        rows=rows,
        published=PUBLISHED,
        paper=(
            "of equally many pictures, one a step does better than 20 of which gradients are summed, and with a "
            'momentum of 0.99, "heavy learning", better still (PAMI, section 4.2, whose own table compares the three; '
            "its numbers are not shown, since no stored text of it was at hand to check them). The published rows are "
            "no controlled pair: those nets also learnt for different times."
        ),
        data=setup.described(setup.open("val")),
        net=f"FCN-{coarse}s on {setup.net_described()}",
        minutes=clock.minutes_of(learnt),
        seed=setup.seed,
        notes=[
            ordering(
                rows,
                list(WAYS),
                2,
                "a budget this short has few steps of 20 pictures, and few times the 100 steps that 0.99 remembers; "
                "another --rate may turn it",
            ),
            *([highest] if best.name != "heavy" else []),
            f"The loss over the last {SPAN} pictures is {', '.join(f'{loss:.3f} ({n})' for n, loss in ends.items())}.",
            f"The rate is {chosen:.2g} for the mean over the pixels of each picture in all three ways.",
            f"In the long run each picture is worth {', '.join(f'{1 / (1 - m):.0f}' for _, m in WAYS.values())} steps.",
            f"All have {'equal times' if setup.minutes is not None else 'equally many pictures'}.",
            "No context block stands before the scores.",
            learning(learnt[-1], of="the nets of heavy learning"),
        ],
        shown="mean IU",
        panels=[Panel("pictures", "loss per pixel", curves)],
        settings={"rate": chosen, **settings_of(learnt[-1])},
    )
