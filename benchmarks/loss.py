"""What do upsampling and cross-entropy cost, forward and backward, in time and in memory?

    python benchmarks/loss.py [--threads 2] [--rounds 7] [--quick]

`F.interpolate` and `F.cross_entropy` against `fullyconv.dense.cross_entropy`, by its native kernel and block by block
in torch, of random score maps at stride 8, one pixel in twenty void; and learned upsampling, a transposed convolution
in place of `F.interpolate`, whose kernels get a gradient, too, and for which there is no native kernel. Each competitor
has a process of its own; they take turns. Medians, ratios, the memory added at the peak of a first call, and how far
gradients are apart (refused beyond 1e-5 of the largest) are printed and written to ``benchmarks/results/loss.json``.
The limit is the time that only reading labels and scores and writing the gradient would take, at the rate of
``ceiling.py``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from common import ceiling, take_turns, write
from numpy.typing import NDArray
from torch import Tensor

from fullyconv import dense, native
from fullyconv.config import Upsampling
from fullyconv.geometry import Grid
from fullyconv.upsample import Upsample

STRIDE, VOID = 8, 255
CLOSE = 1e-5

Case = tuple[int, int, int, int]
Gradients = Sequence[NDArray[np.float32]]

CASES: list[tuple[Case, Upsampling]] = [
    ((150, 4, 512, 512), "fixed"),
    ((21, 4, 320, 320), "fixed"),
    ((21, 4, 320, 320), "learned"),
]
"""Classes, pictures, height, width; and the kernel."""
COMPETITORS = {"fixed": ("plain", "dense, torch", "dense, native"), "learned": ("plain", "dense, torch")}


def make(name: str, case: Case, kernel: Upsampling = "fixed") -> Callable[[], Gradients]:
    """A call computes the loss and gives its gradients, by the scores and by a learned kernel."""
    os.environ["FULLYCONV_NATIVE"] = str(int(name == "dense, native"))
    native.kernel.cache_clear()
    classes, pictures, height, width = case
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(pictures, classes, height // STRIDE, width // STRIDE, generator=generator).requires_grad_()
    labels = torch.randint(0, classes, (pictures, height, width), generator=generator)
    labels[:, : height // 20] = VOID
    upsample = Upsample(Grid().conv(STRIDE, stride=STRIDE), Grid(), classes, kernel=kernel)

    def run(scores: Tensor = scores, labels: Tensor = labels) -> Gradients:
        scores.grad = None
        upsample.zero_grad()
        if name == "plain":
            size = (labels.shape[1], labels.shape[2])
            logits = F.interpolate(scores, size, mode="bilinear") if kernel == "fixed" else upsample(scores, size)
            F.cross_entropy(logits, labels, ignore_index=VOID).backward()
        else:
            dense.cross_entropy(scores, upsample, labels, void=VOID).backward()
        return [learnt.grad.numpy() for learnt in (scores, *upsample.parameters()) if learnt.grad is not None]

    small = torch.randn(1, classes, 4, 4, generator=generator).requires_grad_()
    run(small, labels[:1, -32:, :32])  # so that libraries and threads are there
    return run


def apart(plain: Gradients, ours: Gradients) -> float:
    """The largest difference of gradients, as a share of the largest gradient."""
    pairs = zip(plain, ours, strict=True)
    return max(float(abs(theirs - mine).max() / abs(theirs).max()) for theirs, mine in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    options = parser.parse_args()
    if not native.available():
        raise SystemExit(native.describe())
    copy = ceiling().get("copy", float("nan"))
    rows = []
    print(f"{'classes, pictures':22} {'':13} {'ms':>8} {'ratio':>7} {'peak MB':>8} {'limit, ms':>10} {'gradients':>10}")
    for case, kernel in CASES:
        classes, pictures, height, width = case
        found = take_turns(
            {name: partial(make, name, case, kernel) for name in COMPETITORS[kernel]},
            threads=options.threads,
            rounds=3 if options.quick else options.rounds,
            send=True,
        )
        difference = max(apart(found["plain"].sent, found[name].sent) for name in COMPETITORS[kernel][1:])
        limit = pictures * height * width * (8 + 2 * 4 * classes / STRIDE**2) / copy / 1e6
        first = found["plain"].median_ms
        for name, turns in found.items():
            text = f"{classes}, {pictures}x{height}x{width}" if name == "plain" else kernel if kernel != "fixed" else ""
            print(
                f"{text:22} {name:13} {turns.median_ms:8.1f} {first / turns.median_ms:6.1f}x {turns.peak_mb:8.0f}"
                f" {limit:10.1f} {difference:10.0e}",
                flush=True,
            )
        rows.append(
            {
                "kernel": kernel,
                "classes": classes,
                "pictures": pictures,
                "height": height,
                "width": width,
                "ms": {name: turns.median_ms for name, turns in found.items()},
                "peak_mb": {name: turns.peak_mb for name, turns in found.items()},
                "limit_ms": limit,
                "gradients_apart": difference,
            }
        )
        if not difference < CLOSE:
            raise SystemExit(f"gradients: {difference:.1e} apart; expected at most {CLOSE:.0e}")
    write("loss", options.threads, {"rows": rows})


if __name__ == "__main__":
    main()
