"""What a segmentation says of itself and writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fullyconv.config import Classes, ClassInfo
from fullyconv.errors import ConfigError
from fullyconv.geometry import Grid
from fullyconv.labels import label_values, read_labels
from fullyconv.segmentation import ScoreMap, Segmentation
from fullyconv.upsample import Upsample

CLASSES = Classes(
    entries=(
        ClassInfo(id=3, name="sky", colour=(0, 0, 255)),
        ClassInfo(id=7, name="void", colour=(0, 0, 0), ignore=True),
        ClassInfo(id=9, name="road", colour=(128, 64, 128)),
        ClassInfo(id=12, name="cat", colour=(255, 0, 0)),
    )
)
LABELS = np.array([[0, 0, 1], [0, 1, 1]], np.uint8)


@pytest.fixture
def segmentation() -> Segmentation:
    image = np.full((2, 3, 3), 100, np.uint8)
    return Segmentation({"out": LABELS}, {"out": CLASSES}, image)


@pytest.fixture
def with_scores() -> Segmentation:
    scores = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(1))
    upsample = Upsample(Grid().conv(8, stride=8), Grid(), 3)
    labels = upsample(scores, (37, 45)).argmax(1)[0].byte().numpy()
    image = np.zeros((37, 45, 3), np.uint8)
    return Segmentation(
        {"out": labels}, {"out": CLASSES}, image, score_maps={"out": ScoreMap(scores, upsample, (37, 45))}
    )


def test_it_says_which_classes_it_found_and_how_much_of_each(segmentation: Segmentation) -> None:
    assert segmentation.area() == {"sky": 0.5, "road": 0.5, "cat": 0.0}
    assert repr(segmentation) == "Segmentation(3x2: sky 50.0 %, road 50.0 %)"


def test_the_saved_png_holds_ids_and_reads_back(segmentation: Segmentation, tmp_path: Path) -> None:
    path = segmentation.save(tmp_path / "a.png")
    assert label_values(path) == {3: 3, 9: 3}
    np.testing.assert_array_equal(read_labels(path, classes=CLASSES), LABELS)


def test_the_overlay_is_the_picture_at_0_and_the_colours_at_1(segmentation: Segmentation) -> None:
    np.testing.assert_array_equal(segmentation.overlay(alpha=0), segmentation.image)
    assert segmentation.overlay(alpha=1)[1, 2].tolist() == [128, 64, 128]


def test_probabilities_sum_to_1_and_their_largest_is_the_label(with_scores: Segmentation) -> None:
    probabilities = with_scores.probabilities()
    assert probabilities.shape == (37, 45, 3)
    assert probabilities.dtype == np.float16
    np.testing.assert_allclose(probabilities.astype(np.float32).sum(2), 1, atol=2e-3)
    of_label = np.take_along_axis(probabilities, with_scores.labels["out"][..., None], 2)[..., 0]
    np.testing.assert_allclose(of_label, probabilities.max(2), atol=1e-3)


def test_saved_probabilities_load_with_numpy_alone(with_scores: Segmentation, tmp_path: Path) -> None:
    path = with_scores.save_probabilities(tmp_path / "a.npz")
    with np.load(path, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["probabilities"], with_scores.probabilities())
        assert saved["classes"].tolist() == ["sky", "road", "cat"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_learned_upsampling_gives_probabilities_too() -> None:
    upsample = Upsample(Grid().conv(8, stride=8), Grid(), 3, kernel="learned")
    score_map = ScoreMap(torch.randn(1, 3, 5, 6), upsample, (37, 45))
    assert sum(len(band) for band in score_map.probability_bands()) == 37


def test_probabilities_that_were_not_kept_are_not_made_up(segmentation: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make the Predictor with probabilities=True"):
        segmentation.save_probabilities(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_with_several_heads_one_must_be_named() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    both = Segmentation({"a": LABELS, "b": LABELS}, {"a": CLASSES, "b": Classes.of("x", "y")}, image)
    assert both.area("b") == {"x": 0.5, "y": 0.5}
    assert repr(both) == "Segmentation(3x2: a: sky 50.0 %, road 50.0 %; b: y 50.0 %, x 50.0 %)"
    for head in (None, "c"):
        with pytest.raises(ConfigError, match=f"head: got {head!r}; expected one of a, b"):
            both.area(head)
