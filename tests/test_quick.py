"""One picture from a shell: no torch, and the bytes that the plain way gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from exported import picture, tuned_folder
from PIL import Image

from fullyconv import Predictor, engines, native
from fullyconv.errors import CheckpointError
from fullyconv.quick import MOST_PICTURES, open_quick

RUN = """
import sys
from fullyconv.cli import main
try:
    main(sys.argv[1:])
except SystemExit as done:
    assert not done.code, done.code
heavy = sorted({name.split(".")[0] for name in sys.modules} & {"torch", "torchvision", "timm", "matplotlib"})
print("LOADED", *heavy)
"""


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    if not native.available():
        pytest.skip("the native kernel was not built")
    return tuned_folder(tmp_path_factory.mktemp("tuned") / "model", request.param)


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_predict_imports_no_torch_and_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    sources = tmp_path / "pictures"
    sources.mkdir()
    for i, (height, width) in enumerate(((61, 97), (128, 64), (1, 1))):
        Image.fromarray(picture(height, width, i)).save(sources / f"{i}.png")
    out = tmp_path / "out"
    assert run("predict", folder, sources, "--out", out, "--overlay") == "LOADED"
    plain = Predictor.load(folder)
    for path in sources.iterdir():
        for head in ("out", "more"):
            want = plain(path).save(tmp_path / "want.png", head)
            assert (out / f"{path.stem}.{head}.png").read_bytes() == want.read_bytes()
    results = json.loads((out / "results.json").read_text())
    assert (results["done"], results["device"]) == (3, "cpu")


def test_what_it_cannot_do_goes_the_plain_way(folder: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(40, 50)).save(tmp_path / "a.png")
    assert "torch" in run("predict", folder, tmp_path / "a.png", "--out", tmp_path / "out", "--strategy", "tiled")


def test_it_declines(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(1025, 1024)).save(tmp_path / "large.png")
    Image.fromarray(picture(40, 50)).save(tmp_path / "small.png")
    small = tmp_path / "small.png"
    assert open_quick(folder, [small]) is not None
    assert open_quick(folder, [small, tmp_path / "large.png"]) is None
    assert open_quick(folder, [small] * (MOST_PICTURES + 1)) is None
    assert open_quick(folder, [small], engine="torch") is None
    assert open_quick(folder, [small], device="cuda") is None
    assert open_quick(folder, [small], precision="bf16") is None
    assert open_quick(tmp_path, [small]) is None
    monkeypatch.setattr(engines, "machine", lambda: {"processor": "another"})
    assert open_quick(folder, [small]) is None


def test_a_picture_that_cannot_be_read_is_reported(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    quick = open_quick(folder, [tmp_path / "bad.png"])
    assert quick is not None
    failed: list[str] = []
    assert not [*quick.map([tmp_path / "bad.png"], on_error=lambda path, _: failed.append(Path(str(path)).name))]
    assert failed == ["bad.png"]


def test_a_damaged_record_is_an_error_and_not_a_slow_start(folder: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / engines.FOLDER / "tuned.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tuned\.json"):
        open_quick(copy, [])
