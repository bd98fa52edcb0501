"""Processes that die, memory that runs out, and being told to stop: in the order in which people meet them."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import outcome, recipe

from fullyconv import checkpoint, cli
from fullyconv.errors import TrainingError
from fullyconv.events import Alarm, Event, Step
from fullyconv.learner import Learner
from fullyconv.runs import read_log
from fullyconv.training import train


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(recipe(workers=0, stages=1), out=folder)
    return outcome(folder)


def test_workers_that_are_killed_are_replaced(tmp_path: Path, undisturbed: dict[str, object]) -> None:
    heard: list[Event] = []

    def kills(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Step) and event.step == 3:
            for worker in multiprocessing.active_children():
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)

    train(recipe(workers=1, stages=1), out=tmp_path / "run", on_event=kills)
    assert outcome(tmp_path / "run") == undisturbed
    alarms = [event for event in heard if isinstance(event, Alarm) and event.kind == "worker"]
    assert [alarm.step for alarm in alarms] == [3]
    assert "a process that reads pictures has died, others take over" in alarms[0].message


def test_workers_that_die_again_and_again_end_training_with_the_state_saved(
    tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    def kills(event: Event) -> None:
        if isinstance(event, Step):
            for worker in multiprocessing.active_children():
                assert worker.pid is not None
                os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"8s: processes that read pictures died 4 times .* after step \d+") as died:
        train(recipe(workers=1, stages=1), out=tmp_path / "run", on_event=kills)
    saved = checkpoint.load_state(tmp_path / "run" / "8s" / "resume")[1]["step"]
    assert str(died.value).endswith(f"resuming goes on after step {saved}")
    train(recipe(workers=0, stages=1), out=tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("kind", ["python", "torch"])
def test_memory_that_runs_out_in_a_step_is_one_line(
    kind: str,
    tmp_path: Path,
    undisturbed: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = Learner.step

    def greedy(self: Learner, *args: Any, number: int, **rest: Any) -> tuple[float, float]:
        if number == 5:
            if kind == "python":
                raise MemoryError
            torch.empty(1 << 50)
        return whole(self, *args, number=number, **rest)

    file = tmp_path / "recipe.json"
    file.write_text(recipe(workers=0, stages=1).model_dump_json())
    args = ["train", "--recipe", str(file), "--out", str(tmp_path / "run"), "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", greedy)
        with pytest.raises(SystemExit) as left:
            cli.main(args)
    assert left.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert "8s: memory ran out (" in error
    assert "take a smaller --batch or --crop" in error
    assert error.endswith("resuming goes on after step 5")
    cli_run(args)
    assert outcome(tmp_path / "run") == undisturbed


def cli_run(args: list[str]) -> None:
    """Run a command that is to end well, in this process."""
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    assert not left.value.code


LIMITED = """
import resource, sys
import torch
torch.set_num_threads(1)
from fullyconv import cli, display, tuning
from fullyconv.events import Step
tuning.tune = lambda: None  # which keeps memory that is freed
shown = display.TrainingDisplay.__call__
def show(self, event):
    shown(self, event)
    if isinstance(event, Step) and event.step == 3:
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), resource.RLIM_INFINITY))
display.TrainingDisplay.__call__ = show
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_process_that_gets_no_more_memory_says_so_and_goes_on_with_more(tmp_path: Path) -> None:
    settings = recipe(workers=0, stages=1).model_dump(mode="json")
    settings["stages"][0]["data"] |= {"crop": [256, 256], "root": "count=6 size=256x256"}
    settings["stages"][0]["fit"] |= {"batch": 6, "accumulate": 1, "steps": 5}
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(settings))
    args = ["train", "--recipe", str(file), "--out", str(tmp_path / "run"), "--resume"]
    told = subprocess.run(
        [sys.executable, "-c", LIMITED, *args],
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed goes back to the system
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert told.returncode == 2, told.stderr[-3000:]
    assert "Traceback" not in told.stderr
    (error,) = [line for line in told.stderr.splitlines() if "error: " in line]
    assert "memory ran out" in error
    assert checkpoint.load_state(tmp_path / "run" / "8s" / "resume")[1]["step"] == 3
    train(file, out=tmp_path / "run", resume=True)
    assert [e["step"] for e in read_log(tmp_path / "run") if e["event"] == "step"] == [1, 2, 3, 4, 5]


# Being told to stop --------------------------------------------------------------------------------------------------

TOLD = """
import os, signal, sys, threading, time
import torch
torch.set_num_threads(1)
from fullyconv import checkpoint, cli, fitting, learner
what, args = sys.argv[1], sys.argv[2:]
def told(*_):
    print("told", time.time(), flush=True)
    target = os.kill if what != "group" else os.killpg
    target(os.getpid(), signal.SIGTERM)
if what == "scoring":
    evaluate = fitting.evaluate
    def slow(model, data, *, on_progress, **rest):
        def progress(done, total):
            if done == 2:
                told()
            on_progress(done, total)
        return evaluate(model, data, on_progress=progress, **rest)
    fitting.evaluate = slow
elif what == "saving":
    save, calls = checkpoint.write_weights, []
    def slow(*args):
        calls.append(1)
        if len(calls) == 3:
            told()
        save(*args)
    checkpoint.write_weights = slow
else:
    step = learner.Learner.step
    def slow(self, *args, number, **rest):
        if number == 3:
            told()
        return step(self, *args, number=number, **rest)
    learner.Learner.step = slow
cli.main(args)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["scoring", "saving", "group"])
def test_sigterm_leaves_within_ten_seconds_with_the_state_saved(
    what: str, tmp_path: Path, undisturbed: dict[str, object]
) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(recipe(workers=int(what == "group"), stages=1).model_dump_json())
    args = ["train", "--recipe", str(file), "--out", str(tmp_path / "run"), "--resume"]
    done = subprocess.run(
        [sys.executable, "-c", TOLD, what, *args],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        start_new_session=True,
    )
    left = time.time() - float(re.search(r"told ([\d.]+)", done.stdout).group(1))  # type: ignore[union-attr]
    assert done.returncode == 130, done.stderr
    assert f"stopped; go on with: fullyconv train --out {tmp_path / 'run'} --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert left < 10
    step = checkpoint.load_state(tmp_path / "run" / "8s" / "resume")[1]["step"]
    assert step == max(e["step"] for e in read_log(tmp_path / "run") if e["event"] == "step")
    train(recipe(workers=0, stages=1), out=tmp_path / "run", resume=True)
    assert outcome(tmp_path / "run") == undisturbed


# Several processes ---------------------------------------------------------------------------------------------------

RANK = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from fullyconv import cli, learner
how, args = sys.argv[1], sys.argv[2:]
step = learner.Learner.step
def dies(self, *args, number, **rest):
    if number == 3 and self.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError
    return step(self, *args, number=number, **rest)
learner.Learner.step = dies
cli.main(args)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed"])
def test_where_one_process_dies_all_end_with_the_reason(how: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    settings = recipe(workers=0, stages=1).model_dump(mode="json")
    settings["stages"][0]["fit"] |= {"batch": 4}
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-c", RANK, how, "train", "--recipe", str(file), "--out", str(tmp_path / "run")]
    port = 20000 + os.getpid() % 20000
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    begun = time.monotonic()
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert time.monotonic() - begun < 100
    assert ranks[0].returncode == 2, errors[0]
    assert "process 0 of 2 goes no further, since another has ended" in errors[0]
    assert "resuming goes on after step 3" in errors[0]
    assert ranks[1].returncode == (-signal.SIGKILL if how == "killed" else 2)
    assert how == "killed" or "memory ran out" in errors[1]
    assert checkpoint.load_state(tmp_path / "run" / "8s" / "resume")[1]["step"] == 3


# A disk of its own ---------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Any:
    """A file system of 300 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)], capture_output=True, check=False
        ).returncode
    )
    if not mounted:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_full_or_read_only_disk_ends_in_one_line_and_goes_on_with_room(
    what: str, disk: Path, tmp_path: Path, undisturbed: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "recipe.json", disk / "run"
    file.write_text(recipe(workers=0, stages=1).model_dump_json())
    args = ["train", "--recipe", str(file), "--out", str(out), "--resume"]
    if what == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    assert left.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert ("No space left on device" if what == "full" else "Read-only file system") in error
    subprocess.run(["mount", "-o", "remount,rw,size=64m", str(disk)], check=True)
    cli_run(args)
    assert outcome(out) == undisturbed
