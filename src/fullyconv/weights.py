"""Files of tensors: reads .safetensors, .pth and .caffemodel, writes .safetensors. Nothing that is read runs code."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fullyconv.caffe import CLASSIFIERS, classifier_of, read_layers
from fullyconv.documents import parse_json
from fullyconv.errors import CheckpointError, first_line
from fullyconv.records import writing

MAX_HEADER = 16 << 20
"""Bytes of a .safetensors header: a tensor takes about a hundred, so it is room for all that may be there."""
MAX_TENSORS = 65536
"""In a .safetensors file; the largest nets have some thousands, and each takes a kilobyte however empty it is."""

NUMBERS = frozenset((
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
))  # fmt: skip
"""What a parameter or buffer may be made of: torch copies them into one another, and others not all."""


def read_weights(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, a .pth, .pt or .bin that holds a state dict, or a .caffemodel.

    A state dict may lie under ``state_dict`` or ``model``, and names may begin with ``module.``, as training scripts
    leave them. Tensors of a .caffemodel get the names of our modules where it holds a classifier that we know (VGG,
    CaffeNet, BVLC GoogLeNet), else those of `read_caffemodel`; its first layer reads BGR.

    Raises:
        CheckpointError: no such file, not such a file, or a .pth that holds anything but tensors and plain data (it is
            read with ``weights_only=True``, so that it cannot run code).
    """
    path = Path(path)
    refuse_missing(path)
    if path.suffix == ".caffemodel":
        return _renamed(read_caffemodel(path))
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            return _plain(path, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no mapping
    if path.suffix not in {".pth", ".pt", ".bin"}:
        raise CheckpointError(
            f"{path}: cannot tell what it holds; expected a name ending in .safetensors, .pth or .caffemodel"
        )
    _refuse_packed(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, and reading the rest could run code; save the state_dict alone "
            f"({first_line(error):.120})"
        ) from None
    except Exception as error:  # torch.load raises whatever its many readers raise
        raise CheckpointError(f"{path}: not a file of PyTorch weights: {first_line(error):.160}") from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    tensors = {k: v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path}: holds {type(data).__name__} without tensors; expected a state dict")
    return _plain(path, {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()})


def refuse_missing(path: str | PathLike[str]) -> None:
    """Refuse a file of weights that is none.

    Raises:
        CheckpointError: no such file, or a folder or the like.
    """
    path = Path(path)
    if not path.is_file():
        found = "not a regular file" if path.exists() else "no such file"
        raise CheckpointError(f"{path}: {found}; expected weights (.safetensors, .pth or .caffemodel)")


def read_caffemodel(path: str | PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a .caffemodel by layer: ``NAME.weight``, ``NAME.bias``, and further blobs as ``NAME.2``.

    Axes of length one that old files put in front are dropped: a bias is (N,), weights of an InnerProduct are (N, M).

    Raises:
        CheckpointError: as `fullyconv.caffe.read_layers`; or two layers of one name.
    """
    tensors: dict[str, Tensor] = {}
    for layer, kind, blobs in read_layers(path):
        for i, blob in enumerate(blobs):
            name = f"{layer}.{('weight', 'bias')[i] if i < 2 else i}"
            if name in tensors:
                raise CheckpointError(f"{path}: two layers are named {layer!r}; expected one with weights")
            if blob.ndim == 4 and (i > 0 or kind not in {"Convolution", "Deconvolution"}):
                least = 2 if i == 0 and kind == "InnerProduct" else 1
                while blob.ndim > least and blob.shape[0] == 1:
                    blob = blob[0]
            tensors[name] = torch.from_numpy(blob)
    return tensors


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's tensors under the names of our modules, the rest as they are."""
    layers = {name.rpartition(".")[0] for name in tensors}
    modules = CLASSIFIERS.get(classifier_of(layers) or "", {})
    parts = ((name.rpartition("."), tensor) for name, tensor in tensors.items())
    return {f"{modules.get(layer, layer)}.{kind}": tensor for (layer, _, kind), tensor in parts}


def input_of(path: str | PathLike[str]) -> str | None:
    """The name of the preprocessing that a file of weights expects (`fullyconv.config.INPUTS`), where the file tells.

    Caffe's own files and those that `fullyconv.convert` made of them are for BGR minus a mean; others do not say.
    """
    path = Path(path)
    if path.suffix == ".caffemodel":
        return "caffe"
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        origin = parse_json(read_metadata(path).get("converted_from", "{}"))
    except ValueError:
        return None
    found = origin.get("input") if isinstance(origin, dict) else None
    return found if isinstance(found, str) else None


def write_weights(path: str | PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors to a .safetensors file, whole or not at all.

    They are made contiguous, and those that share storage are copied.

    Raises:
        CheckpointError: the disk is full, the place read-only or the like.
    """
    own, storages = {}, set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        # The others are written from where they lie: a copy of a net takes gigabytes.
        shared = storage.data_ptr() in storages or storage.nbytes() != tensor.nbytes
        own[name] = tensor.clone() if shared else tensor
        storages.add(storage.data_ptr())
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            beside.touch()
            mode = beside.stat().st_mode
            save_file(own, beside, metadata=dict(metadata))
            # safetensors makes its files readable by their owner alone, whatever the umask says.
            beside.chmod(mode)
            beside.replace(path)
    except SafetensorError as error:  # how it reports a full disk
        raise CheckpointError(f"{path}: cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """The string metadata of a .safetensors file.

    Raises:
        CheckpointError: the file is not whole.
    """
    with _opened(Path(path)) as file:
        return dict(file.metadata() or {})


def read_shapes(path: str | PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The shapes of a .safetensors file's tensors by name, from its header alone.

    Raises:
        CheckpointError: the file is not whole.
    """
    with _opened(Path(path)) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A .safetensors file whose header is sound: every tensor lies inside the file, and none on another."""
    try:
        with path.open("rb") as plain:
            (header,) = struct.unpack("<Q", plain.read(8).ljust(8, b"\xff"))
        if header > MAX_HEADER:
            raise ValueError(f"a header of {header:,} bytes; expected {MAX_HEADER:,} at most")
        with safe_open(path, framework="pt") as file:
            if (count := len(file.keys())) > MAX_TENSORS:
                raise ValueError(f"{count:,} tensors; expected {MAX_TENSORS:,} at most")
            yield file
    except (SafetensorError, OSError, ValueError, KeyError, OverflowError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{path}: not a whole .safetensors file: {error}") from None
    except AttributeError as error:
        if "module 'torch' has no attribute" not in str(error):
            raise
        # A type of numbers that is younger than this torch.
        raise CheckpointError(f"{path}: {error}; expected dense tensors of 16 to 64 bits") from None


def _refuse_packed(path: Path) -> None:
    """PyTorch packs nothing, so that a file cannot unpack to a thousand times its size."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.file_size > entry.compress_size]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: not a file of PyTorch weights: {error}") from None
    if packed:
        raise CheckpointError(
            f"{path}: holds the compressed part {packed[0]!r:.80}; PyTorch writes none; save it again"
        )


def _plain(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.dtype not in NUMBERS:
            raise CheckpointError(
                f"{path}: {name!r:.80} is {tensor.dtype} ({tensor.layout}, on {tensor.device}); expected dense tensors "
                "of 16 to 64 bits, or of integers, on the CPU"
            )
    return tensors
