"""``fullyconv tune``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fullyconv.commands.options import Json, Model, output_json
from fullyconv.errors import ConfigError

EXAMPLES = """\b
Examples:
  fullyconv tune runs/x
  fullyconv tune runs/x --pictures photos/ --size 500x500
  fullyconv tune runs/x --pictures photos/ --int8 --allow-loss 0.01"""


def tune(
    model: Model,
    size: Annotated[str, typer.Option(metavar="HxW", help="Of the picture that is timed, in pixels.")] = "512x512",
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your own pictures, to see how far labels agree.  [default: generated ones]"),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise by nncf, too; needs --pictures: half choose the ranges, the others judge."
        ),
    ] = False,
    allow_loss: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of pixels that may change for speed.  [default: 0.005, never int8]"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Find the engine that is fastest here, and use it from now on.

    Measures torch, OpenVINO and ONNX Runtime as far as they are installed, in turn, one process each; says how far
    their labels agree with float32's, and remembers it all in MODEL/engine/.
    """
    from fullyconv.engines import AGREES
    from fullyconv.tuning import measure

    height, _, width = size.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"--size: got {size!r}; expected HxW in pixels, such as 512x512", where="size")
    tuned = measure(
        model,
        size=(int(height), int(width)),
        pictures=pictures,
        int8=int8,
        allow_loss=allow_loss,
        on_progress=lambda line: print(line, file=sys.stderr),
    )
    best = tuned.best()
    if str(json) != "-":
        print(f"{size}, labels compared on {tuned.pictures}")
        for row in tuned.measured:
            chosen = "  <- taken" if row == best else ""
            print(f"  {row.engine:<12} {row.precision:<5} {row.milliseconds:9.1f} ms  {row.agreement:8.3%}{chosen}")
    for row in tuned.measured:
        if row.precision != "32" and row.agreement < AGREES:
            does = "taken all the same (--allow-loss)" if tuned.accepts(row) else "not taken"
            print(
                f"warning: {row.engine} {row.precision} labels {1 - row.agreement:.2%} of the pixels otherwise than "
                f"float32; {does}",
                file=sys.stderr,
            )
    output_json(json, tuned.json())
