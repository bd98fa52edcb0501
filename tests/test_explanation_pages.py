"""The pages of docs/explanation: their Python runs, tables are what commands print, nothing named is missing."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fullyconv import cli

FOLDER = Path(__file__).parents[1] / "docs" / "explanation"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
ANSWERS = [name for name in PAGES if name != "README"]
RESULTS = FOLDER.parent / "results"
EXACT = (
    ("any-size", "any_size"),
    ("backbones", "backbones"),
    ("deconvolution", "kernels"),
    ("dilation", "dilation"),
    ("patches", "patch_cost"),
    ("pools", "pool_layers"),
    ("shift-and-stitch", "stitching"),
    ("skip-and-residual", "skip_and_residual"),
    ("steps", "steps"),
)
"""Page and function of every table for which nothing is trained, so that it is the same on every machine."""


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    path = FOLDER / "figures.py"
    spec = importlib.util.spec_from_file_location("explanation_figures", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """The line number and the text of every fenced block of a language."""
    text = PAGES[page]
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


def commands(page: str) -> set[str]:
    """Every ``fullyconv ...`` that a page tells the reader to run."""
    spans = re.findall(r"`(fullyconv [^`]+)`", PAGES[page])
    lines = [line.split("#")[0] for _, block in blocks(page, "sh") for line in block.splitlines()]
    return {*spans, *(line.strip() for line in lines if line.startswith("fullyconv "))}


@pytest.mark.parametrize("page", [name for name in PAGES if blocks(name, "python")])
def test_the_python_of_a_page_runs(page: str) -> None:
    # Blocks of one page go on from each other, as a reader's session does.
    session: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for line, code in blocks(page, "python"):
            exec(compile("\n" * line + code, str(FOLDER / f"{page}.md"), "exec"), session)


@pytest.mark.parametrize("page", ANSWERS)
def test_an_answer_shows_that_what_it_says_is_so(page: str) -> None:
    assert "assert " in "".join(code for _, code in blocks(page, "python"))
    assert "| --- |" in PAGES[page], "no table"
    assert 40 <= PAGES[page].count("\n") <= 100


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str) -> None:
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    assert links
    for link in links:
        target = (FOLDER / link.split("#")[0]).resolve()
        if target.parent == RESULTS and not RESULTS.is_dir():
            continue  # studies that nobody has run yet; what they are is checked with the commands
        assert target.is_file(), f"{page}.md links to {link}"


@pytest.mark.parametrize(("page", "command"), [(page, command) for page in PAGES for command in sorted(commands(page))])
def test_a_command_of_a_page_is_one_of_ours(page: str, command: str) -> None:
    words = shlex.split(command)[1:]
    path = words[:2] if words[0] == "study" and len(words) > 1 else words[:1]
    answer = CliRunner().invoke(cli.app, [*path, "--help"])
    assert answer.exit_code == 0, f"{page}.md: {command}"
    for option in (word for word in words if word.startswith("--")):
        assert option in answer.output, f"{page}.md: {command}"


def test_a_linked_result_is_of_the_study_that_is_named_beside_it() -> None:
    linked = {(page, name) for page, text in PAGES.items() for name in re.findall(r"\.\./results/([\w-]+)\.md", text)}
    assert {page for page, _ in linked} >= {"backbones", "pools", "resolution"}
    for page, name in linked:
        assert f"`fullyconv study {name}`" in PAGES[page]


def test_every_question_is_in_the_index_and_has_its_figure(figures: ModuleType) -> None:
    assert set(figures.FIGURES) == set(ANSWERS)
    for page in ANSWERS:
        assert f"({page}.md)" in PAGES["README"]
        assert f"`python docs/explanation/figures.py {page}`" in PAGES[page]


def test_pictures_are_small_and_shown() -> None:
    pictures = list((FOLDER / "images").iterdir())
    shown = {name for text in PAGES.values() for name in re.findall(r"!\[[^\]]+\]\(images/([^)]+)\)", text)}
    assert {picture.name for picture in pictures} == shown
    assert all(picture.stat().st_size < 100_000 for picture in pictures)


@pytest.mark.parametrize(("page", "function"), EXACT)
def test_a_table_is_what_its_command_prints(page: str, function: str, figures: ModuleType, tmp_path: Path) -> None:
    assert getattr(figures, function) in figures.FIGURES[page]
    assert getattr(figures, function)(tmp_path) in PAGES[page]
