"""What a net can tell from foreground, background and shape alone (PAMI 2017, table 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fullyconv.checkpoint import read_json
from fullyconv.config import InputConfig
from fullyconv.datasets import Sample, SegmentationDataset, dataset
from fullyconv.errors import ConfigError
from fullyconv.evaluation import evaluate
from fullyconv.events import Event, Said
from fullyconv.lookup import lookup
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN
from fullyconv.presets import fcn
from fullyconv.records import write_json, writing
from fullyconv.studies.altered import Altered
from fullyconv.studies.base import Column, Result, Row
from fullyconv.studies.trials import (
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

Kept = Literal["all", "foreground", "background", "shape"]
"""What is left of a picture."""

SHAPE = 255
"""Every channel of the foreground where nothing but shape is left."""

SOURCE = "PAMI 2017, table 8: VGG16, FCN-32s, PASCAL VOC, mean IU without background"
PUBLISHED = (
    Row("Reference", ("keep / keep", "keep / keep", 84.8, None, None), SOURCE),
    Row("Reference-FG", ("keep / keep", "keep / mask", 81.0, None, None), SOURCE),
    Row("Reference-BG", ("keep / keep", "mask / keep", 19.8, None, None), SOURCE),
    Row("FG-only", ("keep / mask", "keep / mask", 76.1, None, None), SOURCE),
    Row("BG-only", ("mask / keep", "mask / keep", 37.8, None, None), SOURCE),
    Row("Shape", ("mask / mask", "mask / mask", 29.1, None, None), SOURCE),
)
METRIC = (
    "The papers' rows stand where background in the truth does not count. They call it mean IU excluding background; "
    "were such pixels counted, their FCN-32s, of 63.6 over all 21 classes, could not have 84.8."
)
MASKS: Mapping[Kept, str] = {
    "all": "keep / keep",
    "foreground": "keep / mask",
    "background": "mask / keep",
    "shape": "mask / mask",
}
"""What becomes of foreground / background."""


@dataclass(frozen=True)
class Masked(Altered):
    """A data set whose pictures are masked by their own labels; see `SegmentationDataset`.

    Attributes:
        data: the data set; the first of its heads tells foreground from background.
        kept: what is left. "foreground" and "background": their pixels, all others have the colour of the mask;
            "shape": the foreground is white, all else has the colour of the mask. Void is neither, and is masked.
        background: channels of the classes that are background; all others are foreground.
        mask: colour of what is masked, a number for each channel of a picture.

    Example:
        >>> from fullyconv.datasets.scenes import Scenes
        >>> scenes = Scenes(1, size=(64, 64))
        >>> masked = Masked(scenes, "foreground", background=(0,), mask=(124, 116, 104))
        >>> masked[0].image[scenes[0].labels["out"] == 0].max(0).tolist()
        [124, 116, 104]
    """

    kept: Kept
    background: tuple[int, ...]
    mask: tuple[int, ...]

    @property
    def remark(self) -> str:
        return f"of each picture is left: {self.kept}" if self.kept != "all" else ""

    def alter(self, sample: Sample, index: int) -> Sample:
        """Mask a sample."""
        if self.kept == "all":
            return sample
        head, truth = next(iter(sample.labels.items()))
        behind = np.isin(truth, self.background)
        before = ~behind & (truth != self.classes[head].void)
        image = np.empty_like(sample.image)
        image[:] = self.mask
        if self.kept == "shape":
            image[before] = SHAPE
        else:
            left = before if self.kept == "foreground" else behind
            image[left] = sample.image[left]
        return Sample(sample.name, image, sample.labels, sample.notes)


def mask_colour(input: InputConfig) -> tuple[int, ...]:
    """The colour that becomes 0 in a net, RGB 0..255.

    Example:
        >>> from fullyconv.config import INPUTS
        >>> mask_colour(INPUTS["caffe"])
        (123, 117, 104)
    """
    by_channel = dict(zip(input.order, input.mean, strict=True))
    return tuple(round(by_channel[channel]) for channel in "RGB")


def foreground_iu(matrix: ConfusionMatrix, background: Sequence[str]) -> tuple[float | None, float | None]:
    """Mean IU in percent over the classes that are foreground and occur: of foreground pixels alone, and of all pixels.

    In the first, a thing that is called background is missed, but background that is called a thing does not count.

    Example:
        >>> foreground_iu(ConfusionMatrix(["ground", "cat"], [[2, 2], [1, 3]]), ["ground"])
        (75.0, 50.0)
    """
    behind = np.isin(matrix.classes, list(background))
    alone = ConfusionMatrix(matrix.classes, np.where(behind[:, None], 0, matrix.counts))
    there = ~behind & (matrix.pixels > 0)
    if not there.any():
        return None, None
    return 100 * float(alone.iu[there].mean()), 100 * float(matrix.iu[there].mean())


def _agree(folder: Path, background: Sequence[str]) -> None:
    """Write down what is background, or refuse nets that have learnt with another, since their recipes do not say.

    Raises:
        ConfigError: the nets in the folder learnt with another background, or it cannot be written to.
    """
    path, settings = folder / "masking.json", {"background": sorted(background)}
    if path.exists() and (before := read_json(path)) != settings:
        raise ConfigError(
            f"{folder}: its nets have learnt with --background {','.join(before.get('background', ()))}, got "
            f"{','.join(settings['background'])}; name the same, or choose another --out",
            where="background",
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def _quiet(event: Event) -> None: ...


def run(setup: Setup, *, background: Sequence[str] | None = None, on_event: Tell = _quiet) -> Result:
    """Train on pictures of which all, foreground, background or shape is left, and score on such pictures.

    Args:
        setup: data, net and budget.
        background: names of the classes that are background; None: the first class, as in PASCAL VOC.
        on_event: told what happens.

    Raises:
        UnknownName: the data has no class of that name.
        ConfigError: no class is left as foreground, or a folder holds other runs, or runs with another background.
        DatasetError, TrainingError: see `fullyconv.training.train`.
    """
    clock = Clock()
    val = setup.open("val")
    table = next(iter(val.classes.values()))
    behind = [table.names[0]] if background is None else list(dict.fromkeys(background))
    channels = {name: channel for channel, name in enumerate(table.names)}
    behind_channels = tuple(lookup("class", name, channels) for name in behind)
    if len(behind_channels) >= len(table):
        raise ConfigError(
            f"--background {','.join(behind)}: all {len(table)} classes; expected some that are not background",
            where="background",
        )
    mask = mask_colour(setup.known)
    _agree(setup.out / "nets", behind)

    def opener(kept: Kept) -> Any:
        def open_masked(
            name: str, root: str | PathLike[str], *, split: str, inputs: Sequence[str]
        ) -> SegmentationDataset:
            return Masked(dataset(name, root, split=split, inputs=inputs), kept, behind_channels, mask)

        return open_masked

    weights, coarse = setup.starting_weights(on_event), setup.strides(1)[0]
    model = fcn(coarse, setup.net, classes_of(setup), weights=weights, input=setup.known)
    trained: dict[str, Kept] = {
        "Reference": "all",
        "FG-only": "foreground",
        "BG-only": "background",
        "Shape": "shape",
    }
    # Pictures are masked before they are changed, and jittered colours would change the mask's, too.
    steady = {"jitter": 0.0}
    variants = [Variant(name, [Part(f"{coarse}s", model, data=steady)], opener(kept)) for name, kept in trained.items()]
    learnt = {one.name: one for one in learn(setup, variants, on_event)}
    reference = learnt["Reference"].model()
    tests: dict[str, tuple[FCN, Kept, Kept]] = {
        "Reference": (reference, "all", "all"),
        "Reference-FG": (reference, "all", "foreground"),
        "Reference-BG": (reference, "all", "background"),
        **{name: (learnt[name].model(), kept, kept) for name, kept in trained.items() if name != "Reference"},
    }
    rows = []
    # All are scored here, since a run keeps its scores and not the counts that they are made of.
    for name, (net, train, test) in tests.items():
        on_event(Said(f"{name}: scored on pictures of which is left: {test}"))
        matrix = next(iter(evaluate(net, Masked(val, test, behind_channels, mask), device=setup.device).values()))
        rows.append(Row(name, (MASKS[train], MASKS[test], *foreground_iu(matrix, behind), 100 * matrix.mean_iu)))
    return Result(
        study="masking",
        question="Do shapes alone suffice, or things without their surroundings?",
        columns=(
            Column("trained on FG / BG", ""),
            Column("tested on FG / BG", ""),
            Column("mean IU of the foreground's pixels"),
            Column("mean IU without background"),
            Column("mean IU"),
        ),
        rows=rows,
        published=PUBLISHED,
        paper=(
            "hiding the surroundings costs a net that has learnt with them 4 points, and 9 where it is to learn "
            "without as well; surroundings and shape alone tell much, if they are learnt from (PAMI, table 8)."
        ),
        data=setup.described(val),
        net=f"FCN-{coarse}s on {setup.net_described()}",
        minutes=clock.minutes_of(list(learnt.values())),
        seed=setup.seed,
        notes=[
            ordering(
                rows,
                ["Reference-BG", "Shape", "BG-only", "FG-only", "Reference-FG", "Reference"],
                2,
                "what each cue tells depends on the classes, of which the papers' are 20 kinds of things; and the "
                "budget is the same here for each net, far shorter than the papers'",
            ),
            METRIC,
            f"Background: {', '.join(behind)}.",
            "The mask has the colour that becomes 0 in the net. Void pixels have it too.",
            "Where shape alone is left, the foreground is white.",
            "Labels mask the pictures that are scored as well: a row says what a cue holds, not how to find it.",
            learning(learnt["Reference"]),
        ],
        shown="mean IU of the foreground's pixels",
        settings={"background": behind, "mask_rgb": list(mask), **settings_of(learnt["Reference"])},
    )
