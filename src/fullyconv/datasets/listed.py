"""Data sets as they are published: a list of names, and for each name files in known places."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy.typing as npt

from fullyconv.config import Classes, ClassInfo, voc_colour
from fullyconv.datasets.base import Sample
from fullyconv.datasets.inputs import read_inputs
from fullyconv.documents import read_text
from fullyconv.errors import DatasetError
from fullyconv.images import SUFFIXES
from fullyconv.labels import label_channels

SYSTEM_FILES = frozenset({"Thumbs.db", "desktop.ini"})
LONGEST, LONGEST_PATH = 200, 1000
"""Bytes of a name in a list, and characters of one with its folders; systems end at 255 and 4096 for the whole."""
LOOKED_AT = 20
"""Names whose files are looked for when a data set is opened; the others are missed when they are read."""


@dataclass(frozen=True)
class Files:
    """Where the file of each name lies: ``folder / (prefix + name + suffix)``.

    Attributes:
        own: the names whose files lie here; None: all.
        others: where those of all other names lie.
    """

    folder: Path
    suffix: str
    prefix: str = ""
    own: frozenset[str] | None = None
    others: Files | None = None

    def of(self, name: str) -> Path:
        if self.own is not None and self.others is not None and name not in self.own:
            return self.others.of(name)
        return self.folder / f"{self.prefix}{name}{self.suffix}"


@dataclass(frozen=True)
class Maps:
    """The label maps of one head.

    Attributes:
        files: where they lie.
        read: from a file to its ids, (H, W) integers.
        classes: what the ids mean, void ones included.
    """

    files: Files
    read: Callable[[Path], npt.NDArray[Any]]
    classes: Classes


@dataclass(frozen=True)
class Listed:
    """One split of a data set in its official layout; see `SegmentationDataset`.

    Nothing is read when it is opened, but that folders are there and one of the first pictures.

    Attributes:
        name: of the data set.
        split: as asked for.
        names: as the list has them, in its order.
        pictures: for each input of a picture, where its files lie.
        maps: for each head, its label maps.
        notes: what was recognised or chosen.
        unpaired: files that have no partner by their name, where the names are those of a folder.

    Raises:
        DatasetError: no name, a folder is not there, or none of the first names has a file in it.
    """

    name: str
    split: str
    names: Sequence[str]
    pictures: Mapping[str, Files]
    maps: Mapping[str, Maps]
    notes: Sequence[str] = ()
    unpaired: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise DatasetError(f"{self.name}: no picture is left for {self.split}: its list names none that counts")
        for files in (*self.pictures.values(), *(maps.files for maps in self.maps.values())):
            if not files.folder.is_dir():
                raise DatasetError(f"{files.folder}: no such folder; expected {files.of('NAME').name} for each name")
            if not any(files.of(name).is_file() for name in self.names[:LOOKED_AT]):
                raise DatasetError(
                    f"{files.of(self.names[0])}: no such file, nor one of the next names of {self.split}; expected "
                    f"{files.of('NAME').name} for each of its {len(self.names)} names; {files.folder} has "
                    f"{inside_of(files.folder)}"
                )

    @property
    def classes(self) -> Mapping[str, Classes]:
        """For each head, its table of classes."""
        return {head: maps.classes for head, maps in self.maps.items()}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Read sample ``index``; raises `ImageError` where a file cannot be used."""
        name = self.names[index]
        image, notes = read_inputs({key: files.of(name) for key, files in self.pictures.items()})
        labels = {}
        for head, maps in self.maps.items():
            path = maps.files.of(name)
            labels[head] = label_channels(
                maps.read(path), classes=maps.classes, path=path, size=(image.shape[0], image.shape[1])
            )
        return Sample(name, image, labels, notes)

    def paths(self, index: int) -> tuple[Path, ...]:
        """The file of the picture of sample ``index`` (of its first input), then that of each head's labels."""
        name = self.names[index]
        first = next(iter(self.pictures.values()))
        return first.of(name), *(maps.files.of(name) for maps in self.maps.values())


def read_names(path: Path) -> list[str]:
    """The names that a list holds, one a line, each once; what follows on a line is left out.

    Raises:
        DatasetError: no such list, or an empty one.
    """
    try:
        lines = read_text(path).splitlines()
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.txt")) if path.parent.is_dir() else []
        found = f"{path.parent} has {', '.join(beside[:8]) or 'no list'}"
        raise DatasetError(f"{path}: no such file; expected a list of names, one a line; {found}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read as a list of names: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip() and not _may_be_a_file(line.split()[0]):
            raise DatasetError(f"{path}: line {number} is {line[:40]!r}, no name of a file; expected names, one a line")
    names = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not names:
        raise DatasetError(f"{path}: an empty list; expected names, one a line")
    return names


def _may_be_a_file(name: str) -> bool:
    parts = [os.fsencode(part) for part in name.split("/")]
    return "\0" not in name and len(name) <= LONGEST_PATH and max(map(len, parts)) <= LONGEST


def below(folder: Path, suffix: str) -> list[str]:
    """The names of all files below a folder that end so: their paths in it without that ending, sorted.

    Raises:
        DatasetError: no such folder, or none in it.
    """
    found = sorted(
        path.relative_to(folder).as_posix().removesuffix(suffix) for path in walk(folder) if path.name.endswith(suffix)
    )
    if not found:
        raise DatasetError(f"{folder}: no file NAME{suffix} in it; found {inside_of(folder)}")
    return found


def of_folders(
    name: str,
    split: str,
    pictures: Files,
    maps: Maps,
    *,
    published: Mapping[str, int],
    notes: Sequence[str],
    keep: Callable[[str], bool] = lambda name: True,
) -> Listed:
    """A split that is whatever lies in a folder of pictures, so that nothing tells what is missing but its partner.

    Args:
        name: of the data set.
        split: as asked for.
        pictures: all of its folder are taken.
        maps: of the one head, "out".
        published: how many pictures each split has.
        notes: what was recognised.
        keep: whether a name belongs to the split, where the folder holds others too.

    Raises:
        DatasetError: no such folder, or no picture of the split in it.
    """
    if split not in published and not pictures.folder.is_dir():
        raise DatasetError(f"{pictures.folder}: no such split; expected one of {', '.join(published)}")
    names = [picture for picture in below(pictures.folder, pictures.suffix) if keep(picture)]
    if not names:
        raise DatasetError(f"{pictures.folder}: no picture of {split!r}; expected a split of {', '.join(published)}")
    strangers = [
        path
        for path in walk(pictures.folder)
        if path.suffix.lower() in SUFFIXES and not path.name.endswith(pictures.suffix)
    ]
    files, known, alone = maps.files, set(names), list[Path]()
    if files.folder not in pictures.folder.parents:  # where much else may lie below it
        alone = [files.of(label) for label in below(files.folder, files.suffix) if label not in known and keep(label)]
    notes = [*notes, *unlike_published(split, len(names), published)]
    return Listed(name, split, names, {"color": pictures}, {"out": maps}, notes, [*strangers, *alone])


def unlike_published(split: str, count: int, published: Mapping[str, int]) -> list[str]:
    """A note of a split that has not as many pictures as are published; none where it has, or nobody knows.

    Example:
        >>> unlike_published("train", 367, {"train": 367}), unlike_published("val", 3, {"val": 1449})
        ([], ['val: 3 pictures, where 1,449 are published'])
    """
    expected = published.get(split, 0)
    return [f"{split}: {count:,} pictures, where {expected:,} are published"] if expected not in (0, count) else []


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, in order, links to folders followed; but hidden ones, and those that systems leave.

    A link may lead back up: a folder is read once.
    """
    seen: set[str] = set()
    for parent, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        below[:] = sorted(name for name in below if not name.startswith(".")) if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        yield from (Path(parent, n) for n in sorted(names) if not n.startswith(".") and n not in SYSTEM_FILES)


def classes_from_one(*names: str) -> Classes:
    """A table of these names with ids 1, 2, ..., and 0 void, in the PASCAL VOC colours.

    Example:
        >>> classes_from_one("wall", "floor").index_of_id()
        {0: 255, 1: 0, 2: 1, 255: 255}
    """
    return Classes(
        entries=tuple(
            ClassInfo(id=i, name=name, colour=voc_colour(i), ignore=i == 0) for i, name in enumerate(("void", *names))
        )
    )


def resolved(root: str | PathLike[str]) -> Path:
    """A folder as an absolute path, whose parents are known; links stay as they are.

    Example:
        >>> resolved(".").name == Path.cwd().name
        True
    """
    return Path(os.path.abspath(root))


def find(candidates: Iterable[Path], *inside: str) -> Path | None:
    """The first of these folders in which all this lies."""
    return next((folder for folder in candidates if all((folder / name).exists() for name in inside)), None)


def lacking(candidates: Sequence[Path], *inside: str) -> str:
    """What was found where `find` finds none: the folder that has most of it and what it has not, or what there is."""
    there = {folder: [name for name in inside if (folder / name).exists()] for folder in candidates}
    best = max(candidates, key=lambda folder: len(there[folder]))
    if not there[best]:
        return f"found {inside_of(candidates[0])}"
    missing = " and no ".join(name for name in inside if name not in there[best])
    return f"found {', '.join(there[best])} in {best}, and no {missing}"


def inside_of(root: Path) -> str:
    """What lies in a folder, in short, for a message that says what was found in place of what was expected."""
    if not root.is_dir():
        return "a file" if root.exists() else "nothing there"
    names = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not p.name.startswith("."))
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "an empty folder"
