"""A mended copy has no errors, says what was done, and never costs the original a byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import planted
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_diagnosis import FAULTS, MAP, PICTURE

from fullyconv.checking import check_splits
from fullyconv.datasets.folder import open_folder
from fullyconv.errors import ConfigError, DatasetError
from fullyconv.images import read_image
from fullyconv.labels import read_labels
from fullyconv.mending import Mended, mend


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.scenes(tmp_path_factory.mktemp("scenes") / "data", train=12, val=6)


def mended(root: Path, out: Path) -> Mended:
    return mend({split: open_folder(root, split=split) for split in ("train", "val")}, planted.look(root), out)


def labels(root: Path, path: str) -> np.ndarray:
    return read_labels(root / path, classes=open_folder(root).classes["out"])


def test_a_sound_folder_is_copied_byte_for_byte(root: Path, tmp_path: Path) -> None:
    before = planted.contents(root)
    done = mended(root, tmp_path / "out")
    assert (done.pairs, done.done, done.left) == ({"train": 12, "val": 6}, (), ())
    copy = planted.contents(tmp_path / "out")
    assert json.loads(copy.pop("mended.json")) == {"from": str(root), "done": [], "left": []}
    assert copy == before


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=3), number=st.integers(0, 10**6))
def test_a_mended_copy_has_no_errors_and_the_original_is_as_it_was(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, faults: list[str], number: int
) -> None:
    work = tmp_path_factory.mktemp("work")
    root = Path(shutil.copytree(sound, work / "data"))
    for i, fault in enumerate(faults):
        # Each fault is planted in picture 03; then another takes its place.
        FAULTS[fault][0](root)
        for half in ("images", "labels"):
            other = root / half / "train" / f"{(number + i) % 8 + 4:02}.png"
            there = root / half / "train/03.png"
            aside = other.read_bytes()
            other.write_bytes(there.read_bytes())
            there.write_bytes(aside if i + 1 < len(faults) else (sound / half / "train/03.png").read_bytes())
    before = planted.contents(root)
    mended(root, work / "out")
    assert planted.contents(root) == before
    assert [finding for finding in planted.found(work / "out") if finding.severity == "error"] == []


@pytest.mark.parametrize("fault", ["ids as grey RGB", "a picture that EXIF turns, and not its label map"])
def test_what_proves_what_it_was_is_mended_to_that(root: Path, sound: Path, tmp_path: Path, fault: str) -> None:
    FAULTS[fault][0](root)
    done = mended(root, tmp_path / "out")
    assert done.pairs["train"] == 12
    assert [line for line in done.done if str(root / MAP) in line]
    assert np.array_equal(labels(tmp_path / "out", MAP), labels(sound, MAP))
    assert np.array_equal(read_image(tmp_path / "out" / PICTURE).pixels, read_image(sound / PICTURE).pixels)


def test_colours_become_ids_by_the_palette_that_the_other_files_share(root: Path, sound: Path, tmp_path: Path) -> None:
    # A palette that the table of classes knows nothing of, as many tools write.
    for path in root.glob("labels/*/*.png"):
        image = Image.open(path)
        image.putpalette([(7 * i + 40) % 256 for i in range(768)])
        image.save(path)
    Image.open(root / MAP).convert("RGB").save(root / MAP)
    mended(root, tmp_path / "out")
    assert planted.ids(tmp_path / "out" / MAP).ndim == 2
    assert np.array_equal(labels(tmp_path / "out", MAP), labels(sound, MAP))


def flat(root: Path, colours: list[tuple[int, int, int]], **lists: str) -> Path:
    """A folder that is not divided: pictures a to h, with ids 0, 1 and 2 in columns, and a table of these colours."""
    for half in ("images", "labels"):
        (root / half).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in "abcdefgh":
        Image.fromarray(generator.integers(0, 256, (24, 30, 3), np.uint8)).save(root / f"images/{name}.png")
        planted.store(root / f"labels/{name}.png", np.arange(30, dtype=np.uint8)[None].repeat(24, 0) // 10)
    table = [{"id": i, "name": f"class {i}", "colour": colour} for i, colour in enumerate(colours)]
    (root / "classes.json").write_text(json.dumps(table))
    for split, names in lists.items():
        (root / f"{split}.txt").write_text("\n".join(names))
    return root


def mended_splits(root: Path, out: Path, *names: str) -> Mended:
    splits = {split: open_folder(root, split=split) for split in names}
    return mend(splits, check_splits(splits), out)


def painted(path: Path, colours: list[tuple[int, int, int]]) -> None:
    Image.fromarray(np.array(colours, np.uint8)[planted.ids(path)]).save(path)


def test_colours_that_the_table_has_are_its_classes_whatever_others_look_like(tmp_path: Path) -> None:
    # Black and white, which is also grey; the other files say nothing of colours.
    colours = [(0, 0, 0), (255, 255, 255), (9, 9, 9)]
    root = flat(tmp_path / "data", colours, train="abcdef", val="gh")
    painted(root / "labels/c.png", colours)
    before = labels(root, "labels/c.png")
    done = mended_splits(root, tmp_path / "out", "train", "val")
    assert done.pairs == {"train": 6, "val": 2}
    assert np.array_equal(labels(tmp_path / "out", "labels/train/c.png"), before)
    assert planted.ids(tmp_path / "out/labels/train/c.png").ndim == 2


def test_a_map_whose_colours_mean_two_things_is_left_out(tmp_path: Path) -> None:
    colours = [(0, 0, 0), (0, 128, 0), (128, 0, 0)]
    root = flat(tmp_path / "data", colours, train="abcdef", val="gh")
    for path in root.glob("labels/*.png"):
        image = Image.open(path).convert("P")
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])  # red and green the other way round
        image.save(path)
    painted(root / "labels/c.png", colours)
    done = mended_splits(root, tmp_path / "out", "train", "val")
    assert done.pairs == {"train": 5, "val": 2}
    assert not (tmp_path / "out/images/train/c.png").exists()


def test_a_pair_of_two_splits_is_left_out_of_both_where_it_is_bad_and_of_train_where_not(tmp_path: Path) -> None:
    colours = [(0, 0, 0), (0, 128, 0), (128, 0, 0)]
    root = flat(tmp_path / "data", colours, train="abcdef", val="g", test="abh")
    (root / "images/b.png").write_bytes(b"no picture")
    done = mended_splits(root, tmp_path / "out", "train", "val", "test")
    assert done.pairs == {"train": 4, "val": 1, "test": 2}
    assert {p.name for p in (tmp_path / "out/images/train").iterdir()} == {f"{n}.png" for n in "cdef"}
    assert {p.name for p in (tmp_path / "out/images/test").iterdir()} == {"a.png", "h.png"}


def test_inputs_that_are_not_in_the_copy_are_named(tmp_path: Path) -> None:
    root = flat(tmp_path / "data", [(0, 0, 0), (0, 128, 0), (128, 0, 0)], train="abcdef", val="gh")
    shutil.copytree(root / "labels", root / "depth")
    done = mended_splits(root, tmp_path / "out", "train", "val")
    assert [line for line in done.left if line.startswith("inputs: ") and str(root / "depth") in line]
    splits = {split: open_folder(root, split=split, inputs=("color", "depth")) for split in ("train", "val")}
    assert mend(splits, check_splits(splits), tmp_path / "both").left == ()
    assert (tmp_path / "both/depth/train/a.png").exists()
    moved = tmp_path / "moved"
    for split in ("train", "val"):
        for kind in ("images", "labels", "depth"):
            shutil.copytree(tmp_path / "both" / kind / split, moved / split / kind)
    shutil.copy(tmp_path / "both/classes.json", moved)
    left = mended_splits(moved, tmp_path / "again", "train", "val").left
    assert [line for line in left if line.startswith("inputs: ") and str(moved / "train/depth") in line]
    assert (tmp_path / "again/images/val/g.png").exists()
    blind = {split: open_folder(root, split=split, inputs=("depth",)) for split in ("train", "val")}
    with pytest.raises(ConfigError, match="name color among --inputs"):
        mend(blind, {}, tmp_path / "blind")
    assert not (tmp_path / "blind").exists()


def test_ids_that_are_moved_in_all_maps_are_moved_back_in_all(root: Path, sound: Path, tmp_path: Path) -> None:
    for path in root.glob("labels/*/*.png"):
        # The last class must occur, or nothing proves the shift.
        values = planted.ids(path)
        values[:3, :3] = 10
        planted.store(path, np.where(values == 255, 255, values + 1))
    # One map without that class, which could be read as it is, is moved with the others.
    planted.edit(root / "labels/train/05.png", lambda ids: np.where(ids == 11, 2, ids))
    mended(root, tmp_path / "out")
    mended_ids = labels(tmp_path / "out", MAP)
    assert np.array_equal(mended_ids[3:], labels(sound, MAP)[3:])
    assert (mended_ids[:3, :3] == 10).all()
    sound_ids = labels(sound, "labels/train/05.png")
    assert np.array_equal(
        labels(tmp_path / "out", "labels/train/05.png")[3:], np.where(sound_ids == 10, 1, sound_ids)[3:]
    )


def test_copies_are_left_out_of_train_and_the_rest_is_listed(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "images/train/05.png", root / "images/val/copy.png")
    shutil.copy(root / "labels/train/05.png", root / "labels/val/copy.png")
    shutil.copy(root / "images/train/06.png", root / "images/train/twin.png")
    shutil.copy(root / "labels/train/06.png", root / "labels/train/twin.png")
    (root / "images/train/lonely.png").write_bytes((root / "images/train/07.png").read_bytes())
    one, other = root / "labels/train/01.png", root / "labels/train/02.png"
    ours, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(ours)
    done = mended(root, tmp_path / "out")
    kept = {path.name for path in (tmp_path / "out/images/train").iterdir()}
    assert kept == {f"{i:02}.png" for i in range(12)} - {"05.png"}
    assert (tmp_path / "out/images/val/copy.png").is_file()
    assert sorted(line.split(":")[0] for line in done.done) == ["duplicate", "overlap", "unpaired"]
    assert f"unpaired: left out: {root / 'images/train/lonely.png'}" in done.done
    assert [line.split(":")[0] for line in done.left] == ["swapped"]
    said = json.loads((tmp_path / "out/mended.json").read_text())
    assert (tuple(said["done"]), tuple(said["left"])) == (done.done, done.left)


@pytest.mark.parametrize("place", ["data", "data/mended", ".", "data/images/train/deep/er"])
def test_a_copy_inside_or_around_the_data_is_refused(root: Path, tmp_path: Path, place: str) -> None:
    before = planted.contents(tmp_path)
    with pytest.raises(ConfigError, match="lies inside or around the data"):
        mended(root, tmp_path / place)
    assert planted.contents(tmp_path) == before


def test_a_folder_with_something_in_it_is_not_written_to(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mended(root, out)  # an empty one is
    before = planted.contents(out)
    with pytest.raises(ConfigError, match="is there already, and no empty folder"):
        mended(root, out)
    assert planted.contents(out) == before


def test_a_copy_that_cannot_be_finished_leaves_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[str] = []
    copy = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if len(copied) > 5:
            raise OSError(28, "No space left on device")
        copied.append(str(target))
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DatasetError, match="out: the mended copy cannot be written: No space left on device"):
        mended(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_nothing_is_written_where_nothing_would_be_left(root: Path, tmp_path: Path) -> None:
    for path in root.glob("labels/val/*.png"):
        planted.edit(path, lambda ids: ids * 0 + 77)
    with pytest.raises(DatasetError, match="--fix would leave no pair of val; the first that cannot be mended"):
        mended(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
