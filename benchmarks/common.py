"""What the benchmarks share: competitors in processes of their own that take turns, and where results are written."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from fullyconv import __version__

Result = TypeVar("Result")

RESULTS = Path(__file__).parent / "results"

Make = Callable[[], Callable[[], object]]
"""Makes a competitor, in its own process: what is called at each of its turns."""


@dataclass(frozen=True)
class Turns:
    """What a competitor did: ms of each turn, the memory that its first call added at the peak, and what that gave."""

    ms: tuple[float, ...]
    peak_mb: float
    sent: Any

    @property
    def median_ms(self) -> float:
        return median(self.ms)


def take_turns(
    competitors: Mapping[str, Make], *, threads: int, rounds: int, warm: int = 1, send: bool = False
) -> dict[str, Turns]:
    """Run competitors in processes of their own, one call each in turn while the others wait.

    Args:
        competitors: by name.
        threads: of torch, in each.
        rounds: timed calls of each.
        warm: calls of each before the first that is timed, the one that memory is measured on among them.
        send: whether what the first call returns is wanted.
    """
    forked = context()
    pipes: dict[str, Connection] = {}
    processes = []
    first: dict[str, tuple[float, Any]] = {}
    for name, make in competitors.items():
        pipes[name], theirs = forked.Pipe()
        process = forked.Process(target=_serve, args=(make, threads, warm, send, theirs), daemon=True)
        process.start()
        theirs.close()  # so that its death is the end of the pipe
        processes.append(process)
        first[name] = _from(pipes[name], name)
    ms: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            ms[name].append(_from(pipe, name))
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    return {name: Turns(tuple(ms[name]), *first[name]) for name in competitors}


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """What a function returns, from a process of its own: one that has computed can no longer be forked."""
    with context().Pool(1) as pool:
        result: Result = pool.apply(function, arguments)
    return result


def context() -> Any:
    """Where processes of competitors come from."""
    # Forked before torch has computed anything, so that none has to import it again.
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def _from(pipe: Connection, name: str) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"{name}: its process ended without an answer") from None


def _serve(make: Make, threads: int, warm: int, send: bool, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    parent = os.getppid()
    try:
        run = make()
        before = peak_mb()
        result = run()
        first = (peak_mb() - before, result if send else None)
        del result
        for _ in range(warm - 1):
            run()
        pipe.send(first)
        while _called(pipe, parent):
            started_at = time.perf_counter()
            run()
            pipe.send(1000 * (time.perf_counter() - started_at))
    except Exception:
        traceback.print_exc()
        os._exit(1)


def _called(pipe: Connection, parent: int) -> bool:
    """Waits for a turn; False when there are no more, also because whoever gives them was killed."""
    while not pipe.poll(1.0):
        if os.getppid() != parent:  # competitors that were forked later hold the pipe open, so its end cannot tell
            return False
    return bool(pipe.recv())


def peak_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)


def cpu() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine() -> dict[str, Any]:
    """What a figure depends on: the machine, its load now and the versions."""
    tests = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}
    bf16 = [name for name, test in tests.items() if getattr(torch.cpu, test, bool)()]
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "bf16": bf16,
        "load": round(os.getloadavg()[0], 2),
        "fullyconv": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(name: str, threads: int, found: Mapping[str, Any]) -> None:
    """Write what a script has found, with the machine and the command, to ``benchmarks/results/NAME.json``."""
    command = " ".join(["python", f"benchmarks/{name}.py", *sys.argv[1:]])
    RESULTS.mkdir(exist_ok=True)
    record = {"command": command, "machine": machine(), "threads": threads, "seed": 0} | dict(found)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def ceiling() -> dict[str, float]:
    """What `ceiling.py` has found, for the distance from it; empty where it has not run."""
    path = RESULTS / "ceiling.json"
    return dict(json.loads(path.read_text())["rates"]) if path.exists() else {}
