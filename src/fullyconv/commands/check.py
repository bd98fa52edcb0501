"""``fullyconv check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fullyconv.commands.options import BACKBONE, Data, Dataset, Inputs, Json, output_json, writable
from fullyconv.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from fullyconv.checking import CheckReport
    from fullyconv.datasets import SegmentationDataset

EXAMPLES = """\b
Examples:
  fullyconv check DATA
  fullyconv check DATA --html offenders.html --json findings.json
  fullyconv check DATA --fix MENDED

\b
Exit code: 0 nothing found; 1 something found; 2 DATA cannot be checked."""


def check(
    data: Data,
    fix: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT", help="Write a mended copy of DATA: what needs no guessing is mended, else left out."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=writable, help="Write a page of all that is wrong, with pictures and label maps."
        ),
    ] = None,
    json: Json = None,
    backbone: Annotated[
        str, typer.Option(metavar="NAME", help="Classifier whose receptive field the pictures are compared with.")
    ] = BACKBONE,
    dataset: Dataset = "folder",
    inputs: Inputs = None,
) -> None:
    """Look for what is wrong with a data set, and mend it.

    Finds files that cannot be read, label maps that do not fit their picture or the table of classes, copies within a
    split and across, and classes that are missing; docs/data.md lists all. Each finding names its files, says what it
    would do to training and how to mend it. DATA is never written to.
    """
    from rich.console import Console

    from fullyconv import backbones, census
    from fullyconv.checking import check_splits
    from fullyconv.display import checking, counts_table, print_findings
    from fullyconv.flags import inputs_of
    from fullyconv.mending import mend, refuse_out

    wanted = inputs_of(inputs) or ["color"]
    splits, untested = _splits(dataset, data, wanted)
    if fix is not None:
        refuse_out(fix, splits)  # before all is read
    grid = list(backbones.backbone(backbone).taps.values())[-1].grid

    def look(at: dict[str, SegmentationDataset]) -> dict[str, CheckReport]:
        with checking(at) as show:
            found = check_splits(at, on_progress=show)
        return {
            split: report.with_findings(census.of_field(report.impressions, backbone, grid.field, grid.stride))
            for split, report in found.items()
        }

    reports = look(splits)
    results: dict[str, Any] = {
        "findings": [{"split": split, **found.json()} for split, report in reports.items() for found in report.findings]
    }
    for split, report in reports.items():
        table = {
            head: dict(zip(classes.names, report.counts[head].tolist(), strict=True))
            for head, classes in splits[split].classes.items()
        }
        notes = [*splits[split].notes, *report.notes]
        results[split] = {"pictures": len(splits[split]), "notes": notes, "pixels": table, "void": dict(report.void)}
    if str(json) != "-":
        console = Console()
        for split, report in reports.items():
            for note in results[split]["notes"]:
                console.print(note, style="dim", markup=False, soft_wrap=True)
            for head, pixels in results[split]["pixels"].items():
                console.print(counts_table(pixels, report.void[head], f"{split}: {len(splits[split])} pictures"))
        if untested:
            console.print(f"test is not looked at: {untested}", style="dim", markup=False, soft_wrap=True)
        sees = f"a cell of {backbone}'s coarsest map sees {float(grid.field):g} pixels, with one every {grid.stride}"
        console.print(sees, style="dim", markup=False, soft_wrap=True)
        print_findings(console, {split: report.findings for split, report in reports.items()})
    output_json(json, results)
    if html is not None:
        from fullyconv.contact_sheet import contact_sheet

        _write_text(html, contact_sheet(data, splits, reports), where="html")
    if fix is not None:
        mended = mend(splits, reports, fix)
        copied, _ = _splits(dataset, str(mended.out), wanted)
        left = [found for report in look(copied).values() for found in report.findings]
        if str(json) != "-":
            for line in mended.done:
                print(f"done: {line}")
            for line in mended.left:
                print(f"left: {line}")
            pairs = ", ".join(f"{split} {count}" for split, count in mended.pairs.items())
            errors = sum(found.severity == "error" for found in left)
            print(f"mended copy: {mended.out} ({pairs}); in it: {errors} errors, {len(left) - errors} warnings")
    if results["findings"]:
        raise typer.Exit(1)


def _splits(dataset: str, data: str, inputs: list[str]) -> tuple[dict[str, Any], str]:
    """The splits, and why test is not among them: many a data set has none, or keeps its labels secret."""
    from fullyconv import datasets

    splits = {split: datasets.dataset(dataset, data, split=split, inputs=inputs) for split in ("train", "val")}
    try:
        splits["test"] = datasets.dataset(dataset, data, split="test", inputs=inputs)
    except DatasetError as error:
        return splits, str(error)
    return splits, ""


def _write_text(path: Path, text: str, *, where: str) -> None:
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror}", where=where) from None
