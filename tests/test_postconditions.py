"""A plan that is not true is found out before anybody gets the net."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from user_nets import CELLS, POOLED, SIZE, WIDTH, Net, layers, prepared, relative_error

from fullyconv.errors import SurgeryError
from fullyconv.postconditions import random_pictures
from fullyconv.surgery import convolutionalize, plan


@pytest.mark.parametrize(
    "sabotage",
    ["an edit is left out", "a maximum for an average", "another layer's kernel"],
)
def test_a_plan_that_is_not_true_is_found_out(sabotage: str) -> None:
    net, _ = prepared(POOLED["mean over two axes"])
    made = plan(net, image_size=SIZE)
    pool, linear = made.edits
    assert (pool.kind, linear.kind) == ("average pool", "convolution")
    edits = {
        "an edit is left out": (linear,),
        "a maximum for an average": (replace(pool, kind="maximum pool"), linear),
        "another layer's kernel": (replace(pool, kernel=(5, 5)), linear),
    }
    with pytest.raises(SurgeryError):
        replace(made, edits=edits[sabotage]).apply()


def test_a_difference_is_told_with_its_size_and_the_place_where_it_begins() -> None:
    net, _ = prepared(POOLED["mean over two axes"])
    made = plan(net, image_size=SIZE)
    wrong = replace(made, edits=(replace(made.edits[0], kind="maximum pool"), made.edits[1]))
    with pytest.raises(SurgeryError, match=r"differs from the classifier by .* they part at 'mean'"):
        wrong.apply()


def test_rounding_in_single_precision_is_no_difference() -> None:
    """Where large terms cancel, sums in another order differ by more than what is asked, though nothing is wrong."""
    torch.manual_seed(0)
    net = layers(nn.Flatten(), nn.Linear(WIDTH * CELLS, 5)).eval()
    with torch.no_grad():
        net[0][2].bias.fill_(1e5)
        net[2].weight -= net[2].weight.mean(1, keepdim=True)
    made = plan(net, image_size=SIZE)
    pictures = random_pictures(3, SIZE, torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = made.apply(verify=False)
        assert relative_error(net(pictures), dense(pictures)[..., 0, 0]) > 1e-4, "nothing is shown"
    dense = made.apply()
    assert next(dense.parameters()).dtype == torch.float32
    wrong = replace(made, edits=(made.edits[0], replace(made.edits[1], kernel=(4, 9))))
    with pytest.raises(SurgeryError):
        wrong.apply()


def test_dead_weights_do_not_hide_a_wrong_plan() -> None:
    net = POOLED["mean over two axes"]()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    made = plan(net, image_size=SIZE)
    made.apply()  # right, and shown to be so on other weights
    with pytest.raises(SurgeryError, match="differs from the classifier"):
        replace(made, edits=(replace(made.edits[0], kind="maximum pool"), made.edits[1])).apply()


def test_a_net_that_cannot_be_brought_to_life_is_refused() -> None:
    net = Net(lambda s, x: s.fc(x.mean((2, 3)) * 0.0))
    with pytest.raises(SurgeryError, match="two different pictures get the same scores"):
        convolutionalize(net, image_size=SIZE)
