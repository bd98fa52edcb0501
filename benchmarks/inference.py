"""How long does a picture take on its way to a label map, by engine, and beside others' nets?

    python benchmarks/inference.py [--rounds 9] [--quick]

FCN-8s on VGG16 at 500x500 and on SqueezeNet 1.1 at 512x512, 21 classes, random weights (times do not depend on them).
Peers: FCN-8s as wkentaro's torchfcn has it (padded by 100, transposed convolutions, rebuilt from its layer list) and
torchvision's lraspp_mobilenet_v3_large, run as their users run them: eager, float32, argmax of full-resolution logits;
the small one in OpenVINO too. Each competitor has a process of its own; they take turns, one picture each, while the
others wait. Medians and ratios are printed and, with the machine and the load, written to
``benchmarks/results/inference.json``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from torchfcn import TorchFCN8s

import fullyconv
from fullyconv import Predictor, __version__, engines, presets
from fullyconv.devices import computes_bf16
from fullyconv.tuning import tune

CLASSES = 21
OURS = ("torch 32", "torch bf16", "onnxruntime 32", "openvino 32", "openvino bf16")
CASES = {
    "VGG16 FCN-8s 500x500": (("vgg16", 500), ("torchfcn eager 32", *OURS)),
    "SqueezeNet 1.1 FCN-8s 512x512": (("squeezenet1_1", 512), ("lraspp eager 32", "lraspp openvino bf16", *OURS)),
}


def competitor(name: str, backbone: str, side: int, folder: str) -> Callable[[], object]:
    picture = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()
    if name.endswith("eager 32"):
        import torchvision

        net = (
            TorchFCN8s(CLASSES)
            if name.startswith("torchfcn")
            else torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
        )
        net.eval()

        @torch.no_grad()
        def eager() -> object:
            image = (torch.from_numpy(picture).permute(2, 0, 1)[None].float() - 115) / 58
            logits = net(image)
            return (logits if isinstance(logits, torch.Tensor) else logits["out"]).argmax(1).numpy()

        return eager
    if name == "lraspp openvino bf16":
        import openvino

        compiled = openvino.Core().compile_model(
            f"{folder}/lraspp.onnx", "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16"}
        )
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float().numpy()
        return lambda: compiled([image])[0].argmax(1)
    tune()
    engine, precision = name.split()
    torch.manual_seed(0)
    model = fullyconv.build(presets.fcn8s(backbone, CLASSES, weights=None)).eval()
    predictor = Predictor(model, engine="torch", precision=precision, device="cpu")
    if engine != "torch":
        from fullyconv.runners import Driven

        trunk = f"{folder}/{backbone}.onnx"
        predictor.runner = Driven(predictor.model, engines.open_engine(trunk, engine, precision=precision))
    return lambda: predictor(picture)


def serve(name: str, backbone: str, side: int, folder: str, pipe: Connection) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = competitor(name, backbone, side, folder)
        run()
    pipe.send(0.0)
    while pipe.recv():
        started_at = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - started_at)


def export_all(folder: str, backbones: list[str]) -> None:
    """In a process of its own as well: it leaves memory behind."""
    from fullyconv.exporters import onnx

    for backbone in backbones:
        model = fullyconv.build(presets.fcn8s(backbone, CLASSES, weights=None)).eval()
        fullyconv.exporters.export(model, f"{folder}/{backbone}.onnx")
    import torchvision

    with onnx.quiet(), torch.no_grad():
        net = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
        program = torch.onnx.export(net, (torch.zeros(1, 3, 512, 512),), dynamo=True, verbose=False)
        assert program is not None
        program.save(f"{folder}/lraspp.onnx", external_data=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="the small net only")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    cases = {name: case for name, case in CASES.items() if not options.quick or case[0][0] != "vgg16"}
    bf16 = computes_bf16(torch.device("cpu"))
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        exporter = context.Process(target=export_all, args=(folder, [case[0][0] for case in cases.values()]))
        exporter.start()
        exporter.join()
        for title, ((backbone, side), names) in cases.items():
            there = [n for n in names if (bf16 or "bf16" not in n) and all(
                engines.installed(e) for e in ("openvino", "onnxruntime") if e in n)]  # fmt: skip
            pipes, workers = [], []
            for name in there:
                ours, theirs = context.Pipe()
                worker = context.Process(target=serve, args=(name, backbone, side, folder, theirs), daemon=True)
                worker.start()
                ours.recv()
                pipes.append(ours)
                workers.append(worker)
            times: list[list[float]] = [[] for _ in there]
            for _ in range(options.rounds):
                for pipe, taken in zip(pipes, times, strict=True):
                    pipe.send(True)
                    taken.append(pipe.recv())
            for pipe, worker in zip(pipes, workers, strict=True):
                pipe.send(False)
                worker.join()
            found[title] = {name: 1000 * median(taken) for name, taken in zip(there, times, strict=True)}
            print(f"{title}, {CLASSES} classes")
            first = found[title][there[0]]
            for name, ms in found[title].items():
                print(f"  {name:<22} {ms:9.1f} ms  {first / ms:6.2f}x")
    features = [
        test for test in ("_is_amx_tile_supported", "_is_avx512_bf16_supported") if getattr(torch.cpu, test, bool)()
    ]
    record = {
        "command": f"python benchmarks/inference.py {' '.join(sys.argv[1:])}".strip(),
        "machine": engines.machine(),
        "bf16 in hardware": features,
        "load": os.getloadavg(),
        "fullyconv": __version__,
        "milliseconds": found,
    }
    path = Path(__file__).parent / "results" / "inference.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"bf16 in hardware: {', '.join(features) or 'no'}; load {os.getloadavg()[0]:.1f}; {path}")


if __name__ == "__main__":
    main()
