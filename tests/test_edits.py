"""A plan says of every edit what becomes of it, and why."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn
from user_nets import SIZE, USERS

from fullyconv.edits import Edit, _pool, as_convolution
from fullyconv.surgery import Pool, plan


def test_a_plan_reads_as_a_list_of_edits_with_reasons() -> None:
    text = str(plan(torchvision.models.alexnet()))
    assert "AlexNet at 224x224: 5 edits" in text
    assert "classifier.1: Linear(9216, 4096) -> Conv2d(256, 4096, 6x6) (a linear layer on a map is a conv" in text
    assert "avgpool: AdaptiveAvgPool2d(output_size=(6, 6)) -> removed (at native size it maps 6x6 to 6x6)" in text


CONVOLVES = "(a linear layer on a map is a convolution whose kernel covers it)"

CHANNELS = "(the entries of a vector are channels of a map)"

DIFFERS = "follows the dropped pool and is not linear, so the mean of the scores differs from the classifier's"

DROPPED = "(the pool is dropped, so that each position has its own score)"


@pytest.mark.parametrize(
    ("kind", "pool", "edits"),
    [
        (
            "one mean after the other",
            "keep",
            [
                "mean: mean -> removed (the first step of 'mean_1')",
                "mean_1: mean -> AvgPool2d(6x6, stride 1) (read at every position)",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
            ],
        ),
        (
            "softmax over axis 1",
            "drop",
            [
                f"mean: mean -> removed {DROPPED}",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
                f"softmax: softmax -> softmax over channels {CHANNELS}",
                f"note: 'softmax' {DIFFERS}",
            ],
        ),
        (
            "two score layers",
            "drop",
            [
                f"mean: mean -> removed {DROPPED}",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
                f"mean_1: mean -> removed {DROPPED}",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
                f"cat: cat -> cat over channels {CHANNELS}",
            ],
        ),
        (
            "sum, kept axes",
            "keep",
            [
                "sum_1: sum -> AvgPool2d(6x6, stride 1, divisor 1) (read at every position)",
                "flatten: flatten -> removed (the map stays a map)",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
            ],
        ),
        (
            "adaptive maximum to 3x3",
            "keep",
            [
                "1: AdaptiveMaxPool2d(output_size=3) -> MaxPool2d(2x2, stride 2) (the same factor at every size)",
                "2: Flatten(start_dim=1, end_dim=-1) -> removed (the map stays a map)",
                f"3: Linear(72, 5) -> Conv2d(8, 5, 3x3) {CONVOLVES}",
            ],
        ),
        (
            "F.linear on a map",
            "keep",
            [
                "flatten: flatten -> removed (the map stays a map)",
                f"linear: linear -> Conv2d(8, 5, 6x6) {CONVOLVES}",
            ],
        ),
        (
            "squeezed by axis",
            "keep",
            [
                "adaptive_avg_pool2d: adaptive_avg_pool2d -> AvgPool2d(6x6, stride 1) (read at every position)",
                "squeeze: squeeze -> removed (the map stays a map)",
                "squeeze_1: squeeze -> removed (the map stays a map)",
                f"fc: Linear(8, 5) -> Conv2d(8, 5, 1x1) {CONVOLVES}",
            ],
        ),
        (
            "a module of one's own",
            "keep",
            [
                "view: view -> removed (the map stays a map)",
                f"2: Linear(288, 5) -> Conv2d(8, 5, 6x6) {CONVOLVES}",
            ],
        ),
    ],
)
def test_a_plan_says_of_every_edit_what_becomes_of_it_and_why(kind: str, pool: Pool, edits: list[str]) -> None:
    net = USERS[kind]()
    first, *others = str(plan(net, image_size=SIZE, pool=pool)).splitlines()
    count = sum(not edit.startswith("note") for edit in edits)
    assert first == f"{type(net).__name__} at 27x27: {count} edits"
    assert others == [f"  {edit}" for edit in edits]


@pytest.mark.parametrize("kind", ["both pools, norms, dropout", "layer norm"])
def test_norms_of_vectors_become_norms_of_maps(kind: str) -> None:
    norm = next(edit for edit in plan(USERS[kind](), image_size=SIZE).edits if edit.kind == "norm")
    assert norm.after == ("ChannelLayerNorm" if kind == "layer norm" else "BatchNorm2d")
    assert norm.why == "the same numbers, at every position"


@pytest.mark.parametrize(
    ("kind", "features", "scores", "stride", "hidden"),
    [
        (
            "view",
            "trunk_3",
            "trunk_3",
            4,
            False,
        ),  # the score layer itself covers the map
        ("hidden layers", "_0_3", "_5", 4, True),
        ("one hidden layer", "_0_3", "_3", 4, True),
        (
            "residual hidden layers",
            "_0_3",
            "_0_3",
            4,
            False,
        ),  # behind a global pool they see one vector
        ("adaptive maximum to 3x3", "_0_3", "_1", 8, False),  # two cells of four pixels
        ("adaptive pool to 2x2", "_0_3", "_1", 12, False),
        ("fixed pool to 2x2", "_1", "_1", 12, False),
        ("scored by a convolution", "_1", "_0_3", 4, False),
        ("scored by a rectified convolution", "_2", "_0_3", 4, False),
        ("last layer Identity", "_0_3", "_0_3", 4, False),
    ],
)
def test_a_plan_knows_what_new_scores_would_read(
    kind: str, features: str, scores: str, stride: int, hidden: bool
) -> None:
    made = plan(USERS[kind](), image_size=SIZE)
    assert (made.features, made.scores, made.stride, made.hidden) == (
        features,
        scores,
        stride,
        hidden,
    )


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 2), (2, 5)])
def test_a_linear_layer_on_a_map_is_the_convolution_that_covers_it(rows: int, columns: int) -> None:
    linear = nn.Linear(4 * rows * columns, 7).double()
    x = torch.randn(3, 4, rows, columns, dtype=torch.float64)
    torch.testing.assert_close(as_convolution(linear, (rows, columns))(x)[..., 0, 0], linear(x.flatten(1)))


def test_a_dilated_pool_to_one_cell_reads_same_sized_maps() -> None:
    # torch pads a pool by half of its kernel at most, and its reach is more.
    edit = Edit("p", "maximum pool", "", "", "", "p", kernel=(3, 2), dilation=(2, 3))
    map_ = torch.randn(2, 3, 9, 11, dtype=torch.float64) - 9
    same, valid = _pool(edit, "same")(map_), _pool(edit, "valid")(map_)
    assert same.shape[2:] == (9, 12)  # an even reach has one more
    assert torch.isfinite(same).all()
    torch.testing.assert_close(same[:, :, 2:-2, 2:-2], valid, rtol=0, atol=0)
