"""Label maps that can be read and do not fit: interpolated, with ids moved by one, exchanged, or not turned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from fullyconv import agreement
from fullyconv.config import Classes
from fullyconv.datasets.base import SegmentationDataset
from fullyconv.findings import Finding
from fullyconv.images import read_form, turned
from fullyconv.impressions import Impression

SEAM = 0.12
"""Pixels between two other labels, and between them in number, to one border, from which on a label map is taken for
interpolated. CamVid's maps have 0.03 at most, shrunk by a quarter with bilinear interpolation 0.25 at least."""

TRIED = 2016
"""Most pairs of label maps that are exchanged on trial: every two of 64."""


def interpolated(pairs: Sequence[Impression]) -> list[Finding]:
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
    read = lru_cache(maxsize=agreement.FEW)(lambda i: data[numbers[pairs[i].name]])
    for i, j in tried:
        if pairs[i].size != pairs[j].size or pairs[i].labels_digest == pairs[j].labels_digest:
            continue
        maps = read(i).labels[head], read(j).labels[head]
        (own_i, j_on_i), (i_on_j, own_j) = (agreement.under_borders(read(k).image, *maps) for k in (i, j))
        gains = j_on_i - own_i, i_on_j - own_j
        if sum(gains) > agreement.ON_EDGES_BY:
            found.append((sum(gains), i, j))
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
        own, other = agreement.under_borders(sample.image, labels, there)
        if other - own > agreement.EXCHANGED_BY:
            detail = (
                f"{pair.files[1]}: lies on the edges of its picture only when it is turned as the picture's EXIF says"
            )
            found.append(Finding("exif", "warning", (pair.files[1], pair.files[0]), detail))
    return found
