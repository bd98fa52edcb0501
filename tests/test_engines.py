"""Every engine gives the labels of torch in float32; a choice holds only for the model and machine it was made on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import lively, picture, tuned_folder

from fullyconv import Predictor, checkpoint, engines
from fullyconv.engines import Measured, Tuned
from fullyconv.errors import CheckpointError, ConfigError
from fullyconv.runners import Driven, runner

ENGINES = ("onnxruntime", "openvino")


def needs(engine: str) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("onnxruntime")
    return tuned_folder(tmp_path_factory.mktemp("tuned") / "model", "onnxruntime")


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_give_the_labels_of_torch(folder: Path, engine: str) -> None:
    needs(engine)
    plain = Predictor.load(folder, engine="torch", precision="32")
    other = Predictor.load(folder, engine=engine, precision="32")
    for height, width in ((61, 97), (128, 64), (1, 1)):
        pixels = picture(height, width)
        for head in ("out", "more"):
            same = plain(pixels).labels[head] == other(pixels).labels[head]
            assert same.mean() >= 0.999


def test_tiles_go_through_an_engine(folder: Path) -> None:
    from functools import partial

    from fullyconv import tiled

    pixels = picture(150, 170)
    whole = Predictor.load(folder, engine="onnxruntime")(pixels)
    tiles = Predictor.load(folder, engine="onnxruntime", strategy=partial(tiled, tile=64))(pixels)
    assert (whole.labels["out"] == tiles.labels["out"]).mean() >= 0.999


def test_a_model_without_a_folder_is_exported_for_the_occasion() -> None:
    needs("onnxruntime")
    run = runner(lively("tinyvgg"), "onnxruntime")
    assert isinstance(run, Driven)
    assert run.score_maps(torch.zeros(1, 3, 40, 50))["out"].shape[:2] == (1, 5)


def test_auto_takes_what_was_tuned(folder: Path) -> None:
    run = Predictor.load(folder).runner
    assert isinstance(run, Driven)
    assert (run.engine.name, run.engine.precision) == ("onnxruntime", "32")


def test_a_choice_made_on_another_machine_is_not_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.read_tuned(folder) is not None
    monkeypatch.setattr(engines, "machine", lambda: {"processor": "another"})
    assert engines.read_tuned(folder) is None
    assert not isinstance(runner(checkpoint.load(folder), "auto", folder=folder), Driven)


def test_a_choice_made_for_another_save_is_not_taken(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"written_at": "2', '"written_at": "3'))
    assert engines.read_tuned(copy) is None


def test_saving_a_model_again_drops_what_was_tuned(tmp_path: Path) -> None:
    model = lively("tinyvgg")
    place = checkpoint.save(model, tmp_path / "model") / engines.FOLDER
    place.mkdir()
    checkpoint.save(model, tmp_path / "model")
    assert not place.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, engine: str) -> None:
    needs(engine)
    (tmp_path / "trunk.onnx").write_bytes(b"nonsense" * 9)
    (tmp_path / "trunk.json").write_text(json.dumps({"format": 1, "heads": {"out": {}}}))
    with pytest.raises(CheckpointError, match=f"trunk.onnx: {engine} cannot run it") as caught:
        engines.open_engine(tmp_path / "trunk.onnx", engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 7}', '{"format": 1}'])
def test_a_damaged_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "trunk.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"trunk\.json: .*fullyconv tune"):
        engines.TrunkInfo.read(tmp_path / "trunk.json")


def test_engines_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="expected torch, openvino or onnxruntime"):
        runner(lively("tinyvgg"), "tensorrt")
    monkeypatch.setattr(engines, "installed", lambda _: False)
    with pytest.raises(ConfigError, match="openvino is not installed; pip install"):
        runner(lively("tinyvgg"), "openvino")


def test_onnxruntime_has_no_bf16(folder: Path) -> None:
    with pytest.raises(ConfigError, match="onnxruntime computes in float32"):
        Predictor.load(folder, engine="onnxruntime", precision="bf16")


ROWS = (
    Measured("openvino", "int8", 1.0, 0.99, "int8.xml"),
    Measured("openvino", "bf16", 2.0, 0.994, "trunk.onnx"),
    Measured("torch", "bf16", 3.0, 0.996),
    Measured("torch", "32", 4.0, 1.0),
)


@pytest.mark.parametrize(
    ("loss", "precision", "row"),
    [(None, "auto", 2), (None, "32", 3), (0.006, "auto", 1), (0.01, "auto", 0), (0.0, "auto", 3), (0.01, "bf16", 1)],
)
def test_a_loss_beyond_what_was_allowed_is_never_chosen(loss: float | None, precision: str, row: int) -> None:
    tuned = Tuned("", {}, (1, 1), "", loss, ROWS)
    assert tuned.best(precision) == ROWS[row]


def test_labels_are_indices_of_the_table(folder: Path) -> None:
    found = Predictor.load(folder)(picture(40, 50))
    assert found.labels["more"].max() < 3
    assert found.labels["more"].dtype == np.uint8
