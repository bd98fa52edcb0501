"""How long does one pass take? The nets of table 1 and the FCN-8s of table 3 (CVPR), on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

import torch
from torch import Tensor

from fullyconv.building import build
from fullyconv.devices import autocast, computes_bf16, device_of, pick_device
from fullyconv.model import FCN
from fullyconv.presets import fcn
from fullyconv.studies.base import Column, Result, Row
from fullyconv.studies.trials import Clock
from fullyconv.tiling import heads_of

TABLE_1 = "CVPR 2015, table 1: NVIDIA Tesla K40c, mean of 20 passes"
TABLE_3 = "CVPR 2015, table 3"
CLASSES = 21


@dataclass(frozen=True)
class Timed:
    """A net of the paper, and what is published of it.

    Attributes:
        name: of its row.
        backbone: by name.
        stride: of its scores, in pixels.
        ms: of a forward pass at 500x500.
        source: of that.
        parameters: in millions; None where none are published.
        field: pixels that a score depends on.
    """

    name: str
    backbone: str
    stride: int
    ms: float
    source: str
    parameters: float | None = None
    field: float | None = None

    def build(self) -> FCN:
        """The net in the authors' geometry, with random weights."""
        return build(fcn(self.stride, self.backbone, CLASSES, weights=None, geometry="pad100")).eval()


NETS = (
    Timed("FCN-AlexNet", "caffenet", 32, 50, TABLE_1, 57, 355),
    Timed("FCN-VGG16", "vgg16", 32, 210, TABLE_1, 134, 404),
    Timed("FCN-GoogLeNet", "bvlc_googlenet", 32, 59, TABLE_1, 6, 907),
    Timed("FCN-8s", "vgg16", 8, 175, TABLE_3),
)


def in_turns(calls: Sequence[Callable[[], object]], *, rounds: int, device: torch.device) -> list[float]:
    """Milliseconds that each call takes: medians of rounds in which all take their turn, after one that does not count.

    Turns, since what else the machine does then slows all alike.
    """

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    taken: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, ms in zip(calls, taken, strict=True):
            finish()
            started = time.perf_counter()
            call()
            finish()
            if number:
                ms.append(1000 * (time.perf_counter() - started))
    return [median(ms) for ms in taken]


def run(
    *,
    nets: Sequence[Timed] = NETS,
    size: tuple[int, int] = (500, 500),
    rounds: int = 5,
    device: str = "auto",
    on_progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Time the forward pass of each net, from a picture to logits at its size, in float32 and bfloat16.

    Args:
        nets: built with random weights; the time does not depend on them.
        size: (height, width) of the picture.
        rounds: that are timed.
        device: auto, cpu, cuda or cuda:N.
        on_progress: told what is being done.

    Raises:
        ConfigError: no such device.
    """
    clock = Clock()
    place = pick_device(device)
    precisions = ["32", "bf16"] if computes_bf16(place) else ["32"]
    models = []
    for net in nets:
        on_progress(f"building {net.name}")
        models.append(net.build().to(place).to(memory_format=torch.channels_last))
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).mul(255).to(place)

    def forward(model: FCN, precision: str) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.inference_mode(), autocast(device_of(model), precision):
                logits: Tensor = model(image)["out"]
                return logits

        return call

    on_progress(f"timing {rounds} rounds of {len(models) * len(precisions)} passes, after one that does not count")
    calls = [forward(model, precision) for model in models for precision in precisions]
    ms = in_turns(calls, rounds=rounds, device=place)
    rows = []
    for number, (net, model) in enumerate(zip(nets, models, strict=True)):
        own = ms[number * len(precisions) : (number + 1) * len(precisions)]
        half = own[1] if len(own) > 1 else None
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        field = max(head.grid.field for head in heads_of(model).values())
        assert isinstance(field, Fraction)
        rows.append(Row(net.name, [own[0], half, parameters, float(field) if net.stride == 32 else None]))
    what = torch.cuda.get_device_name(place) if place.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    measured = (
        f"From a picture of {size[0]}x{size[1]} to logits of {CLASSES} classes at its size, in the authors' geometry "
        f"(100 pixels of padding), random weights; medians of {rounds} rounds in which the nets take turns."
    )
    notes = [
        measured,
        f"The machine was {'shared' if load > cores + 1 else 'quiet'}: load average {load:.1f} on {cores} cores.",
        "The published times are a GPU's: they say how the nets compare with each other.",
    ]
    if any(net.field == 907 for net in nets):
        notes.append("The published field of GoogLeNet counts the last average pool, which its FCN discards.")
    if len(precisions) == 1:
        notes.append("This device does not multiply bfloat16 in hardware, so it is not timed.")
    return Result(
        study="timing",
        question="How long does one pass take?",
        columns=[
            Column("forward", "ms", 0),
            Column("forward in bf16", "ms", 0),
            Column("parameters", "M", 0),
            Column("receptive field", "pixels", 0),
        ],
        rows=rows,
        published=[Row(net.name, [net.ms, None, net.parameters, net.field], net.source) for net in nets],
        data=f"one picture of {size[0]}x{size[1]} pixels on {what}",
        minutes=clock.minutes,
        notes=notes,
        shown="forward",
    )
