"""What ties rate, reduction, momentum and batch together, and what is refused of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullyconv.config import FitConfig, Recipe
from fullyconv.errors import ConfigError
from fullyconv.rates import LONG_RUN, Rate, Reduction, learning, refusal

PICTURE = 375 * 500
rates = st.builds(
    Rate,
    st.floats(1e-16, 1e3),
    st.sampled_from(["mean", "sum", "image"]),
    momentum=st.floats(0, 0.999),
    pixels=st.integers(1, 10**8),
)


def fit(**changes: Any) -> FitConfig:
    return FitConfig.parse({"steps": 1, "optimizer": "sgd", "batch": 1, **changes})


@given(rates, st.sampled_from(["mean", "sum", "image"]))
def test_a_rate_said_with_another_reduction_moves_as_far(rate: Rate, reduction: Reduction) -> None:
    other = rate.with_reduction(reduction)
    assert other.reduction == reduction
    assert other.long_run == pytest.approx(rate.long_run, rel=1e-12)


@given(rates)
def test_what_is_refused_lies_outside_and_what_is_proposed_inside(rate: Rate) -> None:
    message = refusal(rate, optimizer="sgd")
    assert (message is None) == (LONG_RUN[0] <= rate.long_run <= LONG_RUN[1])
    if message is not None and "did you mean" in message:
        lr = float(message.rpartition("with lr ")[2].split()[0])
        assert (
            refusal(Rate(lr * 1.05, rate.reduction, momentum=rate.momentum, pixels=rate.pixels), optimizer="sgd")
            in (
                None,
                # Two digits are told, which at the very ends may fall on the other side.
            )
            or not 1.1 * LONG_RUN[0] < lr * rate.long_run / rate.lr < 0.9 * LONG_RUN[1]
        )


def test_the_papers_summed_rate_is_that_of_a_mean_over_a_picture() -> None:
    heavy = Rate(1e-10, "sum", momentum=0.99, pixels=PICTURE)
    assert heavy.per_pixel == pytest.approx(1.9e-5, rel=0.02)
    assert heavy.factor == pytest.approx(100)
    assert Rate(1e-4, "mean", momentum=0.9, pixels=20 * PICTURE).factor == pytest.approx(10)


def test_the_papers_ways_of_learning_have_their_names() -> None:
    assert [learning(momentum=m, pictures=n) for m, n in ((0.9, 20), (0.9, 1), (0.99, 1), (0.9, 8))] == [
        "accumulated",
        "online",
        "heavy",
        None,
    ]


@pytest.mark.parametrize(
    "published",
    [{"lr": lr, "reduction": "sum", "momentum": 0.99} for lr in (1e-10, 1e-12, 1e-14)]
    + [{"lr": lr, "batch": 20, "momentum": 0.9} for lr in (1e-3, 1e-4, 5e-5)]
    + [{"lr": 1e-4, "accumulate": 20, "momentum": 0.9}, {"lr": 1e-10, "reduction": "sum", "momentum": 0.9}],
)
def test_what_was_published_is_allowed(published: dict[str, Any]) -> None:
    assert fit(**published).lr == published["lr"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.99])
def test_nonsense_is_refused_with_the_numbers_and_what_equals_it(optimizer: str, momentum: float) -> None:
    with pytest.raises(
        ConfigError, match=r"^lr: .*with lr 1e-10, equal here to 'mean' with lr 1\.9e-05 \(187,500 "
    ) as e:
        fit(lr=1e-10, momentum=momentum, optimizer=optimizer)
    assert "1e-" in str(e.value)
    if optimizer == "sgd":
        moved = {0.0: "19", 0.9: "1.9e+02", 0.99: "1.9e+03"}[momentum]
        with pytest.raises(ConfigError, match=r"'mean' with lr 0\.0001, equal here to 'sum' with lr 5\.3e-10") as e:
            fit(lr=1e-4, momentum=momentum, reduction="sum")
        assert f"moves weights like lr {moved} per pixel" in str(e.value)


def test_a_default_rate_is_held_against_the_reduction_too() -> None:
    with pytest.raises(ConfigError, match=r"^lr: 'sum' with lr 0\.001"):
        fit(reduction="sum")


def test_a_rate_that_no_reduction_mends_is_refused_with_the_limits() -> None:
    with pytest.raises(ConfigError, match=r"lr 1e\+06 .*; expected lr 5e-09 to 1$"):
        fit(lr=1e6)
    with pytest.raises(ConfigError, match=r"by about 5 a step, .*; expected lr 1e-07 to 1$"):
        fit(lr=5, optimizer="adamw")


def test_adamw_feels_no_sum() -> None:
    with pytest.raises(ConfigError, match=r"^reduction: 'sum' with optimizer 'adamw', .*; expected 'mean'") as error:
        fit(optimizer="adamw", reduction="sum", lr=1e-4)
    assert "more)" not in str(error.value)


def test_a_recipe_names_the_stage() -> None:
    model = {"backbone": "tinyvgg", "heads": {"out": {"classes": 2, "skips": [{"tap": "fc7"}]}}}
    stage = {"name": "a", "model": model, "data": {"root": ""}, "fit": {"steps": 1, "optimizer": "sgd", "lr": 1e-10}}
    with pytest.raises(ConfigError, match=r"^stages\.0\.fit\.lr: 'mean' with lr 1e-10 and momentum 0\.9 moves"):
        Recipe.parse({"stages": [stage]})


def test_a_batch_is_enlarged_as_far_as_patches_are_dropped() -> None:
    assert [fit(batch=4, keep=keep).pictures for keep in (1, 0.5, 0.25, 0.3)] == [4, 8, 16, 13]
