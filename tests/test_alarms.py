"""Training says when it does not learn, and stops where it cannot."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_fits import PLAIN, net, of, pictures, recipe, settings, unchecked

from fullyconv import alarms, checkpoint
from fullyconv.datasets import Sample
from fullyconv.errors import TrainingError
from fullyconv.events import Alarm, Event, Step
from fullyconv.fitting import fit
from fullyconv.sampling import View
from fullyconv.training import train


def test_a_loss_that_is_not_finite_stops_keeps_the_last_model_and_names_the_rate(tmp_path: Path) -> None:
    chosen = unchecked(steps=60, lr=1e6, optimizer="sgd", evaluate_every=1)
    seen: list[Event] = []
    with pytest.raises(TrainingError, match=r"lr 1e\+06 with momentum 0.9.*set lr to 100000.*is kept in") as error:
        seen.extend(fit(net(), pictures(), pictures(2), chosen, data=PLAIN, out=tmp_path))
    assert "diverged" in [alarm.kind for alarm in of(Alarm, seen)]
    kept = checkpoint.load(tmp_path / "last")
    assert all(torch.isfinite(t).all() for t in kept.state_dict().values())
    assert error.value.step > 0


def test_weights_that_have_diverged_are_never_a_resume_point(tmp_path: Path) -> None:
    chosen = unchecked(steps=60, lr=1e6, optimizer="sgd", save_every=1)
    loop = fit(net(), pictures(), None, chosen, data=PLAIN, out=tmp_path)
    bad = next(event for event in loop if isinstance(event, Step) and not event.loss < 100)
    loop.close()
    assert checkpoint.load_state(tmp_path / "resume")[1]["step"] == bad.step - 1


def test_a_summed_loss_with_the_rate_of_a_mean_one_is_told_before_it_diverges() -> None:
    chosen = unchecked(steps=60, lr=1e-2, optimizer="sgd", reduction="sum", momentum=0.99)
    seen: list[Event] = []
    with pytest.raises(TrainingError, match=r"summed over .* pixels and momentum 0.99 .* set reduction = mean"):
        seen.extend(fit(net(), pictures(), None, chosen, data=PLAIN))
    assert "recipe" in [alarm.kind for alarm in of(Alarm, seen)]


def test_a_loss_that_grows_beyond_return_is_told_from_one_that_jumps() -> None:
    watch = alarms.LossWatch(guess=math.log(11))
    assert not any(watch.diverged(loss) for loss in (2.4, 2.0, 1.5, 60.0, 1.5, 1.4))
    assert any(watch.diverged(1.5 * 1.3**i) for i in range(30))
    assert alarms.LossWatch(2.0).diverged(math.nan)


def test_the_papers_own_rates_raise_no_alarm() -> None:
    heavy = settings(optimizer="sgd", lr=1e-10, momentum=0.99, reduction="sum", batch=1)
    assert alarms.bad_recipe(heavy, pixels=500 * 375) is None


def test_one_class_everywhere_is_an_alarm_told_once() -> None:
    # Scores start at zero, so the first class wins everywhere while the rate is 0.
    chosen = unchecked(steps=3, evaluate_every=1, lr=1e-12)
    seen = of(Alarm, fit(net(), pictures(4), pictures(4), chosen, data=PLAIN))
    assert [alarm.kind for alarm in seen] == ["collapsed"]
    assert "'ground' for every pixel" in seen[0].message


def test_weights_that_nothing_initialised_are_an_alarm() -> None:
    model = net()
    with torch.no_grad():
        next(p for p in model.backbone.parameters() if p.ndim > 1).zero_()
    seen = of(Alarm, fit(model, pictures(4), None, settings(steps=1), data=PLAIN))
    assert seen[0].kind == "uninitialised"
    assert "all zero: " in seen[0].message


def test_a_random_backbone_is_an_alarm(tmp_path: Path) -> None:
    seen: list[Event] = []
    train(recipe(fit=settings(steps=1)), out=tmp_path / "run", on_event=seen.append)
    assert "backbone start from random numbers" in of(Alarm, seen)[0].message


def test_scores_that_start_out_large_are_an_alarm() -> None:
    model = net()
    with torch.no_grad():
        for p in model.heads.parameters():
            p.normal_(std=30)
    kinds = [alarm.kind for alarm in of(Alarm, fit(model, pictures(4), None, settings(steps=1), data=PLAIN))]
    assert "start" in kinds


class Void(View):
    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, labels={head: np.full_like(labels, 255) for head, labels in sample.labels.items()})


def test_val_without_a_labelled_pixel_is_told_once() -> None:
    val = Void(pictures(2), range(2))
    seen = of(Alarm, fit(net(), pictures(4), val, unchecked(steps=3, evaluate_every=1), data=PLAIN))
    assert [alarm.kind for alarm in seen] == ["unscored"]
    assert "val has no labelled pixel for head 'out'" in seen[0].message
