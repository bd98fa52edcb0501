"""What each skip brings: coarse to fine, staged and at once, and each map alone (CVPR, table 2; PAMI, section 4.3)."""

from __future__ import annotations

from dataclasses import replace

import torch

from fullyconv import backbones
from fullyconv.building import build
from fullyconv.config import ModelConfig
from fullyconv.datasets import SegmentationDataset
from fullyconv.events import Event
from fullyconv.presets import fcn, single_tap
from fullyconv.sampling import INITIAL, evenly, mix
from fullyconv.studies.base import SCORES, Column, Result, Row
from fullyconv.studies.trials import (
    NEAR,
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
)

CVPR = "CVPR 2015, table 2: VGG16, 736 pictures of VOC2011 val"
RELEASE = "the authors' release, README: VGG16, heavy learning, the same 736 pictures"
PUBLISHED = (
    Row("32s-fixed", (83.0, 59.7, 45.4, 72.0, None), CVPR),
    Row("32s", (89.1, 73.3, 59.4, 81.4, None), CVPR),
    Row("16s", (90.0, 75.7, 62.4, 83.0, None), CVPR),
    Row("8s", (90.3, 75.9, 62.7, 83.2, None), CVPR),
    Row("32s", (None, None, 63.6, None, None), RELEASE),
    Row("16s", (None, None, 65.0, None, None), RELEASE),
    Row("8s", (None, None, 65.5, None, None), RELEASE),
    Row("8s at once, scaled", (None, None, 65.4, None, None), RELEASE),
)
PAPER = (
    "each skip helps, and less each time; 8s learnt at once with scaled maps does as well as in stages; tuning the "
    "classifier alone reaches 70 % of what the whole net does (CVPR, sections 4.2 and 4.3; PAMI, section 4.3)."
)


def published(coarse: int) -> tuple[Row, ...]:
    """The papers' rows; where the coarsest stride is another than 32, under names that are not taken for ours.

    Example:
        >>> [row.name for row in published(32)[:2]], [row.name for row in published(16)[:2]]
        (['32s-fixed', '32s'], ['VGG16 32s-fixed', 'VGG16 32s'])
    """
    return PUBLISHED if coarse == 32 else tuple(replace(row, name=f"VGG16 {row.name}") for row in PUBLISHED)


MEASURED = 8
"""Pictures on which the numbers in maps are measured."""


@torch.inference_mode()
def levelled(config: ModelConfig, pictures: SegmentationDataset, seed: int) -> ModelConfig:
    """A net all of whose maps are scaled to the mean absolute value of its coarsest map (PAMI, section 4.3).

    The papers' 1e-2 and 1e-4 do this to VGG16's maps and to no other's.

    Args:
        config: of one skip or more, with the weights that it will learn from.
        pictures: some of them, at even distances, are looked at.
        seed: of weights that are random, as training draws them from it.

    Returns:
        the same with the scales of its skips, of two digits.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(mix(seed, INITIAL))
        model = build(config).eval()
    sizes: dict[str, float] = {}
    for index in evenly(len(pictures), MEASURED):
        image = torch.from_numpy(pictures[index].image).permute(2, 0, 1)[None]
        for tap, found in model.backbone(model.preprocess(image)).items():
            sizes[tap] = sizes.get(tap, 0.0) + float(found.abs().mean())
    heads = {}
    for name, head in config.heads.items():
        level = sizes[head.skips[0].tap]
        # A map of nothing but zeros has no scale.
        scales = [float(f"{level / sizes[skip.tap]:.1e}") if level and sizes[skip.tap] else 1.0 for skip in head.skips]
        skips = [skip.model_copy(update={"scale": scale}) for skip, scale in zip(head.skips, scales, strict=True)]
        heads[name] = head.model_copy(update={"skips": tuple(skips)})
    return config.model_copy(update={"heads": heads})


def at_once(staged: float, scaled: float) -> str:
    """Whether a net that learns at once, with scaled maps, is as good as in stages, in a sentence; mean IUs in %.

    Example:
        >>> at_once(61.7, 59.8)
        'PAMI has a net learnt at once, scaled, as good as in stages; here it is 1.9 points below (59.8, 61.7).'
    """
    apart = abs(scaled - staged)
    here = "within a point" if apart <= NEAR else f"{apart:.1f} points {'below' if scaled < staged else 'above'}"
    return (
        f"PAMI has a net learnt at once, scaled, as good as in stages; here it is {here} ({scaled:.1f}, {staged:.1f})."
    )


def _quiet(event: Event) -> None: ...


def run(setup: Setup, *, on_event: Tell = _quiet) -> Result:
    """Train the ways to one net of stride 8, and to those on the way, with equal budgets.

    The three coarsest strides of the backbone stand for the papers' 32, 16 and 8.

    Raises:
        ConfigError: the backbone has fewer than three strides, or a folder holds other runs.
        DatasetError, TrainingError: see `fullyconv.training.train`.
    """
    clock = Clock()
    coarse, middle, fine = setup.strides(3)
    classes, weights = classes_of(setup), setup.starting_weights(on_event)
    deepest = {int(of.grid.stride): tap for tap, of in backbones.describe(setup.net).taps.items()}

    def net(stride: int, name: str = "", **fit: float) -> Part:
        model = fcn(stride, setup.net, classes, weights=weights, input=setup.known)
        return Part(name or f"{stride}s", model, fit=fit)

    every = net(fine)
    scaled = replace(every, model=levelled(every.model, setup.open("train"), setup.seed))
    scales = [skip.scale for skip in next(iter(scaled.model.heads.values())).skips]

    def alone(stride: int) -> Variant:
        model = single_tap(deepest[stride], setup.net, classes, weights=weights, input=setup.known)
        return Variant(f"stride {stride} alone", [Part("alone", model)])

    names = [f"{coarse}s-fixed", f"{coarse}s", f"{middle}s", f"{fine}s"]
    variants = [
        Variant(names[0], [net(coarse, "fixed", backbone_lr=0.0)]),
        Variant(names[1], [net(coarse)]),
        Variant(names[2], [net(coarse), net(middle)]),
        Variant(names[3], [net(coarse), net(middle), net(fine)]),
        Variant(f"{fine}s at once", [every]),
        Variant(f"{fine}s at once, scaled", [scaled]),
        alone(middle),
        alone(fine),
    ]
    learnt = learn(setup, variants, on_event)
    rows = [one.row() for one in learnt]
    ious = {row.name: float(row.values[2] or 0) for row in rows}
    shared = (
        f"In stages, each of {middle}s and {fine}s has an equal part of the budget for itself and for those before, "
        "and each stage begins at the full rate, where the papers' begin at a hundredth of it."
    )
    level = (
        f"Scaled: maps times {', '.join(f'{scale:g}' for scale in scales)}, which brings the mean of their absolute "
        f"values on {MEASURED} pictures of train to that of the coarsest; VGG16's, for the papers, 1, 0.01, 0.0001."
    )
    notes = [
        ordering(
            rows,
            names,
            2,
            "every way has the same budget here, so stages share what 32s has for itself; the papers gave each stage "
            "days",
            papers=["32s-fixed", "32s", "16s", "8s"],
        ),
        shared,
        at_once(ious[f"{fine}s"], ious[f"{fine}s at once, scaled"]),
        level,
        learning(learnt[1]),
        f"In {names[0]} the backbone learns nothing.",
    ]
    if coarse != 32:
        notes.insert(
            0,
            f"The coarsest map of {setup.net} has stride {coarse}, so {coarse}s, {middle}s and {fine}s stand for the "
            "papers' 32s, 16s and 8s.",
        )
    if any(skip.context for head in variants[0].parts[0].model.heads.values() for skip in head.skips):
        notes.append(
            f"{setup.net} has no fc6 and fc7: a block of two convolutions before the coarsest score stands for "
            f"them. It learns in {names[0]} too, where the papers tune the score layer only."
        )
    return Result(
        study="strides",
        question="What does each skip bring, alone, staged and at once?",
        columns=(*SCORES, Column("steps", "", 0)),
        rows=rows,
        published=published(coarse),
        paper=PAPER,
        data=setup.described(setup.open("val")),
        net=setup.net_described(),
        minutes=clock.minutes_of(learnt),
        seed=setup.seed,
        notes=notes,
        shown="mean IU",
        settings={"scales": scales, **settings_of(learnt[1])},
    )
