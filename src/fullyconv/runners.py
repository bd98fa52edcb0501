"""The same model with score maps from another engine: OpenVINO, ONNX Runtime, or recorded on CUDA."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from fullyconv import engines
from fullyconv.devices import device_of
from fullyconv.engines import Engine
from fullyconv.errors import ConfigError
from fullyconv.exporters import export
from fullyconv.graphs import Graphed
from fullyconv.margins import Margined
from fullyconv.model import FCN


class Driven(FCN):
    """A model whose score maps come from an exported trunk: framing, tiling, upsampling are the model's own.

    Args:
        model: what was exported; is shared, not copied.
        engine: runs it.
    """

    def __init__(self, model: FCN, engine: Engine) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(model.__dict__)
        self.engine = engine

    def scores_of(self, framed: Tensor) -> dict[str, Tensor]:
        scores = self.engine(framed.detach().float().contiguous().numpy())
        return {name: torch.from_numpy(maps) for name, maps in scores.items()}


def runner(
    model: FCN,
    engine: str,
    *,
    precision: str = "auto",
    folder: str | os.PathLike[str] | None = None,
    sizes: int = 4,
) -> FCN:
    """A model that gives the same score maps by another engine; with torch, the model itself or what spares it work.

    That is `Graphed` on CUDA, and elsewhere `Margined` in the authors' geometry.

    Args:
        model: in eval mode, on the device where it is to run; stays as it was.
        engine: "torch", "openvino", "onnxruntime"; or "auto", what ``fullyconv tune`` found for the folder, else torch.
        precision: "auto", "32" or "bf16".
        folder: of the model, whose exported trunk is used if it is there; else one is made for the occasion, which
            takes some seconds.
        sizes: of pictures that come in turns; `Margined` keeps something for each.

    Raises:
        ConfigError: no such engine, not installed, or not for this device or precision.
        CheckpointError: the exported trunk is damaged.
        ExportError: the net cannot be exported.
    """
    device = device_of(model)
    on_cpu = device.type == "cpu"
    trunk = None if folder is None else Path(folder) / engines.FOLDER / "trunk.onnx"
    if engine == "auto":
        tuned = engines.read_tuned(folder) if folder is not None and on_cpu else None
        best = None if tuned is None else tuned.best(precision)
        if best is not None:
            engine, precision = best.engine, "auto" if best.precision == "int8" else best.precision
        if best is not None and trunk is not None and best.file:
            trunk = trunk.with_name(best.file)
        engine = "torch" if engine == "auto" else engine
    if engine == "torch":
        if device.type == "cuda":
            return Graphed(model)
        return model if model.backbone.border is None else Margined(model, keep=sizes)
    if not on_cpu:
        raise ConfigError(f"engine: {engine} runs on the CPU; expected device cpu, or engine torch", where="engine")
    if folder is not None and trunk is not None and trunk.exists():
        of_this_save = engines.TrunkInfo.read(trunk.with_suffix(".json")).model == engines.identity(folder)
        if of_this_save:
            return Driven(model, engines.open_engine(trunk, engine, precision=precision))
    with tempfile.TemporaryDirectory() as temporary:
        if engine in ("openvino", "onnxruntime") and engines.installed(engine):
            export(model, Path(temporary) / "trunk.onnx")
        return Driven(model, engines.open_engine(Path(temporary) / "trunk.onnx", engine, precision=precision))
