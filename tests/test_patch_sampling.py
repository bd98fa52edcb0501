"""Patches drawn out of an enlarged batch, as in the papers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_fits import PLAIN, Squares, net, of, plain_net, settings

from fullyconv import fitting
from fullyconv.building import build
from fullyconv.errors import ConfigError
from fullyconv.events import Step
from fullyconv.fitting import fit
from fullyconv.learner import Learner
from fullyconv.presets import fcn


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
