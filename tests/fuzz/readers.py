"""Feed the readers of .caffemodel and .safetensors what atheris makes up, until time or count is used up.

    python tests/fuzz/readers.py caffemodel --minutes 30 --runs 10000000

A reader gives tensors or a `CheckpointError` of one line. It fails where it raises anything else, takes more than a
second, or takes more memory than ten times the file and `SLACK`. What made it fail is left in runs/fuzz/KIND/, and
becomes a test. ``make fuzz`` installs atheris, which is not among the dependencies, and runs both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    sys.exit("fuzz: atheris is not installed, so nothing was tried; `make fuzz` installs it where there is a wheel")

with atheris.instrument_imports(include=["fullyconv.caffe", "fullyconv.weights"]):
    from fullyconv.errors import CheckpointError
    from fullyconv.weights import input_of, read_metadata, read_shapes, read_weights

SECONDS = 1.0
TIMES = 10
SLACK = 1 << 20
"""Bytes that reading takes whatever the file: of Python, and of the first buffers of torch and safetensors."""
TRACED = 16
"""Memory is watched in one execution of so many, since it makes them five times as slow."""
MOST_BYTES = 16384
"""Of a file that is made up."""


def read_all(path: Path) -> int:
    """Bytes of all tensors."""
    size = sum(tensor.nbytes for tensor in read_weights(path).values())
    if path.suffix == ".safetensors":
        read_shapes(path)
        read_metadata(path)
    input_of(path)
    return size


class Watched:
    """One reader, held to its word."""

    def __init__(self, path: Path, report: Path) -> None:
        self.path, self.report, self.started = path, report, time.monotonic()
        self.runs, self.read, self.slowest_s = 0, 0, 0.0

    def __call__(self, data: bytes) -> None:
        self.path.write_bytes(data)
        self.runs += 1
        traced = self.runs % TRACED == 0
        if traced:
            tracemalloc.start()
        started = time.perf_counter()
        size = 0
        try:
            size = read_all(self.path)
            self.read += 1
        except CheckpointError as error:
            if "\n" in str(error):
                raise AssertionError(f"several lines: {error}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1] if traced else 0
            tracemalloc.stop()
        seconds = time.perf_counter() - started
        self.slowest_s = max(self.slowest_s, seconds)
        assert seconds < SECONDS, f"{seconds:.1f} s for {len(data)} bytes"
        assert max(peak, size) <= TIMES * len(data) + SLACK, f"{max(peak, size)} bytes for {len(data)} bytes"
        if self.runs % 1000 == 0:  # libFuzzer ends the process by itself, and says nothing
            self.tell()

    def tell(self) -> None:
        """Write what was done so far."""
        done = {
            "executions": self.runs,
            "read": self.read,
            "refused": self.runs - self.read,
            "minutes": round((time.monotonic() - self.started) / 60, 2),
            "slowest_s": round(self.slowest_s, 4),
        }
        self.report.write_text(json.dumps(done) + "\n")


def caffemodel_seeds() -> list[bytes]:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import numpy as np
    from test_caffe import Wire, blob, field, layer, small

    half = layer("h", "Scale", [blob(np.ones((2, 2), np.float16))])
    pieces = layer("p", "Bias", [blob(np.arange(9, dtype=np.float32), Wire("pieces", "unpacked", (field(15, 3),)))])
    return [small(), half, pieces, half + small()]


def safetensors_seeds() -> list[bytes]:
    import torch
    from safetensors.torch import save

    first = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.float16), "c": torch.zeros(0)}
    told = {"converted_from": json.dumps({"input": "caffe"})}
    return [save(first), save(first, told), save({"only": torch.tensor(1)})]


SEEDS: dict[str, Callable[[], list[bytes]]] = {"caffemodel": caffemodel_seeds, "safetensors": safetensors_seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SEEDS)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--runs", type=int, default=10_000_000)
    options = parser.parse_args()
    corpus = Path("runs/fuzz", options.kind)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[options.kind]()):
        (corpus / f"seed-{number}").write_bytes(seed)
    folder = tempfile.TemporaryDirectory()
    watched = Watched(Path(folder.name, f"made-up.{options.kind}"), corpus.with_suffix(".json"))
    flags = [
        f"-max_total_time={round(60 * options.minutes)}",
        f"-runs={options.runs}",
        f"-max_len={MOST_BYTES}",
        "-timeout=2",
        "-print_final_stats=1",
        f"-artifact_prefix={corpus}/failed-",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], watched)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
