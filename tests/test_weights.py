"""Files of tensors are read without running what is in them, and a wrong one is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fullyconv.backbones import TinyVGG, backbone
from fullyconv.config import INPUTS
from fullyconv.errors import CheckpointError
from fullyconv.weights import read_metadata, read_weights, write_weights


def test_safetensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    shared = torch.randn(4)
    write_weights(tmp_path / "w.safetensors", {"a": shared, "b": shared, "c": torch.randn(2, 3).T}, {"k": "v"})
    again = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(again["a"], shared)
    assert torch.equal(again["b"], shared)
    assert again["c"].shape == (3, 2)
    assert read_metadata(tmp_path / "w.safetensors") == {"k": "v"}


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_forms_in_which_training_scripts_leave_state_dicts_are_read(tmp_path: Path, wrap: Any, prefix: str) -> None:
    torch.save(wrap({prefix + "w": torch.ones(2)}), tmp_path / "w.pth")
    assert list(read_weights(tmp_path / "w.pth")) == ["w"]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("echo this must not run > /dev/null",)


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"w": Evil()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.bin"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 50])
def test_a_file_of_something_else_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_an_unknown_suffix_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "none.pth")
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"\.safetensors or \.pth"):
        read_weights(tmp_path / "w.h5")


def test_a_state_dict_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="without tensors"):
        read_weights(tmp_path / "w.pth")


def test_a_classifier_of_other_classes_still_gives_its_trunk(tmp_path: Path) -> None:
    classifier = TinyVGG(classes=77)
    write_weights(tmp_path / "w.safetensors", classifier.state_dict(), {})
    trunk = backbone("tinyvgg", weights=str(tmp_path / "w.safetensors"), input=INPUTS["unit"])
    assert torch.equal(
        trunk.net.get_parameter("classifier.0.weight").flatten(), classifier.classifier[0].weight.flatten()
    )


def test_weights_of_another_net_are_refused_with_names(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", {"stem.weight": torch.zeros(3)}, {})
    with pytest.raises(
        CheckpointError, match=r"fits 0 of the backbone's \d+ tensors; missing features.0.weight"
    ) as caught:
        backbone("tinyvgg", weights=str(tmp_path / "w.safetensors"))
    assert "stem.weight" in str(caught.value)
    assert caught.value.unexpected == ("stem.weight",)
