"""Surgery: a classifier read at every position gives, at every position, what the classifier gives there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from user_nets import (
    CELLS,
    FLATTENED,
    POOLED,
    POOLED_AND_NOT_LINEAR,
    SIZE,
    USERS,
    WIDTH,
    GatedByVectors,
    assert_read_at_every_position,
    enliven,
    layers,
    pictures_of,
    prepared,
    relative_error,
    trunk,
)

from fullyconv.backbones import BACKBONES
from fullyconv.errors import SurgeryError, UnknownName
from fullyconv.surgery import convolutionalize, plan
from fullyconv.tracing import _recorded_pools, trace


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"fcn_resnet50", "fcn_resnet101"}))
def test_dense_equals_classifier_at_native_size_on_live_activations(name: str) -> None:
    spec = BACKBONES[name]
    with torch.device("meta"):
        net = spec.classifier()
    net.to_empty(device="cpu")
    pictures = pictures_of(spec.image_size)
    enliven(net, pictures[:1])
    made = plan(net, image_size=spec.image_size)
    dense = made.apply(verify=False)
    with torch.no_grad():
        want = net(pictures)
        got = dense(pictures[:1])
    assert got.shape == (1, want.shape[1], 1, 1)
    assert (want[0] - want[1]).abs().max() > 0.05 * want.abs().max(), "two pictures must get different scores"
    assert float((want[:1] - got[..., 0, 0]).abs().max() / (want[0] - want[1]).abs().max()) < 2e-5


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("inception_v3", 299),
        ("shufflenet_v2_x1_0", 224),
        ("shufflenet_v2_x0_5", 32),  # whose last maps have one cell
        ("mnasnet0_5", 224),
        ("regnet_y_400mf", 224),
        ("regnet_x_400mf", 224),
        ("efficientnet_v2_s", 224),
        ("resnext50_32x4d", 224),
        ("wide_resnet50_2", 224),
        ("convnext_tiny", 224),
    ],
)
def test_families_that_no_table_names_pass_both_postconditions(name: str, size: int) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        net = torchvision.models.get_model(name, weights=None)
    made = plan(net, image_size=size)
    assert made.exact
    assert made.stride == 32
    assert made.apply()(torch.zeros(1, 3, size, size + 64)).shape == (1, 1000, 1, 3)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("vit_b_16", "'reshape'"),
        ("swin_t", "'features.1.0.attn.shifted_window_attention'"),
        ("swin_v2_t", "'features.1.0.attn.shifted_window_attention'"),
        ("maxvit_t", "window_attention.partition_op.reshape'"),
    ],
)
def test_transformers_are_refused_with_the_place_and_the_reason(name: str, place: str) -> None:
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None)
    with pytest.raises(
        SurgeryError,
        match=r"not convolutional up to its classifier.*vision transformers",
    ) as caught:
        plan(net)
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", USERS)
def test_a_users_classifier_is_read_at_every_position(kind: str) -> None:
    net, channels = prepared(USERS[kind])
    assert_read_at_every_position(net, plan(net, image_size=SIZE, channels=channels))


@pytest.mark.parametrize("kind", POOLED)
def test_the_mean_of_scores_without_the_pool_is_the_classifiers_score(
    kind: str,
) -> None:
    net, channels = prepared(POOLED[kind])
    made = plan(net, image_size=SIZE, channels=channels, pool="drop")
    assert made.exact
    assert not made.notes
    pictures = pictures_of(SIZE, channels, torch.float64)
    with torch.no_grad():
        scores = made.apply()(pictures)
        assert scores.shape[2:] == (6, 6), "a dropped pool leaves one score a cell"
        assert relative_error(net(pictures), scores.mean((2, 3))) < 1e-9


@pytest.mark.parametrize("kind", POOLED_AND_NOT_LINEAR)
def test_a_dropped_pool_before_something_not_linear_is_said_to_be_inexact(
    kind: str,
) -> None:
    net, _ = prepared(POOLED_AND_NOT_LINEAR[kind])
    made = plan(net, image_size=SIZE, pool="drop")
    assert not made.exact
    assert "is not linear, so the mean of the scores differs" in made.notes[0]
    pictures = pictures_of(SIZE, dtype=torch.float64)
    with torch.no_grad():
        difference = relative_error(net(pictures), made.apply()(pictures).mean((2, 3)))
    assert difference > 1e-3, "it is inexact in truth, too"
    assert plan(net, image_size=SIZE, pool="keep").exact


class LeNet(nn.Module):
    """Its last pool is a function, and leaves out a row and a column where the map is odd."""

    def __init__(self, cells: int, **pool: Any) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 6, 3, stride=2)
        self.fc = nn.Linear(6 * cells**2, 5)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pool = F.avg_pool2d if "ceil_mode" in self.pool else F.max_pool2d
        return self.fc(torch.flatten(pool(F.relu(self.c1(x)), **self.pool), 1))


@pytest.mark.parametrize(
    ("size", "cells", "pool"),
    [
        (27, 6, {"kernel_size": 2}),
        (27, 6, {"kernel_size": 3, "stride": 2}),
        (13, 2, {"kernel_size": 3, "stride": 2}),
        (17, 4, {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ],
)
def test_a_functional_pool_before_the_flatten_stays_what_it_is(size: int, cells: int, pool: dict[str, Any]) -> None:
    net = LeNet(cells, **pool).double()
    enliven(net, pictures_of(size, dtype=torch.float64))
    made = plan(net, image_size=size)
    assert [edit.path for edit in made.edits] == ["flatten", "fc"]
    pictures = pictures_of(size, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(net(pictures), made.apply()(pictures)[..., 0, 0]) < 1e-9
    if "ceil_mode" not in pool:  # which at native size counts cells that only its border lacks
        assert_read_at_every_position(net, made)


@pytest.mark.parametrize(
    ("pool", "size", "after"),
    [
        (nn.AvgPool2d(6), 15, "AvgPool2d(6x6, stride 1)"),
        (nn.AvgPool2d(6, divisor_override=5), 15, "AvgPool2d(6x6, stride 1, divisor 5)"),
        (nn.AvgPool2d(8, padding=1), 15, "AvgPool2d(7x7, stride 1, divisor 64)"),
        (nn.AvgPool2d(6, padding=2, count_include_pad=False), 15, "AvgPool2d(4x4, stride 1)"),
        (nn.AvgPool2d(8, ceil_mode=True), 15, "AvgPool2d(7x7, stride 1)"),
        (nn.AvgPool2d(3, padding=1), 3, "AvgPool2d(1x1, stride 1, divisor 9)"),
        (nn.MaxPool2d(6), 15, "MaxPool2d(6x6, stride 1)"),
        (nn.MaxPool2d(3, dilation=3), 15, "MaxPool2d(3x3, stride 1, dilation 3x3)"),
        (nn.MaxPool2d(4, stride=9, padding=1, dilation=2), 15, "MaxPool2d(3x3, stride 1, dilation 2x2)"),
    ],
)
def test_a_pool_to_one_cell_reads_at_every_position_what_it_read(pool: nn.Module, size: int, after: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.Tanh(), pool, nn.Flatten(), nn.Linear(6, 5)).double()
    enliven(net, pictures_of(size, dtype=torch.float64))
    made = plan(net, image_size=size)
    assert (made.edits[0].after, made.stride) == (after, 2)
    assert made.apply()(pictures_of(size, dtype=torch.float64)).shape == (2, 5, 1, 1)
    assert_read_at_every_position(net, made)


def test_a_dropped_pool_that_leaves_out_cells_is_said_to_be_inexact() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.AvgPool2d(6), nn.Flatten(), nn.Linear(6, 5))
    made = plan(net, image_size=15, pool="drop")
    assert not made.exact
    assert "'1', which is dropped, does not average the 7x7 cells of its map" in made.notes[0]
    assert made.apply()(torch.zeros(1, 3, 15, 15)).shape == (1, 5, 7, 7)


def test_a_fixed_pool_before_a_layer_that_takes_steps_stays_as_it_is() -> None:
    net = nn.Sequential(nn.MaxPool2d(2, 1), nn.Conv2d(3, 4, 1, 2), nn.ELU(), nn.Flatten(), nn.Linear(4, 3)).double()
    made = plan(net, image_size=2)
    assert made.stride == 2
    assert_read_at_every_position(net, made)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_unpadded_stack_and_head_is_read_at_every_position(
    data: st.DataObject,
) -> None:
    stack: list[nn.Module] = []
    size, stride, width = 1, 1, 3
    drawn = data.draw(
        st.lists(
            st.tuples(
                st.integers(1, 4),
                st.integers(1, 2),
                st.sampled_from(["conv", "max", "average"]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    for kernel, step, kind in drawn:
        if kind == "conv":
            stack += [nn.Conv2d(width, 4, kernel, step), nn.BatchNorm2d(4), nn.ELU()]
            width = 4
        else:
            stack.append(nn.MaxPool2d(kernel, step) if kind == "max" else nn.AvgPool2d(kernel, step))
        stride *= step
    cells = data.draw(st.integers(1, 4))
    size = cells
    for kernel, step, _ in reversed(drawn):
        size = (size - 1) * step + kernel
    head: list[nn.Module] = data.draw(
        st.sampled_from(
            [
                [nn.Flatten(), nn.Linear(width * cells**2, 3)],
                [
                    nn.Flatten(),
                    nn.Linear(width * cells**2, 6),
                    nn.Tanh(),
                    nn.Linear(6, 3),
                ],
                [
                    nn.AdaptiveAvgPool2d(1),
                    nn.Flatten(),
                    nn.BatchNorm1d(width),
                    nn.Linear(width, 3),
                ],
                [
                    nn.AdaptiveMaxPool2d(1),
                    nn.Flatten(),
                    nn.Linear(width, 3),
                    nn.LayerNorm(3),
                ],
            ]
        )
    )
    net = nn.Sequential(*stack, *head).double()
    made = plan(net.eval(), image_size=size)
    # A fixed pool that leaves one cell is a global pool in disguise, and is read at every cell of its map.
    assert stride % made.stride == 0
    try:
        assert_read_at_every_position(net, made, blocks=2)
    except AssertionError as error:
        if "a dead net" not in str(error):
            raise


@pytest.mark.parametrize("last", [lambda x: x.squeeze(1), lambda x: x.flatten(), lambda x: x[:, 0]])
def test_one_class_may_lose_its_axis(last: Callable[[Tensor], Tensor]) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.fc = trunk(), nn.Linear(WIDTH * CELLS, 1)

        def forward(self, x: Tensor) -> Tensor:
            return last(self.fc(self.trunk(x).flatten(1)))

    net, _ = prepared(One)
    pictures = pictures_of(SIZE, dtype=torch.float64)
    with torch.no_grad():
        want, got = net(pictures), plan(net, image_size=SIZE).apply()(pictures)
    assert got.shape == (2, 1, 1, 1)
    torch.testing.assert_close(got.flatten(), want)


def test_vectors_inside_a_squeeze_and_excite_block_stay_what_they_are() -> None:
    net, _ = prepared(lambda: GatedByVectors(lambda s, x: x))
    made = plan(net, image_size=SIZE)
    assert [edit.path for edit in made.edits] == ["mean", "fc"]
    picture = pictures_of(43, dtype=torch.float64)
    with torch.no_grad():
        x = net.trunk(picture)
        x = x * net.gate(x.mean((2, 3)))[..., None, None]
        want = F.conv2d(F.avg_pool2d(x, 6, 1), net.fc.weight[..., None, None], net.fc.bias)
        torch.testing.assert_close(made.apply()(picture), want)


def test_a_pool_inside_a_squeeze_and_excite_block_stays_what_it_is() -> None:
    class Excite(nn.Module):
        """One pool, called in the block and at the end."""

        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.pool = trunk(), nn.AdaptiveAvgPool2d(1)
            self.gate, self.fc = nn.Conv2d(WIDTH, WIDTH, 1), nn.Linear(WIDTH, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.trunk(x)
            return self.fc(self.pool(x * self.gate(self.pool(x)).sigmoid()).flatten(1))

    net, _ = prepared(Excite)
    dense = plan(net, image_size=SIZE).apply()
    assert isinstance(dense.get_submodule("pool"), nn.AdaptiveAvgPool2d)
    picture = pictures_of(43, dtype=torch.float64)
    with torch.no_grad():
        x = net.trunk(picture)
        x = x * net.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        want = F.conv2d(F.avg_pool2d(x, 6, 1), net.fc.weight[..., None, None], net.fc.bias)
        torch.testing.assert_close(dense(picture), want)


@pytest.mark.parametrize("channels", [1, 4])
def test_a_picture_of_other_channels_is_said_once(channels: int) -> None:
    net = layers(nn.Flatten(), nn.Linear(WIDTH * CELLS, 5), channels=channels)
    dense = convolutionalize(net, image_size=SIZE, channels=channels)
    assert dense(torch.zeros(1, channels, SIZE, SIZE + 4)).shape == (1, 5, 1, 2)


def test_the_input_is_never_touched() -> None:
    net = POOLED_AND_NOT_LINEAR["both pools, norms, dropout"]()
    calls: list[int] = []
    hook = net[0].register_forward_hook(lambda *args: calls.append(1))
    net.train()
    net[0].eval()
    modules, flags = list(net.modules()), [m.training for m in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        net[3].weight.zero_()  # a dead net, which surgery revives for its check
        before["3.weight"].zero_()
    dense = convolutionalize(net, image_size=SIZE)
    for parameter in dense.parameters():
        parameter.data.fill_(9.0)
    assert [m.training for m in net.modules()] == flags
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert list(net[0]._forward_hooks) == [hook.id]


def test_the_copy_keeps_parameter_names_and_shares_nothing() -> None:
    net, _ = prepared(FLATTENED["hidden layers"])
    dense = plan(net, image_size=SIZE).apply()
    assert set(dense.state_dict()) == set(net.state_dict())
    assert not {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_the_dense_net_trains_as_the_classifier_did() -> None:
    net, _ = prepared(FLATTENED["hidden layers"])
    net.train()
    dense = plan(net, image_size=SIZE).apply()
    assert all(m.training for m in dense.modules())
    dense(pictures_of(SIZE + 8, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None for p in dense.parameters())


def test_same_padding_keeps_every_cell_and_agrees_with_valid_inside() -> None:
    net, _ = prepared(FLATTENED["hidden layers"])
    made = plan(net, image_size=SIZE)
    picture = pictures_of(SIZE + 40, dtype=torch.float64)
    with torch.no_grad():
        valid, same = made.apply()(picture), made.apply(padding="same")(picture)
    cells = valid.shape[-1]
    assert same.shape[-1] == cells + 5 + 1  # an even kernel of 6 is padded by 3 on both sides
    torch.testing.assert_close(same[..., 3 : 3 + cells, 3 : 3 + cells], valid)


def test_tracing_leaves_the_training_flags_as_they_were() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout())
    net.train()
    net[0].eval()
    trace(net)
    assert [m.training for m in net.modules()] == [True, False, True]


@pytest.mark.parametrize("kept", [(), ("0.0.weight", "2.weight", "4.bias", "5.weight")])
def test_parameters_that_were_frozen_stay_so(kept: tuple[str, ...]) -> None:
    net = layers(nn.Flatten(), nn.Linear(WIDTH * CELLS, 6), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.LayerNorm(5))
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name in kept
    dense = convolutionalize(net, image_size=SIZE)
    assert {name for name, parameter in dense.named_parameters() if parameter.requires_grad} == set(kept)


def test_frozen_layers_of_a_net_in_training_stay_frozen() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 64, 5),
    ).train()
    net[1].eval()
    dense = plan(net, image_size=16).apply()
    assert dense.training
    assert [m.training for m in dense.modules() if isinstance(m, nn.BatchNorm2d)] == [False]


def test_torchs_pool_is_its_own_again_whoever_traces_meanwhile() -> None:
    own = F.avg_pool2d
    first, second = _recorded_pools(), _recorded_pools()
    first.__enter__()
    second.__enter__()
    assert F.avg_pool2d is not own
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert F.avg_pool2d is own
    assert torch._C._nn.avg_pool2d is own


# --- What the net of a user is like -----------------------------------------------------------------------------------


class NormAct(nn.BatchNorm2d):
    """A norm with its activation for a child, as timm's: it is no leaf of fx."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:
        mode = self.training
        return self.act(F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, mode, 0.1))


class Small(nn.Module):
    """A classifier whose forward others change; its maps are 8x8 on a picture of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 8, 2, 2), NormAct(8), nn.Conv2d(8, 8, 2, 2), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pooled(x, self.trunk(x)))

    def pooled(self, x: Tensor, y: Tensor) -> Tensor:
        return y.mean((2, 3))


class Dropping(Small):
    def pooled(self, x: Tensor, y: Tensor) -> Tensor:
        return F.dropout(y.mean((2, 3)), 0.5, self.training)


class DroppingByName(Small):
    def pooled(self, x: Tensor, y: Tensor) -> Tensor:
        return F.dropout2d(y, p=0.5, training=self.training).mean((2, 3))


@pytest.mark.parametrize("make", [Dropping, DroppingByName])
def test_what_differs_in_training_still_does_in_the_dense_net(make: type[Small]) -> None:
    torch.manual_seed(0)
    dense = convolutionalize(make().eval(), image_size=32)
    picture = torch.rand(2, 3, 40, 48)
    before = {name: value.clone() for name, value in dense.state_dict().items() if "running" in name}
    assert torch.equal(dense(picture), dense(picture))
    assert all(torch.equal(dense.state_dict()[name], value) for name, value in before.items())
    dense.train()
    assert not torch.equal(dense(picture), dense(picture))
    assert before
    assert not any(torch.equal(dense.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(dense.eval()(picture), dense(picture))
    # A mode that a layer had, the copy has.
    assert convolutionalize(make().train(), image_size=32).training
    half = make().train()
    half.trunk[1].eval()
    copied = convolutionalize(half, image_size=32)
    assert not copied.get_submodule("trunk.1").training
    assert copied.get_submodule("trunk.3").training


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "regnetx_002"])
def test_norms_of_timms_classifiers_learn(name: str) -> None:
    torch.manual_seed(0)
    dense = convolutionalize(timm.create_model(name).eval(), image_size=64).train()
    before = {key: value.clone() for key, value in dense.state_dict().items() if "running_mean" in key}
    dense(torch.rand(2, 3, 64, 64))
    assert len(before) > 10
    assert not any(torch.equal(dense.state_dict()[key], value) for key, value in before.items())


SIZES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the shape of the map": lambda x, y: y.sum((2, 3)) / (y.shape[2] * y.shape[3]),
    "its sizes": lambda x, y: y.sum((2, 3)) / (y.size(2) * y.size(3)),
    "its cells": lambda x, y: y.flatten(2).sum(-1) / y[0, 0].numel(),
    "a power": lambda x, y: y.mean((2, 3)) * y.shape[2] ** 0.5,
    "the picture's": lambda x, y: y.mean((2, 3)) / x.shape[-1],
}


@pytest.mark.parametrize("how", SIZES)
def test_what_divides_by_a_size_is_refused_since_it_is_another_on_other_pictures(how: str) -> None:
    torch.manual_seed(0)
    net = Small().eval()
    net.pooled = SIZES[how]  # type: ignore[method-assign]
    with pytest.raises(SurgeryError, match="use the size of the map or of the picture"):
        convolutionalize(net, image_size=32)
    net.pooled = lambda x, y: y.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)  # type: ignore[method-assign]
    dense, picture = convolutionalize(net, image_size=32), torch.rand(1, 3, 64, 64)
    cell = dense(picture)[0, :, 8, 8]  # the last, which sees the last 32 pixels
    assert torch.allclose(cell, net(picture[..., 32:, 32:])[0], atol=1e-5)


class Branching(Small):
    def forward(self, x: Tensor, features: bool = False, scale: float | None = None, *, times: int = 2) -> Tensor:
        y = self.trunk(x).mean((2, 3))
        if scale is not None:
            y = y * scale
        return y if features else self.fc(y) * times


def test_a_forward_that_branches_on_its_defaults_is_traced_with_them() -> None:
    torch.manual_seed(0)
    net = Branching().eval()
    dense, picture = convolutionalize(net, image_size=32), torch.rand(2, 3, 32, 32)
    assert torch.allclose(dense(picture)[..., 0, 0], net(picture), atol=1e-5)
    assert dense(torch.rand(1, 3, 64, 32)).shape == (1, 5, 9, 1)


class Writing(Small):
    """A forward that writes into itself."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.level, self.seen, self.last = self.level.to(x.device), self.seen + 1, x
        return super().forward(x - self.level)


def test_locating_and_tracing_leave_what_a_net_writes_down_in_itself() -> None:
    net = Writing().train()
    level = net.level
    plan(net, image_size=32)
    assert net.level is level
    assert net.last is None
    assert net.seen == 0
    assert net.training
    assert net.trunk[1].training
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_a_pool_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UnknownName, match="no pool 'dorp'; did you mean 'drop'"):
        convolutionalize(Small(), image_size=32, pool="dorp")  # type: ignore[arg-type]
