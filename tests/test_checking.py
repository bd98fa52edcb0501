"""What would fail or mislead training is found before it, with the file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import miniatures as mini
import numpy as np
import pytest
from PIL import Image

from fullyconv.checking import Finding, check, overlap
from fullyconv.config import Classes
from fullyconv.datasets import Sample, SegmentationDataset, dataset
from fullyconv.datasets.folder import open_folder
from fullyconv.errors import DatasetError
from fullyconv.images import write_image
from fullyconv.labels import write_labels

TABLE = Classes.of("ground", "cat", "dog")


def make(root: Path, maps: list[np.ndarray]) -> Path:
    for folder in ("images", "labels"):
        for split in ("train", "val"):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("ground\ncat\ndog\n")
    for i, labels in enumerate(maps):
        write_image(root / f"images/train/{i}.png", np.zeros((*labels.shape, 3), np.uint8))
        store(root / f"labels/train/{i}.png", labels)
    return root


def store(path: Path, values: np.ndarray) -> None:
    """Write ids that need not be in `TABLE`."""
    write_labels(path, values, Classes.of(*map(str, range(255))))


GOOD = np.array([[0, 1, 2, 255]], np.uint8)


def test_a_sound_folder_has_no_findings_and_exact_counts(tmp_path: Path) -> None:
    wide = np.array([[0, 0], [2, 255], [1, 1]], np.uint8)
    progress: list[tuple[int, int]] = []
    report = check(open_folder(make(tmp_path, [GOOD, wide])), on_progress=lambda done, of: progress.append((done, of)))
    assert report.ok
    assert report.findings == ()
    assert report.counts["out"].tolist() == [3, 3, 2]
    assert report.counts["out"].dtype == np.int64
    assert report.void == {"out": 2}
    assert report.sizes == ((1, 4), (3, 2))
    assert progress == [(1, 2), (2, 2)]
    report.raise_for_errors()


def test_every_bad_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    root = make(tmp_path, [GOOD] * 5)
    (root / "images/train/1.png").write_bytes((root / "images/train/1.png").read_bytes()[:45])
    store(root / "labels/train/2.png", np.array([[0, 7, 7, 1]], np.uint8))
    store(root / "labels/train/3.png", GOOD[:, :3])
    report = check(open_folder(root))
    assert not report.ok
    assert [(f.kind, f.severity, Path(f.files[0]).name) for f in report.findings] == [
        ("corrupt", "error", "1.png"),
        ("label", "error", "2.png"),
        ("size", "error", "3.png"),
    ]
    assert "7 (2 px)" in report.findings[1].detail
    assert "1 x 3 for a picture of 1 x 4" in report.findings[2].detail
    assert report.counts["out"].tolist() == [2, 2, 2]
    with pytest.raises(DatasetError, match=r"1\.png: .*and 2 more") as refusal:
        report.raise_for_errors()
    assert len(refusal.value.findings) == 3


def test_files_without_partner_void_pictures_and_absent_classes_are_warnings(tmp_path: Path) -> None:
    root = make(tmp_path, [np.array([[0, 1]], np.uint8), np.array([[255, 255]], np.uint8)])
    (root / "labels/train/lonely.png").write_bytes((root / "labels/train/0.png").read_bytes())
    report = check(open_folder(root))
    assert report.ok
    assert {(f.kind, f.severity) for f in report.findings} == {
        ("absent", "warning"),
        ("unpaired", "warning"),
        ("void", "warning"),
    }
    by_kind = {f.kind: f for f in report.findings}
    assert by_kind["absent"].detail == "1 of 3 classes does not occur in train: dog"
    assert by_kind["void"].files == (str(root / "images/train/1.png"),)
    assert Path(by_kind["unpaired"].files[0]).name == "lonely.png"
    report.raise_for_errors()


def test_masks_of_0_and_255_are_an_error_since_255_is_void(tmp_path: Path) -> None:
    report = check(open_folder(make(tmp_path, [np.array([[0, 255, 255]], np.uint8)])))
    assert [f.kind for f in report.errors] == ["single"]
    assert "every labelled pixel of train is ground; 2 pixels are void: if label maps are masks of 0 and 255" in (
        report.errors[0].detail
    )


def test_labels_that_are_all_void_are_an_error(tmp_path: Path) -> None:
    report = check(open_folder(make(tmp_path, [np.full((2, 2), 255, np.uint8)])))
    assert [(f.kind, f.severity) for f in report.findings] == [("absent", "error")]
    assert "no pixel of train belongs to a class" in report.findings[0].detail


def test_a_test_whose_labels_are_secret_is_noted_and_is_no_fault(tmp_path: Path) -> None:
    root = make(tmp_path, [np.full((2, 2), 255, np.uint8)])
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / kind / "test")
    report = check(open_folder(root, split="test"))
    assert report.findings == ()
    assert any("every pixel of test is void: its labels are kept secret" in note for note in report.notes)


def test_pictures_of_more_than_colour_are_checked_with_all_their_files(tmp_path: Path) -> None:
    root = make(tmp_path, [GOOD] * 3)
    (root / "depth/train").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8)).save(root / f"depth/train/{i}.png")
    Image.fromarray(np.array([[1, 2]], np.uint8)).save(root / "depth/train/1.png")
    report = check(open_folder(root, inputs=("color", "depth")))
    assert [(f.kind, Path(f.files[0]).parts[-3:]) for f in report.errors] == [("corrupt", ("depth", "train", "1.png"))]
    assert "1 x 2 pixels of depth for a picture of 1 x 4 (height x width)" in report.errors[0].detail
    unmeasured = "depth that was not measured is the mean of what was"
    assert report.notes[1:] == (f"2 of 3 pictures: {unmeasured}, as in 0: {unmeasured} (1 px)",)


@dataclass
class Two:
    """A data set of two heads that fails in an unexpected way on request."""

    broken: bool = False
    name: str = "two"
    split: str = "train"
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ("a", "b")
    classes: dict[str, Classes] = field(default_factory=lambda: {"thing": TABLE, "size": Classes.of("small", "large")})

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        if self.broken:
            raise ZeroDivisionError
        image = np.zeros((1, 3, 3), np.uint8)
        return Sample(
            self.names[index],
            image,
            {"thing": np.array([[0, 1, 2]], np.uint8), "size": np.array([[0, 1, 255]], np.uint8)},
        )

    def paths(self, index: int) -> tuple[None, None]:
        return None, None


def test_each_head_is_counted() -> None:
    report = check(Two())
    assert {head: counts.tolist() for head, counts in report.counts.items()} == {"thing": [2, 2, 2], "size": [2, 2]}
    assert report.void == {"thing": 0, "size": 2}


def test_an_error_that_is_no_files_fault_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        check(Two(broken=True))


def test_camvid_has_the_pixels_that_were_counted_elsewhere(shared: Path) -> None:
    report = check(open_folder(shared / "camvid"))
    assert report.findings == ()
    names = open_folder(shared / "camvid").classes["out"].names
    counts = dict(zip(names, report.counts["out"].tolist(), strict=True))
    assert (counts["sky"], counts["bicyclist"], counts["road"]) == (10_682_767, 184_967, 20_076_880)
    assert report.void["out"] == 2_503_995


def test_what_is_done_to_pictures_on_the_way_in_is_said_once_for_each_kind(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for half in ("images", "labels"):
            (tmp_path / half / split).mkdir(parents=True)
        for i in range(3):
            deep = np.full((4, 5), 1000 * (i + 1), np.uint16)
            Image.fromarray(deep).save(tmp_path / "images" / split / f"{i}.png")
            Image.fromarray(np.array([[0, 1, 0, 1, 0]] * 4, np.uint8)).save(tmp_path / "labels" / split / f"{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    size, note = check(open_folder(tmp_path)).notes
    assert size == "all pictures have 4 x 5 pixels (height x width)"
    assert note.startswith(
        "3 of 3 pictures: 16 bits scaled to 8, as in 0: 16 bits scaled to 8 (divided by 257; values 1000"
    )


# Pictures in two splits ----------------------------------------------------------------------------------------------


def looked_through(*data: SegmentationDataset) -> Finding | None:
    """The overlap of train and val, with their pixels compared."""
    train, val = data
    return overlap(train, val, (check(train).impressions, check(val).impressions))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    """Three pictures in train and two in val, of the same names and of other content."""
    for number, split in enumerate(["train"] * 3 + ["val"] * 2):
        name = f"{number if split == 'train' else number - 3}.png"
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "images" / split / name, noise(number))
        store(tmp_path / "labels" / split / name, np.tile(GOOD, (6, 2)))
    (tmp_path / "classes.txt").write_text("ground\ncat\ndog\n")
    return tmp_path


def splits(root: Path) -> tuple[SegmentationDataset, SegmentationDataset]:
    return open_folder(root, split="train"), open_folder(root, split="val")


def test_pictures_of_one_name_in_two_folders_are_two(divided: Path) -> None:
    assert looked_through(*splits(divided)) is None


def test_a_copy_under_another_name_is_found_by_its_pixels(divided: Path) -> None:
    # Another format, too: the bytes of the file differ, the pixels do not.
    Image.fromarray(noise(2)).save(divided / "images/val/copy.bmp")
    shutil.copy(divided / "labels/train/2.png", divided / "labels/val/copy.png")
    train, val = splits(divided)
    assert overlap(train, val) is None
    found = looked_through(train, val)
    assert found is not None
    assert (found.kind, found.severity) == ("overlap", "error")
    assert found.files == (str(divided / "images/val/copy.bmp"), str(divided / "images/train/2.png"))
    assert found.detail == (
        "1 of the 3 pictures of val are in train, too: copy (as 2 in train); a picture that is learnt cannot be "
        "scored: drop them from one of the two"
    )


def test_a_link_to_a_picture_of_train_is_found_without_reading_it(divided: Path) -> None:
    (divided / "images/val/1.png").unlink()
    (divided / "images/val/1.png").symlink_to(divided / "images/train/0.png")
    found = overlap(*splits(divided))
    assert found is not None
    assert "1 (as 0 in train)" in found.detail


def test_black_frames_are_no_copies(divided: Path) -> None:
    for split in ("train", "val"):
        write_image(divided / "images" / split / "0.png", np.zeros((6, 8, 3), np.uint8))
    assert looked_through(*splits(divided)) is None


def test_a_name_is_a_picture_in_a_published_data_set(tmp_path: Path) -> None:
    # The same picture of VOC lies in SBD's folder in other bytes; a list that names it for val is caught by its name.
    mini.sbd(tmp_path / "benchmark_RELEASE/dataset", train=["2007_000042", "2007_000032"])
    mini.voc(tmp_path / "VOCdevkit/VOC2011", seg11valid=["2007_000033", "2007_000042"])
    mini.put(tmp_path / "VOCdevkit/VOC2011/JPEGImages/2007_000042.jpg", noise(1))
    found = overlap(*(dataset("sbd", tmp_path, split=split) for split in ("train", "val")))
    assert found is not None
    assert "too: 2007_000042;" in found.detail
    mini.names(tmp_path / "VOCdevkit/VOC2011/ImageSets/Segmentation/seg11valid.txt", ["2007_000033"])
    assert looked_through(*(dataset("sbd", tmp_path, split=split) for split in ("train", "val"))) is None


def test_a_split_is_learnt_and_scored_whole(tmp_path: Path) -> None:
    mini.voc(tmp_path / "VOC2012", train=["a", "b"], val=["c"], trainval=["a", "b", "c"])
    trainval, val = (dataset("voc", tmp_path, split=split) for split in ("trainval", "val"))
    found = overlap(trainval, val)
    assert found is not None
    assert found.detail.startswith("all 1 pictures of val are in trainval, too: c; ")
    scenes = dataset("scenes", "count=9 size=32x32")
    assert overlap(scenes, scenes) is not None
    assert looked_through(scenes, dataset("scenes", "count=5 size=32x32", split="val")) is None


def test_where_no_pair_can_be_read_nothing_is_said_of_classes(root: Path) -> None:
    for path in (root / "labels").glob("*/*.png"):
        path.write_bytes(b"")
    found = check(open_folder(root)).findings
    assert {finding.kind for finding in found} == {"corrupt"}


@pytest.mark.parametrize("lonely", [1, 2])
def test_files_without_a_partner_are_counted_in_plain_words(root: Path, lonely: int) -> None:
    for number in range(lonely):
        (root / f"labels/train/{number:02}.png").unlink()
    (found,) = (finding for finding in check(open_folder(root)).findings if finding.kind == "unpaired")
    said = [
        "1 file has no partner of the same name and is left out: ",
        "2 files have no partner of the same name and are ",
    ]
    assert found.detail.startswith(said[lonely - 1])


def test_palettes_that_were_sorted_anew_are_told_from_the_others(tmp_path: Path) -> None:
    colours = [(0, 0, 0), (200, 0, 0), (0, 200, 0), (0, 0, 200)]
    ids = np.arange(4, dtype=np.uint8).repeat(20).reshape(8, 10)

    def put(name: str, order: list[int]) -> None:
        image = Image.fromarray(np.argsort(order).astype(np.uint8)[ids])
        image.putpalette([value for i in order for value in colours[i]])
        image.save(tmp_path / "labels" / f"{name}.png")

    (tmp_path / "classes.txt").write_text("ground\nred\ngreen\nblue\n")
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for name in "abcdef":
        noise = np.random.default_rng(ord(name)).integers(0, 256, (8, 10, 3), np.uint8)
        write_image(tmp_path / "images" / f"{name}.png", noise)
        put(name, [0, 1, 2, 3])

    def found() -> list[Finding]:
        return [f for f in check(open_folder(tmp_path, split="train")).findings if f.kind == "palette"]

    assert found() == []
    odd = sorted((tmp_path / "labels").glob("*.png"))[1]
    put(odd.stem, [0, 3, 1, 2])
    seen = [f for split in ("train", "val") for f in check(open_folder(tmp_path, split=split)).findings]
    (finding,) = [f for f in seen if f.kind == "palette"]
    assert finding.severity == "warning"
    assert finding.files == (str(odd),)
    assert "palettes disagree" in finding.detail
    assert "(0, 0, 200), in which most label maps show id 3" in finding.detail or "show id 1 in" in finding.detail
