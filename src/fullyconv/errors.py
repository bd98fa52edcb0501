"""What can go wrong by a user's doing, as a tree. Anything else that is raised is a bug of ours.

    FullyConvError
     + SurgeryError      a classifier cannot be read at every position                       .path
     + AlignmentError    two grids do not lie a whole number of cells apart                  .grids
     + ConfigError       a setting is unknown, of the wrong type, or at odds with another    .where
        - UnknownName    a name that no table holds                                          .kind .name .near
     + CheckpointError   a model folder or weight file does not fit              .missing .unexpected .reshaped
     + DatasetError      a folder of pictures is not what it should be                       .findings
     + ImageError        a file is no picture, or no label map, that can be used             .path
        - LabelError     a label map that can be read does not fit its picture (LabelSizeError) or its table
     + TrainingError     training cannot go on                                               .step
     + ExportError       an exported file disagrees with the model                           .largest_difference .where

The command line prints the message, one line, and exits with code 2.
A message says what was found, what was expected and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from fullyconv.geometry import Grid


CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal would obey in place of printing them, and those that cannot be written as UTF-8."""
LONGEST = 2000
"""Characters of a message; a file may hold names of megabytes."""


def one_line(text: str) -> str:
    r"""Text that others had a hand in, made fit to be printed: one line, control characters as their escapes.

    Example:
        >>> print(one_line("a\x1b[31m.png:\nno picture"))
        a\x1b[31m.png: no picture
    """
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], " ".join(cut.split()))


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, without what it goes on to explain; its type, where it says nothing.

    Example:
        >>> first_line(RuntimeError("no such file\\nFor more, see ...")), first_line(AssertionError())
        ('no such file', 'AssertionError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class FullyConvError(Exception):
    """Root of every error that a user can mend. Its text is one line that can be printed, whatever a file holds."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class SurgeryError(FullyConvError):
    """A classifier cannot be turned into a fully convolutional network.

    Attributes:
        path: the module or graph node at fault, as a dotted path; "" when it is the whole net.
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class AlignmentError(FullyConvError):
    """Two maps cannot be joined, since their grids do not lie a whole number of cells apart.

    Attributes:
        grids: the grids concerned.
    """

    def __init__(self, message: str, *, grids: Sequence[Grid] = ()) -> None:
        super().__init__(message)
        self.grids = tuple(grids)


class ConfigError(FullyConvError):
    """A setting is unknown, of the wrong type, or impossible together with another.

    Attributes:
        where: dotted path of the setting, such as ``stages.0.fit.lr``; "" for the whole.
    """

    def __init__(self, message: str, *, where: str = "") -> None:
        super().__init__(message)
        self.where = where


class UnknownName(ConfigError):  # noqa: N818 - it reads as a sentence where it is raised and caught
    """A name that is in no table, with the nearest names that are.

    Attributes:
        kind: what was looked up, such as "backbone".
        name: the name as given.
        near: up to three names that resemble it.
    """

    def __init__(self, kind: str, name: str, near: Sequence[str], known: Sequence[str]) -> None:
        hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"no {kind} {name!r}; {hint}")
        self.kind = kind
        self.name = name
        self.near = tuple(near)


class CheckpointError(FullyConvError):
    """A model folder or a file of weights does not fit the model.

    Attributes:
        missing: names that the model has and the file lacks.
        unexpected: names that the file has and the model lacks.
        reshaped: names that both have, in different shapes.
    """

    def __init__(
        self,
        message: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        reshaped: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.reshaped = tuple(reshaped)


class DatasetError(FullyConvError):
    """A folder of pictures and labels is not what it should be.

    Attributes:
        findings: one line for each file at fault, where there are several.
    """

    def __init__(self, message: str, *, findings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class ImageError(FullyConvError):
    """A file is not a picture, or not a label map, that can be used.

    Attributes:
        path: the file.
    """

    def __init__(self, path: str | PathLike[str], message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = Path(path)


class LabelError(ImageError):
    """A label map that can be read, with another size than its picture's, or an id or colour outside its table."""


class LabelSizeError(LabelError):
    """A label map that can be read, with another size than its picture's."""


class TrainingError(FullyConvError):
    """Training cannot go on; the last good model is kept.

    Attributes:
        step: optimiser steps done when it stopped.
    """

    def __init__(self, message: str, *, step: int = 0) -> None:
        super().__init__(message)
        self.step = step


class ExportError(FullyConvError):
    """An exported file does not give what the model gives.

    Attributes:
        largest_difference: of logits, absolute.
        where: picture size (height, width) at which it was found.
    """

    def __init__(self, message: str, *, largest_difference: float = 0.0, where: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.largest_difference = largest_difference
        self.where = where
