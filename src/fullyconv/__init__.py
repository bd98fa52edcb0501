"""Fully convolutional networks for semantic segmentation.

Names are resolved when they are first used, so that importing the package loads neither torch nor Pillow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fullyconv.errors import (
    AlignmentError,
    CheckpointError,
    ConfigError,
    DatasetError,
    ExportError,
    FullyConvError,
    ImageError,
    SurgeryError,
    TrainingError,
    UnknownName,
)

if TYPE_CHECKING:
    from fullyconv import presets
    from fullyconv.building import build
    from fullyconv.checking import check
    from fullyconv.checkpoint import load, save
    from fullyconv.config import Classes, ModelConfig, MultiScale, Recipe
    from fullyconv.conversion import convert
    from fullyconv.datasets import dataset
    from fullyconv.evaluation import evaluate
    from fullyconv.explanation import explain
    from fullyconv.exporters import export
    from fullyconv.geometry import Grid
    from fullyconv.inference import Predictor, tiled, whole
    from fullyconv.model import FCN
    from fullyconv.rarefaction import rarefy
    from fullyconv.segmentation import Segmentation
    from fullyconv.stitching import shift_and_stitch
    from fullyconv.surgery import convolutionalize
    from fullyconv.training import train
    from fullyconv.tuning import tune

__version__ = "0.1.0"

_HOME = {
    "build": "fullyconv.building",
    "check": "fullyconv.checking",
    "load": "fullyconv.checkpoint",
    "save": "fullyconv.checkpoint",
    "Classes": "fullyconv.config",
    "ModelConfig": "fullyconv.config",
    "MultiScale": "fullyconv.config",
    "Recipe": "fullyconv.config",
    "convert": "fullyconv.conversion",
    "dataset": "fullyconv.datasets",
    "evaluate": "fullyconv.evaluation",
    "explain": "fullyconv.explanation",
    "Grid": "fullyconv.geometry",
    "Predictor": "fullyconv.inference",
    "tiled": "fullyconv.inference",
    "whole": "fullyconv.inference",
    "FCN": "fullyconv.model",
    "rarefy": "fullyconv.rarefaction",
    "Segmentation": "fullyconv.segmentation",
    "shift_and_stitch": "fullyconv.stitching",
    "convolutionalize": "fullyconv.surgery",
    "export": "fullyconv.exporters",
    "train": "fullyconv.training",
    "tune": "fullyconv.tuning",
}

__all__ = [
    "FCN",
    "AlignmentError",
    "CheckpointError",
    "Classes",
    "ConfigError",
    "DatasetError",
    "ExportError",
    "FullyConvError",
    "Grid",
    "ImageError",
    "ModelConfig",
    "MultiScale",
    "Predictor",
    "Recipe",
    "Segmentation",
    "SurgeryError",
    "TrainingError",
    "UnknownName",
    "__version__",
    "build",
    "check",
    "convert",
    "convolutionalize",
    "dataset",
    "evaluate",
    "explain",
    "export",
    "load",
    "presets",
    "rarefy",
    "save",
    "shift_and_stitch",
    "tiled",
    "train",
    "tune",
    "whole",
]


def __getattr__(name: str) -> Any:
    if name == "presets":
        return importlib.import_module("fullyconv.presets")
    if name not in _HOME:
        raise AttributeError(f"module 'fullyconv' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
