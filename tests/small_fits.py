"""Small nets, few pictures and short settings for tests of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from fullyconv.building import build
from fullyconv.config import Classes, DataConfig, FitConfig, Recipe
from fullyconv.datasets import Sample, dataset
from fullyconv.events import Event
from fullyconv.model import FCN
from fullyconv.presets import fcn
from fullyconv.sampling import View

PLAIN = DataConfig(root="", workers=0, crop="whole", scale=(1, 1), mirror=False, jitter=0)
"""Pictures as they are."""
SCENES = "count=12 size=48x64"


def settings(**changes: Any) -> FitConfig:
    base = {"steps": 4, "batch": 4, "precision": "32", "device": "cpu", "warmup": 0, "schedule": "fixed", "ema": 0.0}
    return FitConfig(**{**base, **({"steps": None} if {"epochs", "minutes"} & changes.keys() else {}), **changes})


def unchecked(**changes: Any) -> FitConfig:
    """Settings that are refused where they are read, on pictures of the usual size."""
    return settings().model_copy(update=changes)


def pictures(count: int = 12, split: str = "train") -> View:
    data = dataset("scenes", SCENES, split=split)
    return View(data, range(min(count, len(data))), remember=True)


def net(stride: int = 4, *, dropout: float = 0.0, weights: None = None) -> FCN:
    torch.manual_seed(0)
    table = pictures(1).classes
    config = fcn(stride, "tinyvgg", classes=len(table["out"]), weights=weights, context=0, dropout=dropout)
    return build(config, classes=table)


class Squares:
    """Eight pictures of a bright square on noise, made by arithmetic that will not change."""

    name, split, notes, classes = "squares", "train", (), {"out": Classes.of("ground", "square")}
    names = tuple(map(str, range(8)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        image = (np.arange(32 * 32 * 3).reshape(32, 32, 3) * (7 + 2 * index) % 101).astype(np.uint8)
        labels = np.zeros((32, 32), np.uint8)
        labels[index : index + 12, 2 * index : 2 * index + 9] = 1
        image[labels == 1] += 100
        labels[:2] = 255
        return Sample(self.names[index], image, {"out": labels})

    def paths(self, index: int) -> tuple[None, None]:
        return None, None


class Plain(nn.Module):
    """A classifier without norms or dropout, so that a batch is no more than its pictures."""

    def __init__(self) -> None:
        super().__init__()
        layers = [[nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for i, o in ((3, 8), (8, 16))]
        self.features = nn.Sequential(*(layer for block in layers for layer in block))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return scores


def plain_net(table: Mapping[str, Classes] | None = None) -> FCN:
    torch.manual_seed(0)
    backbone, table = Plain(), table or pictures(1).classes
    config = fcn(4, backbone, classes=len(table["out"]), weights=None, context=0)
    return build(config, backbone=backbone, classes=table)


def recipe(**changes: Any) -> Recipe:
    model = net().config
    assert model is not None
    stage = {"name": "8s", "model": model, "data": DataConfig(root=SCENES, name="scenes", workers=0), "fit": settings()}
    return Recipe.parse({"name": "test", "stages": [{**stage, **changes}]})


def of(kind: type[Any], events: Iterator[Event] | list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


class Uneven(Squares):
    """Of each picture another share is void, and one has no label at all."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.labels["out"][32 - 4 * (index + 1) :] = 255
        return sample
