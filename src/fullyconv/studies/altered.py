"""Data sets whose pictures are those of another with something done to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fullyconv.config import Classes
from fullyconv.datasets import Sample, SegmentationDataset


@dataclass(frozen=True)
class Altered(ABC):
    """What stays as it was; whoever derives from it says in `alter` what does not. See `SegmentationDataset`.

    Attributes:
        data: the data set.
    """

    data: SegmentationDataset

    @abstractmethod
    def alter(self, sample: Sample, index: int) -> Sample:
        """What becomes of sample ``index``."""

    @property
    @abstractmethod
    def remark(self) -> str:
        """What was done, for the notes; "" for nothing."""

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def split(self) -> str:
        return self.data.split

    @property
    def classes(self) -> Mapping[str, Classes]:
        return self.data.classes

    @property
    def names(self) -> Sequence[str]:
        return self.data.names

    @property
    def notes(self) -> Sequence[str]:
        return (*self.data.notes, self.remark) if self.remark else self.data.notes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        """Read and alter sample ``index``; raises `ImageError` where a file cannot be used."""
        return self.alter(self.data[index], index)

    def paths(self, index: int) -> tuple[Path | None, ...]:
        """Of what is altered."""
        return self.data.paths(index)
