"""A model folder is whole or not there, and what is read back is what was written."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import fullyconv
from fullyconv import checkpoint, presets, weights
from fullyconv.building import build
from fullyconv.checkpoint import load, load_state, provenance, save, save_state, write_folder, write_json
from fullyconv.config import Classes
from fullyconv.errors import CheckpointError
from fullyconv.model import FCN
from fullyconv.weights import read_metadata, read_weights, write_weights


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
    with pytest.raises(CheckpointError, match=r"; if the backbone is a net of your own, pass it as backbone=$"):
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


@pytest.mark.parametrize("name", ["recipe.json", "thesis.txt", "last/model.safetensors", ".git/HEAD"])
def test_saving_into_a_folder_that_holds_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    save(tiny(), tmp_path / "m")
    (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / name).write_text("theirs")
    first = name.partition("/")[0]
    with pytest.raises(CheckpointError, match=f"m: holds {first}, which is no part of a model"):
        save(tiny(), tmp_path / "m")
    assert (tmp_path / "m" / name).read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_systems_leave_in_a_folder_is_no_reason_to_refuse_it_and_a_file_is(tmp_path: Path) -> None:
    save(tiny(), tmp_path / "m")
    for name in (".DS_Store", "._config.json", "desktop.ini", "Thumbs.db"):
        (tmp_path / "m" / name).write_text("")
    save(tiny(1), tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(CheckpointError, match="file: cannot be a model folder: Not a directory"):
        save(tiny(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "theirs"


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


# The format on disk


def test_config_json_says_what_the_model_is_who_wrote_it_and_when(tmp_path: Path) -> None:
    model, before = tiny(), datetime.now(UTC).replace(microsecond=0)
    folder = save(model, tmp_path / "m", provenance={"step": 7, "data": "Käse"})
    text = (folder / "config.json").read_text(encoding="utf-8")
    assert text.startswith('{\n "format": 1,\n')  # for people: a line a field, their own letters, a last line that ends
    assert "Käse" in text
    assert text.endswith("\n}\n")
    data = json.loads(text)
    assert list(data) == ["format", "written_by", "model", "classes", "provenance"]
    assert (data["format"], data["written_by"]) == (1, f"fullyconv {fullyconv.__version__}")
    assert data["model"]["backbone"] == "tinyvgg"
    assert [entry["name"] for entry in data["classes"]["out"]["entries"]] == ["a", "b", "c"]
    written = datetime.fromisoformat(data["provenance"].pop("written_at"))
    assert written.utcoffset() == timedelta(0)
    assert before <= written <= datetime.now(UTC)
    assert written.microsecond == 0
    assert data["provenance"] == {"step": 7, "data": "Käse"}


def test_the_weights_carry_the_hash_of_their_config_and_nothing_else(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "m", provenance={"step": 3, "command": "train"})
    config = json.loads((folder / "config.json").read_text())
    assert config["provenance"].keys() == {"written_at", "step", "command"}
    config["provenance"] = {"step": 3}  # not when, and not by which command
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    assert read_metadata(folder / "model.safetensors") == {"described_sha256": digest}
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def without_hash(folder: Path, **changes: Any) -> Path:
    """A model folder as other tools write it: weights that do not say of which config they are."""
    edit(folder, **changes)
    file = folder / "model.safetensors"
    write_weights(file, read_weights(file), {})
    return folder


def test_weights_that_do_not_say_of_which_config_they_are_are_taken(tmp_path: Path) -> None:
    model = tiny()
    again = load(without_hash(save(model, tmp_path / "m")))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert again.classes == model.classes


def test_a_config_without_tables_gives_a_model_without_names(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "m")
    data = json.loads((folder / "config.json").read_text())
    del data["classes"]
    (folder / "config.json").write_text(json.dumps(data))
    assert not load(without_hash(folder)).classes


def test_a_model_that_began_with_weights_of_others_loads_without_them(tmp_path: Path) -> None:
    model = tiny()
    assert model.config is not None
    elsewhere = str(tmp_path / "gone.safetensors")
    model.config = model.config.model_copy(update={"weights": elsewhere})
    again = load(save(model, tmp_path / "m"))
    assert again.config is not None
    assert again.config.weights == elsewhere


def test_a_model_is_put_where_it_is_wanted(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "m")
    assert {tensor.device.type for tensor in load(folder).state_dict().values()} == {"cpu"}
    assert {tensor.device.type for tensor in load(folder, device="meta").state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", r"m/config\.json: format 'list'; this version"),
        ("{}", r"m/config\.json: format None; this version"),
        ('{"format": 1, "model": {"backbone": 3}}', r"m/config\.json: "),
        ('{"format": 1, "classes": {"out": {"entries": 3}}, "model": MODEL}', r"m/config\.json: classes"),
        ('{"format": 1, "classes": "abc", "model": MODEL}', r"m/config\.json: classes is str, expected tables by head"),
    ],
)
def test_a_config_that_is_none_is_refused_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    folder = save(tiny(), tmp_path / "m")
    file = folder / "config.json"
    file.write_text(text.replace("MODEL", json.dumps(json.loads(file.read_text())["model"])))
    with pytest.raises(CheckpointError, match=said) as caught:
        load(folder)
    assert "backbone=" not in str(caught.value)  # that hint is for nets of one's own


def test_provenance_is_what_was_told_and_nothing_where_nothing_is_known(tmp_path: Path) -> None:
    folder = save(tiny(), tmp_path / "m", provenance={"step": 7})
    known = provenance(folder)
    assert set(known) == {"written_at", "step"}
    assert known["step"] == 7
    for text in ("{}", "[]", '{"provenance": 3}'):
        (folder / "config.json").write_text(text)
        assert provenance(folder) == {}
    with pytest.raises(CheckpointError, match="no such file"):
        provenance(tmp_path / "none")


def test_a_misfit_counts_what_is_missing_unexpected_and_reshaped_and_names_three_of_each() -> None:
    layer = nn.Linear(2, 3)
    tensors = {"bias": torch.zeros(4), **{f"x{i}": torch.zeros(1) for i in range(4)}}
    before = layer.bias.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_strictly(layer, tensors, "a.safetensors")
    assert str(caught.value) == (
        "a.safetensors: does not fit the model: 1 missing (weight); 4 unexpected (x0, x1, x2); "
        "1 of another shape (bias)"
    )
    assert caught.value.missing == ("weight",)
    assert caught.value.unexpected == ("x0", "x1", "x2", "x3")
    assert caught.value.reshaped == ("bias",)
    assert torch.equal(layer.bias, before)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"weight": (3, 2)}, "1 missing (bias)"),
        ({"weight": (3, 2), "bias": (3,), "more": (1,)}, "1 unexpected (more)"),
        ({"weight": (3, 2), "bias": (2,)}, "1 of another shape (bias)"),
    ],
)
def test_one_misfit_is_enough(sizes: dict[str, tuple[int, ...]], said: str) -> None:
    tensors = {name: torch.zeros(size) for name, size in sizes.items()}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_strictly(nn.Linear(2, 3), tensors, "a")
    assert str(caught.value) == f"a: does not fit the model: {said}"


def test_weights_of_another_model_are_refused_with_the_name_of_their_file(tmp_path: Path) -> None:
    folder = without_hash(save(tiny(), tmp_path / "m"))
    write_weights(folder / "model.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match=r"m/model\.safetensors: does not fit the model: \d+ missing"):
        load(folder)


# Folders, whole or not at all


def test_a_state_is_two_files_of_format_1(tmp_path: Path) -> None:
    folder = save_state(tmp_path / "s", {"a": torch.zeros(1)}, {"step": 7})
    assert sorted(file.name for file in folder.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((folder / "state.json").read_text(encoding="utf-8")) == {"step": 7}
    assert read_metadata(folder / "state.safetensors") == {"format": "1"}


def test_a_state_that_is_no_object_is_refused_and_one_that_was_cut_off_is_found(tmp_path: Path) -> None:
    folder = save_state(tmp_path / "s", {"a": torch.zeros(1)}, {"step": 7})
    folder.rename(tmp_path / ".s.previous")
    assert load_state(folder)[1] == {"step": 7}
    assert folder.exists()
    (folder / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"state\.json: holds list, expected an object"):
        load_state(folder)


def put(text: str) -> Any:
    return lambda place: (place / "file").write_text(text)


def test_a_folder_is_made_with_those_above_it_and_needs_none(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b" / "c"
    assert write_folder(place, put("one")) == place
    assert write_folder(str(place), put("two")) == place
    assert (place / "file").read_text() == "two"
    assert [p.name for p in place.parent.iterdir()] == ["c"]


def test_what_a_killed_process_of_the_same_number_left_is_not_taken_along(tmp_path: Path) -> None:
    left = tmp_path / f".m.{os.getpid()}.tmp"
    left.mkdir()
    (left / "half").write_text("half")
    seen: list[Path] = []

    def write(place: Path) -> None:
        seen.append(place)
        assert not list(place.iterdir())
        put("whole")(place)

    write_folder(tmp_path / "m", write)
    assert seen == [left]  # beside its place, hidden, and no other process's
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["file"]


def test_files_are_on_the_disk_before_their_folder_takes_its_name_and_that_is_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    place = tmp_path / "m"
    monkeypatch.setattr(checkpoint, "flush", lambda path: flushed.append((path.name, place.exists())))
    write_folder(place, put("one"))
    assert flushed == [("file", False), (tmp_path.name, True)]


def test_where_the_new_folder_cannot_take_its_name_the_old_one_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_folder(tmp_path / "m", put("old"))
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            assert (tmp_path / ".m.previous" / "file").read_text() == "old"
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match=r"m: cannot be written: .*Input/output error"):
        write_folder(place, put("new"))
    assert (place / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_the_first_error_is_told_even_where_the_old_folder_cannot_be_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_folder(tmp_path / "m", put("old"))
    rename = Path.rename
    errors = iter(["the new one", "the old one"])

    def fail(self: Path, target: Path) -> Path:
        if self == place:
            return rename(self, target)
        raise OSError(5, next(errors))

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match="the new one"):
        write_folder(place, put("new"))
    monkeypatch.undo()
    assert (tmp_path / ".m.previous" / "file").read_text() == "old"


def test_a_place_below_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/m: cannot be written: ") as caught:
        write_folder(tmp_path / "file" / "m", put("one"))
    assert "\n" not in str(caught.value)


def test_an_older_folder_that_was_left_beside_gives_way(tmp_path: Path) -> None:
    place = write_folder(tmp_path / "m", put("old"))
    (tmp_path / ".m.previous").mkdir()
    (tmp_path / ".m.previous" / "older").write_text("older")
    write_folder(place, put("new"))
    assert (place / "file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("error", "refused"), [(SafetensorError("No space left on device"), True), (KeyError("No space left"), False)]
)
def test_a_full_disk_as_safetensors_tells_it_is_told_and_a_mistake_of_ours_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, refused: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(CheckpointError if refused else KeyError, match="No space left") as caught:
        save(tiny(), tmp_path / "m")
    assert ("m/model.safetensors: cannot be written" in str(caught.value)) is refused
    assert not list(tmp_path.iterdir())


def test_a_folder_around_a_model_names_the_one_inside(tmp_path: Path) -> None:
    checkpoint.save(tiny(), tmp_path / "run/fcn8s/best")
    with pytest.raises(CheckpointError, match=r"fcn8s: holds no model itself; name the one in .*run/fcn8s/best$"):
        checkpoint.load(tmp_path / "run/fcn8s")
