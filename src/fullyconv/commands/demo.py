"""``fullyconv demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  fullyconv demo
  fullyconv demo --out pictures"""


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the models, report.html and results.json.")
    ] = Path("runs/demo"),
) -> None:
    """Show the whole story on generated scenes, in minutes, with nothing to download.

    Trains a small classifier, reads it at every position, fine-tunes it as FCN-32s, 16s and 8s, scores them, and
    segments a picture of an odd size whole and in tiles. What an earlier demo left in the folder is replaced.
    """
    from fullyconv.demo import demo as run
    from fullyconv.display import TrainingDisplay
    from fullyconv.tuning import tune as set_allocator

    set_allocator()
    with TrainingDisplay() as display:
        found = run(out, on_event=display)
    scores = ", ".join(f"{name} {score:.3f}" for name, score in found["mean_iu"].items())
    print(f"mean IU on held-out scenes: {scores}; {found['minutes']:.1f} minutes")
    print(f"report:  {out / 'report.html'}\nresults: {out / 'results.json'}")
