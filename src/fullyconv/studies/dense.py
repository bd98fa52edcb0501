"""Three ways from coarse scores to dense ones, and the fourth that the papers took.

A net of stride f gives a score every f pixels. Between them one can interpolate (the papers' deconvolution), run the
net on shifted pictures and interlace (shift-and-stitch), or take strides out and dilate what follows (filter
rarefaction), which gives the same numbers in one pass (CVPR, section 3.2). The papers learn scores from finer maps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fullyconv import backbones, checkpoint
from fullyconv import dense as pixelwise
from fullyconv.config import Recipe
from fullyconv.datasets.base import SegmentationDataset
from fullyconv.devices import device_of, pick_device
from fullyconv.errors import ConfigError
from fullyconv.events import Event, Said
from fullyconv.fitting import check_heads
from fullyconv.geometry import Grid
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN, Head
from fullyconv.presets import fcn
from fullyconv.rarefaction import rarefy
from fullyconv.sampling import View, evenly
from fullyconv.stitching import shift_and_stitch
from fullyconv.studies.base import Column, Result, Row, Value
from fullyconv.studies.timing import in_turns
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
    learning,
    outcome,
    settings_of,
    slug,
)
from fullyconv.tiling import heads_of
from fullyconv.training import train
from fullyconv.upsample import Upsample

DENSER = (2, 4)
"""How many times as many scores, along each axis, are asked of rarefaction and of shift-and-stitch."""

PAPER = (
    "shift-and-stitch is filter rarefaction: denser scores that see as much as before, and nothing finer. Learning "
    "through upsampling was found more effective and efficient, most of all with skips, and shift-and-stitch is not "
    "used (CVPR, sections 3.2 and 3.3). No figures are given."
)


def only_head(model: FCN) -> tuple[str, Head]:
    """The one head of a model, with its name.

    Raises:
        ConfigError: it has several.
    """
    heads = heads_of(model)
    _refuse_several(heads, "the model has the heads")
    return next(iter(heads.items()))


def _refuse_several(heads: Collection[str], what: str) -> None:
    if len(heads) > 1:
        raise ConfigError(
            f"{what} {', '.join(heads)}; expected one, since scores are made denser one map at a time", where="heads"
        )


class Scores(nn.Module):
    """The one score map of a model, from a normalised and framed picture: what is rarefied, and run on shifts.

    Args:
        model: has one head that reads one tap.

    Raises:
        ConfigError: it has more.
    """

    def __init__(self, model: FCN) -> None:
        super().__init__()
        heads = list(heads_of(model).values())
        taps = [skip for head in heads for skip in head.skips]
        if len(taps) != 1 or isinstance(model.backbone, backbones.Streams):
            read = ", ".join(skip.tap for skip in taps)
            raise ConfigError(
                f"the model reads {read}; expected one tap, since scores that are joined from several strides cannot "
                "be had denser by shifts or dilation; train one with fullyconv train --model fcn32s",
                where="model",
            )
        (skip,) = taps
        self.net, self.score, self.scale = model.backbone.net, heads[0].score[skip.tap], skip.scale
        self.index = list(model.backbone.taps).index(skip.tap)

    def forward(self, framed: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, h, w)."""
        scores: Tensor = self.score(self.net(framed)[self.index] * self.scale)
        return scores


@dataclass(frozen=True)
class Way:
    """A way from pictures to labels.

    Attributes:
        name: of its row.
        stride: pixels from score to score.
        passes: runs of the net for one picture.
        model: that frames the picture.
        scores: from the framed picture to the score map.
        pixels: from the score map to the pixels.
    """

    name: str
    stride: int
    passes: int
    model: FCN
    scores: Callable[[Tensor], Tensor]
    pixels: pixelwise.Upsampling

    @torch.no_grad()
    def labels(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in 0..255 -> (B, H, W)."""
        scores = self.scores(self.model.preprocess(image.to(device_of(self.model)))).float()
        return pixelwise.argmax(scores, self.pixels, (image.shape[2], image.shape[3]))


def ways(model: FCN, *, denser: Sequence[int] = DENSER) -> list[Way]:
    """The three ways that need no training, of a model with one tap: deconvolution first.

    Args:
        model: in eval mode.
        denser: factors on the number of scores along an axis, divisors of the tap's stride.

    Raises:
        ConfigError: the model has several heads or reads several taps, or a factor does not divide its stride.
        SurgeryError: the net cannot be rarefied; says where and why.
    """
    _, head = only_head(model)
    stride = int(head.grid.stride)
    # Traced like the rarefied ones, which computes no map that nobody reads: else it would seem to take more memory.
    net = rarefy(Scores(model), stride=stride, channels=model.channels).eval()
    found = [Way("deconvolution", stride, 1, model, net, head.pixels)]
    for factor in denser:
        if stride % factor:
            raise ConfigError(f"denser: got {factor}; expected divisors of the stride {stride}", where="denser")
        fine = stride // factor
        rarefied = rarefy(net, stride=fine, channels=model.channels).eval()
        # The scores that were there stay where they were, the first one first.
        grid = Grid(Fraction(fine), head.grid.offset, head.grid.field)
        pixels = Upsample(grid, Grid(), head.classes)
        stitch = partial(shift_and_stitch, net, stride=fine)
        found.append(Way(f"rarefaction to {fine}", fine, 1, model, rarefied, pixels))
        found.append(Way(f"shift-and-stitch to {fine}", fine, factor * factor, model, stitch, pixels))
    return found


@dataclass(frozen=True)
class Agreement:
    """How far two score maps agree.

    Attributes:
        difference: the largest, as a share of the largest score.
        cells: compared.
        share: of all cells that they are.
    """

    difference: float
    cells: int
    share: float


@torch.no_grad()
def agreement(model: FCN, image: Tensor, *, stride: int) -> Agreement:
    """Compare stitched with rarefied scores, where no padding is seen, in float64.

    A net that pads sees zeros beyond the border of each shifted picture where the rarefied one sees the picture, so
    there the two differ, and should.

    Args:
        model: has one tap; is copied to float64.
        image: (1, C, H, W) in 0..255; repeated until cells in its middle see no border.
        stride: pixels between cells wanted.
    """
    _, head = only_head(model)
    grid, coarse = head.grid, int(head.grid.stride)
    assert isinstance(grid.field, Fraction)
    side = int(grid.field) + 4 * coarse
    rows, columns = (torch.arange(max(side, n)) % n for n in image.shape[2:])
    framed = model.preprocess(image.to(device_of(model))[..., rows, :][..., columns])
    net = copy.deepcopy(Scores(model)).eval()
    rarefied = rarefy(net, stride=stride, channels=model.channels, verify=False).eval().double()
    want, got = rarefied(framed.double()), shift_and_stitch(net.double(), framed.double(), stride=stride)
    inside = []
    front = model.frame(image.shape[2], image.shape[3]).top
    for cells, pixels in zip(got.shape[2:], framed.shape[2:], strict=True):
        first = np.arange(cells) * stride
        low = float(grid.offset) + front + first - float(grid.field - 1) / 2
        inside.append((low >= first % coarse) & (low + float(grid.field - 1) <= pixels - 1))
    down, across = (torch.from_numpy(of) for of in inside)
    a, b = (scores[:, :, down][..., across] for scores in (want[..., : got.shape[2], : got.shape[3]], got))
    count = a.shape[2] * a.shape[3]
    largest = float(a.abs().max()) if count else 0.0
    apart = float((a - b).abs().max()) / largest if largest else float("nan")
    return Agreement(apart, count, count / (got.shape[2] * got.shape[3]))


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that live at a time, but for those that were there before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        for tensor in tree_leaves(returned):
            if not isinstance(tensor, Tensor) or tensor.is_meta:
                continue  # what only shapes are asked of takes no memory
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.before:
                self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        return returned


def peak_bytes(call: Callable[[], object], model: nn.Module) -> int:
    """Most bytes that a call has in tensors at a time, beside a model's weights; without what kernels take inside."""
    device = device_of(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    alive = _Alive(model)
    with alive:
        call()
    return alive.peak


def scored(way: Way, data: SegmentationDataset, head: str) -> ConfusionMatrix:
    """Counts over a data set, labels at native size."""
    classes = data.classes[head]
    matrix = ConfusionMatrix(classes.names)
    for index in range(len(data)):
        sample = data[index]
        labels = way.labels(torch.from_numpy(sample.image).permute(2, 0, 1)[None])
        matrix.update(sample.labels[head], labels[0].cpu().numpy(), classes.void)
    return matrix


def _quiet(event: Event) -> None: ...


def run(
    setup: Setup,
    *,
    model: Path | None = None,
    split: str = "val",
    pictures: int = 100,
    rounds: int = 5,
    on_event: Tell = _quiet,
) -> Result:
    """Cost and score of dense scores, by interpolation, rarefaction, and shift-and-stitch; and of two that learn them.

    Without ``model`` three nets learn with equal budgets: the coarsest one, which the three ways then make denser as it
    is; the same trunk with strides taken out (dilated) before it learns, with one score layer at its end; and one with
    skips at the same stride. None has a context block, so that scores of the first two see equally far.

    Args:
        setup: data, and net and budget.
        model: folder of a trained net that reads one tap; nothing is trained then.
        split: that is scored.
        pictures: of it that are scored, at most.
        rounds: that are timed.
        on_event: told what happens.

    Raises:
        CheckpointError: the folder holds no model.
        ConfigError: the model or the data has several heads, the model reads several taps, or the two do not fit.
        SurgeryError: the net cannot be rarefied.
        DatasetError, ImageError, TrainingError: see `fullyconv.training.train`.
    """
    clock = Clock()
    learnt: dict[str, FCN] = {}
    before: list[str] = []
    runs: list[Learnt] = []
    if model is None:
        _refuse_several(classes_of(setup), "the data has labels for the heads")
        coarse, _, fine = setup.strides(3)
        (net, *rest), runs = _learn(setup, coarse, fine, on_event)
        learnt = dict(zip((f"dilation to {fine}, learnt", f"skips to {fine}, learnt"), rest, strict=True))
        described = f"{coarse}s on {setup.net_described()}"
        opened = setup.open(split)
    else:
        net = checkpoint.load(model)
        only_head(net)
        described, before = Path(model).name, history(model)
        opened = setup.open(split, checkpoint.provenance(model).get("inputs", ["color"]))
        check_heads({n: h.classes for n, h in heads_of(net).items()}, opened.classes, where=f"{model}: heads")
    some = View(opened, evenly(len(opened), pictures), remember=True)
    head, _ = only_head(net)
    place = pick_device(setup.device)
    for one in (net, *learnt.values()):
        one.to(place).to(memory_format=torch.channels_last).eval()
    found = ways(net)
    found += [_whole(name, one) for name, one in learnt.items()]
    first = torch.from_numpy(some[0].image).permute(2, 0, 1)[None]
    calls = [partial(way.labels, first) for way in found]
    on_event(Said(f"timing {rounds} rounds of {len(found)} ways"))
    ms = in_turns(calls, rounds=rounds, device=place)
    rows = []
    for way, call, took in zip(found, calls, ms, strict=True):
        on_event(Said(f"scoring {way.name} on {len(some)} pictures"))
        scores = scored(way, some, head)
        megabytes = peak_bytes(call, way.model) / 1e6
        values: list[Value] = [way.stride, way.passes, took, megabytes]
        rows.append(Row(way.name, [*values, 100 * scores.pixel_accuracy, 100 * scores.mean_iu]))
    finest = min(way.stride for way in found if way.model is net)
    same = agreement(net, first, stride=finest)
    on_event(Said(f"stitched and rarefied scores differ by {same.difference:.1e} of the largest at most"))
    height, width = first.shape[2:]
    equal = (
        f"Stitched equals rarefied: the largest difference is {same.difference:.1e} of the largest score, in float64, "
        f"on the {same.cells:,} scores that see no border ({same.share:.0%}). Where the net pads, a shifted picture "
        "ends in zeros and the rarefied net sees the picture, so that near borders they differ, and should."
    )
    measured = (
        f"Time and memory are of one picture of {height}x{width} in float32, from picture to labels: medians of "
        f"{rounds} rounds in which the ways take turns, on {torch.get_num_threads()} threads, and the tensors that "
        "live at a time beside the weights. "
        "Shift-and-stitch finds out anew for each picture where its cells lie, which takes part of its time."
    )
    notes = [equal, measured, *before]
    if learnt:
        budget = "steps" if setup.minutes is None else "minutes"
        notes.append(
            "The rows without 'learnt' are one net, which learnt at its coarse stride; the dilated net and that with "
            f"skips had as many {budget} each, from the same classifier. A step of the dilated net costs more time."
        )
        notes.append(learning(runs[0]))
    return Result(
        study="dense",
        question="How are dense scores had, and what do they cost?",
        columns=[
            Column("stride", "pixels", 0),
            Column("passes", "", 0),
            Column("time", "ms", 0),
            Column("memory", "MB", 0),
            Column("pixel acc."),
            Column("mean IU"),
        ],
        rows=rows,
        paper=PAPER,
        data=setup.described(some, of=len(opened)),
        net=described,
        minutes=clock.minutes_of(runs),
        seed=setup.seed if model is None else None,
        notes=notes,
        shown="mean IU",
        settings={
            "agreement": {"difference": same.difference, "cells": same.cells, "share": same.share},
            **(settings_of(runs[0]) if runs else {}),
        },
    )


def _whole(name: str, model: FCN) -> Way:
    """The way of a net that has learnt to be dense."""
    head, one = only_head(model)

    def scores(framed: Tensor) -> Tensor:
        return model.scores_of(framed)[head]

    return Way(name, int(one.grid.stride), 1, model, scores, one.pixels)


def _learn(setup: Setup, coarse: int, fine: int, tell: Tell) -> tuple[tuple[FCN, FCN, FCN], list[Learnt]]:
    """The coarse net, the dilated one and that with skips, of equal budgets, and their runs."""
    classes, weights = classes_of(setup), setup.starting_weights(tell)
    minutes = None if setup.minutes is None else setup.minutes * 2 / 3

    def part(stride: int) -> Part:
        return Part(f"{stride}s", fcn(stride, setup.net, classes, weights=weights, input=setup.known, context=0))

    variants = [Variant(f"{coarse}s", [part(coarse)]), Variant(f"{fine}s with skips", [part(fine)])]
    plain, skips = learn(replace(setup, minutes=minutes), variants, tell)
    trunk = rarefy(backbones.backbone(setup.net, weights=weights, input=setup.known).net, stride=fine)
    like = Recipe.read(plain.folder / "recipe.json").stages[0]
    # The module has its weights already.
    dilated = fcn(fine, trunk, classes, weights=None, input=setup.known, context=0)
    stage = like.model_copy(update={"name": "dilated", "model": dilated})
    name = f"{fine}s dilated"
    tell(Said(name))
    recipe = Recipe(name=slug(name), stages=(stage,))
    out = setup.out / "nets" / slug(name)
    model = train(recipe, out=out, resume=True, on_event=tell, check=False, backbone=trunk)
    return (plain.model(), model, skips.model()), [plain, outcome(name, out), skips]
