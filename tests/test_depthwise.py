"""Depthwise convolutions in bfloat16 on a CPU: the gradients are those of float64, as far as bfloat16 can tell."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_fits import settings
from torch import Tensor, nn

from fullyconv.building import build
from fullyconv.learner import Learner
from fullyconv.presets import fcn
from fullyconv.substitutes import Substitutes


def quick(scores: Tensor) -> int:
    """Convolutions in the history of some scores whose gradients are ours."""
    found, ahead = {scores.grad_fn}, [scores.grad_fn]
    while ahead:
        node = ahead.pop()
        more = {before for before, _ in node.next_functions if before is not None} - found if node else set()
        found |= more
        ahead.extend(more)
    return sum(type(node).__name__ == "_DepthwiseBackward" for node in found)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1), (2, 7)]),
    stride=st.sampled_from([1, 2, (1, 3)]),
    dilation=st.sampled_from([1, 2, (3, 1)]),
    padding=st.sampled_from([0, 1, (2, 3)]),
    channels=st.integers(2, 9),
    biased=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_are_those_of_float64_as_far_as_bfloat16_tells(
    kernel: tuple[int, int], stride: object, dilation: object, padding: object, channels: int, biased: bool,
    channels_last: bool, seed: int,
) -> None:  # fmt: skip
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # In numbers that bfloat16 holds, so that all that differs is how gradients are computed.
    given_numbers = [random(2, channels, 21, 19, seed=seed), random(channels, 1, *kernel, seed=seed + 1)]
    given_numbers += [random(channels, seed=seed + 2)] if biased else []
    numbers = [each.bfloat16().double() for each in given_numbers]
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}

    def gradients(dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        leaves = [each.to(dtype, copy=True).requires_grad_() for each in numbers]
        with Substitutes():
            scores = F.conv2d(leaves[0].contiguous(memory_format=layout), *leaves[1:], **geometry)  # type: ignore[arg-type]
        slope = random(*scores.shape, seed=seed + 3).bfloat16().to(dtype)
        return scores.detach(), list(torch.autograd.grad(scores, leaves, slope))

    scores, found = gradients(torch.bfloat16)
    expected_scores, expected = gradients(torch.float64)
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.double(), expected_scores, rtol=2**-7, atol=2**-5)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), other, rtol=2**-7, atol=2**-6 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("conv", "is_quick"),
    [
        (nn.Conv2d(8, 8, 3, stride=2, groups=8), True),
        (nn.Conv2d(8, 8, 3, stride=(1, 2), groups=8), True),
        (nn.Conv2d(8, 8, 3, dilation=2, groups=8), True),
        (nn.Conv2d(8, 8, 5, groups=8), True),
        (nn.Conv2d(8, 8, (1, 7), groups=8), True),
        (nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="reflect", groups=8), True),
        (nn.Conv2d(8, 8, 3, groups=8), False),  # torch's own are the quicker ones from here on
        (nn.Conv2d(8, 8, 3, stride=2, groups=4), False),
        (nn.Conv2d(8, 8, 3, stride=2), False),
        (nn.Conv2d(8, 16, 3, stride=2, groups=8), False),
        (nn.Conv2d(1, 1, 3, stride=2), False),
        (nn.Conv2d(8, 8, 5, padding="same", groups=8), False),
        (nn.ConvTranspose2d(8, 8, 4, stride=2, groups=8), False),
    ],
)
def test_what_torch_does_well_is_left_to_it(conv: nn.Module, is_quick: bool) -> None:
    images = torch.rand(1, conv.in_channels, 16, 16, requires_grad=True)  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16), Substitutes():
        assert quick(conv(images)) == is_quick
    with Substitutes():
        assert not quick(conv(images))  # in float32
    with torch.autocast("cpu", torch.bfloat16):
        assert not quick(conv(images))


def test_scores_are_bit_for_bit_those_without() -> None:
    conv, images = nn.Conv2d(8, 8, 3, stride=2, groups=8), torch.rand(2, 8, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        plain = conv(images)
        with Substitutes():
            assert torch.equal(conv(images), plain)
            with torch.no_grad():
                assert torch.equal(conv(images), plain)


def test_what_is_frozen_gets_no_gradient() -> None:
    conv, images = nn.Conv2d(8, 8, 5, stride=2, groups=8), torch.rand(2, 8, 16, 16, requires_grad=True)
    assert conv.bias is not None
    for frozen, others in ((conv.weight, [images, conv.bias]), (conv.bias, [images, conv.weight])):
        frozen.requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16), Substitutes():
            scores = conv(images)
        frozen.requires_grad_()
        first, second = torch.autograd.grad(scores.float().square().sum(), others, retain_graph=True)
        assert first.abs().sum() > 0
        assert second.abs().sum() > 0
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(scores.float().sum(), [frozen])


def learners() -> Iterator[tuple[str, Learner]]:
    for precision in ("bf16", "32"):
        torch.manual_seed(0)
        model = build(fcn(8, "mobilenet_v2", classes=3, weights=None, context=8))
        yield precision, Learner(model, settings(device="cpu", precision=precision), void=255)


def test_a_net_that_learns_in_bfloat16_on_a_cpu_has_them() -> None:
    for precision, learner in learners():
        strided = [
            m for m in learner.model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1 and max(m.stride) > 1
        ]
        assert len(strided) == 4
        scores = learner._net(torch.rand(1, 3, 64, 64))["out"]
        assert quick(scores) == (len(strided) if precision == "bf16" else 0)
