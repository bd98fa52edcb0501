"""Small files of text that others may have written, read within limits: JSON, TOML, lists of names.

Whoever reads one says what it is for and raises an error of his own; here a `ValueError` says what is wrong with it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from os import PathLike
from typing import Any

MAX_BYTES = 16 << 20
"""Of a document. The largest that we write, a table of 65536 classes, has 6 MB."""
MAX_RECIPE_BYTES = 1 << 20
"""Of what is written by hand; ours have 3 kB."""
MAX_DEPTH = 64
"""Of lists and tables in one another. What we write has 8; a thousand end Python's stack."""
MAX_KEY_PARTS = 64
"""Of a dotted key or table in TOML, as in ``[a.b.c]``; the time that a parser takes grows with their square."""

# Parts are bare or quoted. All is possessive, so that a text of any kind is searched in one go.
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*+\.[ \t]*+{_PART}){{{MAX_KEY_PARTS}}}", re.ASCII)


def read_text(path: str | PathLike[str], *, max_bytes: int = MAX_BYTES) -> str:
    """The UTF-8 text of a regular file, without a byte order mark.

    Raises:
        OSError: it cannot be read.
        ValueError: no regular file (a pipe would make us wait), larger than ``max_bytes``, or not UTF-8.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file; expected a text")
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{max(status.st_size, len(content)):,} bytes; expected {max_bytes:,} at most")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text in which no name occurs twice in an object, and nothing is nested too deeply.

    Raises:
        ValueError: it is not such a text.

    Example:
        >>> parse_json('{"lr": 1, "lr": 2}')
        Traceback (most recent call last):
        ...
        ValueError: not valid JSON: the name 'lr' occurs twice in one object
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"not valid JSON: nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # a number of too many digits, too
        raise ValueError(f"not valid JSON: {error}") from None
    return _shallow(value, "JSON")


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text that is not nested too deeply.

    Raises:
        ValueError: it is not such a text.
    """
    if long := _LONG_KEY.search(text):
        line = text.count("\n", 0, long.end()) + 1
        raise ValueError(f"not valid TOML: line {line}: a key of more than {MAX_KEY_PARTS} parts")
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"not valid TOML: nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"not valid TOML: {error}") from None
    _shallow(value, "TOML")
    return value


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name!r:.80} occurs twice in one object")
        found[name] = value
    return found


def _shallow(value: Any, kind: str) -> Any:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside = [node for node in level if isinstance(node, dict | list)]
        level = [child for node in inside for child in (node.values() if isinstance(node, dict) else node)]
        if not inside:
            return value
    raise ValueError(f"not valid {kind}: nested more than {MAX_DEPTH} deep")
