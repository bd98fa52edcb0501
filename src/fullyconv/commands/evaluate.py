"""``fullyconv evaluate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fullyconv.commands.options import (
    Data,
    Dataset,
    Device,
    Inputs,
    Json,
    Mirror,
    Model,
    Precision,
    Scales,
    StrategyName,
    Tile,
    output_json,
)

EXAMPLES = """\b
Examples:
  fullyconv evaluate runs/x DATA
  fullyconv evaluate runs/x DATA --scales 0.5,1,1.5 --mirror
  fullyconv evaluate runs/x DATA --split test --json scores.json"""


def evaluate(
    model: Model,
    data: Data,
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val, test, or another that there is.")] = "val",
    json: Json = None,
    dataset: Dataset = "folder",
    inputs: Inputs = None,
    scales: Scales = None,
    mirror: Mirror = None,
    strategy: StrategyName = "auto",
    tile: Tile = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Score a model on labelled pictures.

    Pixel accuracy, mean accuracy, mean IU, frequency-weighted IU, and the IU of each class.

    One confusion matrix over the whole set, labels at native size, as the paper defines the scores. Classes that do not
    occur in the truth are left out of the means, and named.
    """
    from rich.console import Console

    from fullyconv import checkpoint, datasets, evaluation, multiscale, runs
    from fullyconv.display import counting, scores_table
    from fullyconv.errors import DatasetError
    from fullyconv.flags import looks_of, scored_inputs, strategy_of

    net = checkpoint.load(model)
    looks = looks_of(scales, mirror, multiscale.looks_of(net))
    named = scored_inputs(inputs, checkpoint.provenance(model).get("inputs", ["color"]), net.channels)
    pictures = datasets.dataset(dataset, data, split=split, inputs=named)
    if learnt := runs.learnt_before(Path(model), pictures):
        some = ", ".join(learnt[:3]) + (", ..." if learnt[3:] else "")
        seen = f"{len(learnt)} of the {len(pictures)} pictures of {split} are among those that this model learnt"
        print(f"warning: {seen} ({some}); the score says little of pictures that it has not seen", file=sys.stderr)
    chosen = strategy_of(strategy, tile)
    with counting("scoring", len(pictures)) as progress:
        matrices = evaluation.evaluate(
            net,
            pictures,
            strategy=chosen,
            device=device,
            precision=precision,
            multiscale=looks,
            on_progress=lambda done, total: progress.update(progress.task_ids[0], completed=done, total=total),
        )
    if not any(matrix.counts.any() for matrix in matrices.values()):
        raise DatasetError(f"{data}: no pixel of {split} has a label, all are void; expected some to score")
    said = evaluation.protocol(pictures, strategy=chosen, device=device, precision=precision, multiscale=looks)
    results = evaluation.results(matrices, protocol={"model": str(model), "data": data, **said})
    if str(json) != "-":
        console = Console()
        for note in pictures.notes:
            console.print(note, style="dim", markup=False, soft_wrap=True)
        for head, matrix in matrices.items():
            title = f"{data}, {split}, {len(pictures)} pictures" + (f", head {head}" if len(matrices) > 1 else "")
            console.print(scores_table(matrix.as_dict(), title))
    output_json(json, results)
