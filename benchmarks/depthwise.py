"""How long do a depthwise convolution's gradients take in bfloat16, ours beside torch's own?

    python benchmarks/depthwise.py [--threads 2] [--rounds 7] [--quick]

Layers of MobileNets, EfficientNets and ConvNeXts and of dilated ones, 8 pictures, channels last, in one process and in
turns: the backward pass of `F.conv2d` as torch has it, and under `fullyconv.substitutes.Substitutes`, which takes some
gradients in float32. Where these are no other, the ratio says how much such figures vary. Medians are printed and
written to ``benchmarks/results/depthwise.json``.
"""

from __future__ import annotations

import argparse
import os
import time
from contextlib import nullcontext
from statistics import median

import torch
import torch.nn.functional as F
from common import write
from torch import Tensor

from fullyconv.substitutes import Substitutes
from fullyconv.tuning import tune

PICTURES = 8
LAYERS = [
    (96, 160, 3, 2, 1),
    (144, 80, 3, 2, 1),
    (192, 40, 3, 2, 1),
    (576, 20, 3, 2, 1),
    (72, 80, 5, 2, 1),
    (120, 40, 5, 1, 1),
    (96, 80, 7, 1, 1),
    (192, 40, 3, 1, 2),
    (144, 80, 3, 1, 1),
]
"""Channels, side in cells, kernel, stride, dilation."""
WAYS = {"torch": nullcontext, "fullyconv": Substitutes}


def scores(layer: tuple[int, int, int, int, int], way: str) -> tuple[Tensor, list[Tensor]]:
    """What the layer gives in bfloat16, by one of two ways to its gradients; and the leaves that have some."""
    channels, side, kernel, stride, dilation = layer
    images = torch.randn(PICTURES, channels, side, side, dtype=torch.bfloat16)
    leaves = [images.contiguous(memory_format=torch.channels_last), torch.randn(channels, 1, kernel, kernel).bfloat16()]
    for leaf in leaves:
        leaf.requires_grad_()
    padding = dilation * (kernel // 2)
    with WAYS[way]():
        return F.conv2d(*leaves, stride=stride, padding=padding, dilation=dilation, groups=channels), leaves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="two layers, two rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tune()
    rows = []
    print(f"{'channels, side, kernel, stride, dilation':42} {'torch ms':>9} {'fullyconv':>9} {'ratio':>7}")
    for layer in LAYERS[2:4] if options.quick else LAYERS:
        ways = {way: scores(layer, way) for way in WAYS}
        slope = torch.randn_like(ways["torch"][0])
        taken: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(1 + (2 if options.quick else options.rounds)):
            for way, (found, leaves) in ways.items():
                started_at = time.perf_counter()
                torch.autograd.grad(found, leaves, slope, retain_graph=True)
                if turn:  # the first warms up
                    taken[way].append(1000 * (time.perf_counter() - started_at))
        plain, ours = median(taken["torch"]), median(taken["fullyconv"])
        rows.append({"layer": layer, "torch_ms": plain, "fullyconv_ms": ours, "times_as_fast": plain / ours})
        print(f"{', '.join(map(str, layer)):42} {plain:9.1f} {ours:9.1f} {plain / ours:6.1f}x", flush=True)
    write("depthwise", options.threads, {"pictures": PICTURES, "rows": rows})


if __name__ == "__main__":
    main()
