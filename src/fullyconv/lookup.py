"""The one place where a name becomes an object."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from fullyconv.errors import UnknownName

T = TypeVar("T")


def lookup(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Return ``table[name]``, or say which names are near.

    Args:
        kind: what the table holds, for the message: "backbone", "loss".
        name: exact name; there is no folding of case and no prefix matching, so that a name means one thing.
        table: the names that exist.

    Raises:
        UnknownName: ``no backbone 'vgg61'; did you mean 'vgg16'?``

    Example:
        >>> lookup("colour", "red", {"red": 1, "blue": 2})
        1
    """
    try:
        return table[name]
    except KeyError:
        near = difflib.get_close_matches(name, table, n=3, cutoff=0.6)
        near = near or [known for known in table if known.casefold() == name.casefold()]
        raise UnknownName(kind, name, near, sorted(table)) from None
