"""How many pictures a second does training learn from, beside a plain loop and others' trainers?

    python benchmarks/training.py [--threads 2] [--rounds 5] [--quick]

One step of the optimizer, forward, loss, backward and update, of random pictures and labels of 11 classes, 4 of 320x240
and 8 of 320x256. Each competitor has a process of its own; they take turns. SGD with momentum for all but smp.

    fullyconv   `fullyconv.learner.Learner`, which `fit` runs: bf16 autocast where the hardware has it, channels last,
                the loss in strips, the allocator as `fullyconv.tuning.tune` sets it; without the average of weights,
                which the others have not
    autograd    the same, with torch's own dropout and gradients of depthwise convolutions (`benchmarks/depthwise.py`)
    plain       the same net in float32, contiguous, `F.interpolate` and `F.cross_entropy` at full size
    torchfcn    FCN-8s as torchfcn has it (padded by 100, from its layer list) and what its trainer does in a step: log
                of softmax, mask, scores of the training pictures; VGG16 only
    smp         segmentation_models.pytorch with the loop that its CamVid example documents: float32, Adam, Dice; nets
                of its own, so the ratio compares nets as well. Where it is not installed, it is left out

Medians, ratios to the plain loop, and the share of the machine's rate for products of matrices that the net's own
operations reach (where ``ceiling.py`` has run) are printed and written to ``benchmarks/results/training.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from common import alone, ceiling, take_turns, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchfcn import TorchFCN8s

import fullyconv
from fullyconv import learner, presets
from fullyconv.config import FitConfig
from fullyconv.devices import computes_bf16
from fullyconv.model import FCN
from fullyconv.tuning import tune

CLASSES, VOID = 11, 255
SIZES = ((4, 240, 320), (8, 256, 320))
SMALL = ("fullyconv", "plain")
CASES = [
    ("squeezenet1_1", SIZES[0], SMALL),
    ("squeezenet1_1", SIZES[1], SMALL),
    ("resnet18", SIZES[0], SMALL),
    ("resnet18", SIZES[1], (*SMALL, "smp FPN", "smp Unet")),
    ("mobilenet_v2", SIZES[1], ("fullyconv", "autograd", "plain")),
    ("vgg16", SIZES[0], (*SMALL, "torchfcn")),
]
"""Backbone, (pictures, height, width), competitors."""
LR, MOMENTUM, DECAY = 1e-3, 0.9, 5e-4

Size = tuple[int, int, int]


def net(backbone: str) -> FCN:
    torch.manual_seed(0)
    return fullyconv.build(presets.fcn8s(backbone, CLASSES, weights=None)).train()


def batch(size: Size) -> tuple[Tensor, Tensor]:
    pictures, height, width = size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (pictures, 3, height, width), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (pictures, height, width), generator=generator)
    labels[:, : height // 20] = VOID
    return images, labels


def make(name: str, backbone: str, size: Size) -> Callable[[], object]:
    """A call is one step."""
    images, labels = batch(size)
    if name in ("fullyconv", "autograd"):
        tune()
        if name == "autograd":
            learner.Substitutes = nullcontext  # type: ignore[assignment, misc]
        settings = FitConfig(
            steps=1, batch=size[0], optimizer="sgd", momentum=MOMENTUM, lr=LR, weight_decay=DECAY, ema=0, device="cpu"
        )
        ours = learner.Learner(net(backbone), settings, void=VOID)
        ours.train()
        return lambda: ours.step([(images, {"out": labels})], number=0, rate=1.0, seed=0)
    if name == "torchfcn":
        return torchfcn_step(images, labels)
    if name.startswith("smp"):
        return smp_step(name.split()[1], backbone, images, labels)
    model = net(backbone)
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY)

    def step() -> float:
        optimizer.zero_grad()
        logits = F.interpolate(model.score_maps(images)["out"], labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, ignore_index=VOID)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torchfcn_step(images: Tensor, labels: Tensor) -> Callable[[], object]:
    model = TorchFCN8s(CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-10, 0.99, weight_decay=DECAY)
    data, target = images.float() - 115, labels.masked_fill(labels == VOID, -1)

    def step() -> float:
        optimizer.zero_grad()
        score = model(data)
        log_p = F.log_softmax(score, dim=1).transpose(1, 2).transpose(2, 3).contiguous()
        mask = target >= 0
        log_p = log_p[mask.unsqueeze(3).repeat(1, 1, 1, CLASSES)].view(-1, CLASSES)
        loss = F.nll_loss(log_p, target[mask], reduction="sum") / len(data)
        loss.backward()
        optimizer.step()
        truth, found = target.numpy(), score.detach().max(1)[1].numpy()
        counted = truth >= 0
        np.bincount(CLASSES * truth[counted] + found[counted], minlength=CLASSES**2)
        return loss.item()

    return step


def smp_step(architecture: str, encoder: str, images: Tensor, labels: Tensor) -> Callable[[], object]:
    import segmentation_models_pytorch as smp  # type: ignore[import-not-found, unused-ignore]

    torch.manual_seed(0)
    model: nn.Module = getattr(smp, architecture)(encoder, encoder_weights=None, in_channels=3, classes=CLASSES).train()
    mean, std = torch.tensor([123.7, 116.3, 103.5]).view(3, 1, 1), torch.tensor([58.4, 57.1, 57.4]).view(3, 1, 1)
    loss_of = smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE, from_logits=True, ignore_index=VOID)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model((images.float() - mean) / std), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def gflop(backbone: str, size: Size) -> float | None:
    """Of the net alone, forward and backward, in one step; None where convolutions have groups.

    Torch's counter takes the backward pass of such for dense.
    """
    with torch.device("meta"):
        model = fullyconv.build(presets.fcn8s(backbone, CLASSES, weights=None)).train()
        images = torch.empty(size[0], 3, *size[1:])
    if any(module.groups > 1 for module in model.modules() if isinstance(module, nn.Conv2d)):
        return None
    counter = FlopCounterMode(display=False)
    with counter:
        model.score_maps(images)["out"].sum().backward()
    return float(counter.get_total_flops() / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the smaller size of the small nets, two rounds")
    options = parser.parse_args()
    limits, bf16 = ceiling(), computes_bf16(torch.device("cpu"))
    smp = importlib.util.find_spec("segmentation_models_pytorch") is not None
    if not smp:
        print("smp is not installed, so left out")
    rows = []
    print(f"{'net, pictures':28} {'':10} {'ms':>8} {'images/s':>9} {'ratio':>7} {'peak MB':>8} {'of the limit':>13}")
    for backbone, size, names in CASES:
        if options.quick and (backbone == "vgg16" or size[0] == 8):
            continue
        there = [name for name in names if smp or not name.startswith("smp")]
        found = take_turns(
            {name: partial(make, name, backbone, size) for name in there},
            threads=options.threads,
            rounds=2 if options.quick else 3 if backbone == "vgg16" else options.rounds,
            warm=2,
        )
        work, first = alone(gflop, backbone, size), found["plain"].median_ms
        row: dict[str, object] = {"backbone": backbone, "size": size, "gflop": work, "competitors": {}}
        for name, turns in found.items():
            limit = limits.get("bfloat16 product" if bf16 and name == "fullyconv" else "float32 product")
            share = work / turns.median_ms * 1000 / limit if work and limit and name in SMALL else None
            one = {
                "ms": turns.median_ms,
                "images_per_s": 1000 * size[0] / turns.median_ms,
                "times_as_fast": first / turns.median_ms,
                "peak_mb": turns.peak_mb,
                "share_of_product_rate": share,
            }
            row["competitors"] |= {name: one}  # type: ignore[operator]
            text = f"{backbone}, {size[0]}x{size[1]}x{size[2]}" if name == there[0] else ""
            print(
                f"{text:28} {name:10} {one['ms']:8.0f} {one['images_per_s']:9.1f} {one['times_as_fast']:6.2f}x"
                f" {one['peak_mb']:8.0f} {'-' if share is None else f'{100 * share:.0f} %':>13}",
                flush=True,
            )
        rows.append(row)
    write("training", options.threads, {"bf16": bf16, "rows": rows})


if __name__ == "__main__":
    main()
