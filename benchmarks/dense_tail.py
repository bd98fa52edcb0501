"""What do upsampling and cross-entropy, and upsampling and argmax, cost in blocks and at once?

    python benchmarks/dense_tail.py [--threads 2] [--rounds 7]

At once is `F.interpolate` and `F.cross_entropy` with backward, or `F.interpolate` and argmax. The competitors take
turns in one process; medians are printed and, with the machine and the versions, written to
``benchmarks/results/dense_tail.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from fullyconv import __version__, dense
from fullyconv.geometry import Grid
from fullyconv.upsample import Upsample

VOID = 65535
LOSSES = [(8, 11, 64, 84, 4), (4, 21, 40, 40, 8), (4, 150, 64, 64, 8)]
ARGMAXES = [(1, 11, 90, 120, 4), (1, 21, 64, 64, 8), (1, 150, 64, 64, 8), (1, 21, 128, 256, 8)]
"""Pictures, classes, cells down, cells across, stride."""

Shape = tuple[int, int, int, int, int]


def competitors(task: str, shape: Shape) -> dict[str, Callable[[], object]]:
    pictures, classes, h, w, stride = shape
    size = (h * stride, w * stride)
    generator = torch.Generator().manual_seed(0)
    # Smooth, as a net's score maps are: the cost of a maximum depends on how often it changes.
    scores = F.interpolate(torch.randn(pictures, classes, h // 8 + 2, w // 8 + 2, generator=generator), (h, w))
    upsample = Upsample(Grid(Fraction(stride), Fraction(stride - 1, 2)), Grid(), classes)
    if task == "argmax":
        return {
            "at once": lambda: F.interpolate(scores, size, mode="bilinear").argmax(1),
            "in blocks": lambda: dense.argmax(scores, upsample, size),
        }
    scores.requires_grad_()
    labels = torch.randint(0, classes, (pictures, *size), generator=generator)
    labels[:, : size[0] // 20] = VOID

    def at_once() -> None:
        scores.grad = None
        F.cross_entropy(F.interpolate(scores, size, mode="bilinear"), labels, ignore_index=VOID).backward()

    def in_blocks() -> None:
        scores.grad = None
        dense.cross_entropy(scores, upsample, labels, void=VOID).backward()

    return {"at once": at_once, "in blocks": in_blocks}


def milliseconds(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: median(taken[1:]) for name, taken in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for task in ("cross_entropy", "argmax"):  # so that libraries and threads are there
        for run in competitors(task, (1, 2, 8, 8, 4)).values():
            run()
    rows = []
    print(f"{'task':14} {'shape':>22} {'at once':>11} {'in blocks':>11} {'ratio':>6}")
    for task, shapes in (("cross_entropy", LOSSES), ("argmax", ARGMAXES)):
        for shape in shapes:
            pictures, classes, h, w, stride = shape
            runs = competitors(task, shape)
            ms = milliseconds(runs, options.rounds)
            text = f"{pictures}x{classes}x{h * stride}x{w * stride} /{stride}"
            cells = [f"{ms[name]:7.1f} ms" for name in ms]
            print(f"{task:14} {text:>22} {cells[0]:>11} {cells[1]:>11} {ms['at once'] / ms['in blocks']:6.1f}")
            rows.append({"task": task, "pictures": pictures, "classes": classes, "height": h * stride,
                         "width": w * stride, "stride": stride, "ms": ms})  # fmt: skip
    found = {
        "command": " ".join(["python", "benchmarks/dense_tail.py", *sys.argv[1:]]),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "threads": options.threads,
        "versions": {"fullyconv": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "dense_tail.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
