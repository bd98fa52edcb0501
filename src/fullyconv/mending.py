"""A mended copy of a folder of pictures and label maps: what can be mended without guessing is, the rest is left out.

The original is read and never written. The copy appears whole or not at all, with ``mended.json`` in it: what was done,
and what was left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv import images, records
from fullyconv.checking import CheckReport
from fullyconv.config import Classes
from fullyconv.datasets.base import SegmentationDataset
from fullyconv.datasets.folder import Folder
from fullyconv.diagnosis import shift_of
from fullyconv.errors import CheckpointError, ConfigError, DatasetError, ImageError
from fullyconv.findings import KINDS, Finding

DROPPED = frozenset({"corrupt", "size", "label", "lossy", "void"})
"""Kinds whose pairs are left out, whatever they hold."""
REPAIRED = frozenset({"exif", "shifted", "rgb", "alpha", "antialiased"})
"""Kinds whose label maps can be written anew where they prove what was meant."""
LEARNT_AND_SCORED = frozenset({"overlap", "near-duplicate"})
"""Kinds whose pictures are left out of train."""


@dataclass(frozen=True)
class Mended:
    """What became of a data set.

    Attributes:
        out: the copy.
        pairs: how many pairs it has, by split.
        done: what was changed or left out, a line each.
        left: what was found and could not be mended without guessing, a line each.
    """

    out: Path
    pairs: Mapping[str, int]
    done: tuple[str, ...]
    left: tuple[str, ...]


@dataclass
class _Plan:
    """What is to become of the pairs of one split, by name."""

    dropped: dict[str, str] = field(default_factory=dict)
    labels: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    upright: set[str] = field(default_factory=set)


def mend(
    splits: Mapping[str, SegmentationDataset], reports: Mapping[str, CheckReport], out: str | PathLike[str]
) -> Mended:
    """Write a mended copy of a folder that has been looked through.

    Files that are sound are copied byte for byte. Nothing is resized, and no label is invented.

    Args:
        splits: by name, as `fullyconv.datasets.folder.open_folder` opens them.
        reports: what `fullyconv.checking.check_splits` found in them.
        out: a folder that is not there yet, or empty; neither inside the data nor around it.

    Raises:
        ConfigError: ``out`` is none of that.
        DatasetError: not a folder of pictures and label maps, nothing would be left, or the copy cannot be written.
    """
    folders = {split: data for split, data in splits.items() if isinstance(data, Folder)}
    if len(folders) < len(splits) or not folders:
        raise DatasetError("--fix: only folders of pictures and label maps are mended, not published data sets")
    out = Path(out)
    _refuse_out(out, folders)
    done: list[str] = []
    left: list[str] = []
    plans = {split: _Plan() for split in folders}
    owner = {str(path): (split, i) for split, data in folders.items() for i in range(len(data)) for path in data.paths(i)}
    palette = _common_palette(folders)
    for split, report in reports.items():
        for finding in report.findings:
            _decide(finding, split, folders, reports, owner, plans, palette, done, left)
    kept = {split: [n for n in data.names if n not in plans[split].dropped] for split, data in folders.items()}
    for split in ("train", "val"):
        if split in kept and not kept[split]:
            raise DatasetError(
                f"{folders[split].root}: --fix would leave no pair of {split}: {left[0] if left else done[0]}",
                findings=(*done, *left),
            )
    _write(folders, plans, out, done, left)
    return Mended(out, {split: len(names) for split, names in kept.items()}, tuple(done), tuple(left))


def _refuse_out(out: Path, folders: Mapping[str, Folder]) -> None:
    target = out.resolve()
    sources = {folder.root.resolve() for folder in folders.values()}
    sources |= {path.resolve().parent for data in folders.values() for i in range(len(data)) for path in data.paths(i)}
    for source in sources:
        if target.is_relative_to(source) or source.is_relative_to(target):
            raise ConfigError(f"{out}: lies inside or around the data, {source}; name another folder", where="fix")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConfigError(f"{out}: there already, and not an empty folder; name another", where="fix")


# What is to be done --------------------------------------------------------------------------------------------------


def _decide(
    finding: Finding,
    split: str,
    folders: Mapping[str, Folder],
    reports: Mapping[str, CheckReport],
    owner: Mapping[str, tuple[str, int]],
    plans: Mapping[str, _Plan],
    palette: Mapping[tuple[int, int, int], int],
    done: list[str],
    left: list[str],
) -> None:
    concerned = list(dict.fromkeys(owner[file] for file in finding.files if file in owner))
    if finding.kind == "unpaired":
        done += [f"left out, since it has no partner: {file}" for file in finding.files]
    elif finding.kind in LEARNT_AND_SCORED:
        for where, index in concerned:
            if where == "train":
                _drop(plans, folders, where, index, finding.kind, done)
    elif finding.kind == "duplicate":
        twins = {pair.files[0]: pair.labels_digest for pair in reports[split].impressions}
        first, *others = concerned
        of_first = twins.get(str(folders[first[0]].paths(first[1])[0]))
        for where, index in others:
            if of_first and twins.get(str(folders[where].paths(index)[0])) == of_first:
                _drop(plans, folders, where, index, finding.kind, done)
            else:
                left.append(f"{finding.kind}: {finding.detail}")
    elif finding.kind in DROPPED:
        for where, index in concerned:
            _drop(plans, folders, where, index, finding.kind, done)
    elif finding.kind in REPAIRED and (finding.severity == "error" or finding.kind in ("rgb", "alpha", "exif")):
        for where, index in concerned:
            name = folders[where].names[index]
            picture, path = folders[where].paths(index)
            labels = _repaired(finding, picture, path, folders[where].classes["out"], palette)
            if labels is None:
                _drop(plans, folders, where, index, finding.kind, done)
            elif name not in plans[where].labels:
                plans[where].labels[name] = labels
                done.append(f"{finding.kind}: {path}: {KINDS[finding.kind].fixed.partition(' where ')[0]}")
                if finding.kind == "exif":
                    plans[where].upright.add(name)
    else:
        left.append(f"{finding.kind}: {finding.detail}")


def _drop(
    plans: Mapping[str, _Plan], folders: Mapping[str, Folder], split: str, index: int, kind: str, done: list[str]
) -> None:
    name = folders[split].names[index]
    if name not in plans[split].dropped:
        plans[split].dropped[name] = kind
        done.append(f"{kind}: left out of {split}: {folders[split].paths(index)[0]} and its label map")
