"""The mutants of a file: mutmut's operators, applied at every place of it.

Mutmut by itself leaves out what is decorated or stands outside functions, since it keeps all mutants in one module.
Here each mutant is a file of its own, so that properties, fields and constants take their turn too. Annotations are
left alone (``from __future__ import annotations`` never runs them), and so are decorators and ``__all__``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import NEVER_MUTATE_FUNCTION_CALLS, deep_replace
from mutmut.mutation.mutators import mutation_operators


@dataclass(frozen=True)
class Mutant:
    """One change to one file.

    Attributes:
        number: in the order of the file, from 0.
        lines: of the statement that is changed, first and last; of a compound one, its head.
        source: makes the whole file, changed.
    """

    number: int
    lines: tuple[int, int]
    source: Callable[[], str] = field(repr=False)

    def change(self, original: str) -> str:
        """What it does to the file, as the lines of a diff that go and come."""
        difference = difflib.unified_diff(original.splitlines(), self.source().splitlines(), n=0, lineterm="")
        return "\n".join(line for line in difference if not line.startswith(("---", "+++", "@@")))


class _Places(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.statement = (1, 1)
        self.found: list[tuple[tuple[int, int], cst.CSTNode, cst.CSTNode]] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Annotation | cst.Decorator | cst.ImportFrom | cst.Import):
            return False
        if isinstance(node, cst.Assign) and m.matches(node.targets[0].target, m.Name("__all__")):
            return False
        if m.matches(node, m.Call(func=m.Name())) and node.func.value in NEVER_MUTATE_FUNCTION_CALLS:
            return False
        if isinstance(node, cst.SimpleStatementLine | cst.BaseCompoundStatement):
            place = self.get_metadata(PositionProvider, node)
            body = getattr(node, "body", None)
            inner = self.get_metadata(PositionProvider, body) if isinstance(body, cst.BaseSuite) else None
            self.statement = (
                place.start.line,
                max(place.start.line, inner.start.line - 1) if inner else place.end.line,
            )
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                self.found += [(self.statement, node, mutated) for mutated in operator(node)]
        return True


def mutants(source: str) -> Iterator[Mutant]:
    """All mutants of a file, in order, but those that are no different file."""
    wrapper = MetadataWrapper(cst.parse_module(source))
    places = _Places()
    wrapper.visit(places)
    for number, (lines, old, new) in enumerate(places.found):

        def mutated(old: cst.CSTNode = old, new: cst.CSTNode = new) -> str:
            changed = deep_replace(wrapper.module, old, new)
            assert isinstance(changed, cst.Module)
            return changed.code

        yield Mutant(number, lines, mutated)
