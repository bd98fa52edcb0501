"""Files of tensors: reads .safetensors, .pth and .caffemodel, writes .safetensors. Nothing that is read runs code."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fullyconv.caffe import CLASSIFIERS, classifier_of, read_layers
from fullyconv.errors import CheckpointError
from fullyconv.records import writing


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
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights (.safetensors, .pth or .caffemodel)")
    if path.suffix == ".caffemodel":
        return _renamed(read_caffemodel(path))
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: not a whole .safetensors file: {error}") from None
    if path.suffix not in {".pth", ".pt", ".bin"}:
        raise CheckpointError(
            f"{path}: cannot tell what it holds; expected a name ending in .safetensors, .pth or .caffemodel"
        )
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        line = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path}: holds more than tensors, and reading the rest could run code; save the state_dict alone "
            f"({line:.120})"
        ) from None
    except Exception as error:  # torch.load raises whatever its many readers raise
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a file of PyTorch weights: {line:.160}") from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    tensors = {k: v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path}: holds {type(data).__name__} without tensors; expected a state dict")
    return {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}


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
        origin = json.loads(read_metadata(path).get("converted_from", "{}"))
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
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def read_metadata(path: str | PathLike[str]) -> dict[str, str]:
    """The string metadata of a .safetensors file.

    Raises:
        CheckpointError: the file's header is not whole.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("the header is longer than the file")
            metadata = json.loads(file.read(length)).get("__metadata__", {})
    except (OSError, struct.error, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole .safetensors file: {error}") from None
    return {str(k): str(v) for k, v in metadata.items()}
