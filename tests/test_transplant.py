"""Weights from anywhere, by name, and nothing unnoticed."""

from __future__ import annotations

import torch
from torch import nn

from fullyconv.surgery import plan
from fullyconv.transplant import transplant


def test_transplant_reshapes_linear_weights_into_their_convolutions() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 4), nn.Flatten(), nn.Linear(8 * 36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)
    ).double()
    dense = plan(net, image_size=23).apply()
    source = {k: torch.rand_like(v) for k, v in net.state_dict().items() if v.is_floating_point()}
    done = transplant(source, dense)
    assert set(done.used) == set(source)
    assert set(done.reshaped) == {"2.weight", "5.weight"}
    assert (done.missing, done.unexpected) == ((), ())
    net.load_state_dict(source, strict=False)
    picture = torch.rand(2, 3, 23, 23, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(dense.eval()(picture)[..., 0, 0], net.eval()(picture))


def test_transplant_tells_what_fits_by_name_only() -> None:
    target = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1))
    kept = target[1].weight.detach().clone()
    done = transplant(
        {
            "0.weight": torch.ones(4, 3, 1, 1),
            "0.bias": torch.ones(4),
            "1.weight": torch.ones(21, 4, 1, 1),
            "fc": torch.ones(2),
        },
        target,
    )
    assert done.used == ("0.weight", "0.bias")
    assert done.missing == ("1.weight", "1.bias")
    assert done.unexpected == ("1.weight", "fc")
    assert torch.equal(target[1].weight, kept)
    assert bool((target[0].weight == 1).all())
    assert str(done) == (
        "2 tensors taken over (0 of them reshaped), 2 of the model's left as they were, 2 of the source's unused"
    )


def test_transplant_renames_and_leaves_out() -> None:
    target = nn.Sequential(nn.Conv2d(1, 1, 1))
    names = {"conv1_1.weight": "0.weight", "conv1_1.bias": "0.bias"}
    source = {
        "conv1_1.weight": torch.full((1, 1, 1, 1), 5.0),
        "conv1_1.bias": torch.full((1, 1, 1, 1), 6.0),
        "x": torch.ones(1),
    }
    done = transplant(source, target, rename=names.get)
    assert done.used == ("0.weight", "0.bias")
    assert done.unexpected == ("x",)
    assert (target[0].weight.item(), target[0].bias.item()) == (5.0, 6.0)


def test_transplant_takes_no_tensor_whose_entries_only_happen_to_be_as_many() -> None:
    target = nn.Conv2d(6, 4, 1, bias=False)
    assert transplant({"weight": torch.ones(6, 4, 1, 1)}, target).unexpected == ("weight",)
    assert transplant({"weight": torch.ones(24)}, target).unexpected == ("weight",)
    assert transplant({"weight": torch.ones(4, 6)}, target).reshaped == ("weight",)


def test_weights_whose_axes_are_in_another_order_are_left_out() -> None:
    target = nn.Conv2d(3, 64, 7, bias=False)
    before = target.weight.clone()
    done = transplant({"weight": torch.randn(64, 7, 7, 3)}, target)
    assert done.unexpected == ("weight",)
    assert torch.equal(target.weight, before)
    assert transplant({"weight": torch.randn(64, 3 * 7 * 7)}, target).reshaped == ("weight",)
    assert transplant({"weight": torch.randn(1, 64, 3, 7, 7)}, target).reshaped == ("weight",)
