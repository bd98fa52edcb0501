"""An exported trunk at work, without torch: numpy arrays in, score maps out, by OpenVINO or ONNX Runtime.

The trunk is what lies between a normalised picture in its frame and the score maps; `fullyconv.exporters` writes it.
What has to be done before and after it is in a small JSON file beside it, a `TrunkInfo`. `fullyconv tune MODEL` puts
both into ``MODEL/engine/``, with what it measured on this machine (`Tuned`).

    trunk.onnx   any batch, any height and width that a frame gives
    trunk.json   `TrunkInfo`
    int8.xml     the same with 8-bit integers, where asked for (OpenVINO)
    tuned.json   `Tuned`
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import os
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fullyconv.config import Classes
from fullyconv.documents import parse_json, read_text
from fullyconv.errors import CheckpointError, ConfigError

Float = npt.NDArray[np.float32]
EngineName = Literal["torch", "openvino", "onnxruntime"]
Precision = Literal["32", "bf16", "int8"]

FORMAT = 1
"""Of trunk.json and tuned.json; rises when the meaning of a field changes."""
FOLDER = "engine"
"""Inside a model folder."""
FILES = ("", "trunk.onnx", "int8.xml")
"""What a row of tuned.json may name there: a stranger's row shall not lead anywhere else."""
AGREES = 0.995
"""Share of pixels that a faster precision has to label as float32 does, for ``engine="auto"`` to take it."""


# --- what has to be done around a trunk -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Framing:
    """How many pixels are added around a picture, as `fullyconv.model.FCN.frame` has it.

    Attributes:
        front: pixels before the first row and column.
        fixed: as many behind the last ones; else as far as cells reach.
        multiple: pixels of which each side is a multiple.
        minimum: pixels along a side that the trunk needs.
        stride, offset, surplus: of the coarsest map, in pixels of the framed picture.
    """

    front: int
    fixed: bool
    multiple: int
    minimum: int
    stride: int
    offset: Fraction
    surplus: int

    def end(self, pixels: int) -> int:
        """Pixels added behind so many."""
        if self.fixed:
            reached = 2 * self.front + pixels
        else:
            cells = max(1, math.floor((pixels - 1 - self.offset) / self.stride) + 1)
            reached = max(self.front + pixels, (cells - self.surplus) * self.stride)
        return -(-max(reached, self.minimum) // self.multiple) * self.multiple - self.front - pixels


@dataclass(frozen=True)
class HeadInfo:
    """What is made of a score map.

    Attributes:
        classes: the table; its length is K.
        first, step: fixed bilinear upsampling puts pixel i on cell ``first + step * i``; None where it is not that.
        spread: instead, the cells are spread evenly over the pixels, as `F.interpolate` does.
        zeros: beyond the outermost cells lie zeros, not the same again.
        scale: logits to a pixel.
    """

    classes: Classes
    first: float | None
    step: float
    spread: bool
    zeros: bool
    scale: Fraction

    def taps(self, cells: int, pixels: int) -> tuple[npt.NDArray[np.int32], Float, Float]:
        """As `fullyconv.upsample.Upsample.taps`: of the pixels of one axis, (index, lower, upper)."""
        assert self.first is not None
        logits = math.ceil(pixels * self.scale)
        rows = np.arange(logits, dtype=np.float64)
        at = (rows + 0.5) * (cells / logits) - 0.5 if self.spread else rows * self.step + self.first
        if not self.zeros:
            at = at.clip(0, cells - 1)
        low = np.floor(at.clip(-1, cells))
        upper = (at - low).clip(0, 1).astype(np.float32)
        lower = np.float32(1) - upper
        chosen = [math.floor(pixel * self.scale) for pixel in range(pixels)]
        return low.astype(np.int32)[chosen], lower[chosen], upper[chosen]


@dataclass(frozen=True)
class TrunkInfo:
    """What has to be done around an exported trunk.

    Attributes:
        model: `identity` of the model folder that it was made of, "" for none.
        order: which channel of the picture comes first, second, ...
        mean, std: what is subtracted and divided by, 0..255, in that order.
        framing: what is added around.
        heads: what is made of each score map, in the order of the trunk's outputs.
    """

    model: str
    order: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    framing: Framing
    heads: dict[str, HeadInfo]

    def prepare(self, pixels: npt.NDArray[Any]) -> Float:
        """(H, W, C) in 0..255 -> (1, C, H', W') normalised and framed, as `fullyconv.model.FCN.preprocess` does."""
        height, width, _ = pixels.shape
        front = self.framing.front
        framed = np.zeros(
            (1, len(self.order), front + height + self.framing.end(height), front + width + self.framing.end(width)),
            np.float32,
        )
        for place, channel in enumerate(self.order):
            inside = framed[0, place, front : front + height, front : front + width]
            np.subtract(pixels[..., channel], np.float32(self.mean[place]), out=inside, dtype=np.float32)
            inside /= np.float32(self.std[place])
        return framed

    def json(self) -> dict[str, Any]:
        """Plain data, from which `read` makes the same again."""
        heads = {
            name: {
                **{key: getattr(head, key) for key in ("first", "step", "spread", "zeros")},
                "scale": str(head.scale),
                "classes": head.classes.model_dump(mode="json"),
            }
            for name, head in self.heads.items()
        }
        framing = asdict(self.framing) | {"offset": str(self.framing.offset)}
        return {"format": FORMAT, **asdict(self), "framing": framing, "heads": heads}

    @classmethod
    def read(cls, path: Path) -> TrunkInfo:
        """Read trunk.json.

        Raises:
            CheckpointError: missing, damaged or of another format.
        """
        data = _read(path)
        try:
            heads = {
                name: HeadInfo(
                    **head
                    | {"scale": _fraction(head["scale"]), "classes": Classes.parse(head["classes"], source=str(path))}
                )
                for name, head in data["heads"].items()
            }
            framed = data["framing"]
            # Files from before there was this field are of nets whose coarsest stride is all that counts.
            multiple = framed.get("multiple", 1 if framed["fixed"] else framed["stride"])
            framing = Framing(**framed | {"offset": _fraction(framed["offset"]), "multiple": multiple})
            numbers = {name: tuple(data[name]) for name in ("order", "mean", "std")}
            return cls(data["model"], **numbers, framing=framing, heads=heads)
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); make it again with fullyconv tune") from None


# --- engines ----------------------------------------------------------------------------------------------------------


class Engine(Protocol):
    """Runs a trunk. Not safe to be called from two threads at a time.

    Attributes:
        name, precision: what runs, and in which numbers it multiplies.
    """

    name: EngineName
    precision: str

    def __call__(self, framed: Float) -> dict[str, Float]:
        """(B, C, H', W') normalised and framed -> score maps (B, K, h, w) by head name."""
        ...


def open_engine(
    path: str | os.PathLike[str], name: str, *, precision: str = "auto", threads: int | None = None
) -> Engine:
    """Open an exported trunk.

    Args:
        path: trunk.onnx; for OpenVINO an .xml as well. What is in the JSON file of the same name says the heads.
        name: "openvino" or "onnxruntime".
        precision: "auto" (what the engine thinks best: OpenVINO takes bf16 where the hardware has it), "32" or "bf16".
        threads: None: the engine's choice, all cores.

    Raises:
        ConfigError: no such engine, not installed, or it does not know the precision.
        CheckpointError: the file is missing or damaged.
    """
    path = Path(path)
    kinds: dict[str, Callable[[Path, tuple[str, ...], str, int | None], Engine]] = {
        "openvino": OpenVINO,
        "onnxruntime": OnnxRuntime,
    }
    if name not in kinds:
        raise ConfigError(f"engine: got {name!r}; expected torch, {' or '.join(kinds)}", where="engine")
    if not installed(name):
        extra = {"openvino": "openvino", "onnxruntime": "onnx"}[name]
        raise ConfigError(f"engine: {name} is not installed; pip install 'fullyconv[{extra}]'", where="engine")
    if precision not in ("auto", "32", "bf16"):
        raise ConfigError(f"precision: got {precision!r}; expected auto, 32 or bf16", where="precision")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; make it with fullyconv tune")
    heads = _read(path.with_suffix(".json")).get("heads")
    if not isinstance(heads, dict):
        raise CheckpointError(f"{path.with_suffix('.json')}: damaged; make it again with fullyconv tune")
    return kinds[name](path, tuple(heads), precision, threads)


class OpenVINO:
    """OpenVINO on the CPU."""

    name: EngineName = "openvino"

    def __init__(self, path: Path, heads: tuple[str, ...], precision: str, threads: int | None) -> None:
        import openvino

        self._heads = heads
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision != "auto":
            settings["INFERENCE_PRECISION_HINT"] = {"32": "f32", "bf16": "bf16"}[precision]
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            model = core.read_model(path)
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise _damaged(path, self.name, error) from None
        _expect(path, len(compiled.outputs), heads)
        hint = str(compiled.get_property("INFERENCE_PRECISION_HINT"))
        quantised = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
        self.precision = "int8" if quantised else "bf16" if "bf16" in hint or "bfloat16" in hint else "32"
        self._request = compiled.create_infer_request()

    def __call__(self, framed: Float) -> dict[str, Float]:
        outputs = self._request.infer([framed], share_inputs=True)
        return {name: np.array(outputs[i], np.float32) for i, name in enumerate(self._heads)}


class OnnxRuntime:
    """ONNX Runtime on the CPU, which computes in float32."""

    name: EngineName = "onnxruntime"

    def __init__(self, path: Path, heads: tuple[str, ...], precision: str, threads: int | None) -> None:
        import onnxruntime

        if precision == "bf16":
            raise ConfigError("precision: onnxruntime computes in float32; expected auto or 32", where="precision")
        self._heads, self.precision = heads, "32"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its log goes to stderr
        options.intra_op_num_threads = threads or 0
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes share no other base
            raise _damaged(path, self.name, error) from None
        _expect(path, len(self._session.get_outputs()), heads)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, framed: Float) -> dict[str, Float]:
        return dict(zip(self._heads, self._session.run(None, {self._input: framed}), strict=True))


def installed(name: str) -> bool:
    """Whether an engine of this name can be used."""
    return name == "torch" or importlib.util.find_spec(name) is not None


def _expect(path: Path, outputs: int, heads: tuple[str, ...]) -> None:
    if outputs != len(heads):
        raise CheckpointError(
            f"{path}: gives {outputs} maps, and the JSON file beside it names {len(heads)} heads; make both again with "
            "fullyconv tune"
        )


def _damaged(path: Path, engine: str, error: Exception) -> CheckpointError:
    said = " ".join(str(error).split())
    return CheckpointError(f"{path}: {engine} cannot run it ({said[:160]}); make it again with fullyconv tune")


# --- what was measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One engine and precision on this machine.

    Attributes:
        engine, precision: what ran.
        milliseconds: from picture to label map, median.
        agreement: share of pixels, 0..1, with the label that torch in float32 gives.
        file: of the trunk, in the folder; "" for torch.
    """

    engine: EngineName
    precision: Precision
    milliseconds: float
    agreement: float
    file: str = ""


@dataclass(frozen=True)
class Tuned:
    """What `fullyconv.tuning.measure` found: which engine is fastest here, and at what loss.

    Attributes:
        model: `identity` of the model folder.
        machine: `machine` that it was measured on.
        size: (height, width) of the pictures, in pixels.
        pictures: what they were, in words.
        allow_loss: share of pixels that may get another label, as the user said; None: 1 - `AGREES`, and never int8.
        measured: fastest first.
    """

    model: str
    machine: dict[str, str]
    size: tuple[int, int]
    pictures: str
    allow_loss: float | None = None
    measured: tuple[Measured, ...] = field(default=())

    def best(self, precision: str = "auto") -> Measured | None:
        """The fastest that agrees well enough; with "32" or "bf16" of that precision."""
        for row in sorted(self.measured, key=lambda row: row.milliseconds):
            if precision in ("auto", row.precision) and (row.precision == "32" or self.accepts(row)):
                return row
        return None

    def accepts(self, row: Measured) -> bool:
        """Whether a row's loss is one that may be taken without asking again."""
        if self.allow_loss is None:
            return row.precision != "int8" and row.agreement >= AGREES
        return row.agreement >= 1 - self.allow_loss

    def json(self) -> dict[str, Any]:
        """Plain data, from which `read_tuned` makes the same again."""
        return {"format": FORMAT, **asdict(self)}


def read_tuned(model: str | os.PathLike[str]) -> Tuned | None:
    """What was measured of a model folder; None where nothing was, or of another model, or on another machine.

    Raises:
        CheckpointError: tuned.json is damaged.
    """
    path = Path(model) / FOLDER / "tuned.json"
    if not path.exists():
        return None
    data = _read(path)
    try:
        rows = tuple(Measured(**row) for row in data.pop("measured"))
        if outside := next((row.file for row in rows if row.file not in FILES), None):
            raise ValueError(f"file {outside!r:.80}, expected {' or '.join(FILES[1:])}")
        del data["format"]
        tuned = Tuned(**data | {"size": tuple(data["size"])}, measured=rows)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); make it again with fullyconv tune") from None
    return tuned if tuned.model == identity(model) and tuned.machine == machine() else None


def identity(model: str | os.PathLike[str]) -> str:
    """What tells this save of a model from all others: the hash of its config.json, which says when it was written."""
    try:
        return hashlib.sha256((Path(model) / "config.json").read_bytes()).hexdigest()
    except OSError:
        raise CheckpointError(f"{model}: holds no model; expected a folder that fullyconv wrote") from None


def machine() -> dict[str, str]:
    """What speed depends on: the processor, its cores that we may use, and the versions of the engines."""
    found = {"processor": _processor(), "cores": str(cores())}
    for package in ("torch", "openvino", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The name of the processor, and a hash of what it can do, which a virtual machine may hide in part."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    first: dict[str, str] = {}
    for line in lines:  # of the first core, up to an empty line
        key, colon, value = line.partition(":")
        if not colon:
            break
        first[key.strip()] = value.strip()
    flags = hashlib.sha256(first.get("flags", first.get("Features", "")).encode()).hexdigest()[:8]
    return f"{first.get('model name', platform.machine())} {flags}"


def _fraction(text: str) -> Fraction:
    # Fraction itself takes "1e1000000000", too, and then computes for ever.
    if not re.fullmatch(r"-?\d{1,9}(/[1-9]\d{0,8})?", text, re.ASCII):
        raise ValueError(f"{text!r:.80} is no fraction")
    return Fraction(text)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of ours.

    Raises:
        CheckpointError: missing, damaged or of another format.
    """
    try:
        data = parse_json(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; make it with fullyconv tune") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); make it again with fullyconv tune") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not of format {FORMAT}; make it again with fullyconv tune")
    return data
