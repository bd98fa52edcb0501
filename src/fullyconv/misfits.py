"""Label maps that can be read and do not fit: interpolated, with ids moved by one, exchanged, or not turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from fullyconv import agreement
from fullyconv.config import Classes
from fullyconv.datasets.base import Sample, SegmentationDataset
from fullyconv.diagnosis import shift_of
from fullyconv.findings import Finding
from fullyconv.images import SUFFIXES, read_image
from fullyconv.impressions import Impression, impression
from fullyconv.opening import read_form, turned
from fullyconv.values import read_values

SEAM = 0.12
"""Pixels between two other labels, and between them in number, to one border, from which on a label map is taken for
interpolated. CamVid's maps have 0.03 at most, shrunk by a quarter with bilinear interpolation 0.25 at least."""

BORDERS = 64
"""Pixels of border from which on a label map is judged by the edges under them; fewer lie on edges by chance."""
TRIED = 2016
"""Most pairs of label maps that are exchanged on trial: every two of 64."""


def reconsidered(bad: Sequence[Finding], data: SegmentationDataset, pairs: Sequence[Impression]) -> list[Finding]:
    """The findings on pairs that were refused, once all have been seen.

    Ids that are moved in all label maps are one finding. Where others are right, the rest of the set must say that a
    map is moved: else its id is one more that the table has not. Two label maps of each other's size are exchanged.
    """
    if len(data.classes) != 1:
        return list(bad)
    table = next(iter(data.classes.values()))
    others = [finding for finding in bad if finding.kind not in ("shifted", "size")]
    moved = [finding for finding in bad if finding.kind == "shifted"]
    order = {finding.files[0]: i for i, finding in enumerate(bad)}
    found = [*_all_moved(moved, data, pairs, table), *_of_each_others_size(bad), *others]
    return sorted(found, key=lambda finding: order[finding.files[0]])


def _all_moved(
    moved: Sequence[Finding], data: SegmentationDataset, pairs: Sequence[Impression], table: Classes
) -> list[Finding]:
    counts = sum((next(iter(pair.pixels.values())) for pair in pairs), np.zeros(len(table) + 1, np.int64))
    for word, missing in (("high", 0), ("low", len(table) - 1)):
        if len(moved) > 1 and 10 * len(moved) >= len(data) and not counts[missing]:
            detail = (
                f"{len(moved)} of {len(data)} label maps of {data.split} have an id that is one too {word} for the "
                f"table, and none has {table.names[missing]}: all ids are moved by one; the first: {moved[0].detail}"
            )
            # Those without such an id are moved with the others; the first is one that proves it.
            files = dict.fromkeys([*(finding.files[0] for finding in moved), *(pair.files[1] for pair in pairs)])
            return [Finding("shifted", "error", tuple(files), detail)]
    numbers = {str(data.paths(i)[1]): i for i in range(len(data))} if moved else {}
    looks = agreement.Looks(pairs, len(table)) if moved and len(pairs) >= agreement.ENOUGH else None
    found = []
    for finding in moved:
        if looks is None:
            hint = "are all ids of this map moved by one? The other maps are too few to tell"
            found.append(replace(finding, kind="label", detail=f"{finding.detail}; {hint}"))
        elif _fits_moved(data, numbers[finding.files[0]], table, looks):
            found.append(
                replace(finding, detail=f"{finding.detail}; with all ids moved by one it fits its picture better")
            )
        else:
            found.append(replace(finding, kind="label"))
    return found


def _fits_moved(data: SegmentationDataset, index: int, table: Classes, looks: agreement.Looks) -> bool:
    picture, label_map = data.paths(index)
    if picture is None or label_map is None:
        return False
    values = read_values(label_map)
    labels = np.full(values.shape, table.void)
    for number, channel in table.index_of_id().items():
        labels[values == number] = channel
    seen = impression(Sample("", read_image(picture).pixels, {"out": labels}), ("", ""), {"out": table})
    step = shift_of(np.unique(values).tolist(), table)
    return agreement.gain_by_moving(seen, len(table), looks, step) > 0


def _of_each_others_size(bad: Sequence[Finding]) -> list[Finding]:
    wrong = [finding for finding in bad if finding.kind == "size"]
    sizes = {file: _upright_size(file) for finding in wrong for file in finding.files}
    fits = [
        {j for j, other in enumerate(wrong) if (size := sizes[one.files[0]]) and size == sizes[other.files[-1]]}
        for one in wrong
    ]  # whose picture each map has the size of
    found: list[Finding] = []
    for i, one in enumerate(wrong):
        # Only where there is no other choice.
        if len(fits[i]) == 1 and fits[j := min(fits[i])] == {i}:
            if i < j:
                detail = f"the label maps {one.files[0]} and {wrong[j].files[0]} have the size of each other's picture"
                found.append(Finding("swapped", "error", (*one.files, *wrong[j].files), detail))
        else:
            found.append(one)
    return found


def _upright_size(path: str) -> tuple[int, int] | None:
    if Path(path).suffix.lower() not in SUFFIXES:  # such as .mat
        return None
    form = read_form(path)
    return (form.size[1], form.size[0]) if form.orientation >= 5 else form.size


def interpolated(pairs: Sequence[Impression]) -> list[Finding]:
    """Label maps with seams of labels between two others, as interpolation and anti-aliasing make them."""
    found = []
    for pair in pairs:
        borders, alone, between = pair.seams
        if between > SEAM * borders and 2 * between > alone and borders >= 50:
            detail = (
                f"{pair.files[1]}: {between:,} of {alone:,} pixels between two other labels lie between them in "
                "number, as interpolation makes them; expected about none"
            )
            found.append(Finding("antialiased", "warning", (pair.files[1],), detail))
    return found


def moved_in(pairs: Sequence[Impression], classes: Classes) -> list[Finding]:
    """Label maps whose ids are moved by one against those of the others, within the table."""
    found = []
    for step, those in agreement.moved(pairs, len(classes)).items():
        for pair in those:
            detail = (
                f"{pair.files[1]}: fits its picture clearly better with all ids {'lowered' if step < 0 else 'raised'} "
                "by one, going by how the classes look and where they lie in the other pictures; are its ids too "
                f"{'high' if step < 0 else 'low'} by one?"
            )
            found.append(Finding("shifted", "warning", (pair.files[1],), detail))
    return found


def moved_against(
    train: tuple[SegmentationDataset, Sequence[Impression]], val: tuple[SegmentationDataset, Sequence[Impression]]
) -> list[Finding]:
    """A split most of whose maps have ids that are moved against those of train."""
    classes = len(next(iter(train[0].classes.values())))
    (_, learnt), (_, pairs) = train, val
    if len(learnt) < agreement.ENOUGH or not pairs:
        return []
    looks = agreement.Looks(learnt, classes)
    for step, those in agreement.moved(pairs, classes, looks).items():
        if 2 * len(those) > len(pairs):
            detail = (
                f"{len(those)} of {len(pairs)} label maps of {val[0].split} fit their pictures clearly better with all "
                f"ids {'lowered' if step < 0 else 'raised'} by one, going by {train[0].split}: one of the two is moved"
            )
            return [Finding("shifted", "error", tuple(pair.files[1] for pair in those), detail)]
    return []


def exchanged(data: SegmentationDataset, pairs: Sequence[Impression], numbers: Mapping[str, int]) -> list[Finding]:
    """Label maps that have changed places: by colour first, and then on the edges of the pictures, read once more."""
    found: list[tuple[float, int, int]] = []
    head = next(iter(data.classes))
    tried = agreement.candidates(pairs, len(data.classes[head]))[:TRIED]

    @lru_cache(maxsize=agreement.FEW)
    def outlines(i: int) -> tuple[agreement.Floats, agreement.Floats]:
        sample = data[numbers[pairs[i].name]]
        return agreement.edges_of(sample.image), agreement.borders_of(sample.labels[head])

    for i, j in tried:
        if pairs[i].size != pairs[j].size or pairs[i].labels_digest == pairs[j].labels_digest:
            continue
        (edges_i, borders_i), (edges_j, borders_j) = outlines(i), outlines(j)
        if min(borders_i.sum(), borders_j.sum()) < BORDERS:
            continue
        as_it_is = agreement.under_borders(edges_i, borders_i) + agreement.under_borders(edges_j, borders_j)
        exchanged = agreement.under_borders(edges_i, borders_j) + agreement.under_borders(edges_j, borders_i)
        if exchanged - as_it_is > agreement.ON_EDGES_BY:
            found.append((exchanged - as_it_is, i, j))
    findings = []
    taken: set[int] = set()
    for _, i, j in sorted(found, reverse=True):
        if not {i, j} & taken:
            taken |= {i, j}
            detail = (
                f"the label maps of {pairs[i].name} and {pairs[j].name} lie each on the edges of the other's picture: "
                "have they changed places?"
            )
            findings.append(Finding("swapped", "warning", (*pairs[i].files, *pairs[j].files), detail))
    return findings


def not_turned(data: SegmentationDataset, pairs: Sequence[Impression], numbers: Mapping[str, int]) -> list[Finding]:
    """Label maps of pictures that EXIF has turned, and that lie on the picture's edges only once turned as well."""
    found = []
    head = next(iter(data.classes))
    for pair in pairs:
        if not pair.turned:
            continue
        sample = data[numbers[pair.name]]
        labels = sample.labels[head]
        there = turned(labels, read_form(pair.files[0]).orientation)
        if there.shape != labels.shape:
            continue
        edges = agreement.edges_of(sample.image)
        own, other = (agreement.under_borders(edges, agreement.borders_of(turn)) for turn in (labels, there))
        if other - own > agreement.EXCHANGED_BY:
            detail = (
                f"{pair.files[1]}: lies on the edges of its picture only when it is turned as the picture's EXIF says"
            )
            found.append(Finding("exif", "warning", (pair.files[1], pair.files[0]), detail))
    return found
