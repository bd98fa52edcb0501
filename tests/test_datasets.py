"""Every layout of a folder is recognised, and what is not certain is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from PIL import Image

from fullyconv.checking import check
from fullyconv.config import Classes
from fullyconv.datasets import ABOUT, DATASETS, SegmentationDataset, dataset
from fullyconv.datasets.folder import Folder, open_folder
from fullyconv.datasets.voc import CLASSES as VOC
from fullyconv.errors import ConfigError, DatasetError, ImageError, UnknownName
from fullyconv.images import write_image
from fullyconv.labels import write_labels

SPLITS = ("train", "val")
TABLE = Classes.of("ground", "cat", "dog")


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.full((4, 6, 3), value, np.uint8))


def labels(path: Path, value: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, np.full((4, 6), value, np.uint8), TABLE)


def pair(root: Path, name: str, *, images: str = "images", maps: str = "labels", suffix: str = ".png") -> None:
    picture(root / images / f"{name}{suffix}")
    labels(root / maps / f"{name}.png")


def classes(root: Path, text: str = "ground\ncat\ndog\n") -> None:
    root.mkdir(exist_ok=True)
    (root / "classes.txt").write_text(text, encoding="utf-8")


def divided(root: Path, *splits: str) -> Path:
    classes(root)
    for split in splits:
        for i in range(3):
            pair(root, f"{split}/{split}{i}")
    return root


def flat(root: Path, count: int = 20) -> Path:
    classes(root)
    for i in range(count):
        pair(root, f"{i:02d}")
    return root


# Layouts -------------------------------------------------------------------------------------------------------------


def test_folders_divided_into_splits(tmp_path: Path) -> None:
    divided(tmp_path, "train", "val", "test")
    for split in ("train", "val", "test"):
        data = dataset("folder", tmp_path, split=split)
        assert data.names == [f"{split}{i}" for i in range(3)]
        assert data.split == split
        assert data.notes == []
        assert data.paths(1) == (
            tmp_path / "images" / split / f"{split}1.png",
            tmp_path / "labels" / split / f"{split}1.png",
        )
        sample = data[2]
        assert sample.name == f"{split}2"
        assert sample.image.shape == (4, 6, 3)
        assert (sample.labels["out"] == 1).all()


def test_splits_with_pictures_and_label_maps_in_them(tmp_path: Path) -> None:
    classes(tmp_path)
    for split in ("train", "valid", "test"):
        for name in ("a", "sub/b"):
            pair(tmp_path / split, name, maps="masks")
        picture(tmp_path / split / "depth/a.png")
        picture(tmp_path / split / "depth/sub/b.png")
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        data = open_folder(tmp_path, split=split, inputs=("color", "depth"))
        assert data.names == ["a", "sub/b"]
        assert data.paths(1) == (tmp_path / folder / "images/sub/b.png", tmp_path / folder / "masks/sub/b.png")
        assert data.files[1][0]["depth"] == tmp_path / folder / "depth/sub/b.png"
        assert data.notes[0] == f"{folder}/ holds the pictures and label maps of {split}"
        assert data.classes["out"].names == TABLE.names
    with pytest.raises(DatasetError, match=r"no split 'other'; found test, train, val"):
        open_folder(tmp_path, split="other")
    shutil.rmtree(tmp_path / "valid/masks")
    with pytest.raises(DatasetError, match=r"valid: no folder of label maps; expected labels/"):
        open_folder(tmp_path, split="val")
    shutil.rmtree(tmp_path / "valid")
    drawn = [open_folder(tmp_path, split=split) for split in SPLITS]
    assert sorted(name for data in drawn for name in data.names) == ["a", "sub/b"]
    assert any("no val split: 1 of 2 pictures" in note for note in drawn[1].notes)


def test_folders_of_images_come_before_splits_beside_them(tmp_path: Path) -> None:
    flat(tmp_path, 4)
    for split in ("train", "val"):
        pair(tmp_path / split, "a")
    assert len(open_folder(tmp_path)) == 3


def test_a_flat_folder_with_lists(tmp_path: Path) -> None:
    flat(tmp_path, 5)
    (tmp_path / "train.txt").write_text("00\nimages/02.png\n\n03.png\n")
    (tmp_path / "val.txt").write_text("\ufeff01\r\n/images/04.png labels/04.png\r\n", encoding="utf-8")
    assert open_folder(tmp_path, split="train").names == ["00", "02", "03"]
    val = open_folder(tmp_path, split="val")
    assert val.names == ["01", "04"]
    assert val.notes == ["val is what val.txt names (2 pictures)"]
    with pytest.raises(DatasetError, match=r"no split 'test'; expected images/test/ or test\.txt"):
        open_folder(tmp_path, split="test")


def test_a_list_of_val_alone_leaves_the_rest_to_train(tmp_path: Path) -> None:
    flat(tmp_path, 4)
    (tmp_path / "val.txt").write_text("01\n02\n")
    train = open_folder(tmp_path)
    assert train.names == ["00", "03"]
    assert "every picture that val.txt does not name" in train.notes[0]


@pytest.mark.parametrize("val", [True, False])
def test_what_a_list_of_test_names_is_never_learnt(tmp_path: Path, val: bool) -> None:
    names = [pair_name.stem for pair_name in sorted((flat(tmp_path, 12) / "images").iterdir())]
    (tmp_path / "test.txt").write_text("01\n02\n05\n")
    if val:
        (tmp_path / "val.txt").write_text("00\n")
    found = {split: open_folder(tmp_path, split=split).names for split in ("train", "val", "test")}
    assert found["test"] == ["01", "02", "05"]
    assert sorted(name for split in found.values() for name in split) == names
    assert len(found["val"]) == 1
    assert any("test.txt" in note for note in open_folder(tmp_path).notes)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits/test.txt").write_text("03\n")
    assert set(open_folder(tmp_path).names) == set(found["train"]) - {"03"}
    (tmp_path / "test.txt").write_text("\n".join(names))
    with pytest.raises(DatasetError, match="none is left for train; add a list of train"):
        open_folder(tmp_path)


def test_a_list_of_train_alone_is_divided(tmp_path: Path) -> None:
    flat(tmp_path, 20)
    (tmp_path / "train.txt").write_text("\n".join(f"{i:02d}" for i in range(10)))
    train, val = (open_folder(tmp_path, split=split).names for split in ("train", "val"))
    assert sorted([*train, *val]) == [f"{i:02d}" for i in range(10)]
    assert len(val) == 1


def test_the_voc_layout_and_its_classes(tmp_path: Path) -> None:
    for name in ("2007_000032", "2007_000039", "2007_000063"):
        pair(tmp_path, name, images="JPEGImages", maps="SegmentationClass", suffix=".jpg")
    picture(tmp_path / "JPEGImages" / "not_segmented.jpg")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n2007_000063\n")
    (lists / "val.txt").write_text("2007_000039\n")
    train = open_folder(tmp_path)
    assert train.names == ["2007_000032", "2007_000063"]
    assert train.classes["out"].names == VOC.names
    assert train.unpaired == []
    assert "PASCAL VOC layout" in train.notes[0]
    assert any("21 classes of PASCAL VOC" in note for note in train.notes)
    assert open_folder(tmp_path, split="val").names == ["2007_000039"]


@pytest.mark.parametrize(
    ("images", "maps"), [("images", "masks"), ("Images", "annotations"), ("img", "Labels"), ("img_dir", "ann_dir")]
)
def test_other_names_of_the_folders_are_taken_and_said(tmp_path: Path, images: str, maps: str) -> None:
    classes(tmp_path)
    for i in range(3):
        pair(tmp_path, f"{i}", images=images, maps=maps)
    data = open_folder(tmp_path)
    assert f"pictures are taken from {images}/, label maps from {maps}/" in data.notes
    assert len(data) == 2


@pytest.mark.parametrize(
    ("folder", "split"),
    [("validation", "val"), ("valid", "val"), ("training", "train"), ("Train", "train"), ("VAL", "val")],
)
def test_other_names_of_the_splits_are_taken_and_said(tmp_path: Path, folder: str, split: str) -> None:
    divided(tmp_path, *{"train", "val"} - {split}, folder)
    data = open_folder(tmp_path, split=split)
    assert data.names == [f"{folder}{i}" for i in range(3)]
    assert f"images/{folder} is taken for {split}" in data.notes


def test_what_only_looks_like_a_split_is_refused_or_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"images: train2017, val2017 look like splits; name them train/ and val/"):
        open_folder(divided(tmp_path / "coco", "train2017", "val2017"))
    assert len(open_folder(divided(tmp_path / "scenes", "trains", "valley"))) == 5
    notes = open_folder(divided(tmp_path / "held", "train", "heldout")).notes
    assert "images/ holds folders that are no split by their names and are not read: heldout" in notes


def test_a_folder_of_boxes_beside_the_label_maps_is_no_second_reading(tmp_path: Path) -> None:
    mini.voc(tmp_path / "VOC2012", train=("a", "b"), val=("c",))
    (tmp_path / "VOC2012/Annotations").mkdir()  # every official archive has it
    (tmp_path / "VOC2012/Annotations/a.xml").write_text("<annotation/>")
    assert open_folder(tmp_path / "VOC2012").names == ["a", "b"]
    pair(tmp_path / "yolo", "a", maps="masks")
    pair(tmp_path / "yolo", "b", maps="masks")
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    classes(tmp_path / "yolo")
    assert open_folder(tmp_path / "yolo").paths(0)[1].parent.name == "masks"


def test_two_readings_of_a_folder_are_refused(tmp_path: Path) -> None:
    divided(tmp_path / "splits", "train", "val", "valid")
    with pytest.raises(DatasetError, match="val and valid could each be val; keep one"):
        open_folder(tmp_path / "splits", split="val")
    pair(tmp_path / "maps", "a", maps="masks")
    pair(tmp_path / "maps", "a", maps="annotations")
    with pytest.raises(DatasetError, match="masks/ and annotations/ could each hold the label maps"):
        open_folder(tmp_path / "maps")
    flat(tmp_path / "lists")
    (tmp_path / "lists" / "splits").mkdir()
    for path in ("val.txt", "splits/val.txt"):
        (tmp_path / "lists" / path).write_text("00\n")
    with pytest.raises(DatasetError, match=r"val\.txt and splits/val\.txt could each name val"):
        open_folder(tmp_path / "lists", split="val")


def test_the_documented_name_wins_and_that_is_said(tmp_path: Path) -> None:
    flat(tmp_path, 3)
    labels(tmp_path / "masks" / "00.png", 2)
    data = open_folder(tmp_path, split="val")
    assert "of labels/ and masks/, labels/ is taken for the label maps" in data.notes


def test_what_is_missing_is_said_with_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing there; expected a folder with images/"):
        open_folder(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match=r"no folder of pictures; expected images/ .*found photos/"):
        open_folder(tmp_path)
    flat(tmp_path / "inner")
    with pytest.raises(DatasetError, match=r"did you mean .*inner\?"):
        open_folder(tmp_path)
    divided(tmp_path / "half", "train")
    picture(tmp_path / "half" / "images" / "val" / "a.png")
    with pytest.raises(DatasetError, match=r"images/val has no counterpart; expected .*labels/val"):
        open_folder(tmp_path / "half")
    divided(tmp_path / "two", "train", "val")
    with pytest.raises(DatasetError, match="no split 'test'; found train, val"):
        open_folder(tmp_path / "two", split="test")


# A val split that is drawn -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["flat", "divided"])
def test_a_val_split_is_drawn_without_overlap_or_loss_and_said(tmp_path: Path, layout: str) -> None:
    if layout == "flat":
        flat(tmp_path)
    else:
        classes(tmp_path)
        for i in range(20):
            pair(tmp_path, f"train/{i:02d}")
    train, val = (open_folder(tmp_path, split=split) for split in ("train", "val"))
    assert len(val) == 2
    assert sorted([*train.names, *val.names]) == [f"{i:02d}" for i in range(20)]
    for data in (train, val):
        assert any("no val split: 2 of 20 pictures are drawn for it with seed 0" in note for note in data.notes)
    assert open_folder(tmp_path, split="val").names == val.names
    others = {tuple(open_folder(tmp_path, split="val", seed=seed).names) for seed in range(5)}
    assert len(others) > 1


def test_drawing_is_the_same_on_every_machine(tmp_path: Path) -> None:
    drawn = open_folder(flat(tmp_path), split="val", seed=3).names
    # sha256("3/NAME") below a tenth of its range.
    share = {
        n: int(hashlib.sha256(f"3/{n}".encode()).hexdigest()[:16], 16) / 16**16
        for n in map("{:02d}".format, range(100))
    }
    expected = [n for n in open_folder(tmp_path, seed=3).names + list(drawn) if share[n] < 0.1]
    assert drawn == sorted(expected or [min(drawn)])


def test_pictures_that_are_added_move_no_other_from_train_to_val(tmp_path: Path) -> None:
    root = flat(tmp_path, 40)
    before = {split: set(open_folder(root, split=split).names) for split in ("train", "val")}
    for i in range(40, 80):
        picture(root / f"images/{i}.png")
        labels(root / f"labels/{i}.png")
    after = {split: set(open_folder(root, split=split).names) for split in ("train", "val")}
    assert before["train"] <= after["train"]
    assert before["val"] <= after["val"]
    assert len(after["train"] | after["val"]) == 80


def test_nothing_is_written_into_the_users_folder(tmp_path: Path) -> None:
    flat(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    open_folder(tmp_path)[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_one_picture_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"only one labelled picture \(00\); expected 2 or more"):
        open_folder(flat(tmp_path, 1))


# Files ---------------------------------------------------------------------------------------------------------------


def test_odd_names_pair_and_strays_are_left_out(tmp_path: Path) -> None:
    divided(tmp_path, "train", "val")
    picture(tmp_path / "images/train/seq 1/Büro.v2.png")
    labels(tmp_path / "labels/train/seq 1" / (unicodedata.normalize("NFD", "Büro") + ".v2.png"))
    write_image(tmp_path / "images/train/CAPS.png", np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "images/train/CAPS.png").rename(tmp_path / "images/train/CAPS.PNG")
    labels(tmp_path / "labels/train/CAPS.png")
    for stray in (".DS_Store", "._train0.png", "Thumbs.db", "notes.md", "train1.json"):
        (tmp_path / "images/train" / stray).write_text("stray")
    data = open_folder(tmp_path)
    assert data.names == ["CAPS", "seq 1/Büro.v2", "train0", "train1", "train2"]
    assert [data[i].name for i in range(len(data))] == data.names
    assert data.notes == ["2 files in train/ are no pictures by their suffix and are left out"]


def test_a_link_that_leads_back_is_walked_once(tmp_path: Path) -> None:
    divided(tmp_path, "train", "val")
    (tmp_path / "images/train/loop").symlink_to(tmp_path / "images/train", target_is_directory=True)
    assert open_folder(tmp_path).names == ["train0", "train1", "train2"]


def test_one_name_for_two_files_is_refused(tmp_path: Path) -> None:
    divided(tmp_path, "train", "val")
    picture(tmp_path / "images/train/train1.jpg")
    with pytest.raises(DatasetError, match=r"1 names stand for two files: .*train1\.jpg and train1\.png") as refusal:
        open_folder(tmp_path)
    assert len(refusal.value.findings) == 1


def test_files_without_partner_are_listed(tmp_path: Path) -> None:
    divided(tmp_path, "train", "val")
    picture(tmp_path / "images/train/lonely.png")
    labels(tmp_path / "labels/train/widowed.png")
    data = open_folder(tmp_path)
    assert data.names == ["train0", "train1", "train2"]
    assert data.unpaired == [tmp_path / "images/train/lonely.png", tmp_path / "labels/train/widowed.png"]
    assert data.notes == [
        "2 files have no partner of the same name and are left out: images/train/lonely.png, labels/train/widowed.png"
    ]


def test_names_in_a_list_that_no_file_has_are_listed(tmp_path: Path) -> None:
    flat(tmp_path, 3)
    (tmp_path / "labels/02.png").unlink()
    (tmp_path / "train.txt").write_text("00\n02\n77\n")
    (tmp_path / "val.txt").write_text("01\n")
    data = open_folder(tmp_path)
    assert data.names == ["00"]
    assert data.unpaired == [tmp_path / "images/02.png", tmp_path / "images/77"]


def test_nothing_that_pairs_is_an_error_with_examples(tmp_path: Path) -> None:
    classes(tmp_path)
    for i in range(5):
        picture(tmp_path / f"images/{i}.png")
        labels(tmp_path / f"labels/{i}_mask.png")
    with pytest.raises(DatasetError) as refusal:
        open_folder(tmp_path)
    assert "5 pictures without (0.png, 1.png, 2.png)" in str(refusal.value)
    assert "5 label maps without (0_mask.png, 1_mask.png, 2_mask.png)" in str(refusal.value)
    assert len(refusal.value.findings) == 10


def test_a_label_of_another_size_is_found_when_it_is_read(tmp_path: Path) -> None:
    divided(tmp_path, "train", "val")
    write_labels(tmp_path / "labels/train/train1.png", np.zeros((5, 6), np.uint8), TABLE)
    data = open_folder(tmp_path)
    with pytest.raises(ImageError, match="5 x 6 for a picture of 4 x 6"):
        data[1]


# Classes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("void", ["void", "unlabelled", "unlabeled", "Ignore", "edge ignore"])
def test_void_lines_are_ignored_and_said(tmp_path: Path, void: str) -> None:
    root = divided(tmp_path, "train", "val")
    classes(root, f"ground\r\n{void}\r\ndog\r\n\r\n")
    data = open_folder(root)
    table = data.classes["out"]
    assert table.names == ("ground", "dog")
    assert (data[0].labels["out"] == table.void).all()
    name = void.removesuffix(" ignore")
    assert data.notes == [f"classes.txt: 2 classes; void: {name} (id 1)"]


@pytest.mark.parametrize("form", ["{}: {}", "{} {}", "{},{}", "{:03}\t{}"])
def test_numbers_before_the_names_of_classes_are_their_ids(tmp_path: Path, form: str) -> None:
    root = divided(tmp_path, "train", "val")
    classes(root, "\n".join(form.format(*each) for each in ((1, "cat"), (2, "dog"), (7, "void"))))
    table = open_folder(root).classes["out"]
    assert [(c.id, c.name, c.ignore) for c in table.entries] == [
        (1, "cat", False),
        (2, "dog", False),
        (7, "void", True),
    ]
    assert open_folder(root)[0].labels["out"].max() == 0  # the files hold id 1
    assert "classes.txt: the numbers that its lines begin with are taken for ids, 1..7" in open_folder(root).notes
    for names in (("ground", "2 wheels", "4 wheels"), ("1 cent", "2 cent", "1 euro", "2 euro")):
        classes(root, "\n".join(names))
        assert open_folder(root).classes["out"].names == names


def test_classes_as_json(tmp_path: Path) -> None:
    root = divided(tmp_path, "train", "val")
    entries = [
        {"id": 9, "name": "void"},
        {"id": 1, "name": "cat", "color": [1, 2, 3]},
        {"id": 4, "name": "hair", "ignore": True},
    ]
    (root / "classes.json").write_text(json.dumps(entries))
    data = open_folder(root)
    assert [(c.id, c.name, c.ignore) for c in data.classes["out"].entries] == [
        (1, "cat", False),
        (4, "hair", True),
        (9, "void", True),
    ]
    assert data.classes["out"].entries[0].colour == (1, 2, 3)
    assert data.notes[0] == "classes.json is used, classes.txt is not"


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("classes.txt", "a\n\nb\n", "line 2 is empty, and lines count as ids"),
        ("classes.txt", "a\na\n", r"classes\.txt: .*two classes share the name 'a'"),
        ("classes.txt", "void\n", "every class is void"),
        ("classes.txt", "2 a\n1 b\n", "begins with a number, as an id, but they do not ascend"),
        ("classes.txt", "", "entries"),
        ("classes.json", "{", "not valid JSON"),
        ("classes.json", '{"a": 1}', "expected a list such as"),
        ("classes.json", '[{"id": 0, "name": "a", "colour": [1, 2, 300]}]', "a colour is three numbers"),
        ("classes.json", '[{"id": 0, "name": "a", "weight": 1}]', "no such setting"),
    ],
)
def test_tables_that_are_wrong_are_refused(tmp_path: Path, name: str, text: str, found: str) -> None:
    root = divided(tmp_path, "train", "val")
    (root / name).write_text(text)
    with pytest.raises((DatasetError, ConfigError), match=found) as refusal:
        open_folder(root)
    assert str(root / name) in str(refusal.value)


def test_without_a_table_the_ids_found_are_told(tmp_path: Path) -> None:
    root = divided(tmp_path, "train", "val")
    (root / "classes.txt").unlink()
    labels(root / "labels/train/train1.png", 2)
    labels(root / "labels/train/train2.png", 255)
    with pytest.raises(DatasetError, match=r"no classes\.txt; write one name a line.* hold the ids 1, 2, 255"):
        open_folder(root)
    picture(root / "labels/train/train0.png", 7)
    with pytest.raises(DatasetError, match=r"hold colours: write classes\.json"):
        open_folder(root)


def test_a_table_in_another_encoding_is_refused(tmp_path: Path) -> None:
    root = divided(tmp_path, "train", "val")
    (root / "classes.txt").write_bytes("Bäume\n".encode("latin-1"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        open_folder(root)


# Pictures of more than colour ----------------------------------------------------------------------------------------


def deep(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6), 100, np.uint8)).save(path)


def test_depth_lies_beside_the_pictures_under_the_same_names(tmp_path: Path) -> None:
    flat(tmp_path, 4)
    for i in range(4):
        deep(tmp_path / f"depth/{i:02d}.png")
    (tmp_path / "val.txt").write_text("01\n02\n")
    for split, expected in (("train", ["00", "03"]), ("val", ["01", "02"])):
        data = dataset("folder", tmp_path, split=split, inputs=("color", "depth"))
        assert data.names == expected
        assert (data[1].image.shape, data[1].image.dtype) == ((4, 6, 4), np.float32)
        np.testing.assert_allclose(data[1].image[..., 3], np.log(100), rtol=1e-6)
        assert data.paths(1) == (tmp_path / f"images/{expected[1]}.png", tmp_path / f"labels/{expected[1]}.png")
    assert dataset("folder", tmp_path)[0].image.dtype == np.uint8
    assert dataset("folder", tmp_path, inputs=("depth",)).paths(0)[0] == tmp_path / "depth/00.png"


def test_inputs_of_a_divided_folder_are_divided_alike(tmp_path: Path) -> None:
    divided(tmp_path, "train", "valid")
    for split in ("train", "valid"):
        for i in range(3):
            picture(tmp_path / f"hha/{split}/{split}{i}.png", 9)
    for split in ("train", "val"):
        data = dataset("folder", tmp_path, split=split, inputs=("color", "hha"))
        assert (data[0].image.shape, data[0].image.dtype) == ((4, 6, 6), np.uint8)
        assert (data[0].image[..., 3:] == 9).all()


def test_a_picture_without_an_input_is_refused_in_one_line(tmp_path: Path) -> None:
    flat(tmp_path, 5)
    with pytest.raises(DatasetError, match=r"depth: no such folder; expected the input 'depth' .*found classes\.txt"):
        dataset("folder", tmp_path, inputs=("color", "depth"))
    for i in range(3):
        deep(tmp_path / f"depth/{i:02d}.png")
    (tmp_path / "val.txt").write_text("02\n")
    with pytest.raises(DatasetError, match=r"depth: no file for 2 of 4 pictures \(03, 04\); expected one") as refusal:
        dataset("folder", tmp_path, inputs=("color", "depth"))
    assert len(refusal.value.findings) == 2
    assert len(dataset("folder", tmp_path, split="val", inputs=("color", "depth"))) == 1
    with pytest.raises(UnknownName, match="no input 'deepth'; did you mean 'depth'"):
        dataset("folder", tmp_path, inputs=("color", "deepth"))


def test_generated_scenes_are_colour_only() -> None:
    with pytest.raises(DatasetError, match="scenes: got the input 'hha'; its pictures have color only"):
        dataset("scenes", "count=3", inputs=("color", "hha"))


# By name -------------------------------------------------------------------------------------------------------------


def test_an_unknown_data_set_is_refused_with_the_near_ones() -> None:
    with pytest.raises(UnknownName, match="no dataset 'scene'; did you mean 'scenes'"):
        dataset("scene", "")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_data_set_keeps_the_contract(tmp_path: Path, name: str) -> None:
    root: Path | str = tmp_path
    if name == "folder":
        divided(tmp_path, "train", "val")
    elif name == "scenes":
        root = "count=3 size=32x48"
    elif name.startswith("pascal-context"):
        mini.pascal_context(tmp_path, tmp_path / "VOC2010", val=("a", "b", "c"))
    else:
        getattr(mini, name)(tmp_path, val=("a", "b", "c"))
    data: SegmentationDataset = dataset(name, root, split="val", seed=1)
    assert (data.name, data.split, len(data), len(data.names)) == (name, "val", 3, 3)
    sample = pickle.loads(pickle.dumps(data))[1]
    assert sample.name == data.names[1]
    assert sample.image.dtype == np.uint8
    assert sample.labels.keys() == data.classes.keys()
    for head, found in sample.labels.items():
        table = data.classes[head]
        assert found.shape == sample.image.shape[:2]
        assert set(np.unique(found)) <= {*range(len(table)), table.void}
    assert len(data.paths(1)) == 1 + len(data.classes)
    assert not [finding for finding in check(data).errors if finding.files]
    with pytest.raises(IndexError):
        data[3]


def test_the_documentation_shows_the_layout_of_each() -> None:
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    for name, about in ABOUT.items():
        if name not in ("folder", "scenes"):
            assert f"`{name}`" in text
            assert [line for line in about.layout.splitlines() if line.split()[0] not in text] == []


# Real data -----------------------------------------------------------------------------------------------------------


def test_camvid_loads_as_it_is(shared: Path) -> None:
    train, val = (open_folder(shared / "camvid", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    assert train.classes["out"].names[:3] == ("sky", "building", "pole")
    assert len(train.classes["out"]) == 11
    assert train.notes == ["classes.txt: 11 classes; void: unlabelled (id 11)"]
    sample = val[0]
    assert sample.image.shape == (360, 480, 3)
    assert set(np.unique(sample.labels["out"])) <= {*range(11), 255}
    assert (sample.labels["out"] == 255).any()


def test_nyud_loads_as_it_is(shared: Path) -> None:
    train, val = (open_folder(shared / "nyud", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (381, 414)
    assert len(train.classes["out"]) == 40
    assert not set(train.names) & set(val.names)
    assert train[0].labels["out"].max() == 255
    for data in (dataset("folder", shared / "nyud", split=split, inputs=("color", "depth")) for split in SPLITS):
        assert data[7].image.shape == (240, 320, 4)
        assert 3 < data[7].image[..., 3].mean() < 5.6


def test_voc_pairs_load_once_they_have_classes(shared: Path, tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).symlink_to(shared / "voc_pairs" / folder)
    (tmp_path / "train.txt").write_text((shared / "voc_pairs" / "ids.txt").read_text())
    (tmp_path / "classes.txt").write_text("\n".join(VOC.names))
    # All three under one list; with one in another as well the folder is refused.
    (tmp_path / "val.txt").write_text("2011_000025\n")
    with pytest.raises(DatasetError, match=r"train.txt and val.txt share 1 pictures \(2011_000025\)"):
        open_folder(tmp_path)
    (tmp_path / "val.txt").write_text("none_such\n")
    data = open_folder(tmp_path)
    assert isinstance(data, Folder)
    assert len(data) == 3
    for i in range(3):
        found = np.unique(data[i].labels["out"])
        assert 0 in found
        assert 255 in found
        assert len(found) > 2


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("voc", lambda root: mini.voc(root / "VOCdevkit/VOC2012", train=("a",))),
        ("cityscapes", lambda root: mini.cityscapes(root, train=("aachen_000000_000019",))),
        ("siftflow", lambda root: mini.siftflow(root / "SiftFlowDataset", trainval=("a",))),
        ("camvid", lambda root: mini.camvid(root / "CamVid", train=("a",), val=("b",), test=("c",))),
        ("sbd", lambda root: mini.sbd(root / "benchmark_RELEASE/dataset", train=("a",))),
    ],
)
def test_a_published_data_set_that_is_taken_for_a_folder_is_known_by_its_folders(
    tmp_path: Path, name: str, make: Callable[[Path], Path]
) -> None:
    make(tmp_path)
    with pytest.raises(DatasetError, match=f"; it looks like {name}, a published data set: name it, --dataset {name}$"):
        dataset("folder", tmp_path)


def test_a_name_in_capitals_is_near() -> None:
    with pytest.raises(UnknownName, match="no dataset 'VOC'; did you mean 'voc'"):
        dataset("VOC", "")
