"""The loop learns, says when it does not, and a recipe makes a run folder that repeats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from PIL import Image
from torch import nn

from fullyconv import alarms, checkpoint, datasets, fitting, training
from fullyconv.building import build
from fullyconv.config import Classes, DataConfig, FitConfig, Recipe, Stage
from fullyconv.datasets import Sample, dataset
from fullyconv.datasets.folder import open_folder
from fullyconv.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from fullyconv.events import Alarm, Evaluated, Event, Said, Saved, Step
from fullyconv.fitting import Budget, State, fit
from fullyconv.learner import Learner
from fullyconv.losses import lovasz
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN
from fullyconv.presets import fcn
from fullyconv.sampling import View
from fullyconv.training import train

PLAIN = DataConfig(root="", workers=0, crop="whole", scale=(1, 1), mirror=False, jitter=0)
"""Pictures as they are."""
SCENES = "count=12 size=48x64"


def settings(**changes: Any) -> FitConfig:
    base = {"steps": 4, "batch": 4, "precision": "32", "device": "cpu", "warmup": 0, "schedule": "fixed", "ema": 0.0}
    return FitConfig(**{**base, **({"steps": None} if {"epochs", "minutes"} & changes.keys() else {}), **changes})


def unchecked(**changes: Any) -> FitConfig:
    """Settings that are refused where they are read, on pictures of the usual size."""
    return settings().model_copy(update=changes)


def pictures(count: int = 12, split: str = "train") -> View:
    data = dataset("scenes", SCENES, split=split)
    return View(data, range(min(count, len(data))), remember=True)


def net(stride: int = 4, *, dropout: float = 0.0, weights: None = None) -> FCN:
    torch.manual_seed(0)
    table = pictures(1).classes
    config = fcn(stride, "tinyvgg", classes=len(table["out"]), weights=weights, context=0, dropout=dropout)
    return build(config, classes=table)


class Squares:
    """Eight pictures of a bright square on noise, made by arithmetic that will not change."""

    name, split, notes, classes = "squares", "train", (), {"out": Classes.of("ground", "square")}
    names = tuple(map(str, range(8)))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        image = (np.arange(32 * 32 * 3).reshape(32, 32, 3) * (7 + 2 * index) % 101).astype(np.uint8)
        labels = np.zeros((32, 32), np.uint8)
        labels[index : index + 12, 2 * index : 2 * index + 9] = 1
        image[labels == 1] += 100
        labels[:2] = 255
        return Sample(self.names[index], image, {"out": labels})

    def paths(self, index: int) -> tuple[None, None]:
        return None, None


class Plain(nn.Module):
    """A classifier without norms or dropout, so that a batch is no more than its pictures."""

    def __init__(self) -> None:
        super().__init__()
        layers = [[nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)] for i, o in ((3, 8), (8, 16))]
        self.features = nn.Sequential(*(layer for block in layers for layer in block))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return scores


def plain_net(table: Mapping[str, Classes] | None = None) -> FCN:
    torch.manual_seed(0)
    backbone, table = Plain(), table or pictures(1).classes
    config = fcn(4, backbone, classes=len(table["out"]), weights=None, context=0)
    return build(config, backbone=backbone, classes=table)


def recipe(**changes: Any) -> Recipe:
    model = net().config
    assert model is not None
    stage = {"name": "8s", "model": model, "data": DataConfig(root=SCENES, name="scenes", workers=0), "fit": settings()}
    return Recipe.parse({"name": "test", "stages": [{**stage, **changes}]})


def of(kind: type[Any], events: Iterator[Event] | list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


# It learns -----------------------------------------------------------------------------------------------------------


def test_four_pictures_are_learnt_by_heart() -> None:
    four = pictures(4)
    events = fit(net(2), four, four, settings(steps=150, lr=3e-3, ema=0.9, schedule="cosine", warmup=5), data=PLAIN)
    assert of(Evaluated, events)[-1].mean_iu > 0.95


def test_the_first_losses_are_what_they_were() -> None:
    # The first is ln 2, since the scores start at zero; a change of a later one is a change of the algorithm.
    chosen = settings(steps=20, lr=5e-3, schedule="poly", warmup=2, class_weights="median")
    drawn = DataConfig(root="", workers=0, crop=(24, 24))
    losses = [e.loss for e in of(Step, fit(plain_net(Squares.classes), Squares(), None, chosen, data=drawn))]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-6)
    assert losses == pytest.approx(LOSSES, rel=1e-2)


# fmt: off
LOSSES = [
    0.69315, 0.68546, 0.65727, 0.62115, 0.59381, 0.62293, 0.47337, 0.36112, 0.44333, 0.42609,
    0.33765, 0.41749, 0.30752, 0.48947, 0.51627, 0.7196, 0.36543, 0.58902, 0.47285, 0.30284,
]
# fmt: on


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


class Uneven(Squares):
    """Of each picture another share is void, and one has no label at all."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.labels["out"][32 - 4 * (index + 1) :] = 255
        return sample


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


# Patch sampling ------------------------------------------------------------------------------------------------------


def labels_seen(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[torch.Tensor]:
    """The labels that each step learns from, (B, H, W)."""
    seen: list[torch.Tensor] = []
    whole = Learner.step

    def step(self: Learner, held: Any, **rest: Any) -> tuple[float, float]:
        seen.extend(labels["out"] for _, labels in held)
        return whole(self, held, **rest)

    monkeypatch.setattr(Learner, "step", step)
    list(fit(plain_net(Squares.classes), Squares(), None, settings(**changes), data=PLAIN))
    monkeypatch.undo()
    return seen


def test_sampled_patches_are_whole_cells_of_an_enlarged_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, batch, keep = 24, 4, 0.5
    sampled = torch.cat(labels_seen(monkeypatch, steps=steps, batch=batch, keep=keep))
    assert len(sampled) == steps * batch / keep
    counted = (sampled != 255).unflatten(1, (8, 4)).unflatten(3, (8, 4)).transpose(2, 3).flatten(3)
    inside = counted[:, 1:]  # the top is void anyhow
    assert torch.equal(inside.any(3), inside.all(3))  # cells of the one map, of stride 4
    # As many pixels count as without: 7 x 8 cells a picture, within four standard deviations.
    share = inside.any(3).double().mean().item()
    assert share == pytest.approx(keep, abs=4 * 0.5 / math.sqrt(inside[..., 0].numel()))


def test_keeping_every_cell_is_no_sampling_to_the_bit() -> None:
    losses = []
    for chosen in (settings(batch=4), settings(batch=4, keep=1.0), settings(batch=4, keep=0.5)):
        losses.append([e.loss for e in of(Step, fit(plain_net(Squares.classes), Squares(), None, chosen, data=PLAIN))])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("reduction", ["mean", "sum", "image"])
def test_sampled_patches_do_not_depend_on_how_a_step_is_cut(reduction: str) -> None:
    chosen = settings(
        optimizer="sgd", lr=1e-6 if reduction == "sum" else 0.1, keep=0.5, reduction=reduction, class_weights="median"
    )
    losses = []
    for batch in (4, 2):
        cut = chosen.model_copy(update={"batch": batch, "accumulate": 4 // batch})
        losses.append([e.loss for e in of(Step, fit(plain_net(Squares.classes), Squares(), None, cut, data=PLAIN))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[0][0] == pytest.approx(math.log(2), rel=1e-5)  # of the pixels, or pictures, that count


def test_cells_lie_where_the_coarsest_map_has_them() -> None:
    assert fitting.cells_of(net(8)).stride == 32
    assert fitting._first_pixel(fitting.cells_of(net(8))) == 0
    framed = build(fcn(32, "tinyvgg", 2, weights=None, context=0, geometry="pad100"))
    cells = fitting.cells_of(framed)
    first = fitting._first_pixel(cells)
    # Of a picture that is centred on a cell and as large as a stride, the cell in question is all that is there.
    assert float(cells.offset) - 16 <= first <= float(cells.offset) - 15


def test_a_batch_that_processes_cannot_share_is_refused_as_it_is_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from fullyconv import learner

    fabric = SimpleNamespace(device=torch.device("cpu"), global_rank=0, world_size=2)
    monkeypatch.setattr(learner, "_fabric", lambda *_, **__: fabric)
    with pytest.raises(
        ConfigError, match=r"batch: got 2, which is 3 pictures with keep 0\.67; expected a multiple of 2"
    ):
        Learner(plain_net(), settings(batch=2, keep=0.67), void=255)


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


def test_what_is_scored_and_kept_is_the_average_of_the_weights(tmp_path: Path) -> None:
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    chosen = settings(steps=2, lr=1e-2, ema=0.9, warmup=0)
    list(fit(model, pictures(4), pictures(2), chosen, data=PLAIN, out=tmp_path))
    name = next(n for n in before if n.startswith("heads.out.score."))
    kept, last = checkpoint.load(tmp_path / "last").state_dict()[name], model.state_dict()[name]
    # Decay 1/10 after the first step, 2/11 after the second: the average lies between the two weights.
    assert not torch.equal(kept, last)
    assert float((kept - last).norm()) < float((before[name] - last).norm())


# Budgets, schedules, events ------------------------------------------------------------------------------------------


def test_a_budget_in_epochs_shows_each_picture_so_often() -> None:
    steps = of(Step, fit(net(), pictures(12), None, settings(epochs=1.5, batch=4), data=PLAIN))
    assert [e.epoch for e in steps] == pytest.approx([4 / 12, 8 / 12, 1, 16 / 12, 20 / 12])
    assert steps[-1].progress == 1
    assert steps[0].steps_total == 5


def test_a_budget_in_minutes_is_kept_scoring_included_and_the_rate_falls_with_it(tmp_path: Path) -> None:
    events = list(
        fit(net(), pictures(), pictures(4), settings(minutes=0.05, schedule="poly"), data=PLAIN, out=tmp_path)
    )
    steps = of(Step, events)
    assert steps[-1].progress > 0.9  # a scoring may take the rest
    assert steps[0].steps_total is None
    rates = [step.lr for step in steps]
    assert rates[-1] < 0.2 * rates[len(rates) // 2]
    assert 1 <= len(of(Evaluated, events)) <= fitting.SCORINGS + 1
    state = checkpoint.load_state(tmp_path / "resume")[1]
    assert 2.5 < state["elapsed_s"] < 10


def test_scoring_takes_at_most_a_fifth_of_a_time() -> None:
    budget = Budget(None, 100.0)
    assert not State(step=9, scored=1, scored_at=0.1, elapsed_s=40, scoring_s=8).scoring_due(budget, None)
    assert State(step=9, scored=1, scored_at=0.0, elapsed_s=40, scoring_s=8).scoring_due(budget, None)
    assert State(step=9, scored=1, scored_at=0.1, elapsed_s=95, scoring_s=8).scoring_due(budget, None)  # the last


def test_scoring_and_resume_points_come_when_they_are_asked_for(tmp_path: Path) -> None:
    chosen = settings(steps=7, evaluate_every=3, save_every=2)
    events = list(fit(net(), pictures(), pictures(2), chosen, data=PLAIN, out=tmp_path))
    assert [e.step for e in of(Evaluated, events)] == [3, 6, 7]
    assert [e.step for e in of(Saved, events) if e.path.name == "resume"] == [2, 4, 6, 7]


def test_the_best_is_the_best_and_the_last_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = iter([30, 60, 40, 50, 80, 80, 10])

    def evaluate(*args: Any, **rest: Any) -> dict[str, ConfusionMatrix]:
        return {"out": ConfusionMatrix(["a", "b"], [[n := next(right), 100 - n], [100 - n, n]])}

    monkeypatch.setattr(fitting, "evaluate", evaluate)
    chosen = settings(steps=7, evaluate_every=1)
    scored = of(Evaluated, fit(net(), pictures(), pictures(4), chosen, data=PLAIN, out=tmp_path))
    assert [e.best for e in scored] == [True, True, False, False, True, False, False]
    provenance = json.loads((tmp_path / "best" / "config.json").read_text())["provenance"]
    assert provenance["step"] == 5
    assert provenance["scores"]["out"]["pixel_accuracy"] == pytest.approx(0.8)
    assert json.loads((tmp_path / "last" / "config.json").read_text())["provenance"]["step"] == 7


def test_many_val_pictures_are_thinned_evenly_and_the_number_is_told() -> None:
    event = of(Evaluated, fit(net(), pictures(4), pictures(), settings(steps=1, val_pictures=2), data=PLAIN))[0]
    assert event.pictures == 2


def test_the_crop_is_chosen_by_the_pictures_and_said() -> None:
    said = of(Said, fit(net(), pictures(4), None, settings(steps=1), data=DataConfig(root="", workers=0)))
    assert "crops of 64x64" in said[0].message or "crops of 48x64" in said[0].message


# Alarms --------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_keeps_the_last_model_and_names_the_rate(tmp_path: Path) -> None:
    chosen = unchecked(steps=60, lr=1e6, optimizer="sgd", evaluate_every=1)
    seen: list[Event] = []
    with pytest.raises(TrainingError, match=r"lr 1e\+06 with momentum 0.9.*set lr to 100000.*is kept in") as error:
        seen.extend(fit(net(), pictures(), pictures(2), chosen, data=PLAIN, out=tmp_path))
    assert "diverged" in [alarm.kind for alarm in of(Alarm, seen)]
    kept = checkpoint.load(tmp_path / "last")
    assert all(torch.isfinite(t).all() for t in kept.state_dict().values())
    assert error.value.step > 0


def test_weights_that_have_diverged_are_never_a_resume_point(tmp_path: Path) -> None:
    chosen = unchecked(steps=60, lr=1e6, optimizer="sgd", save_every=1)
    loop = fit(net(), pictures(), None, chosen, data=PLAIN, out=tmp_path)
    bad = next(event for event in loop if isinstance(event, Step) and not event.loss < 100)
    loop.close()
    assert checkpoint.load_state(tmp_path / "resume")[1]["step"] == bad.step - 1


def test_a_summed_loss_with_the_rate_of_a_mean_one_is_told_before_it_diverges() -> None:
    chosen = unchecked(steps=60, lr=1e-2, optimizer="sgd", reduction="sum", momentum=0.99)
    seen: list[Event] = []
    with pytest.raises(TrainingError, match=r"summed over .* pixels and momentum 0.99 .* set reduction = mean"):
        seen.extend(fit(net(), pictures(), None, chosen, data=PLAIN))
    assert "recipe" in [alarm.kind for alarm in of(Alarm, seen)]


def test_a_loss_that_grows_beyond_return_is_told_from_one_that_jumps() -> None:
    watch = alarms.LossWatch(guess=math.log(11))
    assert not any(watch.diverged(loss) for loss in (2.4, 2.0, 1.5, 60.0, 1.5, 1.4))
    assert any(watch.diverged(1.5 * 1.3**i) for i in range(30))
    assert alarms.LossWatch(2.0).diverged(math.nan)


def test_the_papers_own_rates_raise_no_alarm() -> None:
    heavy = settings(optimizer="sgd", lr=1e-10, momentum=0.99, reduction="sum", batch=1)
    assert alarms.bad_recipe(heavy, pixels=500 * 375) is None


def test_one_class_everywhere_is_an_alarm_told_once() -> None:
    # Scores start at zero, so the first class wins everywhere while the rate is 0.
    chosen = unchecked(steps=3, evaluate_every=1, lr=1e-12)
    seen = of(Alarm, fit(net(), pictures(4), pictures(4), chosen, data=PLAIN))
    assert [alarm.kind for alarm in seen] == ["collapsed"]
    assert "'ground' for every pixel" in seen[0].message


def test_weights_that_nothing_initialised_are_an_alarm() -> None:
    model = net()
    with torch.no_grad():
        next(p for p in model.backbone.parameters() if p.ndim > 1).zero_()
    seen = of(Alarm, fit(model, pictures(4), None, settings(steps=1), data=PLAIN))
    assert seen[0].kind == "uninitialised"
    assert "all zero: " in seen[0].message


def test_a_random_backbone_is_an_alarm(tmp_path: Path) -> None:
    seen: list[Event] = []
    train(recipe(fit=settings(steps=1)), out=tmp_path / "run", on_event=seen.append)
    assert "backbone start from random numbers" in of(Alarm, seen)[0].message


def test_scores_that_start_out_large_are_an_alarm() -> None:
    model = net()
    with torch.no_grad():
        for p in model.heads.parameters():
            p.normal_(std=30)
    kinds = [alarm.kind for alarm in of(Alarm, fit(model, pictures(4), None, settings(steps=1), data=PLAIN))]
    assert "start" in kinds


def test_a_label_outside_the_table_names_the_file_before_training_and_during_it(tmp_path: Path) -> None:
    from fullyconv.images import write_image
    from fullyconv.labels import write_labels

    small, large = Classes.of("a", "b"), Classes.of("a", "b", "c")
    for split in ("train", "val"):
        for i in range(2):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "images" / split / f"{i}.png", np.zeros((40, 40, 3), np.uint8))
            labels = np.tile(np.arange(40, dtype=np.uint8) % (3 if (split, i) == ("train", 1) else 2), (40, 1))
            write_labels(tmp_path / "labels" / split / f"{i}.png", labels, large)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    config = fcn(4, "tinyvgg", classes=len(small), weights=None, context=0)
    wrong = recipe(model=config, data=DataConfig(root=str(tmp_path), workers=0), fit=settings(steps=3, batch=2))
    with pytest.raises(DatasetError, match=r"labels/train/1\.png: .*2"):
        train(wrong, out=tmp_path / "checked")
    with pytest.raises(Exception, match=r"labels/train/1\.png: .*2"):
        train(wrong, out=tmp_path / "unchecked", check=False)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_a_run_that_would_score_what_it_learns_is_stopped_before_training(tmp_path: Path) -> None:
    config = fcn(4, "tinyvgg", classes=11, weights=None, context=0)
    same = DataConfig(root=SCENES, name="scenes", val="train", workers=0)
    for check in (True, False):
        with pytest.raises(DatasetError, match=r"all 12 pictures of train are in train, too: train-000000, .*learnt"):
            train(recipe(model=config, data=same, fit=settings(steps=1)), out=tmp_path / "run", check=check)
    assert not (tmp_path / "run").exists()


def test_what_an_earlier_stage_learns_is_not_scored_by_a_later_one(tmp_path: Path) -> None:
    config = fcn(4, "tinyvgg", classes=11, weights=None, context=0)
    stages = [
        Stage(
            name=name, model=config, fit=settings(steps=1), data=DataConfig(root=SCENES, name="scenes", workers=0, **of)
        )
        for name, of in (("one", {"train": "a", "val": "b"}), ("two", {"train": "c", "val": "a"}))
    ]
    with pytest.raises(DatasetError, match="all 12 pictures of a are in a, too"):
        train(Recipe(name="two", stages=tuple(stages)), out=tmp_path / "run")
    # What is scored first may be learnt later.
    train(Recipe(name="two", stages=tuple(reversed(stages))), out=tmp_path / "turned")
    assert (tmp_path / "turned/one/results.json").exists()


def test_heads_that_do_not_fit_the_data_are_refused_with_both_numbers(tmp_path: Path) -> None:
    config = fcn(4, "tinyvgg", classes=5, weights=None, context=0)
    with pytest.raises(ConfigError, match=r"stages\.0\.model\.heads\.out\.classes: got 5; the data has 11"):
        train(recipe(model=config), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    train(recipe(fit=settings(steps=1)), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run; resume it, or choose another folder"):
        train(recipe(fit=settings(steps=1)), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"stages\.0\.fit\.steps differs from the run's own recipe\.json"):
        train(recipe(fit=settings(steps=2)), out=tmp_path / "run", resume=True)


def test_a_run_cannot_be_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be made a folder for the run"):
        train(recipe(fit=settings(steps=1)), out=tmp_path / "run")


def test_a_start_that_failed_before_learning_leaves_no_run_in_the_way(tmp_path: Path) -> None:
    missing = fcn(4, "tinyvgg", classes=11, weights=str(tmp_path / "none.pth"), context=0)
    with pytest.raises(CheckpointError, match="no such file"):
        train(recipe(model=missing, fit=settings(steps=1)), out=tmp_path / "run")
    train(recipe(fit=settings(steps=1)), out=tmp_path / "run")
    assert Recipe.read(tmp_path / "run" / "recipe.json").stages[0].model.weights is None


def test_settings_that_name_what_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="no loss 'crossentropy'; did you mean 'cross_entropy'"):
        next(fit(net(), pictures(4), None, settings(loss="crossentropy"), data=PLAIN))
    with pytest.raises(ConfigError, match="no head 'depth'"):
        next(fit(net(), pictures(4), None, settings(head_loss={"depth": 1}), data=PLAIN))


# Runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_all_and_repeats_from_its_recipe(tmp_path: Path) -> None:
    seen: list[Event] = []
    model = train(recipe(), out=tmp_path / "a", on_event=seen.append)
    run = tmp_path / "a"
    assert {p.name for p in run.iterdir()} >= {
        "recipe.json", "run.json", "log.jsonl", "8s", "config.json", "model.safetensors", "results.json", "report.html",
    }  # fmt: skip
    assert not (run / "8s" / "resume").exists()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [type(e).__name__.lower() for e in seen]
    results = json.loads((run / "results.json").read_text())
    assert 0 < results["mean_iu"] < 1
    assert results["protocol"]["pictures"] > 0
    again = train(run / "recipe.json", out=tmp_path / "b")
    for loaded in (checkpoint.load(run), again):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_stage_starts_from_the_best_of_the_one_before(tmp_path: Path) -> None:
    coarse, fine = net(8).config, net(4).config
    assert coarse is not None
    assert fine is not None
    stages = [
        {"name": name, "model": model, "data": DataConfig(root=SCENES, name="scenes", workers=0), "fit": settings()}
        for name, model in (("8s", coarse), ("4s", fine))
    ]
    stages[1]["fit"] = settings(steps=1, optimizer="sgd", lr=5e-9, weight_decay=0)
    seen: list[Event] = []
    model = train(Recipe.parse({"stages": stages}), out=tmp_path, on_event=seen.append)
    before = checkpoint.load(tmp_path / "8s" / "best").state_dict()
    shared = [name for name in before if name in model.state_dict() and "running" not in name and "num_" not in name]
    assert len(shared) > 4
    for name in shared:
        torch.testing.assert_close(model.state_dict()[name], before[name], rtol=0, atol=1e-6)
    ends = [of(Evaluated, [e for e in seen if getattr(e, "stage", "") == s])[-1].mean_iu for s in ("8s", "4s")]
    # A new skip starts at zero: nothing changes before it learns, but for the kernel between the two.
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


def test_a_finer_net_predicts_what_the_coarser_one_did_before_it_learns() -> None:
    from fullyconv.postconditions import revive
    from fullyconv.transplant import transplant

    for geometry in ("same", "pad100"):
        coarse = build(fcn(32, "tinyvgg", 5, weights=None, context=0, geometry=geometry)).double().eval()
        with torch.no_grad():
            revive(coarse, 255 * torch.rand(2, 3, 96, 96, dtype=torch.float64))
        fine = build(fcn(16, "tinyvgg", 5, weights=None, context=0, geometry=geometry)).double().eval()
        transplant(coarse.state_dict(), fine)
        image = 255 * torch.rand(1, 3, 160, 192, dtype=torch.float64)
        with torch.no_grad():
            scores = coarse.score_maps(image)["out"]
            before, after = coarse(image)["out"], fine(image)["out"]
        assert before.std() > 1e-3
        # Bilinear to half the stride and from there to pixels cuts the corners of the one line: by an eighth of the
        # bend at each, along either axis. Away from the border, where nets of two strides frame alike.
        down, across = scores.diff(n=2, dim=2).abs().max() / 8, scores.diff(n=2, dim=3).abs().max() / 8
        bound = float(down + across) * 1.25
        inside = (..., slice(48, -48), slice(48, -48))
        assert float((before - after)[inside].abs().max()) <= bound
        same = (before.argmax(1) == after.argmax(1))[inside].double().mean().item()
        assert same > 0.9


def test_streams_start_from_the_stages_named_for_them(tmp_path: Path) -> None:
    alone = fcn(8, "tinyvgg", classes=11, weights=None, context=0)
    (head,) = alone.heads.values()
    taps = [skip.tap for skip in head.skips]
    skips = [{"tap": f"{stream}/{tap}"} for tap in taps for stream in ("left", "right")]
    both = {
        "backbone": "tinyvgg",
        "streams": {"left": {"weights": None}, "right": {"weights": None}},
        "heads": {"out": {"classes": 11, "skips": skips, "fusion": "mean"}},
    }
    data = DataConfig(root="", name="twice", workers=0, crop="whole")
    single = DataConfig(root=SCENES, name="scenes", workers=0, crop="whole")
    still = settings(steps=1, optimizer="sgd", lr=5e-9, weight_decay=0, freeze_norm=True)
    one, other = (settings(steps=2, batch=2, seed=seed) for seed in (1, 2))
    stages = [
        {"name": "a", "model": alone, "data": single, "fit": one},
        {"name": "b", "start": "classifier", "model": alone, "data": single, "fit": other},
        {"name": "ab", "start": {"left": "a", "right": "b"}, "model": both, "data": data, "fit": still},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "twice", twice)  # type: ignore[arg-type]
        seen: list[Event] = []
        model = train(Recipe.parse({"stages": stages}), out=tmp_path, on_event=seen.append)
    said = [event.message for event in of(Said, seen)]
    assert any("tensors from a as left" in line for line in said)
    assert "ab: new: none" in said
    found = model.state_dict()
    for name, stream in (("a", "left"), ("b", "right")):
        before = checkpoint.load(tmp_path / name / "best").state_dict()
        for key, tensor in before.items():
            if key.startswith("backbone.net.") and "num_batches" not in key:
                goal = key.replace("backbone.", f"backbone.streams.{stream}.", 1)
            elif ".score." in key:
                goal = key.replace(".score.", f".score.{stream}/")
            else:
                continue
            torch.testing.assert_close(found[goal], tensor, rtol=0, atol=1e-6, msg=goal)
    # Two streams that see the same picture: the mean of what each alone says.
    image = torch.randint(0, 256, (1, 3, 48, 64))
    alone_scores = [checkpoint.load(tmp_path / name / "best").score_maps(image)["out"] for name in ("a", "b")]
    together = model.score_maps(torch.cat((image, image), 1))["out"]
    torch.testing.assert_close(together, sum(alone_scores) / 2, rtol=1e-4, atol=1e-5)


def twice(root: str, *, split: str, seed: int, inputs: tuple[str, ...]) -> Any:
    """Scenes whose pictures have their colours twice, for two streams."""
    data = dataset("scenes", SCENES, split=split)

    class Twice(View):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return Sample(sample.name, np.concatenate((sample.image, sample.image), 2), sample.labels)

    return Twice(data, range(len(data)))


def test_a_stage_may_start_from_the_classifier_once_more(tmp_path: Path) -> None:
    seen: list[Event] = []
    stage = recipe(fit=settings(steps=1)).stages[0]
    again = stage.model_copy(update={"name": "again", "start": "classifier"})
    train(Recipe(stages=(stage, again)), out=tmp_path, on_event=seen.append)
    assert not any("tensors from" in event.message for event in of(Said, seen))
    assert [alarm.stage for alarm in of(Alarm, seen) if alarm.kind == "uninitialised"] == ["8s", "again"]


def test_what_val_nearly_shares_with_train_is_said_and_what_cannot_be_read_stops(tmp_path: Path) -> None:
    root = planted.scenes(tmp_path / "data", train=8, val=2)
    mirrored = Image.open(root / "images/train/05.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(root / "images/val/01.png")
    pair = open_folder(root), open_folder(root, split="val")
    said: list[Event] = []
    training._checked([pair], said.append)
    (line,) = (event.message for event in of(Said, said) if "nearly" in event.message)
    assert line.startswith("1 of the 2 pictures of val are nearly pictures of train: 01 (like 05, 1.000)")
    planted.edit(root / "labels/val/01.png", lambda ids: ids * 0 + 77)
    with pytest.raises(DatasetError, match=r"labels/val/01\.png: 1 value outside the table"):
        training._checked([pair], said.append)
