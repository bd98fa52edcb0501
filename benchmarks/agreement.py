"""Which share of the labels does each engine and precision change, on real pictures?

    python benchmarks/agreement.py [--model runs/camvid] [--data DIR] [--threads 2] [--rounds 7] [--quick]

A trained net on the val pictures of the data that it was trained on (``recipe.json`` of the run says which; ``--data``,
where they are), each whole and at its own size. The labels of torch in float32 are what the others' are compared with,
pixel by pixel; void pixels count there, and not in the mean IU. int8 (where nncf is installed) is quantised with 16
pictures of the train split. Each competitor has a process of its own; after all have labelled all pictures they take
turns, one picture each. Where there is no such model or no such data, it says so and is done. Agreements, mean IU and
medians of the time from pixels to labels are printed and written to ``benchmarks/results/agreement.json``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from common import alone, take_turns, write

from fullyconv import Predictor, checkpoint, engines, whole
from fullyconv.config import DataConfig, Recipe
from fullyconv.datasets import SegmentationDataset, dataset
from fullyconv.devices import computes_bf16
from fullyconv.errors import FullyConvError
from fullyconv.exporters import export, openvino
from fullyconv.metrics import ConfusionMatrix
from fullyconv.runners import Driven
from fullyconv.tuning import tune

WAYS = ("torch 32", "torch bf16", "onnxruntime 32", "openvino 32", "openvino bf16", "openvino int8")
SHOWN = 16
"""Pictures by which the ranges of int8 are chosen."""
FEW = 8
"""Pictures that are timed, and all those of a quick run."""


def opened(data: DataConfig, split: str) -> SegmentationDataset:
    return dataset(data.name, data.root, split=split, inputs=data.inputs)


def competitor(model: str, data: DataConfig, pictures: int, folder: str, way: str) -> Callable[[], object]:
    """The first call labels all pictures: (pixels that agree, pixels, mean IU); then a call labels one of them."""
    tune()
    engine, precision = way.split()
    net = checkpoint.load(model)
    predictor = Predictor(net, strategy=whole, device="cpu", precision="bf16" if way == "torch bf16" else "32")
    if engine != "torch":
        file = Path(folder, "int8.xml" if precision == "int8" else "trunk.onnx")
        wanted = "auto" if precision == "int8" else precision
        predictor.runner = Driven(predictor.model, engines.open_engine(file, engine, precision=wanted))
    samples = opened(data, data.val)
    head = next(iter(net.heads))
    timed = cycle([samples[index].image for index in range(min(pictures, FEW))])
    labelled = False

    def run() -> object:
        nonlocal labelled
        if labelled:
            return predictor(next(timed))
        labelled = True
        same = pixels = 0
        matrix = ConfusionMatrix(samples.classes[head].names)
        for index in range(pictures):
            sample = samples[index]
            labels = predictor(sample.image).labels[head]
            matrix.update(sample.labels[head], labels, samples.classes[head].void)
            reference = Path(folder, f"{index}.npy")
            if not reference.exists():  # torch 32 comes first
                np.save(reference, labels)
            same += int((labels == np.load(reference)).sum())
            pixels += labels.size
        return same, pixels, matrix.mean_iu

    return run


def prepare(model: str, data: DataConfig, int8: bool, folder: str) -> None:
    """Export the trunk, and quantise it."""
    file = Path(folder, "trunk.onnx")
    export(checkpoint.load(model), file)
    if int8:
        samples = opened(data, data.train)
        trunk = engines.TrunkInfo.read(file.with_suffix(".json"))
        chosen = range(0, len(samples), max(1, len(samples) // SHOWN))[:SHOWN]
        openvino.quantise(file, Path(folder, "int8.xml"), [trunk.prepare(samples[i].image) for i in chosen])
        Path(folder, "int8.json").write_bytes(file.with_suffix(".json").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/camvid", help="folder of a run")
    parser.add_argument("--data", help="folder of its data")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help=f"{FEW} pictures, three rounds")
    options = parser.parse_args()
    try:
        data = Recipe.read(Path(options.model, "recipe.json")).stages[-1].data
        data = data if options.data is None else data.model_copy(update={"root": options.data})
        pictures = len(opened(data, data.val))
    except FullyConvError as error:
        why = f"{error}; name a run by --model, or its data by --data"
        print(f"skipped: {why}")
        write("agreement", options.threads, {"skipped": why})
        return
    pictures = min(pictures, FEW) if options.quick else pictures
    bf16, nncf = computes_bf16(torch.device("cpu")), importlib.util.find_spec("nncf") is not None
    ways = [way for way in WAYS if engines.installed(way.split()[0])]
    ways = [way for way in ways if (bf16 or "bf16" not in way) and (nncf or "int8" not in way)]
    with tempfile.TemporaryDirectory() as folder:
        if len({way.split()[0] for way in ways}) > 1:
            alone(prepare, options.model, data, "openvino int8" in ways, folder)
        found = take_turns(
            {way: partial(competitor, options.model, data, pictures, folder, way) for way in ways},
            threads=options.threads,
            rounds=3 if options.quick else options.rounds,
            send=True,
        )
    first = found["torch 32"].median_ms
    print(f"{data.name}, {data.val}, {pictures} pictures\n{'':16}{'agreement':>11}{'mean IU':>9}{'ms':>9}{'ratio':>8}")
    rows = {}
    for way, turns in found.items():
        same, pixels, mean_iu = turns.sent
        ms = turns.median_ms
        print(f"{way:16}{same / pixels:11.3%}{mean_iu:9.2%}{ms:9.1f}{first / ms:7.2f}x", flush=True)
        rows[way] = {"agreement": same / pixels, "mean_iu": mean_iu, "ms": ms}
    write("agreement", options.threads, {"pictures": pictures, "pixels": pixels, "rows": rows})


if __name__ == "__main__":
    main()
