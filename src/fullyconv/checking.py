"""Look at every picture and label map before training does.

A label that no class has, met in the middle of training, is an assertion in a GPU kernel without a file name; met here
it is one line with the file, the value and the number of pixels. What is wrong with pairs that can be read (copies, ids
moved by one, exchanged label maps) is found by comparing them with the others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from fullyconv import census, duplicates, misfits
from fullyconv.census import Counts
from fullyconv.config import Classes, ClassInfo, voc_colour
from fullyconv.datasets.base import SegmentationDataset
from fullyconv.diagnosis import diagnose
from fullyconv.duplicates import overlap
from fullyconv.errors import DatasetError, ImageError
from fullyconv.findings import Finding
from fullyconv.images import SUFFIXES
from fullyconv.impressions import Impression, impression
from fullyconv.opening import Form, read_form

__all__ = ["CheckReport", "Counts", "Finding", "across", "check", "check_splits", "overlap"]


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        findings: errors first, then in the order of the samples.
        counts: for each head, pixels of each class, (K,) int64 in channel order; void is not counted.
        void: for each head, void pixels.
        impressions: of each pair that could be read, in the order of the samples.
        notes: how large the pictures are, and what was done to them on the way in, such as a turn by EXIF or 16 bits
            made 8: a line for each kind.
    """

    findings: tuple[Finding, ...]
    counts: Counts
    void: Mapping[str, int]
    impressions: tuple[Impression, ...]
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of each picture that could be read, in the order of the samples."""
        return tuple(pair.size for pair in self.impressions)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that training must not start with."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings there may be."""
        return not self.errors

    def with_findings(self, more: Sequence[Finding]) -> CheckReport:
        """The same with more findings, errors first."""
        # The sort is stable, and "error" comes before "warning".
        return replace(self, findings=tuple(sorted((*self.findings, *more), key=lambda finding: finding.severity)))

    def raise_for_errors(self) -> None:
        """Raise the errors as one `DatasetError`, whose ``findings`` hold a line for each."""
        if errors := [finding.detail for finding in self.errors]:
            more = f" (and {len(errors) - 1} more files or faults; `fullyconv check` lists them)" if errors[1:] else ""
            raise DatasetError(errors[0] + more, findings=errors)


def check(data: SegmentationDataset, *, on_progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every sample and report what is wrong with it, and how often each class occurs.

    Args:
        data: one split.
        on_progress: called with the number of samples done and of all.

    Example:
        >>> from fullyconv.datasets import dataset
        >>> report = check(dataset("scenes", "count=20"))
        >>> report.ok, int(report.counts["out"].sum()) + report.void["out"]
        (True, 512000)
    """
    bad: list[Finding] = []
    pairs: list[Impression] = []
    numbers: dict[str, int] = {}
    noted: dict[str, list[str]] = {}
    forms: dict[str, Form] = {}
    # Threads, not processes: decoding leaves the interpreter free, and the data set need not be copied.
    with ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(partial(_look, data), range(len(data))), start=1):
            if isinstance(result, Finding):
                bad.append(result)
            else:
                pair, notes, of_maps = result
                pairs.append(pair)
                numbers[pair.name] = done - 1
                forms |= of_maps
                for note in notes:
                    # What is in brackets is of one file, such as the range of its values.
                    noted.setdefault(note.partition(" (")[0], []).append(f"{pair.name}: {note}")
            if on_progress:
                on_progress(done, len(data))

    heads = list(data.classes)
    counts = {h: np.zeros(len(data.classes[h]) + 1, np.int64) for h in heads}
    shown = {h: np.zeros(len(data.classes[h]), np.int64) for h in heads}
    for pair in pairs:
        for head in heads:
            counts[head] += pair.pixels[head]
            shown[head] += pair.pixels[head][:-1] > 0
    found = misfits.reconsidered(bad, data, pairs)
    labelled = any(counts[head][:-1].any() for head in heads)
    secret = data.split == "test" and bool(pairs) and not labelled
    # Where no pair can be read, no class occurs, and that says nothing more.
    for head in heads if (pairs or not bad) and not secret else ():
        said = counts[head][:-1], int(counts[head][-1]), shown[head]
        found += census.of_classes(head, data.classes[head], data.split, *said)
    if unpaired := tuple(str(path) for path in getattr(data, "unpaired", ())):
        named = ", ".join(unpaired[:5]) + (", ..." if unpaired[5:] else "")
        have, are = ("1 file has", "is") if len(unpaired) == 1 else (f"{len(unpaired)} files have", "are")
        said_of_them = f"{have} no partner of the same name and {are} left out: {named}"
        found.append(Finding("unpaired", "warning", unpaired, said_of_them))
    found += (census.of_void(pairs) if labelled else []) + census.of_sizes(pairs) + duplicates.duplicates(pairs)
    found += _of_forms(forms, data.classes)
    found += misfits.interpolated(pairs) + misfits.moved_in(pairs, data.classes[heads[0]])
    found += misfits.exchanged(data, pairs, numbers) + misfits.not_turned(data, pairs, numbers)
    lines = [census.sizes_line(pairs)]
    lines += ["every pixel of test is void: its labels are kept secret, perhaps; nothing can be scored on it"] * secret
    lines += [f"{len(files)} of {len(data)} pictures: {kind}, as in {files[0]}" for kind, files in noted.items()]
    return CheckReport(
        findings=(),
        counts={head: counts[head][:-1] for head in heads},
        void={head: int(counts[head][-1]) for head in heads},
        impressions=tuple(pairs),
        notes=tuple(lines),
    ).with_findings(found)


def check_splits(
    splits: Mapping[str, SegmentationDataset], *, on_progress: Callable[[str, int, int], None] | None = None
) -> dict[str, CheckReport]:
    """Check each split of a data set, and all others against train.

    Args:
        splits: by name; what is learnt from is "train".
        on_progress: called with the split, and the number of its samples done and of all.
    """
    reports: dict[str, CheckReport] = {}
    said: set[Finding] = set()
    for split, data in splits.items():
        report = check(data, on_progress=partial(on_progress, split) if on_progress else None)
        # Files without a partner are in no split, so each of a folder that is not divided has them all.
        report = replace(report, findings=tuple(f for f in report.findings if f.kind != "unpaired" or f not in said))
        said.update(report.findings)
        if split != "train" and "train" in splits:
            more = across((splits["train"], reports["train"]), (data, report))
            # Training scores on val, and is stopped; test is scored by who asks for it.
            report = report.with_findings(more if split == "val" else [replace(f, severity="warning") for f in more])
        reports[split] = report
    return reports


def across(
    train: tuple[SegmentationDataset, CheckReport], val: tuple[SegmentationDataset, CheckReport]
) -> list[Finding]:
    """What is wrong with two splits together: pictures that are in both, or nearly, and ids that one has moved."""
    (learnt, of_learnt), (scored, of_scored) = train, val
    pairs = of_learnt.impressions, of_scored.impressions
    found = overlap(learnt, scored, pairs)
    near = duplicates.near_duplicates(*pairs, (learnt.split, scored.split))
    return [
        finding for finding in (found, near, *misfits.moved_against((learnt, pairs[0]), (scored, pairs[1]))) if finding
    ]


# One pair -----------------------------------------------------------------------------------------------------------


def _look(data: SegmentationDataset, index: int) -> tuple[Impression, tuple[str, ...], dict[str, Form]] | Finding:
    paths = data.paths(index)
    try:
        sample = data[index]
        forms = {str(path): read_form(path) for path in paths[1:] if path and path.suffix.lower() in SUFFIXES}
    except ImageError as error:
        return diagnose(error, paths, data.classes)
    files = tuple(str(path or data.names[index]) for path in paths)
    return impression(sample, files, data.classes), sample.notes, forms


# All pairs ----------------------------------------------------------------------------------------------------------


def _of_forms(forms: Mapping[str, Form], classes: Mapping[str, Classes]) -> list[Finding]:
    """Label maps that can be read, and are stored as others would not expect."""
    found = []
    if clear := tuple(path for path, form in forms.items() if form.transparency):
        detail = f"{len(clear)} label maps have an alpha channel or a palette with transparent entries: {clear[0]}"
        found.append(Finding("alpha", "warning", clear, detail))
    coloured = tuple(path for path, form in forms.items() if form.mode.startswith("RGB") and not form.transparency)
    own_colours = any(c.colour != voc_colour(c.id) for table in classes.values() for c in table.entries)
    if coloured and not (own_colours and len(coloured) == len(forms)):
        why = (
            f"the other {len(forms) - len(coloured)} hold ids"
            if len(coloured) < len(forms)
            else "the table gives no colours, so those of PASCAL VOC are assumed"
        )
        detail = f"{len(coloured)} label maps hold colours, and {why}: {coloured[0]}"
        found.append(Finding("rgb", "warning", coloured, detail))
    if len(classes) == 1:
        table = next(iter(classes.values()))
        found += _of_palettes(forms, table) if own_colours else _of_each_other(forms, table)
    return found


def _of_each_other(forms: Mapping[str, Form], table: Classes) -> list[Finding]:
    """Label maps whose palettes have the colours of the others in another order, two at least: one may be unused.

    Programs that save pictures in fewer bytes sort palettes anew, and change the ids with them.
    """
    ids = [entry.id for entry in table.entries]
    shown: dict[str, dict[tuple[int, int, int], int]] = {}
    for path, form in forms.items():
        own = Counter(form.palette[i] for i in ids if i < len(form.palette))
        shown[path] = {form.palette[i]: i for i in ids if i < len(form.palette) and own[form.palette[i]] == 1}
    votes: dict[tuple[int, int, int], Counter[int]] = {}
    for colours in shown.values():
        for colour, number in colours.items():
            votes.setdefault(colour, Counter())[number] += 1
    usual = {colour: count.most_common(1)[0][0] for colour, count in votes.items()}
    contrary = {
        path: other
        for path, colours in shown.items()
        if len(other := [(colour, i) for colour, i in colours.items() if usual[colour] != i]) > 1
    }
    if not contrary:
        return []
    path, ((colour, number), *_) = next(iter(contrary.items()))
    detail = (
        f"palettes disagree: {path} shows id {number} in the colour {colour}, in which most label maps show id "
        f"{usual[colour]}; so do {len(contrary)} of {len(forms)} for some ids. Were they saved anew by a program that "
        "sorts palettes? Then their ids are others"
    )
    return [Finding("palette", "warning", tuple(contrary), detail)]


def _of_palettes(forms: Mapping[str, Form], table: Classes) -> list[Finding]:
    """Label maps whose palettes show ids in the colours of other classes, two at least: one may be unused."""
    colours = Counter(entry.colour for entry in table.entries)
    by_colour = {entry.colour: entry for entry in table.entries if colours[entry.colour] == 1}
    contrary: dict[str, list[tuple[ClassInfo, ClassInfo]]] = {}
    for path, form in forms.items():
        # Entries of one colour are entries that nobody has set.
        own = Counter(form.palette[e.id] for e in table.entries if e.id < len(form.palette))
        shown = [
            (e, by_colour.get(form.palette[e.id], e))
            for e in table.entries
            if e.id < len(form.palette) and own[form.palette[e.id]] == 1
        ]
        if len(other := [(entry, like) for entry, like in shown if like is not entry]) > 1:
            contrary[path] = other
    if not contrary:
        return []
    path, ((entry, like), *_) = next(iter(contrary.items()))
    detail = (
        f"{path}: its palette shows id {entry.id}, which the table calls {entry.name!r}, in the table's colour of "
        f"{like.name!r} (id {like.id}); so do {len(contrary)} of {len(forms)} label maps for some ids"
    )
    return [Finding("palette", "warning", tuple(contrary), detail)]
