"""A plan that is not true is found out before anybody gets the net."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from user_nets import POOLED, SIZE, Net, prepared

from fullyconv.errors import SurgeryError
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
