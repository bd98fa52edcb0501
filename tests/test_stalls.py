"""How long steps wait for their pictures: said in every step, kept short, and of no influence on what is learnt."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from fullyconv import build, fitting, presets, reading
from fullyconv.config import DataConfig, FitConfig
from fullyconv.datasets import Sample, dataset
from fullyconv.events import Said, Step, as_json
from fullyconv.sampling import View

PLAIN = {"root": "", "crop": (32, 32)}


class Slow(View):
    """A data set that takes its time, and notes how many threads torch has meanwhile."""

    def __init__(self, seconds: float) -> None:
        super().__init__(dataset("scenes", "count=4 size=32x32"), range(4))
        self.seconds = seconds
        self.threads: set[int] = set()

    def __getitem__(self, index: int) -> Sample:
        time.sleep(self.seconds)
        self.threads.add(torch.get_num_threads())
        return super().__getitem__(index)


def run(data: Slow, steps: int, **settings: Any) -> tuple[list[Step], list[str], torch.Tensor]:
    torch.manual_seed(0)
    model = build(presets.fcn8s("tinyvgg", len(data.classes["out"]), weights=None))
    fit = FitConfig(steps=steps, batch=2, device="cpu", precision="32")
    events = list(fitting.fit(model, data, None, fit, data=DataConfig(**PLAIN | settings)))
    weights = torch.cat([value.detach().flatten() for value in model.parameters()])
    return [e for e in events if isinstance(e, Step)], [e.message for e in events if isinstance(e, Said)], weights


def test_a_step_says_how_long_it_took_and_waited() -> None:
    steps, _, _ = run(Slow(0.1), 2, workers=0, remember=False)
    assert all(0.2 < step.seconds_waiting < step.seconds for step in steps)
    assert as_json(steps[0])["seconds_waiting"] == steps[0].seconds_waiting


def test_pictures_are_read_with_one_thread_and_the_net_computes_with_all() -> None:
    data, threads = Slow(0.0), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(data, 1, workers=0, remember=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert 1 in data.threads


def test_where_pictures_are_waited_for_more_processes_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "WATCHED", 2)
    monkeypatch.setattr(fitting, "default_workers", lambda *_, **__: 0)
    monkeypatch.setattr(fitting, "most_workers", lambda *_: 2)
    steps, said, grown = run(Slow(0.1), 6, remember=False)
    assert len(steps) == 6
    assert [line.rsplit("; ", 1)[1] for line in said if "waiting" in line] in (
        ["1 worker from now on"],
        ["1 worker from now on", "2 workers from now on"],
    )
    _, quiet, still = run(Slow(0.0), 6, workers=0, remember=False)
    assert not any("waiting" in line for line in quiet)
    assert torch.equal(grown, still)
