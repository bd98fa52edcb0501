"""Every kind of finding is documented as the code has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fullyconv.findings import KINDS, Finding

DOCS = Path(__file__).parents[1] / "docs" / "data.md"


def test_the_documented_table_is_that_of_the_code() -> None:
    rows = [
        f"| `{name}` | {kind.found} | {kind.effect} | {kind.mend} | {kind.fixed or 'kept, and listed'} |"
        for name, kind in KINDS.items()
    ]
    assert "\n".join(rows) + "\n\n" in DOCS.read_text(encoding="utf-8")


def test_a_finding_as_json_says_what_it_would_do_and_how_to_mend_it() -> None:
    found = Finding("void", "warning", ("a.png",), "nothing is labelled")
    assert found.json() == {
        "kind": "void",
        "severity": "warning",
        "files": ["a.png"],
        "detail": "nothing is labelled",
        "effect": "there is nothing to learn from it",
        "mend": "label it, or drop it",
    }


def test_a_kind_that_is_not_in_the_table_cannot_be_told() -> None:
    with pytest.raises(KeyError):
        Finding("mystery", "error", (), "").json()
