"""``fullyconv hha``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fullyconv.errors import ConfigError, DatasetError, FullyConvError

EXAMPLES = """\b
Examples:
  fullyconv hha nyud/data/depth --out nyud/data/hha
  fullyconv hha depth --out hha --fx 525 --fy 525 --cx 319.5 --cy 239.5 --unit 0.0002

\b
Exit code: 0 all done; 1 some files could not be used, all others done; 2 none could, or wrong usage."""


def hha(
    depth: Annotated[Path, typer.Argument(metavar="DEPTH", help="Folder of depth maps: PNG or TIFF, one channel.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results: PNG, of the same names.")],
    unit: Annotated[float, typer.Option(metavar="M", help="Metres that a stored 1 stands for.")] = 0.001,
    fx: Annotated[float | None, typer.Option(help="Focal length in pixels, along a row.  [default: NYUDv2's]")] = None,
    fy: Annotated[float | None, typer.Option(help="Focal length in pixels, along a column.")] = None,
    cx: Annotated[float | None, typer.Option(help="Column of the optical axis, from 0.")] = None,
    cy: Annotated[float | None, typer.Option(help="Row of the optical axis, from 0.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write again what is there; else it is kept.")] = False,
) -> None:
    """Compute HHA from depth: horizontal disparity, height above ground, angle with gravity.

    The direction of gravity is found from the walls and floors of each picture. Folders of results are an input, hha,
    of `fullyconv train`.
    """
    from fullyconv.display import counting
    from fullyconv.folders import refuse_escape
    from fullyconv.hha import Camera, nyud_camera
    from fullyconv.hha import hha as compute
    from fullyconv.images import write_image
    from fullyconv.records import writing
    from fullyconv.values import read_depth

    given = (fx, fy, cx, cy)
    if any(value is not None for value in given) and None in given:
        raise ConfigError("--fx, --fy, --cx and --cy describe one camera; give all four, or none for NYUDv2's")
    camera = None if fx is None else Camera(*(float(value or 0) for value in given))
    if not (math.isfinite(unit) and unit > 0):
        raise ConfigError(f"--unit {unit}: expected metres, more than 0", where="unit")
    maps = (path for path in depth.rglob("*") if path.suffix.lower() in (".png", ".tif", ".tiff", ".bmp"))
    # Results in a folder below the depth maps are no depth maps.
    there, ours = depth.resolve(), out.resolve()
    below = ours != there and ours.is_relative_to(there)
    files = sorted(path for path in maps if not (below and path.resolve().is_relative_to(ours)))
    if not depth.is_dir():
        raise DatasetError(
            f"{depth}: {'a file' if depth.exists() else 'no such folder'}; expected a folder of depth maps"
        )
    if not files:
        raise DatasetError(f"{depth}: no .png, .tif or .bmp file in it; expected a folder of depth maps")
    targets = {path: (out / path.relative_to(depth)).with_suffix(".png") for path in files}
    _refuse_to_harm(targets)
    failed = kept = 0
    with counting("computing", len(files)) as progress:
        for path, target in targets.items():
            if not overwrite and target.exists():
                kept += 1
            else:
                try:
                    stored = read_depth(path)
                    found = compute(stored * unit, camera or nyud_camera(*stored.shape))
                except FullyConvError as error:
                    failed += 1
                    said = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
                    progress.console.print(f"skipped: {said}", markup=False, soft_wrap=True)
                else:
                    refuse_escape(target, out)
                    with writing(target.parent):
                        target.parent.mkdir(parents=True, exist_ok=True)
                    write_image(target, found.encoded())
            progress.advance(progress.task_ids[0])
    said = f"; {kept} were there and are kept (--overwrite)" if kept else ""
    print(f"{len(files) - failed} of {len(files)} depth maps: {out}{said}")
    if failed:
        raise typer.Exit(1 if failed < len(files) else 2)


def _refuse_to_harm(targets: Mapping[Path, Path]) -> None:
    """Refuse results that would replace a depth map, or one another."""
    from fullyconv.folders import refuse_replacing

    refuse_replacing(targets.values(), targets, "depth maps")
    owners: dict[Path, Path] = {}
    for path, target in targets.items():
        if (other := owners.setdefault(target, path)) != path:
            raise ConfigError(f"{path} and {other} would both be {target}; keep one of the two", where="out")
