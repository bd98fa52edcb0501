"""Reads `.caffemodel` files, without Caffe and without a protobuf library.

A `.caffemodel` is a ``NetParameter`` in protobuf's wire format: a list of fields, each a tag (number and wire type) and
a payload. Of its fields only layers are read, of theirs only name, type and blobs; everything else is stepped over by
its length. Field numbers are those of Caffe's ``caffe.proto``; ``raw_data`` is NVIDIA's addition.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Collection, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fullyconv.errors import CheckpointError

Blob = npt.NDArray[np.floating[Any]]
"""One array of a layer's parameters: float32, float64 or float16."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Format(NamedTuple):
    """Field numbers of a layer."""

    name: int
    type: int
    blobs: int


_LAYERS = {100: _Format(name=1, type=2, blobs=7), 2: _Format(name=4, type=5, blobs=6)}
"""Of ``NetParameter``: ``layer``, and the older ``layers``, whose types are numbers."""

# fmt: off
_V1_TYPES = (
    "None", "Accuracy", "BNLL", "Concat", "Convolution", "Data", "Dropout", "EuclideanLoss", "Flatten", "HDF5Data",
    "HDF5Output", "Im2col", "ImageData", "InfogainLoss", "InnerProduct", "LRN", "MultinomialLogisticLoss", "Pooling",
    "ReLU", "Sigmoid", "Softmax", "SoftmaxWithLoss", "Split", "TanH", "WindowData", "Eltwise", "Power",
    "SigmoidCrossEntropyLoss", "HingeLoss", "MemoryData", "ArgMax", "Threshold", "DummyData", "Slice", "MVN", "AbsVal",
    "Silence", "ContrastiveLoss", "Exp", "Deconvolution",
)
# fmt: on

_SHAPE, _DATA, _DOUBLE_DATA, _RAW_TYPE, _RAW_DATA = 7, 5, 8, 10, 12
_LEGACY_SHAPE = (1, 2, 3, 4)
_DOUBLE, _FLOAT, _HALF = 0, 1, 2
_DTYPES = {_DOUBLE: "<f8", _FLOAT: "<f4", _HALF: "<f2"}

# Caffe itself allows no more axes. The others keep a file of nothing but tiny records from filling the memory, or from
# being read for hours: a net of 1001 layers has 5000 of Caffe's, with 100,000 fields and 15,000 blobs of arrays.
_MOST_AXES, _MOST_BLOBS, _MOST_PIECES = 32, 64, 1024
_MOST_LAYERS, _MOST_ARRAYS, _MOST_FIELDS, _MOST_NAME = 16384, 32768, 262144, 1024

_FOREIGN = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file; save the net as binaryproto, or convert it with Caffe",
    b"PK\x03\x04": "a zip archive, as PyTorch writes .pth files; name it .pth, or unpack it",
    b"\x80\x02": "a Python pickle, as old PyTorch writes .pth files; name it .pth",
    b"\x1f\x8b": "a gzip archive; unpack it",
}

_BLOCK = 1 << 22
"""Numbers that are copied out of a file at a time."""


def _vgg(*blocks: int) -> dict[str, str]:
    """Modules of torchvision's VGG by layer: blocks of so many convolutions, a pool behind each."""
    modules, index = {}, 0
    for block, convolutions in enumerate(blocks, start=1):
        for i in range(convolutions):
            modules[f"conv{block}_{i + 1}"] = f"features.{index}"
            index += 2
        index += 1
    return modules | {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}


def _googlenet() -> dict[str, str]:
    branches = {
        "1x1": "branch1x1",
        "3x3_reduce": "reduce3x3",
        "3x3": "branch3x3",
        "5x5_reduce": "reduce5x5",
        "5x5": "branch5x5",
        "pool_proj": "project",
    }
    blocks = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    return {
        "conv1/7x7_s2": "conv1",
        "conv2/3x3_reduce": "conv2_reduce",
        "conv2/3x3": "conv2",
        **{f"inception_{b}/{layer}": f"inception_{b}.{module}" for b in blocks for layer, module in branches.items()},
        "loss3/classifier": "fc",
    }


CLASSIFIERS: Mapping[str, Mapping[str, str]] = {
    "vgg16": _vgg(2, 2, 3, 3, 3),
    "vgg19": _vgg(2, 2, 4, 4, 4),
    "caffenet": {name: name for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")},
    "bvlc_googlenet": _googlenet(),
}
"""Of the classifiers that were published for Caffe: our module for each layer, the one that scores classes last."""


def classifier_of(layers: Collection[str]) -> str | None:
    """The entry of `CLASSIFIERS` all of whose layers, but for the scores, are among these; None: no one.

    Example:
        >>> classifier_of(["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "score_fr"])
        'caffenet'
    """
    found = [name for name, modules in CLASSIFIERS.items() if set(list(modules)[:-1]) <= set(layers)]
    return max(found, key=lambda name: len(CLASSIFIERS[name]), default=None)


def read_layers(path: str | PathLike[str]) -> Iterator[tuple[str, str, list[Blob]]]:
    """Layers of a `.caffemodel`: name, type and blobs, in the order of the file, those without blobs too.

    Types are Caffe's present words ("Convolution", "InnerProduct", ...), whatever the file's format. Blobs are float32,
    or float64 and float16 where the file holds such numbers, in the file's shapes: older files pad them to four axes, a
    bias to (1, 1, 1, N) and an InnerProduct's weights to (1, 1, N, M). A layer is read when it is asked for, so that
    a file of any size takes the memory of one layer.

    Raises:
        CheckpointError: no such file, another sort of file, or one that is cut off or damaged; says at which byte.
            Layers before that byte are given first.

    Example:
        >>> import tempfile
        >>> layer = bytes([10, 2]) + b"up" + bytes([18, 5]) + b"Split"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "net.caffemodel")
        ...     _ = file.write_bytes(bytes([0xA2, 6, len(layer)]) + layer)
        ...     list(read_layers(file))
        [('up', 'Split', [])]
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise CheckpointError(f"{path}: not a regular file; expected a .caffemodel")  # a pipe would make us wait
    try:
        with path.open("rb") as file:
            _refuse_foreign(path, file.read(512))
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a .caffemodel") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    yield from _Reader(path, pages).layers()


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Say what a file is that somebody might take for a .caffemodel."""
    found = next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), "")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        found = "nothing in it (0 bytes); download it again"
    elif start[5:10] == b'\0\0\0{"':
        found = "a .safetensors file; name it so"
    elif text[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        found = "a web page or XML; download the file itself"
    elif start.isascii() and all(byte in b"\t\n\r" or byte >= 32 for byte in start):
        found = "text, as a .prototxt or a Git LFS pointer; give the binary .caffemodel, which holds the weights"
    if found:
        raise CheckpointError(f"{path}: no .caffemodel: at byte 0 it is {found}")


class _Reader:
    """One file's bytes, and where in them what is."""

    def __init__(self, path: Path, pages: mmap.mmap) -> None:
        self.path = path
        self.pages = pages
        self.bytes = np.frombuffer(pages, dtype=np.uint8)
        self.fields = self.arrays = 0

    def layers(self) -> Iterator[tuple[str, str, list[Blob]]]:
        at, end, found = 0, len(self.pages), 0
        while at < end:
            number, wire, start, at = self.field(at, end)
            if number in _LAYERS:
                self.expect(wire == _BYTES, start, f"a layer of wire type {wire}, expected a message")
                self.expect(found < _MOST_LAYERS, start, f"more than {_MOST_LAYERS} layers")
                yield self.layer(start, at, _LAYERS[number])
                found += 1
        self.expect(found > 0, 0, "no layer in the whole file")

    def layer(self, start: int, end: int, format: _Format) -> tuple[str, str, list[Blob]]:
        name, kind, blobs, at = "", "", list[Blob](), start
        while at < end:
            number, wire, start, at = self.field(at, end)
            if number == format.name and wire == _BYTES:
                name = self.text(start, at)
            elif number == format.type and wire == _BYTES:
                kind = self.text(start, at)
            elif number == format.type and wire == _VARINT:
                value = self.varint(start, at)[0]
                kind = _V1_TYPES[value] if value < len(_V1_TYPES) else f"V1:{value}"
            elif number == format.blobs and wire == _BYTES:
                self.expect(len(blobs) < _MOST_BLOBS, start, f"more than {_MOST_BLOBS} blobs in layer {name!r}")
                self.arrays += 1
                self.expect(self.arrays <= _MOST_ARRAYS, start, f"more than {_MOST_ARRAYS} blobs in the file")
                blobs.append(self.blob(start, at, name))
            elif number == 1 and format is _LAYERS[2]:
                self.expect(False, start, "a layer of the oldest format (V0); upgrade the file with Caffe")
        return name, kind, blobs

    def text(self, start: int, end: int) -> str:
        self.expect(end - start <= _MOST_NAME, start, f"a name or type of {end - start} bytes")
        return self.pages[start:end].decode("utf-8", errors="replace")

    def blob(self, start: int, end: int, layer: str) -> Blob:
        first, at = start, start
        shape: list[int] | None = None
        legacy: dict[int, int] = {}
        raw_type = 0
        # By field: where its numbers lie, as (first byte, numbers, bytes from one to the next).
        pieces: dict[int, list[tuple[int, int, int]]] = {}
        while at < end:
            number, wire, start, at = self.field(at, end)
            if number in _LEGACY_SHAPE and wire == _VARINT:
                legacy[number] = self.signed(start, at)
            elif number == _RAW_TYPE and wire == _VARINT:
                raw_type = self.varint(start, at)[0]
            elif number == _SHAPE and wire == _BYTES:
                shape = [*(shape or []), *self.dims(start, at, layer)]
                self.expect(len(shape) <= _MOST_AXES, start, f"more than {_MOST_AXES} axes in layer {layer!r}")
            elif number in (_DATA, _DOUBLE_DATA) and wire in (_FIXED32, _FIXED64, _BYTES):
                size, unpacked = (4, _FIXED32) if number == _DATA else (8, _FIXED64)
                self.expect(wire in (unpacked, _BYTES), start, f"numbers of wire type {wire} in layer {layer!r}")
                if wire == _BYTES:
                    self.expect((at - start) % size == 0, start, f"{at - start} bytes of {size}-byte numbers")
                    piece = (start, (at - start) // size, size)
                else:
                    count = self.run(start, end, size, number << 3 | wire)
                    piece = (start, count, size + 1)
                    at = start + count * (size + 1) - 1
                self.add(pieces, number, piece, layer)
            elif number == _RAW_DATA and wire == _BYTES:
                self.add(pieces, number, (start, at - start, 1), layer)
        numbers = self.numbers(pieces, raw_type, first)
        if legacy:
            shape = [legacy.get(axis, 0) for axis in _LEGACY_SHAPE]
        if shape is None:
            shape = [len(numbers)]
        fits = min(shape, default=0) >= 0 and math.prod(shape) == len(numbers)
        said = "x".join(map(str, shape)) or "one number"
        self.expect(fits, first, f"layer {layer!r} has a blob of shape {said} with {len(numbers)} numbers")
        return numbers.reshape(shape)

    def add(
        self, pieces: dict[int, list[tuple[int, int, int]]], number: int, piece: tuple[int, int, int], layer: str
    ) -> None:
        pieces.setdefault(number, []).append(piece)
        count = len(pieces[number])
        self.expect(count <= _MOST_PIECES, piece[0], f"numbers of layer {layer!r} in more than {_MOST_PIECES} pieces")

    def numbers(self, pieces: Mapping[int, list[tuple[int, int, int]]], raw_type: int, at: int) -> Blob:
        """Copy numbers out of the file: raw ones where there are some, else double, else float."""
        field = next((field for field in (_RAW_DATA, _DOUBLE_DATA) if field in pieces), _DATA)
        code = {_DATA: _FLOAT, _DOUBLE_DATA: _DOUBLE, _RAW_DATA: raw_type}[field]
        self.expect(code in _DTYPES, at, f"raw data of type {code}, expected 0, 1 or 2 (double, float, half)")
        dtype = np.dtype(_DTYPES[code])
        size = 1 if field == _RAW_DATA else dtype.itemsize
        total = sum(count for _, count, _ in pieces.get(field, ())) * size
        self.expect(total % dtype.itemsize == 0, at, f"{total} bytes of {dtype.itemsize}-byte numbers")
        out = np.empty(total // dtype.itemsize, dtype)
        copied, into = 0, out.view(np.uint8)
        for start, count, step in pieces.get(field, ()):
            for first in range(0, count, _BLOCK):
                block = min(_BLOCK, count - first)
                # A row is a number and, where records are not packed, the tag before it.
                rows = self.bytes[start - step + size + first * step :][: block * step].reshape(block, step)
                into[copied : copied + block * size].reshape(block, size)[:] = rows[:, step - size :]
                copied += block * size
                if hasattr(mmap, "MADV_DONTNEED"):
                    # What was copied need not be held in memory a second time.
                    self.pages.madvise(mmap.MADV_DONTNEED)
        return out

    def run(self, start: int, end: int, size: int, tag: int) -> int:
        """How many records of one tag byte and one number follow one another, the first number at ``start``."""
        possible = (end - start + 1) // (size + 1)
        # Blocks that double: records with something else between them cost no more than what they are long.
        count, block = 1, 64
        while count < possible:
            block = min(2 * block, possible - count)
            tags = self.bytes[start + count * (size + 1) - 1 :][: block * (size + 1) : size + 1]
            other = np.flatnonzero(tags != tag)
            if len(other):
                return count + int(other[0])
            count += block
        return count

    def dims(self, start: int, end: int, layer: str) -> list[int]:
        """Axes of a ``BlobShape``, packed or not."""
        shape, at = list[int](), start
        while at < end:
            number, wire, start, at = self.field(at, end)
            if number != 1:
                continue
            self.expect(wire in (_VARINT, _BYTES), start, f"a shape of wire type {wire} in layer {layer!r}")
            while start < at:
                self.expect(len(shape) < _MOST_AXES, start, f"more than {_MOST_AXES} axes in layer {layer!r}")
                stop = self.varint(start, at)[1]
                shape.append(self.signed(start, stop))
                start = stop
        return shape

    def field(self, at: int, end: int) -> tuple[int, int, int, int]:
        """The field at a byte: its number, wire type, and the first byte of its payload and the one behind."""
        self.fields += 1
        self.expect(self.fields <= _MOST_FIELDS, at, f"more than {_MOST_FIELDS} fields")
        tag, start = self.varint(at, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            stop = self.varint(start, end)[1]
        elif wire == _BYTES:
            length, start = self.varint(start, end)
            stop = start + length
        else:
            self.expect(wire in (_FIXED32, _FIXED64), at, f"a field of wire type {wire}, which Caffe never writes")
            stop = start + (4 if wire == _FIXED32 else 8)
        self.expect(number > 0, at, "a field with the number 0")
        self.expect(stop <= end, at, f"a field of {stop - start} bytes where {end - start} are left")
        return number, wire, start, stop

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """An unsigned number in groups of 7 bits, and the byte behind it."""
        value = 0
        for i in range(min(10, end - at)):
            byte = self.pages[at + i]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                return value & (1 << 64) - 1, at + i + 1
        self.expect(False, at, f"a number that does not end in {min(10, end - at)} bytes")
        raise AssertionError

    def signed(self, at: int, end: int) -> int:
        value = self.varint(at, end)[0]
        return value - (1 << 64) if value >> 63 else value

    def expect(self, holds: bool, at: int, found: str) -> None:
        if not holds:
            raise CheckpointError(
                f"{self.path}: no whole .caffemodel: {found}, at byte {at} of {len(self.pages)}; download it again, or "
                "give the binary file that Caffe wrote"
            )
