"""How much does each skip decide? What changes when its scores are left out, by class and by distance from a boundary.

The papers show that skips refine; this shows where. A net with skips is run whole and once without the scores of each
skip in turn, and the labels are compared, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fullyconv import checkpoint, dense
from fullyconv.config import Classes
from fullyconv.datasets.base import SegmentationDataset
from fullyconv.devices import device_of, pick_device
from fullyconv.events import Event, Said
from fullyconv.fitting import check_heads
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN, Head
from fullyconv.presets import PRESETS, finest
from fullyconv.studies.base import Column, Panel, Result, Row, Value
from fullyconv.studies.trials import (
    Clock,
    Learnt,
    Part,
    Setup,
    Tell,
    Variant,
    classes_of,
    history,
    learn,
    settings_of,
)
from fullyconv.tiling import heads_of

BANDS = (0, 2, 4, 8, 16, 32)
"""Where bands of distance from a boundary begin, in pixels; the last has no end."""
NEUTRAL = {"sum": 0.0, "mean": 0.0, "max": -1e30}
"""Scores that change nothing where skips are joined, by kind of fusion."""


def band_names() -> tuple[str, ...]:
    """The bands as people read them: ``0-2``, ..., ``>32``, in pixels."""
    ends = (f"{low}-{high}" for low, high in pairwise(BANDS))
    return (*ends, f">{BANDS[-1]}")


def bands(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    """(H, W) number of the band that each pixel lies in, by its distance from the nearest label boundary.

    A pixel with another label above, below, left or right of it, void among them, lies on the boundary, at distance 0;
    of others it is the Euclidean distance to the nearest of these. Each band holds its lower end. Without a boundary
    all lies in the last.

    Example:
        >>> bands(np.array([[1, 1, 1, 1, 1, 2, 2]])).tolist()
        [[2, 1, 1, 0, 0, 0, 0]]
    """
    from scipy.ndimage import distance_transform_edt

    on_boundary = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        differs = np.diff(labels.astype(np.int64), axis=axis) != 0
        before, after = [[slice(None)] * 2, [slice(None)] * 2]
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        on_boundary[tuple(before)] |= differs
        on_boundary[tuple(after)] |= differs
    if not on_boundary.any():
        return np.full(labels.shape, len(BANDS) - 1, np.intp)
    numbers: npt.NDArray[np.intp] = np.digitize(distance_transform_edt(~on_boundary), BANDS) - 1
    return numbers


def scores_without(head: Head, maps: Mapping[str, Tensor], tap: str) -> Tensor:
    """The head's score map with the scores of one skip left out; of its only skip, all scores are equal.

    Args:
        head: in eval mode.
        maps: what the backbone gives.
        tap: that the skip reads.
    """
    neutral = NEUTRAL[head.fusion]
    handle = head.score[tap].register_forward_hook(lambda _module, _inputs, scores: torch.full_like(scores, neutral))
    try:
        return head.score_map(maps)
    finally:
        handle.remove()


@dataclass(frozen=True)
class Contribution:
    """What a skip decides, over a whole set of pictures.

    Attributes:
        tap: that the skip reads.
        stride: of its map, in pixels.
        changed: (bands, K) int64 counted pixels of each true class whose label changes without the skip.
        whole: what the net predicts, a table of counts for each band.
        without: the same without the skip's scores.
    """

    tap: str
    stride: int
    changed: npt.NDArray[np.int64]
    whole: tuple[ConfusionMatrix, ...]
    without: tuple[ConfusionMatrix, ...]

    def share(self, band: int | None = None, index: int | None = None) -> float:
        """Pixels whose label changes among all counted ones, 0..1; of a band, of a true class, or of both.

        nan where there is no such pixel.
        """
        some = slice(None) if band is None else [band]
        pixels = np.stack([matrix.pixels for matrix in self.whole])[some]
        changed = self.changed[some]
        if index is not None:
            pixels, changed = pixels[:, index], changed[:, index]
        return float(changed.sum() / pixels.sum()) if pixels.sum() else float("nan")

    def gained(self, band: int | None = None, index: int | None = None) -> float:
        """Mean IU with the skip less that without it; of a band, of a class (its IU), or of both. -1..1."""
        with_it, without = (
            sum(tables[1:], tables[0]) if band is None else tables[band] for tables in (self.whole, self.without)
        )
        if index is None:
            return with_it.mean_iu - without.mean_iu
        return float(with_it.iu[index] - without.iu[index])


@torch.inference_mode()
def contributions(
    model: FCN,
    data: SegmentationDataset,
    *,
    head: str = "out",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Contribution]:
    """Leave out each skip of a head in turn, on every picture of a data set.

    Args:
        model: in eval mode.
        data: has labels for the head.
        head: by name.
        on_progress: called after every picture with the pictures done and their number.

    Returns:
        one for each skip, coarse to fine.

    Example:
        >>> from fullyconv import build, dataset, presets
        >>> data = dataset("scenes", "count=1 size=64x64")
        >>> model = build(presets.fcn8s("tinyvgg", classes=len(data.classes["out"]), weights=None)).eval()
        >>> [(one.stride, one.share()) for one in contributions(model, data)]  # scores start at zero
        [(32, 0.0), (16, 0.0), (8, 0.0)]
    """
    one = heads_of(model)[head]
    classes: Classes = data.classes[head]
    device, size = device_of(model), len(classes)
    taps = [skip.tap for skip in one.skips]

    def tables() -> tuple[ConfusionMatrix, ...]:
        return tuple(ConfusionMatrix(classes.names) for _ in BANDS)

    whole, without = tables(), {tap: tables() for tap in taps}
    changed = {tap: np.zeros((len(BANDS), size), np.int64) for tap in taps}
    for done in range(len(data)):
        sample = data[done]
        truth = sample.labels[head]
        image = torch.from_numpy(sample.image).permute(2, 0, 1)[None].to(device)
        maps = model.backbone(model.preprocess(image))

        def labels_of(scores: Tensor, shape: tuple[int, int]) -> npt.NDArray[np.integer]:
            return dense.argmax(scores, one.pixels, shape)[0].cpu().numpy()

        shape = (truth.shape[0], truth.shape[1])
        predicted = labels_of(one.score_map(maps), shape)
        band = bands(truth)
        counted = truth != classes.void
        truths = [np.where(band == number, truth, classes.void) for number in range(len(BANDS))]
        for number, of_band in enumerate(truths):
            whole[number].update(of_band, predicted, classes.void)
        for tap in taps:
            other = labels_of(scores_without(one, maps, tap), shape)
            differs = counted & (other != predicted)
            cells = band[differs] * size + truth[differs].astype(np.intp)
            changed[tap] += np.bincount(cells, minlength=changed[tap].size).reshape(changed[tap].shape)
            for number, of_band in enumerate(truths):
                without[tap][number].update(of_band, other, classes.void)
        on_progress(done + 1, len(data))
    grids = model.backbone.taps
    return [Contribution(tap, int(grids[tap].grid.stride), changed[tap], whole, without[tap]) for tap in taps]


def names_of(found: Sequence[Contribution]) -> list[str]:
    """What skips are called: by stride; by tap where several have one stride, as those of several streams."""
    strides = [one.stride for one in found]
    return [f"stride {one.stride}" if strides.count(one.stride) == 1 else one.tap for one in found]


def _quiet(event: Event) -> None: ...


def run(
    setup: Setup,
    *,
    model: Path | None = None,
    split: str = "val",
    on_event: Tell = _quiet,
) -> Result:
    """What each skip of a net decides on a split of the data: of all pixels, by distance from a boundary, by class.

    Args:
        setup: data, and the net and budget where one is trained.
        model: folder of a trained net; None: the finest one that ``setup`` allows is trained.
        split: that is looked at.
        on_event: told what happens.

    Raises:
        CheckpointError: the folder holds no model.
        ConfigError: the model's heads do not fit the data.
        DatasetError, ImageError, TrainingError: see `fullyconv.training.train`.
    """
    clock = Clock()
    runs: list[Learnt] = []
    if model is None:
        name = finest(setup.net)
        config = PRESETS[name](
            setup.net, classes_of(setup), weights=setup.starting_weights(on_event), input=setup.known
        )
        runs = learn(setup, [Variant(name, [Part(name, config)])], on_event)
        net, described = runs[0].model(), f"{name} on {setup.net_described()}"
        pictures = setup.open(split)
    else:
        net = checkpoint.load(model)
        described = f"{Path(model).name}, {net.config.backbone}" if net.config is not None else Path(model).name
        pictures = setup.open(split, checkpoint.provenance(model).get("inputs", ["color"]))
        heads = {name: head.classes for name, head in heads_of(net).items()}
        check_heads(heads, pictures.classes, where=f"{model}: heads")
    head = next(iter(heads_of(net)))

    def tell(done: int, total: int) -> None:
        if done % max(1, total // 10) == 0:
            on_event(Said(f"looked at {done} of {total} pictures"))

    found = contributions(net.to(pick_device(setup.device)).eval(), pictures, head=head, on_progress=tell)
    names = pictures.classes[head].names

    def row(name: str, band: int | None = None, index: int | None = None) -> Row:
        values: list[Value] = []
        for one in found:
            values += [100 * one.share(band, index), 100 * one.gained(band, index)]
        return Row(name, values)

    rows = [
        row("all pixels"),
        *(row(f"{name} pixels from a boundary", band=band) for band, name in enumerate(band_names())),
        *(row(name, index=index) for index, name in enumerate(names)),
    ]
    skips = names_of(found)
    columns = [
        column for skip in skips for column in (Column(f"{skip}: changed"), Column(f"{skip}: IU gained", "points"))
    ]
    # Each band is drawn at the middle of its octave, the first at 1 and the last where it begins.
    middles = [low * 1.5 if low else 1.0 for low in BANDS[:-1]] + [BANDS[-1] * 1.0]

    def panel(what: str, value: Callable[[Contribution, int], float]) -> Panel:
        lines = {}
        for skip, one in zip(skips, found, strict=True):
            points = [(x, 100 * value(one, band)) for band, x in enumerate(middles)]
            lines[skip] = [(x, y) for x, y in points if y == y]
        return Panel(
            "distance from a label boundary, pixels; the last point: all beyond", what, lines, logarithmic=True
        )

    panels = [
        panel("labels changed without the skip, %", Contribution.share),
        panel("mean IU gained by the skip, points", Contribution.gained),
    ]
    return Result(
        study="contributions",
        question="How much does each skip decide?",
        columns=columns,
        rows=rows,
        paper="finer layers see fewer pixels and let the net make local predictions that respect global structure; the "
        "gains grow smaller with each skip (CVPR, section 4.2). What each skip changes is not given.",
        data=setup.described(pictures),
        net=described,
        minutes=clock.minutes_of(runs),
        seed=setup.seed if model is None else None,
        notes=[
            *history(runs[0].folder if model is None else model),
            "Changed: pixels whose label is another when the scores of this skip alone are left out.",
            "IU gained: what the net scores less what it scores then; the mean over classes, or the class's own.",
            "The shares of several skips do not add up, since one pixel may need two of them.",
            "A boundary is where a pixel has another label above, below, left or right of it, void among them.",
        ],
        panels=panels,
        settings=settings_of(runs[0]) if runs else {},
    )
