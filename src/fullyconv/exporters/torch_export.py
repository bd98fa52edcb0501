"""A trunk as torch's own exported program, .pt2: `torch.export.load` runs it without this package."""

from __future__ import annotations

from pathlib import Path

import torch

from fullyconv.errors import ExportError, first_line
from fullyconv.exporters.onnx import Trunk, dynamic, example, quiet
from fullyconv.model import FCN


def write(model: FCN, path: Path) -> None:
    """Write a model's trunk.

    Raises:
        ExportError: torch cannot trace the net; says why.
    """
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                Trunk(model).eval(), (example(model),), dynamic_shapes=dynamic(), strict=False
            )
            torch.export.save(program, path)
    except RuntimeError as error:
        raise ExportError(f"{path}: torch {torch.__version__} cannot export this net: {first_line(error)}") from None
