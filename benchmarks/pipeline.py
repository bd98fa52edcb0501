"""How much of the speed of the net is left when pictures come from files and label maps go to files?

    python benchmarks/pipeline.py [--pictures 200] [--size 360x480] [--backbone squeezenet1_1] [--batch 4] [--rounds 3]
    python benchmarks/pipeline.py --many 10000

Compute alone is the predictor on arrays that are in memory, in batches of the same size; the whole is `segment_files`,
what ``fullyconv predict`` runs: decode, compute, encode, JPEG in and PNG out. They take turns in one process; medians
of pictures a second are printed. ``--many`` segments as many tiny pictures and prints the resident memory on the way,
which must not grow. Written to ``benchmarks/results/pipeline.json``, with the machine and the versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import fullyconv
from fullyconv import __version__, images, presets
from fullyconv.folders import PictureFile, segment_files
from fullyconv.inference import Predictor, whole


def write_pictures(folder: Path, count: int, size: tuple[int, int], suffix: str) -> list[PictureFile]:
    """Coloured squares with some noise on them; of many, most are links to one of the first fifty."""
    generator = np.random.default_rng(0)
    files = []
    for i in range(count):
        path = folder / f"{i}{suffix}"
        if i < 50:
            squares = generator.integers(0, 220, (size[0] // 24 + 1, size[1] // 24 + 1, 3), dtype=np.uint8)
            pixels = squares.repeat(24, 0).repeat(24, 1)[: size[0], : size[1]]
            images.write_image(path, pixels + generator.integers(0, 35, pixels.shape, dtype=np.uint8))
        else:
            path.symlink_to(folder / f"{i % 50}{suffix}")
        files.append(PictureFile(path, str(i)))
    return files


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def throughput(predictor: Predictor, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    height, width = (int(n) for n in options.size.split("x"))
    files = write_pictures(folder, options.pictures, (height, width), ".jpg")
    arrays = [images.read_image(file.path).pixels for file in files[:50]]

    def compute() -> None:
        for _ in predictor.map((arrays[i % 50] for i in range(len(files))), batch_size=options.batch):
            pass

    def everything() -> None:
        outcomes = segment_files(predictor, files, folder / "out", overwrite=True, batch_size=options.batch)
        assert all(outcome.status == "done" for outcome in outcomes)

    rates: dict[str, list[float]] = {"compute alone": [], "decode, compute, encode": []}
    for turn in range(options.rounds + 1):
        for name, work in zip(rates, (compute, everything), strict=True):
            started = time.perf_counter()
            work()
            if turn:
                rates[name].append(len(files) / (time.perf_counter() - started))
    found = {name: median(taken) for name, taken in rates.items()}
    share = found["decode, compute, encode"] / found["compute alone"]
    print(f"FCN-8s on {options.backbone}, {height} x {width}, batches of {options.batch}, {len(files)} pictures")
    for name, rate in found.items():
        print(f"{name:26}{rate:8.1f} pictures/s")
    print(f"{'share that is left':26}{share:8.2f}")
    return {"pictures_per_second": found, "share": share}


def memory(predictor: Predictor, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    files = write_pictures(folder, options.many, (48, 64), ".png")
    every = max(options.many // 10, 1)
    at: dict[int, float] = {}
    for i, _ in enumerate(segment_files(predictor, files, folder / "out", batch_size=options.batch), start=1):
        if i % every == 0:
            at[i] = resident_mib()
            print(f"{i:8} pictures{at[i]:10.1f} MiB")
    return {"resident_mib": at}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--size", default="360x480", help="height x width")
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = fullyconv.build(presets.fcn8s(options.backbone, classes=11, weights=None)).eval()
    predictor = Predictor(model, strategy=whole, device="cpu", precision=options.precision)
    with tempfile.TemporaryDirectory() as folder:
        work = memory if options.many else throughput
        found = work(predictor, options, Path(folder))
    path = Path(__file__).parent / "results" / "pipeline.json"
    path.parent.mkdir(exist_ok=True)
    machine = {"machine": platform.platform(), "processor": platform.processor(), "threads": options.threads}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "fullyconv": __version__}
    earlier = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**earlier, **machine, **versions, **vars(options), **found}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
