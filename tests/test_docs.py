"""README and docs: whatever they link to is there, headings too, and the commands they show have such options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from fullyconv.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(text: str) -> set[str]:
    """What a link into a page may end in: its headings in lower case, spaces as hyphens, without punctuation."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(text: str) -> list[str]:
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_blocks_have_the_options_that_are_shown(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["fullyconv"]:
                continue
            command = commands[words[1]]
            command = getattr(command, "commands", {}).get(words[2], command) if len(words) > 2 else command
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            shown = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert shown <= known, f"{page.name}: {line}"


def test_the_links_and_commands_that_are_checked_are_found() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert any("#" in link for link in links(readme))
    assert "more-than-one-look" in anchors((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    assert "whats-in-a-name-2-things" in anchors("## What's in a name: 2 *things*?\n")
