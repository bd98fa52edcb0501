"""The stream of samples shows each picture once an epoch, and position alone decides what comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fullyconv.config import Classes
from fullyconv.datasets import Sample, dataset
from fullyconv.sampling import (
    AUGMENT,
    Positions,
    Samples,
    Stream,
    View,
    batches,
    choose_crop,
    evenly,
    mix,
    sizes,
)
from fullyconv.transforms import TrainTransform

SCENES = dataset("scenes", "count=6 size=32x48")


@given(st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 5))
def test_every_picture_comes_once_an_epoch(length: int, seed: int, epoch: int) -> None:
    stream = Stream(length, seed)
    assert sorted(stream[epoch * length + i] for i in range(length)) == list(range(length))


def test_a_stream_can_be_entered_anywhere_and_orders_differ_by_epoch_and_seed() -> None:
    stream = Stream(50, seed=3)
    order = [stream[n] for n in range(100)]
    assert [Stream(50, seed=3)[n] for n in reversed(range(100))] == order[::-1]
    assert order[:50] != order[50:]
    assert order[:50] != [Stream(50, seed=4)[n] for n in range(50)]


def test_seeds_of_neighbours_have_nothing_in_common() -> None:
    # Half of the bits of 63 differ on average; the standard deviation of the mean of 2000 is 0.09.
    flipped = [(mix(1, AUGMENT, n) ^ mix(1, AUGMENT, n + 1)).bit_count() for n in range(2000)]
    assert np.mean(flipped) == pytest.approx(31.5, abs=0.5)
    assert len({mix(a, b) for a in range(100) for b in range(100)}) == 10_000
    assert all(0 <= mix(n) < 2**63 for n in range(100))


def test_processes_share_out_every_batch() -> None:
    alone = list(islice(Positions(start=8, batch=4), 3))
    shares = [list(islice(Positions(start=8, batch=4, rank=r, processes=2), 3)) for r in (0, 1)]
    assert alone == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_depends_on_its_positions_alone(workers: int) -> None:
    transform = TrainTransform(crop=(16, 24))

    def stream(start: int) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
        positions = Positions(start=start, batch=4)
        loader = batches(Samples(SCENES, transform, seed=5), positions, void=255, workers=workers)
        return [batch for batch, _ in islice(loader, 3) if not isinstance(batch, str)]

    whole, late = stream(0), stream(4)
    for (images, labels), (late_images, late_labels) in zip(whole[1:], late, strict=False):
        assert torch.equal(images, late_images)
        assert torch.equal(labels["out"], late_labels["out"])
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 16, 24)


def test_a_picture_looks_different_in_the_next_epoch() -> None:
    samples = Samples(SCENES, TrainTransform(crop=(16, 24)), seed=0)
    first, second = ({samples.stream[n]: samples[n][0] for n in range(e * 6, e * 6 + 6)} for e in (0, 1))
    assert not any(torch.equal(first[i][0], second[i][0]) for i in range(6))


def test_a_view_is_a_data_set_of_its_own() -> None:
    plain, kept = View(SCENES, [4, 1]), View(SCENES, [4, 1], remember=True)
    assert plain.names == kept.names == [SCENES.names[4], SCENES.names[1]]
    assert len(kept) == 2
    assert np.array_equal(plain[1].image, SCENES[1].image)
    assert kept[1] is kept[1]
    assert np.array_equal(kept[0].labels["out"], SCENES[4].labels["out"])
    assert list(View(kept, [1]).names) == [SCENES.names[1]]


@given(st.integers(0, 300), st.integers(1, 300))
def test_thinning_is_even(length: int, most: int) -> None:
    chosen = evenly(length, most)
    assert len(chosen) == min(length, most)
    gaps = {b - a for a, b in pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert min(gaps, default=1) >= 1


@pytest.mark.parametrize(
    ("found", "crop"),
    [
        ([(360, 480)] * 3, (256, 320)),  # CamVid
        ([(375, 500), (500, 375), (333, 500)], (256, 352)),  # VOC
        ([(1024, 2048)], (512, 512)),  # Cityscapes
        ([(240, 320)], (160, 224)),  # NYUD at half size
        ([(64, 64)], (64, 64)),
        ([(1, 1)], (32, 32)),
    ],
)
def test_crops_suit_the_pictures(found: list[tuple[int, int]], crop: tuple[int, int]) -> None:
    assert choose_crop(found) == crop


def test_sizes_are_those_of_the_pictures() -> None:
    assert sizes(SCENES) == [(32, 48)] * 6
    assert sizes(SCENES, most=2) == [(32, 48)] * 2


@dataclass
class Fused:
    """Two pictures of four channels, of different sizes."""

    name: str = "fused"
    split: str = "train"
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ("a", "b")
    classes: dict[str, Classes] = field(default_factory=lambda: {"out": Classes.of("x", "y")})

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        size = (4, 6 + 2 * index)
        return Sample(self.names[index], np.full((*size, 4), index, np.float32), {"out": np.zeros(size, np.uint8)})

    def paths(self, index: int) -> tuple[None, None]:
        return None, None


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_of_other_channels_are_batched_with_a_padding_of_their_own(workers: int) -> None:
    fill = (1.0, 2.0, 3.0, 7.5)
    transform = TrainTransform(scale=(1, 1), mirror=False, coloured=False, fill=fill)
    data = View(Fused(), [0, 1], remember=True)
    assert sizes(data) == [(4, 6), (4, 8)]
    stream = batches(Samples(data, transform, 0), Positions(start=0, batch=2), void=255, workers=workers, fill=fill)
    (images, labels), _ = next(stream)
    assert (images.dtype, images.shape) == (torch.float32, (2, 4, 4, 8))
    short = int(images[:, 0, 0, 0].argmin())
    assert torch.equal(images[short, :, 0, 6], torch.tensor(fill))
    assert (labels["out"][short, :, 6:] == 255).all()
