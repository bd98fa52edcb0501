"""Pictures that go bad, vanish or cannot be reached in the middle of training; through the command line."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fullyconv import checkpoint, cli, display, images
from fullyconv.datasets import dataset
from fullyconv.events import Event, Step
from fullyconv.presets import fcn
from fullyconv.runs import read_log
from fullyconv.sampling import Samples, View
from fullyconv.transforms import TrainTransform

STEPS = 8
LOST = "images/train/05.png"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures to learn from, two to score, as files."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 8), ("val", 2)):
        drawn = dataset("scenes", f"count={count} size=32x48", split=split)
        for index in range(count):
            for kind, pixels in (("images", drawn[index].image), ("labels", drawn[index].labels["out"])):
                path = root / kind / split / f"{index:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(pixels)).save(path)
    table = [entry.model_dump(mode="json") for entry in drawn.classes["out"].entries]
    (root / "classes.json").write_text(json.dumps(table))
    return root


def command(root: Path, out: Path, *, workers: int = 0) -> list[str]:
    classes = len(dataset("folder", str(root)).classes["out"])
    stage = {
        "name": "8s",
        "model": fcn(8, "tinyvgg", classes=classes, weights=None, context=8, dropout=0.3).model_dump(mode="json"),
        "data": {"root": str(root), "crop": [32, 32], "workers": workers, "remember": False},
        "fit": {"steps": STEPS, "batch": 2, "warmup": 2, "device": "cpu", "evaluate_every": 4, "ema": 0.9},
    }
    recipe = out.with_name(f"{out.name}.json")
    recipe.write_text(json.dumps({"stages": [stage | {"fit": stage["fit"] | {"class_weights": "median"}}]}))
    return ["train", "--recipe", str(recipe), "--out", str(out), "--no-check", "--resume"]


def run(args: list[str], monkeypatch: pytest.MonkeyPatch, *, at: int, happens: Callable[[], Any]) -> int:
    """The exit code of a command in which something happens after a step."""
    shown = display.TrainingDisplay.__call__

    def show(self: display.TrainingDisplay, event: Event) -> None:
        shown(self, event)
        if isinstance(event, Step) and event.step == at:
            happens()

    with monkeypatch.context() as patch:
        patch.setattr(display.TrainingDisplay, "__call__", show)
        try:
            cli.main(args)
        except SystemExit as left:
            return int(left.code or 0)
    return 0


def weights(out: Path) -> bytes:
    """The bytes of all tensors of the last model; the header names a digest, of the path of the data among others."""
    content = (out / "8s" / "last" / "model.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def skipped(out: Path) -> list[str]:
    return [e["message"] for e in read_log(out) if e["event"] == "alarm" and e["kind"] == "skipped"]


@pytest.fixture(scope="module")
def undisturbed(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run(command(pictures, out), patch, at=-1, happens=lambda: None) == 0
    assert skipped(out) == []
    return weights(out)


@pytest.mark.parametrize("kind", ["vanished", "EIO", "ESTALE", "ETIMEDOUT"])
def test_lost_input_ends_in_one_line_and_goes_on_when_it_is_back(
    kind: str,
    pictures: Path,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, root)
    args, opens = command(root, out), Path.open

    def fails(self: Path, *args: Any, **rest: Any) -> Any:
        if self.is_relative_to(root):
            number = getattr(errno, kind)
            raise OSError(number, os.strerror(number), str(self))
        return opens(self, *args, **rest)

    with monkeypatch.context() as disk:
        happens: Callable[[], Any] = (
            (lambda: (root / "images").rename(tmp_path / "away"))
            if kind == "vanished"
            else (lambda: disk.setattr(images.Path, "open", fails))
        )
        assert run(args, monkeypatch, at=3, happens=happens) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(said) == 1
    reason = "no such file" if kind == "vanished" else os.strerror(getattr(errno, kind))
    assert re.search(r"[234] pictures of 8 can no longer be read, more than 1 %: .*; bring them back; ", said[0])
    assert reason in said[0]
    assert "resuming goes on after step 3" in said[0]
    if kind == "vanished":
        (tmp_path / "away").rename(root / "images")
    assert run(args, monkeypatch, at=-1, happens=lambda: None) == 0
    assert weights(out) == undisturbed


def test_a_picture_that_goes_bad_is_skipped_and_reported_and_resuming_repeats_it(
    pictures: Path,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "data"
    shutil.copytree(pictures, root)

    def cut() -> None:
        os.truncate(root / LOST, 100)

    def stop() -> None:
        cut()
        raise KeyboardInterrupt

    def restored(out: Path, at: int, happens: Callable[[], None], workers: int = 0) -> int:
        shutil.copy(pictures / LOST, root / LOST)
        return run(command(root, out, workers=workers), monkeypatch, at=at, happens=happens)

    assert restored(tmp_path / "whole", 2, cut) == 0
    one, summary = skipped(tmp_path / "whole")
    assert "05.png: " in one
    assert one.endswith("left out, another is learnt from instead")
    assert summary.startswith(
        "1 picture of 8 could not be read while training, and others were learnt from in its place"
    )
    assert f"alarm: {summary}" in capsys.readouterr().err
    assert restored(tmp_path / "torn", 2, stop) == 130
    assert run(command(root, tmp_path / "torn"), monkeypatch, at=-1, happens=lambda: None) == 0
    assert weights(tmp_path / "torn") == weights(tmp_path / "whole") != undisturbed
    assert skipped(tmp_path / "torn") == skipped(tmp_path / "whole")


class Damaged(View):
    """Pictures some of which cannot be read."""

    def __init__(self, *bad: int) -> None:
        super().__init__(dataset("scenes", "count=10 size=16x16"), range(10))
        self.bad = bad

    def __getitem__(self, index: int) -> Any:
        if index in self.bad:
            raise images.ImageError(f"{index}.png", "truncated")
        return super().__getitem__(index)


def test_what_stands_in_depends_on_seed_and_position_alone() -> None:
    transform = TrainTransform(crop=(16, 16))
    sound, damaged = (Samples(Damaged(*bad), transform, 3, most=2) for bad in ((), (1, 4)))
    again = Samples(Damaged(1, 4), transform, 3, most=2)
    instead = []
    for position in reversed(range(40)):
        tensors, lost = damaged[position]
        assert not isinstance(tensors, str)
        repeated, _ = again[39 - position]
        assert not isinstance(repeated, str)
        if damaged.stream[position] in (1, 4):
            assert set(lost) >= {damaged.data.names[damaged.stream[position]]}
            instead.append(tensors[0])
        else:
            same = sound[position][0]
            assert not isinstance(same, str)
            assert torch.equal(tensors[0], same[0])
            assert not lost
    assert len(instead) == 8
    assert len({image.numpy().tobytes() for image in instead}) > 4  # not always the same one
    first, second = (Samples(Damaged(1, 4), transform, 3, most=2) for _ in range(2))
    forth, back = [first[n] for n in range(40)], [second[n] for n in reversed(range(40))][::-1]
    for (a, _), (b, _) in zip(forth, back, strict=True):
        assert not isinstance(a, str)
        assert not isinstance(b, str)
        assert torch.equal(a[0], b[0])


def test_nothing_stands_in_once_too_many_are_lost() -> None:
    samples = Samples(Damaged(*range(10)), TrainTransform(crop=(16, 16)), 0, most=3)
    tensors, lost = samples[0]
    assert tensors == "no picture is left to learn from"
    assert len(lost) == 4


def test_an_unreadable_picture_of_val_stops_the_scoring_and_not_the_run(
    pictures: Path,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, out = tmp_path / "data", tmp_path / "run"
    shutil.copytree(pictures, root)
    args = command(root, out)
    bad = root / "images/val/01.png"
    assert run(args, monkeypatch, at=2, happens=lambda: os.truncate(bad, 60)) == 2
    error = next(line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert "01.png: " in error
    assert "resuming goes on after step 4" in error
    assert checkpoint.load_state(out / "8s" / "resume")[1]["step"] == 4
    shutil.copy(pictures / "images/val/01.png", bad)
    assert run(args, monkeypatch, at=-1, happens=lambda: None) == 0
    assert weights(out) == undisturbed
