"""``fullyconv predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fullyconv import __version__
from fullyconv.commands.options import Device, Engine, Mirror, Model, Precision, Scales, StrategyName, Tile

if TYPE_CHECKING:
    from fullyconv.inference import Predictor

EXAMPLES = """\b
Examples:
  fullyconv predict runs/x photo.jpg --out segmented
  fullyconv predict runs/x photos/ "more/*.tif" --out segmented --overlay
  find /archive -name "*.jpg" | fullyconv predict runs/x - --out segmented

\b
Exit code: 0 all done; 1 some pictures could not be read, all others done; 2 none could, or wrong usage."""


def predict(
    model: Model,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUTS",
            help="Pictures, folders with pictures in and below them, patterns, or - for paths on standard input.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")],
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Write NAME.overlay.jpg, too: classes laid over it.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write NAME.npz, too: (H, W, K) float16, of every class everywhere.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write again what is there; else it is kept.")] = False,
    scales: Scales = None,
    mirror: Mirror = None,
    strategy: StrategyName = "auto",
    tile: Tile = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Pictures of equal size at a time.")] = 1,
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Refuse files that declare more pixels, before decoding; those read by rows, over 4 billion.",
        ),
    ] = 178_000_000,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: Engine = "auto",
) -> None:
    """Segment pictures: any number, any size.

    Writes for each picture NAME.png, a label map whose palette shows the classes, with subfolders as they were; and
    classes.json, what its ids mean, and results.json, what became of each picture and how much of it each class covers.
    A picture that cannot be read is reported and skipped.

    A GeoTIFF becomes NAME.tif, a cloud-optimised GeoTIFF that keeps its place (pip install 'fullyconv[geo]'). Very
    large pictures are read and written a row of tiles at a time.
    """
    from fullyconv.display import counting
    from fullyconv.folders import (
        LARGE,
        Outcome,
        begin_results,
        find_pictures,
        refuse_foreign,
        segment_files,
        with_standard_input,
        write_results,
    )
    from fullyconv.quick import QuickPredictor, open_quick
    from fullyconv.records import digest_of

    refuse_foreign(out)
    pictures = find_pictures(with_standard_input(inputs), out=out)
    once = scales is None and mirror is None
    plain = strategy != "tiled" and tile is None and not probabilities and batch == 1 and once
    files = [picture.path for picture in pictures]
    quick = (
        open_quick(model, files, engine=engine, precision=precision, device=device, max_pixels=max_pixels)
        if plain
        else None
    )
    predictor: Predictor | QuickPredictor
    if quick is not None:
        predictor = quick
    else:
        from fullyconv import checkpoint, multiscale
        from fullyconv.flags import looks_of, strategy_of
        from fullyconv.inference import Predictor
        from fullyconv.tuning import tune as set_allocator

        set_allocator()
        net = checkpoint.load(model)
        predictor = Predictor(
            net,
            folder=model,
            strategy=strategy_of(strategy, tile),
            device=device,
            precision=precision,
            probabilities=probabilities,
            max_pixels=max_pixels,
            engine=engine,
            multiscale=looks_of(scales, mirror, multiscale.looks_of(net)),
        )
    outcomes: list[Outcome] = []
    weights = digest_of(model)
    settings = {
        "fullyconv": __version__,
        "model": str(model),
        "strategy": strategy if tile is None else f"{strategy}, tile {tile}",
        "device": str(predictor.device),
    }
    try:
        with counting("segmenting", len(pictures)) as progress:
            for outcome in segment_files(
                predictor,
                pictures,
                out,
                overlay=overlay,
                probabilities=probabilities,
                overwrite=overwrite,
                batch_size=batch,
                weights=weights,
                begin=lambda targets: begin_results(pictures, targets, out, weights=weights, settings=settings),
            ):
                outcomes.append(outcome)
                if outcome.error:
                    progress.console.print(f"skipped: {outcome.error}", markup=False, soft_wrap=True)
                progress.advance(progress.task_ids[0])
    finally:
        if outcomes:
            results = write_results(predictor, outcomes, out, settings=settings, weights=weights)
    count = {status: sum(o.status == status for o in outcomes) for status in ("done", "kept", "failed")}
    kept = f", {count['kept']} kept since they were there (--overwrite writes them again)" if count["kept"] else ""
    failed = f", {count['failed']} failed" if count["failed"] else ""
    print(f"{count['done']} segmented{kept}{failed}: {results}")
    if single := sum(o.multiscale is not None and o.multiscale != predictor.multiscale for o in outcomes):
        why = f"GeoTIFFs and pictures of more than {LARGE / 1e6:.0f} Mpx are read by rows"
        print(f"{single} of them looked at once, and not at {predictor.multiscale}: {why}", file=sys.stderr)
    if count["failed"]:
        raise typer.Exit(1 if count["done"] or count["kept"] else 2)
