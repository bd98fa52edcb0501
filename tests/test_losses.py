from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullyconv.losses import LOSSES, cross_entropy, dice, focal, lovasz, sample_patches

VOID = 255


def batch(seed: int, classes: int = 4, void: float = 0.2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 7, generator=generator, dtype=dtype)
    labels = torch.randint(0, classes, (2, 5, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void] = VOID
    return logits.requires_grad_(), labels


def weights_of(classes: int = 4) -> Tensor:
    return torch.linspace(0.5, 4, classes, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- what every loss promises -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, weights_of()])
@pytest.mark.parametrize("reduction", ["mean", "sum", "image"])
def test_the_gradient_is_the_slope(name: str, weights: Tensor | None, reduction: str) -> None:
    logits, labels = batch(0)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, labels, void=VOID, reduction=reduction, weights=weights),  # type: ignore[arg-type]
        (logits,),
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "image"])
def test_nothing_but_void_costs_nothing_and_teaches_nothing(name: str, reduction: str) -> None:
    logits, labels = batch(0, void=1.0)
    loss = LOSSES[name](logits, labels, void=VOID, reduction=reduction)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_what_the_net_says_where_the_truth_is_void_does_not_matter(name: str) -> None:
    logits, labels = batch(1)
    moved = logits.detach() + 5 * torch.randn_like(logits) * (labels == VOID).unsqueeze(1)
    loss, same = (LOSSES[name](x, labels, void=VOID) for x in (logits, moved))
    assert torch.allclose(loss, same)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.movedim(1, -1)[labels == VOID].any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_sure_and_right_net_costs_nothing_and_a_wrong_one_more(name: str) -> None:
    labels = torch.tensor([[[0, 1, 2, VOID]]])
    right = 50 * F.one_hot(labels.where(labels != VOID, 0), 3).movedim(-1, 1).double()
    losses = [LOSSES[name](x, labels, void=VOID).item() for x in (right, torch.zeros_like(right), right.roll(1, 1))]
    assert losses[0] == pytest.approx(0, abs=1e-12)
    assert losses == sorted(losses)


@pytest.mark.parametrize("name", LOSSES)
def test_scores_of_ten_thousand_stay_finite(name: str) -> None:
    logits, labels = batch(2, dtype=torch.float32)
    huge = (logits.detach() * 1e4).requires_grad_()
    loss = LOSSES[name](huge, labels, void=VOID)
    loss.backward()
    assert loss.isfinite()
    assert huge.grad is not None
    assert huge.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_computed_in_single(name: str) -> None:
    logits, labels = batch(3)
    half = logits.detach().bfloat16()
    loss = LOSSES[name](half, labels, void=VOID)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(LOSSES[name](half.double(), labels, void=VOID).item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_sum_is_the_mean_times_the_weight_of_the_pixels_that_count(name: str) -> None:
    logits, labels = batch(4)
    for weights in (None, weights_of()):
        counted = labels[labels != VOID]
        count = counted.numel() if weights is None else weights[counted].sum().item()
        mean = LOSSES[name](logits, labels, void=VOID, weights=weights)
        total = LOSSES[name](logits, labels, void=VOID, reduction="sum", weights=weights)
        assert total.item() == pytest.approx(mean.item() * count)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weights", [None, weights_of()])
def test_of_pictures_each_counts_the_same_and_those_of_nothing_but_void_not_at_all(
    name: str, weights: Tensor | None
) -> None:
    parts = [batch(seed, void=void) for seed, void in ((0, 0.1), (1, 0.9), (2, 1.0))]
    logits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    each = [LOSSES[name](x[None], y[None], void=VOID, weights=weights) for x, y in zip(logits, labels, strict=True)]
    image = LOSSES[name](logits, labels, void=VOID, reduction="image", weights=weights)
    assert image.item() == pytest.approx(sum(each).item() / 4, rel=1e-12)  # type: ignore[union-attr]
    assert image.item() != pytest.approx(LOSSES[name](logits, labels, void=VOID, weights=weights).item(), rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_another_reduction_is_refused(name: str) -> None:
    logits, labels = batch(0)
    with pytest.raises(ValueError, match="reduction: got 'none'; expected mean, sum or image"):
        LOSSES[name](logits, labels, void=VOID, reduction="none")  # type: ignore[arg-type]


# --- each -------------------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand() -> None:
    # Probabilities of the true class 3/4 and 1/4, weights 1 and 2, and a void pixel.
    logits = torch.tensor([[[[math.log(3), math.log(3), 9.0]], [[0.0, 0.0, 0.0]]]])
    labels = torch.tensor([[[0, 1, VOID]]])
    assert cross_entropy(logits, labels, void=VOID, reduction="sum").item() == pytest.approx(math.log(4 / 3 * 4))
    assert cross_entropy(logits, labels, void=VOID).item() == pytest.approx(math.log(4 / 3 * 4) / 2)
    weighted = cross_entropy(logits, labels, void=VOID, weights=torch.tensor([1.0, 2.0]))
    assert weighted.item() == pytest.approx((math.log(4 / 3) + 2 * math.log(4)) / 3)


@settings(deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_cross_entropy_equals_torchs(seed: int, weighted: bool) -> None:
    logits, labels = batch(seed)
    weights = weights_of() if weighted else None
    for reduction in ("mean", "sum"):
        ours = cross_entropy(logits, labels, void=VOID, reduction=reduction, weights=weights)  # type: ignore[arg-type]
        assert torch.allclose(ours, F.cross_entropy(logits, labels, weights, ignore_index=VOID, reduction=reduction))


def test_focal_by_hand() -> None:
    logits = torch.tensor([[[[math.log(3)]], [[0.0]]]])
    loss = focal(logits, torch.tensor([[[0]]]), void=VOID, gamma=2)
    assert loss.item() == pytest.approx((1 / 4) ** 2 * math.log(4 / 3))


def test_focal_without_focus_is_cross_entropy() -> None:
    logits, labels = batch(0)
    for weights in (None, weights_of()):
        expected = cross_entropy(logits, labels, void=VOID, weights=weights)
        assert torch.allclose(focal(logits, labels, void=VOID, weights=weights, gamma=0), expected)


def test_focal_gives_easy_pixels_a_smaller_share_than_cross_entropy_does() -> None:
    logits = torch.tensor([[[[3.0, -1.0]], [[0.0, 0.0]]]])
    easy, hard = torch.tensor([[[0, VOID]]]), torch.tensor([[[VOID, 0]]])
    ratios = [(loss(logits, easy, void=VOID) / loss(logits, hard, void=VOID)).item() for loss in (focal, cross_entropy)]
    assert ratios[0] < ratios[1] / 10


def test_focal_has_a_slope_where_the_net_is_quite_sure_and_the_power_is_steep() -> None:
    logits = torch.tensor([[[[200.0]], [[0.0]]]], requires_grad=True)
    focal(logits, torch.tensor([[[0]]]), void=VOID, gamma=0.5).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_dice_by_hand() -> None:
    # p of class 0: 3/4, 3/4; truth 0, 1. Class 0: 2 * 3/4 / (3/2 + 1) = 3/5. Class 1: 2 * 1/4 / (1/2 + 1) = 1/3.
    logits = torch.tensor([[[[math.log(3), math.log(3)]], [[0.0, 0.0]]]])
    labels = torch.tensor([[[0, 1]]])
    assert dice(logits, labels, void=VOID).item() == pytest.approx(1 - (3 / 5 + 1 / 3) / 2)
    weighted = dice(logits, labels, void=VOID, weights=torch.tensor([1.0, 3.0]))
    assert weighted.item() == pytest.approx(1 - (3 / 5 + 3 * 1 / 3) / 4)


@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6), void=st.floats(0, 0.9))
@settings(max_examples=50, deadline=None)
def test_lovasz_of_certain_predictions_is_what_is_missing_of_the_intersection_over_union(
    seed: int, classes: int, void: float
) -> None:
    _, labels = batch(seed, classes, void)
    said = torch.randint(0, classes, labels.shape, generator=seeded(seed + 1))
    certain = 100.0 * F.one_hot(said, classes).movedim(-1, 1).double()
    missed = []
    for k in range(classes):
        true, guess = (labels == k), (said == k) & (labels != VOID)
        if true.any():
            missed.append(1 - (true & guess).sum().item() / (true | guess).sum().item())
    found = lovasz(certain, labels, void=VOID).item()
    assert found == pytest.approx(sum(missed) / len(missed) if missed else 0)


@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6), void=st.floats(0, 0.9), weighed=st.booleans())
@settings(max_examples=50, deadline=None)
def test_lovasz_is_the_mean_over_thresholds_of_what_is_missing_of_the_intersection_over_union(
    seed: int, classes: int, void: float, weighed: bool
) -> None:
    """Where a pixel is wrong if its error is above a threshold, and thresholds lie evenly between 0 and 1."""
    logits, labels = batch(seed, classes, void)
    weights = torch.rand(classes, generator=seeded(seed), dtype=torch.float64) + 0.1
    p, counted = logits.detach().softmax(1), labels != VOID
    missed, share = [], []
    for k in range(classes):
        true = (labels == k)[counted]
        errors = (true.double() - p[:, k][counted]).abs()
        if true.any():
            steps = torch.cat([errors.unique(), torch.ones(1).double()]).diff(prepend=torch.zeros(1).double())
            ious = [((true & (errors < at)).sum() / (true | (errors >= at)).sum()) for at in [*errors.unique(), 2.0]]
            missed.append(sum(step * (1 - iou) for step, iou in zip(steps, ious, strict=True)))
            share.append(weights[k] if weighed else 1.0)
    found = lovasz(logits, labels, void=VOID, weights=weights if weighed else None).item()
    expected = sum(w * m for w, m in zip(share, missed, strict=True)) / sum(share) if share else 0
    assert found == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def test_dice_averages_over_the_classes_that_are_there() -> None:
    logits = torch.tensor([[[[math.log(3), math.log(3)]], [[0.0, 0.0]]]])
    # Class 0 alone: 2 * 3/2 / (3/2 + 2) = 6/7.
    assert dice(logits, torch.tensor([[[0, 0]]]), void=VOID).item() == pytest.approx(1 - 6 / 7)


# --- patch sampling ---------------------------------------------------------------------------------------------------


def test_whole_cells_are_dropped_and_nothing_else_changes() -> None:
    labels = torch.arange(2 * 70 * 90).view(2, 70, 90) % 200
    sampled = sample_patches(labels, keep=0.5, cell=32, void=VOID, generator=seeded(0))
    kept = sampled == labels
    assert ((sampled == VOID) | kept).all()
    for picture in kept:
        for rows in picture.split(32, 0):
            for cell in rows.split(32, 1):
                assert cell.all() or not cell.any()
    assert kept.any()
    assert not kept.all()


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(-20, 20), st.integers(1, 30), st.integers(1, 30))
def test_cells_begin_where_they_are_told_to(cell: int, start: int, height: int, width: int) -> None:
    sampled = sample_patches(
        torch.zeros(1, height, width), keep=0.5, cell=cell, start=start, void=VOID, generator=seeded(height)
    )[0]
    rows, columns = ((torch.arange(n) - start).div(cell, rounding_mode="floor") for n in (height, width))
    for row in rows.unique():
        for column in columns.unique():
            assert sampled[rows == row][:, columns == column].unique().numel() == 1


def test_the_share_of_cells_that_counts_is_the_one_asked_for() -> None:
    sampled = sample_patches(torch.zeros(4, 400, 400), keep=0.25, cell=4, void=VOID, generator=seeded(0))
    assert (sampled == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_keeping_everything_changes_nothing_and_the_labels_given_are_never_touched() -> None:
    labels = torch.randint(0, 9, (2, 33, 31), generator=seeded(0))
    before = labels.clone()
    assert sample_patches(labels, keep=1.0, void=VOID).equal(labels)
    sample_patches(labels, keep=0.1, cell=3, void=VOID)
    assert labels.equal(before)


def test_the_generator_alone_decides_which_cells() -> None:
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    first, again, other = (sample_patches(labels, cell=4, void=VOID, generator=seeded(s)) for s in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_sampled_losses_add_up_to_the_whole_in_expectation() -> None:
    generator = seeded(0)
    logits = torch.randn(1, 3, 16, 16, generator=generator)
    labels = torch.randint(0, 3, (1, 16, 16), generator=generator)
    whole = cross_entropy(logits, labels, void=VOID, reduction="sum").item()
    parts = [
        cross_entropy(
            logits, sample_patches(labels, keep=0.5, cell=4, void=VOID, generator=generator), void=VOID, reduction="sum"
        ).item()
        for _ in range(400)
    ]
    assert sum(parts) / 400 / 0.5 == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize(("keep", "cell", "message"), [(0.0, 32, "keep: got 0.0"), (1.5, 32, "keep"), (0.5, 0, "cell")])
def test_a_share_or_a_cell_that_makes_no_sense_is_refused(keep: float, cell: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_patches(torch.zeros(1, 4, 4), keep=keep, cell=cell, void=VOID)
