"""How good is a model on a data set? Counts over the whole set, at the pictures' own size, and how they were made.

What is scored is what `Predictor` gives: the same preprocessing, strategy, precision and upsampling that a user gets.
Nothing is resized, neither picture nor truth.
"""

from __future__ import annotations

import platform
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import torch

from fullyconv import __version__
from fullyconv.config import MultiScale
from fullyconv.datasets.base import Sample, SegmentationDataset
from fullyconv.devices import autocast, pick_device
from fullyconv.errors import DatasetError
from fullyconv.inference import Predictor, Strategy, choose, whole
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN

READ_AHEAD = 4


def evaluate(
    model: FCN,
    data: SegmentationDataset,
    *,
    strategy: Strategy = whole,
    device: str = "auto",
    precision: str = "auto",
    multiscale: MultiScale | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, ConfusionMatrix]:
    """Compare what a model predicts on every picture of a data set with the truth.

    Args:
        model: is moved to the device and made channels_last, in place; its modules are in eval mode while it is
            scored, and afterwards each is in the mode it was in.
        data: a table of classes for every head of the model; further ones are not looked at.
        strategy, device, precision, multiscale: as for `Predictor`.
        on_progress: called after every picture with the pictures done and their number. If it raises, that is the end.

    Returns:
        for each head one matrix over all pictures; of zeros, if there are none.

    Raises:
        DatasetError: the data set has no labels for a head, or other classes than the model learnt.
        ImageError: a picture or a label map cannot be used.
        ConfigError: no such device or precision.

    Example:
        >>> evaluate(model, dataset("folder", "street", split="val"))["out"].mean_iu    # doctest: +SKIP
        0.684
    """
    _check_classes(model, data)
    modes = {module: module.training for module in model.modules()}
    matrices = {head: ConfusionMatrix(data.classes[head].names) for head in model.heads}
    try:
        predictor = Predictor(model, strategy=strategy, device=device, precision=precision, multiscale=multiscale)
        with closing(_read_ahead(data)) as samples:
            for done, sample in enumerate(samples, 1):
                predicted = predictor(sample.image).labels
                for head, matrix in matrices.items():
                    matrix.update(sample.labels[head], predicted[head], data.classes[head].void)
                if on_progress is not None:
                    on_progress(done, len(data))
    finally:
        for module, training in modes.items():
            module.training = training
    return matrices


def protocol(
    data: SegmentationDataset,
    *,
    strategy: Strategy = whole,
    device: str = "auto",
    precision: str = "auto",
    multiscale: MultiScale,
) -> dict[str, Any]:
    """What scores depend on besides the model, as plain data to keep beside them; the arguments are `evaluate`'s.

    Args:
        multiscale: how pictures were looked at; the model's own is `fullyconv.multiscale.looks_of`.

    Raises:
        ConfigError: no such device or precision.
    """
    place = pick_device(device)
    with autocast(place, precision):
        computed = "bf16" if torch.is_autocast_enabled(place.type) else "32"
    kind = torch.cuda.get_device_name(place) if place.type == "cuda" else platform.machine()
    return {
        "dataset": data.name,
        "split": data.split,
        "pictures": len(data),
        "notes": list(data.notes),
        "label_size": "native",
        "counts": "one confusion matrix over all pictures; void pixels do not count",
        "absent_classes": "without a pixel in the truth: left out of every mean, listed as absent",
        "strategy": _name_of(strategy),
        "multiscale": str(multiscale),
        "precision": computed,
        "device": f"{place} ({kind})",
        "versions": {"fullyconv": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def results(matrices: Mapping[str, ConfusionMatrix], *, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Scores and protocol as plain data for JSON, fractions in 0..1 and None where there is none.

    Returns:
        of a model with one head ``{"pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu", "per_class", "absent",
        "protocol"}``; of one with several ``{"heads": {name: the same without protocol}, "protocol"}``.

    Example:
        >>> results({"out": ConfusionMatrix(["a"], [[1]])}, protocol={"split": "val"})["mean_iu"]
        1.0
    """
    scores = {head: matrix.as_dict() for head, matrix in matrices.items()}
    single = next(iter(scores.values())) if len(scores) == 1 else {"heads": scores}
    return {**single, "protocol": dict(protocol)}


def _check_classes(model: FCN, data: SegmentationDataset) -> None:
    where = f"{data.name} {data.split}"
    for name, head in model.heads.items():
        table = data.classes.get(name)
        if table is None:
            has = ", ".join(map(repr, data.classes))
            raise DatasetError(f"{where}: got labels for {has}; expected some for the model's head {name!r} as well")
        if len(table) != head.classes:
            raise DatasetError(
                f"{where}: got {len(table)} classes for head {name!r}; expected the {head.classes} that the model "
                "learnt; use the data set's own model, or its classes.txt"
            )
        learnt = model.classes.get(name)
        if learnt is not None and learnt.names != table.names:
            index = next(i for i, (a, b) in enumerate(zip(learnt.names, table.names, strict=True)) if a != b)
            raise DatasetError(
                f"{where}: class {index} of head {name!r} is {table.names[index]!r}; expected "
                f"{learnt.names[index]!r}, as the model learnt it; list the classes in the model's order"
            )


def _read_ahead(data: SegmentationDataset) -> Generator[Sample, None, None]:
    """The samples in order, the next ones read in a thread while one is computed."""
    waiting: deque[Future[Sample]] = deque()
    # One reader: a data set need not stand two at a time, and decoding is far from the slowest part.
    pool = ThreadPoolExecutor(1, thread_name_prefix="read")
    try:
        for index in range(len(data)):
            waiting.append(pool.submit(data.__getitem__, index))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _name_of(strategy: Strategy) -> str:
    """``tiled(tile=512)`` for a function bound with `functools.partial`."""
    if isinstance(strategy, partial):
        options = ", ".join(f"{key}={value}" for key, value in strategy.keywords.items())
        return f"{_name_of(strategy.func)}({options})"
    return "auto" if strategy is choose else getattr(strategy, "__name__", type(strategy).__name__)
