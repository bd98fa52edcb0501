"""How often classes occur, and how large pictures are, is said where it would harm."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fullyconv import census
from fullyconv.config import Classes
from fullyconv.datasets import Sample
from fullyconv.impressions import Impression, impression

TABLE = Classes.of("sky", "road", "cat")


def said(pixels: list[int], pictures: list[int], void: int = 0) -> list[tuple[str, str]]:
    found = census.of_classes("out", TABLE, "train", np.array(pixels), void, np.array(pictures))
    return [(finding.kind, finding.detail) for finding in found]


def test_even_classes_are_no_finding() -> None:
    assert said([900, 500, 100], [90, 90, 40]) == []


def test_a_class_on_few_pictures_or_pixels_is_rare() -> None:
    (found,) = said([900, 500, 100], [90, 90, 2])
    assert found == ("rare", "1 of 3 classes hardly occurs in train: cat (100 px in 2 pictures)")
    (found,) = said([10_000_000, 500_000, 20], [90, 90, 9])
    assert found == ("rare", "1 of 3 classes hardly occurs in train: cat (20 px in 9 pictures)")
    assert said([900, 500, 100], [3, 3, 2]) == [], "few pictures have few of each class"


def test_classes_that_are_far_apart_in_number_are_said() -> None:
    (found,) = said([9_000_000, 500_000, 800], [90, 90, 9])
    assert found == ("balance", "train has 11,250 pixels of sky for one of cat")


def test_only_the_first_class_missing_looks_like_ids_from_one() -> None:
    (found,) = said([0, 500, 800], [0, 90, 90])
    assert found[0] == "absent"
    assert found[1].endswith("sky; it is the first of the table, and all others occur: are the ids too high by one?")
    (found,) = said([500, 0, 800], [90, 0, 90])
    assert found[1].endswith("train: road")


def pair(height: int, width: int, name: str = "a") -> Impression:
    labels = np.zeros((height, width), np.uint8)
    return impression(Sample(name, np.zeros((height, width, 3), np.uint8), {"out": labels}), (name,), {"out": TABLE})


def test_pictures_of_quite_another_size_are_named() -> None:
    usual = [pair(40, 40, str(i)) for i in range(5)]
    assert census.of_sizes([*usual, pair(40, 80), pair(20, 20)]) == []
    (found,) = census.of_sizes([*usual, pair(200, 200, "large"), pair(5, 5, "small")])
    assert (found.kind, found.files) == ("sizes", ("large", "small"))
    assert census.sizes_line(usual) == "all pictures have 40 x 40 pixels (height x width)"
    assert census.sizes_line([*usual, pair(20, 30)]) == (
        "2 sizes of pictures, from 20 x 30 to 40 x 40 pixels (height x width)"
    )


@pytest.mark.parametrize(("side", "is_small"), [(31, True), (32, False)])
def test_pictures_without_a_whole_cell_are_named(side: int, is_small: bool) -> None:
    found = census.of_field([pair(side, 90), pair(90, 90)], "vgg16", Fraction(404), Fraction(32))
    assert len(found) == is_small
    if found:
        assert found[0].detail == (
            "1 pictures are smaller than the 32 pixels from cell to cell of vgg16's coarsest map, whose cells see 404: "
            "a has 31 x 90 (height x width)"
        )


def test_a_picture_whose_every_pixel_is_void_is_named() -> None:
    bare = replace(pair(4, 4, "bare"), pixels={"out": np.array([0, 0, 0, 16])})
    (found,) = census.of_void([pair(4, 4), bare])
    assert (found.kind, found.files) == ("void", ("bare",))


def test_one_class_and_void_are_nothing_to_tell_apart() -> None:
    crack = Classes.of("crack")
    (found,) = census.of_classes("out", crack, "train", np.array([900]), 4000, np.array([9]))
    assert (found.kind, found.severity) == ("single", "error")
    assert found.detail.startswith("crack is the only class, and all labelled pixels of train are its own")
    assert "list background before crack, and give 255 to it" in found.detail
    assert census.of_classes("out", crack, "train", np.array([900]), 0, np.array([9])) == []


def test_a_picture_of_nothing_but_void_is_named() -> None:
    labels = np.full((4, 5), 255, np.uint8)
    bare = impression(Sample("dim", np.zeros((4, 5, 3), np.uint8), {"out": labels}), ("dim.png",), {"out": TABLE})
    (found,) = census.of_void([pair(4, 5), bare])
    assert found.detail == "1 picture holds no labelled pixel, such as dim: nothing is learnt from that"
