"""The command line as a user meets it: exit codes, one-line errors, files written."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Run

import fullyconv
from fullyconv import cli, presets
from fullyconv.building import build
from fullyconv.commands.options import BACKBONE
from fullyconv.tiling import why_whole


def commands() -> list[str]:
    return [command.callback.__name__ for command in cli.app.registered_commands if command.callback]


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"fullyconv {command}" in out
    if command != "info":
        assert "Examples:" in out


def test_no_command_shows_the_commands(run: Run) -> None:
    _, out, err = run()
    assert all(command in out + err for command in commands())


def test_what_is_trained_by_default_is_exact_in_tiles() -> None:
    preset = presets.PRESETS[presets.finest(BACKBONE)]
    assert why_whole(build(preset(BACKBONE, 3, weights=None))) == ""


def test_the_version_is_said(run: Run) -> None:
    assert run("--version") == (0, f"fullyconv {fullyconv.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("predict",),
        ("predict", "m", "p", "--out", "o", "--strategy", "x"),
        ("train", "d", "--batch", "0"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


def test_an_error_of_the_user_is_one_line(run: Run, tmp_path: Path) -> None:
    code, out, err = run("predict", tmp_path / "none", __file__, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert err.startswith(f"fullyconv: error: {tmp_path}/none/config.json: no such file")
    assert err.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("fullyconv.explanation"), "explain", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["explain", "tinyvgg"])


def test_python_m_fullyconv_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fullyconv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fullyconv", fullyconv.__version__]


def test_a_study_refuses_a_file_that_it_could_not_write_before_it_begins(run: Run, tmp_path: Path) -> None:
    code, said, error = run("study", "timing", "--json", tmp_path)
    assert (code, said) == (2, "")
    assert f"{tmp_path}: is a folder; expected the name of a file" in error


def test_explain_tells_of_models_backbones_and_presets(run: Run, model: Path) -> None:
    for arguments in ((model,), ("tinyvgg",), ("fcn32s", "--backbone", "tinyvgg", "--classes", "4")):
        code, out, _ = run("explain", *arguments)
        assert code == 0
        assert "stride32" in out
    fields = json.loads(run("explain", model, "--json", "-")[1])
    assert fields["parameters"] > 0


def test_explain_of_an_unknown_name_says_what_is_near(run: Run) -> None:
    code, _, err = run("explain", "resnet81")
    assert code == 2
    assert "no model folder, backbone or preset 'resnet81'; did you mean 'resnet18'" in err


@pytest.mark.parametrize("option", [("--backbone", "resnet18"), ("--classes", "3"), ("--geometry", "same")])
def test_explain_takes_what_goes_with_a_preset_with_presets_only(run: Run, option: tuple[str, str]) -> None:
    code, out, err = run("explain", "tinyvgg", *option)
    assert (code, out) == (2, "")
    assert f"{option[0]}: goes with a preset (fcn32s, fcn16s, fcn8s, fcn4s, fcn2s" in err
    assert "and tinyvgg is none" in err


def test_info_names_versions_and_devices(run: Run) -> None:
    code, out, _ = run("info")
    assert code == 0
    assert f"fullyconv {fullyconv.__version__}" in out
    assert "cpu" in out


def test_three_commands_lead_from_a_labelled_folder_to_segmented_pictures(run: Run, data: Path, tmp_path: Path) -> None:
    options = "--backbone tinyvgg --weights none --steps 4 --batch 2 --workers 0 --device cpu"
    code, out, err = run("train", data, "--out", tmp_path / "run", *options.split())
    assert code == 0, err
    assert f"report:  {tmp_path}/run/report.html" in out
    code, out, _ = run("evaluate", tmp_path / "run", data, "--json", tmp_path / "scores.json", "--device", "cpu")
    assert code == 0
    assert "mean IU" in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["per_class"]) == {"sky", "road", "cat"}
    assert 0 <= scores["mean_iu"] <= 1
    code, out, _ = run("predict", tmp_path / "run", data / "images/val", "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert out.startswith("2 segmented")


def test_explain_gives_the_figures_of_table_1_as_json(run: Run) -> None:
    code, out, _ = run("explain", "fcn32s", "--backbone", "caffenet", "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert (round(found["parameters"] / 1e6), found["receptive_field"], found["stride"]) == (57, 355, 32)
    assert [(crop["kernel"], crop["crop"]) for crop in found["crops"]] == [(63, 18)]
    code, out, _ = run("explain", "fcn32s", "--backbone", "caffenet", "--geometry", "same", "--json", "-")
    assert json.loads(out)["geometry"] == "same"


def test_convert_refuses_what_is_no_weights_in_one_line(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "fcn8s.caffemodel"
    page.write_text("<html>404</html>")
    code, _, err = run("convert", page, "--as", "voc-fcn8s", tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert str(page) in err
    assert not (tmp_path / "out").exists()
    code, _, err = run("convert", page, "--as", "voc-fcn8", tmp_path / "out")
    assert code == 2
    assert "did you mean 'voc-fcn8s" in err
