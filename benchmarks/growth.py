"""How does the cost grow with pixels and with classes?

    python benchmarks/growth.py [--threads 2] [--rounds 5] [--quick]

FCN-8s on SqueezeNet 1.1, picture to label map in torch, and the last step of it alone: a score map at stride 8 to
labels by `fullyconv.dense.argmax`, and by `F.interpolate` and argmax. Squares of 256 to 2,048 pixels a side with 21
classes, and 2 to 1,000 classes at 512x512. Random weights, smooth random score maps. Each competitor has a process of
its own; they take turns. Medians are printed and written to ``benchmarks/results/growth.json``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from common import take_turns, write

import fullyconv
from fullyconv import Predictor, dense, presets
from fullyconv.geometry import Grid
from fullyconv.upsample import Upsample

STRIDE, CLASSES, SIDE = 8, 21, 512
SIDES, COUNTS = (256, 512, 1024, 2048), (2, 5, 21, 60, 150, 400, 1000)
NAMES = ("picture to labels", "dense.argmax", "interpolate, argmax")


def make(name: str, side: int, classes: int) -> Callable[[], object]:
    torch.manual_seed(0)
    if name == "picture to labels":
        predictor = Predictor(fullyconv.build(presets.fcn8s("squeezenet1_1", classes, weights=None)), device="cpu")
        picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        return lambda: predictor(picture)
    cells = side // STRIDE
    scores = F.interpolate(torch.randn(1, classes, cells // 8, cells // 8), (cells, cells), mode="bicubic")
    upsample = Upsample(Grid().conv(STRIDE, stride=STRIDE), Grid(), classes)
    if name == "dense.argmax":
        scores = scores.contiguous(memory_format=torch.channels_last)
        return lambda: dense.argmax(scores, upsample, (side, side))
    return lambda: F.interpolate(scores, (side, side), mode="bilinear").argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="to 1,024 pixels and 150 classes, two rounds")
    options = parser.parse_args()
    points = [(side, CLASSES) for side in SIDES] + [(SIDE, count) for count in COUNTS if count != CLASSES]
    rows = []
    print(f"{'side':>5} {'classes':>8}" + "".join(f"{name + ', ms':>25}" for name in NAMES))
    for side, classes in points:
        if options.quick and (side > 1024 or classes > 150):
            continue
        makers = {name: partial(make, name, side, classes) for name in NAMES}
        found = take_turns(makers, threads=options.threads, rounds=2 if options.quick else options.rounds)
        ms = {name: turns.median_ms for name, turns in found.items()}
        print(f"{side:5} {classes:8}" + "".join(f"{ms[name]:25.1f}" for name in NAMES), flush=True)
        rows.append({"side": side, "classes": classes, "ms": ms})
    write("growth", options.threads, {"rows": rows})


if __name__ == "__main__":
    main()
