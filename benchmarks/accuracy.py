"""How well do nets label real pictures after equal minutes of training, ours and those that users would pick instead?

    python benchmarks/accuracy.py --data camvid=FOLDER --weights FILE [--minutes 10] [--jobs 2] [--only NAME ...]
    python benchmarks/accuracy.py --data camvid=FOLDER --minutes 10 --alone
    python benchmarks/accuracy.py --data camvid --minutes 10 --table

Everybody learns from the same pictures on the same machine and is scored by one scorer, on all of val, at the pictures'
own size (`fullyconv.metrics.ConfusionMatrix`). Who competes, and with which settings from which documentation, is in
``learning.py`` (ours) and ``peers.py``. Starting weights are only given to those that say ImageNet.

First a pace is measured: a few take turns, a step each, with all threads, one of them in every group, and the median of
several rounds counts, after some that do not; the pictures' transforms are part of a step. Then each has
``60 * minutes / pace`` steps, over which its schedule runs. So a result repeats, and does not depend on what else the
machine does meanwhile; two may even train at a time. Scoring is outside the budget. What is scored is the last model,
not the best on val, so val chooses nothing in a run.

Later paces are measured beside one that is known, so that all stand to each other as at the first time. On another
machine, or on one that is by itself, they may be others; ``--alone`` measures them once more, and the page says both.

The curve is scored on some pictures of val, drawn at even distances; the last score on all of it. Whoever has finished
is kept in ``benchmarks/results/accuracy-NAME-MINUTESmin.json`` (``-seedN`` where it is not 0) and not trained again.
``--table`` writes that file, a table and a figure of mean IU over minutes to ``docs/results``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, context, machine, take_turns
from competitors import COMPETITORS, NEEDS
from learning import Competitor, Predict, Task

from fullyconv.datasets import SegmentationDataset, dataset
from fullyconv.errors import FullyConvError
from fullyconv.metrics import ConfusionMatrix
from fullyconv.records import write_json
from fullyconv.sampling import View, evenly

DOCS = Path(__file__).parents[1] / "docs" / "results"
POINTS = 6
"""Of the curve, the last one included."""
DRAWN = 34
"""Pictures of val that the points before the last are scored on."""
PACKAGES = ("torchvision", "segmentation-models-pytorch", "albumentations", "transformers", "ultralytics")
WARM = 4
"""Steps before the pace is measured: those of large nets take up to half as long again at first."""
TOGETHER = 4
"""How many take turns; one of them alone, Ultralytics with 39 classes, holds 12 GB."""
Found = dict[str, Any]


def steps_of(minutes: float, seconds: float) -> int:
    """Steps of so many seconds that fit into so many minutes, and one at least.

    Example:
        >>> steps_of(10, 0.5), steps_of(0.001, 2.0)
        (1200, 1)
    """
    return max(1, int(60 * minutes / seconds))


def title_of(name: str, minutes: float, seed: int) -> str:
    """The name of a file of results, without its ending; one seed a file.

    Example:
        >>> title_of("camvid", 10, 0), title_of("camvid", 2.5, 1)
        ('accuracy-camvid-10min', 'accuracy-camvid-2.5min-seed1')
    """
    return f"accuracy-{name}-{minutes:g}min" + (f"-seed{seed}" if seed else "")


def every(steps: int) -> int:
    """Steps between scorings, so that there are `POINTS` of them at most.

    Example:
        >>> every(60), every(61), every(2)
        (10, 11, 1)
    """
    return -(-steps // POINTS)


def score(predict: Predict, data: SegmentationDataset) -> ConfusionMatrix:
    """Counts over all pictures, at their own size.

    Raises:
        ValueError: a label map has not the size of its picture.
    """
    table = data.classes["out"]
    matrix = ConfusionMatrix(table.names)
    for index in range(len(data)):
        sample = data[index]
        matrix.update(sample.labels["out"], predict(sample.image), table.void)
    return matrix


def learn(competitor: Competitor, task: Task, val: SegmentationDataset, pace: float) -> Found:
    """Train for the task's steps, scoring on the way.

    Args:
        pace: seconds a step, as measured; what the minutes of the curve are counted in.
    """
    drawn = View(val, evenly(len(val), DRAWN))
    curve: list[Found] = []
    begun, spent = time.monotonic(), 0.0
    for step in range(1, task.steps + 1):
        at = time.monotonic()
        competitor.step()
        spent += time.monotonic() - at
        if step % task.every == 0 or step == task.steps:
            last = step == task.steps
            matrix = score(competitor.predictor(), val if last else drawn)
            point = {"step": step, "minutes": step * pace / 60, "mean_iu": matrix.mean_iu}
            curve.append(point | {"pictures": len(val) if last else len(drawn)})
    return {
        "steps": task.steps,
        "seconds_a_step": pace,
        "parameters": competitor.parameters,
        "scores": matrix.as_dict(),
        "curve": curve,
        "settings": dict(competitor.settings),
        "trained_s": round(spent, 1),
        "wall_s": round(time.monotonic() - begun, 1),
    }


def measure(names: Sequence[str], task_of: Callable[[int], Task], known: Mapping[str, float], rounds: int) -> Found:
    """Seconds a step of each, `TOGETHER` of them taking turns, for all of them hold memory.

    Args:
        known: what was measured before. One of them runs along, so that the others are measured against it and not
            against the load of the hour.

    Example:
        If A was known to take 1 s and now takes 2, then B, which now takes 3, would have taken 1.5.
    """
    known, task, threads = dict(known), task_of(1000), os.cpu_count() or 1
    for at in range(0, len(names), TOGETHER):
        reference, group = next(iter(known), None), names[at : at + TOGETHER]
        running = [*([] if reference is None else [reference]), *group]
        makers = {name: partial(_stepper, name, task) for name in running}
        found = {
            n: t.median_ms / 1000 for n, t in take_turns(makers, threads=threads, rounds=rounds, warm=WARM).items()
        }
        factor = 1.0 if reference is None else known[reference] / found[reference]
        known |= {name: factor * found[name] for name in group}
    return known


def _stepper(name: str, task: Task) -> Callable[[], object]:
    return COMPETITORS[name](task).step


def train(
    names: Sequence[str], run: Callable[[str], Found], *, jobs: int, threads: int
) -> Iterator[tuple[str, Found | str]]:
    """What each found, or why it did not, in processes of their own, ``jobs`` at a time; in the order they end."""
    waiting = list(names)
    running: dict[Connection, tuple[str, Any]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            mine, theirs = context().Pipe()
            process = context().Process(target=_run, args=(run, name, threads, theirs), daemon=True)
            process.start()
            theirs.close()
            running[mine] = name, process
        for pipe in wait(list(running)):
            assert isinstance(pipe, Connection)
            name, process = running.pop(pipe)
            try:
                found = pipe.recv()
            except EOFError:
                found = "its process ended without an answer; too little memory, perhaps"
            process.join()
            yield name, found


def _run(run: Callable[[str], Found], name: str, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    try:
        pipe.send(run(name))
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def installed(name: str) -> bool:
    """Whether what a competitor needs is there."""
    return all(
        importlib.util.find_spec(module) is not None for start, module in NEEDS.items() if name.startswith(start)
    )


def versions() -> dict[str, str]:
    """Of the packages that compete, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def rows(found: Found) -> list[str]:
    """The table in Markdown, the best first, and those that start from weights after all that do not."""
    ended = {name: one for name, one in found["competitors"].items() if "scores" in one}
    order = sorted(ended, key=lambda name: ("ImageNet" in name, -ended[name]["scores"]["mean_iu"]))
    lines = [
        "| | mean IU | pixel accuracy | parameters | seconds a step | steps | batch | precision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in order:
        one, scores = ended[name], ended[name]["scores"]
        settings = one["settings"]
        batch = settings.get("batch") or settings.get("fit", settings.get("args", {})).get("batch")
        lines.append(
            f"| {name} | {100 * scores['mean_iu']:.1f} | {100 * scores['pixel_accuracy']:.1f} "
            f"| {one['parameters'] / 1e6:.2f} M | {one['seconds_a_step']:.2f} | {one['steps']:,} | {batch} "
            f"| {settings.get('precision', '')} |"
        )
    lines += [
        f"| {name} | {one['failed']} | | | | | | |" for name, one in found["competitors"].items() if "failed" in one
    ]
    return lines


def classes(found: Found) -> str:
    """How many classes there are, and how many of them val has."""
    scores = next((one["scores"] for one in found["competitors"].values() if "scores" in one), {})
    absent = scores.get("absent", [])
    return f"{found['classes']} classes" + (f", of which val has all but {', '.join(absent)}" if absent else "")


def cold(found: Found) -> list[str]:
    """Whose pace was measured with fewer steps before it than are now, in a line."""
    names = [one for one in found["competitors"] if found["warm"].get(one, 0) < WARM]
    return [f"The first steps, which are slow, still counted in the pace of {', '.join(names)}."] if names else []


def unit(found: Found) -> list[str]:
    """How long the steps of the budget took at another time, in two lines; none if that was not measured."""
    alone = found.get("alone", {"pace": {}})
    spans = [found["minutes"] * s / found["pace"][one] for one, s in alone["pace"].items() if one in found["pace"]]
    if not spans:
        return []
    return [
        f"Paces are of the machine of their day. By itself, on {alone['at']}, it did the steps of {len(spans)} nets",
        f"(`--alone`) in {min(spans):.1f} to {max(spans):.1f} minutes, {median(spans):.1f} in the median.",
    ]


def page(found: Found, name: str) -> str:
    """The text beside the figure."""
    on = found["machine"]
    used = {"fullyconv": on["fullyconv"], "torch": on["torch"]} | found["versions"]
    packages = ", ".join(f"{package} {number}" for package, number in used.items())
    return "\n".join(
        [
            f"# {found['data']}, {found['minutes']:g} minutes",
            "",
            f"`{found['command']}`: {found['train']} pictures to learn from, {found['val']} of val scored at their own",
            f"size, {classes(found)}, seed {found['seed']}. {on['cpu']}, {on['cores']} cores; {packages}.",
            "",
            "Each has as many steps as fit into the minutes by the pace that they showed in turns, with all threads.",
            *unit(found),
            *cold(found),
            "What training then took, with a share of the threads each and other work beside, is `trained_s` in the",
            "JSON.",
            "The last model is scored, so val chooses no model. But ours have defaults that were found on CamVid's",
            "val, two of them on NYUDv2's too (docs/results.md), and the others what their documentation says, which",
            "mostly starts from ImageNet's weights; here only those that say ImageNet do, and stand last. One seed: a",
            "point or two say little. Settings, their sources and what differs from these are in the JSON beside.",
            "",
            *rows(found),
            "",
            f"![Mean IU over minutes]({name}.png)",
            "",
        ]
    )


def draw(found: Found, path: Path) -> None:
    """Curves of mean IU over minutes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    ended = {name: one for name, one in found["competitors"].items() if "scores" in one}
    for name in sorted(ended, key=lambda name: -ended[name]["scores"]["mean_iu"]):
        points = ended[name]["curve"]
        style = "o-" if name.startswith("ours") else "s--"
        ms = [point["minutes"] for point in points]
        axes.plot(ms, [100 * point["mean_iu"] for point in points], style, ms=3, lw=1.2, label=name)
    axes.set(xlabel="minutes", ylabel="mean IU on val, %", title=f"{found['data']}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=90)


def write_table(found: Found, name: str, folder: Path) -> None:
    """The results, the page and the figure, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", found)
    (folder / f"{name}.md").write_text(page(found, name), encoding="utf-8")
    draw(found, folder / f"{name}.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="NAME=FOLDER", help="a folder as fullyconv train reads it")
    parser.add_argument("--weights", type=Path, help="SqueezeNet 1.0 trained on ImageNet; without, those are left out")
    parser.add_argument("--input", default="caffe", help="the preprocessing that they expect")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="one of: " + "; ".join(COMPETITORS))
    parser.add_argument("--jobs", type=int, default=1, help="competitors that train at a time, with a thread each")
    parser.add_argument("--rounds", type=int, default=7, help="steps of each that its pace is the median of")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="only measure paces again, beside nothing else")
    parser.add_argument("--table", action="store_true", help="only write table and figure to docs/results")
    options = parser.parse_args()
    name, _, folder = options.data.partition("=")
    title = title_of(name, options.minutes, options.seed)
    path = RESULTS / f"{title}.json"
    found: Found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if (options.table or options.alone) and not found:
        parser.error(f"{path} is not there; run without --table and --alone first")
    if options.table:
        write_table(found, title, DOCS)
        print("\n".join(rows(found)))
        return 0
    if unknown := [one for one in options.only if one not in COMPETITORS]:
        parser.error(f"--only {unknown[0]}: expected one of {'; '.join(COMPETITORS)}")
    if options.minutes <= 0 or options.jobs < 1:
        parser.error(f"--minutes {options.minutes:g} --jobs {options.jobs}: expected more than none")
    if not folder:
        parser.error(f"--data {options.data}: expected NAME=FOLDER, such as camvid=data/camvid")
    if options.weights is not None and not options.weights.is_file():
        parser.error(f"--weights {options.weights}: no such file")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return compete(options, name, Path(folder), found, path, Path(scratch))
    except FullyConvError as error:
        parser.error(str(error))


def compete(options: argparse.Namespace, name: str, folder: Path, found: Found, path: Path, scratch: Path) -> int:
    """Measure, train and score whoever has not finished yet; 1 where somebody failed."""
    chosen = [one for one in COMPETITORS if one in options.only or not options.only]
    for one in [one for one in chosen if not installed(one)]:
        print(f"{one}: left out, not installed (benchmarks/peers.txt)")
        chosen.remove(one)
    if options.weights is None:
        chosen = [one for one in chosen if "ImageNet" not in one]
    train_data, val = (
        View(data, range(len(data)), remember=True)
        for data in (dataset("folder", folder, split="train"), dataset("folder", folder, split="val"))
    )

    def task_of(steps: int) -> Task:
        return Task(folder, train_data, options.weights, options.input, steps, every(steps), options.seed, scratch)

    if options.alone:
        paces = measure(chosen, task_of, {}, options.rounds)
        found["alone"] = {"at": time.strftime("%Y-%m-%d"), "load": machine()["load"], "pace": paces}
        write_json(path, found)
        print("\n".join(unit(found)))
        return 0
    command = " ".join(
        [
            "python benchmarks/accuracy.py",
            f"--data {name}=FOLDER",
            *(["--weights FILE"] if options.weights else []),
            f"--minutes {options.minutes:g} --jobs {options.jobs} --seed {options.seed}",
        ]
    )
    found |= {
        "command": command,
        "machine": machine(),
        "versions": versions(),
        "data": name,
        "train": len(train_data),
        "val": len(val),
        "classes": len(train_data.classes["out"]),
        "minutes": options.minutes,
        "seed": options.seed,
        "pace": found.get("pace", {}),
        "warm": found.get("warm", {}),
        "competitors": found.get("competitors", {}),
    }
    left = [one for one in chosen if "scores" not in found["competitors"].get(one, {})]
    if new := [one for one in left if one not in found["pace"]]:
        found["warm"] |= dict.fromkeys(new, WARM)
        found["pace"] = measure(new, task_of, found["pace"], options.rounds)
        write_json(path, found)
    for one in chosen:
        print(f"{one:34} {found['pace'][one]:7.2f} s a step {steps_of(options.minutes, found['pace'][one]):7,} steps")

    def run(one: str) -> Found:
        pace = found["pace"][one]
        task = task_of(steps_of(options.minutes, pace))
        return learn(COMPETITORS[one](task), task, val, pace)

    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    for one, result in train(left, run, jobs=options.jobs, threads=threads):
        how = {"ended": time.strftime("%Y-%m-%d"), "jobs": options.jobs, "threads": threads}
        found["competitors"][one] = {"failed": result} if isinstance(result, str) else result | how
        write_json(path, found)  # after each, so that nothing is lost with the rest
        said = f"failed: {result}" if isinstance(result, str) else f"mean IU {100 * result['scores']['mean_iu']:.1f}"
        print(f"{one:34} {said}", flush=True)
    print("\n".join(rows(found)))
    return any("failed" in one for one in found["competitors"].values())


if __name__ == "__main__":
    sys.exit(main())
