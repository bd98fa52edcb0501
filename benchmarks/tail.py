"""What does it cost to bring score maps to full resolution and take the largest, in time and in memory?

    python benchmarks/tail.py [--threads 2] [--rounds 9] [--quick]

`F.interpolate` and argmax, in either memory format, against `fullyconv.dense.argmax`, in plain torch and with the
native kernel; of smooth score maps, as nets give them, and of white noise, which is the worst case of the kernel's
pruning. Each competitor has a process of its own; they take turns, one call each, while the others wait. Medians,
ratios to the first and the memory added at the peak of a first call are printed and, with the machine, the load and the
versions, written to ``benchmarks/results/tail.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fullyconv import __version__, dense, native
from fullyconv.geometry import Grid
from fullyconv.upsample import Upsample

STRIDE = 8
CASES = [
    (classes, height, width, kind)
    for classes, height, width in ((21, 512, 512), (150, 512, 512), (21, 1024, 2048), (150, 1024, 2048))
    for kind in ("smooth", "noise")
]
COMPETITORS = ("interpolate", "interpolate, channels last", "dense, torch", "dense, native")

Case = tuple[int, int, int, str]


def score_map(case: Case) -> Tensor:
    classes, height, width, kind = case
    generator = torch.Generator().manual_seed(0)
    h, w = height // STRIDE, width // STRIDE
    if kind == "noise":
        return torch.randn(1, classes, h, w, generator=generator)
    coarse = torch.randn(1, classes, h // 8, w // 8, generator=generator)
    return F.interpolate(coarse, (h, w), mode="bicubic")


def competitor(name: str, case: Case) -> Callable[[Tensor], Tensor]:
    upsample = Upsample(Grid().conv(STRIDE, stride=STRIDE), Grid(), case[0])

    def run(scores: Tensor) -> Tensor:
        size = (scores.shape[2] * STRIDE, scores.shape[3] * STRIDE)
        if name.startswith("interpolate"):
            return F.interpolate(scores, size, mode="bilinear").argmax(1)
        return dense.argmax(scores, upsample, size)

    return run


def compete(name: str, case: Case, threads: int, pipe: Connection) -> None:
    """Own process: MB added by the first call and its labels, then the ms of a call each time it is asked."""
    os.environ["FULLYCONV_NATIVE"] = str(int(name == "dense, native"))
    native.kernel.cache_clear()
    torch.set_num_threads(threads)
    scores, run = score_map(case), competitor(name, case)
    if name != "interpolate":  # nets that are fast give them so; the plain way is the one without thought
        scores = scores.contiguous(memory_format=torch.channels_last)
    run(scores[..., :4, :4])  # so that libraries and threads are there
    before = peak_mb()
    labels = run(scores)
    pipe.send((peak_mb() - before, labels.to(torch.int32).numpy()))
    del labels
    while pipe.recv():
        start = time.perf_counter()
        run(scores)
        pipe.send((time.perf_counter() - start) * 1000)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def measure(case: Case, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    # Forked before torch has done anything, so that none has to import it again.
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
    pipes: dict[str, Connection] = {}
    firsts: dict[str, Any] = {}
    processes = []
    for name in COMPETITORS:
        pipes[name], theirs = multiprocessing.Pipe()
        processes.append(multiprocessing.Process(target=compete, args=(name, case, threads, theirs), daemon=True))
        processes[-1].start()
        firsts[name] = pipes[name].recv()
    ms: dict[str, list[float]] = {name: [] for name in COMPETITORS}
    for turn in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            took = pipe.recv()
            if turn:
                ms[name].append(took)
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    plain = firsts["interpolate"][1]
    return {
        name: {
            "ms": median(ms[name]),
            "best_ms": min(ms[name]),
            "times_as_fast": median(ms["interpolate"]) / median(ms[name]),
            "peak_mb": firsts[name][0],
            "same_labels": float((firsts[name][1] == plain).mean()),
        }
        for name in COMPETITORS
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="512x512 only")
    options = parser.parse_args()
    if not native.available():
        raise SystemExit(native.describe())
    found = {
        "command": " ".join(["python", "benchmarks/tail.py", *sys.argv[1:]]),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load_before": os.getloadavg()[0]},
        "threads": options.threads,
        "kernel": native.kernel().targets[0],
        "versions": {"fullyconv": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "rows": [],
    }
    print(f"{found['kernel']}, {options.threads} threads, load {found['machine']['load_before']:.1f}")
    print(f"{'classes, size, map':26} {'':27} {'ms':>8} {'best':>8} {'ratio':>7} {'peak MB':>8} {'same labels':>12}")
    for case in CASES:
        classes, height, width, kind = case
        if options.quick and height > 512:
            continue
        rows = measure(case, options.threads, options.rounds)
        for name, row in rows.items():
            text = f"{classes}, {height}x{width}, {kind}" if name == COMPETITORS[0] else ""
            print(
                f"{text:26} {name:27} {row['ms']:8.2f} {row['best_ms']:8.2f} {row['times_as_fast']:6.1f}x"
                f" {row['peak_mb']:8.0f} {100 * row['same_labels']:10.4f} %",
                flush=True,
            )
        found["rows"].append({"classes": classes, "height": height, "width": width, "map": kind, "competitors": rows})
    found["machine"]["load_after"] = os.getloadavg()[0]
    path = Path(__file__).parent / "results" / "tail.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
