"""What can this machine do at most: products of matrices in float32 and bfloat16, and copies of memory?

    python benchmarks/ceiling.py [--threads 2] [--seconds 4]

Products of 2048 x 2048 matrices, and copies of 256 MiB into memory that has been touched (once read, once written) and
into memory that has not (page faults). In one process, in turns, for so many seconds each; medians and bests are
printed and written to ``benchmarks/results/ceiling.json``. The other benchmarks say how far they are from it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from common import write

SIDE, COPIED = 2048, 256 << 20


def runs() -> dict[str, tuple[str, float, Callable[[], object]]]:
    """By name: unit, how many of it a call is, and the call."""
    a, b = torch.randn(2, SIDE, SIDE)
    a16, b16 = a.bfloat16(), b.bfloat16()
    source, target = torch.ones(COPIED, dtype=torch.uint8), torch.ones(COPIED, dtype=torch.uint8)
    product = 2 * SIDE**3 / 1e9
    return {
        "float32 product": ("GFLOP/s", product, lambda: a @ b),
        "bfloat16 product": ("GFLOP/s", product, lambda: a16 @ b16),
        "copy": ("GB/s", 2 * COPIED / 1e9, lambda: target.copy_(source)),
        "copy to fresh memory": ("GB/s", 2 * COPIED / 1e9, lambda: source.clone()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each")
    parser.add_argument("--quick", action="store_true", help="half a second of each")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates: dict[str, list[float]] = {}
    spent: dict[str, float] = {}
    budget = 0.5 if options.quick else options.seconds
    measured = runs()
    for _, _, run in measured.values():
        run()
    while min((spent.get(name, 0.0) for name in measured), default=budget) < budget:
        for name, (_, amount, run) in measured.items():
            if spent.get(name, 0.0) >= budget:
                continue
            started_at = time.perf_counter()
            run()
            took = time.perf_counter() - started_at
            spent[name] = spent.get(name, 0.0) + took
            rates.setdefault(name, []).append(amount / took)
    print(f"{'':22} {'median':>9} {'best':>9}")
    for name, (unit, _, _) in measured.items():
        print(f"{name:22} {median(rates[name]):9.1f} {max(rates[name]):9.1f} {unit}")
    medians = {name: median(found) for name, found in rates.items()}
    write("ceiling", options.threads, {"rates": medians, "best": {name: max(found) for name, found in rates.items()}})


if __name__ == "__main__":
    main()
