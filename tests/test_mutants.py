"""What `make mutants` changes: everything that runs, one thing at a time."""

from __future__ import annotations

import ast

import pytest

pytest.importorskip("mutmut", reason="mutmut is a development dependency")
from mutation.mutants import mutants

SOURCE = '''"""A module."""
from math import tau
__all__ = ["half"]
LIMIT = 3

class Ring:
    radius: float = 1.0

    @property
    def length(self) -> float:
        return tau * self.radius

def half(size: int, up: bool = True) -> int:
    if (
        size > LIMIT
    ):
        return len("abc")
    return size // 2
'''


def test_each_mutant_is_another_program_that_compiles() -> None:
    texts = [mutant.source() for mutant in mutants(SOURCE)]
    assert texts
    assert SOURCE not in texts
    assert len(set(texts)) == len(texts)
    for text in texts:
        ast.parse(text)


def test_constants_fields_properties_and_defaults_are_changed_and_names_and_types_are_not() -> None:
    changes = [mutant.change(SOURCE) for mutant in mutants(SOURCE)]
    for change in (
        "-LIMIT = 3\n+LIMIT = 4",
        "-    radius: float = 1.0\n+    radius: float = 2.0",
        "-        return tau * self.radius\n+        return tau / self.radius",
        "-def half(size: int, up: bool = True) -> int:\n+def half(size: int, up: bool = False) -> int:",
        "-        size > LIMIT\n+        size >= LIMIT",
        "-    return size // 2\n+    return size / 2",
    ):
        assert change in changes
    assert not [change for change in changes if "__all__" in change or "import" in change or "len(" in change]


def test_a_mutant_knows_the_lines_of_its_statement() -> None:
    lines = {mutant.change(SOURCE): mutant.lines for mutant in mutants(SOURCE)}
    assert lines["-        size > LIMIT\n+        size >= LIMIT"] == (14, 16)
    assert lines["-    return size // 2\n+    return size / 2"] == (18, 18)
