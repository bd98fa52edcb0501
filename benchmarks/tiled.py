"""What does it cost to segment a picture too large for memory, in time for each pixel and in memory?

    python benchmarks/tiled.py [--size 6000] [--backbone squeezenet1_1] [--classes 21] [--rounds 3] [--memory 1024]
    python benchmarks/tiled.py --size 20000 --rounds 1 --tif

A picture of ``size`` by ``size`` pixels is read from its file, segmented and written by `segment_raster`. Beside that,
in memory and without files: a picture of 2,048 x 2,048 in one piece, and a tile of 2,048 with all that lies around it
and is computed with it. Every run is a process of its own, and they take turns; medians of the time for each pixel of
the picture are printed, their ratio to that of the tile, and the largest peak of resident memory, in which torch and
the model are. Weights are random, so that labels mean nothing. Nothing is extrapolated: what is said of a size was
measured at that size. The table goes to ``benchmarks/results/tiled.json``, with the machine and the versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

TILE = 2048


def write_pictures(folder: Path, size: int, *, geo: bool, png: bool) -> None:
    """Coloured squares with noise on them, as PNG and, if rasterio is there, as TIFF, written band by band."""
    import numpy as np

    from fullyconv import images

    generator = np.random.default_rng(0)
    squares = generator.integers(0, 200, (size // 32 + 1, size // 32 + 1, 3), dtype=np.uint8)
    noise = generator.integers(0, 55, (64, size, 3), dtype=np.uint8)

    def band(start: int) -> Any:
        rows = squares[np.arange(start, min(start + 64, size)) // 32].repeat(32, 1)[:, :size]
        return rows + noise[: len(rows)]

    if not geo:
        whole = np.concatenate([band(start) for start in range(0, size, 64)])
        images.write_image(folder / "picture.png", whole)
        return
    import rasterio
    import rasterio.shutil
    from affine import Affine
    from rasterio.windows import Window

    profile: dict[str, Any] = {"width": size, "height": size, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    profile |= {"tiled": True, "compress": "deflate", "zlevel": 1, "bigtiff": "if_safer", "interleave": "pixel"}
    place = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 5e6)}
    with rasterio.open(folder / "picture.tif", "w", driver="GTiff", **profile, **place) as dataset:
        for start in range(0, size, 64):
            rows = band(start)
            dataset.write(np.moveaxis(rows, 2, 0), window=Window(0, start, size, len(rows)))
    if not png:
        return
    rasterio.shutil.copy(folder / "picture.tif", folder / "picture.png", driver="PNG", ZLEVEL=1)
    (folder / "picture.png.aux.xml").unlink(missing_ok=True)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One competitor, in this process: seconds, pixels, peak in MiB."""
    import torch

    import fullyconv
    from fullyconv import presets
    from fullyconv.inference import Predictor, whole
    from fullyconv.streaming import segment_raster
    from fullyconv.tiling import plan

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = fullyconv.build(presets.fcn8s(options.backbone, classes=options.classes, weights=None)).eval()
    predictor = Predictor(model, device=options.device, precision=options.precision, strategy=whole)
    result: dict[str, Any] = {"precision": options.precision}
    if options.run.startswith(("tile", "picture of")):
        rows, _ = plan(model, (1 << 20, TILE), tile=(TILE, TILE))
        side = rows[len(rows) // 2].length if options.run.startswith("tile") else TILE
        pixels = torch.randint(0, 255, (side, side, 3), dtype=torch.uint8).numpy()
        result |= {"pixels": TILE * TILE, "recomputed": (side / TILE) ** 2}
        predictor(pixels)  # the first run pays for memory that is touched for the first time
        started = time.perf_counter()
        predictor(pixels)
    else:
        kind, target = options.run.split(" to ")
        folder = Path(options.folder)
        started = time.perf_counter()
        done = segment_raster(
            predictor, folder / f"picture.{kind}", folder / f"labels.{target}", memory=options.memory << 20
        )
        result |= {"pixels": done.size[0] * done.size[1], "recomputed": done.recomputed, "tile": done.tile}
        result["notes"] = done.notes
    result["seconds"] = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result["peak_mib"] = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=6000)
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=1024, help="MiB for a row of tiles, beside torch and the model")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tif", action="store_true", help="GeoTIFF to GeoTIFF alone, which needs rasterio")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options)))
        return
    import torch

    from fullyconv import __version__, rasters

    geo = rasters.installed()
    tile, picture = f"tile of {TILE} and surroundings", f"picture of {TILE} in one piece"
    if options.tif and not geo:
        raise SystemExit("--tif needs rasterio, which is not installed")
    runs = [tile, *(["tif to tif"] if options.tif else [picture, "png to png"])]
    if geo and not options.tif:
        runs += ["tif to png", "tif to tif"]
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.size, geo=geo, png=not options.tif)
        for _ in range(options.rounds):
            for name in runs:
                command = [sys.executable, __file__, *sys.argv[1:], "--run", name, "--folder", folder]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                taken[name].append(json.loads(printed.splitlines()[-1]))
    per_pixel = {name: median(1e9 * r["seconds"] / r["pixels"] for r in found) for name, found in taken.items()}
    print(f"FCN-8s on {options.backbone}, {options.classes} classes; {options.size} x {options.size} pixels")
    print(f"{'':32}{'ns/pixel':>10}{'ratio':>8}{'computed/pixel':>16}{'tile':>14}{'peak MiB':>10}")
    rows = {}
    for name, found in taken.items():
        cut = "x".join(map(str, found[0].get("tile", ())))
        peak = max(r["peak_mib"] for r in found)
        ratio = per_pixel[name] / per_pixel[tile]
        print(f"{name:32}{per_pixel[name]:10.0f}{ratio:8.2f}{found[0]['recomputed']:16.2f}{cut:>14}{peak:10.0f}")
        rows[name] = {"ns_per_pixel": per_pixel[name], "ratio": ratio, "peak_mib": peak} | {
            key: found[0][key] for key in ("recomputed", "tile", "notes") if key in found[0]
        }
    machine = {"machine": platform.platform(), "processor": platform.processor(), "threads": options.threads}
    versions = {"python": platform.python_version(), "torch": torch.__version__, "fullyconv": __version__}
    settings = {key: getattr(options, key) for key in ("size", "backbone", "classes", "rounds", "memory", "precision")}
    path = Path(__file__).parent / "results" / "tiled.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**machine, **versions, **settings, "runs": rows}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
