"""Picture and labels go through one geometry, and no label is invented."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from fullyconv.errors import ConfigError
from fullyconv.transforms import MEAN, NONE, TrainTransform, _recolour, collate

COLOURS = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
COLOURS[255] = MEAN


def sample(labels: np.ndarray) -> SimpleNamespace:
    """A picture whose colours are its labels."""
    return SimpleNamespace(image=COLOURS[labels], labels={"out": labels})


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks(height: int, width: int, seed: int) -> np.ndarray:
    """Labels in blocks of 5 px, so that most pixels have neighbours of their own kind."""
    coarse = np.random.default_rng(seed).integers(0, 9, (height // 5 + 1, width // 5 + 1), dtype=np.uint8)
    return coarse.repeat(5, 0).repeat(5, 1)[:height, :width]


sizes = st.tuples(st.integers(1, 60), st.integers(1, 60))
transforms = st.builds(
    TrainTransform,
    crop=sizes,
    scale=st.tuples(st.floats(0.3, 1), st.floats(1, 3)),
    mirror=st.booleans(),
    jitter=st.just(0.0),
) | st.builds(
    TrainTransform,
    scale=st.tuples(st.floats(0.3, 1), st.floats(1, 3)),
    mirror=st.booleans(),
    jitter=st.just(0.0),
    shift=st.integers(0, 40),
)


@settings(max_examples=150, deadline=None)
@given(transform=transforms, size=sizes, seed=st.integers(0, 2**31))
def test_no_label_is_invented_and_sizes_are_as_asked_for(
    transform: TrainTransform, size: tuple[int, int], seed: int
) -> None:
    labels = blocks(*size, seed)
    image, truths = transform(sample(labels), drawn(seed))
    assert image.dtype == torch.uint8
    assert image.shape == (3, *truths["out"].shape)
    assert set(truths["out"].unique().tolist()) <= {*np.unique(labels).tolist(), 255}
    if transform.crop:
        assert truths["out"].shape == transform.crop
    else:
        low, high = transform.scale
        assert max(1, round(low * size[0])) <= image.shape[1] <= max(1, round(high * size[0]))


@settings(max_examples=150, deadline=None)
@given(transform=transforms, seed=st.integers(0, 2**31))
def test_picture_and_labels_stay_aligned(transform: TrainTransform, seed: int) -> None:
    # Wherever a label's neighbourhood is all there and of one kind, the picture must show that kind's colour.
    image, truths = transform(sample(blocks(50, 40, seed)), drawn(seed))
    truth, reach = truths["out"].long(), 3
    maps = torch.stack([truth, -truth])[:, None].float()
    largest = torch.nn.functional.max_pool2d(torch.nn.functional.pad(maps, (reach,) * 4, value=999), 2 * reach + 1, 1)
    sure = largest[0, 0] == -largest[1, 0]
    expected = torch.from_numpy(COLOURS)[truth].permute(2, 0, 1)
    assert ((image.int() - expected.int()).abs().amax(0)[sure] <= 1).all()


def test_the_mirror_the_crop_and_the_scale_do_happen() -> None:
    labels = blocks(40, 60, 0)
    flipped = [TrainTransform(scale=(1, 1), jitter=0)(sample(labels), drawn(seed))[1]["out"] for seed in range(40)]
    mirrored = sum(torch.equal(found, torch.from_numpy(labels[:, ::-1].copy())) for found in flipped)
    plain = sum(torch.equal(found, torch.from_numpy(labels)) for found in flipped)
    assert mirrored + plain == 40
    assert 8 < mirrored < 32
    heights = {TrainTransform(jitter=0)(sample(labels), drawn(seed))[0].shape[1] for seed in range(60)}
    assert min(heights) < 25
    assert max(heights) > 64
    crops = TrainTransform(crop=(10, 10), scale=(1, 1), mirror=False, jitter=0)
    places = {crops(sample(labels), drawn(seed))[1]["out"].numpy().tobytes() for seed in range(40)}
    assert len(places) > 30


def test_a_crop_at_scale_one_is_a_window_of_the_picture() -> None:
    labels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    image, truths = TrainTransform(crop=(4, 5), scale=(1, 1), mirror=False, jitter=0)(sample(labels), drawn(3))
    top, left = divmod(int(truths["out"][0, 0]), 20)
    assert np.array_equal(truths["out"], labels[top : top + 4, left : left + 5])
    assert np.array_equal(image.permute(1, 2, 0), COLOURS[labels][top : top + 4, left : left + 5])


def test_a_small_picture_is_padded_with_void_and_the_mean_colour() -> None:
    labels = np.full((4, 6), 7, np.uint8)
    image, truths = TrainTransform(crop=(10, 10), scale=(1, 1), jitter=0)(sample(labels), drawn(0))
    assert (truths["out"] == 7).sum() == 24
    assert (truths["out"] == 255).sum() == 76
    assert (image.permute(1, 2, 0)[truths["out"] == 255] == torch.tensor(MEAN, dtype=torch.uint8)).all()


def test_the_papers_jitter_moves_the_whole_picture_by_up_to_so_many_pixels() -> None:
    labels = np.full((20, 20), 1, np.uint8)
    shift = TrainTransform(scale=(1, 1), mirror=False, jitter=0, shift=6)
    moved = set()
    for seed in range(300):
        rows, columns = torch.where(shift(sample(labels), drawn(seed))[1]["out"] == 1)
        moved.add(int(rows[0]) if rows[-1] == 19 else int(rows[-1]) - 19)
        assert columns.max() - columns.min() >= 13
    assert moved == set(range(-6, 7))


def test_a_shift_beyond_the_picture_leaves_only_void() -> None:
    labels = np.zeros((2, 2), np.uint8)
    far = TrainTransform(scale=(1, 1), shift=500)
    assert any((far(sample(labels), drawn(seed))[1]["out"] == 255).all() for seed in range(5))


def test_a_shift_with_a_crop_is_refused() -> None:
    with pytest.raises(ConfigError, match="a shift of 32 px goes with whole pictures only"):
        TrainTransform(crop=(10, 10), shift=32)


def test_none_changes_nothing() -> None:
    labels = blocks(13, 17, 0)
    image, truths = NONE(sample(labels), drawn(0))
    assert np.array_equal(image.permute(1, 2, 0), COLOURS[labels])
    assert np.array_equal(truths["out"], labels)


def test_several_heads_share_one_geometry_and_wide_labels_keep_their_values() -> None:
    labels = blocks(30, 30, 0)
    both = SimpleNamespace(image=COLOURS[labels], labels={"a": labels, "b": labels.astype(np.uint16) + 1000})
    _, truths = TrainTransform(crop=(20, 20), void=255)(both, drawn(0))
    inside = truths["a"] != 255
    assert torch.equal(truths["a"].int()[inside] + 1000, truths["b"].int()[inside])


def test_the_generator_decides_all_and_the_global_state_is_left_alone() -> None:
    labels, transform = blocks(50, 50, 0), TrainTransform(crop=(30, 30))
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    first = transform(sample(labels), drawn(5))
    torch.manual_seed(99)
    second = transform(sample(labels), drawn(5))
    other = transform(sample(labels), drawn(6))
    torch.set_rng_state(states[0])
    transform(sample(labels), drawn(7))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1]["out"], second[1]["out"])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_every_setting_draws_equally_many_numbers() -> None:
    labels = blocks(20, 20, 0)
    after = set()
    for transform in (NONE, TrainTransform(), TrainTransform(crop=(9, 9)), TrainTransform(shift=3, mirror=False)):
        generator = drawn(0)
        transform(sample(labels), generator)
        after.add(float(torch.rand(1, generator=generator)))
    assert len(after) == 1


@pytest.mark.parametrize(
    ("brightness", "contrast", "saturation"), [(1.2, 1, 1), (1, 0.6, 1), (1, 1, 1.4), (0.9, 0.8, 0.7)]
)
def test_colour_jitter_is_torchvisions(brightness: float, contrast: float, saturation: float) -> None:
    image = torch.randint(60, 150, (3, 20, 20), dtype=torch.uint8, generator=drawn(0))
    expected = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(image, brightness), contrast), saturation)
    found = _recolour(image, brightness, contrast, saturation)
    assert (found.int() - expected.int()).abs().max() <= 3  # it rounds down after each of the three
    assert torch.equal(_recolour(image, 1, 1, 1), image)


def test_pictures_of_different_sizes_batch_by_padding() -> None:
    one, two = (NONE(sample(blocks(*size, 0)), drawn(0)) for size in ((4, 9), (7, 5)))
    images, labels = collate([one, two])
    assert images.shape == (2, 3, 7, 9)
    assert images.dtype == torch.uint8
    assert labels["out"].shape == (2, 7, 9)
    assert labels["out"].dtype == torch.int64
    assert torch.equal(images[0, :, :4], one[0])
    assert torch.equal(labels["out"][1, :, :5], two[1]["out"].long())
    assert (labels["out"][0, 4:] == 255).all()
    assert (labels["out"][1, :, 5:] == 255).all()
    assert (images[1, :, :, 5:] == torch.tensor(MEAN, dtype=torch.uint8)[:, None, None]).all()


def test_labels_are_scaled_by_the_centres_of_their_pixels() -> None:
    labels = np.random.default_rng(0).integers(0, 9, (6, 8), dtype=np.uint8)
    for factor, given_labels, expected in (
        (2.0, labels, labels.repeat(2, 0).repeat(2, 1)),
        (1 / 3, labels.repeat(3, 0).repeat(3, 1), labels),
    ):
        transform = TrainTransform(scale=(factor, factor), mirror=False, jitter=0)
        assert np.array_equal(transform(sample(given_labels), drawn(0))[1]["out"], expected)
    # Of three pixels, the middle one stands for them: corners would give the first.
    thirds = TrainTransform(scale=(1 / 3, 1 / 3), mirror=False, jitter=0)
    assert thirds(sample(np.array([[1, 2, 3]] * 3, np.uint8)), drawn(0))[1]["out"].tolist() == [[2]]


# Other channels than colour ------------------------------------------------------------------------------------------


def fused(labels: np.ndarray) -> SimpleNamespace:
    """A picture of colours and, as its fourth channel, of the label itself."""
    image = np.concatenate([COLOURS[labels], labels[..., None]], axis=2).astype(np.float32)
    return SimpleNamespace(image=image, labels={"out": labels})


@settings(max_examples=60, deadline=None)
@given(transform=transforms, seed=st.integers(0, 2**31))
def test_every_channel_goes_through_the_geometry_of_the_labels(transform: TrainTransform, seed: int) -> None:
    transform = replace(transform, fill=(*MEAN, 255.0))
    image, truths = transform(fused(blocks(50, 40, seed)), drawn(seed))
    assert image.dtype == torch.float32
    assert image.shape == (4, *truths["out"].shape)
    truth, reach = truths["out"].long(), 3
    maps = torch.stack([truth, -truth])[:, None].float()
    largest = torch.nn.functional.max_pool2d(torch.nn.functional.pad(maps, (reach,) * 4, value=999), 2 * reach + 1, 1)
    sure = largest[0, 0] == -largest[1, 0]
    assert ((image[3] - truth).abs()[sure] <= 1e-3).all()
    assert ((image[:3] - torch.from_numpy(COLOURS)[truth].permute(2, 0, 1)).abs().amax(0)[sure] <= 1e-3).all()


def test_jitter_changes_colour_and_nothing_else() -> None:
    labels = blocks(20, 30, 0)
    strong = TrainTransform(scale=(1, 1), mirror=False, jitter=0.9, fill=(*MEAN, 0))
    image, _ = strong(fused(labels), drawn(1))
    plain = torch.from_numpy(fused(labels).image).permute(2, 0, 1)
    assert torch.equal(image[3], plain[3])
    assert not torch.allclose(image[:3], plain[:3], atol=5)
    assert image.min() >= 0
    assert image[:3].max() <= 255
    # The same numbers as for whole colours, but that these are not rounded.
    rounded, _ = replace(strong, fill=MEAN)(sample(labels), drawn(1))
    assert (image[:3] - rounded).abs().max() <= 0.501
    untouched, _ = replace(strong, coloured=False)(fused(labels), drawn(1))
    assert torch.equal(untouched, plain)


def test_padding_is_given_for_each_channel() -> None:
    labels = np.full((4, 6), 7, np.uint8)
    crop = TrainTransform(crop=(10, 10), scale=(1, 1), jitter=0, fill=(1.5, 2, 3, 7.844))
    image, truths = crop(fused(labels), drawn(0))
    padding = image.permute(1, 2, 0)[truths["out"] == 255]
    assert torch.equal(padding, torch.tensor([1.5, 2, 3, 7.844]).expand(76, 4))
    images, _ = collate([(image, truths), (image[:, :4], {"out": truths["out"][:4]})], fill=(0, 0, 0, 9))
    assert (images.dtype, images.shape) == (torch.float32, (2, 4, 10, 10))
    assert torch.equal(images[1, :, 4:].flatten(1).T.unique(dim=0), torch.tensor([[0.0, 0, 0, 9]]))
    # Whole numbers are rounded: a mean of 103.94 is 104, not 103.
    whole, _ = TrainTransform(crop=(9, 9), scale=(1, 1), jitter=0, fill=(103.94, 0.4, 255.0))(sample(labels), drawn(0))
    assert whole.dtype == torch.uint8
    assert {104, 0, 255} <= set(whole.unique().tolist())


def test_padding_for_other_channels_than_there_are_is_refused() -> None:
    labels = np.zeros((4, 6), np.uint8)
    with pytest.raises(ConfigError, match="fill: got 3 numbers for pictures of 4 channels; expected one each"):
        TrainTransform()(fused(labels), drawn(0))
    image, truths = NONE(sample(labels), drawn(0))
    with pytest.raises(ConfigError, match="fill: got 1 numbers for pictures of 3 channels"):
        collate([(image, truths)], fill=(0.0,))
