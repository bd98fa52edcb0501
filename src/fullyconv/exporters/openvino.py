"""A trunk as OpenVINO's own files, NAME.xml and NAME.bin: read faster than ONNX, and where int8 lives."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fullyconv.engines import Float
from fullyconv.errors import ConfigError
from fullyconv.exporters import onnx
from fullyconv.model import FCN


def write(model: FCN, path: Path) -> None:
    """Write a model's trunk, weights in float32.

    Raises:
        ConfigError: OpenVINO, or what it takes to make an ONNX file, is not installed.
        ExportError: torch cannot trace the net.
    """
    openvino = _openvino()
    with tempfile.TemporaryDirectory() as folder:
        onnx.write(model, Path(folder) / "trunk.onnx")
        openvino.save_model(openvino.Core().read_model(Path(folder) / "trunk.onnx"), path, compress_to_fp16=False)


def quantise(source: Path, path: Path, pictures: Iterable[Float]) -> None:
    """Write an exported trunk with 8-bit integers, by nncf's post-training quantisation.

    Args:
        source: .onnx or .xml.
        path: .xml.
        pictures: normalised and framed, (1, C, H', W') each: by them the ranges are chosen.

    Raises:
        ConfigError: nncf or OpenVINO is not installed.
    """
    openvino = _openvino()
    os.environ.setdefault("NNCF_CI", "1")  # else nncf reports every use to its makers, unasked
    try:
        import nncf
    except ModuleNotFoundError:
        raise ConfigError("int8: nncf is not installed; pip install 'fullyconv[int8]'", where="int8") from None
    shown = [np.ascontiguousarray(picture) for picture in pictures]
    with onnx.quiet():
        model = openvino.Core().read_model(source)
        small = nncf.quantize(model, nncf.Dataset(shown), subset_size=len(shown))
        openvino.save_model(small, path, compress_to_fp16=False)


def _openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError:
        raise ConfigError(
            "export: openvino is not installed; pip install 'fullyconv[openvino]'", where="format"
        ) from None
    return openvino
