"""Where depth joins colour: in the first layer, in a net of its own, or in the scores (CVPR 2015, table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.config import InputConfig
from fullyconv.datasets import Sample, SegmentationDataset, dataset
from fullyconv.datasets.inputs import CHANNELS, check_inputs
from fullyconv.events import Event
from fullyconv.presets import fcn, late_fusion
from fullyconv.sampling import evenly
from fullyconv.studies.altered import Altered
from fullyconv.studies.base import SCORES, Column, Result, Row
from fullyconv.studies.trials import Clock, Part, Setup, Tell, Variant, learn, learning, ordering, settings_of

SPREAD = 58.0
"""Of the colours of a picture, 0..255."""
MEASURED = 50
"""Pictures whose depth is measured for the preprocessing."""
SOURCE = "CVPR 2015, table 4: FCN-32s on VGG16, NYUDv2, 654 test pictures"
NAMES = {
    "colour": ("color",),
    "colour and depth, early": ("color", "depth"),
    "HHA": ("hha",),
    "colour and HHA, late": ("color", "hha"),
}
"""The four nets, and what their pictures are made of."""
PUBLISHED = tuple(
    Row(name, (*scores, None), SOURCE)
    for name, scores in zip(
        NAMES,
        (
            (60.0, 42.2, 29.2, 43.9),
            (61.5, 42.4, 30.5, 45.5),
            (57.1, 35.2, 24.2, 40.4),
            (64.3, 44.9, 32.8, 48.0),
        ),
        strict=True,
    )
)


@dataclass(frozen=True)
class Relief(Altered):
    """Generated scenes with depth and HHA drawn from their labels, so that the study runs where no camera was.

    Each kind of thing stands up from the ground by a height of its own, with noise on all pixels. It shows that the
    nets work, not which is best: no camera measured anything.

    Attributes:
        data: scenes.
        inputs: what a picture is made of.
    """

    inputs: tuple[str, ...]

    @property
    def remark(self) -> str:
        return "their depth is drawn from the labels"

    def alter(self, sample: Sample, index: int) -> Sample:
        """Give scene ``index`` its channels."""
        labels = sample.labels["out"]
        heights = 40.0 + 12.0 * np.where(labels == self.classes["out"].void, 0, labels)
        heights += np.random.default_rng(index).normal(0, 20.0, labels.shape)
        depth = 400.0 - heights
        down, across = np.gradient(heights)
        steep = 90.0 - np.degrees(np.arctan(np.hypot(down, across) / 8.0))
        layers: dict[str, npt.NDArray[Any]] = {
            "color": sample.image,
            "depth": np.log(depth)[..., None].astype(np.float32),
            "hha": np.stack([5e4 / depth, heights, steep], axis=2).clip(0, 255).astype(np.uint8),
        }
        return Sample(sample.name, np.concatenate([layers[name] for name in self.inputs], axis=2), sample.labels)


def open_relief(
    name: str, root: str | PathLike[str], *, split: str = "train", inputs: Sequence[str] = ("color",)
) -> Relief:
    """Open generated scenes with drawn depth, as `fullyconv.datasets.dataset` opens others.

    Example:
        >>> open_relief("scenes", "count=1 size=32x48", inputs=("color", "hha"))[0].image.shape
        (32, 48, 6)
    """
    check_inputs(inputs, CHANNELS, where=name)
    return Relief(dataset(name, root, split=split), tuple(inputs))


def measured(known: InputConfig, pictures: SegmentationDataset, *, keep: int) -> InputConfig:
    """A preprocessing for all channels of some pictures.

    Args:
        known: of colour.
        pictures: the first of them are measured.
        keep: the first channels, for which ``known`` holds. The others keep their order, their mean becomes 0, and
            their spread what that of colours is.
    """
    channels = pictures[0].image.shape[2]
    pixels = np.concatenate(
        [pictures[i].image[..., keep:].reshape(-1, channels - keep) for i in evenly(len(pictures), MEASURED)]
    ).astype(np.float64)
    spread = np.maximum(pixels.std(0), 1e-3) * (sum(known.std) / len(known.std)) / SPREAD
    return InputConfig(
        order=known.order if keep else "RGB",
        mean=(*known.mean[:keep], *pixels.mean(0).round(4).tolist()),
        std=(*known.std[:keep], *spread.round(6).tolist()),
    )


def _quiet(event: Event) -> None: ...


def run(setup: Setup, *, on_event: Tell = _quiet) -> Result:
    """Train nets on colour, colour with depth, HHA, and colour and HHA in two streams, with equal budgets.

    Raises:
        ConfigError: a folder holds other runs.
        DatasetError: the data has no depth, or no HHA; or see `fullyconv.training.train`.
        TrainingError: see there.
    """
    clock = Clock()
    kind, root = setup.source
    open_data = open_relief if kind == "scenes" else dataset
    train = {inputs: open_data(kind, root, split="train", inputs=inputs) for inputs in NAMES.values()}
    val = open_data(kind, root, split="val")
    classes = {head: len(table) for head, table in val.classes.items()}
    coarse, weights = setup.strides(1)[0], setup.starting_weights(on_event)
    inputs = {
        ("color",): setup.known,
        ("color", "depth"): measured(setup.known, train["color", "depth"], keep=3),
        ("hha",): measured(setup.known, train[("hha",)], keep=0),
    }

    def net(name: str, *made_of: str) -> Part:
        model = fcn(coarse, setup.net, classes, weights=weights, input=inputs[made_of])
        return Part(name, model, start="classifier", inputs=made_of)

    both = late_fusion(
        {"color": inputs[("color",)], "hha": inputs[("hha",)]}, setup.net, classes, stride=coarse, weights=weights
    )
    joined = Part("joined", both, start={"color": "color", "hha": "hha"}, inputs=("color", "hha"))
    parts = ([net("color", "color")], [net("early", "color", "depth")], [net("hha", "hha")])
    late = [net("color", "color"), net("hha", "hha"), joined]
    variants = [Variant(name, part, open_data) for name, part in zip(NAMES, (*parts, late), strict=True)]
    learnt = learn(setup, variants, on_event)
    rows = [one.row() for one in learnt]
    notes = [
        ordering(
            rows,
            ["HHA", "colour", "colour and depth, early", "colour and HHA, late"],
            2,
            "budgets are equal and short here, so late fusion has a third for each stream and one for both",
        ),
        "All nets start from the weights of a classifier of colours; depth gets the mean of its first filters.",
        learning(learnt[0]),
    ]
    if kind == "scenes":
        notes.append(
            "Generated scenes have no camera: depth and HHA are drawn from the labels, with noise. This run shows that "
            "the four nets work; which is best on rooms, only rooms can tell (--data NYUD --dataset nyud)."
        )
    return Result(
        study="fusion",
        question="Where should depth join colour: early, late, or in its own channels?",
        columns=(*SCORES, Column("steps", "", 0)),
        rows=rows,
        published=PUBLISHED,
        paper=(
            "depth as a fourth channel helps little, HHA alone does worse than colour, and joining the scores of "
            "both (summed in the paper's text, averaged in the release) does best (CVPR, table 4)."
        ),
        data=setup.described(val),
        net=f"FCN-{coarse}s on {setup.net_described()}",
        minutes=clock.minutes_of(learnt),
        seed=setup.seed,
        notes=notes,
        shown="mean IU",
        settings=settings_of(learnt[0]),
    )
