"""Training: a recipe of stages, in a run folder. The loop itself is `fullyconv.fitting.fit`."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from fullyconv import checkpoint
from fullyconv.backbones import BACKBONES
from fullyconv.building import build
from fullyconv.checking import CheckReport, Counts, across, overlap
from fullyconv.checking import check as check_data
from fullyconv.config import INPUTS, ModelConfig, Recipe, Stage, StreamConfig
from fullyconv.datasets import SegmentationDataset, dataset
from fullyconv.devices import pick_device
from fullyconv.errors import ConfigError, DatasetError, FullyConvError
from fullyconv.evaluation import results
from fullyconv.events import Alarm, Event, Said
from fullyconv.fitting import check_heads, fit, resolve_crop
from fullyconv.learner import head_weights
from fullyconv.lookup import lookup
from fullyconv.losses import LOSSES
from fullyconv.model import FCN
from fullyconv.report import score_each, write_report
from fullyconv.runs import Run, command
from fullyconv.sampling import INITIAL, View, evenly, mix
from fullyconv.transplant import transplant
from fullyconv.weights import input_of, refuse_missing

__all__ = ["fit", "train"]


def train(
    recipe: Recipe | str | PathLike[str],
    *,
    out: str | PathLike[str],
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    check: bool = True,
    backbone: nn.Module | None = None,
    open_data: Callable[..., SegmentationDataset] = dataset,
) -> FCN:
    """Train a recipe, stage after stage, into a run folder.

    Each stage starts from the best weights of the one before, or of those that it names. The folder holds the recipe
    with nothing left open, the log of events, the models of each stage, a report, and itself loads as a model: the best
    of the last stage.

    Args:
        recipe: what to train; or the path of a .toml or .json file of it.
        out: the run folder (`fullyconv.runs`).
        resume: go on with the run in ``out``, if there is one; a run that is done is not trained again.
        on_event: called with every event (`fullyconv.events`), after it is in the log.
        check: look through all the data first, and refuse it where it cannot be learnt from; where not, class weights
            still count the labels of train.
        backbone: used in place of the one that the recipe names.
        open_data: opens a split, as `fullyconv.datasets.dataset` does; another may change its pictures.

    Returns:
        the best model of the last stage, in eval mode.

    Raises:
        ConfigError: the recipe is at odds with the data, the machine or the run that is in ``out``.
        DatasetError: the data cannot be learnt from.
        CheckpointError: no weights where they should be, or files of others where a model will be.
        TrainingError: the loss diverged.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is saved first.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    _refuse_impossible(recipe, own=backbone is not None)
    folder = Path(out)
    _refuse_among(recipe, folder)
    opened = _open(recipe, open_data)
    _refuse_overlap(opened)
    recipe = _resolved(recipe, [train_data for train_data, _ in opened], own=backbone is not None)
    if resume and (folder / "recipe.json").exists():
        recipe = _recorded(recipe, Recipe.read(folder / "recipe.json"))
    if backbone is None:
        _refuse_missing(recipe, folder, resume=resume)
    for number, (stage, (train_data, _)) in enumerate(zip(recipe.stages, opened, strict=True)):
        heads = {name: head.classes for name, head in stage.model.heads.items()}
        check_heads(heads, train_data.classes, where=f"stages.{number}.model.heads")
    facts = _facts(recipe, opened)
    run = Run(folder, recipe, facts, resume=resume) if os.environ.get("RANK", "0") == "0" else None

    with nullcontext() if run is None else closing(run):

        def tell(event: Event) -> None:
            if run is not None:
                run.write(event)
                on_event(event)

        for note in dict.fromkeys(note for pair in opened for data in pair for note in data.notes):
            tell(Said(note))
        counts = _checked(opened, tell) if check else [None] * len(opened)
        done: dict[str, Path] = {}
        for stage, (train_data, val_data), counted in zip(recipe.stages, opened, counts, strict=True):
            place = folder / stage.name
            if not (place / "results.json").exists():
                if run is not None:
                    run.rewind(stage.name)
                resumed = resume and (place / "resume").exists()
                model = _start(stage, train_data, done, backbone, tell, resumed=resumed)
                gc.collect()
                provenance = {
                    "recipe": recipe.name,
                    "data": stage.data.root,
                    "inputs": list(stage.data.inputs),
                    "seed": stage.fit.seed,
                    "command": command(),
                }
                with _stoppable() as stop:
                    events = fit(
                        model,
                        train_data,
                        val_data,
                        stage.fit,
                        data=stage.data,
                        out=place,
                        stage=stage.name,
                        resume=resume,
                        counts=counted,
                        provenance=provenance,
                        stop=stop,
                    )
                    # Closed also when `on_event` fails, so that the state is saved.
                    with closing(events):
                        for event in events:
                            tell(event)
                # Large nets had better not lie in memory twice; their graphs are circles, left to the collector.
                del events, model
                gc.collect()
            kept = place / ("best" if (place / "best").exists() else "last")
            done[stage.name] = kept
            best = checkpoint.load(kept, backbone=backbone)
            if run is not None:
                _score(best, stage, val_data, run, kept, last=stage is recipe.stages[-1])
            if stage is not recipe.stages[-1]:
                del best
        return best


def _refuse_impossible(recipe: Recipe, *, own: bool) -> None:
    """Refuse, before any stage learns, what a stage would be stopped by once those before it have learnt.

    Args:
        recipe: whose nets are built without memory for weights.
        own: they are built on an object of the caller's; they are not built here then.

    Raises:
        ConfigError: with the dotted path of the setting.
    """
    for number, stage in enumerate(recipe.stages):
        model, fit = f"stages.{number}.model", f"stages.{number}.fit"
        if not own:
            with _named(model), torch.device("meta"):
                build(stage.model, weights=False)
        with _named(f"{fit}.loss"):
            lookup("loss", stage.fit.loss, LOSSES)
        with _named(f"{fit}.head_loss"):
            head_weights(stage.fit, stage.model.heads)
        with _named(f"{fit}.device"):
            pick_device(stage.fit.device)


def _refuse_among(recipe: Recipe, folder: Path) -> None:
    """Refuse to put a run into a folder that it learns from.

    Raises:
        ConfigError: names the folder.
    """
    for stage in recipe.stages:
        if stage.data.root and Path(stage.data.root).is_dir() and Path(stage.data.root).resolve() == folder.resolve():
            raise ConfigError(f"{folder}: the run would lie among the pictures; name another folder", where="out")


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Give what is refused the dotted path of its setting."""
    try:
        yield
    except FullyConvError as error:
        said = str(error).removeprefix(f"{where.rpartition('.')[2]}: ")
        raise ConfigError(f"{where}: {said}", where=where) from None


def _open(
    recipe: Recipe, open_data: Callable[..., SegmentationDataset]
) -> list[tuple[SegmentationDataset, SegmentationDataset]]:
    """Train and val of each stage; stages on the same data share them."""
    # One for each split and source, so that stages on the same data share it.
    wanted = [
        [(stage.data.name, stage.data.root, stage.data.inputs, split) for split in (stage.data.train, stage.data.val)]
        for stage in recipe.stages
    ]
    opened = {
        (name, root, inputs, split): open_data(name, root, split=split, inputs=inputs)
        for name, root, inputs, split in dict.fromkeys(one for pair in wanted for one in pair)
    }
    return [(opened[train], opened[val]) for train, val in wanted]


def _resolved(recipe: Recipe, train_data: Sequence[SegmentationDataset], *, own: bool) -> Recipe:
    """The recipe with nothing left open that depends on the data, on weights or on the folder it was started in."""
    stages: list[Stage] = []
    for stage, pictures in zip(recipe.stages, train_data, strict=True):
        crop = resolve_crop(stage.data, pictures)
        data = stage.data.model_copy(update={"crop": crop, "root": _absolute(stage.data.root)})
        named = not own and stage.model.backbone in BACKBONES
        streams = {
            name: stream.model_copy(update=_weights(stream, _source(stage, stages, name), told=named))
            for name, stream in stage.model.streams.items()
        }
        update = _weights(stage.model, _source(stage, stages), told=named and not streams)
        model = stage.model.model_copy(update={**update, "streams": streams})
        stages.append(stage.model_copy(update={"data": data, "model": model}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def _source(stage: Stage, before: Sequence[Stage], stream: str = "") -> ModelConfig | StreamConfig | None:
    """What a stage, or a stream of it, starts from, of the stages before; None: the classifier."""
    if not before or stage.start == "classifier":
        return None
    if isinstance(stage.start, dict):
        return next((one.model for one in before if one.name == stage.start.get(stream)), None)
    model = before[-1].model
    if model.backbone != stage.model.backbone:
        return None
    return model.streams.get(stream, model) if stream else model


def _recorded(recipe: Recipe, run: Recipe) -> Recipe:
    """The recipe with the preprocessing of the run that is resumed, where the file that told of it may be gone."""
    before = {stage.name: stage.model for stage in run.stages}
    stages = []
    for stage in recipe.stages:
        model, known = stage.model, before.get(stage.name)
        if known is not None:
            streams = {
                name: stream.model_copy(update={"input": stream.input or known.streams[name].input})
                if name in known.streams
                else stream
                for name, stream in model.streams.items()
            }
            model = model.model_copy(update={"input": model.input or known.input, "streams": streams})
        stages.append(stage.model_copy(update={"model": model}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def _weights(
    part: ModelConfig | StreamConfig, source: ModelConfig | StreamConfig | None, *, told: bool
) -> dict[str, Any]:
    """Settings of the weights: where they are, and their preprocessing where none is set.

    That is the one of the stage that they come from, or what their file tells of: a stage that does not load them,
    since it starts from another or is resumed, could not ask the file.
    """
    weights, input = part.weights and _absolute(part.weights), part.input
    if input is None and source is not None:
        input = source.input
    if told and input is None and weights not in (None, "default") and (name := input_of(weights)):
        input = lookup("input", name, INPUTS)
    return {"weights": weights, "input": input}


def _refuse_missing(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Refuse weights that are not there, of stages that start from them, before all the data is looked at.

    Raises:
        CheckpointError: no such file.
    """
    for number, stage in enumerate(recipe.stages):
        begun = any((folder / stage.name / name).exists() for name in ("resume", ".resume.previous", "results.json"))
        if (resume and begun) or not (number == 0 or stage.start == "classifier"):
            continue
        for part in stage.model.streams.values() or [stage.model]:
            if part.weights not in (None, "default"):
                refuse_missing(part.weights)


def _absolute(path: str) -> str:
    """A path that exists, from the root; anything else is a name and stays."""
    return str(Path(path).resolve()) if path not in ("", "default") and Path(path).exists() else path


def _checked(
    opened: Sequence[tuple[SegmentationDataset, SegmentationDataset]], tell: Callable[[Event], None]
) -> list[Counts]:
    """Look through all data, each once; pixels of each class in train, for each stage.

    Raises:
        DatasetError: a file cannot be used, or there is nothing to learn.
    """
    learnt = {id(train_data) for train_data, _ in opened}
    reports: dict[int, CheckReport] = {}
    for data in (data for pair in opened for data in pair):
        if id(data) in reports:
            continue
        report = reports[id(data)] = check_data(data)
        # A val split of one class can still be scored.
        stops = [found for found in report.findings if id(data) in learnt or found.kind not in ("absent", "single")]
        replace(report, findings=tuple(stops)).raise_for_errors()
        # Both splits are looked at, and a note does not say by itself of which it is.
        notes = [f"{data.split}: {note}" for note in report.notes]
        for line in (*notes, *(found.detail for found in report.findings if id(data) in learnt)):
            tell(Said(line))
    _refuse_overlap(opened, reports, tell)
    return [reports[id(train_data)].counts for train_data, _ in opened]


def _refuse_overlap(
    opened: Sequence[tuple[SegmentationDataset, SegmentationDataset]],
    reports: Mapping[int, CheckReport] | None = None,
    tell: Callable[[Event], None] = lambda event: None,
) -> None:
    """Refuse a run that scores on a picture that it, or a stage before, learns from; tell of those that are near."""
    compared: set[tuple[int, int]] = set()
    for number, (_, val_data) in enumerate(opened):
        for train_data, _ in opened[: number + 1]:
            pair = (id(train_data), id(val_data))
            if pair in compared:
                continue
            compared.add(pair)
            if reports is None:
                found = [copies] if (copies := overlap(train_data, val_data)) else []
            else:
                found = across((train_data, reports[pair[0]]), (val_data, reports[pair[1]]))
            for finding in found:
                if finding.severity == "error":
                    raise DatasetError(finding.detail, findings=finding.files)
                tell(Said(finding.detail))


def _protocol(stage: Stage, val_data: SegmentationDataset) -> dict[str, Any]:
    return {
        "data": stage.data.root,
        "split": val_data.split,
        "pictures": min(len(val_data), stage.fit.val_pictures),
        "pictures_of_split": len(val_data),
        "strategy": "auto",
        "multiscale": str(stage.model.multiscale),
        "precision": stage.fit.precision,
    }


def _facts(recipe: Recipe, opened: Sequence[tuple[SegmentationDataset, SegmentationDataset]]) -> dict[str, Any]:
    """What the recipe does not say of the data: the tables of classes, and which pictures are learnt and held out."""
    return {
        stage.name: {
            "classes": {head: table.model_dump(mode="json") for head, table in train_data.classes.items()},
            "pictures": {"train": list(train_data.names), "val": list(val_data.names)},
        }
        for stage, (train_data, val_data) in zip(recipe.stages, opened, strict=True)
    }


def _score(best: FCN, stage: Stage, val_data: SegmentationDataset, run: Run, kept: Path, *, last: bool) -> None:
    """Score the best model of a stage on val into the run's results; with the last goes the report.

    Args:
        kept: the folder that the model was read from.
        last: of all stages.
    """
    scored = View(val_data, evenly(len(val_data), stage.fit.val_pictures))
    each = score_each(best, scored, device=stage.fit.device, precision=stage.fit.precision)
    total = {head: sum(matrices[1:], matrices[0]) for head, matrices in each.items()}
    run.finish(stage.name, kept, results(total, protocol=_protocol(stage, val_data)))
    if last:
        write_report(run.folder, model=best, data=scored, each=each)


def _start(
    stage: Stage,
    train_data: SegmentationDataset,
    done: Mapping[str, Path],
    backbone: nn.Module | None,
    tell: Callable[[Event], None],
    *,
    resumed: bool,
) -> FCN:
    """The model that a stage starts from: with the weights of stages that are done, or the classifier's.

    Where it is resumed, the resume point holds every tensor, and the classifier's file may be gone.
    """
    if isinstance(stage.start, dict):
        origins = [(done[name], _into(stream), f"{name} as {stream}") for stream, name in stage.start.items()]
    elif stage.start == "previous" and done:
        name, path = list(done.items())[-1]
        origins = [(path, str, name)]
    else:
        origins = []
    with torch.random.fork_rng([]):
        torch.manual_seed(mix(stage.fit.seed, INITIAL))
        model = build(stage.model, weights=not (origins or resumed), backbone=backbone, classes=train_data.classes)
    missing = set(model.state_dict())
    for path, rename, said in origins:
        moved = transplant(checkpoint.load(path, backbone=backbone).state_dict(), model, rename=rename)
        missing.intersection_update(moved.missing)
        tell(Said(f"{stage.name}: {len(moved.used)} tensors from {said}"))
    if origins:
        in_order = [name for name in model.state_dict() if name in missing]
        new = [name for name in in_order if not name.startswith("backbone.")]
        tell(Said(f"{stage.name}: new: {', '.join(new) or 'none'}"))
        random = [name for name in in_order if name.startswith("backbone.")]
    else:
        random = [] if backbone is not None else _unread(stage.model, model)
    if random:
        tell(
            Alarm(
                stage.name,
                0,
                "uninitialised",
                f"{len(random)} tensors of the backbone start from random numbers ({', '.join(random[:3])}, ...); it "
                "will take far more pictures and steps than with the weights of a trained classifier",
            )
        )
    return model


def _into(stream: str) -> Callable[[str], str | None]:
    """From the names of a net without streams to those of one in which it is this stream."""

    def rename(name: str) -> str | None:
        if name.startswith("backbone."):
            return name.replace("backbone.", f"backbone.streams.{stream}.", 1)
        head, scores, rest = name.partition(".score.")
        return f"{head}.score.{stream}/{rest}" if scores else None

    return rename


def _unread(config: ModelConfig, model: FCN) -> list[str]:
    """Parameters of the backbone for which the config names no weights."""
    if not config.streams:
        bare = ["backbone."] if config.weights is None else []
    else:
        bare = [f"backbone.streams.{name}." for name, stream in config.streams.items() if stream.weights is None]
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(bare))]


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has asked to stop; a second one stops at once, and what is not saved is lost."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt("stopped at once; resume goes on from the last resume point")
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
