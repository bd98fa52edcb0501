"""The offenders on one page: each finding with picture and label map side by side, in one file that opens offline."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fullyconv.checking import CheckReport
from fullyconv.config import voc_colour
from fullyconv.datasets.base import SegmentationDataset
from fullyconv.errors import ImageError
from fullyconv.findings import KINDS, Finding
from fullyconv.images import SUFFIXES, read_image
from fullyconv.report import Picture, cards, page, section, strip
from fullyconv.values import read_values

SHOWN = 24
"""Pairs that are shown of a kind; `NAMED` files of a finding are named."""
WIDEST = 280
"""Pixels across of a thumbnail."""
NAMED = 200
"""Files that are named of a finding."""
GRID = (
    "display: grid; grid-template-columns: repeat(auto-fill, minmax(24rem, 1fr)); gap: .4rem 1.6rem; "
    "align-items: end; overflow-wrap: anywhere"
)
"""Style of the tiles of one kind."""

UInt8 = npt.NDArray[np.uint8]
PALETTE = np.array([voc_colour(i) for i in range(256)], np.uint8)


def contact_sheet(data: str, splits: Mapping[str, SegmentationDataset], reports: Mapping[str, CheckReport]) -> str:
    """The page, as HTML.

    Args:
        data: what was looked through, for the title.
        splits: by name.
        reports: what was found in each.
    """
    pairs = {
        str(path): (split, i)
        for split, opened in splits.items()
        for i in range(len(opened))
        for path in opened.paths(i)
        if path is not None
    }
    findings = [(split, finding) for split, report in reports.items() for finding in report.findings]
    kinds = {kind: [(split, f) for split, f in findings if f.kind == kind] for kind in KINDS}
    errors = sum(finding.severity == "error" for _, finding in findings)
    parts = [
        f"<h1>{escape(data)}</h1>",
        '<p class="lead">What <code>fullyconv check</code> found, by kind; pictures beside their label maps.</p>',
        cards(
            {split: f"{len(opened):,}" for split, opened in splits.items()}
            | {"errors": str(errors), "warnings": str(len(findings) - errors)}
        ),
    ]
    if not findings:
        parts.append("<p>Nothing is wrong.</p>")
    for kind, found in kinds.items():
        if found:
            of_kind = KINDS[kind]
            fixed = f" With --fix: {of_kind.fixed}." if of_kind.fixed else ""
            said = f"What it would do: {of_kind.effect}. What to do: {of_kind.mend}.{fixed}"
            parts.append(section(f"{kind} ({len(found)})", said, *_of_kind(found, splits, pairs)))
    return page(f"check of {data}", parts)


def _of_kind(
    found: list[tuple[str, Finding]], splits: Mapping[str, SegmentationDataset], pairs: Mapping[str, tuple[str, int]]
) -> list[str]:
    parts = []
    room = SHOWN
    for split, finding in found:
        concerned = list(dict.fromkeys(pairs[file] for file in finding.files if file in pairs))
        alone = [Path(file) for file in finding.files if file not in pairs]
        shown = [_pair(splits[where], where, index) for where, index in concerned[:room]]
        shown += [strip([_picture(path)], widest=WIDEST) for path in alone[: room - len(shown)] if path.is_file()]
        room -= len(shown)
        mark = "warn" if finding.severity == "error" else ""
        said = f'<p class="{mark}"><b>{escape(split)}</b>: {escape(finding.detail)}</p>'
        if len(concerned) + len(alone) > len(shown):
            names = "".join(f"<li>{escape(file)}</li>" for file in finding.files[:NAMED])
            more = f"<li>and {len(finding.files) - NAMED} more</li>" if len(finding.files) > NAMED else ""
            said += f"<details><summary>{len(finding.files)} files</summary><ul>{names}{more}</ul></details>"
        if len(shown) == 1:
            parts.append(f"<div>{said}{shown[0]}</div>")
        else:
            parts += [f'<div style="grid-column: 1 / -1">{said}</div>', *(f"<div>{tile}</div>" for tile in shown)]
    return [f'<div style="{GRID}">', *parts, "</div>"]


def _pair(data: SegmentationDataset, split: str, index: int) -> str:
    shown = []
    picture, *maps = data.paths(index)
    if picture is not None:
        shown.append(_picture(picture))
    for path in maps:
        if path is not None and path.suffix.lower() in SUFFIXES:
            shown.append(_label_map(path))
    return strip(shown, title=f"{split}/{data.names[index]}", widest=WIDEST)


def _picture(path: Path) -> Picture:
    try:
        pixels: UInt8 = read_image(path).pixels
    except ImageError:
        return Picture(_NOTHING, f"{path.name}: cannot be read")
    return Picture(pixels, f"{path.name}, {pixels.shape[0]} x {pixels.shape[1]}")


def _label_map(path: Path) -> Picture:
    """A label map in the colours of PASCAL VOC by id, or as it is where it holds no ids."""
    try:
        values = read_values(path)
        pixels = values if values.ndim == 3 else PALETTE[values & 255]
    except ImageError:
        try:
            pixels = read_image(path).pixels
        except ImageError:
            return Picture(_NOTHING, f"{path.name}: cannot be read")
    return Picture(pixels, f"{path.name}, {pixels.shape[0]} x {pixels.shape[1]}")


_NOTHING = np.full((60, 80, 3), 128, np.uint8)
