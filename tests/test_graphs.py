"""Shapes that come again are recorded and replayed, with the model's own numbers; nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from exported import lively, picture
from torch import Tensor

from fullyconv import Predictor, graphs, inference, runners
from fullyconv.devices import autocast
from fullyconv.graphs import Graphed, Recorder, Scores
from fullyconv.model import FCN

CPU = torch.device("cpu")


class Copies:
    """A recorder for a device without graphs: it too has one input and one output for each shape."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, ...]] = []
        self.replayed: list[tuple[int, ...]] = []

    def __call__(self, scores_of: Scores, framed: Tensor) -> Scores:
        self.recorded.append(tuple(framed.shape))
        given = torch.empty_like(framed)

        def replay(framed: Tensor) -> dict[str, Tensor]:
            self.replayed.append(tuple(framed.shape))
            return scores_of(given.copy_(framed))

        return replay


@pytest.fixture(scope="module")
def model() -> FCN:
    return lively("tinyvgg", classes={"out": 5, "more": 3})


@pytest.fixture
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def framed(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.usefixtures("_no_gradients")
def test_a_shape_is_recorded_when_it_comes_again_and_replayed_from_then_on(model: FCN) -> None:
    record = Copies()
    graphed = Graphed(model, record=record)
    for _ in range(2):
        for size in ((64, 96), (96, 64)):
            for one in (framed(*size), framed(*size, batch=2)):
                got, want = graphed.scores_of(one), model.scores_of(one)
                assert set(got) == set(want) == {"out", "more"}
                assert all(torch.equal(got[name], want[name]) for name in want)
    assert len(record.recorded) == len(set(record.recorded)) == 4
    graphed.scores_of(framed(64, 96))
    assert len(record.recorded) == 4
    assert record.replayed[-1] == (1, 3, 64, 96)
    assert len(record.replayed) == 5


@pytest.mark.usefixtures("_no_gradients")
def test_the_shape_that_was_not_used_for_longest_is_forgotten(model: FCN) -> None:
    record = Copies()
    graphed = Graphed(model, keep=2, record=record)
    a, b, c = framed(32, 32), framed(32, 64), framed(32, 96)
    for one in (a, a, b, a, c):  # b goes
        graphed.scores_of(one)
    graphed.scores_of(a)
    assert record.recorded == [tuple(a.shape)]
    assert len(record.replayed) == 3
    graphed.scores_of(b)  # as if for the first time, and c goes
    graphed.scores_of(c)
    assert record.recorded == [tuple(a.shape)]
    graphed.scores_of(c)
    assert record.recorded == [tuple(a.shape), tuple(c.shape)]


@pytest.mark.usefixtures("_no_gradients")
def test_each_precision_has_a_graph_of_its_own(model: FCN) -> None:
    record = Copies()
    graphed = Graphed(model, record=record)
    one = framed(32, 32)
    for precision in ("32", "bf16", "32", "bf16"):
        with autocast(CPU, precision):
            assert torch.equal(graphed.scores_of(one)["out"], model.scores_of(one)["out"])
    assert len(record.recorded) == 2


def test_where_gradients_are_wanted_or_pictures_are_large_nothing_is_recorded(
    model: FCN, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Copies()
    graphed = Graphed(model, record=record)
    for _ in range(3):
        assert graphed.scores_of(framed(32, 32))["out"].requires_grad
    monkeypatch.setattr(graphs, "LIMIT", 2 * 32 * 32)
    with torch.no_grad():
        for _ in range(3):
            graphed.scores_of(framed(32, 32, batch=3))
        assert record.recorded == []
        for _ in range(2):
            graphed.scores_of(framed(32, 32, batch=2))
    assert record.recorded == [(2, 3, 32, 32)]


@pytest.mark.usefixtures("_no_gradients")
def test_a_net_that_cannot_be_recorded_runs_as_ever_and_is_not_tried_again(model: FCN) -> None:
    tried: list[int] = []

    def fail(scores_of: Scores, framed: Tensor) -> Scores:
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = Graphed(model, record=fail)
    one = framed(32, 32)
    for _ in range(4):
        assert torch.equal(graphed.scores_of(one)["out"], model.scores_of(one)["out"])
    assert len(tried) == 1


@pytest.mark.usefixtures("_no_gradients")
def test_threads_do_not_write_over_each_others_pictures(model: FCN) -> None:
    graphed = Graphed(model, record=Copies())
    pictures = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    wanted = [model.scores_of(one)["out"] for one in pictures]
    for _ in range(2):
        graphed.scores_of(pictures[0])
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(graphed.scores_of(pictures[i])["out"], wanted[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_predictor_gives_the_same_labels_through_graphs(model: FCN) -> None:
    plain, recorded = Predictor(model, device="cpu"), Predictor(model, device="cpu")
    record = Copies()
    recorded.runner = Graphed(model, record=record)
    for _ in range(2):
        for size in ((40, 50), (41, 51), (97, 60)):  # of which two share a framed shape
            pixels = picture(*size)
            for name, labels in plain(pixels).labels.items():
                assert np.array_equal(recorded(pixels).labels[name], labels)
    assert len(record.recorded) == 2


def test_on_cuda_torch_runs_through_graphs_and_on_the_cpu_it_does_not(
    model: FCN, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runners.runner(model, "torch") is model
    monkeypatch.setattr(runners, "device_of", lambda _: torch.device("cuda"))
    assert isinstance(runners.runner(model, "torch"), Graphed)
    assert isinstance(runners.runner(model, "auto"), Graphed)


def test_pictures_reach_cuda_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    class Picture:
        def __init__(self, kind: str) -> None:
            self.device = torch.device(kind)

        def pin_memory(self) -> Picture:
            done.append("pinned")
            return self

        def to(self, device: torch.device, non_blocking: bool = False) -> Picture:
            done.append((device.type, non_blocking))
            return self

    class Model:
        def score_maps(self, image: Picture) -> dict[str, Tensor]:
            return {}

    for there, here, expected in (
        ("cuda", "cpu", ["pinned", ("cuda", True)]),
        ("cuda", "cuda", [("cuda", False)]),
        ("cpu", "cpu", [("cpu", False)]),
        ("cpu", "cuda", [("cpu", False)]),  # asynchronous, it would be read before it is there
    ):
        done.clear()
        monkeypatch.setattr(inference, "device_of", lambda _, there=there: torch.device(there))
        inference.whole(Model(), Picture(here))  # type: ignore[arg-type]
        assert done == expected


# --- on a device ------------------------------------------------------------------------------------------------------

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@on_cuda
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_graphs_give_the_scores_of_the_model(precision: str) -> None:
    model = lively("tinyvgg").cuda().to(memory_format=torch.channels_last)
    graphed = Graphed(model, record=(record := Counted()))
    with torch.inference_mode():
        for _ in range(3):
            for size in ((64, 96), (96, 64), (32, 32)):
                with autocast(torch.device("cuda"), precision):
                    one = torch.randn(2, 3, *size, device="cuda")
                    got, want = graphed.scores_of(one)["out"], model.scores_of(one)["out"]
                torch.testing.assert_close(got, want, rtol=1e-2 if precision == "bf16" else 1e-4, atol=1e-3)
    assert record.made == 3
    with torch.no_grad():  # what was recorded in inference mode serves outside of it
        assert graphed.scores_of(torch.randn(2, 3, 32, 32, device="cuda"))["out"].isfinite().all()


class Counted(Recorder):
    made = 0

    def __call__(self, scores_of: Scores, framed: Tensor) -> Scores:
        replay = super().__call__(scores_of, framed)
        self.made += 1
        return replay


@on_cuda
def test_a_predictor_on_cuda_gives_the_labels_of_the_cpu() -> None:
    model = lively("tinyvgg")
    wanted = Predictor(model, device="cpu", precision="32")
    pixels = [picture(*size, seed=i) for i, size in enumerate([(40, 50), (41, 51), (97, 60)] * 3)]
    labels = [wanted(one).labels["out"] for one in pixels]
    there = Predictor(lively("tinyvgg"), device="cuda", precision="32")
    for one, label in zip(pixels, labels, strict=True):
        assert (there(one).labels["out"] == label).mean() > 0.999
