"""The demo's parts do what its page says; its scores are `make demo`'s own business."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fullyconv import demo as story
from fullyconv.classifiers import TinyVGG
from fullyconv.datasets.scenes import Scenes
from fullyconv.errors import ConfigError
from fullyconv.events import Event, Step


def test_the_story_is_told_whole_at_a_small_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "HELD_OUT", Scenes(4, (96, 96), split="test"))
    monkeypatch.setattr(story, "SCENES", "count=16 size=96x96")
    monkeypatch.setattr(story, "ODD", (97, 131))
    events: list[Event] = []
    (tmp_path / "mine.txt").write_text("not the demo's")
    found = story.demo(tmp_path, on_event=events.append, scale=0.03)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(found))
    assert set(found["mean_iu"]) == {"fcn32s", "fcn16s", "fcn8s"}
    assert all(0 <= score <= 1 for score in found["mean_iu"].values())
    assert found["tiled_equals_whole"]["differing_pixels"] == 0
    assert {e.stage for e in events if isinstance(e, Step)} == {"classifier", "fcn32s", "fcn16s", "fcn8s"}
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 6 + 2 + 4 * 5 + 2
    assert "http" not in page.replace("http-equiv", "")
    assert f"fullyconv predict {tmp_path}/fcn PICTURES" in page
    # A second one replaces what the first left, and nothing else.
    monkeypatch.setattr(story, "train_classifier", stopped)
    with pytest.raises(KeyboardInterrupt):
        story.demo(tmp_path, scale=0.01)
    assert not (tmp_path / "fcn").exists()
    assert (tmp_path / "mine.txt").exists()


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_demo_does_not_lie_among_somebodys_pictures(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with pytest.raises(ConfigError, match="labels: the demo would lie beside somebody's pictures; name another --out"):
        story.demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.parametrize("name", ["fcn/recipe.json", "results.json", "report.html", "classifier.safetensors"])
def test_the_demo_replaces_nothing_that_no_demo_has_made(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("theirs")
    with pytest.raises(ConfigError, match=f"{name.partition('/')[0]}: no demo has made it"):
        story.demo(tmp_path, scale=0.01)
    assert (tmp_path / name).read_text() == "theirs"


def test_the_heat_map_has_a_score_for_every_window() -> None:
    torch.manual_seed(0)
    heat = story.heat_map(TinyVGG(10).eval())
    # 320 - 96 and 480 - 96 pixels in steps of 32.
    assert heat.cells == (8, 13)
    assert heat.probability.shape == (8, 13)
    assert 0 <= heat.probability.min() <= heat.probability.max() <= 1


def test_a_stretched_map_keeps_its_corners_at_the_middle_of_the_corner_windows() -> None:
    scores = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    laid = story.stretch(scores, (96 + 33, 96 + 65))
    assert laid.shape == (129, 161)
    assert laid[48, 48] == 0
    assert laid[-49, -49] == 3
