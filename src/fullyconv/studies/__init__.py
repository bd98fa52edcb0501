"""The papers' experiments, each as one command: a question, what is measured for it, and a table beside the papers'.

`STUDIES` holds their names and questions; `Study.run` is a study's own function, whose parameters are its options. To
add one, write a file beside these with a function ``run`` that returns a `fullyconv.studies.base.Result`, name it below
(``-`` in a name is ``_`` in its file's), and give it a command in ``commands/study.py``. Nothing is imported until it
runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from fullyconv.lookup import lookup

if TYPE_CHECKING:
    from fullyconv.studies.base import Result

__all__ = ["STUDIES", "Study", "study"]


@dataclass(frozen=True)
class Study:
    """One experiment.

    Attributes:
        name: as in ``fullyconv study NAME``.
        question: what readers of the papers ask, that it answers.
        trains: what is trained for it; "nothing" where nothing is.
        data: what is taken where no data is named.
    """

    name: str
    question: str
    trains: str
    data: str = "generated scenes"

    @property
    def run(self) -> Callable[..., Result]:
        """The study's function, imported now."""
        found: Callable[..., Result] = import_module(f"{__name__}.{self.name.replace('-', '_')}").run
        return found


_ALL = (
    Study("upper-bound", "How good could a net of a coarse output be?", "nothing"),
    Study("masking", "Do shapes alone suffice, or things without their surroundings?", "one net for each mask"),
    Study("strides", "What does each skip bring, alone, staged and at once?", "one net for each stride and way"),
    Study("fusion", "Where should depth join colour: early, late, or in its own channels?", "one net for each input"),
    Study("sampling", "Are whole pictures as good as sampled patches?", "one net for each share of cells"),
    Study("momentum", "What do batch and momentum change: accumulated, online, heavy?", "one net for each of them"),
    Study("dense", "How are dense scores had, and what do they cost?", "three nets, or none with --model"),
    Study("timing", "How long does one pass take?", "nothing", "noise"),
    Study("contributions", "How much does each skip decide?", "one net, or none with --model"),
)

STUDIES: Mapping[str, Study] = {study.name: study for study in _ALL}


def study(name: str) -> Study:
    """The study of this name.

    Raises:
        UnknownName: none is called so; says which are near.

    Example:
        >>> study("masking").question
        'Do shapes alone suffice, or things without their surroundings?'
    """
    return lookup("study", name, STUDIES)
