"""The benchmarks: competitors take turns, one failure stops no other, and what was found is written down."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from fullyconv import native
from fullyconv.cli import app
from fullyconv.datasets import dataset
from fullyconv.transforms import TrainTransform
from fullyconv.weights import read_weights

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ("common", "ceiling", "growth", "loss", "run", "torchfcn", "training")
NAMES += ("learning", "peers", "competitors", "accuracy")


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


@pytest.mark.skipif(sys.platform != "linux", reason="only there are competitors forked")
def test_competitors_end_when_whoever_gives_turns_is_killed(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    def referee() -> None:
        def make(name: str) -> Callable[[], object]:
            (tmp_path / name).write_text(str(os.getpid()))
            return lambda: time.sleep(0.05)

        makers = {name: lambda name=name: make(name) for name in "ab"}
        scripts["common"].take_turns(makers, threads=1, rounds=100_000)

    process = scripts["common"].context().Process(target=referee)
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "b").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.join()
    left = [int((tmp_path / name).read_text()) for name in "ab"]
    while (left := [pid for pid in left if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def _runs(pid: int) -> bool:
    """Whether there is such a process that is not merely waiting to be buried."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(("kernel", "gradients"), [("fixed", 1), ("learned", 2)])
def test_the_losses_that_compete_have_one_gradient(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, kernel: str, gradients: int
) -> None:
    loss = scripts["loss"]
    monkeypatch.setenv("FULLYCONV_NATIVE", "1")  # each sets its own, and it is as it was afterwards
    try:
        plain, *ours = (
            [part.copy() for part in loss.make(n, (5, 2, 48, 64), kernel)()] for n in loss.COMPETITORS[kernel]
        )
    finally:
        native.kernel.cache_clear()
    assert len(plain) == gradients
    for each in ours:
        assert loss.apart(plain, each) < loss.CLOSE


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


SIZE = (48, 64)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six pictures to learn from and three of val, of two classes: left and right."""
    folder = tmp_path_factory.mktemp("street")
    (folder / "classes.txt").write_text("left\nright\n")
    for split, count in (("train", 6), ("val", 3)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng([index, count]).integers(0, 200, (*SIZE, 3)).astype(np.uint8)
            labels = np.zeros(SIZE, np.uint8)
            labels[:, 20 + index :] = 1
            noise[:, 20 + index :] += 50
            Image.fromarray(noise).save(folder / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(folder / "labels" / split / f"{index}.png")
    return folder


class Constant:
    """A competitor that calls everything one class, and writes down that it learns."""

    def __init__(self, answer: int, notes: Path, mark: str) -> None:
        self.settings, self.parameters = {"source": "none", "batch": 1}, 1
        self.answer, self.notes, self.mark = answer, notes, mark

    def step(self) -> None:
        if self.answer < 0:
            raise ValueError("cannot learn")
        with self.notes.open("a") as file:
            file.write(self.mark)

    def predictor(self) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]:
        return lambda picture: np.full(picture.shape[:2], self.answer, np.uint8)


def test_the_scorer_counts_all_pictures_at_their_own_size(scripts: dict[str, ModuleType], street: Path) -> None:
    val = dataset("folder", street, split="val")
    matrix = scripts["accuracy"].score(lambda picture: np.ones(picture.shape[:2], np.uint8), val)
    left = SIZE[0] * (20 + 21 + 22)
    assert matrix.counts.tolist() == [[0, left], [0, 3 * SIZE[0] * SIZE[1] - left]]
    with pytest.raises(ValueError, match="one shape"):
        scripts["accuracy"].score(lambda picture: np.ones((24, 32), np.uint8), val)


@given(minutes=st.floats(0.01, 600), seconds=st.floats(0.001, 300))
def test_as_many_steps_are_taken_as_fit_into_the_minutes(
    scripts: dict[str, ModuleType], minutes: float, seconds: float
) -> None:
    accuracy = scripts["accuracy"]
    steps = accuracy.steps_of(minutes, seconds)
    assert steps == 1 or steps * seconds <= 60 * minutes * (1 + 1e-9)
    assert (steps + 1) * seconds > 60 * minutes * (1 - 1e-9)
    scored = {*range(accuracy.every(steps), steps, accuracy.every(steps)), steps}
    assert min(steps, accuracy.POINTS) / 2 < len(scored) <= accuracy.POINTS


def test_results_of_another_seed_go_into_a_file_of_their_own(scripts: dict[str, ModuleType]) -> None:
    title = scripts["accuracy"].title_of
    assert title("camvid", 10.0, 0) == "accuracy-camvid-10min"  # as committed
    assert len({title("camvid", minutes, seed) for minutes in (2, 2.5) for seed in range(3)}) == 6


def test_a_pace_that_is_measured_later_is_put_beside_the_first(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy, turns = scripts["accuracy"], scripts["common"].Turns
    asked: list[list[str]] = []

    def measured(makers: dict[str, object], *, warm: int, **_: object) -> dict[str, object]:
        assert warm > 1, "the first steps are slow"
        asked.append(list(makers))
        return {name: turns((2000.0,) if name == "a" else (3000.0,), 0.0, None) for name in makers}

    monkeypatch.setattr(accuracy, "take_turns", measured)
    assert accuracy.measure(["a", "b"], lambda steps: None, {}, 1) == {"a": 2.0, "b": 3.0}
    # The machine is half as fast as when a took a second.
    assert accuracy.measure(["b"], lambda steps: None, {"a": 1.0}, 1) == {"a": 1.0, "b": 1.5}
    assert asked == [["a", "b"], ["a", "b"]]
    found = accuracy.measure([*"abcdef"], lambda steps: None, {}, 1)
    assert found == dict.fromkeys("abcdef", 3.0) | {"a": 2.0}
    assert asked[2:] == [[*"abcd"], [*"aef"]]


def test_one_that_fails_or_dies_stops_no_other(scripts: dict[str, ModuleType]) -> None:
    def run(name: str) -> dict[str, object]:
        if name == "fails":
            raise ValueError("no such thing")
        if name == "dies":
            os._exit(1)
        return {"found": name, "threads": torch.get_num_threads()}

    found = dict(scripts["accuracy"].train(["dies", "fails", "works"], run, jobs=2, threads=1))
    assert found["works"] == {"found": "works", "threads": 1}
    assert found["fails"] == "ValueError: no such thing"
    assert "ended without an answer" in found["dies"]


@pytest.fixture
def race(
    scripts: dict[str, ModuleType], street: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, dict[str, dict[str, object]]]]]:
    """Competes over 2 steps or so, with what it has found so far; notes who learns in ``tmp_path/notes``."""
    accuracy, notes = scripts["accuracy"], tmp_path / "notes"
    monkeypatch.setattr(
        accuracy,
        "COMPETITORS",
        {
            "left": lambda task: Constant(0, notes, "l"),
            "right": lambda task: Constant(1, notes, "r"),
            "fails ImageNet": lambda task: Constant(-1, notes, "f"),
        },
    )
    monkeypatch.setattr(accuracy, "measure", lambda names, *_: dict.fromkeys(["left", "right", "fails ImageNet"], 30.0))
    path = tmp_path / "results.json"

    def compete(
        *only: str, weights: Path | None = None, alone: bool = False
    ) -> tuple[int, dict[str, dict[str, dict[str, object]]]]:
        options = argparse.Namespace(
            only=list(only), weights=weights, input="caffe", minutes=1.0, jobs=2, rounds=1, seed=0, alone=alone
        )
        found = json.loads(path.read_text()) if path.exists() else {}
        return accuracy.compete(options, "street", street, found, path, tmp_path), json.loads(path.read_text())

    return compete


def test_who_has_finished_is_not_trained_again(
    race: Callable[..., tuple[int, dict[str, dict[str, dict[str, object]]]]], tmp_path: Path
) -> None:
    status, found = race("left")
    assert status == 0
    assert found["competitors"].keys() == {"left"}
    assert (tmp_path / "notes").read_text() == "ll"
    status, found = race()
    assert status == 0
    assert (tmp_path / "notes").read_text() == "llrr"
    shares = {name: one["scores"]["pixel_accuracy"] for name, one in found["competitors"].items()}  # type: ignore[index]
    assert shares["left"] == pytest.approx(21 / 64)
    assert shares["right"] == pytest.approx(43 / 64)
    # Those that start from weights are only there where weights are; one that fails is named and tried again.
    for _ in range(2):
        status, found = race(weights=tmp_path / "weights")
        assert status == 1
        assert found["competitors"]["fails ImageNet"] == {"failed": "ValueError: cannot learn"}
    assert (tmp_path / "notes").read_text() == "llrr"


def test_paces_that_are_measured_again_are_said_and_change_no_budget(
    scripts: dict[str, ModuleType],
    race: Callable[..., tuple[int, dict[str, dict[str, dict[str, object]]]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracy = scripts["accuracy"]
    _, before = race("left", "right")
    assert before["competitors"]["left"].items() >= {"jobs": 2, "threads": max(1, (os.cpu_count() or 1) // 2)}.items()
    assert accuracy.unit(before) == []
    assert all(line not in accuracy.page(before, "x") for line in ("--alone", "by itself"))
    known: list[object] = []
    monkeypatch.setattr(accuracy, "measure", lambda *given: known.append(given[2]) or {"left": 15.0, "right": 24.0})
    status, found = race("left", "right", alone=True)
    assert status == 0
    assert known == [{}]  # nothing that an earlier load could come in by
    assert found["pace"] == before["pace"]
    assert found["competitors"] == before["competitors"]
    assert accuracy.unit(found)[1] == "(`--alone`) in 0.5 to 0.8 minutes, 0.7 in the median."
    assert accuracy.unit(found)[0] in accuracy.page(found, "x")


def test_the_table_has_the_best_first_and_the_figure_every_curve(
    scripts: dict[str, ModuleType],
    race: Callable[..., tuple[int, dict[str, dict[str, dict[str, object]]]]],
    tmp_path: Path,
) -> None:
    accuracy = scripts["accuracy"]
    _, found = race(weights=tmp_path / "weights")
    curve = found["competitors"]["right"]["curve"]
    assert [(point["step"], point["minutes"]) for point in curve] == [(1, 0.5), (2, 1.0)]  # type: ignore[attr-defined]
    accuracy.write_table(found, "accuracy-street-1min", tmp_path / "docs")
    text = (tmp_path / "docs" / "accuracy-street-1min.md").read_text()
    assert text.index("| right | 33.6 | 67.2 |") < text.index("| left | 16.4 | 32.8 |") < text.index("cannot learn")
    started = found | {"competitors": found["competitors"] | {"all ImageNet": found["competitors"]["right"]}}
    names = [line.split(" | ")[0].removeprefix("| ") for line in accuracy.rows(started)[2:]]
    assert names == ["right", "left", "all ImageNet", "fails ImageNet"]  # no better than others for its weights
    absent = found["competitors"]["right"]["scores"]["absent"]
    all_but = f", of which val has all but {', '.join(absent)}" if absent else ""  # type: ignore[arg-type]
    assert f"{found['classes']} classes{all_but}, seed 0." in text
    assert "still counted" not in text
    assert accuracy.cold(found | {"warm": {"right": accuracy.WARM, "left": 1}}) == [
        "The first steps, which are slow, still counted in the pace of left, fails ImageNet."
    ]
    found["competitors"]["left"]["scores"] |= {"absent": ["kerb"]}  # type: ignore[operator]
    assert accuracy.classes(found).endswith("classes, of which val has all but kerb")
    found["competitors"]["left"]["scores"] |= {"absent": absent}  # type: ignore[operator]
    assert (tmp_path / "docs" / "accuracy-street-1min.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "docs" / "accuracy-street-1min.json").read_text()) == found


def test_ours_learns_what_the_command_learns(
    scripts: dict[str, ModuleType], street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = scripts["learning"]
    monkeypatch.setattr(learning, "tune", lambda: "")  # it would hold for all tests
    train_data = dataset("folder", street, split="train")
    task = learning.Task(street, train_data, None, "caffe", steps=2, every=1, seed=3, scratch=tmp_path)
    ours = learning.Ours(task, "--backbone", "tinyvgg")
    ours.step()
    before = ours.predictor()
    ours.step()
    predict = ours.predictor()
    picture = np.random.default_rng(0).integers(0, 255, (37, 51, 3)).astype(np.uint8)
    assert predict(picture).shape == before(picture).shape == (37, 51)

    # The very same numbers: defaults, order, transforms, dropout, average of weights.
    monkeypatch.setattr("fullyconv.tuning.tune", lambda: "")
    run = tmp_path / "run"
    options = ["--backbone", "tinyvgg", "--weights", "none", "--steps", "2", "--seed", "3", "--workers", "0"]
    result = CliRunner().invoke(app, ["train", str(street), *options, "--out", str(run)])
    assert result.exit_code == 0, result.output
    (last,) = run.glob("*/last/model.safetensors")
    theirs, mine = read_weights(last), read_weights(ours.folder / "last" / "model.safetensors")
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[name], mine[name]) for name in theirs)


def test_a_loop_of_anybody_learns_from_the_pictures_and_labels_them_at_their_size(
    scripts: dict[str, ModuleType], street: Path, tmp_path: Path
) -> None:
    learning = scripts["learning"]
    train_data = dataset("folder", street, split="train")

    def loop(transform: Callable[..., object], **more: object) -> object:
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 2, 1)
        task = learning.Task(street, train_data, None, "caffe", steps=30, every=1, seed=3, scratch=tmp_path)
        return learning.Loop(
            task,
            net,
            torch.optim.SGD(net.parameters(), lr=1.0),
            transform,
            batch=4,
            loss=lambda output, labels: torch.nn.functional.cross_entropy(output, labels, ignore_index=255),
            rate=lambda progress: 1 - progress,
            settings={},
            **more,
        )

    plain = TrainTransform(SIZE, (1, 1), jitter=0, void=255, fill=(0, 0, 0))
    learns = loop(plain)
    for _ in range(30):
        learns.step()  # type: ignore[attr-defined]
    sample = train_data[0]
    # The right is brighter by 50 of 200, so single pixels tell a little and all together much.
    right = learns.predictor()(sample.image) == sample.labels["out"]  # type: ignore[attr-defined]
    assert right.shape == SIZE
    assert right.mean() > 0.6
    assert learns.optimizer.param_groups[0]["lr"] == pytest.approx(1 / 30)  # type: ignore[attr-defined]

    labels = sample.labels["out"]
    averaged = loop(plain, average=1.0)  # 1/10 of the way at first, so that it lags behind
    coarse = loop(plain, bf16=True)
    for one in (averaged, coarse):
        for _ in range(30):
            one.step()  # type: ignore[attr-defined]
    # An average changes nothing of what learns, but what labels pictures; in bf16 weights are nearly the same.
    assert torch.equal(averaged.net.weight, learns.net.weight)  # type: ignore[attr-defined]
    assert not torch.equal(averaged._averaged.model.weight, learns.net.weight)  # type: ignore[attr-defined]
    assert (averaged.predictor()(sample.image) == labels).mean() > 0.6  # type: ignore[attr-defined]
    assert not torch.equal(coarse.net.weight, learns.net.weight)  # type: ignore[attr-defined]
    assert torch.allclose(coarse.net.weight, learns.net.weight, rtol=0.1, atol=0.01)  # type: ignore[attr-defined]
