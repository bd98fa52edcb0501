"""Rates, groups of parameters, averages and weights of classes are what their formulas say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fullyconv.backbones import Streams, backbone
from fullyconv.building import build
from fullyconv.errors import ConfigError, UnknownName
from fullyconv.model import FCN
from fullyconv.optim import Average, class_weights, freeze, freeze_unread, optimizer_of, param_groups, rate
from fullyconv.presets import fcn, single_tap

CPU = torch.device("cpu")


def net() -> FCN:
    return build(fcn(16, "tinyvgg", classes=3, weights=None, context=8))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("fixed", [1, 1, 1, 1]), ("poly", [1, 0.75**0.9, 0.5**0.9, 0]), ("cosine", [1, 0.5 + math.sqrt(0.125), 0.5, 0])],
)
def test_schedules_follow_their_formulas(schedule: str, expected: list[float]) -> None:
    found = [rate(schedule, progress=p, step=1000, warmup=0) for p in (0, 0.25, 0.5, 1)]
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_rate_rises_over_the_warm_up_or_a_tenth_of_the_run_if_that_is_shorter() -> None:
    long = [rate("fixed", progress=s / 1000, step=s, warmup=10) for s in range(12)]
    assert long == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1, 1])
    short = [rate("fixed", progress=s / 20, step=s, warmup=100) for s in range(4)]
    assert short == pytest.approx([0.01, 0.5, 1, 1])


def test_an_unknown_schedule_is_refused_with_a_near_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'cosine'"):
        rate("cosin", progress=0, step=0, warmup=0)


def test_weights_decay_and_biases_and_norms_do_not_and_biases_alone_learn_faster() -> None:
    model = net()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups(model, lr=0.1, backbone_lr=0.5, weight_decay=1e-2, bias_lr=2.0)
    found = {names[id(p)]: (g["base_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found.keys() == dict(model.named_parameters()).keys()
    norms = {f"{n}." for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms
    for name, (lr, decay) in found.items():
        part = 0.05 if name.startswith("backbone.") else 0.1
        if name.rpartition(".")[0] + "." in norms:
            assert (lr, decay) == pytest.approx((part, 0)), name
        elif name.endswith(".bias"):
            assert (lr, decay) == pytest.approx((2 * part, 0)), name
        else:
            assert (lr, decay) == pytest.approx((part, 1e-2)), name


def test_a_factor_of_zero_freezes_the_backbone() -> None:
    model = net()
    learnt = {id(p) for g in param_groups(model, lr=0.1, backbone_lr=0, weight_decay=0) for p in g["params"]}
    assert learnt == {id(p) for p in model.heads.parameters()}
    assert not any(p.requires_grad for p in model.backbone.parameters())


FIRST = {
    "resnet18": ("net.conv1", "net.bn1", "net.layer1"),
    "squeezenet1_0": tuple(f"net.features.{i}" for i in (0, 3, 4, 5)),
}


@pytest.mark.parametrize("name", FIRST)
def test_layers_up_to_a_stride_are_frozen_and_their_maps_need_no_gradient(name: str) -> None:
    net = backbone(name).train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    frozen = freeze(net, 4)
    assert frozen == {key for key, _ in net.named_parameters() if key.startswith(tuple(f"{m}." for m in FIRST[name]))}
    assert frozen == {key for key, parameter in net.named_parameters() if not parameter.requires_grad}
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    maps = net(torch.rand(2, 3, 64, 64))
    assert [tap for tap, scores in maps.items() if not scores.requires_grad] == ["stride2", "stride4"]


def test_a_stride_between_two_maps_freezes_the_finer_and_a_net_without_so_fine_ones_learns_whole() -> None:
    assert freeze(backbone("tinyvgg"), 3) == freeze(backbone("tinyvgg"), 2) != set()
    assert freeze(backbone("tinyvgg"), 0) == freeze(backbone("alexnet"), 4) == set()
    whole = backbone("tinyvgg")
    assert freeze(whole, 32) == {name for name, _ in whole.named_parameters()}


def test_what_is_frozen_already_is_named_again_and_stays_so() -> None:
    net = backbone("tinyvgg")
    first, last = freeze(net, 2), [name for name, _ in net.named_parameters()][-1]
    net.get_parameter(last).requires_grad_(False)
    assert freeze(net, 2) == first
    assert {name for name, parameter in net.named_parameters() if not parameter.requires_grad} == first | {last}


def test_of_streams_each_is_frozen_up_to_the_stride() -> None:
    one = freeze(backbone("tinyvgg"), 4)
    both = Streams({"color": backbone("tinyvgg"), "hha": backbone("tinyvgg")})
    assert freeze(both, 4) == {f"streams.{stream}.{name}" for stream in ("color", "hha") for name in one}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimizer_steps_as_the_plain_one_does(kind: str) -> None:
    # The fused kernels are used; the plain ones are the reference.
    torch.manual_seed(0)
    start, gradients = torch.randn(7, 5), torch.randn(3, 7, 5)
    group = {"lr": 0.1, "weight_decay": 0.01}
    ours, plain = (start.clone().requires_grad_() for _ in range(2))
    fused = optimizer_of(kind, [{"params": [ours], **group}], momentum=0.9, device=CPU)
    reference: torch.optim.Optimizer = (
        torch.optim.AdamW([{"params": [plain], **group}])
        if kind == "adamw"
        else torch.optim.SGD([{"params": [plain], **group}], momentum=0.9)
    )
    for gradient in gradients:
        ours.grad, plain.grad = gradient.clone(), gradient.clone()
        fused.step()
        reference.step()
    torch.testing.assert_close(ours, plain)
    assert not torch.allclose(ours, start)
    with pytest.raises(ConfigError, match="expected adamw or sgd"):
        optimizer_of("adam", [], momentum=0, device=CPU)


def test_an_average_forgets_its_start_then_follows_slowly() -> None:
    model = nn.BatchNorm1d(1, affine=False)
    average = Average(model, decay=0.9)
    expected = 0.0
    for step, value in enumerate([1.0, 5.0, 3.0, 8.0] * 40):
        assert model.running_mean is not None
        assert model.num_batches_tracked is not None
        model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.model.running_mean is not None
    assert float(average.model.running_mean) == pytest.approx(expected, rel=1e-5)
    assert int(average.model.num_batches_tracked or 0) == 159  # counters are copied
    assert not average.model.training


def test_rare_classes_weigh_more_within_limits() -> None:
    assert class_weights([100, 400, 1600, 0]).tolist() == [2.0, 1.0, 0.5, 1.0]
    assert class_weights([1, 10**6, 10**9]).tolist() == [4.0, 1.0, 0.5]
    assert class_weights([0, 0]).tolist() == [1.0, 1.0]


def test_layers_that_no_head_reads_keep_their_weights() -> None:
    model = build(single_tap("stride8", "resnet18", classes=3, weights=None))
    every = build(fcn(8, "resnet18", classes=3, weights=None))
    freeze_unread(every)
    assert all(parameter.requires_grad for parameter in every.parameters())
    freeze_unread(model)
    learn = {name.split(".")[2] for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = {name.split(".")[2] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert (learn, kept) == ({"conv1", "bn1", "layer1", "layer2", "score"}, {"layer3", "layer4"})
    sum(scores.sum() for scores in model(torch.rand(1, 3, 64, 64)).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
