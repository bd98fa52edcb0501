"""How long from the shell to a file: one picture, each engine, and --help?

    python benchmarks/cold_start.py [--rounds 7]

FCN-8s on SqueezeNet 1.1, 21 classes, random weights, a 512x512 JPEG. Every run is a process of its own, in turn.
Medians and bests are printed and written to ``benchmarks/results/cold_start.json``. The torch row loads
torch; the others do not, where the native kernel is built.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

import fullyconv
from fullyconv import __version__, checkpoint, engines, exporters, presets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch)
        torch.manual_seed(0)
        model = fullyconv.build(presets.fcn8s("squeezenet1_1", 21, weights=None)).eval()
        plain = checkpoint.save(model, base / "torch")
        identity = engines.identity(plain)
        exporters.export(model, base / "trunk.onnx", identity=identity)
        noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((512, 512), Image.Resampling.BICUBIC).save(base / "picture.jpg")
        commands = {"--help": ["--help"]}
        for name in ("torch", "onnxruntime", "openvino"):
            if not engines.installed(name):
                continue
            folder = plain if name == "torch" else Path(shutil.copytree(plain, base / name))
            if name != "torch":
                place = folder / engines.FOLDER
                place.mkdir()
                for file in ("trunk.onnx", "trunk.json"):
                    shutil.copy(base / file, place / file)
                row = engines.Measured(name, "32", 1.0, 1.0, "trunk.onnx")  # type: ignore[arg-type]
                tuned = engines.Tuned(identity, engines.machine(), (512, 512), "none", None, (row,))
                (place / "tuned.json").write_text(json.dumps(tuned.json()))
            out = str(base / f"out-{name}")
            commands[f"predict, {name}"] = ["predict", str(folder), f"{base}/picture.jpg", "--out", out, "--overwrite"]
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, arguments in commands.items():
                started_at = time.perf_counter()
                subprocess.run([sys.executable, "-m", "fullyconv", *arguments], check=True, capture_output=True)
                times[name].append(time.perf_counter() - started_at)
    for name, taken in times.items():
        print(f"{name:<22} median {median(taken):5.2f} s  best {min(taken):5.2f} s")
    record = {
        "command": f"python benchmarks/cold_start.py {' '.join(sys.argv[1:])}".strip(),
        "machine": engines.machine(),
        "load": os.getloadavg(),
        "fullyconv": __version__,
        "seconds": {name: {"median": median(taken), "best": min(taken)} for name, taken in times.items()},
    }
    path = Path(__file__).parent / "results" / "cold_start.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"load {os.getloadavg()[0]:.1f}; {path}")


if __name__ == "__main__":
    main()
