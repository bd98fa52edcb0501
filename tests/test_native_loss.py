"""The native kernel's cross-entropy is that of all pixels' scores, and its slope is the gradient."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scoremaps import Case, cases
from torch import Tensor

from fullyconv import dense, losses, native
from fullyconv.geometry import Grid
from fullyconv.upsample import Upsample

TARGETS = native.kernel().targets
VOID = 255 * 4
pytestmark = pytest.mark.skipif(not native.available(), reason=native.describe())
FINITE = ("noise", "small", "smooth", "ties", "near ties", "constant", "planes", "tiny")


def labels_for(case: Case, seed: int, void: float) -> Tensor:
    generator, shape = torch.Generator().manual_seed(seed), (len(case.scores), *case.size)
    labels = torch.randint(0, case.scores.shape[1], shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < void, VOID)


def native_loss(
    case: Case, labels: Tensor, weights: Tensor | None, target: str | None = None, threads: int = 1
) -> tuple[float, float, Tensor]:
    taps = dense._taps(case.scores, case.upsample, case.size)
    assert taps is not None
    torch.set_num_threads(threads)
    loss, count, slope = native.cross_entropy(
        case.scores, *taps, labels, void=VOID, weights=weights, slope=True, target=target
    )
    without = native.cross_entropy(case.scores, *taps, labels, void=VOID, weights=weights, slope=False, target=target)
    torch.set_num_threads(1)
    assert without == (loss, count, None)
    assert slope is not None
    return loss, count, slope


@pytest.mark.parametrize("target", TARGETS)
@settings(deadline=None, max_examples=60)
@given(case=cases(kinds=FINITE), seed=st.integers(0, 99), void=st.sampled_from([0, 0.3, 1]), weighed=st.booleans())
def test_loss_and_slope_are_those_of_all_pixels_in_float64(
    target: str, case: Case, seed: int, void: float, weighed: bool
) -> None:
    labels = labels_for(case, seed, void)
    weights = torch.rand(case.scores.shape[1], generator=torch.Generator().manual_seed(seed)) if weighed else None
    loss, count, slope = native_loss(case, labels, weights, target)

    scores = case.scores.double().requires_grad_()
    logits = case.upsample(scores, case.size)
    wide = None if weights is None else weights.double()
    expected = losses.cross_entropy(logits, labels, void=VOID, reduction="sum", weights=wide)
    (gradient,) = torch.autograd.grad(expected, scores)
    share = (labels != VOID).double() if wide is None else wide[labels.where(labels != VOID, 0)] * (labels != VOID)
    pixels, largest = max(int((labels != VOID).sum()), 1), max(float(case.scores.abs().max()), 1.0)
    assert count == pytest.approx(float(share.sum()), rel=1e-6)
    assert loss == pytest.approx(expected.item(), rel=1e-5, abs=3e-7 * largest * pixels)
    assert slope.shape == gradient.shape
    # The probabilities are as exact as the scores of the pixels are, and a cell adds up those of many.
    torch.testing.assert_close(slope.double(), gradient, rtol=1e-4, atol=1e-5 + 3e-7 * largest * pixels / 10)


@settings(deadline=None, max_examples=40)
@given(case=cases(kinds=FINITE), seed=st.integers(0, 99))
def test_the_bits_do_not_depend_on_the_number_of_threads(case: Case, seed: int) -> None:
    labels = labels_for(case, seed, 0.2)
    loss, count, slope = native_loss(case, labels, None)
    for threads in (2, 3, 7):
        again = native_loss(case, labels, None, threads=threads)
        assert again[:2] == (loss, count)
        assert torch.equal(again[2], slope)


TEAM = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)


def team_of(members: Callable[[int], int], asked: list[int]) -> object:
    """What works in its threads as OpenMP's runtimes do, one after another; ``asked`` is told how many were wanted."""

    def run(function: int, data: int, threads: int, flags: int) -> None:
        asked.append(threads)
        for _ in range(members(threads)):
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(data)

    return TEAM(run)


@settings(deadline=None, max_examples=40)
@given(case=cases(kinds=FINITE), seed=st.integers(0, 99))
def test_the_bits_do_not_depend_on_whose_threads_they_are(case: Case, seed: int) -> None:
    labels, asked = labels_for(case, seed, 0.2), list[int]()
    loss, count, slope = native_loss(case, labels, None)
    teams = [
        ctypes.c_void_p(None),  # threads of its own
        team_of(lambda threads: threads, asked),
        team_of(lambda threads: 1, asked),  # fewer than it was asked for
    ]
    for team in teams:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "_team", lambda team=team: team)
            again = native_loss(case, labels, None, threads=3)
        assert again[:2] == (loss, count)
        assert torch.equal(again[2], slope)
    assert set(asked) <= {2, 3}


def test_a_team_is_asked_only_where_there_is_work_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    team = team_of(lambda threads: threads, asked)
    monkeypatch.setattr(native, "_team", lambda: team)
    taps = dense._taps(torch.zeros(1, 3, 9, 11), layer(), (33, 41))
    assert taps is not None
    labels = torch.zeros(1, 33, 41, dtype=torch.int64)
    for threads, expected in ((1, []), (2, [2, 2])):  # slopes are added up in two passes
        torch.set_num_threads(threads)
        native.cross_entropy(torch.zeros(1, 3, 9, 11), *taps, labels, void=VOID, weights=None, slope=True)
        assert asked == expected
    torch.set_num_threads(1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's threads are not found by name")
@pytest.mark.skipif("OpenMP" not in torch.__config__.parallel_info(), reason="torch computes without OpenMP")
def test_the_threads_are_those_that_torch_computes_with() -> None:
    assert native._team().value


def layer(classes: int = 3) -> Upsample:
    return Upsample(Grid(Fraction(4), Fraction(3, 2), Fraction(4)), Grid(), classes)


def test_dense_takes_it_and_gives_the_same_as_block_by_block() -> None:
    scores = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.randint(0, 3, (2, 33, 41), generator=torch.Generator().manual_seed(1))
    labels[:, 4:9] = VOID
    weights = torch.tensor([1.0, 0.0, 2.5])
    for reduction in ("mean", "sum", "image"):
        losses_and_slopes = []
        for block in (None, (5, 7)):
            loss = dense.cross_entropy(
                scores, layer(), labels, void=VOID, reduction=reduction, weights=weights, block=block
            )
            losses_and_slopes.append((loss.detach(), *torch.autograd.grad(loss, scores)))
        torch.testing.assert_close(*losses_and_slopes)


@pytest.mark.parametrize("label", [3, -1, 10**12])
def test_a_label_that_is_none_is_said_to_be(label: int) -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, 7, 7] = label
    with pytest.raises(IndexError, match=f"labels: some are neither 0..2 nor {VOID}"):
        dense.cross_entropy(torch.zeros(1, 3, 2, 2), layer(), labels, void=VOID)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_not_hidden(odd: float) -> None:
    scores, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 8, 8, dtype=torch.long)
    scores[0, 1, 0, 0] = odd
    found = dense.cross_entropy(scores, layer(), labels, void=VOID)
    assert not (found.isfinite() and found < 2)


def test_no_pictures_cost_nothing() -> None:
    case = Case(torch.zeros(0, 3, 2, 2), layer(), (8, 8), 1)
    loss, count, slope = native_loss(case, torch.zeros(0, 8, 8, dtype=torch.long), None)
    assert (loss, count, slope.shape) == (0, 0, (0, 3, 2, 2))


def test_a_sure_net_has_a_slope_and_scores_far_apart_no_denormal_ones() -> None:
    scores = torch.tensor([300.0, 0.0, 299.0]).view(1, 3, 1, 1)
    case = Case(scores, layer(), (4, 4), 1)
    loss, _, slope = native_loss(case, torch.zeros(1, 4, 4, dtype=torch.long), None)
    p = 1 / (1 + math.exp(-1))
    assert loss == pytest.approx(16 * -math.log(p), rel=1e-6)
    torch.testing.assert_close(slope.flatten(), torch.tensor([16 * (p - 1), 0.0, 16 * (1 - p)]))
    assert slope[0, 1, 0, 0] == 0
