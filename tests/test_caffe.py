"""Caffe's files: read back what a small encoder writes, refuse what is damaged, and give Caffe's numbers."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from fullyconv.caffe import CLASSIFIERS, classifier_of, read_layers
from fullyconv.errors import CheckpointError
from fullyconv.surgery import convolutionalize
from fullyconv.weights import read_caffemodel

# A little encoder of protobuf's wire format


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes | int | float, wire: int | None = None) -> bytes:
    """A varint, a message or string, or a number of 4 (wire type 5) or 8 bytes (1)."""
    if isinstance(payload, int):
        return varint(number << 3) + varint(payload)
    if isinstance(payload, bytes):
        return varint(number << 3 | 2) + varint(len(payload)) + payload
    assert wire is not None
    return varint(number << 3 | wire) + struct.pack("<f" if wire == 5 else "<d", payload)


def mixed(parts: Iterable[bytes], noise: Sequence[bytes]) -> bytes:
    """Fields with unknown ones in between."""
    return b"".join(part + extra for part, extra in zip(parts, itertools.cycle(noise or [b""]), strict=False))


Encoding = Literal["packed", "unpacked", "pieces"]


class Wire(NamedTuple):
    """How a blob is written."""

    encoding: Encoding = "packed"
    shape: Literal["packed", "unpacked", "legacy"] = "packed"
    noise: tuple[bytes, ...] = ()


PLAIN = Wire()


def blob(array: npt.NDArray[Any], how: Wire = PLAIN) -> bytes:
    if how.shape == "legacy":
        padded = (1,) * (4 - array.ndim) + array.shape
        shape = b"".join(field(i, n) for i, n in enumerate(padded, start=1))
    elif how.shape == "packed":
        shape = field(7, field(1, b"".join(varint(n) for n in array.shape)))
    else:
        shape = field(7, b"".join(field(1, n) for n in array.shape))
    number, wire = (5, 5) if array.dtype == np.float32 else (8, 1)
    if array.dtype == np.float16:
        parts = [field(10, 2), field(12, array.astype("<f2").tobytes())]
    elif how.encoding == "packed":
        parts = [field(number, array.tobytes())]
    elif how.encoding == "unpacked":
        parts = [b"".join(field(number, float(x), wire) for x in array.ravel())]
    else:
        half = array.size // 2
        flat = array.ravel()
        parts = [field(number, flat[:half].tobytes()), *(field(number, float(x), wire) for x in flat[half:])]
    return mixed([shape, *parts], how.noise)


def layer(
    name: str, kind: str, blobs: Iterable[bytes] = (), *, old: int | None = None, noise: Sequence[bytes] = ()
) -> bytes:
    """A ``layer`` with its type as a word, or, with the type's number, one of the old ``layers``."""
    if old is None:
        parts = [field(1, name.encode()), field(2, kind.encode()), *(field(7, b) for b in blobs)]
        return field(100, mixed(parts, noise))
    parts = [field(4, name.encode()), field(5, old), *(field(6, b) for b in blobs)]
    return field(2, mixed(parts, noise))


OLD_TYPES = {"Convolution": 4, "InnerProduct": 14, "LRN": 15, "ReLU": 18, "Deconvolution": 39, "SoftmaxWithLoss": 21}
NET = field(1, b"a net")


def write(folder: Path, content: bytes) -> Path:
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return path


def small() -> bytes:
    weights = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    return (
        NET
        + layer("data", "Input")
        + layer("conv", "Convolution", [blob(weights), blob(np.array([1, 2], np.float32))])
        + layer("fc", "InnerProduct", [blob(np.ones((2, 2)), Wire("unpacked", "legacy"))], old=14)
    )


# Theorem: what is written is read

unknown = st.sampled_from([field(15, 3), field(19, b"junk \x2d\x2d\x2d\x2d"), field(20, 1.5, 5), field(21, 2.5, 1)])
noise = st.lists(unknown, max_size=3).map(tuple)
shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)
hows = st.builds(
    Wire, st.sampled_from(["packed", "unpacked", "pieces"]), st.sampled_from(["packed", "unpacked", "legacy"]), noise
)


@st.composite
def arrays(draw: st.DrawFn) -> npt.NDArray[Any]:
    shape, dtype = draw(shapes), draw(st.sampled_from([np.float32, np.float64, np.float16]))
    return np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape).astype(dtype)


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, str, list[npt.NDArray[Any]], bytes]:
    name, kind = draw(st.text(max_size=9)), draw(st.sampled_from(sorted(OLD_TYPES)))
    given = draw(st.lists(st.tuples(arrays(), hows), max_size=3))
    old = OLD_TYPES[kind] if draw(st.booleans()) else None
    written = layer(name, kind, [blob(a, how) for a, how in given], old=old, noise=draw(noise))
    read = [a.reshape((1,) * (4 - a.ndim) + a.shape) if how.shape == "legacy" else a for a, how in given]
    return name, kind, read, written


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(net=st.lists(layers(), min_size=1, max_size=4), extra=noise)
def test_what_is_written_is_read(
    tmp_path: Path, net: list[tuple[str, str, list[npt.NDArray[Any]], bytes]], extra: tuple[bytes, ...]
) -> None:
    read = list(read_layers(write(tmp_path, mixed([NET, *(written for *_, written in net)], extra))))
    assert [(name, kind) for name, kind, _ in read] == [(name, kind) for name, kind, *_ in net]
    for (_, _, blobs), (_, _, expected, _) in zip(read, net, strict=True):
        assert [b.dtype for b in blobs] == [e.dtype for e in expected]
        assert all(b.shape == e.shape and np.array_equal(b, e) for b, e in zip(blobs, expected, strict=True))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 700), gap=st.integers(1, 700), wire=st.sampled_from([5, 1]))
@example(count=64, gap=64, wire=5)
@example(count=65, gap=1, wire=1)
def test_records_that_are_not_packed_may_be_interrupted_anywhere(
    tmp_path: Path, count: int, gap: int, wire: int
) -> None:
    number, dtype = (5, np.float32) if wire == 5 else (8, np.float64)
    numbers = np.random.default_rng(count).normal(size=count + gap).astype(dtype)
    records = [field(number, float(x), wire) for x in numbers]
    content = field(7, field(1, varint(len(numbers))))
    content += b"".join(records[:count]) + field(15, 0x2D) + b"".join(records[count:])
    ((_, _, (read,)),) = read_layers(write(tmp_path, layer("x", "Bias", [content])))
    assert read.dtype == dtype
    assert np.array_equal(read, numbers)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 16383, 16384])
@pytest.mark.parametrize("shape", ["packed", "unpacked", "legacy"])
def test_lengths_of_one_two_and_three_bytes_are_read(
    tmp_path: Path, count: int, shape: Literal["packed", "unpacked", "legacy"]
) -> None:
    numbers = np.arange(count, dtype=np.float32)
    name = "n" * min(count, 1024)
    ((read_name, _, (read,)),) = read_layers(write(tmp_path, layer(name, "Bias", [blob(numbers, Wire(shape=shape))])))
    assert read_name == name
    assert np.array_equal(read.reshape(-1), numbers)


def test_a_blob_without_a_shape_is_a_row(tmp_path: Path) -> None:
    ((_, _, (read,)),) = read_layers(write(tmp_path, layer("x", "Bias", [field(5, b"\0\0\x80\x3f" * 3)])))
    assert np.array_equal(read, np.ones(3, np.float32))


@pytest.mark.parametrize(("kind", "code"), sorted(OLD_TYPES.items()))
def test_old_types_are_given_as_words(tmp_path: Path, kind: str, code: int) -> None:
    assert list(read_layers(write(tmp_path, layer("x", "", old=code)))) == [("x", kind, [])]


def test_arrays_are_the_callers_own(tmp_path: Path) -> None:
    path = write(tmp_path, small())
    before = path.read_bytes()
    for _, _, blobs in read_layers(path):
        for array in blobs:
            assert array.flags.writeable
            assert array.flags.aligned
            array[...] = 0
    assert path.read_bytes() == before


def test_layers_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    reading = read_layers(write(tmp_path, small()[:-1]))
    assert next(reading)[0] == "data"
    assert next(reading)[0] == "conv"
    with pytest.raises(CheckpointError, match="bytes where"):
        next(reading)


# What is damaged, or another sort of file


def refusal(path: Path) -> str:
    """What is said about a file; "" where it is read."""
    try:
        list(read_layers(path))
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_file_cut_off_at_any_byte_is_refused_or_has_fewer_layers(tmp_path: Path) -> None:
    whole = small()
    said = {length: refusal(write(tmp_path, whole[:length])) for length in range(len(whole))}
    read = [length for length, message in said.items() if not message]
    assert [len(list(read_layers(write(tmp_path, whole[:length])))) for length in read] == [1, 2]
    for message in filter(None, said.values()):
        assert "net.caffemodel: no" in message
        assert "byte" in message
        assert "\n" not in message


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, len(small()) - 1), byte=st.integers(0, 255))
def test_a_file_with_a_wrong_byte_is_read_or_refused(tmp_path: Path, at: int, byte: int) -> None:
    content = bytearray(small())
    content[at] = byte
    assert "\n" not in refusal(write(tmp_path, bytes(content)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(tmp_path: Path, content: bytes) -> None:
    assert "\n" not in refusal(write(tmp_path, content))


ONES = field(5, b"\0\0\x80\x3f" * 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "nothing in it"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "an HDF5 file"),
        (b"PK\x03\x04" + b"\0" * 99, r"a zip archive, as PyTorch writes \.pth files"),
        (b"\x80\x02}q\0.", "a Python pickle"),
        (b"\x1f\x8b\x08\0", "a gzip archive; unpack it"),
        (struct.pack("<Q", 60) + b'{"a": 1}', r"a \.safetensors file"),
        (b"\n <!DOCTYPE html><html>", "a web page or XML; download the file itself"),
        (b'name: "net"\nlayer {\n  name: "x"\n}\n', r"text, as a \.prototxt"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (NET, "no layer in the whole file"),
        (b"\0\x01\x02", "a field with the number 0"),
        (b"\xa3\x06", "a field of wire type 3, which Caffe never writes"),
        (b"\xff" * 30, "a number that does not end in 10 bytes"),
        (field(100, 7), "a layer of wire type 0, expected a message"),
        (varint(100 << 3 | 2) + varint(1 << 62) + b"x", "a field of 4611686018427387904 bytes where 1 are left"),
        (layer("a", "b", [field(7, field(1, b"\x02\x02")) + ONES]), "shape 2x2 with 3 numbers"),
        (layer("a", "b", [field(7, field(1, varint(-3))) + ONES]), "shape -3 with 3 numbers"),
        (layer("a", "b", [field(7, field(1, varint(2**62) * 9)) + ONES]), "with 3 numbers"),
        (layer("a", "b", [field(7, field(1, b"\x01" * 40)) + ONES]), "more than 32 axes in layer 'a'"),
        (layer("a", "b", [field(5, b"12345")]), "5 bytes of 4-byte numbers"),
        (layer("a", "b", [field(8, 1.0, 5)]), "numbers of wire type 5 in layer 'a'"),
        (layer("a", "b", [field(10, 3) + field(12, b"1234")]), "raw data of type 3, expected 0, 1 or 2"),
        (layer("a", "b", [field(10, 2) + field(12, b"123")]), "3 bytes of 2-byte numbers"),
        (layer("a", "b", [(field(5, 1.0, 5) + field(15, 1)) * 2000]), "in more than 1024 pieces"),
        (layer("a", "b", [b""] * 2000), "more than 64 blobs in layer 'a'"),
        (layer("a", "b") * 20000, "more than 16384 layers"),
        (layer("a", "b", [b""] * 60) * 600, "more than 32768 blobs in the file"),
        (field(15, 0) * 300_000, "more than 262144 fields"),
        (layer("n" * 1025, "b"), "a name or type of 1025 bytes"),
        (field(2, field(1, field(1, b"conv1"))), r"a layer of the oldest format \(V0\)"),
    ],
)
def test_what_is_no_caffemodel_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        list(read_layers(write(tmp_path, content)))
    assert "at byte" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such file; expected a \.caffemodel"):
        next(read_layers(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="cannot be read"):
        next(read_layers(tmp_path))


@pytest.mark.parametrize(
    "start",
    [field(1, b"n" * 60), field(1, b"a net") + layer("n" * 119, "", old=18), field(1, b"\n" * 10)],
    ids=["<", '{"', "newlines"],
)
def test_lengths_that_read_as_another_sort_of_file_mislead_nobody(tmp_path: Path, start: bytes) -> None:
    assert list(read_layers(write(tmp_path, start + layer("a", "ReLU"))))[-1] == ("a", "ReLU", [])


# Names


def test_the_classifier_is_told_by_all_its_layers() -> None:
    for name, modules in CLASSIFIERS.items():
        assert classifier_of(list(modules)) == name
        assert classifier_of(list(modules)[:-1]) == name
        assert classifier_of(list(modules)[1:]) != name
    assert classifier_of([]) is None


# Real files, against a forward pass of our own

Maps = npt.NDArray[np.float64]


def conv(x: Maps, weight: npt.NDArray[Any], bias: npt.NDArray[Any]) -> Maps:
    windows = sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    out: Maps = np.einsum("chwij,ocij->ohw", windows, weight.astype(np.float64))
    return out + bias.astype(np.float64)[:, None, None]


def prelu(x: Maps, slope: npt.NDArray[Any]) -> Maps:
    return np.where(x > 0, x, slope.astype(np.float64).reshape(-1, *[1] * (x.ndim - 1)) * x)


def max_pool(x: Maps, kernel: int, stride: int) -> Maps:
    """Caffe's: as many cells as start inside, the last ones cut off at the border."""
    rows, columns = (-(-(n - kernel) // stride) + 1 for n in x.shape[1:])
    out = np.empty((len(x), rows, columns))
    for i, j in np.ndindex(rows, columns):
        out[:, i, j] = x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel].max((1, 2))
    return out


Net = dict[str, list[npt.NDArray[Any]]]


def caffe_det1(net: Net, picture: Maps) -> Maps:
    x = max_pool(prelu(conv(picture, *net["conv1"]), *net["prelu1"]), 2, 2)
    x = prelu(conv(x, *net["conv2"]), *net["prelu2"])
    x = prelu(conv(x, *net["conv3"]), *net["prelu3"])
    return np.concatenate([conv(x, *net[name]) for name in ("score", "bbox_pred", "landmark_pred")])


def caffe_det2(net: Net, picture: Maps) -> Maps:
    x = max_pool(prelu(conv(picture, *net["conv1"]), *net["prelu1"]), 3, 2)
    x = max_pool(prelu(conv(x, *net["conv2"]), *net["prelu2"]), 3, 2)
    x = prelu(conv(x, *net["conv3"]), *net["prelu3"])
    weight, bias = (b.astype(np.float64) for b in net["fc"])
    vector = prelu(weight @ x.reshape(-1) + bias, *net["prelu4"])
    return np.concatenate(
        [net[n][0].astype(np.float64) @ vector + net[n][1] for n in ("score", "bbox_pred", "landmark_pred")]
    )


class Det1(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 10, 3), nn.PReLU(10), nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.score, self.bbox_pred, self.landmark_pred = (nn.Conv2d(32, n, 1) for n in (2, 4, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu2(self.conv2(self.pool1(self.prelu1(self.conv1(x)))))
        x = self.prelu3(self.conv3(x))
        return torch.cat([self.score(x), self.bbox_pred(x), self.landmark_pred(x)], 1)


class Det2(nn.Module):
    """A classifier of 24x24 pictures: its fc sees the 3x3 cells of conv3, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 28, 3), nn.PReLU(28), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(28, 48, 3), nn.PReLU(48), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.fc, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.score, self.bbox_pred, self.landmark_pred = (nn.Linear(128, n) for n in (2, 4, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool2(self.prelu2(self.conv2(self.pool1(self.prelu1(self.conv1(x))))))
        x = torch.flatten(self.prelu3(self.conv3(x)), 1)
        x = self.prelu4(self.fc(x))
        return torch.cat([self.score(x), self.bbox_pred(x), self.landmark_pred(x)], 1)


def load(net: nn.Module, path: Path) -> tuple[nn.Module, Net]:
    net.load_state_dict(read_caffemodel(path))
    return net.double().eval(), {name: blobs for name, _, blobs in read_layers(path)}


def picture(height: int, width: int) -> Maps:
    return np.random.default_rng(height * width).uniform(-1, 1, (3, height, width))


def run(net: nn.Module, image: Maps) -> Maps:
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(image[None]))[0].numpy())


def close(ours: Maps, theirs: Maps) -> bool:
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, rtol=1e-10, atol=1e-12 * abs(theirs).max()))


DET = {
    "det1": {"conv1": (10, 3, 3, 3), "conv2": (16, 10, 3, 3), "conv3": (32, 16, 3, 3)}
    | {"score": (2, 32, 1, 1), "bbox_pred": (4, 32, 1, 1), "landmark_pred": (10, 32, 1, 1)}
    | {"prelu1": (10,), "prelu2": (16,), "prelu3": (32,)},
    "det2": {"conv1": (28, 3, 3, 3), "conv2": (48, 28, 3, 3), "conv3": (64, 48, 2, 2), "fc": (128, 576)}
    | {"score": (2, 128), "bbox_pred": (4, 128), "landmark_pred": (10, 128)}
    | {"prelu1": (28,), "prelu2": (48,), "prelu3": (64,), "prelu4": (128,)},
}


@pytest.mark.parametrize("name", sorted(DET))
def test_files_that_caffe_wrote_have_the_layers_they_should(shared: Path, name: str) -> None:
    kinds = {"conv": "Convolution", "prel": "PReLU"} | ({"fc": "InnerProduct"} if name == "det2" else {})
    found = {}
    for layer_name, kind, blobs in read_layers(shared / "caffe" / f"{name}.caffemodel"):
        if blobs:
            found[layer_name] = blobs[0].shape
            assert kind == kinds.get(layer_name[:4], "InnerProduct" if name == "det2" else "Convolution")
            assert all(b.dtype == np.float32 and np.isfinite(b).all() and b.std() > 0 for b in blobs)
            assert [b.shape for b in blobs[1:]] == ([] if kind == "PReLU" else [blobs[0].shape[:1]])
    assert found == DET[name]


@pytest.mark.parametrize("size", [(12, 12), (13, 16), (30, 41)])
def test_det1_gives_caffes_numbers(shared: Path, size: tuple[int, int]) -> None:
    ours, net = load(Det1(), shared / "caffe" / "det1.caffemodel")
    assert close(run(ours, picture(*size)), caffe_det1(net, picture(*size)))


def test_det2_gives_caffes_numbers_as_a_classifier_and_as_a_convolution(shared: Path) -> None:
    ours, net = load(Det2(), shared / "caffe" / "det2.caffemodel")
    dense = convolutionalize(ours, image_size=24)
    expected = caffe_det2(net, picture(24, 24))
    assert close(run(ours, picture(24, 24)), expected)
    assert close(run(dense, picture(24, 24)), expected[:, None, None])


def test_det2_as_a_convolution_equals_caffe_in_every_window(shared: Path) -> None:
    ours, net = load(Det2(), shared / "caffe" / "det2.caffemodel")
    image = picture(37, 45)
    dense = run(convolutionalize(ours, image_size=24), image)
    assert dense.shape == (16, 4, 6)
    # At 24 pixels Caffe's first pool is cut off at the border; what a cell inside sees is 25 pixels.
    for i, j in np.ndindex(dense.shape[1:]):
        window = image[:, 4 * i : 4 * i + 25, 4 * j : 4 * j + 25]
        assert close(dense[:, i, j], caffe_det2(net, window))
