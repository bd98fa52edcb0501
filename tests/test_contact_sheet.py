"""The page of offenders shows each beside its label map, loads nothing, and escapes every name."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import planted
import pytest
from PIL import Image

from fullyconv.contact_sheet import contact_sheet
from fullyconv.datasets.folder import open_folder

NAME = "<img src=x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """What is on a page: the sources of its pictures, tags by name, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for key, value in attributes if key in ("src", "href")]
        assert not [key for key, _ in attributes if key.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return planted.scenes(tmp_path / "data", train=8, val=2)


def sheet(root: Path) -> str:
    splits = {split: open_folder(root, split=split) for split in ("train", "val")}
    return contact_sheet(str(root), splits, planted.look(root))


def test_offenders_are_shown_beside_their_label_maps_in_one_file(root: Path) -> None:
    (root / "images/train/01.png").rename(root / f"images/train/{NAME}.png")
    (root / "labels/train/01.png").rename(root / f"labels/train/{NAME}.png")
    planted.edit(root / f"labels/train/{NAME}.png", lambda ids: ids * 0 + 77)
    (root / "images/train/02.png").write_bytes(b"")
    html = sheet(root)
    page = Page(html)
    assert "<img src=x" not in html
    assert f"labels/train/{NAME}.png: 1 value outside the table of classes: 77" in page.text
    assert f"train/{NAME}" in page.text
    assert "What it would do: a label that no class has cannot be learnt." in page.text
    assert "02.png: cannot be read" in page.text
    pictures = [source for source in page.sources if source.startswith("data:image/jpeg;base64,")]
    assert pictures == page.sources
    assert len(pictures) >= 4
    assert "script" not in page.tags


def test_many_offenders_are_named_and_not_all_shown(root: Path) -> None:
    for i in range(30):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / f"images/train/lonely{i:02}.png")
    page = Page(sheet(root))
    assert "lonely29.png" in page.text
    assert page.tags.count("img") <= 24
    assert "details" in page.tags


def test_a_page_without_offenders_says_so(tmp_path: Path) -> None:
    page = Page(sheet(planted.scenes(tmp_path / "data", train=16, val=8)))
    assert "Nothing is wrong." in page.text
    assert page.tags.count("img") == 0
