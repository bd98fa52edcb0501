from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn

from fullyconv.backbones import Backbone
from fullyconv.config import INPUTS, Classes, HeadConfig, MultiScale, SkipConfig
from fullyconv.datasets.base import Sample
from fullyconv.errors import ConfigError, DatasetError, ImageError
from fullyconv.evaluation import evaluate, protocol, results
from fullyconv.geometry import Grid
from fullyconv.inference import Predictor, tiled
from fullyconv.maps import Tap
from fullyconv.metrics import ConfusionMatrix
from fullyconv.model import FCN

COLOURS = Classes.of("red", "green", "blue")
SIZES = [(7, 9), (12, 5), (1, 1), (30, 20), (7, 9), (16, 16)]


class Pixels(nn.Module):
    """The picture is its own map."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x,)


def colour_net(*heads: str) -> FCN:
    """Finds the class of a pixel: its strongest colour. Wrong at random where its dropout is not switched off."""
    backbone = Backbone(Pixels(), {"pixels": Tap(3, Grid())}, input=INPUTS["raw"])
    net = FCN(
        backbone,
        dict.fromkeys(heads, HeadConfig(classes=3, skips=(SkipConfig(tap="pixels"),), dropout=0.5)),
    )
    for head in heads:
        with torch.no_grad():
            net.heads[head].score["pixels"][-1].weight.copy_(torch.eye(3).view(3, 3, 1, 1))
    return net.train()


@dataclass(frozen=True)
class Noise:
    """Random pictures; the truth is the strongest colour, but for one pixel in ten, and one in ten that is void."""

    sizes: Sequence[tuple[int, int]] = tuple(SIZES)
    heads: tuple[str, ...] = ("out",)
    table: Classes = COLOURS
    broken: int = -1
    name: str = "noise"
    split: str = "val"
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> Mapping[str, Classes]:
        return dict.fromkeys(self.heads, self.table)

    @property
    def names(self) -> Sequence[str]:
        return [str(i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise ImageError(f"{index}.png", "no picture")
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        labels = {}
        for head in self.heads:
            chance = rng.random(self.sizes[index])
            truth = np.where(chance < 0.1, rng.integers(0, 3, chance.shape), image.argmax(2))
            labels[head] = np.where(chance > 0.9, 255, truth).astype(np.uint8)
        return Sample(str(index), image, labels)

    def paths(self, index: int) -> tuple[Path | None, Path | None]:
        return None, None


def test_the_counts_are_scikit_learns_over_all_pictures_at_their_own_sizes() -> None:
    data = Noise()
    samples = [data[i] for i in range(len(data))]
    truth = np.concatenate([s.labels["out"].ravel() for s in samples])
    predicted = np.concatenate([s.image.argmax(2).ravel() for s in samples])
    counted = truth != 255
    expected = confusion_matrix(truth[counted], predicted[counted])

    matrices = evaluate(colour_net("out"), data, device="cpu")

    assert list(matrices) == ["out"]
    assert matrices["out"].classes == COLOURS.names
    assert matrices["out"].counts.tolist() == expected.tolist()
    assert 0.8 < matrices["out"].mean_iu < 1  # the truth was made to differ here and there


def test_what_is_scored_is_what_the_predictor_gives() -> None:
    model, data = colour_net("out"), Noise()
    torch.nn.init.normal_(model.heads["out"].score["pixels"][-1].weight, generator=torch.Generator().manual_seed(0))
    counts = evaluate(model, data, device="cpu")["out"].counts
    predictor, expected = Predictor(model, device="cpu"), ConfusionMatrix(COLOURS.names)
    for i in range(len(data)):
        expected.update(data[i].labels["out"], predictor(data[i].image).labels["out"], 255)
    assert counts.tolist() == expected.counts.tolist()


def test_scoring_by_tiles_gives_the_counts_of_the_whole() -> None:
    whole = evaluate(colour_net("out"), Noise(), device="cpu")["out"].counts
    windows = evaluate(colour_net("out"), Noise(), strategy=partial(tiled, tile=8), device="cpu")["out"].counts
    assert windows.tolist() == whole.tolist()


def test_each_head_gets_its_own_matrix() -> None:
    data = Noise(heads=("semantic", "geometric"))
    matrices = evaluate(colour_net("semantic", "geometric"), data, device="cpu")
    for head, matrix in matrices.items():
        expected = ConfusionMatrix(COLOURS.names)
        for i in range(len(data)):
            expected.update(data[i].labels[head], data[i].image.argmax(2), 255)
        assert matrix.counts.tolist() == expected.counts.tolist()
    assert matrices["semantic"].counts.tolist() != matrices["geometric"].counts.tolist()


def test_every_module_is_afterwards_in_the_mode_it_was_in() -> None:
    model = colour_net("out")
    model.backbone.eval()  # a frozen part of a net in training
    before = [module.training for module in model.modules()]
    evaluate(model, Noise(), device="cpu")
    assert [module.training for module in model.modules()] == before
    assert True in before
    assert False in before

    with pytest.raises(ImageError):
        evaluate(model, Noise(broken=2), device="cpu")
    assert [module.training for module in model.modules()] == before


def test_progress_is_told_after_every_picture_and_may_stop_it_all() -> None:
    told: list[tuple[int, int]] = []
    evaluate(colour_net("out"), Noise(), device="cpu", on_progress=lambda *numbers: told.append(numbers))
    assert told == [(i + 1, 6) for i in range(6)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(colour_net("out"), Noise(), device="cpu", on_progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


def test_pictures_are_read_ahead_in_another_thread_but_not_all_at_once() -> None:
    read: list[int] = []
    threads: set[int] = set()

    class Watched(Noise):
        def __getitem__(self, index: int) -> Sample:
            read.append(index)
            threads.add(threading.get_ident())
            return super().__getitem__(index)

    ahead: list[int] = []
    data = Watched(sizes=[(3, 3)] * 20)
    evaluate(colour_net("out"), data, device="cpu", on_progress=lambda done, _: ahead.append(len(read) - done))
    assert read == list(range(20))
    assert threading.get_ident() not in threads
    assert max(ahead) <= 5


def test_no_pictures_give_a_matrix_of_zeros() -> None:
    matrix = evaluate(colour_net("out"), Noise(sizes=[]), device="cpu")["out"]
    assert not matrix.counts.any()
    assert matrix.as_dict()["mean_iu"] is None


def test_a_head_without_labels_is_refused() -> None:
    with pytest.raises(DatasetError, match="noise val: got labels for 'out'; expected some for the model's head 'geo'"):
        evaluate(colour_net("out", "geo"), Noise(), device="cpu")


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(DatasetError, match="noise val: got 2 classes for head 'out'; expected the 3 that the model"):
        evaluate(colour_net("out"), Noise(table=Classes.of("red", "green")), device="cpu")


def test_the_same_classes_in_another_order_are_refused() -> None:
    model = colour_net("out")
    model.classes["out"] = COLOURS
    evaluate(model, Noise(), device="cpu")
    with pytest.raises(DatasetError, match="class 1 of head 'out' is 'blue'; expected 'green', as the model learnt it"):
        evaluate(model, Noise(table=Classes.of("red", "blue", "green")), device="cpu")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision: got 'fp8'"):
        evaluate(colour_net("out"), Noise(), device="cpu", precision="fp8")


def test_results_of_one_head_are_the_issues_json() -> None:
    how = protocol(Noise(), strategy=partial(tiled, tile=512), device="cpu", precision="32", multiscale=MultiScale())
    found = json.loads(json.dumps(results(evaluate(colour_net("out"), Noise(), device="cpu"), protocol=how)))
    scores = {"pixel_accuracy", "mean_accuracy", "mean_iu", "fw_iu"}
    assert set(found) == scores | {"per_class", "absent", "protocol"}
    assert all(0 < found[score] < 1 for score in scores)
    assert list(found["per_class"]) == ["red", "green", "blue"]
    assert found["absent"] == []
    assert found["protocol"] == how
    assert {key: how[key] for key in ("dataset", "split", "pictures", "strategy", "precision", "label_size")} == {
        "dataset": "noise",
        "split": "val",
        "pictures": 6,
        "strategy": "tiled(tile=512)",
        "precision": "32",
        "label_size": "native",
    }
    assert how["device"].startswith("cpu (")
    assert how["versions"]["torch"] == torch.__version__
    assert "left out of every mean" in how["absent_classes"]


def test_results_of_several_heads_lie_under_their_names() -> None:
    matrix = ConfusionMatrix(["a", "b"], [[1, 0], [0, 0]])
    found = results({"one": matrix, "two": matrix + matrix}, protocol={"split": "val"})
    assert set(found) == {"heads", "protocol"}
    assert found["heads"]["two"] == (matrix + matrix).as_dict()
    assert found["heads"]["one"]["absent"] == ["b"]


def test_the_protocol_says_what_auto_came_to() -> None:
    how = protocol(replace(Noise(), split="test"), multiscale=MultiScale())
    assert how["strategy"] == "whole"
    assert how["split"] == "test"
    assert how["precision"] in ("32", "bf16")
    assert "auto" not in how["device"]
    assert protocol(Noise(), device="cpu", precision="bf16", multiscale=MultiScale())["precision"] == "bf16"
