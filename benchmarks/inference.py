"""How long does a picture take on its way to a label map, by engine, and beside others' nets?

    python benchmarks/inference.py [--threads 2] [--rounds 7] [--quick]

FCN-8s on VGG16 at 500x500, beside FCN-8s as torchfcn has it (padded by 100, transposed convolutions, rebuilt from its
layer list); and FCN-8s on SqueezeNet 1.1 at 512x512 beside nets of others: torchvision's lraspp_mobilenet_v3_large, FPN
on ResNet-34 of segmentation_models.pytorch and SegFormer-b0 of transformers, which are left out where they are not
installed. 21 classes, random weights (times do not depend on them). Ours on SqueezeNet has the context block that
`presets.fcn8s` gives it; "plain" has none, as in the paper. "pad100" is VGG16 in the authors' geometry, which gives the
scores of their nets; "whole" without what the `Predictor` keeps of the frame around pictures of one size.

    torch 32       of others' nets what their users run: eager, float32, logits at full size, argmax; of ours the
                   `Predictor` in float32
    torch bf16     the same nets with channels last and bf16 autocast, where the hardware has bf16
    onnxruntime    ours alone
    openvino       every net through the same engine and settings, from the picture to the label map

Each competitor has a process of its own; they take turns, one picture each, while the others wait. Medians, ratios to
the first line and, of torchfcn's and our VGG16, the share of the machine's rate for products of matrices that the
convolutions reach (where ``ceiling.py`` has run) are printed and written to ``benchmarks/results/inference.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Turns, alone, ceiling, take_turns, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchfcn import TorchFCN8s

import fullyconv
from fullyconv import Predictor, engines, exporters, presets
from fullyconv.devices import computes_bf16
from fullyconv.model import FCN
from fullyconv.runners import Driven, runner
from fullyconv.tuning import tune

CLASSES = 21
ENGINES = ("torch 32", "torch bf16", "onnxruntime 32", "openvino 32", "openvino bf16")
PEERS = {"lraspp": "torchvision", "smp FPN": "segmentation_models_pytorch", "SegFormer-b0": "transformers"}
"""Nets of others, and the package that has each."""


def ours(net: str) -> FCN:
    """FCN-8s on a backbone; "plain" without a context block, as in the paper; "pad100" in the authors' geometry."""
    torch.manual_seed(0)
    backbone, *words = net.split()
    context, geometry = 0 if "plain" in words else None, "pad100" if "pad100" in words else "same"
    return fullyconv.build(presets.fcn8s(backbone, CLASSES, weights=None, context=context, geometry=geometry)).eval()


def peer(name: str) -> nn.Module:
    """A net of others that takes a normalised picture (B, 3, H, W) and gives logits at full size."""
    torch.manual_seed(0)
    if name == "torchfcn":
        return TorchFCN8s(CLASSES).eval()
    if name == "lraspp":
        from torchvision.models.segmentation import lraspp_mobilenet_v3_large

        return Full(lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)).eval()
    if name == "smp FPN":
        import segmentation_models_pytorch as smp

        made: nn.Module = smp.FPN("resnet34", encoder_weights=None, classes=CLASSES)
        return made.eval()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return Full(SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES))).eval()


class Full(nn.Module):
    """The logits, out of what a net of torchvision or transformers gives, at full size as their documents show it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        given = self.net(image)
        logits: Tensor = given["out"] if "out" in given else given["logits"]
        if logits.shape[2:] != image.shape[2:]:
            logits = F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)
        return logits


def competitor(net: str, way: str, side: int, folder: str) -> Callable[[], object]:
    """A call takes a picture to its label map."""
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    engine, precision = way.split()
    if net not in (*PEERS, "torchfcn"):
        tune()
        predictor = Predictor(ours(net), engine="torch", precision=precision, device="cpu")
        if engine != "torch":
            trunk = engines.open_engine(f"{folder}/{net}.onnx", engine, precision=precision)
            predictor.runner = Driven(predictor.model, trunk)
        elif "whole" in net:
            predictor.runner = predictor.model
        return lambda: predictor(picture)

    def normalised() -> Tensor:
        return (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 115) / 58

    if engine == "openvino":
        import openvino

        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": {"32": "f32"}.get(precision, precision)}
        compiled = openvino.Core().compile_model(f"{folder}/{net}.xml", "CPU", hints)
        return lambda: compiled([normalised().numpy()])[0].argmax(1)
    made = peer(net)
    if precision == "bf16":
        made = made.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def eager() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return made(normalised()).argmax(1).numpy()

    return eager


def export(net: str, side: int, folder: str) -> None:
    if net not in PEERS:
        exporters.export(ours(net), f"{folder}/{net}.onnx")
        return
    import openvino

    example = torch.zeros(1, 3, side, side)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, which is right at this one size
        converted = openvino.convert_model(peer(net), example_input=example, input=[1, 3, side, side])
    openvino.save_model(converted, f"{folder}/{net}.xml", compress_to_fp16=False)


def gflop(net: str, side: int) -> float:
    """Of the multiplications and additions of one picture, of a size that was there before."""
    with torch.device("meta"), torch.no_grad():
        image = torch.zeros(1, 3, side, side)
        made = peer(net) if net == "torchfcn" else ours(net)
        run = made if net == "torchfcn" or "whole" in net else runner(made, "torch").score_maps
        run(image)
        with FlopCounterMode(display=False) as counter:
            run(image)
    return float(counter.get_total_flops()) / 1e9


def show(title: str, found: dict[str, Turns], work: dict[str, float]) -> dict[str, Any]:
    rates = ceiling()
    first = next(iter(found.values())).median_ms
    print(f"{title}\n{'':36}{'ms':>9}{'best':>9}{'ratio':>8}{'of the limit':>14}")
    rows = {}
    for name, turns in found.items():
        limit = rates.get("bfloat16 product" if "bf16" in name else "float32 product")
        done = work.get(name.split(",")[0])
        share = done / (turns.median_ms / 1000) / limit if done and limit else None
        told = "-" if share is None else f"{100 * share:.0f} %"
        ms, best = turns.median_ms, min(turns.ms)
        print(f"{name:36}{ms:9.1f}{best:9.1f}{first / ms:7.2f}x{told:>14}", flush=True)
        rows[name] = {"ms": ms, "best_ms": best, "ratio": first / ms, "of_the_limit": share}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="the small nets only")
    options = parser.parse_args()
    bf16 = computes_bf16(torch.device("cpu"))
    ways = [
        way for way in ENGINES
        if (bf16 or "bf16" not in way) and (way.startswith("torch") or engines.installed(way.split()[0]))
    ]  # fmt: skip
    theirs = [name for name, package in PEERS.items() if importlib.util.find_spec(package)]
    same = [way for way in ways if not way.startswith("onnxruntime")]
    large = [("torchfcn", "torch 32"), *(("vgg16", way) for way in ways)]
    large += [(net, way) for way in ways if way == "torch bf16" for net in ("vgg16 pad100 whole", "vgg16 pad100")]
    small = [(net, way) for way in same for net in ("squeezenet1_1", "squeezenet1_1 plain", *theirs)] + [
        ("squeezenet1_1", "onnxruntime 32")
    ]
    small = [(net, way) for net, way in small if way in ways]
    cases = [("SqueezeNet 1.1 FCN-8s and others, 512x512", 512, small)]
    if not options.quick:
        cases.insert(0, ("VGG16 FCN-8s, 500x500", 500, large))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for title, side, competitors in cases:
            for net in dict.fromkeys(net for net, way in competitors if not way.startswith("torch")):
                alone(export, net, side, folder)
            work = {net: alone(gflop, net, side) for net in dict.fromkeys(net for net, _ in large) if side == 500}
            makes = {f"{net}, {way}": partial(competitor, net, way, side, folder) for net, way in competitors}
            # A round of VGG16 takes eight seconds, and its times are steadier.
            rounds = options.rounds if side == 512 else min(options.rounds, 3)
            turns = take_turns(makes, threads=options.threads, rounds=rounds)
            found[title] = show(title, turns, work)
    write("inference", options.threads, {"rows": found})


if __name__ == "__main__":
    main()
