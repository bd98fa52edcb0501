"""A trunk as an ONNX file: any batch, any height and width that a frame gives."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fullyconv.errors import ConfigError, ExportError, first_line
from fullyconv.model import FCN

LARGEST = 1_500_000_000
"""Bytes of weights that are kept inside the file; a protobuf holds no more than two gigabytes."""


class Trunk(nn.Module):
    """Normalised and framed picture (B, C, H', W') -> score maps in the order of the heads."""

    def __init__(self, model: FCN) -> None:
        super().__init__()
        self.model = model

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.scores_of(picture).values())


def example(model: FCN) -> Tensor:
    """A picture to trace with. Batch, height and width all differ from each other and from 1, so that none is fixed."""
    height, width = (max(4 * model.alignment, model.backbone.minimum) + n * model.alignment for n in (0, 1))
    return model.preprocess(torch.zeros(2, model.channels, height, width, device=model.normalise.mean.device))


def dynamic() -> dict[str, dict[int, object]]:
    """Which sizes may be others than in `example`."""
    return {"picture": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}


def write(model: FCN, path: Path) -> None:
    """Write a model's trunk.

    Raises:
        ConfigError: the packages that torch needs for it are not installed.
        ExportError: torch cannot trace the net; says why.
    """
    try:
        import onnxscript  # noqa: F401 - torch.onnx needs it, and says so at length
    except ModuleNotFoundError:
        raise ConfigError("export: onnx is not installed; pip install 'fullyconv[onnx]'", where="format") from None
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                Trunk(model).eval(),
                (example(model),),
                dynamo=True,
                dynamic_shapes=dynamic(),
                input_names=["picture"],
                output_names=[f"scores.{head}" for head in model.heads],
                verbose=False,
            )
            assert program is not None
            weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
            program.save(os.fspath(path), external_data=weights > LARGEST)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        # torch.onnx tells what to do about an error, and the error itself as the cause.
        raise ExportError(
            f"{path}: torch {torch.__version__} cannot export this net: {first_line(error.__cause__ or error)}"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters report their progress, and what future versions will do, to whoever runs them."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
