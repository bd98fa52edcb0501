"""What makes prediction fast on this very machine: the allocator's settings, and which engine to take, by measure."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fullyconv import checkpoint, dense, engines, images
from fullyconv.devices import autocast, computes_bf16
from fullyconv.engines import EngineName, Measured, Precision, Tuned
from fullyconv.errors import ConfigError, FullyConvError
from fullyconv.exporters import export, openvino
from fullyconv.multiscale import looks_of
from fullyconv.opening import Array
from fullyconv.records import writing
from fullyconv.runners import Driven, runner

MOST_PICTURES = 16
"""On which agreement is measured."""
LARGEST = 1024
"""Side in pixels, beyond which the middle of a picture is taken."""


def tune() -> str:
    """Let this process keep memory that it has freed, in place of giving it back and having it zeroed page by page.

    Only with glibc's allocator. The price is a larger resident set, as large as the peak.

    Returns:
        what was done, one line.

    Example:
        >>> tune()                                               # doctest: +SKIP
        'allocator: keeps what is freed'
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries have none, nor these settings
    except (OSError, AttributeError, TypeError):
        return "allocator: left as it is (not glibc's)"
    trim_threshold, mmap_max = -1, -4
    done = library.mallopt(mmap_max, 0) and library.mallopt(trim_threshold, 2**31 - 1)
    return "allocator: keeps what is freed" if done else "allocator: left as it is (it refused)"


@dataclass(frozen=True)
class _Candidate:
    engine: EngineName
    precision: Precision
    file: str = ""


def measure(
    folder: str | Path,
    *,
    size: tuple[int, int] = (512, 512),
    pictures: str | Path | None = None,
    int8: bool = False,
    allow_loss: float | None = None,
    rounds: int = 9,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Tuned:
    """Measure the engines that are installed, and remember the result in ``FOLDER/engine/``.

    Each runs in a process of its own, and they take turns, picture by picture. What is timed is a picture's way to its
    label maps, without reading and writing files. A faster precision is only taken later where its labels agree with
    float32's (`Tuned.best`).

    Args:
        folder: of a model.
        size: (height, width) of the picture that is timed.
        pictures: a folder of the user's pictures, on which agreement is measured; None: generated ones.
        int8: quantise by nncf and measure that, too; needs ``pictures``, of which half choose the ranges and the others
            judge.
        allow_loss: share of pixels, 0..1, that may get another label for speed; None: 0.005, and never int8.
        rounds: times that each engine takes its turn.
        on_progress: told what is going on, line by line.

    Raises:
        ConfigError: a setting makes no sense, there is no picture, or int8 lacks nncf or OpenVINO.
        CheckpointError, ExportError: as of `checkpoint.load` and `exporters.export`.
    """
    if rounds < 1 or min(size) < 1:
        raise ConfigError(f"size: got {size[0]}x{size[1]} in {rounds} rounds; expected 1 or more of each", where="size")
    if allow_loss is not None and not 0 <= allow_loss <= 1:
        raise ConfigError(f"allow_loss: got {allow_loss}; expected a share, 0..1", where="allow_loss")
    if int8 and pictures is None:
        raise ConfigError(
            "int8: name a folder of your own pictures (--pictures), by which ranges are chosen", where="int8"
        )
    for package in ("openvino", "nncf") if int8 else ():
        if not engines.installed(package):
            raise ConfigError(f"int8: {package} is not installed; pip install 'fullyconv[int8]'", where="int8")
    folder = Path(folder)
    model = checkpoint.load(folder)
    if (looks := looks_of(model)).looks > 1:
        on_progress(f"one look is timed; this model labels each picture by {looks.looks} ({looks})")
    # Judged by the pictures that chose its ranges, int8 would look better than it is.
    found = _pictures(pictures, model.channels, size, 2 * MOST_PICTURES if int8 else MOST_PICTURES)
    choosing, shown = (found[::2], found[1::2] or found) if int8 else ([], found)
    said = (
        f"{len(shown)} of {pictures}"
        if pictures is not None
        else f"{len(shown)} generated ones, smooth and without meaning"
    )
    if int8:
        said += f", int8's ranges chosen by {len(choosing)} others" if len(found) > 1 else ", which chose int8's ranges"
    place = folder / engines.FOLDER
    identity = engines.identity(folder)
    candidates = [_Candidate("torch", "32")]
    if computes_bf16(torch.device("cpu")):
        candidates.append(_Candidate("torch", "bf16"))
    if any(engines.installed(name) for name in ("openvino", "onnxruntime")):
        on_progress("exporting")
        export(model, place / "trunk.onnx", identity=identity)
    if engines.installed("onnxruntime"):
        candidates.append(_Candidate("onnxruntime", "32", "trunk.onnx"))
    if engines.installed("openvino"):
        candidates.append(_Candidate("openvino", "32", "trunk.onnx"))
        if computes_bf16(torch.device("cpu")):
            candidates.append(_Candidate("openvino", "bf16", "trunk.onnx"))
    if int8:
        on_progress("quantising")
        trunk = engines.TrunkInfo.read(place / "trunk.json")
        openvino.quantise(place / "trunk.onnx", place / "int8.xml", [trunk.prepare(picture) for picture in choosing])
        shutil.copyfile(place / "trunk.json", place / "int8.json")
        candidates.append(_Candidate("openvino", "int8", "int8.xml"))
    rows = _race(folder, candidates, shown, size, rounds, on_progress)
    tuned = Tuned(identity, engines.machine(), size, said, allow_loss, tuple(rows))
    with writing(place):
        place.mkdir(exist_ok=True)
    checkpoint.write_json(place / "tuned.json", tuned.json())
    return tuned


def _pictures(
    folder: str | Path | None, channels: int, size: tuple[int, int], most: int = MOST_PICTURES
) -> list[Array]:
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(4, channels, 8, 8, generator=generator) * 255
        smooth = F.interpolate(coarse, size, mode="bicubic").clamp(0, 255)
        return [*smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()]
    if channels != 3:
        raise ConfigError(f"pictures: the model reads {channels} channels; expected one of 3", where="pictures")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in images.SUFFIXES)
    found = []
    for path in files[:: -(-len(files) // most) or 1]:
        try:
            pixels = images.read_image(path).pixels
        except FullyConvError:
            continue
        top, left = (max(0, (n - LARGEST) // 2) for n in pixels.shape[:2])
        found.append(np.ascontiguousarray(pixels[top : top + LARGEST, left : left + LARGEST]))
    if not found:
        raise ConfigError(f"{folder}: no picture that can be read; expected a folder that holds some", where="pictures")
    return found


def _race(
    folder: Path,
    candidates: Sequence[_Candidate],
    pictures: Sequence[Array],
    size: tuple[int, int],
    rounds: int,
    on_progress: Callable[[str], None],
) -> list[Measured]:
    """Measure all candidates, fastest first. The first one's labels are what the others' are compared with."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        np.savez(Path(scratch) / "pictures.npz", *pictures)
        workers = []
        for candidate in candidates:
            on_progress(f"starting {candidate.engine} {candidate.precision}")
            workers.append(stack.enter_context(_Worker(folder, candidate, Path(scratch), size)))
        times: list[list[float]] = [[] for _ in workers]
        on_progress("measuring")
        for _ in range(rounds):
            for worker, taken in zip(workers, times, strict=True):
                taken.append(worker.ask("time"))
        labels = [np.load(worker.ask("label")) for worker in workers]
    rows = []
    for candidate, taken, found in zip(candidates, times, labels, strict=True):
        same = sum(int((found[name] == labels[0][name]).sum()) for name in found.files)
        every = sum(found[name].size for name in found.files)
        rows.append(Measured(candidate.engine, candidate.precision, 1000 * median(taken), same / every, candidate.file))
    return sorted(rows, key=lambda row: row.milliseconds)


class _Worker:
    """A process with one engine, that does what it is asked to and otherwise sleeps."""

    def __init__(self, folder: Path, candidate: _Candidate, scratch: Path, size: tuple[int, int]) -> None:
        self.name = f"{candidate.engine} {candidate.precision}"
        job = {
            "folder": str(folder),
            "engine": candidate.engine,
            "precision": candidate.precision,
            "file": candidate.file,
            "pictures": str(scratch / "pictures.npz"),
            "labels": str(scratch / f"{candidate.engine}-{candidate.precision}.npz"),
            "size": size,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fullyconv.tuning", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> _Worker:
        self.ask("time")  # the first call allocates, and compiles for the size
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, question: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            _, error = self._process.communicate()
            why = (error.strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(f"tune: {self.name} failed: {why}", where="engine")
        return json.loads(line)


def _work(job: dict[str, Any]) -> None:
    """Answer questions on standard input: ``time``, seconds for one picture; ``label``, the file of all labels."""
    tune()
    model = checkpoint.load(job["folder"]).to(memory_format=torch.channels_last)
    engine, precision = job["engine"], job["precision"]
    if engine == "torch":
        run = runner(model, "torch", precision=precision)
    else:
        path = Path(job["folder"]) / engines.FOLDER / job["file"]
        run = Driven(model, engines.open_engine(path, engine, precision="auto" if precision == "int8" else precision))

    @torch.inference_mode()
    def labels(picture: Array) -> dict[str, Array]:
        stacked = torch.from_numpy(picture).permute(2, 0, 1)[None]
        with autocast(torch.device("cpu"), "bf16" if (engine, precision) == ("torch", "bf16") else "32"):
            scores = run.score_maps(stacked)
        size = (picture.shape[0], picture.shape[1])
        return {n: dense.argmax(scores[n], head.pixels, size)[0].numpy() for n, head in model.heads.items()}  # type: ignore[arg-type]

    timed = _pictures(None, model.channels, (job["size"][0], job["size"][1]))[0]
    for question in sys.stdin:
        if question.strip() == "time":
            started_at = time.perf_counter()
            labels(timed)
            answer: Any = time.perf_counter() - started_at
        else:
            with np.load(job["pictures"]) as pictures:
                found = {f"{n}.{h}": maps for n in pictures.files for h, maps in labels(pictures[n]).items()}
            np.savez(job["labels"], **found)  # type: ignore[arg-type]
            answer = job["labels"]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _work(json.loads(sys.argv[1]))
