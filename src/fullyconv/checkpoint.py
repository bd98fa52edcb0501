"""A model is a folder: ``config.json`` says what it is, ``model.safetensors`` holds its tensors. No pickle anywhere.

A folder is written beside its place, flushed to the disk and renamed, so that what stands there is always whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fullyconv import __version__
from fullyconv.building import build
from fullyconv.config import Classes, ModelConfig
from fullyconv.errors import CheckpointError, FullyConvError
from fullyconv.model import FCN
from fullyconv.records import flush, read_json, write_json
from fullyconv.weights import read_metadata, read_shapes, read_weights, write_weights

__all__ = ["load", "load_state", "provenance", "read_json", "save", "save_state", "write_folder", "write_json"]

FORMAT = 1
"""Rises when the meaning of a field changes."""
UNASKED = 1 << 26
"""Numbers that the heads of a model may hold before it is asked whether its file holds as many."""

Shapes = Mapping[str, tuple[int, ...]]


MODEL_FILES = {"config.json", "model.safetensors", "engine"}
"""What a model folder holds; engine/ is `fullyconv tune`'s, of the weights that it was made for."""
LEFT_BY_SYSTEMS = re.compile(r"\.DS_Store|\._.*|\.nfs.*|\.ipynb_checkpoints|Thumbs\.db|desktop\.ini")
"""What file managers and file systems put into folders, which nobody misses."""


def save(model: FCN, folder: str | PathLike[str], *, provenance: Mapping[str, Any] | None = None) -> Path:
    """Write a model as a folder, whole or not at all; one that stands there is replaced.

    Args:
        model: built by `fullyconv.build`.
        folder: where to.
        provenance: how it came to be (recipe, step, data, scores, seed, versions): anything JSON can hold.

    Raises:
        CheckpointError: the model was not built from a config, or the folder cannot be written, or holds anything else.

    Example:
        >>> import tempfile, fullyconv
        >>> model = fullyconv.build(fullyconv.presets.fcn32s("tinyvgg", classes=2, weights=None))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = load(save(model, f"{folder}/model"))
        >>> again.heads["out"].classes
        2
    """
    if model.config is None:
        raise CheckpointError("a model that was not made by fullyconv.build has no config to save")
    config = {
        "format": FORMAT,
        "written_by": f"fullyconv {__version__}",
        "model": model.config.model_dump(mode="json"),
        "classes": {head: table.model_dump(mode="json") for head, table in model.classes.items()},
        "provenance": {"written_at": datetime.now(UTC).isoformat(timespec="seconds"), **(provenance or {})},
    }
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    folder = Path(folder)
    refuse_others(folder)

    def write(place: Path) -> None:
        (place / "config.json").write_text(text, encoding="utf-8")
        # One entry only: safetensors writes several in no fixed order, and equal models should be equal files.
        metadata = {"described_sha256": _digest(config)}
        write_weights(place / "model.safetensors", model.state_dict(), metadata)

    return write_folder(folder, write)


def refuse_others(folder: Path) -> None:
    """Refuse a folder that holds what is no part of a model: `save` replaces all of it.

    A run, say, is one that can be loaded, with much more in it.

    Raises:
        CheckpointError: there is something else, named; or no folder can be made of it.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:  # a file, or no rights
        raise CheckpointError(f"{folder}: cannot be a model folder: {error.strerror or error}; name another") from None
    for name in names:
        if name not in MODEL_FILES and not LEFT_BY_SYSTEMS.fullmatch(name):
            raise CheckpointError(
                f"{folder}: holds {name}, which is no part of a model and would be lost; name another"
            )


def load(folder: str | PathLike[str], *, device: str | torch.device = "cpu", backbone: nn.Module | None = None) -> FCN:
    """Read a model folder; the model is in evaluation mode.

    Args:
        folder: as `save` wrote it.
        device: where to put it.
        backbone: the object that the model was built on, where that was not one of ours by name.

    Raises:
        CheckpointError: something is missing, damaged, of a newer format, or does not fit; says what.
    """
    folder = Path(folder)
    _recover(folder)
    config_file, weights_file = _inside(folder, "config.json"), _inside(folder, "model.safetensors")
    if not config_file.exists() and (near := sorted(folder.glob("*/config.json"))):
        raise CheckpointError(f"{folder}: holds no model itself; name the one in {near[0].parent}")
    data = read_json(config_file)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise CheckpointError(f"{config_file}: format {found!r}; this version of fullyconv reads format {FORMAT}")
    tables = data.get("classes", {})
    if not isinstance(tables, dict):
        raise CheckpointError(f"{config_file}: classes is {type(tables).__name__}, expected tables by head name")
    try:
        config = ModelConfig.parse(data.get("model"), source=str(config_file))
        classes = {head: Classes.parse(table, source=f"{config_file}: classes") for head, table in tables.items()}
        if backbone is None and _may_be_large(config) and weights_file.is_file():
            with torch.device("meta"):
                shapes = _shapes(build(config, weights=False))
            _refuse_misfit(shapes, read_shapes(weights_file), str(weights_file))
        model = build(config, weights=False, backbone=backbone, classes=classes)
    except CheckpointError:
        raise
    except FullyConvError as error:
        hint = "; if the backbone is a net of your own, pass it as backbone=" if "no backbone" in str(error) else ""
        place = "" if str(error).startswith(str(config_file)) else f"{config_file}: "
        raise CheckpointError(f"{place}{error}{hint}") from None
    tensors = read_weights(weights_file)
    metadata = read_metadata(weights_file)
    # Older folders name the digest of the whole file.
    expected = metadata.get("described_sha256") or metadata.get("config_sha256")
    found = _digest(data) if "described_sha256" in metadata else hashlib.sha256(config_file.read_bytes()).hexdigest()
    if expected is not None and expected != found:
        raise CheckpointError(
            f"{folder}: config.json is not the one that model.safetensors was written with; restore both from one save"
        )
    load_strictly(model, tensors, str(weights_file))
    return model.to(device).eval()


def provenance(folder: str | PathLike[str]) -> dict[str, Any]:
    """How a model came to be, as `save` was told; empty where nothing is known.

    Raises:
        CheckpointError: there is no model, or its config.json is damaged.
    """
    data = read_json(Path(folder) / "config.json")
    found = data.get("provenance", {}) if isinstance(data, dict) else {}
    return found if isinstance(found, dict) else {}


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Give every tensor of a model its value, and leave none over.

    Raises:
        CheckpointError: lists what is missing, unexpected and of another shape.
    """
    _refuse_misfit(_shapes(model), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, origin)
    model.load_state_dict(dict(tensors))


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _refuse_misfit(own: Shapes, found: Shapes, origin: str) -> None:
    missing = [name for name in own if name not in found]
    unexpected = [name for name in found if name not in own]
    reshaped = [name for name in own if name in found and own[name] != found[name]]
    if missing or unexpected or reshaped:
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        said = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in parts.items() if names)
        raise CheckpointError(
            f"{origin}: does not fit the model: {said}", missing=missing, unexpected=unexpected, reshaped=reshaped
        )


def _may_be_large(config: ModelConfig) -> bool:
    """Whether a few words of config.json can ask for more memory than there is: then shapes are compared first."""
    asked = 0
    for head in config.heads.values():
        asked += sum(9 * skip.context**2 + (skip.context or 1024) * head.classes for skip in head.skips)
        asked += head.classes**2 * 64 * [head.upsampling, head.last_upsampling].count("full")
    return asked > UNASKED or bool(config.streams) or config.backbone.startswith("timm/")


def _inside(folder: Path, name: str) -> Path:
    """A file of a model folder, which a stranger may have made: no link from it leads elsewhere."""
    path = folder / name
    try:
        leads = path.resolve()
    except (OSError, RuntimeError):  # a link to itself
        leads = Path()
    if path.is_symlink() and not leads.is_relative_to(folder.resolve()):
        raise CheckpointError(f"{path}: a link that leads out of the folder; put the file itself there")
    return path


def save_state(folder: str | PathLike[str], tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write what training needs to go on: tensors by name, and plain data, as one folder, whole or not at all."""

    def write(place: Path) -> None:
        write_weights(place / "state.safetensors", tensors, {"format": str(FORMAT)})
        (place / "state.json").write_text(json.dumps(state), encoding="utf-8")

    return write_folder(folder, write)


def load_state(folder: str | PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: nothing there, or damaged.
    """
    folder = Path(folder)
    _recover(folder)
    state = read_json(folder / "state.json")
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / 'state.json'}: holds {type(state).__name__}, expected an object")
    return read_weights(folder / "state.safetensors"), state


def write_folder(folder: str | PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let ``write`` fill a new folder, flush it to the disk, then put it in the place of ``folder``.

    A process that is killed in between leaves the old folder, at its place or as ``.NAME.previous``, from where
    `load` and `load_state` bring it back.

    Raises:
        CheckpointError: the disk is full, the place read-only or the like; the old folder stands.
    """
    folder = Path(folder)
    fresh, previous = _fresh(folder), _previous(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        write(fresh)
        for file in fresh.iterdir():
            flush(file)
        _recover(folder)
        if folder.exists():
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        fresh.rename(folder)
        flush(folder.parent)
        shutil.rmtree(previous, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(fresh, ignore_errors=True)
        with contextlib.suppress(OSError):
            _recover(folder)
        if isinstance(error, CheckpointError):
            raise CheckpointError(str(error).replace(str(fresh), str(folder))) from None
        if isinstance(error, OSError):
            raise CheckpointError(f"{folder}: cannot be written: {error.strerror or error}") from None
        raise
    return folder


def remove(folder: str | PathLike[str]) -> None:
    """Remove a folder that `write_folder` wrote; whoever is killed meanwhile leaves no half of it."""
    folder = Path(folder)
    going = _fresh(folder)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def tidy(folder: str | PathLike[str]) -> None:
    """Clear away what killed processes have left in here, where nobody else may be writing.

    A folder that was cut off between two renames is brought back; what was half written goes.
    """
    for left in Path(folder).glob(".*.previous"):
        whole = left.with_name(left.name[1:].removesuffix(".previous"))
        if whole.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(whole)
    for left in Path(folder).glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _digest(config: Mapping[str, Any]) -> str:
    """Of all but when it was written and by which command, so that equal models are equal files."""
    origin = config.get("provenance")
    kept = {k: v for k, v in origin.items() if k not in ("written_at", "command")} if isinstance(origin, dict) else None
    return hashlib.sha256(json.dumps({**config, "provenance": kept}, sort_keys=True).encode()).hexdigest()


def _fresh(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.tmp")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")


def _recover(folder: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    if not folder.exists() and _previous(folder).exists():
        _previous(folder).rename(folder)
