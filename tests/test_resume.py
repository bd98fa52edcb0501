"""What is interrupted at any step, in any way, and resumed, ends bit for bit where the uninterrupted run does."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from fullyconv import checkpoint, fitting
from fullyconv.building import build
from fullyconv.config import Classes, DataConfig, FitConfig, Recipe
from fullyconv.datasets import dataset
from fullyconv.errors import ConfigError
from fullyconv.events import Evaluated, Event, Saved, Step
from fullyconv.fitting import fit
from fullyconv.learner import Learner
from fullyconv.presets import fcn
from fullyconv.runs import read_log
from fullyconv.training import train

STEPS = 12
DATA = DataConfig(root="count=10 size=48x64", name="scenes", workers=0, crop=(32, 48))
# Everything that has a state: momentum, average, norms, dropout, warm-up, accumulation, class weights.
FIT = FitConfig(
    steps=STEPS,
    batch=2,
    accumulate=2,
    ema=0.9,
    warmup=4,
    class_weights="median",
    evaluate_every=5,
    save_every=4,
    clip=5.0,
)


def events(out: Path, *, resume: bool = False, data: DataConfig = DATA, **changes: Any) -> Generator[Event, None, None]:
    train_data, val_data = (dataset(data.name, data.root, split=split) for split in ("train", "val"))
    table = train_data.classes
    torch.manual_seed(0)
    config = fcn(8, "tinyvgg", classes=len(table["out"]), weights=None, context=8, dropout=0.3)
    settings = FIT.model_copy(update=changes)
    return fit(build(config, classes=table), train_data, val_data, settings, data=data, out=out, resume=resume)


def final(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last resume point: weights, average and optimizer."""
    tensors, state = checkpoint.load_state(folder / "resume")
    assert state["step"] == STEPS
    return tensors


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert any(name.startswith("optimizer.") for name in one)
    assert any(name.startswith("average.") for name in one)
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    for _ in events(folder):
        pass
    return final(folder)


@pytest.mark.parametrize("step", [1, 4, 5, 7, 11])
def test_a_closed_loop_goes_on_where_it_was(tmp_path: Path, step: int, uninterrupted: dict[str, torch.Tensor]) -> None:
    loop = events(tmp_path)
    next(event for event in loop if isinstance(event, Step) and event.step == step)
    loop.close()
    resumed = [event.step for event in events(tmp_path, resume=True) if isinstance(event, Step)]
    assert resumed == list(range(step + 1, STEPS + 1))
    assert_same(final(tmp_path), uninterrupted)


def test_a_loop_interrupted_between_scoring_and_the_next_step_scores_the_same(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    loop = events(tmp_path)
    next(event for event in loop if isinstance(event, Evaluated))
    with pytest.raises(KeyboardInterrupt):
        loop.throw(KeyboardInterrupt())
    scored = [event.step for event in events(tmp_path, resume=True) if isinstance(event, Evaluated)]
    assert scored == [10, 12]
    assert_same(final(tmp_path), uninterrupted)


def test_what_dies_within_a_step_repeats_the_lost_ones(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Learner.step

    def dies(self: Learner, *args: Any, number: int, **rest: Any) -> tuple[float, float]:
        loss = whole(self, *args, number=number, **rest)
        if number == 6:  # the weights have moved, and nobody knows
            raise KeyboardInterrupt
        return loss

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            list(events(tmp_path))
    resumed = [event.step for event in events(tmp_path, resume=True) if isinstance(event, Step)]
    assert resumed[0] == 5  # the last resume point was after step 4
    assert_same(final(tmp_path), uninterrupted)


def test_being_asked_to_stop_saves_and_leaves(tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    asked: list[bool] = []
    train_data, val_data = (dataset(DATA.name, DATA.root, split=split) for split in ("train", "val"))
    table = train_data.classes
    torch.manual_seed(0)
    config = fcn(8, "tinyvgg", classes=len(table["out"]), weights=None, context=8, dropout=0.3)
    model = build(config, classes=table)
    seen: list[Event] = []
    loop = fit(model, train_data, val_data, FIT, data=DATA, out=tmp_path, stop=lambda: len(asked) > 0)

    def until() -> None:
        for event in loop:
            seen.append(event)
            if isinstance(event, Step) and event.step == 3:
                asked.append(True)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 4; resume"):
        until()
    assert checkpoint.load_state(tmp_path / "resume")[1]["step"] == 4
    list(events(tmp_path, resume=True))
    assert_same(final(tmp_path), uninterrupted)


def test_a_loop_that_is_asked_to_stop_while_it_scores_scores_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 6  # five steps, then pictures of val

    train_data, val_data = (dataset(DATA.name, DATA.root, split=split) for split in ("train", "val"))
    table = train_data.classes
    torch.manual_seed(0)
    config = fcn(8, "tinyvgg", classes=len(table["out"]), weights=None, context=8, dropout=0.3)
    loop = fit(build(config, classes=table), train_data, val_data, FIT, data=DATA, out=tmp_path, stop=stop)
    with pytest.raises(KeyboardInterrupt):
        list(loop)
    assert not (tmp_path / "last").exists()
    resumed = [e for e in events(tmp_path, resume=True) if isinstance(e, Step | Evaluated)]
    assert isinstance(resumed[0], Evaluated)
    assert resumed[0].step == 5


@pytest.mark.parametrize("reduction", ["mean", "image"])
def test_sampled_patches_are_the_same_when_it_goes_on(tmp_path: Path, reduction: str) -> None:
    sampled: dict[str, Any] = {"keep": 0.5, "reduction": reduction}
    for _ in events(tmp_path / "whole", **sampled):
        pass
    loop = events(tmp_path / "torn", **sampled)
    next(event for event in loop if isinstance(event, Step) and event.step == 7)
    loop.close()
    workers = DATA.model_copy(update={"workers": 1, "remember": False})
    for _ in events(tmp_path / "torn", resume=True, data=workers, **sampled):
        pass
    assert_same(final(tmp_path / "torn"), final(tmp_path / "whole"))


def test_workers_change_nothing(tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    for _ in events(tmp_path, data=DATA.model_copy(update={"workers": 2, "remember": False})):
        pass
    assert_same(final(tmp_path), uninterrupted)


def test_another_seed_changes_everything(tmp_path: Path, uninterrupted: dict[str, torch.Tensor]) -> None:
    for _ in events(tmp_path, seed=1):
        pass
    assert any(not torch.equal(a, b) for a, b in zip(final(tmp_path).values(), uninterrupted.values(), strict=True))


def test_the_users_random_numbers_are_left_alone(tmp_path: Path) -> None:
    loop = events(tmp_path)
    state = torch.get_rng_state()
    next(event for event in loop if isinstance(event, Step) and event.step == 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_minutes_go_on_with_what_is_left_of_them(tmp_path: Path) -> None:
    minutes: dict[str, Any] = {"steps": None, "minutes": 0.04, "evaluate_every": 1000}
    loop = events(tmp_path, **minutes)
    step = next(event for event in loop if isinstance(event, Step) and event.progress > 0.4)
    loop.close()
    after = next(event for event in events(tmp_path, resume=True, **minutes) if isinstance(event, Step))
    assert after.step == step.step + 1
    assert step.progress <= after.progress < 0.95


def test_a_resume_point_is_never_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SAVE_AFTER_S", 0.0)
    saved = [e.step for e in events(tmp_path, save_every=None) if isinstance(e, Saved) and e.path.name == "resume"]
    assert saved == list(range(1, STEPS + 1))


# Whole processes -----------------------------------------------------------------------------------------------------

RUN = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from fullyconv.events import Step
from fullyconv.training import train
path, folder, number, at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def on_event(event):
    if isinstance(event, Step) and event.step == at:
        os.kill(os.getpid(), number)
try:
    train(path, out=folder, resume=True, on_event=on_event)
except KeyboardInterrupt as stopped:
    sys.exit(f"interrupted: {stopped}")
"""


def recipe() -> Recipe:
    table = dataset(DATA.name, DATA.root).classes
    model = fcn(8, "tinyvgg", classes=len(table["out"]), weights=None, context=0)
    return Recipe.parse({"stages": [{"name": "8s", "model": model, "data": DATA, "fit": FIT}]})


def run_and_kill(folder: Path, number: int, *, at: int) -> subprocess.CompletedProcess[str]:
    """Train in a process of its own that sends itself a signal at a step."""
    path = folder.with_name(f"{folder.name}.json")
    path.write_text(recipe().model_dump_json())
    command = [sys.executable, "-c", RUN, str(path), str(folder), str(int(number)), str(at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_a_process_killed_or_told_to_stop_goes_on_bit_for_bit(tmp_path: Path) -> None:
    killed = run_and_kill(tmp_path / "torn", signal.SIGKILL, at=6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint.load_state(tmp_path / "torn" / "8s" / "resume")[1]["step"] == 4
    told = run_and_kill(tmp_path / "torn", signal.SIGTERM, at=6)
    assert "interrupted: 8s: stopped after step" in told.stderr
    # The signal comes while step 6 is told, and is obeyed after the step at hand.
    assert checkpoint.load_state(tmp_path / "torn" / "8s" / "resume")[1]["step"] == 7
    torn = train(recipe(), out=tmp_path / "torn", resume=True).state_dict()
    whole = train(recipe(), out=tmp_path / "whole").state_dict()
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []
    losses = [
        [(event["step"], event["loss"]) for event in read_log(tmp_path / name) if event["event"] == "step"]
        for name in ("whole", "torn")
    ]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1))
    assert losses[0] == losses[1]


def test_a_run_of_stages_goes_on_within_the_stage_it_was_in(tmp_path: Path) -> None:
    one = recipe().stages[0]
    fine = one.model.model_copy(
        update={"heads": fcn(4, "tinyvgg", classes=one.model.heads["out"].classes, weights=None, context=0).heads}
    )
    both = Recipe(stages=(one, one.model_copy(update={"name": "4s", "model": fine})))
    whole = train(both, out=tmp_path / "whole").state_dict()
    seen: list[Event] = []

    def breaks(event: Event) -> None:
        seen.append(event)
        if isinstance(event, Step) and (event.stage, event.step) == ("4s", 6):
            raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError, match="the display broke"):
        train(both, out=tmp_path / "torn", on_event=breaks)
    heard: list[Event] = []
    torn = train(both, out=tmp_path / "torn", resume=True, on_event=heard.append).state_dict()
    assert [(e.stage, e.step) for e in heard if isinstance(e, Step)] == [("4s", n) for n in range(7, STEPS + 1)]
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []
    done: list[Event] = []
    train(both, out=tmp_path / "torn", resume=True, on_event=done.append)
    assert not [event for event in done if isinstance(event, Step)]


def on(root: Path) -> Recipe:
    model = fcn(8, "tinyvgg", classes=3, weights=None, context=0)
    place = DATA.model_copy(update={"root": str(root), "name": "folder"})
    return Recipe.parse({"stages": [{"name": "8s", "model": model, "data": place, "fit": FIT}]})


def break_off(recipe: Recipe, out: Path) -> None:
    """Train, and fail after the second step."""

    def breaks(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            raise RuntimeError("the display broke")

    with pytest.raises(RuntimeError, match="the display broke"):
        train(recipe, out=out, on_event=breaks)


def test_a_folder_that_has_moved_is_gone_on_with(data: Path, tmp_path: Path) -> None:
    """As on a cluster, where each job has a disk of its own."""
    here, there = shutil.copytree(data, tmp_path / "here"), tmp_path / "there"
    whole = train(on(here), out=tmp_path / "whole").state_dict()
    break_off(on(here), tmp_path / "run")
    here.rename(there)
    torn = train(on(there), out=tmp_path / "run", resume=True).state_dict()
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []
    assert Recipe.read(tmp_path / "run" / "recipe.json").stages[0].data.root == str(there)


def test_a_folder_has_not_moved_where_the_run_has_not_recorded_its_pictures(data: Path, tmp_path: Path) -> None:
    here = shutil.copytree(data, tmp_path / "here")
    break_off(on(data), tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    facts = json.loads(path.read_text())
    del facts["stages"]["8s"]["pictures"]
    path.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"stages\.0\.data\.root differs"):
        train(on(here), out=tmp_path / "run", resume=True)
    path.unlink()
    with pytest.raises(ConfigError, match=r"stages\.0\.data\.root differs"):
        train(on(here), out=tmp_path / "run", resume=True)


def test_generated_scenes_are_not_moved(tmp_path: Path) -> None:
    break_off(recipe(), tmp_path / "run")
    (stage,) = recipe().stages
    other = stage.data.model_copy(update={"root": DATA.root.replace("48x64", "64x80")})
    with pytest.raises(ConfigError, match=r"stages\.0\.data\.root differs"):
        train(Recipe(stages=(stage.model_copy(update={"data": other}),)), out=tmp_path / "run", resume=True)


def test_two_folders_of_the_same_names_stay_two(data: Path, tmp_path: Path) -> None:
    """Pictures in two sizes, say, of which names tell nothing."""
    one, two, third = (shutil.copytree(data, tmp_path / name) for name in ("one", "two", "third"))

    def both(first: Path, second: Path) -> Recipe:
        stage, again = on(first).stages[0], on(second).stages[0]
        return Recipe(stages=(stage, again.model_copy(update={"name": "again"})))

    break_off(both(one, two), tmp_path / "run")
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    for first, second in ((one, one), (two, two), (third, third)):
        with pytest.raises(ConfigError, match=r"data\.root differs"):
            train(both(first, second), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before
    train(both(third, two), out=tmp_path / "run", resume=True)


def test_notes_beside_a_model_of_a_stage_that_is_done_are_in_nobodys_way(tmp_path: Path) -> None:
    train(recipe(), out=tmp_path / "run")
    (tmp_path / "run" / "8s" / "best" / "notes.txt").write_text("mine")
    train(recipe(), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "8s" / "best" / "notes.txt").read_text() == "mine"


def ignore(folder: Path, name: str) -> None:
    """Write a table of four classes, of which one is ignored."""
    table = Classes.of("sky", "road", "cat", "other").model_dump(mode="json")["entries"]
    (folder / "classes.json").write_text(json.dumps([{**entry, "ignore": entry["name"] == name} for entry in table]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", r"began with 6 pictures of train and would go on with 5: .*0.* is missing"),
        ("new", r"began with 6 pictures of train and would go on with 7: .*another.* is new"),
        ("order", r"would go on with 6: their order is another"),
        ("classes", r"began with another table of classes of head 'out': entry 0 was 'sky', .* and is 'road',"),
        (
            "ignored",
            r"began with another table of classes of head 'out': entry 2 was 'cat', .* and is .* ignored;",
        ),
        ("void", r"began with another table of classes of head 'out': entry 3 was none and is 'other', .* ignored;"),
    ],
)
def test_other_pictures_are_not_gone_on_with(data: Path, tmp_path: Path, change: str, said: str) -> None:
    here = shutil.copytree(data, tmp_path / "here")
    if change == "ignored":
        (here / "classes.txt").unlink()
        ignore(here, "other")
    break_off(on(here), tmp_path / "run")
    for kind in ("images", "labels"):
        first = here / kind / "train" / "0.png"
        if change == "missing":
            first.unlink()
        elif change == "new":
            shutil.copy(first, first.with_name("another.png"))
    if change == "order":
        path = tmp_path / "run" / "run.json"  # as a list whose lines were sorted since
        facts = json.loads(path.read_text())
        facts["stages"]["8s"]["pictures"]["train"].reverse()
        path.write_text(json.dumps(facts))
    if change == "ignored":
        ignore(here, "cat")
    if change == "classes":
        (here / "classes.txt").write_text("road\nsky\ncat\n")
    if change == "void":
        (here / "classes.txt").unlink()
        ignore(here, "other")
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    with pytest.raises(ConfigError, match=said):
        train(on(here), out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before


def test_another_recipe_cannot_be_resumed(tmp_path: Path) -> None:
    loop = events(tmp_path)
    next(event for event in loop if isinstance(event, Step))
    loop.close()
    train_data = dataset(DATA.name, DATA.root)
    config = fcn(4, "tinyvgg", classes=len(train_data.classes["out"]), weights=None, context=8)
    other = build(config, classes=train_data.classes)
    with pytest.raises(Exception, match=r"does not fit the model: .* missing"):
        next(fit(other, train_data, None, FIT, data=DATA, out=tmp_path, resume=True))
