"""From a model to a file that other engines run: ONNX, OpenVINO, torch's exported program.

What is exported is the trunk, from a normalised picture in its frame to the score maps, for any batch, height and
width. Framing depends on the size of the picture, and the last upsampling with the largest class is better done without
ever holding the logits (`fullyconv.dense`), so neither is in the file; a JSON file of the same name says what has to be
done (`fullyconv.engines.TrunkInfo`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fullyconv import engines
from fullyconv.config import Classes
from fullyconv.engines import Framing, HeadInfo, TrunkInfo
from fullyconv.errors import CheckpointError, ConfigError, ExportError
from fullyconv.exporters import onnx, openvino, torch_export
from fullyconv.model import FCN, Head
from fullyconv.upsample import Interpolate, Nearest, Upsample

WRITERS: dict[str, Callable[[FCN, Path], None]] = {
    ".onnx": onnx.write,
    ".xml": openvino.write,
    ".pt2": torch_export.write,
}
"""By the ending of the file."""
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}

SIZES = ((61, 97), (128, 64), (33, 201))
"""Height and width of the pictures that an exported file is tried on."""
TOLERANCE = 1e-4
"""Largest difference of a score, to the largest score."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how exact it is.

    Attributes:
        path: the file; what has to be done around it is in the .json beside it.
        format: onnx, openvino or torch.
        size: bytes, with all that belongs to it.
        sizes: (height, width) of the pictures that it was tried on.
        largest_difference: of a score on any of them, absolute.
        largest_score: absolute, to compare with.
    """

    path: Path
    format: str
    size: int
    sizes: tuple[tuple[int, int], ...]
    largest_difference: float
    largest_score: float


def export(model: FCN, path: str | os.PathLike[str], *, format: str | None = None, identity: str = "") -> ExportReport:
    """Write a model's trunk to a file, and try it there on pictures of odd sizes.

    Args:
        model: on the CPU; is put into eval mode.
        path: ends in .onnx, .xml (OpenVINO) or .pt2 (torch).
        format: onnx, openvino or torch; None: by the ending.
        identity: of the model folder it comes from (`fullyconv.engines.identity`), so that it is not taken for another.

    Raises:
        ConfigError: no such format, or what it needs is not installed.
        ExportError: the net cannot be exported, or the file gives other scores than the model; says the largest
            difference. The file is then removed.
        CheckpointError: the file cannot be written.

    Example:
        >>> export(model, "street.onnx").largest_difference < 1e-4      # doctest: +SKIP
        True
    """
    path = Path(path)
    ending = path.suffix.lower() if format is None else FORMATS.get(format, "")
    if ending not in WRITERS or path.suffix.lower() != ending:
        found = path.name if format is None else f"{format} for {path.name}"
        raise ConfigError(
            f"format: got {found}; expected a file that ends in .onnx, .xml (openvino) or .pt2 (torch)", where="format"
        )
    if model.normalise.mean.device.type != "cpu":
        raise ConfigError("export: the model is on a GPU; expected model.cpu()", where="model")
    model.eval()
    parts = [path, path.with_suffix(".json"), path.with_suffix(".bin"), path.with_name(path.name + ".data")]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for part in parts:
            part.unlink(missing_ok=True)
        WRITERS[ending](model, path)
        text = json.dumps(trunk_info(model, identity).json(), indent=1, ensure_ascii=False) + "\n"
        parts[1].write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None
    try:
        worst, largest = _compare(model, path, _runner(path, ending))
    except ExportError:
        for part in parts:
            part.unlink(missing_ok=True)
        raise
    size = sum(part.stat().st_size for part in parts if part.exists())
    named = next(name for name, known in FORMATS.items() if known == ending)
    return ExportReport(path, named, size, SIZES, worst, largest)


def trunk_info(model: FCN, identity: str = "") -> TrunkInfo:
    """What has to be done around a model's trunk."""
    frame = model.frame(1, 1)
    coarse = model._coarse
    framing = Framing(
        front=frame.left,
        fixed=model._fixed,
        multiple=model._multiple,
        minimum=model.backbone.minimum,
        stride=model.stride,
        offset=coarse.grid.offset - frame.left,
        surplus=coarse.surplus,
    )
    heads = {name: _head_info(head, model.classes.get(name)) for name, head in model.heads.items()}
    flat = {name: tuple(getattr(model.normalise, name).flatten().tolist()) for name in ("mean", "std")}
    return TrunkInfo(identity, tuple(model.normalise.order), **flat, framing=framing, heads=heads)


def _head_info(head: Any, classes: Classes | None) -> HeadInfo:
    assert isinstance(head, Head)
    table = classes or Classes.of(*(f"class {i}" for i in range(head.classes)))
    up, pixels = head.upsample, head.pixels
    scale = pixels.scale if isinstance(pixels, Nearest) else 1
    fixed = isinstance(up, Upsample) and not up.learned
    return HeadInfo(
        classes=table,
        first=float((up.target.offset - up.source.offset) / up.source.stride) if fixed else None,
        step=float(up.target.stride / up.source.stride),
        spread=isinstance(up, Interpolate),
        zeros=up.border == "zero",
        scale=Fraction(scale),
    )


def _runner(path: Path, ending: str) -> Callable[[Tensor], list[Tensor]]:
    if ending == ".pt2":
        program = torch.export.load(path).module()
        return lambda framed: list(program(framed))
    name = "openvino" if ending == ".xml" or not engines.installed("onnxruntime") else "onnxruntime"
    engine = engines.open_engine(path, name, precision="32")
    return lambda framed: [torch.from_numpy(scores) for scores in engine(np.ascontiguousarray(framed)).values()]


@torch.no_grad()
def _compare(model: FCN, path: Path, run: Callable[[Tensor], list[Tensor]]) -> tuple[float, float]:
    """The largest difference and the largest score.

    Raises:
        ExportError: they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[float, float, tuple[int, int]]] = []
    for height, width in SIZES:
        picture = torch.rand(1, model.channels, height, width, generator=generator) * 255
        framed = model.preprocess(picture)
        for want, got in zip(model.scores_of(framed).values(), run(framed), strict=True):
            if want.shape != got.shape:
                raise ExportError(
                    f"{path}: gives a map of {tuple(got.shape)} for a picture of {height}x{width}, the model one of "
                    f"{tuple(want.shape)}",
                    where=(height, width),
                )
            difference = float((want - got).abs().nan_to_num(torch.inf).max())
            found.append((difference, float(want.abs().max()), (height, width)))
    worst, _, where = max(found)
    largest = max(score for _, score, _ in found)
    if not worst <= TOLERANCE * max(largest, 1e-3):
        raise ExportError(
            f"{path}: differs from the model by {worst:.1e} at {where[0]}x{where[1]}, where scores go up to "
            f"{largest:.1e}; expected {TOLERANCE:.0e} of that at most",
            largest_difference=worst,
            where=where,
        )
    return worst, largest
