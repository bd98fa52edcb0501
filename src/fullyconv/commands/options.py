"""Options that several verbs share, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

BACKBONE = "mobilenet_v2"
"""What nets are built on where nobody says. From random weights it learns faster than SqueezeNet on both sets of
docs/results.md; it is small, and no part of it sees the whole picture, so that tiles are exact."""

Data = Annotated[
    str, typer.Argument(metavar="DATA", help="Folder of pictures and labels; `fullyconv datasets` says in which forms.")
]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a trained model, or of the run that made it.")]
Dataset = Annotated[str, typer.Option(metavar="NAME", help="Kind of data; `fullyconv datasets` lists them.")]
Inputs = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="What a picture is made of: color, depth, hha, with commas.  [default: the model's own, or color]",
    ),
]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Pictures a step.")]
Crop = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Size of training crops in pixels, or whole.  [default: by the pictures]"),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[Literal["auto", "32", "bf16"], typer.Option(help="auto: bf16 where the hardware has it.")]
Engine = Annotated[
    Literal["auto", "torch", "openvino", "onnxruntime"],
    typer.Option(help="What computes; auto: the one that `fullyconv tune` found for the model, else torch."),
]
StrategyName = Annotated[
    Literal["auto", "whole", "tiled"],
    typer.Option(
        help="Segment pictures whole or in tiles (the result is the same); auto: tiles where memory is short."
    ),
]
Tile = Annotated[
    int | None, typer.Option(min=1, metavar="PX", help="Side of a tile, without its halo.  [default: 1024]")
]
Scales = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Test-time augmentation: label each picture by the mean of looks at it at these sizes, 1 among them. "
        "0.5,1,1.5 often scores higher and takes 3.5 times as long.  [default: the model's own, or 1]",
    ),
]
Mirror = Annotated[
    bool | None,
    typer.Option(
        "--mirror/--no-mirror",
        help="Look at each mirrored, too, for twice the time.  [default: the model's own, or not]",
    ),
]


def writable(path: Path | None) -> Path | None:
    """A file to be written at the end; refused now if it cannot be, and not after all the work."""
    if path is not None and str(path) != "-":
        from fullyconv.records import refuse_unwritable

        refuse_unwritable(path)
    return path


Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=writable, help="Write the result as JSON, too; - for stdout."),
]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line, and has not its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def output_json(path: Path | None, value: Any) -> None:
    """What ``--json`` asks for: a file, standard output for ``-``, or nothing."""
    import json

    from fullyconv.records import write_json

    if str(path) == "-":
        print(json.dumps(value, indent=2))
    elif path is not None:
        write_json(path, value)
