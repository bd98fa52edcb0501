"""What is computed block by block equals what is computed at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fullyconv import dense, devices, losses
from fullyconv.config import Upsampling as Kernel
from fullyconv.geometry import Grid
from fullyconv.upsample import Border, Nearest, Steps, Upsample

VOID = 65535


def grid(stride: int, offset: Fraction | None = None) -> Grid:
    """Cells of this stride; by default each in the middle of its block of pixels, as VGG's are."""
    return Grid(Fraction(stride), Fraction(stride - 1, 2) if offset is None else offset, Fraction(stride))


@dataclass
class Case:
    scores: Tensor
    upsample: Upsample
    size: tuple[int, int]
    block: tuple[int, int]
    labels: Tensor
    weights: Tensor | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    pictures = draw(st.integers(1, 2))
    classes = draw(st.sampled_from([1, 2, 3, 21, 256, 300]))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    stride = draw(st.sampled_from([1, 2, 4, 8, 32]))
    lies = grid(stride, Fraction(draw(st.integers(-8, 8)), 2) if draw(st.booleans()) else None)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    # Not as many cells as the picture needs: the edges are replicated, or cells lie outside.
    cells = [max(1, -(-n // stride) + draw(st.integers(-1, 1))) for n in (height, width)]
    labels = torch.randint(0, classes, (pictures, height, width), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = VOID
    return Case(
        scores=torch.randn(pictures, classes, *cells, generator=generator, dtype=torch.float64) * 3,
        upsample=Upsample(lies, Grid(), classes),
        size=(height, width),
        block=(draw(st.integers(1, 41)), draw(st.integers(1, 41))),
        labels=labels,
        weights=torch.rand(classes, generator=generator, dtype=torch.float64) if draw(st.booleans()) else None,
    )


def clear(logits: Tensor) -> Tensor:
    """Where the largest score is no tie that rounding could decide, (B, H, W)."""
    if logits.shape[1] == 1:
        return torch.ones_like(logits[:, 0], dtype=torch.bool)
    first, second = logits.topk(2, 1).values.unbind(1)
    return first - second > 1e-9


def near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm() + 1e-30)


# --- labels and probabilities -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(cases())
def test_argmax_in_blocks_equals_argmax_of_everything(case: Case) -> None:
    logits = case.upsample(case.scores, case.size)
    labels = dense.argmax(case.scores, case.upsample, case.size, block=case.block)
    assert labels.shape == (len(case.scores), *case.size)
    assert labels.dtype == (torch.uint8 if logits.shape[1] <= 255 else torch.int32)
    assert labels.long()[clear(logits)].equal(logits.argmax(1)[clear(logits)])


@settings(deadline=None, max_examples=50)
@given(cases())
def test_probability_in_blocks_equals_softmax_of_everything(case: Case) -> None:
    logits = case.upsample(case.scores, case.size)
    labels, probability = dense.probability(case.scores, case.upsample, case.size, block=case.block)
    same = dense.argmax(case.scores, case.upsample, case.size, block=case.block)
    assert labels.dtype == same.dtype
    assert labels.equal(same)
    assert probability.dtype == torch.float32
    assert torch.allclose(probability, logits.softmax(1).amax(1).float(), rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(cases())
def test_bands_of_probabilities_join_to_softmax_of_everything(case: Case) -> None:
    bands = list(dense.probabilities_bands(case.scores, case.upsample, case.size, rows=case.block[0]))
    assert all(band.shape[2] == case.block[0] for band in bands[:-1])
    assert torch.allclose(torch.cat(bands, 2), case.upsample(case.scores, case.size).softmax(1), atol=1e-12)


@pytest.mark.parametrize("classes", [2, 21])
def test_labels_of_a_large_picture_equal_those_of_interpolate(classes: int) -> None:
    scores = torch.randn(2, classes, 40, 61, generator=torch.Generator().manual_seed(0))
    size = (320, 488)
    logits = F.interpolate(scores, size, mode="bilinear")
    labels, probability = dense.probability(scores, Upsample(grid(8), Grid(), classes), size)
    wrong = labels.long() != logits.argmax(1)
    # Scores in single precision may tie to rounding; nowhere else may a label differ.
    chosen = logits.gather(1, labels.long().unsqueeze(1)).squeeze(1)
    assert torch.allclose(chosen, logits.amax(1), atol=1e-5)
    assert wrong.double().mean() < 1e-4
    assert torch.allclose(probability, logits.softmax(1).amax(1), atol=1e-5)
    bands = torch.cat(list(dense.probabilities_bands(scores, Upsample(grid(8), Grid(), classes), size)), 2)
    assert torch.allclose(bands, logits.softmax(1), atol=1e-5)


def test_of_equal_scores_the_first_class_wins_and_of_nans_the_first_nan() -> None:
    upsample = Upsample(grid(4), Grid(), 4)
    scores = torch.zeros(1, 4, 3, 3)
    assert not dense.argmax(scores, upsample, (12, 12)).any()
    scores[:, 2:] = 1
    assert (dense.argmax(scores, upsample, (12, 12)) == 2).all()
    scores[:, 1] = torch.nan
    scores[:, 3] = torch.nan
    assert (dense.argmax(scores, upsample, (12, 12)) == 1).all()


def test_the_last_of_255_classes_fits_its_label_and_the_last_of_256_is_not_taken_for_void() -> None:
    for classes, dtype in ((255, torch.uint8), (256, torch.int32)):
        scores = torch.zeros(1, classes, 2, 2)
        scores[:, -1] = 1
        labels = dense.argmax(scores, Upsample(grid(2), Grid(), classes), (4, 4))
        assert labels.dtype == dtype
        assert (labels == classes - 1).all()


def test_labels_do_not_depend_on_autocast() -> None:
    # Scores that differ by less than bfloat16 can hold.
    scores = 1000 + torch.rand(1, 5, 20, 20, generator=torch.Generator().manual_seed(0))
    upsample = Upsample(grid(4), Grid(), 5)
    labels = dense.argmax(scores, upsample, (80, 80))
    with torch.autocast("cpu", torch.bfloat16):
        assert dense.argmax(scores, upsample, (80, 80)).equal(labels)
        assert dense.argmax(scores.bfloat16(), upsample, (80, 80)).shape == (1, 80, 80)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(cases(), st.sampled_from(["mean", "sum"]))
def test_loss_and_gradient_in_blocks_equal_those_of_everything(case: Case, reduction: losses.Reduction) -> None:
    scores = case.scores.requires_grad_()
    logits = case.upsample(scores, case.size)
    plain = losses.cross_entropy(logits, case.labels, void=VOID, reduction=reduction, weights=case.weights)
    banded = dense.cross_entropy(
        scores, case.upsample, case.labels, void=VOID, reduction=reduction, weights=case.weights, block=case.block
    )
    assert torch.allclose(banded, plain, rtol=1e-10)
    gradients = [torch.autograd.grad(loss * 3, scores)[0] for loss in (banded, plain)]
    assert torch.allclose(*gradients, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)])
def test_the_gradient_is_the_slope(weights: Tensor | None) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 9, 11), generator=generator)
    labels[0, :4, :5] = VOID
    upsample = Upsample(grid(3), Grid(), 3)
    assert torch.autograd.gradcheck(
        lambda x: dense.cross_entropy(x, upsample, labels, void=VOID, weights=weights, block=(4, 5)), (scores,)
    )


@pytest.mark.parametrize(("pictures", "classes", "stride"), [(4, 11, 4), (2, 150, 8), (1, 2, 32)])
def test_single_precision_agrees_with_interpolate_to_a_hundred_thousandth(
    pictures: int, classes: int, stride: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    height, width = 6 * stride, 8 * stride
    scores = torch.randn(pictures, classes, 6, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (pictures, height, width), generator=generator)
    labels[:, : stride // 2] = VOID
    plain = F.cross_entropy(F.interpolate(scores, (height, width), mode="bilinear"), labels, ignore_index=VOID)
    banded = dense.cross_entropy(scores, Upsample(grid(stride), Grid(), classes), labels, void=VOID)
    assert banded.item() == pytest.approx(plain.item(), rel=1e-5)
    assert near(*(torch.autograd.grad(loss, scores)[0] for loss in (banded, plain)), 1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_but_void_costs_nothing_and_teaches_nothing(reduction: losses.Reduction) -> None:
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    labels = torch.full((1, 8, 8), VOID)
    loss = dense.cross_entropy(scores, Upsample(grid(4), Grid(), 3), labels, void=VOID, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_scores_of_ten_thousand_stay_finite_and_right() -> None:
    scores = torch.tensor([1e4, -1e4, 0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).contiguous().requires_grad_()
    labels = torch.tensor([[[0, 0], [1, 2]]])
    loss = dense.cross_entropy(scores, Upsample(grid(1), Grid(), 3), labels, void=VOID, reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(3e4)
    assert scores.grad is not None
    assert scores.grad[0, :, 1, 0].tolist() == [1, -1, 0]
    assert dense.probability(scores, Upsample(grid(1), Grid(), 3), (2, 2))[1].eq(1).all()


def test_a_pixel_of_low_scores_beside_one_of_high_ones_keeps_its_loss() -> None:
    # Two classes on two pixels: 10,000 the wrong way, and undecided far below.
    scores = torch.tensor([[[[1e4, -1e4]], [[0.0, -1e4]]]], dtype=torch.float64)
    labels, upsample = torch.tensor([[[1, 0]]]), Upsample(grid(1), Grid(), 2)
    loss = dense.cross_entropy(scores, upsample, labels, void=VOID, reduction="sum")
    assert loss.item() == pytest.approx(1e4 + math.log(2), rel=1e-12)
    entropy, probability = dense.entropy(scores, upsample, (1, 2)), dense.probability(scores, upsample, (1, 2))[1]
    assert entropy.flatten().tolist() == pytest.approx([0, math.log(2)])
    assert probability.flatten().tolist() == [1, 0.5]


def test_loss_and_gradient_do_not_depend_on_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 8, 8, generator=generator, requires_grad=True)
    labels = torch.randint(0, 5, (2, 32, 32), generator=generator)
    upsample = Upsample(grid(4), Grid(), 5)

    def compute() -> tuple[Tensor, Tensor]:
        loss = dense.cross_entropy(scores, upsample, labels, void=VOID)
        return loss.detach(), torch.autograd.grad(loss, scores)[0]

    expected = compute()
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradient = compute()
    assert loss.equal(expected[0])
    assert gradient.equal(expected[1])


def test_scores_in_half_precision_get_a_gradient_in_half_precision() -> None:
    scores = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    loss = dense.cross_entropy(scores, Upsample(grid(4), Grid(), 3), labels, void=VOID)
    loss.backward()
    assert loss.dtype == torch.float32
    assert scores.grad is not None
    assert scores.grad.dtype == torch.bfloat16
    assert scores.grad.any()


def test_without_a_gradient_asked_for_only_the_loss_is_computed() -> None:
    scores, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 16, 16, dtype=torch.long)
    loss = dense.cross_entropy(scores, Upsample(grid(4), Grid(), 3), labels, void=VOID)
    assert not loss.requires_grad
    assert loss.item() > 0


def test_the_gradient_goes_on_into_the_net() -> None:
    net = torch.nn.Conv2d(3, 5, 1)
    picture, labels = torch.randn(2, 3, 6, 6), torch.randint(0, 5, (2, 24, 24))
    upsample = Upsample(grid(4), Grid(), 5)
    weight = net.weight
    banded = dense.cross_entropy(net(picture), upsample, labels, void=VOID)
    plain = losses.cross_entropy(upsample(net(picture), (24, 24)), labels, void=VOID)
    assert near(*(torch.autograd.grad(loss, weight)[0] for loss in (banded, plain)), 1e-5)


# --- learned upsampling -----------------------------------------------------------------------------------------------


def test_learned_upsampling_is_done_as_it_learned_and_goes_on_learning() -> None:
    generator = torch.Generator().manual_seed(0)
    upsample = Upsample(grid(4), Grid(), 3, kernel="learned")
    with torch.no_grad():
        upsample.weight += 0.2 * torch.randn(upsample.weight.shape, generator=generator)
    scores = torch.randn(2, 3, 5, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 19, 23), generator=generator)
    logits = upsample(scores, (19, 23))

    assert dense.argmax(scores, upsample, (19, 23)).long().equal(logits.argmax(1))
    found, probability = dense.probability(scores, upsample, (19, 23))
    assert found.long().equal(logits.argmax(1))
    assert torch.allclose(probability, logits.softmax(1).amax(1))
    assert torch.allclose(torch.cat(list(dense.probabilities_bands(scores, upsample, (19, 23))), 2), logits.softmax(1))

    loss = dense.cross_entropy(scores, upsample, labels, void=VOID)
    assert torch.allclose(loss, losses.cross_entropy(logits, labels, void=VOID))
    loss.backward()
    assert upsample.weight.grad is not None
    assert upsample.weight.grad.any()


@dataclass
class Learned:
    scores: Tensor
    upsample: Upsample | Steps | Nearest
    size: tuple[int, int]
    rows: int
    generator: torch.Generator


@st.composite
def learned(draw: st.DrawFn) -> Learned:
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    classes = draw(st.sampled_from([1, 3]))
    border: Border = draw(st.sampled_from(["edge", "zero"]))
    kernel: Kernel = draw(st.sampled_from(["learned", "full"]))
    # Offsets of frames by 100, as the authors' nets have, among them.
    offset = Fraction(stride - 1, 2) - draw(st.sampled_from([0, 0, stride, 5 * stride]))
    kind = Steps if draw(st.booleans()) and stride > 1 else Upsample
    upsample: Upsample | Steps = kind(grid(stride, offset), Grid(), classes, kernel=kernel, border=border).double()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    with torch.no_grad():
        for weight in upsample.parameters():
            weight += torch.rand(weight.shape, generator=generator)  # no tap is zero
    cells = draw(st.integers(1, 12))
    scale = draw(st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(2)]))
    return Learned(
        scores=torch.randn(2, classes, cells, 5, generator=generator, dtype=torch.float64),
        upsample=upsample if scale == 1 else Nearest(upsample, scale),
        size=(max(1, int(cells * stride / scale) + draw(st.integers(-9, 9))), max(1, int(5 * stride / scale))),
        rows=draw(st.integers(1, 30)),
        generator=generator,
    )


@settings(deadline=None, max_examples=40)
@given(learned())
def test_learned_upsampling_band_by_band_equals_all_at_once(case: Learned) -> None:
    bands = list(dense._learned_bands(case.scores, case.upsample, case.size, case.rows))
    joined = torch.cat(bands, 2)
    assert len(bands) == 1 or all(band.shape[2] == case.rows for band in bands[:-1])
    torch.testing.assert_close(joined, case.upsample(case.scores, case.size), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(learned(), st.sampled_from(["mean", "sum", "image"]), st.booleans(), st.sampled_from([0.0, 0.3, 1.0]))
def test_loss_through_learned_upsampling_teaches_scores_and_kernels_as_if_computed_at_once(
    case: Learned, reduction: losses.Reduction, weighted: bool, void_share: float
) -> None:
    classes, generator = case.scores.shape[1], case.generator
    labels = torch.randint(0, classes, (2, *case.size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void_share] = VOID
    labels = losses.sample_patches(labels, keep=0.7, cell=4, void=VOID, generator=generator)
    weights = torch.rand(classes, generator=generator, dtype=torch.float64) if weighted else None
    scores = case.scores.requires_grad_()
    kernels = list(case.upsample.parameters())
    plain = losses.cross_entropy(
        case.upsample(scores, case.size), labels, void=VOID, reduction=reduction, weights=weights
    )
    banded = dense.cross_entropy(
        scores, case.upsample, labels, void=VOID, reduction=reduction, weights=weights, block=(case.rows, 1)
    )
    assert torch.allclose(banded, plain, rtol=1e-10, atol=1e-14)
    found, expected = (torch.autograd.grad(3 * loss, (scores, *kernels)) for loss in (banded, plain))
    for ours, theirs in zip(found, expected, strict=True):
        assert near(ours, theirs, 1e-10)


def test_single_precision_and_autocast_change_a_learned_loss_by_no_more_than_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    upsample = Upsample(grid(8), Grid(), 11, kernel="learned")
    scores = torch.randn(2, 11, 9, 12, generator=generator).requires_grad_()
    labels = torch.randint(0, 11, (2, 70, 96), generator=generator)
    plain = losses.cross_entropy(upsample(scores, (70, 96)), labels, void=VOID)
    expected = torch.autograd.grad(plain, (scores, upsample.weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss = dense.cross_entropy(scores, upsample, labels, void=VOID, block=(24, 1))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, (scores, upsample.weight)), expected, strict=True):
        assert near(ours, theirs, 1e-5)
    # A cell gets its gradient from many bands, and it is rounded once.
    half = scores.detach().bfloat16().requires_grad_()
    dense.cross_entropy(half, upsample, labels, void=VOID, block=(1, 1)).backward()
    wide = half.detach().float().requires_grad_()
    losses.cross_entropy(upsample(wide, (70, 96)), labels, void=VOID).backward()
    assert half.grad is not None
    assert wide.grad is not None
    assert half.grad.dtype == torch.bfloat16
    assert near(half.grad.float(), wide.grad.bfloat16().float(), 1e-3)


def test_a_learned_loss_without_a_gradient_asked_for_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    upsample = Upsample(grid(4), Grid(), 3, kernel="learned")
    scores, labels = torch.randn(1, 3, 4, 4), torch.zeros(1, 16, 16, dtype=torch.long)
    with_slopes = dense.cross_entropy(scores, upsample, labels, void=VOID)
    monkeypatch.setattr(torch.autograd, "grad", None)
    with torch.no_grad():
        assert dense.cross_entropy(scores, upsample, labels, void=VOID).item() == with_slopes.item()
    upsample.requires_grad_(False)
    assert not dense.cross_entropy(scores, upsample, labels, void=VOID).requires_grad


def test_entropy_is_that_of_the_softmax() -> None:
    scores = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    scores[:, 2] -= 10000
    upsample = Upsample(grid(4), Grid(), 7)
    shares = upsample(scores, (19, 23)).softmax(1)
    for block in (None, (5, 8)):
        entropy = dense.entropy(scores, upsample, (19, 23), block=block)
        assert entropy.dtype == torch.float32
        torch.testing.assert_close(entropy, -torch.xlogy(shares, shares).sum(1).float(), rtol=1e-6, atol=1e-7)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_three_threads")
@settings(deadline=None, max_examples=20)
@given(cases(), st.sampled_from(["mean", "sum"]))
def test_threads_change_nothing_but_rounding(case: Case, reduction: losses.Reduction) -> None:
    def compute() -> list[Tensor]:
        scores = case.scores.detach().requires_grad_()
        with torch.inference_mode():
            labels, probability = dense.probability(scores, case.upsample, case.size, block=case.block)
        loss = dense.cross_entropy(
            scores, case.upsample, case.labels, void=VOID, reduction=reduction, weights=case.weights, block=case.block
        )
        return [labels, probability, loss.detach(), *torch.autograd.grad(loss, scores)]

    several = compute()
    torch.set_num_threads(1)
    alone = compute()
    torch.set_num_threads(3)
    assert several[0].equal(alone[0])
    for a, b in zip(several[1:], alone[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("_three_threads")
def test_work_is_shared_among_threads_in_which_torch_is_serial_and_elsewhere_is_not() -> None:
    devices._serial_threads.cache_clear()
    seen: dict[str, int] = {}

    class Watched(Upsample):
        def __call__(self, *args: object) -> Tensor:
            raise AssertionError("all at once")

    def reduce(fine: Tensor) -> tuple[Tensor]:
        seen[threading.current_thread().name] = torch.get_num_threads()
        time.sleep(0.01)  # so that no thread can do it all
        return (fine[:, :, 0],)

    dense._reduced(torch.zeros(1, 2, 8, 8), Watched(grid(8), Grid(), 2), (64, 64), (64, 8), reduce)
    assert seen == {"serial_0": 1, "serial_1": 1, "serial_2": 1}
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(torch.get_num_threads).result() == 3


@pytest.mark.usefixtures("_three_threads")
def test_neither_autocast_nor_gradients_reach_the_threads() -> None:
    scores = 1000 + torch.rand(1, 5, 20, 20, generator=torch.Generator().manual_seed(0))
    upsample = Upsample(grid(4), Grid(), 5)
    labels = dense.argmax(scores, upsample, (80, 80))
    with torch.autocast("cpu", torch.bfloat16):
        assert dense.argmax(scores.requires_grad_(), upsample, (80, 80)).equal(labels)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kernel", "share"),
    [
        ("argmax", "fixed", 15),
        ("probability", "fixed", 15),
        ("cross_entropy", "fixed", 15),
        ("cross_entropy", "learned", 3),
    ],
)
def test_no_tensor_of_the_size_of_full_resolution_logits_is_ever_made(what: str, kernel: Kernel, share: int) -> None:
    classes, size = 30, (512, 768)
    scores = torch.randn(2, classes, 64, 96, requires_grad=what == "cross_entropy")
    upsample = Upsample(grid(8), Grid(), classes, kernel=kernel)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        if what == "cross_entropy":
            labels = torch.zeros(2, *size, dtype=torch.long)
            dense.cross_entropy(scores, upsample, labels, void=VOID).backward()
        else:
            getattr(dense, what)(scores, upsample, size)
    assert 0 < largest < 2 * classes * size[0] * size[1] / share


@pytest.mark.parametrize(
    ("pictures", "classes", "width", "threads", "block"),
    [
        # 393,216 scores fit the cache: 585 columns of 21 classes in 32 rows, but 256 are enough; 500 halve evenly.
        (1, 21, 500, 1, (32, 250)),
        (1, 21, 513, 1, (32, 171)),  # one column more, and a strip more
        (1, 21, 500, 3, (32, 167)),  # two strips would leave a thread idle
        # 12 columns of 1000 classes would be too narrow: at least 64, in eight strips of 63, and so 6 rows.
        (1, 1000, 500, 1, (6, 63)),
        (2, 500, 500, 1, (6, 63)),  # so with two pictures of half as many
        (1, 10**6, 40, 2, (1, 32)),  # even where a single row is too much; no strip is narrower than 32
        (1, 2, 20, 2, (32, 20)),  # unless the picture is
    ],
)
def test_a_block_fits_the_cache_and_gives_every_thread_as_many_strips(
    pictures: int, classes: int, width: int, threads: int, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert dense._block_that_fits(torch.empty(1, 1, 1, 1).expand(1, pictures, classes, 1), width) == block


def test_a_block_that_is_given_is_the_one_that_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: set[tuple[int, int]] = set()
    spread_down = dense._Strip.spread_down

    def watched(strip: dense._Strip, wide: Tensor) -> Tensor:
        fine = spread_down(strip, wide)
        made.add((fine.shape[0], fine.shape[3]))
        return fine

    monkeypatch.setattr(dense._Strip, "spread_down", watched)
    scores, upsample = torch.randn(1, 3, 3, 4, requires_grad=True), Upsample(grid(4), Grid(), 3)
    for compute in (dense.argmax, dense.probability, dense.entropy):
        made.clear()
        compute(scores.detach(), upsample, (12, 15), block=(4, 5))
        assert made == {(4, 5)}
    for reduction in ("mean", "image"):
        made.clear()
        labels = torch.zeros(1, 12, 15, dtype=torch.long)
        dense.cross_entropy(scores, upsample, labels, void=VOID, reduction=reduction, block=(4, 5)).backward()
        assert made == {(4, 5)}


def test_a_band_that_is_given_is_the_one_that_is_made_of_learned_upsampling(monkeypatch: pytest.MonkeyPatch) -> None:
    heights: list[int] = []
    spread = dense._Band.spread

    def watched(band: dense._Band, cells: Tensor, upsample: Upsample, width: int) -> Tensor:
        fine = spread(band, cells, upsample, width)
        heights.append(fine.shape[2])
        return fine

    monkeypatch.setattr(dense._Band, "spread", watched)
    scores, upsample = torch.randn(1, 3, 3, 4), Upsample(grid(4), Grid(), 3, kernel="learned")
    labels = torch.zeros(1, 12, 15, dtype=torch.long)
    dense.cross_entropy(scores, upsample, labels, void=VOID, block=(5, 4))
    assert heights == [5, 5, 2]
    assert [band.shape[2] for band in dense.probabilities_bands(scores, upsample, (12, 15), rows=7)] == [7, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_half_precision_is_upsampled_in_single_block_by_block_and_beside_what_is_not_finite(
    dtype: torch.dtype, value: float
) -> None:
    scores = torch.randn(1, 5, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[0, 2, 1, 1] = value
    upsample = Upsample(grid(8), Grid(), 5)
    half, single = (dense.probability(s, upsample, (32, 32), block=(5, 7)) for s in (scores, scores.float()))
    assert half[0].equal(single[0])
    assert half[1].dtype == torch.float32
    torch.testing.assert_close(half[1], single[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("pictures", "classes", "block"), [(2, 21, (780, 512)), (1, 40000, (1, 512))])
def test_on_a_device_a_block_is_512_wide_and_of_16_million_scores(
    pictures: int, classes: int, block: tuple[int, int]
) -> None:
    assert dense._block_that_fits(torch.empty(3, pictures, classes, 5, device="meta"), 99) == block


@pytest.mark.parametrize(
    ("classes", "size", "heights"), [(16, (1100, 64), [1024, 76]), (300, (2, 4000), [1, 1]), (4096, (3, 128), [2, 1])]
)
def test_a_band_of_probabilities_is_of_a_million_or_one_row(
    classes: int, size: tuple[int, int], heights: list[int]
) -> None:
    upsample = Upsample(grid(32), Grid(), classes)
    bands = dense.probabilities_bands(torch.zeros(1, classes, 1, 1), upsample, size)
    assert [band.shape[2] for band in bands] == heights


@pytest.mark.parametrize(
    ("pictures", "classes", "width", "rows"), [(1, 4, 1024, 1024), (2, 4, 1024, 512), (1, 2**12, 2**11, 4)]
)
def test_a_band_of_learned_upsampling_is_of_four_million_scores_or_one_cell(
    pictures: int, classes: int, width: int, rows: int
) -> None:
    upsample = Upsample(grid(4), Grid(), 1, kernel="learned")
    scores = torch.zeros(1, 1, 1, 1).expand(pictures, classes, 300, 1)
    pixels = [band.pixels for band in dense._learned_cut(scores, upsample, (1200, width), None)]
    assert pixels[0] == slice(0, rows)
    assert [part.start for part in pixels[1:]] == [part.stop for part in pixels[:-1]]
    assert pixels[-1].stop == 1200


def test_where_a_cell_is_no_whole_number_of_pixels_all_rows_are_one_band() -> None:
    upsample = Nearest(Upsample(grid(3), Grid(), 1, kernel="learned"), Fraction(2))
    assert list(dense._learned_cut(torch.zeros(1, 1, 4, 5), upsample, (6, 9), 2)) == [(slice(0, 6), slice(0, 4), 0)]


@pytest.mark.parametrize("all_void", [False, True])
def test_the_mean_over_pictures_is_the_plain_one(all_void: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    upsample = Upsample(grid(4), Grid(), 4)
    labels = torch.randint(0, 4, (3, 20, 23), generator=generator)
    labels[0, 5:] = VOID
    labels[1] = VOID
    if all_void:
        labels[:] = VOID
    banded = dense.cross_entropy(scores, upsample, labels, void=VOID, reduction="image")
    (slope,) = torch.autograd.grad(banded, scores)
    plain = losses.cross_entropy(upsample(scores, (20, 23)), labels, void=VOID, reduction="image")
    (want,) = torch.autograd.grad(plain, scores)
    torch.testing.assert_close(banded, plain)
    torch.testing.assert_close(slope, want)
    assert bool(slope.any()) is not all_void


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["fixed", "learned", "steps"])
def test_no_pictures_give_no_labels_and_no_loss(kind: str, dtype: torch.dtype) -> None:
    source = Grid().conv(8, stride=8)
    made = {
        "fixed": lambda: Upsample(source, Grid(), 5),
        "learned": lambda: Upsample(source, Grid(), 5, kernel="learned"),
        "steps": lambda: Steps(source, Grid(), 5),
    }
    upsample = made[kind]().to(dtype)
    none = torch.zeros(0, 5, 4, 6, dtype=dtype, requires_grad=True)
    loss = dense.cross_entropy(none, upsample, torch.zeros(0, 32, 48, dtype=torch.int64), void=255)
    loss.backward()
    assert loss == 0
    with torch.no_grad():
        assert dense.argmax(none, upsample, (32, 48)).shape == (0, 32, 48)
        assert all(part.shape == (0, 32, 48) for part in dense.probability(none, upsample, (32, 48)))
        assert dense.entropy(none, upsample, (32, 48)).shape == (0, 32, 48)
        assert sum(band.shape[2] for band in dense.probabilities_bands(none, upsample, (32, 48))) == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_labels_and_weights_of_others_are_refused_and_not_spread(dtype: torch.dtype) -> None:
    upsample, scores = Upsample(Grid().conv(8, stride=8), Grid(), 5), torch.randn(2, 5, 4, 6, dtype=dtype)
    labels = torch.zeros(2, 32, 48, dtype=torch.int64)
    for wrong in (labels[:1], labels[0], labels.int()):
        with pytest.raises(ValueError, match=r"labels: got .*; expected \(2, H, W\) torch\.int64, beside scores"):
            dense.cross_entropy(scores, upsample, wrong, void=255)
    with pytest.raises(ValueError, match=r"weights: got shape \(9,\); expected \(5,\), one for each class"):
        dense.cross_entropy(scores, upsample, labels, void=255, weights=torch.ones(9))
