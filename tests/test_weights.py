"""Files of tensors: what is read, and what is refused before it can do harm."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from test_caffe import Wire, blob, layer
from torch import nn

from fullyconv.errors import CheckpointError
from fullyconv.weights import read_caffemodel, read_metadata, read_weights, write_weights

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.5, -1.0])}


def same(read: dict[str, torch.Tensor]) -> bool:
    return set(read) == set(TENSORS) and all(torch.equal(read[k], v) for k, v in TENSORS.items())


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_found_where_training_scripts_leave_it(
    tmp_path: Path, name: str, key: str | None, prefix: str
) -> None:
    state = {prefix + k: v for k, v in TENSORS.items()}
    torch.save(state if key is None else {key: state, "epoch": 7, "args": "x"}, tmp_path / name)
    assert same(read_weights(tmp_path / name))


def test_what_is_written_is_read_again_with_its_metadata(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", TENSORS, {"format": "1"})
    assert same(read_weights(tmp_path / "w.safetensors"))
    assert read_metadata(tmp_path / "w.safetensors") == {"format": "1"}


def test_shared_and_strided_tensors_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    write_weights(tmp_path / "w.safetensors", {"whole": base, "turned": base.T, "part": base[1:]}, {})
    read = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(read["turned"], base.T)
    assert torch.equal(read["part"], base[1:])


def test_only_tensors_that_share_memory_are_copied(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    write_weights(tmp_path / "w.safetensors", {"a": whole, "b": whole, "c": whole[2:]}, {})
    read = read_weights(tmp_path / "w.safetensors")
    whole += 1
    assert read["a"].tolist() == read["b"].tolist() == [0, 1, 2, 3, 4, 5]
    assert read["c"].tolist() == [2, 3, 4, 5]


OLD = Wire(shape="legacy")


def test_a_caffemodel_is_read_in_pytorchs_shapes(tmp_path: Path) -> None:
    four = np.arange(4, dtype=np.float32)
    (tmp_path / "net.caffemodel").write_bytes(
        layer("conv", "", [blob(four.reshape(1, 1, 2, 2)), blob(four[:1], OLD)], old=4)
        + layer("fc", "", [blob(four.reshape(1, 4), OLD), blob(four[:1], OLD)], old=14)
        + layer("prelu", "PReLU", [blob(four, OLD)])
        + layer("norm", "BatchNorm", [blob(four), blob(four), blob(four[:1])])
        + layer("double", "InnerProduct", [blob(four.reshape(2, 2).astype(np.float64))])
    )
    read = read_weights(tmp_path / "net.caffemodel")
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == {
        "conv.weight": (1, 1, 2, 2),
        "conv.bias": (1,),
        "fc.weight": (1, 4),
        "fc.bias": (1,),
        "prelu.weight": (4,),
        "norm.weight": (4,),
        "norm.bias": (4,),
        "norm.2": (1,),
        "double.weight": (2, 2),
    }
    assert read["double.weight"].dtype == torch.float64
    assert all(torch.equal(t.flatten().float(), torch.arange(float(t.numel()))) for t in read.values())


def test_layers_of_a_classifier_get_the_names_of_our_modules(tmp_path: Path) -> None:
    one = [blob(np.ones((1, 1, 1, 1), np.float32)), blob(np.ones(1, np.float32))]
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "score_fr"]
    (tmp_path / "net.caffemodel").write_bytes(b"".join(layer(name, "Convolution", one) for name in names))
    assert list(read_weights(tmp_path / "net.caffemodel"))[:2] == ["conv1.weight", "conv1.bias"]
    vgg = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)] + ["fc6", "fc7", "score"]
    (tmp_path / "vgg.caffemodel").write_bytes(b"".join(layer(name, "Convolution", one) for name in vgg))
    read = list(read_weights(tmp_path / "vgg.caffemodel"))
    assert read[0] == "features.0.weight"
    assert read[24:] == [
        f"{n}.{k}" for n in ("features.28", "classifier.0", "classifier.3", "score") for k in ("weight", "bias")
    ]
    assert next(iter(read_caffemodel(tmp_path / "vgg.caffemodel"))) == "conv1_1.weight"


def test_two_layers_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = layer("a", "Bias", [blob(np.ones(1, np.float32))]) * 2
    (tmp_path / "net.caffemodel").write_bytes(twice)
    with pytest.raises(CheckpointError, match="two layers are named 'a'; expected one with weights"):
        read_weights(tmp_path / "net.caffemodel")


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")
def test_a_written_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_weights(tmp_path / "w.safetensors", TENSORS, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o644


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS, "hook": Evil(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors, and reading the rest could run code") as caught:
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)


def test_a_whole_pickled_net_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="save the state_dict alone"):
        read_weights(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("keep", [0, 5, 60, -20])
def test_a_truncated_file_is_refused_with_its_path(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    torch.save(TENSORS, path) if path.suffix == ".pth" else write_weights(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{name}: (not a (whole|file)|holds)") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("w.pth", {"epoch": 3}, "holds dict without tensors; expected a state dict"),
        ("w.pth", [torch.ones(2)], "holds list without tensors; expected a state dict"),
        ("w.h5", b"x", "cannot tell what it holds; expected a name ending in .safetensors, .pth or .caffemodel"),
        ("w.safetensors", b"\xff" * 20, "not a whole .safetensors file"),
        ("w.pth", b"not a pickle", "not a file of PyTorch weights|holds more than tensors"),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, name: str, data: object, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data) if isinstance(data, bytes) else torch.save(data, path)
    with pytest.raises(CheckpointError, match=message):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.pth: no such file; expected weights \(.safetensors, .pth or "):
        read_weights(tmp_path / "nowhere.pth")


@pytest.mark.parametrize("content", [b"", b"\x10", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x03\0\0\0\0\0\0\0{{{"])
def test_a_damaged_header_has_no_metadata(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a whole \.safetensors file"):
        read_metadata(tmp_path / "w.safetensors")


def test_a_pipe_in_the_place_of_weights_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"w.safetensors: not a regular file; expected weights"):
        read_weights(tmp_path / "w.safetensors")
