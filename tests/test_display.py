"""What is shown while training runs and when scoring is done."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fullyconv import display
from fullyconv.archives import Archive
from fullyconv.config import Published
from fullyconv.display import TrainingDisplay, counting, counts_table, published_table, scores_table, study_table
from fullyconv.events import Alarm, Evaluated, Said, Saved, Step
from fullyconv.metrics import ConfusionMatrix
from fullyconv.studies.base import Column, Result, Row

STEP = Step("fcn8s", 40, 100, 1.5, 0.4321, 1e-3, 12.34, 0.4, 75.0)


def shown(*events: object, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    with TrainingDisplay() as show:
        for event in events:
            show(event)  # type: ignore[arg-type]
    return stream.getvalue()


def test_a_terminal_shows_loss_speed_time_left_and_the_last_score(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = Evaluated("fcn8s", 40, {}, 0.641, True, 10, 1.0)
    text = shown(STEP, scored, STEP, terminal=True, monkeypatch=monkeypatch)
    assert "loss 0.432 a pixel  12.3 images/s  val mean IU 64.1 %  1:15 left" in text
    assert "40 %" in text
    assert "the best so far" in text


def test_elsewhere_a_line_is_printed_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(*[STEP] * 50, terminal=False, monkeypatch=monkeypatch) == ""
    monkeypatch.setattr(display, "LINE_EVERY_S", 0)
    assert shown(STEP, STEP, terminal=False, monkeypatch=monkeypatch).count("fcn8s  40 %  step 40  loss 0.432") == 2


def test_alarms_and_notes_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "[bold] " + "x" * 200
    events = (Alarm("fcn8s", 3, "collapsed", long), Said(long), Saved("fcn8s", 3, Path("p")))
    assert shown(*events, terminal=False, monkeypatch=monkeypatch) == f"alarm: {long}\n{long}\n"


def rendered(table: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_of_scores_is_in_percent_and_names_absent_classes() -> None:
    text = rendered(
        scores_table(ConfusionMatrix(["a", "[b]", "c"], [[3, 1, 0], [0, 4, 0], [0, 0, 0]]).as_dict(), "val")
    )
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in text.splitlines() if line.count("│") == 5}
    assert [cell.strip() for cell in rows["a"]] == ["75.0", "75.0", "50.0"]
    assert [cell.strip() for cell in rows["[b]"]] == ["80.0", "100.0", "50.0"]
    assert [cell.strip() for cell in rows["c"]] == ["-", "-", "0.0"]
    assert "mean IU 77.5" in text
    assert "left out: c" in text


def test_published_scores_stand_beside_the_runs_own() -> None:
    published = (
        Published(source="paper [1]", mean_iu=0.627, pixel_accuracy=0.903),
        Published(source="release", mean_iu=0.655),
    )
    protocol = {"split": "val", "pictures": 5, "pictures_of_split": 9}
    results = {"pixel_accuracy": 0.5, "mean_accuracy": 0.25, "mean_iu": 0.125, "fw_iu": None, "protocol": protocol}
    text = rendered(published_table(published, results))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.count("│") == 6]
    assert rows == [
        ["paper [1]", "90.3", "-", "62.7", "-"],
        ["release", "-", "-", "65.5", "-"],
        ["this run, val, 5 pictures", "50.0", "25.0", "12.5", "-"],
    ]
    assert "scored on 5 of the 9 pictures" in text


def test_published_scores_of_several_heads_stand_by_head() -> None:
    published = (
        Published(source="a", head="semantic", mean_iu=0.4),
        Published(source="b", head="geometric", fw_iu=0.9),
    )
    own = {"pixel_accuracy": 0.5, "mean_accuracy": 0.25, "mean_iu": 0.125, "fw_iu": 0.75}
    results = {"heads": {"semantic": own, "geometric": own | {"fw_iu": 0.7}}}
    protocol = {"split": "val", "pictures": 5, "pictures_of_split": 5}
    text = rendered(published_table(published, results | {"protocol": protocol}))
    assert [line.split("│")[1].split(",")[0].strip() for line in text.splitlines() if line.count("│") == 6] == [
        "semantic: a",
        "semantic: this run",
        "geometric: b",
        "geometric: this run",
    ]
    assert "70.0" in text


def test_the_table_of_counts_leaves_void_out_of_the_shares() -> None:
    text = rendered(counts_table({"a": 3000, "b": 1000}, 500, "train"))
    assert "3,000" in text
    assert "75.0" in text
    assert "500" in text


def test_what_is_said_of_a_study_is_as_wide_as_the_terminal() -> None:
    question = "How good could a net of a coarse output be?"
    note = "14 of 21 classes do not occur and are left out of the means, as [the paper] does."
    own, theirs = [Row("stride 4", (98.2,))], [Row("stride 4", (98.5,), "Paper, appendix A")]
    columns = [Column("mean IU", "%")]
    result = Result("x", question, columns, own, published=theirs, paper="", data="", net="", notes=[note])
    lines = [line.rstrip() for line in rendered(study_table(result)).splitlines()]
    assert lines[0] == question
    assert lines[-2:] == ["[1] Paper, appendix A", note]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_counts_on_a_terminal_and_a_log_holds_what_is_said_alone(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    with counting("pictures", 3) as progress:
        progress.advance(progress.task_ids[0])
        progress.console.print("skipped: a.png")
    assert "skipped: a.png" in stream.getvalue()
    assert ("1/3" in stream.getvalue()) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_download_is_drawn_on_a_terminal_alone(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, color_system=None)
    monkeypatch.setattr(display, "Console", lambda **_: console)
    with display.downloading() as show:
        show(Archive("https://example.org/a.zip"), 3, 10)
    assert ("a.zip" in stream.getvalue()) == terminal
