"""``fullyconv tune`` measures every engine in a process of its own, and says what each one's labels are worth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exported import lively, picture
from PIL import Image
from typer.testing import CliRunner

from fullyconv import Predictor, checkpoint, cli, engines, tuning
from fullyconv.engines import Measured, Tuned
from fullyconv.errors import ConfigError
from fullyconv.exporters import openvino, trunk_info
from fullyconv.model import FCN
from fullyconv.tuning import measure, tune


@pytest.mark.slow
def test_all_engines_are_measured_and_the_result_is_remembered(tmp_path: Path) -> None:
    folder = checkpoint.save(lively("tinyvgg"), tmp_path / "model")
    (tmp_path / "mine").mkdir()
    Image.fromarray(picture(70, 90)).save(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "b.png").write_bytes(b"no picture")
    said: list[str] = []
    tuned = measure(folder, size=(48, 64), pictures=tmp_path / "mine", rounds=2, on_progress=said.append)
    names = [(row.engine, row.precision) for row in tuned.measured]
    assert ("torch", "32") in names
    for engine in ("openvino", "onnxruntime"):
        assert ((engine, "32") in names) == engines.installed(engine)
    assert all(row.agreement >= 0.999 for row in tuned.measured if row.precision == "32")
    assert all(row.milliseconds > 0 for row in tuned.measured)
    assert tuned.pictures.startswith("1 of ")
    assert engines.read_tuned(folder) == tuned
    assert said[-1] == "measuring"


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"size": (0, 5)}, "size"),
        ({"allow_loss": 2.0}, "allow_loss"),
        ({"int8": True}, "int8"),
        ({"pictures": "nowhere"}, "pictures"),
    ],
)
def test_settings_without_a_meaning_are_refused(tmp_path: Path, options: dict[str, object], where: str) -> None:
    folder = checkpoint.save(lively("tinyvgg"), tmp_path / "model")
    with pytest.raises(ConfigError) as caught:
        measure(folder, **options)  # type: ignore[arg-type]
    assert caught.value.where == where


def test_tune_says_what_it_did() -> None:
    import subprocess
    import sys

    # In a process of its own, whose allocator it may change.
    code = "from fullyconv.tuning import tune; print(tune())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("allocator: ")
    assert callable(tune)


# --- int8 -------------------------------------------------------------------------------------------------------------


def with_int8(share: float, allow_loss: float | None) -> Tuned:
    """int8 the fastest by far, with labels that agree on this share of the pixels."""
    rows = (Measured("openvino", "int8", 1.0, share, "int8.xml"), Measured("openvino", "32", 2.0, 1.0, "trunk.onnx"))
    return Tuned("", {}, (64, 64), "8 of photos", allow_loss, rows)


@pytest.mark.parametrize("missing", ["openvino", "nncf"])
def test_int8_without_its_packages_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(engines, "installed", lambda name: name != missing)
    with pytest.raises(ConfigError, match=rf"int8: {missing} is not installed; pip install 'fullyconv\[int8\]'"):
        measure(tmp_path / "no model", pictures=tmp_path, int8=True)


@pytest.mark.parametrize(("pictures", "choose", "judge"), [(1, {0}, {0}), (2, {0}, {1}), (5, {0, 2, 4}, {1, 3})])
def test_int8_is_judged_by_other_pictures_than_chose_its_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: int, choose: set[int], judge: set[int]
) -> None:
    folder = checkpoint.save(lively("tinyvgg"), tmp_path / "model")
    (tmp_path / "mine").mkdir()
    for index in range(pictures):
        Image.fromarray(picture(16, 200 * (index + 1))).save(tmp_path / "mine" / f"{index}.png")
    chosen: set[int] = set()
    judged: set[int] = set()

    def write(model: FCN, path: Path, *, identity: str) -> None:
        path.parent.mkdir()
        path.with_suffix(".json").write_text(json.dumps(trunk_info(model, identity).json()))

    def quantise(_: Path, path: Path, framed: list[np.ndarray]) -> None:
        chosen.update(image.shape[3] // 200 - 1 for image in framed)

    def race(*arguments: object) -> list[Measured]:
        shown = arguments[2]
        assert isinstance(shown, list)
        judged.update(image.shape[1] // 200 - 1 for image in shown)
        return []

    monkeypatch.setattr(engines, "installed", lambda _: True)
    monkeypatch.setattr(tuning, "export", write)
    monkeypatch.setattr(openvino, "quantise", quantise)
    monkeypatch.setattr(tuning, "_race", race)
    tuned = measure(folder, pictures=tmp_path / "mine", int8=True)
    assert (chosen, judged) == (choose, judge)
    others = "which chose int8's ranges" if pictures == 1 else f"int8's ranges chosen by {len(choose)} others"
    assert tuned.pictures == f"{len(judge)} of {tmp_path / 'mine'}, {others}"


@pytest.mark.parametrize(
    ("share", "allow_loss", "said", "taken"),
    [
        (0.97, None, "labels 3.00% of the pixels otherwise than float32; not taken", "32"),
        (0.97, 0.02, "labels 3.00% of the pixels otherwise than float32; not taken", "32"),
        (0.97, 0.04, "labels 3.00% of the pixels otherwise than float32; taken all the same (--allow-loss)", "int8"),
        (0.999, None, "", "32"),
    ],
)
def test_the_command_is_never_silent_about_a_loss(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    allow_loss: float | None,
    said: str,
    taken: str,
) -> None:
    monkeypatch.setattr(tuning, "measure", lambda *_, **__: with_int8(share, allow_loss))
    checkpoint.save(lively("tinyvgg"), tmp_path / "model")
    result = CliRunner().invoke(cli.app, ["tune", str(tmp_path / "model")])
    assert result.exit_code == 0
    assert said in " ".join(result.stderr.split())
    assert ("otherwise" in result.stderr) == bool(said)
    assert f"{share:.3%}" in result.stdout
    chosen = next(line for line in result.stdout.splitlines() if "<- taken" in line)
    assert chosen.split()[:2] == ["openvino", taken]


@pytest.mark.parametrize(("allow_loss", "file"), [(None, "trunk.onnx"), (0.01, "trunk.onnx"), (0.03, "int8.xml")])
def test_predict_takes_int8_only_where_its_loss_was_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allow_loss: float | None, file: str
) -> None:
    model = lively("tinyvgg")
    folder = checkpoint.save(model, tmp_path / "model")
    identity, place = engines.identity(folder), folder / engines.FOLDER
    place.mkdir()
    for name in ("trunk.onnx", "int8.xml"):
        (place / name).touch()
        (place / name).with_suffix(".json").write_text(json.dumps(trunk_info(model, identity).json()))
    tuned = replace(with_int8(0.98, allow_loss), model=identity, machine=engines.machine())
    (place / "tuned.json").write_text(json.dumps(tuned.json()))
    opened: list[str] = []
    monkeypatch.setattr(engines, "open_engine", lambda path, *_, **__: opened.append(path.name))
    Predictor.load(folder)
    assert opened == [file]


@pytest.mark.slow
def test_int8_is_quantised_measured_and_left_until_it_is_allowed(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="the extra int8 is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    folder = checkpoint.save(lively("tinyvgg"), tmp_path / "model")
    (tmp_path / "mine").mkdir()
    for seed in range(4):
        Image.fromarray(picture(70, 90, seed)).save(tmp_path / "mine" / f"{seed}.png")
    tuned = measure(folder, size=(48, 64), pictures=tmp_path / "mine", int8=True, rounds=1)
    (row,) = [row for row in tuned.measured if row.precision == "int8"]
    assert (row.engine, row.file) == ("openvino", "int8.xml")
    assert 0.7 < row.agreement < 1  # noise, and random weights
    run = engines.open_engine(folder / engines.FOLDER / row.file, "openvino")
    assert run.precision == "int8"
    place = folder / engines.FOLDER
    assert (place / "int8.bin").stat().st_size < 0.4 * (place / "trunk.onnx").stat().st_size
    first = replace(row, milliseconds=0.0)
    tuned = replace(tuned, measured=(first, *tuned.measured))
    assert tuned.best() != first
    assert replace(tuned, allow_loss=1 - row.agreement + 1e-9).best() == first
