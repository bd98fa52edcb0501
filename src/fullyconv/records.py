"""JSON files of ours: read with one clear error, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

from fullyconv.documents import parse_json, read_text
from fullyconv.errors import CheckpointError


def read_json(path: str | PathLike[str]) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: missing, damaged, or beyond the limits of `fullyconv.documents`.
    """
    path = Path(path)
    try:
        return parse_json(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a folder that fullyconv wrote") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def write_json(path: str | PathLike[str], data: Any) -> Path:
    """Write a JSON file, whole or not at all.

    Raises:
        CheckpointError: the disk is full, the place read-only or the like.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
            # Bytes of a file name that are no text come as lone surrogates, whose escapes JSON understands.
            beside.write_text(text, encoding="utf-8", errors="backslashreplace")
            flush(beside)
            beside.replace(path)
        except OSError:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
    return path


def digest_of(model: str | PathLike[str]) -> str:
    """SHA-256 of the weights in the folder of a model, in hexadecimal; "" where there are none to read."""
    try:
        with (Path(model) / "model.safetensors").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


@contextmanager
def writing(path: str | PathLike[str]) -> Iterator[None]:
    """What goes wrong in here went wrong in writing ``path``.

    Raises:
        CheckpointError: the disk is full, the place read-only or the like.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}") from None


def refuse_unwritable(path: Path) -> None:
    """Find out that a file could not be written before it is computed what would be.

    Raises:
        CheckpointError: it is a folder, its own folder is not there, or the rights for it are missing.
    """
    folder = path.parent
    if path.is_dir():
        found = "is a folder; expected the name of a file"
    elif not folder.is_dir():
        found = f"cannot be written: no folder {folder}"
    elif not os.access(path if path.exists() else folder, os.W_OK):
        found = "cannot be written: no permission"
    else:
        return
    raise CheckpointError(f"{path}: {found}")


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
