"""The loop: `fit` trains a model and tells what happens, as a generator of events.

The loop calls nobody back: whoever iterates decides what to do with the events (`fullyconv.events`). Closing the
generator ends training; what is needed to go on is saved first.

All that is random is computed from the seed and a position: the order of pictures and their transforms from how many
pictures came before, dropout from the number of the step. So a run goes on bit for bit from any step that was saved,
with any number of workers. Only a budget in minutes cannot repeat: its schedule follows the clock.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from fullyconv import alarms, checkpoint
from fullyconv.checking import Counts
from fullyconv.checking import check as check_data
from fullyconv.config import Classes, DataConfig, FitConfig, MultiScale
from fullyconv.datasets import Sample, SegmentationDataset
from fullyconv.devices import deterministic, out_of_memory
from fullyconv.errors import CheckpointError, ConfigError, DatasetError, FullyConvError, ImageError, TrainingError
from fullyconv.evaluation import evaluate
from fullyconv.events import Alarm, Evaluated, Event, Said, Saved, Step
from fullyconv.geometry import Grid
from fullyconv.inference import choose
from fullyconv.learner import Learner, heads_of
from fullyconv.losses import sample_patches
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN
from fullyconv.optim import class_weights, rate
from fullyconv.reading import Reader, default_workers, may_be_lost, most_workers
from fullyconv.sampling import DROPOUT, Samples, Transform, View, choose_crop, evenly, mix, sizes
from fullyconv.transforms import Tensors, TrainTransform

SCORINGS, STEPS_APART = 20, 50
"""How often a run is scored, where the settings do not say, and how many steps lie between at least."""
SCORING, FEWEST, TRIED = 0.02, 32, 4
"""Share of a time that one scoring may take; pictures that are scored however long it takes, if there are as many; and
pictures by which it is found out how long they take."""
SAVE_AFTER_S = 600.0
"""A resume point is never older than this, where the settings do not say."""
REMEMBER_BYTES = 1e9
"""Decoded pictures are kept in memory up to this, where the settings do not say."""


@dataclass(frozen=True)
class Budget:
    """When training ends: after so many steps, or so many seconds of wall clock, scoring included."""

    steps: int | None
    seconds: float | None

    @classmethod
    def of(cls, settings: FitConfig, pictures: int) -> Budget:
        """The budget that the settings give, epochs counted in steps."""
        if settings.minutes is not None:
            return cls(None, 60 * settings.minutes)
        if settings.epochs is not None:
            return cls(max(1, math.ceil(settings.epochs * pictures / settings.pictures / settings.accumulate)), None)
        return cls(settings.steps, None)


@dataclass
class State:
    """How far a fit is; with the tensors of its `Learner`, all that is needed to go on."""

    step: int = 0
    elapsed_s: float = 0.0
    """Spent so far, scoring included; the time between interruption and resumption is not."""
    scored: int = 0
    """Step of the last scoring."""
    scored_at: float = 0.0
    """Progress at the last scoring, 0..1."""
    scoring_s: float = 0.0
    """How long it took."""
    drawn: int = 0
    """Pictures of val that are scored while it learns, in all processes; 0: not known yet."""
    best: float = -1.0
    """Highest mean IU so far."""
    collapsed: bool = False
    """Whether the last scoring found one class everywhere."""
    first_loss: float | None = None
    smooth_loss: float | None = None
    lost: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be read, by name: why."""

    def progress(self, budget: Budget) -> float:
        """Share of the budget that is spent, 0..1.

        Of a time, as much as the last scoring took is kept for the next, and no more than half.
        """
        if budget.steps is not None:
            return min(self.step / budget.steps, 1.0)
        assert budget.seconds is not None
        return min(self.elapsed_s / max(budget.seconds - self.scoring_s, budget.seconds / 2), 1.0)

    def scoring_due(self, budget: Budget, every: int | None) -> bool:
        """Whether it is time to score: every so many steps, or `SCORINGS` times, and at the end."""
        if self.scored == self.step:
            return False
        progress = self.progress(budget)
        if progress >= 1:
            return True
        if every is None and budget.steps is not None:
            every = max(math.ceil(budget.steps / SCORINGS), STEPS_APART)
        if every is not None:
            return self.step % every == 0
        # Of a time, scoring takes a tenth at most.
        assert budget.seconds is not None
        return progress - self.scored_at >= max(1 / SCORINGS, 10 * self.scoring_s / budget.seconds)


def fit(
    model: FCN,
    train_data: SegmentationDataset,
    val_data: SegmentationDataset | None,
    settings: FitConfig,
    *,
    data: DataConfig,
    out: str | PathLike[str] | None = None,
    stage: str = "fit",
    resume: bool = False,
    counts: Counts | None = None,
    provenance: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, None]:
    """Train a model, in place, and tell what happens.

    Args:
        model: its heads are named as the labels of the data are.
        train_data: what is learnt from.
        val_data: what is scored, at native size, with the averaged weights where there are any; None: nothing is. The
            score of a model is the mean over the heads that have labels there.
        settings: how to learn.
        data: crops and transforms; which files is not read from it.
        out: folder for ``best`` (highest mean IU on val), ``last`` and ``resume``; None: nothing is written.
        stage: name in events.
        resume: go on from ``out/resume`` where there is one.
        counts: for each head the pixels of each class in ``train_data``, for class weights; None: counted.
        provenance: written into every saved model, with the step and the scores.
        stop: asked after every step and every scored picture; when it says True, the state is saved and
            `KeyboardInterrupt` raised.

    Yields:
        Events as they happen.

    Raises:
        ConfigError: the settings do not fit the model, the data or the machine.
        TrainingError: the loss is not finite, or has grown beyond return; too many pictures cannot be read; nothing can
            be written; memory is short; or another process of several has died. What was saved last is kept.
        KeyboardInterrupt: ``stop`` said so.
    """
    check_heads({name: head.classes for name, head in heads_of(model).items()}, train_data.classes, where="heads")
    void = next(table.void for table in train_data.classes.values())
    weights = None
    if settings.class_weights == "median":
        counts = counts or check_data(train_data).counts
        weights = {head: class_weights(pixels) for head, pixels in counts.items()}
    learner = Learner(model, settings, void=void, weights=weights)
    state, budget = State(), Budget.of(settings, len(train_data))
    store = _Store(None if out is None else Path(out), stage, learner, state, provenance or {})
    if resume:
        store.restore()

    crop = resolve_crop(data, train_data)
    remember = _fit_memory(train_data, val_data) if data.remember is None else data.remember
    workers = default_workers(learner.device, decoded=remember) if data.workers is None else data.workers
    per_step = settings.pictures * settings.accumulate
    yield Said(
        f"{stage}: {len(train_data)} pictures, {crop if isinstance(crop, str) else f'crops of {crop[0]}x{crop[1]}'}, "
        f"{per_step} a step; {'bf16' if learner.bf16 else 'float32'} on {learner.device}, {workers} workers"
        f"{', decoded pictures kept in memory' if remember else ''}"
    )
    if state.step == 0:
        yield from (Alarm(stage, 0, "uninitialised", line) for line in alarms.uninitialised(model))
    started = time.monotonic() - state.elapsed_s
    fill = _mean_colour(model)
    transform: Transform = TrainTransform(
        None if isinstance(crop, str) else crop,
        data.scale,
        data.mirror,
        data.jitter,
        data.shift,
        void,
        fill,
        coloured=data.inputs[0] == "color",
    )
    if settings.keep < 1:
        cells = cells_of(model)
        transform = Patches(transform, settings.keep, int(cells.stride), _first_pixel(cells), void)
    pictures = View(train_data, range(len(train_data)), remember=remember)
    reader = Reader(
        Samples(pictures, transform, settings.seed, most=may_be_lost(len(train_data))),
        learner,
        stage=stage,
        batch=settings.pictures,
        accumulate=settings.accumulate,
        workers=workers,
        most_workers=most_workers(learner.device) if data.workers is None else workers,
        void=void,
        fill=fill,
        step=state.step,
        lost=state.lost,
        stop=stop,
    )
    if val_data is not None:
        val_data = View(val_data, evenly(len(val_data), settings.val_pictures), remember=remember)
    watch = alarms.LossWatch(learner.guess, first=state.first_loss, smooth=state.smooth_loss)
    recent_s: deque[float] = deque(maxlen=20)
    settled = True  # no step is half done, and the weights are sound
    try:
        learner.train()
        while True:
            if state.scoring_due(budget, settings.evaluate_every):
                yield from _score(learner, val_data, state, budget, store, started, stop)
                learner.train()
            progress = state.progress(budget)
            if store.due(settings.save_every) or progress >= 1:
                yield from store.save()
            if progress >= 1:
                break

            begun = time.monotonic()
            held = yield from reader.take(state.step)
            factor = rate(settings.schedule, progress=progress, step=state.step, warmup=settings.warmup)
            settled = False
            seed = mix(settings.seed, DROPOUT, state.step)
            with deterministic(settings.deterministic):
                loss, pixels = learner.step(held, number=state.step, rate=factor, seed=seed)
            state.step += 1
            state.elapsed_s, stopped = learner.agree(time.monotonic() - started, stop())
            diverged = watch.diverged(loss)
            state.first_loss, state.smooth_loss = watch.first, watch.smooth
            recent_s.append(time.monotonic() - begun)
            settled = not diverged

            spent = state.progress(budget)
            yield Step(
                stage=stage,
                step=state.step,
                steps_total=budget.steps,
                epoch=state.step * per_step / len(train_data),
                loss=loss,
                lr=settings.lr * factor,
                images_per_s=per_step * len(recent_s) / sum(recent_s),
                progress=spent,
                seconds_left=state.elapsed_s * (1 - spent) / spent,
                seconds=recent_s[-1],
                seconds_waiting=reader.waited_s,
            )
            if state.step == 1 and not diverged:
                if message := watch.bad_start():
                    yield Alarm(stage, 1, "start", message)
                if message := alarms.bad_recipe(settings, pixels=pixels):
                    yield Alarm(stage, 1, "recipe", message)
            if diverged:
                message = f"{watch.describe(loss)}: {alarms.cause(settings, pixels=pixels, bf16=learner.bf16)}"
                yield Alarm(stage, state.step, "diverged", message)
                raise TrainingError(f"{stage}: {message}; {store.kept()}", step=state.step)
            if stopped:
                raise KeyboardInterrupt(f"{stage}: stopped after step {state.step}; resume to go on from there")
            yield from reader.watch(state.step, recent_s[-1])
        if summary := reader.summary():
            yield Alarm(stage, state.step, "skipped", summary)
        learner.wait()
    except (GeneratorExit, KeyboardInterrupt):
        if settled:
            list(store.save())
        raise
    except (FullyConvError, OSError, MemoryError, RuntimeError) as error:
        if settled:
            with suppress(CheckpointError):  # where that is what went wrong, it goes wrong again
                list(store.save())
        if reason := _outside(error, learner):
            raise TrainingError(f"{stage}: {reason}; {store.kept()}", step=state.step) from None
        raise


def _outside(error: Exception, learner: Learner) -> str:
    """The cause of an error that came from files, memory or other processes, and what to do; "" for others."""
    if isinstance(error, CheckpointError | DatasetError | ImageError):
        return str(error)
    said = " ".join(str(error).split())[:200]
    if out_of_memory(error):
        return f"memory ran out ({said or type(error).__name__}); take a smaller --batch or --crop, or fewer --workers"
    if learner.processes > 1 and isinstance(error, RuntimeError) and learner.lost_contact(error):
        return f"process {learner.rank} of {learner.processes} goes no further, since another has ended ({said})"
    return ""


def _score(
    learner: Learner,
    val_data: SegmentationDataset | None,
    state: State,
    budget: Budget,
    store: _Store,
    started: float,
    stop: Callable[[], bool],
) -> Iterator[Event]:
    """Score, keep the model as the last and, where it is, as the best, and only then tell."""

    def interrupt(*progress: Any) -> None:
        # One of several processes must not leave the others waiting for it.
        if learner.processes == 1 and stop():
            raise KeyboardInterrupt(f"{store.stage}: stopped after step {state.step}; resume to go on from there")

    if val_data is not None:
        learner.scored.eval()
        state.drawn = state.drawn or _how_many(learner, val_data, budget)
    begun = time.monotonic()
    events: list[Event] = []
    scores: dict[str, dict[str, Any]] = {}
    best = collapsed = False
    mean_iu = math.nan
    if val_data is not None:
        share = View(val_data, evenly(len(val_data), state.drawn)[learner.rank :: learner.processes])
        found = _evaluated(learner, share, interrupt)
        matrices = [ConfusionMatrix(m.classes, learner.sum(torch.from_numpy(m.counts)).cpu()) for m in found.values()]
        scores = {head: matrix.as_dict() for head, matrix in zip(found, matrices, strict=True)}
        ious = [m.mean_iu for m in matrices if not math.isnan(m.mean_iu)]  # val may have no labels for a head
        mean_iu = fmean(ious) if ious else math.nan
        best = mean_iu > state.best
        pictures = int(learner.sum(torch.tensor(len(share))))
        events.append(
            Evaluated(store.stage, state.step, scores, mean_iu, best, pictures, seconds=time.monotonic() - begun)
        )
        wrong = [("collapsed", line) for line in alarms.collapsed(scores)]
        wrong += [("unscored", line) for line in alarms.unscored(scores)]
        collapsed = bool(wrong)
        if not state.collapsed:
            events += [Alarm(store.stage, state.step, kind, line) for kind, line in wrong]
    for name in ("best", "last") if best else ("last",):
        events += store.keep(name, scores)
    # Not before the models are written: an interruption until here scores again.
    state.best, state.collapsed = (mean_iu if best else state.best), collapsed
    # As process 0 has them, for by them all decide on the rate and on when to score.
    state.elapsed_s, _ = learner.agree(time.monotonic() - started, False)
    state.scoring_s, _ = learner.agree(time.monotonic() - begun, False)
    state.scored = state.step
    state.scored_at = state.progress(budget)
    yield from events


def _how_many(learner: Learner, val_data: SegmentationDataset, budget: Budget) -> int:
    """Pictures of val to score while it learns: all, but of a time as many as `SCORING` allows.

    They are the same every time, so that scores can be compared.
    """
    if budget.seconds is None or len(val_data) <= FEWEST:
        return len(val_data)
    tried = View(val_data, evenly(len(val_data), TRIED))
    _evaluated(learner, tried)  # the first takes longer
    begun = time.monotonic()
    _evaluated(learner, tried)
    took_s, _ = learner.agree((time.monotonic() - begun) / TRIED, False)
    return min(max(int(learner.processes * SCORING * budget.seconds / took_s), FEWEST), len(val_data))


def _evaluated(
    learner: Learner, data: SegmentationDataset, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, ConfusionMatrix]:
    with deterministic(learner.settings.deterministic):
        return evaluate(
            learner.scored,
            data,
            strategy=choose,
            device=str(learner.device),
            precision="bf16" if learner.bf16 else "32",
            multiscale=MultiScale(),  # six looks would take six times as long, twenty times over
            on_progress=on_progress,
        )


@dataclass
class _Store:
    """Where a fit keeps its models and what it needs to go on."""

    folder: Path | None
    stage: str
    learner: Learner
    state: State
    provenance: Mapping[str, Any]
    saved: int = 0
    """Step of the last resume point."""
    saved_at: float = field(default_factory=time.monotonic)

    def due(self, every: int | None) -> bool:
        """Whether it is time for a resume point."""
        if self.saved == self.state.step:
            return False
        if every is not None:
            return self.state.step % every == 0
        late = bool(self.learner.agree(float(time.monotonic() - self.saved_at > SAVE_AFTER_S), False)[0])
        return late or self.state.scored == self.state.step

    def save(self) -> Iterator[Saved]:
        """Write a resume point, whole or not at all."""
        path = None if self.folder is None or self.learner.rank else self.folder / "resume"
        if path is not None:
            checkpoint.save_state(path, self.learner.tensors(), asdict(self.state))
        self.saved, self.saved_at = self.state.step, time.monotonic()
        if path is not None:
            yield Saved(self.stage, self.state.step, path)

    def restore(self) -> None:
        """Go on from the resume point, where there is one."""
        if self.folder is not None and self.learner.rank == 0:
            checkpoint.tidy(self.folder)
        self.learner.wait()
        if self.folder is not None and (self.folder / "resume").exists():
            tensors, values = checkpoint.load_state(self.folder / "resume")
            self.learner.restore(tensors)
            for name, value in values.items():
                setattr(self.state, name, value)
            self.saved = self.state.step

    def keep(self, name: str, scores: Mapping[str, Any]) -> list[Event]:
        """Write the scored model under this name, whole or not at all."""
        if self.folder is None or self.learner.rank:
            return []
        path = self.folder / name
        facts = {"stage": self.stage, "step": self.state.step, "scores": scores}
        checkpoint.save(self.learner.scored, path, provenance={**self.provenance, **facts})
        return [Saved(self.stage, self.state.step, path)]

    def kept(self) -> str:
        """What is left of a fit that failed, in words."""
        if self.folder is None:
            return "nothing was kept, for want of a folder"
        scored = self.state.scored
        model = f"the model of step {scored} is kept in {self.folder / 'last'}" if scored else "no model was scored yet"
        return f"{model}, resuming goes on after step {self.saved}" if self.saved else model


@dataclass(frozen=True)
class Patches:
    """Patch sampling after a transform: the labels of most cells of the final layer become void.

    Which, is drawn from the sample's own generator, so that it repeats with any number of workers and processes; and
    all heads lose the same cells.

    Attributes:
        transform: what comes first.
        keep, cell, start, void: as of `fullyconv.losses.sample_patches`.
    """

    transform: Transform
    keep: float
    cell: int
    start: int
    void: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Tensors:
        image, labels = self.transform(sample, generator)
        seed = int(torch.randint(1 << 62, (), generator=generator))
        sampled = {
            head: sample_patches(
                truth[None],
                keep=self.keep,
                cell=self.cell,
                start=self.start,
                void=self.void,
                generator=torch.Generator().manual_seed(seed),
            )[0]
            for head, truth in labels.items()
        }
        return image, sampled


def cells_of(model: FCN) -> Grid:
    """Where the cells of the coarsest map that is read lie on a picture."""
    read = [model.backbone.taps[skip.tap].grid for head in heads_of(model).values() for skip in head.skips]
    return max(read, key=lambda grid: (grid.stride, grid.offset)).shift(model.frame(1, 1).top)


def _mean_colour(model: FCN) -> tuple[float, ...]:
    """What becomes 0 in the net, for each channel of a picture: for padding."""
    means = dict(zip(model.normalise.order, model.normalise.mean.flatten().tolist(), strict=True))
    return tuple(means[channel] for channel in sorted(means))


def _first_pixel(cells: Grid) -> int:
    """The pixel at which cell 0 begins, if each takes as many as the stride, about its centre."""
    return math.floor(cells.offset - (cells.stride - 1) / 2 + Fraction(1, 2))


def resolve_crop(data: DataConfig, pictures: SegmentationDataset) -> tuple[int, int] | Literal["whole"]:
    """The crop that the settings give, or else one that suits the sizes of the pictures."""
    if data.crop is not None:
        return data.crop
    return "whole" if data.shift else choose_crop(sizes(pictures))


def check_heads(heads: Mapping[str, int], classes: Mapping[str, Classes], *, where: str) -> None:
    """Refuse heads that the labels are not made for."""
    if heads.keys() != classes.keys():
        raise ConfigError(f"{where}: got {', '.join(heads)}; the data has labels for {', '.join(classes)}", where=where)
    for name, count in heads.items():
        if count != len(classes[name]):
            place = f"{where}.{name}.classes"
            raise ConfigError(f"{place}: got {count}; the data has {len(classes[name])}", where=place)
    if len({table.void for table in classes.values()}) > 1:
        raise ConfigError(f"{where}: one head has over 255 classes and another has not; train them apart", where=where)


def _fit_memory(*data: SegmentationDataset | None) -> bool:
    """Whether all decoded pictures and labels take less than `REMEMBER_BYTES`."""
    total = 0.0
    for pictures in data:
        if pictures is not None and len(pictures):
            found = sizes(pictures, most=100)
            bytes_per_pixel = _bytes_per_pixel(pictures) + len(pictures.classes)
            total += len(pictures) * bytes_per_pixel * sum(h * w for h, w in found) / len(found)
    return total < REMEMBER_BYTES


def _bytes_per_pixel(pictures: SegmentationDataset) -> float:
    """Of the first picture that can be read."""
    for index in range(len(pictures)):
        with suppress(ImageError):
            image = pictures[index].image
            return float(image.nbytes / (image.shape[0] * image.shape[1]))
    return 3.0
