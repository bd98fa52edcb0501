"""The Triton kernels give what torch gives: run by ``test_fused.py``, in Triton's interpreter or on a CUDA device.

Whether Triton interprets is settled when it is imported, hence a process of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scoremaps import laid_out, scores_of
from torch import Tensor

from fullyconv import dense, fused, losses
from fullyconv.geometry import Grid
from fullyconv.upsample import Border, Interpolate, Nearest, Steps, Upsample

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOID = 65535
# The interpreter takes milliseconds for each class and program: too long to look for a smaller failing case.
EXAMPLES = settings(
    deadline=None,
    max_examples=200 if DEVICE.type == "cuda" else 8,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
TALL = 60 if DEVICE.type == "cuda" else 14

# The interpreter computes with numpy, which warns of NaN and infinity.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@dataclass
class Case:
    scores: Tensor
    upsample: Upsample | Nearest
    size: tuple[int, int]

    def axes(self) -> tuple[fused.Axis, fused.Axis]:
        taps = dense._taps(self.scores, self.upsample, self.size)
        assert taps is not None
        h, w = self.scores.shape[2:]
        return fused.Axis.of(taps[0], h, DEVICE), fused.Axis.of(taps[1], w, DEVICE)

    def reference(self) -> Tensor:
        """The scores of all pixels, sum by sum as documented."""
        taps = dense._taps(self.scores, self.upsample, self.size)
        assert taps is not None
        return torch.cat(list(dense._bilinear_bands(self.scores, taps)), 2)

    def reduced(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Labels, labels again, their probability, entropy."""
        shape, dtype = (len(self.scores), *self.size), dense._label_type(self.scores)
        labels, again = (torch.full(shape, 99, dtype=dtype, device=DEVICE) for _ in range(2))
        probability, entropy = (torch.full(shape, math.inf, device=DEVICE) for _ in range(2))
        scores = self.scores.to(DEVICE)
        fused.reduce(scores, *self.axes(), labels=labels)
        fused.reduce(scores, *self.axes(), labels=again, probability=probability)
        fused.reduce(scores, *self.axes(), entropy=entropy)
        return labels.cpu(), again.cpu(), probability.cpu(), entropy.cpu()


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = ("noise", "ties", "planes", "large", "masked", "odd")) -> Case:
    classes = draw(st.sampled_from([1, 2, 3, 21]))
    stride = draw(st.sampled_from([1, 2, 3, 8, 13, 32] if classes < 9 else [3, 8, 20]))
    cells = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    offset = Fraction(draw(st.integers(-20, 20)), draw(st.sampled_from([1, 2, 3, 8])))
    source = Grid(Fraction(stride), offset if draw(st.booleans()) else Fraction(stride - 1, 2), Fraction(stride))
    upsample: Upsample | Nearest = Upsample(source, Grid(), classes, border=draw(st.sampled_from(["edge", "zero"])))
    if draw(st.integers(0, 3)) == 0:
        upsample = Interpolate(source, Grid(), classes)
    if draw(st.integers(0, 4)) == 0:
        upsample = Nearest(upsample, draw(st.sampled_from([Fraction(1, 2), Fraction(2)])))
    shape = (draw(st.integers(1, 2)), classes, *cells)
    scores = laid_out(
        scores_of(draw(st.sampled_from(kinds)), shape, generator),
        draw(st.sampled_from(["contiguous", "channels last", "within a larger map"])),
    )
    height, width = (max(1, n * stride + draw(st.integers(-5, 5))) for n in cells)
    return Case(scores, upsample, (min(height, TALL), min(width, 150)))


def plain_entropy(logits: Tensor) -> Tensor:
    shares = logits.double().softmax(1)
    return -torch.xlogy(shares, shares).sum(1)


# --- labels and numbers -----------------------------------------------------------------------------------------------


@EXAMPLES
@given(cases())
def test_labels_equal_those_of_torch_on_every_pixel(case: Case) -> None:
    logits = case.reference()
    labels, again, probability, entropy = case.reduced()
    assert labels.long().equal(logits.max(1).indices)
    assert again.equal(labels)
    expected = logits.double().softmax(1).amax(1).float()
    torch.testing.assert_close(probability, expected, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(entropy, plain_entropy(logits).float(), rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("classes", [255, 256, 1000])
def test_labels_of_many_classes(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    scores = scores_of("ties", (1, classes, 2, 14), generator)
    scores[:, -1, :, 7:] = 9  # the last class wins somewhere
    scores[:, -2:, :, 12] = math.nan
    case = Case(scores, Upsample(Grid(Fraction(9), Fraction(4), Fraction(9)), Grid(), classes), (1, 126))
    labels = torch.empty(1, *case.size, dtype=dense._label_type(scores), device=DEVICE)
    fused.reduce(scores.to(DEVICE), *case.axes(), labels=labels)
    want = case.reference().max(1).indices
    assert labels.cpu().long().equal(want)
    assert {classes - 1, classes - 2} <= set(want.flatten().tolist())


def test_of_equal_scores_the_first_class_wins_and_of_nans_the_first_nan() -> None:
    scores = torch.zeros(1, 4, 2, 2)
    scores[:, 2:] = 1
    case = Case(scores, Upsample(Grid(Fraction(4), Fraction(3, 2), Fraction(4)), Grid(), 4), (8, 8))
    assert (case.reduced()[0] == 2).all()
    scores[:, 1] = torch.nan
    scores[:, 3] = torch.nan
    labels, again, probability, entropy = case.reduced()
    assert (labels == 1).all()
    assert (again == 1).all()
    assert probability.isnan().all()
    assert entropy.isnan().all()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("border", ["edge", "zero"])
def test_a_cell_without_a_share_has_no_say_unless_it_is_nan(value: float, border: Border) -> None:
    # Every fourth row and column of pixels lies on cells, and those beyond the outermost on the zeros or on the edge.
    upsample = Upsample(Grid(Fraction(4)), Grid(Fraction(1), Fraction(-2)), 3, border=border)
    scores = torch.randn(1, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    scores[0, 1, 0, 1] = scores[0, 2, 1, 1] = value
    case = Case(scores, upsample, (10, 15))
    logits = case.reference()
    labels, _, probability, _ = case.reduced()
    assert labels.long().equal(logits.max(1).indices)
    expected = logits.softmax(1).amax(1)
    assert expected.isnan().any() or value == -math.inf
    assert not expected.isnan().all()
    torch.testing.assert_close(probability, expected, rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_nor_has_the_first_of_two_cells_without_a_share(value: float) -> None:
    class OnTheSecond(Upsample):  # as rounding may put a pixel
        def taps(self, cells: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
            return torch.zeros(pixels, dtype=torch.int32), torch.zeros(pixels), torch.ones(pixels)

    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    scores[0, 1, 1, 0] = scores[0, 2, 0, 1] = value
    case = Case(scores, OnTheSecond(Grid(), Grid(), 3), (1, 1))
    logits = case.reference()
    assert bool(logits.isnan().any()) is math.isnan(value)
    labels, _, probability, _ = case.reduced()
    assert labels.long().equal(logits.max(1).indices)
    torch.testing.assert_close(probability, logits.softmax(1).amax(1), rtol=1e-5, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_upsampled_in_single(dtype: torch.dtype) -> None:
    scores = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    upsample = Upsample(Grid().conv(4, stride=4), Grid(), 5)
    half, single = (Case(x, upsample, (8, 12)).reduced() for x in (scores, scores.float()))
    assert all(a.equal(b) for a, b in zip(half, single, strict=True))


# --- the loss ---------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(cases(kinds=("noise", "ties")), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
def test_loss_and_gradient_equal_those_of_everything(case: Case, void: float, weighted: bool) -> None:
    classes = case.scores.shape[1]
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, classes, (len(case.scores), *case.size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < void] = VOID
    weights = torch.rand(2 * classes, generator=generator)[::2] if weighted else None
    scores = case.scores.double().requires_grad_()
    exact = case.upsample(scores, case.size)
    plain = losses.cross_entropy(
        exact, labels, void=VOID, reduction="sum", weights=None if weights is None else weights.double()
    )
    (want,) = torch.autograd.grad(plain, scores)
    arguments = (case.scores.to(DEVICE), *case.axes(), labels.to(DEVICE))
    total, count, slope = fused.cross_entropy(*arguments, void=VOID, weights=weights, slope=True)
    counted = labels != VOID
    share = torch.ones(classes) if weights is None else weights
    assert total.item() == pytest.approx(plain.item(), rel=1e-5, abs=1e-5)
    assert count.item() == pytest.approx(share[labels[counted]].double().sum().item(), rel=1e-5)
    assert slope is not None
    assert (slope.cpu() - want).norm() <= 1e-5 * want.norm() + 1e-6
    if DEVICE.type == "cuda":  # the interpreter runs programs one after the other
        again = fused.cross_entropy(*arguments, void=VOID, weights=weights, slope=True)
        assert again[2] is not None
        assert again[0].equal(total)
        assert again[2].equal(slope)


def test_more_classes_than_a_block_holds_get_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK", 128)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 256, 1, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    case = Case(scores.detach().float(), Upsample(Grid().conv(8, stride=8), Grid(), 256), (1, 13))
    labels = torch.randint(0, 256, (1, 1, 13), generator=generator)
    plain = losses.cross_entropy(case.upsample(scores, case.size), labels, void=VOID, reduction="sum")
    total, _, slope = fused.cross_entropy(
        case.scores.to(DEVICE), *case.axes(), labels.to(DEVICE), void=VOID, weights=None, slope=True
    )
    assert slope is not None
    assert total.item() == pytest.approx(plain.item(), rel=1e-5)
    (want,) = torch.autograd.grad(plain, scores)
    assert (slope.cpu() - want).norm() <= 1e-5 * want.norm()


def test_scores_of_ten_thousand_keep_their_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([1e4, 1e4 + 1, -1e4]).view(1, 3, 1, 1).repeat(1, 1, 2, 2).requires_grad_()
    case = Case(scores.detach(), Upsample(Grid().conv(4, stride=4), Grid(), 3), (8, 8))
    labels = torch.randint(0, 3, (1, 8, 8), generator=generator)
    F.cross_entropy(case.upsample(scores, (8, 8)), labels, reduction="sum").backward()
    slope = fused.cross_entropy(
        case.scores.to(DEVICE), *case.axes(), labels.to(DEVICE), void=VOID, weights=None, slope=True
    )[2]
    assert slope is not None
    torch.testing.assert_close(slope.cpu(), scores.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_makes_the_loss_nan(label: int) -> None:
    case = Case(torch.randn(1, 3, 2, 2), Upsample(Grid().conv(2, stride=2), Grid(), 3), (4, 4))
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0, 0] = label
    total, count, _ = fused.cross_entropy(
        case.scores.to(DEVICE), *case.axes(), labels.to(DEVICE), void=VOID, weights=None, slope=False
    )
    assert total.isnan()
    assert count.isnan()


# --- through dense ----------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the kernels, which are used wherever the scores are."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def count(*args: object, **named: object) -> object:
            calls.append(name)
            return function(*args, **named)

        return count

    for name in ("reduce", "cross_entropy"):
        monkeypatch.setattr(fused, name, counted(name, getattr(fused, name)))
    if DEVICE.type == "cpu":
        monkeypatch.setattr(dense, "_fused", lambda scores: fused if scores.dtype != torch.float64 else None)
    return calls


def test_dense_asks_the_kernels_and_gives_what_torch_gives(calls: list[str]) -> None:
    upsample = Upsample(Grid().conv(4, stride=4), Grid(), 5)
    scores = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    with torch.inference_mode():
        labels, probability = dense.probability(scores, upsample, (12, 15))
        assert dense.argmax(scores, upsample, (12, 15)).equal(labels)
        entropy = dense.entropy(scores, upsample, (12, 15))
    assert calls == ["reduce"] * 3
    block = (5, 7)
    assert labels.equal(dense.argmax(scores, upsample, (12, 15), block=block))
    torch.testing.assert_close(probability, dense.probability(scores, upsample, (12, 15), block=block)[1])
    torch.testing.assert_close(entropy, dense.entropy(scores, upsample, (12, 15), block=block), rtol=1e-5, atol=1e-6)
    assert len(calls) == 3
    dense.argmax(scores.double(), upsample, (12, 15))
    dense.argmax(scores, Steps(Grid().conv(4, stride=4), Grid(), 5), (12, 15))
    dense.argmax(scores, Upsample(Grid().conv(4, stride=4), Grid(), 5, kernel="learned").to(DEVICE), (12, 15))
    assert len(calls) == 3
    assert dense.argmax(scores[:0], upsample, (12, 15)).shape == (0, 12, 15)


@pytest.mark.parametrize("reduction", ["mean", "image"])
def test_dense_asks_the_kernels_for_the_loss_and_its_gradient(calls: list[str], reduction: losses.Reduction) -> None:
    generator = torch.Generator().manual_seed(0)
    upsample = Upsample(Grid().conv(4, stride=4), Grid(), 5)
    net = torch.nn.Conv2d(3, 5, 1).to(DEVICE)
    picture = torch.randn(2, 3, 3, 4, generator=generator).to(DEVICE)
    labels = torch.randint(0, 5, (2, 12, 15), generator=generator).to(DEVICE)
    labels[0, :4, :6] = VOID
    weights = torch.rand(5, generator=generator).to(DEVICE)

    def slopes(block: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        loss = dense.cross_entropy(
            net(picture), upsample, labels, void=VOID, reduction=reduction, weights=weights, block=block
        )
        return loss.detach(), torch.autograd.grad(loss * 3, net.weight)[0]

    by_kernel = slopes(None)
    assert calls == ["cross_entropy"] * (2 if reduction == "image" else 1)
    by_torch = slopes((5, 7))
    torch.testing.assert_close(by_kernel[0], by_torch[0], rtol=1e-5, atol=0)
    assert (by_kernel[1] - by_torch[1]).norm() <= 1e-5 * by_torch[1].norm()


@pytest.mark.usefixtures("calls")
def test_half_precision_gets_a_gradient_in_half_precision() -> None:
    scores = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16().to(DEVICE).requires_grad_()
    labels = torch.zeros(1, 8, 8, dtype=torch.long, device=DEVICE)
    loss = dense.cross_entropy(scores, Upsample(Grid().conv(4, stride=4), Grid(), 3), labels, void=VOID)
    loss.backward()
    assert loss.dtype == torch.float32
    assert scores.grad is not None
    assert scores.grad.dtype == torch.bfloat16
    assert scores.grad.any()


@pytest.mark.usefixtures("calls")
def test_no_tensor_of_the_size_of_full_resolution_logits_is_ever_made() -> None:
    classes, size = 9, (13, 40)
    scores = torch.randn(1, classes, 1, 3).to(DEVICE).requires_grad_()
    upsample = Upsample(Grid().conv(13, stride=13), Grid(), classes)
    labels = torch.zeros(1, *size, dtype=torch.long, device=DEVICE)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        dense.probability(scores, upsample, size)
        dense.cross_entropy(scores, upsample, labels, void=VOID).backward()
    assert largest == size[0] * size[1]


# --- where they do not run --------------------------------------------------------------------------------------------


def test_it_is_known_whether_they_run_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FULLYCONV_NATIVE", raising=False)
    fused.why_not.cache_clear()
    assert fused.why_not(DEVICE) == ""
    fused.why_not.cache_clear()
    monkeypatch.setenv("FULLYCONV_NATIVE", "0")
    assert fused.why_not(DEVICE) == "switched off (FULLYCONV_NATIVE=0)"
    fused.why_not.cache_clear()
    monkeypatch.delenv("FULLYCONV_NATIVE")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(fused, "reduce", fail)
    assert fused.why_not(DEVICE) == "not compiled (Failed to find C compiler.)"
    fused.why_not.cache_clear()
