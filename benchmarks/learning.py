"""Those that `accuracy.py` compares: each learns a step at a time and then labels pictures of any size.

All read the same pictures, in the same order (`fullyconv.sampling`), in the process that computes. What differs is what
each one's own documentation asks for: net, crop, augmentation, normalisation, loss, optimizer, rate, batch. Where that
is written stands beside each, and in the results. Where a documentation leaves the choice open, or asks for what would
only hurt it here (padding beyond the picture), the better is taken.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fullyconv
from fullyconv import fitting
from fullyconv.config import Stage
from fullyconv.datasets import SegmentationDataset
from fullyconv.devices import computes_bf16
from fullyconv.events import Saved, Step
from fullyconv.optim import Average
from fullyconv.sampling import INITIAL, Positions, Samples, Transform, batches, mix, sizes
from fullyconv.tuning import tune

Labels = npt.NDArray[np.integer[Any]]
Predict = Callable[[npt.NDArray[np.uint8]], Labels]
"""From a picture (H, W, 3), RGB, to labels (H, W)."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of RGB 0..1, which torchvision, timm, smp and transformers normalise by."""


@dataclass(frozen=True)
class Task:
    """What all are given.

    Attributes:
        folder: where the pictures are.
        train: pictures, decoded and in memory.
        weights: a file of SqueezeNet 1.0 trained on ImageNet, for those that start from one.
        input: the preprocessing that it expects.
        steps: of the budget, over which schedules run.
        every: steps between scorings; the last step is one too.
        seed: of all that is random.
        scratch: a folder for whoever writes files while learning.
    """

    folder: Path
    train: SegmentationDataset
    weights: Path | None
    input: str
    steps: int
    every: int
    seed: int
    scratch: Path

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes["out"].names

    @property
    def void(self) -> int:
        return self.train.classes["out"].void

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of most pictures."""
        height, width = np.median(sizes(self.train), axis=0).round().astype(int).tolist()
        return height, width


class Competitor(Protocol):
    """What learns.

    Attributes:
        settings: what it was trained with, as plain data, with "source", where its documentation says so.
        parameters: that learn.
    """

    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def parameters(self) -> int: ...

    def step(self) -> None:
        """Learn from one batch."""

    def predictor(self) -> Predict:
        """What labels pictures as well as is known now; asked for after every ``every`` steps, and after the last."""


def stage_of(task: Task, arguments: list[str]) -> Stage:
    """What ``fullyconv train FOLDER`` with these arguments would do."""
    from typer.main import get_command

    from fullyconv.cli import app
    from fullyconv.flags import recipe_of

    command = get_command(app).commands["train"]  # type: ignore[attr-defined]
    with command.make_context("train", [str(task.folder), *arguments]) as context:
        return recipe_of(context.params).stages[0]


class Ours:
    """What ``fullyconv train`` does with its defaults, and these options."""

    def __init__(self, task: Task, *options: str, weights: bool = False) -> None:
        tune()
        started = ("--weights", str(task.weights), "--input", task.input) if weights else ("--weights", "none")
        arguments = [*options, *started, "--steps", str(task.steps), "--seed", str(task.seed), "--workers", "0"]
        stage = stage_of(task, arguments)
        with torch.random.fork_rng([]):
            torch.manual_seed(mix(task.seed, INITIAL))
            model = fullyconv.build(stage.model, classes=task.train.classes)
        self.parameters = sum(p.numel() for p in model.parameters())
        said = [Path(each).name if task.weights and each == str(task.weights) else each for each in arguments]
        self.settings = {
            "source": "the defaults of fullyconv train",
            "command": " ".join(["fullyconv train DATA", *said]),
            "precision": "bf16" if computes_bf16(torch.device("cpu")) else "float32",
            "fit": stage.fit.model_dump(mode="json"),
            "data": stage.data.model_dump(mode="json", exclude={"root", "name"}),
        }
        self.folder = Path(tempfile.mkdtemp(dir=task.scratch))
        # Without val: what is scored is the last model, so that val chooses nothing, as for all others.
        self._events = fitting.fit(
            model,
            task.train,
            None,
            stage.fit.model_copy(update={"evaluate_every": task.every}),
            data=stage.data,
            out=self.folder,
        )

    def step(self) -> None:
        next(event for event in self._events if isinstance(event, Step))

    def predictor(self) -> Predict:
        saved = next(e.path for e in self._events if isinstance(e, Saved) and e.path.name == "last")
        predict = fullyconv.Predictor.load(saved, engine="torch")
        return lambda picture: predict(picture).labels["out"]


@dataclass
class Loop:
    """The loop of everybody's documentation: forward, loss, backward, step, schedule.

    Attributes:
        net: from normalised pictures (B, 3, H, W) to what ``loss`` takes and ``logits`` reads.
        loss: of the net's output and labels (B, H, W).
        logits: of the net's output, (B, K, h, w).
        rate: factor on the rate, by progress 0..1.
        resize: side in pixels that the shorter side of a picture to label is scaled to; None: not scaled.
        bf16: whether the net computes in bfloat16 while it learns, channels last.
        average: decay of a moving average of the weights, with which pictures are labelled; None: the last ones are.
    """

    task: Task
    net: nn.Module
    optimizer: torch.optim.Optimizer
    transform: Transform
    batch: int
    loss: Callable[[Any, Tensor], Tensor]
    rate: Callable[[float], float]
    settings: Mapping[str, Any]
    logits: Callable[[Any], Tensor] = lambda output: output
    resize: int | None = None
    bf16: bool = False
    average: float | None = None
    parameters: int = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = sum(p.numel() for p in self.net.parameters())
        for group in self.optimizer.param_groups:
            group["base_lr"] = group["lr"]
        self._done = 0
        if self.bf16:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._averaged = None if self.average is None else Average(self.net, self.average)
        samples = Samples(self.task.train, self.transform, self.task.seed)
        positions = Positions(start=0, batch=self.batch)
        self._batches = batches(samples, positions, workers=0, void=self.task.void)

    def step(self) -> None:
        batch, lost = next(self._batches)
        if isinstance(batch, str) or lost:
            raise RuntimeError(f"pictures cannot be read: {batch if isinstance(batch, str) else dict(lost)}")
        images, labels = batch
        factor = self.rate(min(self._done / self.task.steps, 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.net.train()
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            output = self.net(_normalised(images))
        self.loss(output, labels["out"]).backward()
        self.optimizer.step()
        if self._averaged is not None:
            self._averaged.update(self.net, self._done)
        self._done += 1

    def predictor(self) -> Predict:
        net = (self.net if self._averaged is None else self._averaged.model).eval()

        @torch.inference_mode()
        def predict(picture: npt.NDArray[np.uint8]) -> Labels:
            image = _normalised(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None])
            height, width = image.shape[2:]
            if self.resize is not None:
                scale = self.resize / min(height, width)
                size = round(height * scale), round(width * scale)
                image = F.interpolate(image, size=size, mode="bilinear", antialias=True)
            h, w = image.shape[2:]
            image = F.pad(image, (0, -w % 32, 0, -h % 32))  # strides of all are 32 at most
            logits = F.interpolate(self.logits(net(image)), size=image.shape[2:], mode="bilinear")[:, :, :h, :w]
            logits = F.interpolate(logits, size=(height, width), mode="bilinear")
            return np.asarray(logits[0].argmax(0).numpy())

        return predict


def _normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std
