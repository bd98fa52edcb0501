"""A model folder is whole or not there, and what is read back is what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fullyconv import checkpoint, presets
from fullyconv.building import build
from fullyconv.checkpoint import load, load_state, save, save_state, write_folder, write_json
from fullyconv.config import Classes
from fullyconv.errors import CheckpointError
from fullyconv.model import FCN


def tiny(seed: int = 0, classes: int = 3) -> FCN:
    torch.manual_seed(seed)
    names = Classes.of(*"abcdefgh"[:classes])
    model = build(presets.fcn16s("tinyvgg", classes, weights=None), classes={"out": names}).eval()
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.normal_()
    return model


@pytest.fixture
def picture() -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, 50, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_loaded_model_gives_the_same_logits_bit_for_bit(tmp_path: Path, picture: torch.Tensor) -> None:
    model = tiny()
    again = load(save(model, tmp_path / "m"))
    assert not again.training
    assert torch.equal(again(picture)["out"], model(picture)["out"])
    assert again.classes == model.classes
    assert again.config == model.config


def test_saving_what_was_loaded_gives_the_same_files(tmp_path: Path) -> None:
    save(tiny(), tmp_path / "a", provenance={"written_at": "then"})
    save(load(tmp_path / "a"), tmp_path / "b", provenance={"written_at": "then"})
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_others_may_read_what_is_saved(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "m")
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_a_model_of_an_own_backbone_loads_with_it(tmp_path: Path, picture: torch.Tensor) -> None:
    def net() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())

    config = presets.fcn4s(net(), 2, weights=None)
    model = build(config, backbone=net()).eval()
    save(model, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m", backbone=net())(picture)["out"], model(picture)["out"])
    with pytest.raises(CheckpointError, match="pass it as backbone="):
        load(tmp_path / "m")


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 2}, "format 2; this version of fullyconv reads format 1"),
        ({"model": {"backbone": "vgg61", "heads": {"out": {"classes": 2, "skips": [{"tap": "fc7"}]}}}}, "vgg16"),
        ({"model": None}, "config.json"),
        ({"classes": []}, "classes is list"),
        ({"provenance": {"edited": True}}, "not the one that model.safetensors was written with"),
    ],
)
def test_a_config_that_was_changed_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = save(tiny(), tmp_path / "m")
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    folder = save(tiny(), tmp_path / "m")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load(folder)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match="no such file; expected a folder that fullyconv wrote"):
            load(folder)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    one, other = save(tiny(), tmp_path / "a"), save(tiny(classes=5), tmp_path / "b")
    (one / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    (one / "config.json").write_bytes((one / "config.json").read_bytes())
    with pytest.raises(CheckpointError):
        load(one)
    with pytest.raises(CheckpointError, match=r"of another shape \(heads\.out\.score") as caught:
        checkpoint.load_strictly(tiny(), tiny(classes=5).state_dict(), "x")
    assert len(caught.value.reshaped) == 4


def test_a_failed_save_leaves_the_old_model_and_no_litter(tmp_path: Path, picture: torch.Tensor) -> None:
    folder = save(tiny(0), tmp_path / "m")
    before = load(folder)(picture)["out"]

    def fail(place: Path) -> None:
        (place / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        write_folder(folder, fail)
    assert torch.equal(load(folder)(picture)["out"], before)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_replacement_cut_off_between_its_renames_is_undone(tmp_path: Path, picture: torch.Tensor) -> None:
    folder = save(tiny(0), tmp_path / "m")
    before = load(folder)(picture)["out"]
    folder.rename(tmp_path / ".m.previous")
    assert torch.equal(load(folder)(picture)["out"], before)


def test_saving_over_a_model_replaces_it(tmp_path: Path, picture: torch.Tensor) -> None:
    save(tiny(0), tmp_path / "m")
    other = tiny(1)
    save(other, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(picture)["out"], other(picture)["out"])
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_state_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "scalar": torch.tensor(1.5, dtype=torch.float64)}
    save_state(tmp_path / "s", tensors, {"step": 7, "best": 0.1 + 0.2})
    again, state = load_state(tmp_path / "s")
    assert state == {"step": 7, "best": 0.1 + 0.2}
    assert all(torch.equal(again[name], tensors[name]) and again[name].dtype == tensors[name].dtype for name in tensors)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"x": "ü"})
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert json.loads(path.read_text(encoding="utf-8")) == {"x": "ü"}
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_json(tmp_path / "none" / "a.json", {})


def test_a_model_without_a_config_cannot_be_saved(tmp_path: Path) -> None:
    model = tiny()
    model.config = None
    with pytest.raises(CheckpointError, match=r"not made by fullyconv\.build"):
        save(model, tmp_path / "m")
