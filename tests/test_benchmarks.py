"""The benchmarks: competitors take turns, one failure stops no other, and what was found is written down."""

from __future__ import annotations

import ast
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ("common", "ceiling", "growth", "loss", "run", "torchfcn", "training")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in NAMES}
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]


def noting(path: Path, name: str) -> Callable[[], Callable[[], str]]:
    """Makes a competitor that writes its name down at every call."""

    def call() -> str:
        with path.open("a") as file:
            file.write(name)
        return name

    return lambda: call


def test_competitors_take_turns(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    makers = {name: noting(notes, name) for name in "abc"}
    found = scripts["common"].take_turns(makers, threads=1, rounds=3, warm=2, send=True)
    assert notes.read_text() == "aabbcc" + 3 * "abc"
    assert {name: turns.sent for name, turns in found.items()} == {"a": "a", "b": "b", "c": "c"}
    assert all(len(turns.ms) == 3 for turns in found.values())


def test_time_and_memory_are_those_of_a_call(scripts: dict[str, ModuleType]) -> None:
    megabytes = 200

    def make() -> Callable[[], object]:
        return lambda: (bytearray(b"x") * (megabytes << 20), time.sleep(0.05))[1]

    turns = scripts["common"].take_turns({"": make}, threads=1, rounds=1)[""]
    assert megabytes - 20 < turns.peak_mb + 20
    assert turns.median_ms > 50


def test_a_competitor_that_dies_is_named(scripts: dict[str, ModuleType], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="broken: its process ended"):
        scripts["common"].take_turns({"broken": lambda: lambda: 1 / 0}, threads=1, rounds=1)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_the_losses_that_compete_have_one_gradient(scripts: dict[str, ModuleType]) -> None:
    loss = scripts["loss"]
    for kernel, gradients in (("fixed", 1), ("learned", 2)):
        plain, ours = (loss.make(name, (5, 2, 48, 64), kernel)() for name in ("plain", "dense"))
        assert len(plain) == gradients
        assert loss.apart(plain, ours) < loss.CLOSE


def test_the_plain_loop_learns_what_ours_does(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    training = scripts["training"]
    monkeypatch.setattr(training, "tune", lambda: "")  # it would hold for all tests
    first, *_ = training.make("fullyconv", "squeezenet1_1", (1, 64, 64))()
    # In train mode with dropout, so they agree as far as random nets do: near the loss of a guess, ln 11.
    assert training.make("plain", "squeezenet1_1", (1, 64, 64))() == pytest.approx(first, rel=0.05)


@pytest.mark.parametrize("size", [(33, 65), (64, 32)])
def test_torchfcn_gives_logits_for_every_pixel(scripts: dict[str, ModuleType], size: tuple[int, int]) -> None:
    with torch.device("meta"):
        net = scripts["torchfcn"].TorchFCN8s(7)
        assert net(torch.empty(1, 3, *size)).shape == (1, 7, *size)


def test_every_script_that_make_bench_runs_is_there_and_says_how(scripts: dict[str, ModuleType]) -> None:
    for script in scripts["run"].SCRIPTS:
        source = (FOLDER / f"{script.name}.py").read_text(encoding="utf-8")
        document = ast.get_docstring(ast.parse(source))
        assert document is not None
        assert document.splitlines()[0].endswith(("?", "."))
        assert f"python benchmarks/{script.name}.py" in document
        for option in (*script.options, *script.quick):
            assert not option.startswith("--") or f'"{option}"' in source, (script.name, option)


@pytest.fixture
def house(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The runner, over scripts of its own: the second fails, the third takes too long."""
    run = scripts["run"]
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    write = f"import json; open({str(results)!r} + '/%s.json', 'w').write(json.dumps({{'rates': {{'copy': 2.0}}}}))"
    bodies = {
        "ceiling": f"print('a  table')\n{write % 'ceiling'}",
        "tail": "raise SystemExit('no kernel')",
        "loss": "import time; print('half', flush=True); time.sleep(60)",
        "growth": write % "growth",
    }
    for name, body in bodies.items():
        (tmp_path / "benchmarks" / f"{name}.py").write_text(f'"""What does {name} cost?"""\n{body}\n')
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "HERE", tmp_path / "benchmarks")
    monkeypatch.setattr(run, "RESULTS", results)
    monkeypatch.setattr(run, "DOCS", tmp_path / "docs" / "performance.md")
    monkeypatch.setattr(run, "FIGURE", tmp_path / "docs" / "images" / "cost.png")
    monkeypatch.setattr(run, "SCRIPTS", tuple(run.Script(name, 5.5 if name == "loss" else 60) for name in bodies))
    return run


def test_a_script_that_fails_stops_no_other(
    house: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert house.main() == 1
    assert "failed: tail, loss" in capsys.readouterr().out
    found = json.loads((house.RESULTS / f"{house.slug()}.json").read_text())
    assert found["ceiling"]["found"] == found["growth"]["found"] == {"rates": {"copy": 2.0}}
    assert found["tail"]["failed"] == "no kernel"
    assert "more than" in found["loss"]["failed"]
    assert found["loss"]["table"] == ["half"]
    page = house.DOCS.read_text()
    for part in ("## What does loss cost?", "a  table", "copy 2 GB/s", "did not finish: no kernel"):
        assert part in page
    assert [path.name for path in house.RESULTS.iterdir()] == [f"{house.slug()}.json"]


def test_scripts_that_do_not_run_keep_what_they_found(house: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "ceiling"])
    assert house.main() == 0
    monkeypatch.setattr(sys, "argv", ["run.py", "growth"])
    assert house.main() == 0
    assert json.loads((house.RESULTS / f"{house.slug()}.json").read_text()).keys() == {"ceiling", "growth"}


def test_the_figure_shows_what_growth_found(house: ModuleType) -> None:
    ms = {"ours": 1.0, "plain": 2.0}
    rows = [{"side": side, "classes": 21, "ms": ms} for side in (256, 512)]
    house.draw({"growth": {"found": {"rows": rows}}})
    assert house.FIGURE.read_bytes().startswith(b"\x89PNG")
    assert house.FIGURE.stat().st_size < 100_000
