"""``fullyconv tune`` measures every engine in a process of its own, and says what each one's labels are worth."""

from __future__ import annotations

from pathlib import Path

import pytest
from exported import lively, picture
from PIL import Image

from fullyconv import checkpoint, engines
from fullyconv.errors import ConfigError
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
