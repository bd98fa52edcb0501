"""What a data set is: pictures with label maps, by number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from fullyconv.archives import Archive
from fullyconv.config import Classes


@dataclass(frozen=True)
class About:
    """What can be said of a kind of data before any of it is on disk.

    Attributes:
        title: its name in full.
        classes: for each head, its table; empty where the user's own table decides.
        pictures: how many each split has, as published; 0 where that is not known.
        layout: of folders and files, a line each.
        licence: under which terms, as far as its source states them.
        home: address of the page that it comes from; "" for data that is nobody's but the user's.
        archives: what may be downloaded without a login, in the order in which it is unpacked.
        remark: what else one had better know.
        marks: files and folders in it by which it is known for what it is.
    """

    title: str
    layout: str
    classes: Mapping[str, Classes] = field(default_factory=dict)
    pictures: Mapping[str, int] = field(default_factory=dict)
    licence: str = ""
    home: str = ""
    archives: tuple[Archive, ...] = ()
    remark: str = ""
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One picture with its labels.

    Attributes:
        name: unique within its data set; for files, the path below the split without the suffix.
        image: (H, W, C): (H, W, 3) uint8 RGB unless the data set was opened with other inputs; float32 where depth is
            among them.
        labels: for each head ("out" where there is one) (H, W) uint8 or uint16 channel numbers, void where unknown.
        notes: what was done in reading that the eye may not expect.
    """

    name: str
    image: npt.NDArray[Any]
    labels: Mapping[str, npt.NDArray[Any]]
    notes: tuple[str, ...] = ()


class SegmentationDataset(Protocol):
    """Pictures with label maps, by number; anything with these members will do.

    Attributes:
        name: of the data set: "folder", "scenes".
        split: "train", "val", "test".
        classes: for each head, its table of classes.
        names: of the samples, in order; a run records them.
        notes: what was recognised, chosen or left out when it was opened, as sentences for the user.
    """

    @property
    def name(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def classes(self) -> Mapping[str, Classes]: ...
    @property
    def names(self) -> Sequence[str]: ...
    @property
    def notes(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read sample ``index``; raises `ImageError` where a file cannot be used."""
        ...

    def paths(self, index: int) -> tuple[Path | None, ...]:
        """The file of the picture of sample ``index``, then that of each head's labels.

        Of a picture of several inputs it is the first's. None where there is none, as in generated data.
        """
        ...
