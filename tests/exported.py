"""Nets with something to say, saved and exported, for the tests of what does without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fullyconv
from fullyconv import checkpoint, engines
from fullyconv.config import MultiScale
from fullyconv.exporters import export
from fullyconv.model import FCN


def lively(backbone: str, *, classes: int | dict[str, int] = 5, geometry: str = "same") -> FCN:
    """An FCN-8s whose score layers are not zero."""
    torch.manual_seed(0)
    model = fullyconv.build(fullyconv.presets.fcn8s(backbone, classes, weights=None, geometry=geometry)).eval()
    for head in model.heads.values():
        for score in head.score.values():
            nn.init.normal_(score[-1].weight, std=1.0)
    return model


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tuned_folder(folder: Path, engine: str, precision: str = "32", multiscale: MultiScale | None = None) -> Path:
    """A model folder of which ``fullyconv tune`` found this engine to be fastest; skips where it is not installed."""
    for package in ("onnxscript", engine):
        pytest.importorskip(package, reason=f"{package} is not installed")
    model = lively("tinyvgg", classes={"out": 5, "more": 3})
    assert model.config is not None
    model.config = model.config.model_copy(update={"multiscale": multiscale or MultiScale()})
    folder = checkpoint.save(model, folder)
    identity = engines.identity(folder)
    place = folder / engines.FOLDER
    export(checkpoint.load(folder), place / "trunk.onnx", identity=identity)
    rows = (engines.Measured(engine, precision, 1.0, 1.0, "trunk.onnx"), engines.Measured("torch", "32", 2.0, 1.0))
    tuned = engines.Tuned(identity, engines.machine(), (64, 64), "nothing", None, rows)
    (place / "tuned.json").write_text(json.dumps(tuned.json()))
    return folder
