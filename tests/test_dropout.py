"""Dropout by sixteen bits an element: the shares, means, gradients and memory formats of torch's own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fullyconv.dropout import LEVELS, dropout
from fullyconv.substitutes import Substitutes


def seeded(input: Tensor, p: float, *, inplace: bool = False) -> Tensor:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return dropout(input, p, inplace=inplace)


@given(
    shape=st.sampled_from([(4000,), (3, 5, 17, 19), (1, 64, 9, 8), (2, 3, 40, 41)]),
    p=st.floats(0.01, 0.99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    channels_last=st.booleans(),
)
def test_each_element_is_dropped_or_enlarged_with_its_probability(
    shape: tuple[int, ...], p: float, dtype: torch.dtype, channels_last: bool
) -> None:
    input = 1 + torch.rand(shape, dtype=torch.float64).to(dtype)
    if channels_last and input.ndim == 4:
        input = input.contiguous(memory_format=torch.channels_last)
    input.requires_grad_()
    found = seeded(input, p)
    kept = found != 0
    factor = LEVELS / (LEVELS - round(p * LEVELS))
    assert found.dtype == dtype
    assert found.stride() == input.stride()
    torch.testing.assert_close(found, torch.where(kept, input * factor, 0), rtol=2**-7, atol=0)
    spread = math.sqrt(p * (1 - p) / kept.numel())
    assert abs(float(kept.double().mean()) - (1 - p)) < 6 * spread + 1 / LEVELS
    (slope,) = torch.autograd.grad(found.sum(), input)
    torch.testing.assert_close(slope, kept.to(dtype) * factor, rtol=2**-7, atol=0)


def test_the_four_decisions_of_a_number_are_independent() -> None:
    kept = (seeded(torch.ones(400_000), 0.3) != 0).double().view(-1, 4)
    spread = math.sqrt(0.3 * 0.7 / len(kept))
    assert kept.mean(0).sub(0.7).abs().max() < 5 * spread
    together = torch.corrcoef(torch.cat([kept, kept.roll(1, 0)], 1).T) - torch.eye(8)
    assert together.abs().max() < 5 / math.sqrt(len(kept))


def test_it_is_another_draw_each_time_and_the_same_from_a_seed() -> None:
    input = torch.ones(1000)
    assert torch.equal(seeded(input, 0.5), seeded(input, 0.5))
    torch.manual_seed(0)
    assert not torch.equal(dropout(input), dropout(input))


def test_in_place_it_fills_the_same_memory() -> None:
    input = torch.rand(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    expected = seeded(input, 0.4)
    assert seeded(input, 0.4, inplace=True) is input
    assert torch.equal(input, expected)


@pytest.mark.parametrize("input", [torch.rand(6, 8)[:, ::3], torch.rand(1, 5).expand(4, 5), torch.rand(0, 3)])
def test_what_does_not_lie_densely_is_taken_as_well(input: Tensor) -> None:
    found = seeded(input, 0.5)
    assert torch.equal(found, torch.where(found != 0, 2 * input, 0))


def test_what_is_certain_is_left_to_torch() -> None:
    input = torch.rand(3, 4)
    assert torch.equal(dropout(input, 0.5, training=False), input)
    assert torch.equal(dropout(input, 0.0), input)
    assert torch.equal(dropout(input, 1e-9), F.dropout(input, 1e-9))
    assert not dropout(input, 1.0).any()
    with pytest.raises(ValueError, match="between 0 and 1"):
        dropout(input, 1.5)


def test_a_net_needs_no_change() -> None:
    input = torch.rand(64, 64)

    def drawn(net: nn.Module) -> Tensor:
        torch.manual_seed(1)
        found: Tensor = net(input)
        return found

    with Substitutes():
        assert torch.equal(drawn(nn.Dropout(0.3)), seeded(input, 0.3))
        assert torch.equal(drawn(nn.Dropout(0.3).eval()), input)
    assert not torch.equal(drawn(nn.Dropout(0.3)), seeded(input, 0.3))
