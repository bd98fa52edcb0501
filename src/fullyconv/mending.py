"""A mended copy of a folder of pictures and label maps: what can be mended without guessing is, the rest is left out.

The original is read and never written. The copy appears whole or not at all, with ``mended.json`` in it: what was done,
and what was left.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fullyconv.checking import CheckReport
from fullyconv.config import Classes
from fullyconv.datasets.base import SegmentationDataset
from fullyconv.datasets.folder import Folder
from fullyconv.datasets.inputs import CHANNELS
from fullyconv.diagnosis import shift_of
from fullyconv.errors import ConfigError, DatasetError, ImageError
from fullyconv.findings import Finding
from fullyconv.images import read_image, write_image
from fullyconv.labels import Labels, label_channels, write_labels
from fullyconv.opening import read_form, turned
from fullyconv.records import write_json
from fullyconv.values import read_values

DROPPED = frozenset({"corrupt", "size", "label", "lossy", "void"})
"""Kinds whose pairs are left out, whatever is in them."""
REWRITTEN = frozenset({"exif", "shifted", "rgb", "alpha", "antialiased"})
"""Kinds whose label maps are written anew where the file says what was meant; else the pair is left out."""

Pair = tuple[str, int]
"""The split, and the number in it."""


@dataclass(frozen=True)
class Mended:
    """What became of a data set.

    Attributes:
        out: the copy.
        pairs: how many it has, by split.
        done: what was changed or left out, a line each.
        left: what was found and could not be mended without guessing, a line each.
    """

    out: Path
    pairs: Mapping[str, int]
    done: tuple[str, ...]
    left: tuple[str, ...]


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
    out = Path(out)
    folders = refuse_out(out, splits)
    plan = _Plan(folders, reports)
    for split, report in reports.items():
        for finding in report.findings:
            plan.take_up(split, finding)
    first = next(iter(folders.values()))
    plan.left += [
        f"inputs: {folder / name} is not in the copy; name {name} among --inputs to have it there"
        for folder in first.paths(0)[0].parents
        for name in CHANNELS
        if folder.is_relative_to(first.root) and name not in _inputs(folders) and (folder / name).is_dir()
    ]
    pairs = {split: sum((split, i) not in plan.dropped for i in range(len(data))) for split, data in folders.items()}
    if lacking := [split for split in pairs if not pairs[split]]:
        raise DatasetError(
            f"{folders[lacking[0]].root}: --fix would leave no pair of {lacking[0]}; the first that cannot be mended "
            f"without guessing: {plan.done[0]}",
            findings=(*plan.done, *plan.left),
        )
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        plan.write(part)
        # An empty folder may be in the place; `rename` would refuse it on some systems.
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise DatasetError(f"{out}: the mended copy cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Mended(out, pairs, tuple(plan.done), tuple(plan.left))


def refuse_out(out: Path, splits: Mapping[str, SegmentationDataset]) -> dict[str, Folder]:
    """Refuse to mend what is no folder, or into a folder that would harm it.

    Returns:
        The splits, all of which are of a folder.

    Raises:
        ConfigError: ``out`` lies inside or around the data, or is there already and no empty folder.
        DatasetError: the data are no folder of pictures and label maps.
    """
    folders = {split: data for split, data in splits.items() if isinstance(data, Folder)}
    if not folders or len(folders) < len(splits):
        raise DatasetError("--fix mends folders of pictures and label maps; a published data set is got again instead")
    if "color" not in _inputs(folders):
        raise ConfigError("a copy without its pictures could not be read; name color among --inputs, too", where="fix")
    target = out.resolve()
    sources = {folder.root.resolve() for folder in folders.values()}
    # Folders of the data may be links to elsewhere.
    sources |= {path.resolve().parent for data in folders.values() for i in range(len(data)) for path in data.paths(i)}
    for source in sorted(sources):
        if target.is_relative_to(source) or source.is_relative_to(target):
            raise ConfigError(f"{out}: lies inside or around the data ({source}); name another folder", where="fix")
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConfigError(f"{out}: is there already, and no empty folder; name another", where="fix")
    return folders


def _inputs(folders: Mapping[str, Folder]) -> Mapping[str, Path]:
    """The inputs of a picture, with the files of the first."""
    return next(iter(folders.values())).files[0][0]


@dataclass
class _Plan:
    """What is to become of each pair.

    Attributes:
        dropped: pairs that are left out, with the kind of finding.
        labels: channel numbers of label maps that are written anew.
        upright: pairs whose picture is stored upright.
        done, left: what is said of it.
    """

    folders: Mapping[str, Folder]
    reports: Mapping[str, CheckReport]
    dropped: dict[Pair, str] = field(default_factory=dict)
    labels: dict[Pair, Labels] = field(default_factory=dict)
    upright: set[Pair] = field(default_factory=set)
    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.owners: dict[str, list[Pair]] = {}  # a picture may be in several splits
        for split, data in self.folders.items():
            for i in range(len(data)):
                for path in data.paths(i):
                    self.owners.setdefault(str(path), []).append((split, i))
        self.palette = _common_palette(self.folders)

    def take_up(self, split: str, finding: Finding) -> None:
        """Decide what is done about a finding."""
        # Of a picture in two splits, what is scored stays, and what is learnt goes.
        shared = finding.kind in ("overlap", "near-duplicate")
        owners = dict.fromkeys(pair for file in finding.files for pair in self.owners.get(file, ()))
        pairs = [pair for pair in owners if pair[0] == ("train" if shared else split)]
        certain = finding.severity == "error" or finding.kind in ("rgb", "alpha", "exif")
        step = self._step(pairs) if finding.kind == "shifted" and certain else 0
        if finding.kind == "unpaired":
            self.done += [f"unpaired: left out: {file}" for file in finding.files]
        elif shared and pairs:
            self._drop(pairs, finding.kind)
        elif finding.kind == "duplicate":
            self._drop_copies(split, pairs, finding)
        elif finding.kind == "shifted" and not step:
            self.left.append(f"{finding.kind}: {finding.detail}")
        elif finding.kind in DROPPED or (finding.kind == "swapped" and certain):
            self._drop(pairs, finding.kind)
        elif finding.kind in REWRITTEN and certain:
            for pair in pairs:
                self._rewrite(pair, finding, step)
        else:
            self.left.append(f"{finding.kind}: {finding.detail}")

    def _drop(self, pairs: Sequence[Pair], kind: str) -> None:
        for pair in pairs:
            if pair not in self.dropped:
                self.dropped[pair] = kind
                picture, label_map = self._paths(pair)
                self.done.append(f"{kind}: left out of {pair[0]}: {picture} and {label_map}")

    def _drop_copies(self, split: str, pairs: Sequence[Pair], finding: Finding) -> None:
        digests = {pair.files[0]: pair.labels_digest for pair in self.reports[split].impressions}
        first, *others = pairs
        same = [digests[str(self._paths(pair)[0])] == digests[str(self._paths(first)[0])] for pair in others]
        self._drop([pair for pair, is_same in zip(others, same, strict=True) if is_same], finding.kind)
        if not all(same):
            self.left.append(f"{finding.kind}: {finding.detail}")

    def _step(self, pairs: Sequence[Pair]) -> int:
        """What must be added to the ids; 0 where no file proves it. The first does where one does."""
        classes = self.folders[pairs[0][0]].classes["out"]
        return shift_of(np.unique(read_values(self._paths(pairs[0])[1])).tolist(), classes)

    def _rewrite(self, pair: Pair, finding: Finding, step: int) -> None:
        picture, label_map = self._paths(pair)
        classes = self.folders[pair[0]].classes["out"]
        try:
            values, said = _meant(finding.kind, picture, label_map, classes, self.palette, step)
            pixels = read_image(picture).pixels
            channels = label_channels(values, classes=classes, path=label_map, size=(pixels.shape[0], pixels.shape[1]))
        except ImageError:
            self._drop([pair], finding.kind)
            return
        if pair not in self.labels:
            self.labels[pair] = channels
            self.done.append(f"{finding.kind}: {said}: {label_map}")
        if finding.kind == "exif":
            self.upright.add(pair)
            self.done.append(f"exif: stored upright, as PNG: {picture}")

    def _paths(self, pair: Pair) -> tuple[Path, Path]:
        return self.folders[pair[0]].paths(pair[1])

    def write(self, out: Path) -> None:
        """Write the copy into a folder of its own."""
        for split, data in self.folders.items():
            for i, name in enumerate(data.names):
                pair = split, i
                if pair in self.dropped:
                    continue
                inputs, label_map = data.files[i]
                for key, source in inputs.items():
                    target = _below(out / ("images" if key == "color" else key) / split, name, source.suffix)
                    if key == "color" and pair in self.upright:
                        write_image(
                            target.with_name(f"{target.name.removesuffix(source.suffix)}.png"),
                            read_image(source).pixels,
                        )
                    else:
                        shutil.copyfile(source, target)
                target = _below(out / "labels" / split, name, label_map.suffix)
                if pair in self.labels:
                    target = target.with_name(f"{target.name.removesuffix(label_map.suffix)}.png")
                    write_labels(target, self.labels[pair], data.classes["out"])
                else:
                    shutil.copyfile(label_map, target)
        first = next(iter(self.folders.values()))
        table = next((first.root / n for n in ("classes.json", "classes.txt") if (first.root / n).is_file()), None)
        if table is not None:
            shutil.copyfile(table, out / table.name)
        else:
            write_json(out / "classes.json", [entry.model_dump(mode="json") for entry in first.classes["out"].entries])
        write_json(out / "mended.json", {"from": str(first.root), "done": self.done, "left": self.left})


def _below(folder: Path, name: str, suffix: str) -> Path:
    path = folder / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# What a label map was meant to say -----------------------------------------------------------------------------------


def _meant(
    kind: str, picture: Path, path: Path, classes: Classes, palette: Mapping[tuple[int, int, int], int], step: int
) -> tuple[npt.NDArray[Any], str]:
    """The ids or colours that a label map was meant to hold, where it proves them, and what was done to it."""
    form = read_form(path)
    if kind == "alpha" and form.mode == "PA":
        raise ImageError(path, "a palette with an alpha channel; what is transparent has no label")
    values = read_values(path)
    if kind == "exif":
        return turned(values, read_form(picture).orientation), "turned as its picture"
    if kind == "shifted":
        return _moved(values, step, classes), f"{'raised' if step > 0 else 'lowered'} by 1"
    if values.ndim == 3 and kind in ("rgb", "alpha"):
        return _ids_of(values, palette, classes, path), "colours written as ids"
    if kind == "antialiased":
        raise ImageError(path, "interpolated: the ids along its edges are lost")
    return values, "written without transparency"


def _moved(values: npt.NDArray[Any], step: int, classes: Classes) -> npt.NDArray[Any]:
    """All ids moved, but void where it stands apart from the table."""
    last = max(entry.id for entry in classes.entries if entry.id != classes.void)
    wide = values.astype(np.int64)
    return np.where(wide <= last + 1, wide + step, wide)


def _ids_of(
    colours: npt.NDArray[Any], palette: Mapping[tuple[int, int, int], int], classes: Classes, path: Path
) -> npt.NDArray[Any]:
    """Colours as they are where the table has them, else ids by the palette of the other files, or grey as the ids.

    Raises:
        ImageError: in the table the colours are other classes than in the palette.
    """
    flat = colours.reshape(-1, 3)
    found, inverse = np.unique(flat, axis=0, return_inverse=True)
    known = [palette.get((int(r), int(g), int(b))) for r, g, b in found]
    ids = None
    if all(identity is not None for identity in known):
        ids = np.array(known, np.int64)[inverse.ravel()].reshape(colours.shape[:2])
    try:
        by_table = label_channels(colours, classes=classes, path=path)
    except ImageError:
        if ids is not None:
            return ids
        return colours[..., 0] if (found == found[:, :1]).all() else colours
    if ids is not None and not np.array_equal(label_channels(ids, classes=classes, path=path), by_table):
        raise ImageError(path, "its colours are other classes in the table than in the palette of the other files")
    return colours


def _common_palette(folders: Mapping[str, Folder]) -> dict[tuple[int, int, int], int]:
    """From colour to id, as all label maps with a palette have it; empty where there is none, or two disagree."""
    known = next(iter(folders.values())).classes["out"].index_of_id()
    colour_of: dict[int, tuple[int, int, int]] = {}
    for data in folders.values():
        for i in range(len(data)):
            try:
                palette = read_form(data.paths(i)[1]).palette
            except ImageError:
                continue
            for number, colour in enumerate(palette):
                if number in known and colour_of.setdefault(number, colour) != colour:
                    return {}
    ids = {colour: number for number, colour in colour_of.items()}
    return ids if len(ids) == len(colour_of) else {}
