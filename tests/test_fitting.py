"""The loop learns, keeps its budget, and keeps the best."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from small_fits import PLAIN, Squares, net, of, pictures, plain_net, settings

from fullyconv import checkpoint, fitting
from fullyconv.config import DataConfig
from fullyconv.errors import ConfigError
from fullyconv.events import Evaluated, Said, Saved, Step
from fullyconv.fitting import Budget, State, fit
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN
from fullyconv.sampling import View


def test_four_pictures_are_learnt_by_heart() -> None:
    four = pictures(4)
    events = fit(net(2), four, four, settings(steps=150, lr=3e-3, ema=0.9, schedule="cosine", warmup=5), data=PLAIN)
    assert of(Evaluated, events)[-1].mean_iu > 0.95


def test_the_first_losses_are_what_they_were() -> None:
    # The first is ln 2, since the scores start at zero; a change of a later one is a change of the algorithm.
    chosen = settings(steps=20, lr=5e-3, schedule="poly", warmup=2, class_weights="median")
    drawn = DataConfig(root="", workers=0, crop=(24, 24))
    losses = [e.loss for e in of(Step, fit(plain_net(Squares.classes), Squares(), None, chosen, data=drawn))]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses == pytest.approx(LOSSES, rel=1e-2)


# fmt: off
LOSSES = [
    0.69315, 0.68546, 0.65727, 0.62115, 0.59381, 0.62293, 0.47337, 0.36112, 0.44333, 0.42609,
    0.33765, 0.41749, 0.30752, 0.48947, 0.51627, 0.7196, 0.36543, 0.58902, 0.47285, 0.30284,
]
# fmt: on


def test_a_budget_in_epochs_shows_each_picture_so_often() -> None:
    steps = of(Step, fit(net(), pictures(12), None, settings(epochs=1.5, batch=4), data=PLAIN))
    assert [e.epoch for e in steps] == pytest.approx([4 / 12, 8 / 12, 1, 16 / 12, 20 / 12])
    assert steps[-1].progress == 1
    assert steps[0].steps_total == 5


def test_a_budget_in_minutes_is_kept_scoring_included_and_the_rate_falls_with_it(tmp_path: Path) -> None:
    events = list(
        fit(net(), pictures(), pictures(4), settings(minutes=0.05, schedule="poly"), data=PLAIN, out=tmp_path)
    )
    steps = of(Step, events)
    assert steps[-1].progress > 0.9  # a scoring may take the rest
    assert steps[0].steps_total is None
    rates = [step.lr for step in steps]
    assert rates[-1] < 0.2 * rates[len(rates) // 2]
    assert 1 <= len(of(Evaluated, events)) <= fitting.SCORINGS + 1
    state = checkpoint.load_state(tmp_path / "resume")[1]
    assert 2.5 < state["elapsed_s"] < 10


def test_scoring_takes_at_most_a_tenth_of_a_time() -> None:
    budget = Budget(None, 100.0)
    assert not State(step=9, scored=1, scored_at=0.1, elapsed_s=40, scoring_s=4).scoring_due(budget, None)
    assert State(step=9, scored=1, scored_at=0.0, elapsed_s=40, scoring_s=4).scoring_due(budget, None)
    assert State(step=9, scored=1, scored_at=0.1, elapsed_s=95, scoring_s=4).scoring_due(budget, None)  # the last


def test_at_least_half_of_a_time_is_for_learning() -> None:
    assert State(step=9, elapsed_s=40, scoring_s=20).progress(Budget(None, 100.0)) == 0.5
    assert State(step=9, elapsed_s=40, scoring_s=300).progress(Budget(None, 100.0)) == 0.8


@pytest.mark.parametrize(("budget", "least", "most"), [({"minutes": 0.1}, 3, 6), ({"steps": 3}, 12, 12)])
def test_of_a_time_as_many_pictures_are_scored_as_a_fiftieth_of_it_allows(
    monkeypatch: pytest.MonkeyPatch, budget: dict[str, float], least: int, most: int
) -> None:
    plain = fitting.evaluate

    def slow(model: FCN, data: View, **options: Any) -> dict[str, ConfusionMatrix]:
        time.sleep(0.02 * len(data))
        return plain(model, data, **options)

    monkeypatch.setattr(fitting, "evaluate", slow)
    monkeypatch.setattr(fitting, "FEWEST", 3)
    scored = of(Evaluated, fit(net(), pictures(4), pictures(12), settings(**budget), data=PLAIN))
    assert len({each.pictures for each in scored}) == 1  # the same, so that scores can be compared
    assert least <= scored[0].pictures <= most


def test_what_a_scoring_took_is_what_all_processes_agree_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By it they decide on the rate and on when to score; by its own clock each would decide for itself."""
    monkeypatch.setattr(fitting.Learner, "agree", lambda self, number, wish: (7.0, wish))
    list(fit(net(), pictures(4), pictures(2), settings(steps=2), data=PLAIN, out=tmp_path))
    state = checkpoint.load_state(tmp_path / "resume")[1]
    assert (state["elapsed_s"], state["scoring_s"]) == (7.0, 7.0)


def test_scoring_and_resume_points_come_when_they_are_asked_for(tmp_path: Path) -> None:
    chosen = settings(steps=7, evaluate_every=3, save_every=2)
    events = list(fit(net(), pictures(), pictures(2), chosen, data=PLAIN, out=tmp_path))
    assert [e.step for e in of(Evaluated, events)] == [3, 6, 7]
    assert [e.step for e in of(Saved, events) if e.path.name == "resume"] == [2, 4, 6, 7]


def test_the_best_is_the_best_and_the_last_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = iter([30, 60, 40, 50, 80, 80, 10])

    def evaluate(*args: Any, **rest: Any) -> dict[str, ConfusionMatrix]:
        return {"out": ConfusionMatrix(["a", "b"], [[n := next(right), 100 - n], [100 - n, n]])}

    monkeypatch.setattr(fitting, "evaluate", evaluate)
    chosen = settings(steps=7, evaluate_every=1)
    scored = of(Evaluated, fit(net(), pictures(), pictures(4), chosen, data=PLAIN, out=tmp_path))
    assert [e.best for e in scored] == [True, True, False, False, True, False, False]
    provenance = json.loads((tmp_path / "best" / "config.json").read_text())["provenance"]
    assert provenance["step"] == 5
    assert provenance["scores"]["out"]["pixel_accuracy"] == pytest.approx(0.8)
    assert json.loads((tmp_path / "last" / "config.json").read_text())["provenance"]["step"] == 7


def test_a_head_without_labels_in_val_leaves_the_score_to_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"a": [[3, 1], [0, 0]], "b": [[0, 0], [0, 0]], "c": [[1, 3], [0, 0]]}
    matrices = {head: ConfusionMatrix(["x", "y"], counts) for head, counts in found.items()}
    monkeypatch.setattr(fitting, "evaluate", lambda *_, **__: matrices)
    (scored,) = of(Evaluated, fit(net(), pictures(4), pictures(2), settings(steps=1), data=PLAIN, out=tmp_path))
    assert scored.mean_iu == (0.75 + 0.25) / 2
    assert scored.best
    assert (tmp_path / "best").exists()


def test_many_val_pictures_are_thinned_evenly_and_the_number_is_told() -> None:
    event = of(Evaluated, fit(net(), pictures(4), pictures(), settings(steps=1, val_pictures=2), data=PLAIN))[0]
    assert event.pictures == 2


def test_the_crop_is_chosen_by_the_pictures_and_said() -> None:
    said = of(Said, fit(net(), pictures(4), None, settings(steps=1), data=DataConfig(root="", workers=0)))
    assert "crops of 64x64" in said[0].message or "crops of 48x64" in said[0].message


def test_settings_that_name_what_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="no loss 'crossentropy'; did you mean 'cross_entropy'"):
        next(fit(net(), pictures(4), None, settings(loss="crossentropy"), data=PLAIN))
    with pytest.raises(ConfigError, match="no head 'depth'"):
        next(fit(net(), pictures(4), None, settings(head_loss={"depth": 1}), data=PLAIN))
    with pytest.raises(ConfigError, match="head_loss: got 0 for every head, so that nothing is learnt"):
        next(fit(net(), pictures(4), None, settings(head_loss={"out": 0}), data=PLAIN))


def test_what_is_scored_and_kept_is_the_average_of_the_weights(tmp_path: Path) -> None:
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    chosen = settings(steps=2, lr=1e-2, ema=0.9, warmup=0)
    list(fit(model, pictures(4), pictures(2), chosen, data=PLAIN, out=tmp_path))
    name = next(n for n in before if n.startswith("heads.out.score."))
    kept, last = checkpoint.load(tmp_path / "last").state_dict()[name], model.state_dict()[name]
    # Decay 1/10 after the first step, 2/11 after the second: the average lies between the two weights.
    assert not torch.equal(kept, last)
    assert float((kept - last).norm()) < float((before[name] - last).norm())
