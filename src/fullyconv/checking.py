"""Look at every picture and label map before training does.

A label that no class has, met in the middle of training, is an assertion in a GPU kernel without a file name; met here
it is one line with the file, the value and the number of pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from fullyconv.datasets.base import Sample, SegmentationDataset
from fullyconv.datasets.listed import Listed
from fullyconv.errors import DatasetError, ImageError

Counts = Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        kind: "picture" or "label" (a file that cannot be used), "unpaired" (a file without partner), "void" (pictures
            without a labelled pixel), "absent" (classes without a pixel), "single" (one class holds all pixels),
            "overlap" (pictures that are in another split, too).
        severity: with an "error" training would fail or learn nothing; a "warning" is for the user to judge.
        files: the files, or samples, concerned.
        detail: what was found, what was expected, what to do; one line.
    """

    kind: Literal["picture", "label", "unpaired", "void", "absent", "single", "overlap"]
    severity: Literal["error", "warning"]
    files: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    Attributes:
        findings: errors first, then in the order of the samples.
        counts: for each head, pixels of each class, (K,) int64 in channel order; void is not counted.
        void: for each head, void pixels.
        sizes: (height, width) of each readable picture, in the order of the samples.
        notes: what was done to pictures on the way in, such as a turn by EXIF or 16 bits made 8: a line for each kind.
        contents: from a digest of the pixels to the name of the picture; pictures of one colour, such as black frames,
            are left out.
    """

    findings: tuple[Finding, ...]
    counts: Counts
    void: Mapping[str, int]
    sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    contents: Mapping[bytes, str] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that training must not start with."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether there are no errors; warnings there may be."""
        return not self.errors

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
    tables = data.classes
    counts = {head: np.zeros(len(table), np.int64) for head, table in tables.items()}
    void = dict.fromkeys(tables, 0)
    sizes: list[tuple[int, int]] = []
    bad: list[Finding] = []
    bare: list[str] = []
    noted: dict[str, list[str]] = {}
    contents: dict[bytes, str] = {}

    def look(index: int) -> tuple[Sample, dict[str, npt.NDArray[np.int64]], bytes] | Finding:
        try:
            sample = data[index]
        except ImageError as error:
            kind: Literal["picture", "label"] = "label" if error.path in data.paths(index)[1:] else "picture"
            return Finding(kind, "error", (str(error.path),), str(error))
        pixels = {
            head: np.bincount(labels.ravel(), minlength=tables[head].void + 1).astype(np.int64)
            for head, labels in sample.labels.items()
        }
        return sample, pixels, _digest(sample.image)

    # Threads, not processes: decoding leaves the interpreter free, and the data set need not be copied.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for done, result in enumerate(pool.map(look, range(len(data))), start=1):
            if isinstance(result, Finding):
                bad.append(result)
            else:
                sample, pixels, digest = result
                if digest:
                    contents.setdefault(digest, sample.name)
                sizes.append((sample.image.shape[0], sample.image.shape[1]))
                for note in sample.notes:
                    # What is in brackets is of one file, such as the range of its values.
                    noted.setdefault(note.partition(" (")[0], []).append(f"{sample.name}: {note}")
                for head, found in pixels.items():
                    counts[head] += found[: len(tables[head])]
                    void[head] += int(found[tables[head].void])
                if not any(found[: len(tables[head])].any() for head, found in pixels.items()):
                    bare.append(sample.name)
            if on_progress:
                on_progress(done, len(data))

    findings = bad + [finding for head in tables for finding in _of_classes(data, head, counts[head], void[head])]
    if unpaired := tuple(str(path) for path in getattr(data, "unpaired", ())):
        findings.append(
            Finding("unpaired", "warning", unpaired, f"{len(unpaired)} files have no partner and are left out")
        )
    if bare:
        findings.append(
            Finding("void", "warning", tuple(bare), f"{len(bare)} pictures hold no labelled pixel, and teach nothing")
        )
    findings.sort(key=lambda finding: finding.severity)  # "error" before "warning"; the sort is stable
    notes = tuple(f"{len(files)} of {len(data)} pictures: {kind}, as in {files[0]}" for kind, files in noted.items())
    return CheckReport(tuple(findings), counts, void, tuple(sizes), notes, contents)


def overlap(
    train: SegmentationDataset,
    val: SegmentationDataset,
    reports: tuple[CheckReport, CheckReport] | None = None,
) -> Finding | None:
    """The pictures of ``train`` that are in ``val``, too, on which a score would say nothing; None: there are none.

    A picture is the same when its file is; in a published data set, when its name is, whatever folder it lies in; and,
    where both have been looked through, when its pixels are, under whatever name.

    Args:
        train: what is learnt from.
        val: what is scored on.
        reports: what `check` found in the two.

    Example:
        >>> from fullyconv.datasets import dataset
        >>> train, val = (dataset("scenes", "count=20", split=split) for split in ("train", "val"))
        >>> overlap(train, val) is None
        True
        >>> overlap(train, train).detail  # doctest: +ELLIPSIS
        'all 20 pictures of train are in train, too: train-000000, ...; a picture that is learnt cannot be scored: ...'
    """
    shared: dict[str, str] = {}
    of_file = {path: train.names[i] for i in range(len(train)) if (path := _file(train, i))}
    for i, name in enumerate(val.names):
        if (twin := of_file.get(_file(val, i) or "")) is not None:
            shared.setdefault(name, twin)
    if train is val or (isinstance(train, Listed) and isinstance(val, Listed)):
        shared |= {name: name for name in set(train.names).intersection(val.names) if name not in shared}
    if reports is not None:
        for digest in reports[0].contents.keys() & reports[1].contents.keys():
            shared.setdefault(reports[1].contents[digest], reports[0].contents[digest])
    if not shared:
        return None
    pairs = sorted(shared.items())
    named = [name if name == twin else f"{name} (as {twin} in {train.split})" for name, twin in pairs]
    count = f"all {len(val)}" if len(pairs) == len(val) else f"{len(pairs)} of the {len(val)}"
    detail = (
        f"{count} pictures of {val.split} are in {train.split}, too: {', '.join(named[:5])}"
        f"{', ...' if named[5:] else ''}; a picture that is learnt cannot be scored: drop them from one of the two"
    )
    return Finding("overlap", "error", tuple(named), detail)


def _file(data: SegmentationDataset, index: int) -> str | None:
    path = data.paths(index)[0]
    return None if path is None else os.path.realpath(path)


def _digest(image: npt.NDArray[np.generic]) -> bytes:
    """Of the pixels; empty for a picture of one colour, of which two are no proof of a copy."""
    if (image == image[:1, :1]).all():
        return b""
    digest = hashlib.blake2b(f"{image.shape}{image.dtype}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _of_classes(data: SegmentationDataset, head: str, counts: npt.NDArray[np.int64], void: int) -> list[Finding]:
    names = data.classes[head].names
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if not counts.any():
        detail = f"no pixel of {data.split} belongs to a class; expected labels of {', '.join(names[:5])}, ..."
        return [Finding("absent", "error", (), detail)]
    if len(names) > 1 and len(absent) == len(names) - 1:
        only = names[int(counts.argmax())]
        hint = (
            f"; {void:,} pixels are void: if label maps are masks of 0 and 255, 255 counts as void unless classes.json "
            "gives it to a class"
        )
        return [Finding("single", "error", (), f"every labelled pixel of {data.split} is {only}{hint if void else ''}")]
    if absent:
        detail = f"{len(absent)} of {len(names)} classes do not occur in {data.split}: {', '.join(absent)}"
        return [Finding("absent", "warning", (), detail)]
    return []
