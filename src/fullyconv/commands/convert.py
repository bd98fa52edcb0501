"""``fullyconv convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  fullyconv convert fcn8s-heavy-pascal.caffemodel --as voc-fcn8s models/voc-fcn8s
  fullyconv predict models/voc-fcn8s photo.jpg --out segmented
  fullyconv convert VGG_ILSVRC_16_layers.caffemodel --as vgg16 vgg16.safetensors"""


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of others: .caffemodel, .pth or .safetensors.")],
    kind: Annotated[
        str,
        typer.Option("--as", metavar="KIND", help="What FILE holds: voc-fcn8s, vgg16, ...; docs/weights.md lists all."),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Model folder to write; for a classifier, the .safetensors file for --weights."
        ),
    ],
) -> None:
    """Make a model of weights that others have published.

    The authors' Caffe nets, pytorch-fcn's, torchvision's fcn_resnet50 and 101, and the classifiers vgg16, vgg19,
    caffenet and bvlc_googlenet. What was used of the file and what was not is listed; nothing is written where
    something is missing.
    """
    from fullyconv.conversion import convert

    done = convert(file, kind, out)
    print(f"{done}\nwritten: {done.out}")
