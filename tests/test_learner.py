"""A step moves the weights as the settings say, however it is cut into batches."""

from __future__ import annotations

import math

import pytest
import torch
from small_fits import PLAIN, Uneven, net, of, pictures, plain_net, settings
from torch import nn

from fullyconv.building import build
from fullyconv.events import Step
from fullyconv.fitting import fit
from fullyconv.learner import Learner
from fullyconv.losses import lovasz
from fullyconv.model import FCN
from fullyconv.presets import fcn
from fullyconv.sampling import View


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "dice"])
def test_every_optimizer_lowers_every_loss(optimizer: str, loss: str) -> None:
    lr = {"adamw": 3e-3, "sgd": 0.1}[optimizer]
    steps = of(
        Step, fit(net(), pictures(4), None, settings(steps=15, lr=lr, optimizer=optimizer, loss=loss), data=PLAIN)
    )
    assert steps[-1].loss < 0.8 * steps[0].loss


def test_a_summed_loss_is_shown_per_pixel_and_moves_weights_by_its_sum() -> None:
    pixels = 4 * 48 * 64
    mean = of(Step, fit(a := plain_net(), pictures(4), None, settings(optimizer="sgd", lr=0.01), data=PLAIN))
    void = sum(int((pictures(4)[i].labels["out"] == 255).sum()) for i in range(4))
    summed = settings(optimizer="sgd", lr=0.01 / (pixels - void), reduction="sum")
    summed_events = of(Step, fit(b := plain_net(), pictures(4), None, summed, data=PLAIN))
    assert [e.loss for e in summed_events] == pytest.approx([e.loss for e in mean], rel=1e-4)
    for one, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weights", ["none", "median"])
@pytest.mark.parametrize(
    ("loss", "reduction"),
    # Dice is of a batch, and so of however many pictures are in one, but where each picture counts for itself.
    [(loss, r) for loss in ("cross_entropy", "focal") for r in ("mean", "sum", "image")] + [("dice", "image")],
)
def test_a_step_does_not_depend_on_how_it_is_cut_into_batches(loss: str, reduction: str, weights: str) -> None:
    lr = 0.1 if reduction != "sum" else 1e-6
    whole = settings(
        batch=4, steps=3, optimizer="sgd", lr=lr, momentum=0.5, loss=loss, reduction=reduction, class_weights=weights
    )
    nets, losses = [], []
    for batch in (4, 2, 1):
        nets.append(net := plain_net(Uneven.classes))
        cut = whole.model_copy(update={"batch": batch, "accumulate": 4 // batch})
        losses.append([e.loss for e in of(Step, fit(net, Uneven(), None, cut, data=PLAIN))])
    assert losses[1:] == [pytest.approx(losses[0], rel=1e-5)] * 2
    assert losses[0][0] == pytest.approx({"dice": 0.6, "focal": math.log(2) / 4}.get(loss, math.log(2)), rel=0.1)
    start = plain_net(Uneven.classes)
    moved = [float((a - b).detach().norm()) for a, b in zip(nets[0].parameters(), start.parameters(), strict=True)]
    assert max(moved) > 1e-4
    for other in nets[1:]:
        for one, same in zip(nets[0].parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-6)


def test_with_the_mean_of_pictures_each_counts_the_same() -> None:
    # Half of the one picture is void: a step on both is the mean of a step on each.
    def moved(*indices: int) -> torch.Tensor:
        chosen = settings(batch=len(indices), steps=1, optimizer="sgd", lr=0.1, momentum=0, weight_decay=0)
        chosen = chosen.model_copy(update={"reduction": "image"})
        net = plain_net(Uneven.classes)
        before = torch.cat([p.detach().clone().flatten() for p in net.parameters()])
        list(fit(net, View(Uneven(), indices), None, chosen, data=PLAIN))
        return torch.cat([p.detach().flatten() for p in net.parameters()]) - before

    torch.testing.assert_close(moved(0, 3), (moved(0) + moved(3)) / 2, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(moved(0, 7), moved(0), rtol=1e-4, atol=1e-7)  # all of it is void


def test_class_weights_and_head_weights_enter_the_loss() -> None:
    data = pictures(4)
    weighted = of(Step, fit(net(), data, None, settings(class_weights="median", steps=2), data=PLAIN))
    plain = of(Step, fit(net(), data, None, settings(steps=2), data=PLAIN))
    doubled = of(Step, fit(net(), data, None, settings(steps=2, head_loss={"out": 2.0}), data=PLAIN))
    assert weighted[0].loss == pytest.approx(plain[0].loss)  # of a guess, all pixels cost the same
    assert weighted[1].loss != pytest.approx(plain[1].loss, rel=1e-3)
    assert doubled[0].loss == pytest.approx(2 * plain[0].loss)


@pytest.mark.parametrize("reduction", ["mean", "image"])
def test_lovasz_comes_on_top_of_the_loss_with_its_weight(reduction: str) -> None:
    def lively() -> FCN:
        model = plain_net()
        with torch.no_grad():
            for name, parameter in model.heads.named_parameters():
                if "score" in name:
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
        return model

    data, model = pictures(2), lively()
    plain, more = (
        of(Step, fit(lively(), data, None, settings(steps=1, batch=2, reduction=reduction, lovasz=w), data=PLAIN))[
            0
        ].loss
        for w in (0.0, 0.5)
    )
    scores = model.score_maps(torch.stack([torch.from_numpy(s.image).permute(2, 0, 1) for s in data]))["out"]
    labels = torch.stack([torch.from_numpy(s.labels["out"]).long() for s in data])
    cells = model.heads["out"].labels_at_cells(labels, scores.shape[2:], void=255)  # type: ignore[operator]
    assert more - plain == pytest.approx(0.5 * lovasz(scores, cells, void=255).item(), rel=1e-4)
    assert more > plain + 0.1


def test_a_frozen_backbone_keeps_every_bit_and_the_heads_learn() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    list(fit(model, pictures(4), None, settings(backbone_lr=0), data=PLAIN))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not any(name.startswith("backbone.") for name in moved)


def test_layers_frozen_up_to_a_stride_keep_every_bit_and_all_others_learn() -> None:
    torch.manual_seed(0)
    table = pictures(1).classes
    model = build(fcn(8, "resnet18", classes=len(table["out"]), weights=None, context=8), classes=table)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner = Learner(model, settings(device="cpu", freeze=4, ema=0.5), void=255)
    learner.train()
    batch = (torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), {"out": torch.randint(0, 2, (2, 64, 64))})
    for number in range(2):  # scores begin as zeros, so that what they are made of moves with the second step only
        learner.step([batch], number=number, rate=1.0, seed=0)
    first = tuple(f"backbone.net.{part}." for part in ("conv1", "bn1", "layer1"))
    for state in (model.state_dict(), learner.scored.state_dict()):
        still = {name for name, tensor in state.items() if torch.equal(tensor, before[name])}
        assert {name for name in state if name.startswith(first)} <= still
        assert not {name for name in still if name.startswith("backbone.") and not name.startswith(first)}


def test_frozen_norms_keep_their_statistics() -> None:
    def statistics(model: FCN) -> list[torch.Tensor]:
        return [t.clone() for n, t in model.backbone.state_dict().items() if "running" in n]

    torch.manual_seed(0)
    table = pictures(1).classes
    config = fcn(32, "resnet18", classes=len(table["out"]), weights=None, context=8)
    model = build(config, classes=table)
    before = statistics(model)
    list(fit(model, pictures(4), None, settings(steps=1, batch=2, freeze_norm=True), data=PLAIN))
    assert before
    assert all(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))
    list(fit(model, pictures(4), None, settings(steps=1, batch=2), data=PLAIN))
    assert not any(torch.equal(a, b) for a, b in zip(before, statistics(model), strict=True))


def test_statistics_keep_up_with_the_weights() -> None:
    """torchvision gives MobileNetV3 a momentum of 0.01: after 30 steps it would be three quarters behind."""
    config = fcn(16, "mobilenet_v3_small", {"out": 3}, weights=None)
    model = build(config)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} >= {0.01}
    norms[0].momentum, norms[1].momentum = 0.5, None
    Learner(model, settings(device="cpu"), void=255)
    assert [norm.momentum for norm in norms[:3]] == [0.5, None, 0.1]
    norm = norms[2].train()
    for _ in range(30):
        norm(torch.randn(8, norm.num_features, 4, 4) + 5)
    assert (norm.running_mean > 4.5).all()


def test_a_clipped_gradient_moves_sgd_by_the_limit() -> None:
    model = net()
    before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
    clipped = settings(steps=1, optimizer="sgd", lr=1.0, momentum=0.0, weight_decay=0.0, clip=1e-3)
    list(fit(model, pictures(4), None, clipped, data=PLAIN))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    # Biases move at twice the rate.
    assert 1e-3 * 0.99 <= float((after - before).norm()) <= 2e-3 * 1.01
