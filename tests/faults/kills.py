"""Kill a training run at random moments, and see that it goes on as if nothing had happened.

    python tests/faults/kills.py --kills 200 --seed 0

A run is killed (SIGKILL) some times, each at a moment drawn evenly over as long as the undisturbed run takes, and then
let finish. After each kill every folder that stands must load whole; in the end the weights, byte for byte, the scores
and the logged losses must be those of the undisturbed run. Exit code: 0 all were, 1 one was not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

# Before anything starts threads: a forked child has only the one that forked it.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# What training loads when it needs it: once for all children.
import lightning_fabric  # noqa: F401
import matplotlib.backends.backend_svg  # noqa: F401
import torch.utils.tensorboard  # noqa: F401

from fullyconv import checkpoint, training
from fullyconv.config import Recipe
from fullyconv.datasets import dataset
from fullyconv.presets import fcn
from fullyconv.runs import holds_run, read_log

ROOT = "count=8 size=32x48"


@dataclass
class Tally:
    """What has come of it."""

    kills: int = 0
    runs: int = 0
    moments: Counter[str] = field(default_factory=Counter)
    """In which state a kill left the folder."""
    wrong: list[str] = field(default_factory=list)


def recipe(*, workers: int, stages: int = 2) -> Recipe:
    """Stages with all that has a state: momentum, average, norms, dropout, warm-up, accumulation, weights."""
    classes = len(dataset("scenes", ROOT).classes["out"])
    data = {"root": ROOT, "name": "scenes", "workers": workers, "crop": (32, 32), "remember": workers == 0}
    fit = {"batch": 2, "accumulate": 2, "ema": 0.9, "warmup": 3, "class_weights": "median", "device": "cpu"}
    fit |= {"evaluate_every": 4, "save_every": 1}
    both = [
        {
            "name": f"{stride}s",
            "model": fcn(stride, "tinyvgg", classes=classes, weights=None, context=8, dropout=0.3),
            "data": data,
            "fit": {**fit, "steps": steps},
        }
        for stride, steps in ((8, 12), (4, 10))
    ]
    return Recipe.parse({"name": "kills", "stages": both[:stages]})


def start(folder: Path, *, workers: int) -> int:
    """Train in a forked child, and go on with what is in the folder; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        # Those that read for a killed process complain of it.
        os.dup2(os.open(folder.with_name("said.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        training.train(recipe(workers=workers), out=folder, resume=True)
        status = 0
    except BaseException as error:
        print(f"{folder.name}: {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


def killed_after(child: int, seconds: float) -> bool:
    """Whether a child had to be killed after so many seconds; False: it has ended by itself, and well.

    Raises:
        RuntimeError: it has failed.
    """
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # of one that has ended it takes no notice
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # those that read pictures would end by themselves, in seconds
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the run ended with code {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def finish(child: int) -> None:
    """Wait until a child has ended, and well.

    Raises:
        RuntimeError: it has failed.
    """
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the run ended with status {status}")


def moment(folder: Path) -> str:
    """In which state a killed run has left its folder."""
    if any(
        not path.with_name(path.name[1:].removesuffix(".previous")).exists() for path in folder.rglob(".*.previous")
    ):
        return "between two renames"
    if [*folder.rglob(".*.tmp"), *folder.rglob(".*.previous")] or any(folder.glob(".*.*")):
        return "while it wrote"
    if (folder / "4s" / "results.json").exists():
        return "after the last stage"
    return "between writes" if holds_run(folder) else "before the first resume point"


def look(folder: Path) -> Iterator[str]:
    """What is not whole of that which stands in a run folder."""
    for path in (*folder.glob("*/best"), *folder.glob("*/last"), *folder.glob("*/resume")):
        try:
            checkpoint.load_state(path) if path.name == "resume" else checkpoint.load(path)
        except Exception as error:
            yield f"{path}: {type(error).__name__}: {error}"
    for path in folder.rglob("*.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            json.loads(path.read_text())


def outcome(folder: Path) -> dict[str, object]:
    """All that must not depend on kills: bytes of weights and scores by path, and losses."""
    names = (
        "model.safetensors",
        "results.json",
        "*/results.json",
        "*/best/model.safetensors",
        "*/last/model.safetensors",
    )
    files = {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.glob(name)}
    losses = [(e["stage"], e["step"], e["loss"]) for e in read_log(folder) if e["event"] == "step"]
    return {**files, "losses": losses}


def torment(kills: int, seed: int, out: Path) -> Tally:
    """Kill runs so many times in all, up to five times each, and compare each with the undisturbed one."""
    chance, tally = random.Random(seed), Tally()
    whole = out / "undisturbed"
    gc.freeze()  # children need not look through what is there already
    begun = time.monotonic()
    finish(start(whole, workers=0))
    lasts_s, expected = time.monotonic() - begun, outcome(whole)
    print(f"undisturbed: {lasts_s:.2f} s, {len(expected)} results to compare", flush=True)
    while tally.kills < kills and not tally.wrong:
        folder = out / f"run-{tally.runs}"
        for _ in range(min(chance.randint(1, 5), kills - tally.kills)):
            if not killed_after(start(folder, workers=chance.randint(0, 1)), chance.uniform(0, lasts_s)):
                break
            tally.kills += 1
            tally.moments[moment(folder)] += 1
            tally.wrong += look(folder)
        finish(start(folder, workers=0))
        tally.runs += 1
        found = outcome(folder)
        tally.wrong += [
            f"{folder}: {name} differs"
            for name in expected.keys() | found.keys()
            if expected.get(name) != found.get(name)
        ]
        left = [str(path) for path in (*folder.rglob(".*.tmp"), *folder.rglob(".*.previous"))]
        tally.wrong += [f"{path}: left behind" for path in left]
        print(
            f"run {tally.runs}: {tally.kills} kills so far, {'as undisturbed' if not tally.wrong else tally.wrong}",
            flush=True,
        )
        if not tally.wrong:
            shutil.rmtree(folder)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = torment(options.kills, options.seed, Path(folder))
    print(f"{tally.kills} kills in {tally.runs} runs, seed {options.seed}, {time.monotonic() - begun:.0f} s")
    for name, count in tally.moments.most_common():
        print(f"  {count:4} {name}")
    for line in tally.wrong:
        print(f"wrong: {line}")
    sys.exit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
