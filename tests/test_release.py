"""The release asset: what is in it, and that the same run gives the same bytes, without a path of this machine."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import fullyconv
from fullyconv import training
from fullyconv.config import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack", ROOT / "release" / "pack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("somewhere") / "run"
    stage = {
        "name": "tiny",
        "model": fullyconv.presets.fcn8s("tinyvgg", 11, weights=None),
        "data": {"name": "scenes", "root": "count=8 size=64x64", "workers": 0},
        "fit": {"steps": 1, "batch": 2, "seed": 7, "device": "cpu"},
    }
    training.train(Recipe.parse({"stages": [stage]}), out=folder)
    return folder


def test_the_same_run_gives_the_same_bytes(pack: ModuleType, run: Path, tmp_path: Path) -> None:
    archives = [tmp_path / at / "asset.zip" for at in "ab"]
    for archive in archives:
        pack.write_archive(archive, pack.contents(run, {str(run): "RUN"}))
    assert archives[0].read_bytes() == archives[1].read_bytes()


def test_an_archive_holds_a_model_with_its_card_and_sums(
    pack: ModuleType, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "count=8 size=64x64"
    monkeypatch.setattr(sys, "argv", ["pack.py", str(run), "--out", str(tmp_path), "--data", data])
    assert pack.main() == 0
    (archive,) = tmp_path.glob("*.zip")
    assert f"{archive.stat().st_size / 1e6:.1f} MB" in capsys.readouterr().out
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    folder = tmp_path / archive.stem
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md", "SHA256SUMS"}
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    model = fullyconv.load(folder)
    whole = fullyconv.load(run)
    assert all((model.state_dict()[name] == value).all() for name, value in whole.state_dict().items())
    card = (folder / "README.md").read_text()
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert "seed 7, 1 steps" in card
    assert "predicts at stride 8, on tinyvgg" in card
    assert "1 steps on " in card
    for name in ("config.json", "README.md"):
        text = (folder / name).read_text()
        assert str(run.parent) not in text
        assert data not in text


def test_what_is_no_run_is_refused_in_a_line(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pack.py", str(tmp_path / "none"), "--out", str(tmp_path)])
    assert pack.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_model_says_what_is_missing_before_it_installs_anything() -> None:
    # Make that runs these tests tells the one that they run to name its folders.
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run(["make", "model"], cwd=ROOT, capture_output=True, text=True, timeout=60, env=free)
    assert result.returncode == 2
    assert result.stderr.startswith("CAMVID is not given; expected make model CAMVID=FOLDER")
    assert result.stdout.strip() == ""
