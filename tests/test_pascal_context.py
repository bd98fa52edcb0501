"""PASCAL-Context in its own layout: hundreds of labels become 59 classes and background."""

from __future__ import annotations

from pathlib import Path

import miniatures as mini
import numpy as np
import pytest

from fullyconv.checking import check
from fullyconv.datasets import dataset
from fullyconv.datasets.pascal_context import CLASSES, open_pascal_context
from fullyconv.errors import DatasetError, ImageError

TRAIN, VAL = ("2008_000002", "2008_000003"), ("2008_000008",)
# Nothing, aeroplane, bedclothes, cloth, clothes tree, table, wood, wool.
EXPECTED = mini.grid(0, 1, 52, 28, 0, 11, 59, 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    mini.pascal_context(tmp_path / "pascal-context", tmp_path / "VOCdevkit/VOC2010", train=TRAIN, val=VAL)
    return tmp_path


def test_labels_are_mapped_by_name_and_the_rest_is_background(root: Path) -> None:
    train, val = (dataset("pascal-context", root, split=split) for split in ("train", "val"))
    assert (tuple(train.names), tuple(val.names)) == (TRAIN, VAL)
    assert np.array_equal(train[1].labels["out"], EXPECTED)
    assert train[0].image.shape == (*mini.SIZE, 3)
    assert check(train).ok
    assert check(train).void == {"out": 0}


def test_sixty_classes_in_the_order_of_the_release() -> None:
    assert len(CLASSES) == 60
    assert [CLASSES.names[i] for i in (0, 11, 20, 28, 42, 52, 59)] == [
        "background", "diningtable", "tvmonitor", "clothes", "curtain", "bedcloth", "wood",
    ]  # fmt: skip


def test_what_is_none_of_the_59_can_be_void(root: Path) -> None:
    data = dataset("pascal-context-59", root)
    assert data.name == "pascal-context-59"
    assert data.classes["out"].names == CLASSES.names[1:]
    assert np.array_equal(data[0].labels["out"], np.where(EXPECTED == 0, 255, EXPECTED - 1))
    assert check(data).void == {"out": 36}


@pytest.mark.parametrize("name", ["pascal-context", "pascal-context-59"])
def test_the_ready_maps_of_59_classes_are_read_by_the_names_of_their_list(tmp_path: Path, name: str) -> None:
    folder = mini.pascal_context_33(tmp_path / "context", tmp_path / "VOC2010", train=TRAIN)
    (folder / "33_context_labels").rename(folder / "59_context_labels")
    first = CLASSES.index_of_id()[1] - (name == "pascal-context-59")
    void = 0 if name == "pascal-context" else 255
    data = dataset(name, tmp_path)
    assert np.array_equal(data[0].labels["out"], mini.grid(void, first, first + 20, first + 32))
    assert any("no 59_labels.txt" in note for note in data.notes)
    # The list of the release counts from 1; here two names have changed places.
    listed = list(CLASSES.names[1:])
    listed[0], listed[20] = listed[20], listed[0]
    (folder / "59_labels.txt").write_text("".join(f"{i}: {n}\n" for i, n in enumerate(listed, 1)))
    assert np.array_equal(dataset(name, tmp_path)[0].labels["out"], mini.grid(void, first + 20, first, first + 32))


def test_a_relative_root_is_the_same_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root / "pascal-context")
    (root / "VOCdevkit/VOC2010").rename(root / "VOC2010")
    assert open_pascal_context(".").names == list(TRAIN)


def test_the_33_classes_are_those_of_the_official_maps(tmp_path: Path) -> None:
    folder = mini.pascal_context_33(tmp_path / "context", tmp_path / "VOC2010", train=TRAIN)
    data = dataset("pascal-context-33", tmp_path)
    assert np.array_equal(data[0].labels["out"], mini.grid(255, 0, 20, 32))
    assert data.paths(0)[1] == folder / f"33_context_labels/{TRAIN[0]}.png"
    names = data.classes["out"].names
    assert (len(names), names[0], names[20], names[32]) == (33, "aeroplane", "sky", "ceiling")
    assert set(names) <= set(CLASSES.names)


def test_without_the_official_maps_the_33_classes_are_read_by_name(root: Path) -> None:
    data = dataset("pascal-context-33", root)
    # Of the miniature's labels only aeroplane and table (diningtable) are among the 33.
    assert np.array_equal(data[0].labels["out"], mini.grid(255, 0, 255, 255, 255, 10, 255, 255))
    assert any("no 33_context_labels/" in note for note in data.notes)


@pytest.mark.parametrize("below", ["VOCdevkit", "."])
def test_the_root_may_be_the_annotations_with_voc_in_or_beside_them(tmp_path: Path, below: str) -> None:
    folder = mini.pascal_context(tmp_path / "context", tmp_path / "context" / below / "VOC2010", train=TRAIN)
    assert open_pascal_context(folder).names == list(TRAIN)
    (folder / below / "VOC2010").rename(tmp_path / "VOC2010")
    assert open_pascal_context(folder).names == open_pascal_context(tmp_path).names == list(TRAIN)


def test_lists_beside_the_annotations_go_first(root: Path) -> None:
    mini.names(root / "pascal-context/train.txt", VAL)
    assert open_pascal_context(root).names == list(VAL)


def test_classes_that_labels_txt_has_not_are_named(root: Path) -> None:
    (note,) = (note for note in open_pascal_context(root).notes if "labels.txt" in note)
    assert note.startswith("labels.txt has no bicycle, bird,")
    assert "diningtable" not in note
    table = root / "pascal-context/labels.txt"
    table.write_text("".join(f"{i}: {name}\n" for i, name in enumerate(CLASSES.names)))
    assert not any("labels.txt" in note for note in open_pascal_context(root).notes)


def test_what_is_wrong_is_refused_in_one_line(root: Path) -> None:
    data = open_pascal_context(root)
    mini.mat(root / "pascal-context/trainval/2008_000002.mat", LabelMap=mini.grid(500, 2))
    with pytest.raises(
        ImageError, match=r"2008_000002\.mat: label 500; expected the numbers of labels\.txt, up to 459"
    ):
        data[0]
    mini.mat(root / "pascal-context/trainval/2008_000002.mat", labels=mini.grid(2))
    with pytest.raises(ImageError, match="no LabelMap in it; found labels"):
        data[0]
    table = root / "pascal-context/labels.txt"
    for text, found in (("2 aeroplane\n", r"line 1 is '2 aeroplane'"), ("1: dragon\n", "none of the 59 classes")):
        table.write_text(text)
        with pytest.raises(DatasetError, match=rf"labels\.txt: {found}"):
            open_pascal_context(root)
    table.write_text("2: aeroplane\n")
    with pytest.raises(DatasetError, match=r"test\.txt: no such file; .*has train\.txt, val\.txt"):
        open_pascal_context(root, split="test")
    (root / "VOCdevkit/VOC2010").rename(root / "VOCdevkit/VOC2012")
    with pytest.raises(DatasetError, match=r"no VOC2010 beside .*expected VOCdevkit/VOC2010/JPEGImages"):
        open_pascal_context(root)
    table.unlink()
    with pytest.raises(DatasetError, match=r"no PASCAL-Context; expected a folder with trainval/NAME\.mat and labels"):
        open_pascal_context(root)


def test_a_table_that_is_a_folder_is_refused(root: Path) -> None:
    table = next(root.rglob("labels.txt"))
    table.unlink()
    table.mkdir()
    with pytest.raises(DatasetError, match=r"labels\.txt: cannot be read as a table of names: Is a directory"):
        dataset("pascal-context", root)


def test_the_authors_own_folder_holds_voc_beside_it_as_pascal(tmp_path: Path) -> None:
    mini.pascal_context(tmp_path / "pascal-context", tmp_path / "pascal/VOC2010", train=("2008_000002",))
    for root in (tmp_path, tmp_path / "pascal-context"):
        assert dataset("pascal-context", root).names == ["2008_000002"]


def test_annotations_without_their_table_say_what_is_missing(root: Path) -> None:
    next(root.rglob("labels.txt")).unlink()
    with pytest.raises(DatasetError, match=r"found trainval in .*, and no labels\.txt"):
        dataset("pascal-context", root)
