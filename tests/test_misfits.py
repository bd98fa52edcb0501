"""Label maps that can be read and are wrong are told from those that are right, by the rest of the set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import planted
from PIL import Image

from fullyconv import agreement, misfits
from fullyconv.checking import check
from fullyconv.datasets.folder import open_folder

MAP = "labels/train/03.png"


def test_a_map_whose_ids_are_moved_inside_the_table_is_found(root: Path) -> None:
    planted.edit(root / MAP, lambda ids: np.where(ids < 10, ids + 1, ids))
    (found,) = planted.found(root)
    assert (found.kind, found.severity, planted.below(root, found)) == ("shifted", "warning", (MAP,))
    assert "with all ids lowered by one" in found.detail


def test_a_map_whose_last_id_is_outside_the_table_is_moved_only_if_the_others_say_so(root: Path) -> None:
    path = root / MAP
    sound = planted.ids(path)
    planted.store(path, np.where(sound == 255, 255, sound + 1))
    with_last = planted.ids(path)
    with_last[:2, :2] = 11
    planted.store(path, with_last)
    (found,) = planted.found(root)
    assert (found.kind, found.severity, planted.below(root, found)) == ("shifted", "error", (MAP,))
    # The ids are right here, but for one more, and the first class is not in the picture.
    right = np.where(sound == 0, 255, sound)
    right[:2, :2] = 11
    planted.store(path, right)
    (found,) = planted.found(root)
    assert (found.kind, planted.below(root, found)) == ("label", (MAP,))
    assert "11 (4 px)" in found.detail


def test_ids_that_are_moved_in_all_maps_are_one_finding_with_all_of_them(root: Path) -> None:
    for path in (root / "labels/train").iterdir():
        planted.edit(path, lambda ids: np.where(ids == 255, 255, ids + 1))
    for name in ("03", "07"):
        labels = planted.ids(root / f"labels/train/{name}.png")
        labels[:2, :2] = 11
        planted.store(root / f"labels/train/{name}.png", labels)
    found = [finding for finding in planted.found(root) if finding.kind == "shifted" and finding.severity == "error"]
    assert len(found) >= 1
    assert sorted(planted.below(root, found[0])) == [f"labels/train/{i:02}.png" for i in range(16)]
    assert "all ids are moved by one" in found[0].detail


def test_a_split_that_is_moved_against_train_is_one_finding(root: Path) -> None:
    for path in (root / "labels/val").iterdir():
        planted.edit(path, lambda ids: np.where(ids < 10, ids + 1, ids))
    found = [finding for finding in planted.found(root) if finding.kind == "shifted"]
    (error,) = (finding for finding in found if finding.severity == "error")
    assert "of val fit their pictures clearly better with all ids lowered by one, going by train" in error.detail


def test_maps_that_have_changed_places_are_found_with_all_four_files(root: Path) -> None:
    one, other = root / MAP, root / "labels/train/07.png"
    ours, theirs = one.read_bytes(), other.read_bytes()
    one.write_bytes(theirs)
    other.write_bytes(ours)
    (found,) = planted.found(root)
    assert (found.kind, found.severity) == ("swapped", "warning")
    assert planted.below(root, found) == ("images/train/03.png", MAP, "images/train/07.png", "labels/train/07.png")


def test_a_map_that_is_not_turned_with_its_picture_is_found_though_the_sizes_agree(root: Path) -> None:
    picture = root / "images/train/03.png"
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(picture).transpose(Image.Transpose.ROTATE_180).save(picture, exif=exif)
    assert planted.found(root) == []  # the picture is turned upright, and the map is so
    Image.open(root / MAP).transpose(Image.Transpose.ROTATE_180).save(root / MAP)
    (found,) = planted.found(root)
    assert (found.kind, found.severity) == ("exif", "warning")
    assert planted.below(root, found) == (MAP, "images/train/03.png")


def test_interpolated_ids_are_found_by_their_seams_though_the_table_has_them(root: Path) -> None:
    # A map of many borders, so that there is something to see.
    labels = np.zeros(planted.SIZE, np.uint8)
    labels[:, ::16], labels[:, 1::16], labels[:, 2::16], labels[:, 3::16] = 10, 10, 10, 10
    blurred = np.array(Image.fromarray(labels).resize((256, 192), Image.Resampling.BILINEAR))[:96, :128]
    planted.store(root / MAP, blurred)
    found = [finding for finding in planted.found(root) if finding.kind == "antialiased"]
    assert [planted.below(root, finding) for finding in found] == [(MAP,)]
    planted.store(root / MAP, labels)
    assert not [finding for finding in planted.found(root) if finding.kind == "antialiased"]


def test_edges_of_a_picture_are_under_the_borders_of_its_own_map() -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 5, (6, 8)), np.ones((16, 16), int))
    picture = (labels[..., None] * 40 + rng.integers(0, 30, (96, 128, 3))).astype(np.uint8)
    edges = agreement.edges_of(picture)
    maps = labels, np.roll(labels, 7, axis=(0, 1)), labels * 0
    own, turned, flat = (agreement.under_borders(edges, agreement.borders_of(each)) for each in maps)
    assert own > turned + agreement.ON_EDGES_BY
    assert flat == 0.0


def test_streets_as_they_are_fit_and_exchanged_or_moved_they_do_not(shared: Path) -> None:
    # Every sixth picture of CamVid; all were measured once, see docs/data.md.
    data = open_folder(shared / "camvid")
    few = dataclasses.replace(data, names=data.names[::6], files=data.files[::6])
    report = check(few)
    assert report.findings == ()
    pairs = report.impressions
    files = [list(pair) for pair in few.files]
    for one, other in ((3, 40), (12, 55), (25, 33)):
        files[one][1], files[other][1] = files[other][1], files[one][1]
    numbers = {name: i for i, name in enumerate(few.names)}
    exchanged = dataclasses.replace(few, files=[tuple(pair) for pair in files])
    seen = check(exchanged)
    found = [finding for finding in seen.findings if finding.kind == "swapped"]
    names = {frozenset(numbers[Path(file).stem] for file in finding.files) for finding in found}
    assert names == {frozenset(two) for two in ((3, 40), (12, 55), (25, 33))}
    wrong = dataclasses.replace(pairs[9], labels=np.where(pairs[9].labels < 10, pairs[9].labels + 1, pairs[9].labels))
    (finding,) = misfits.moved_in([*pairs[:9], wrong, *pairs[10:]], few.classes["out"])
    assert finding.files == (pairs[9].files[1],)


def test_among_too_few_maps_a_moved_one_is_a_wrong_id_with_a_hint(tmp_path: Path) -> None:
    root = planted.scenes(tmp_path / "data", train=4, val=2)
    path = root / "labels/train/01.png"
    planted.edit(path, lambda ids: np.where(ids == 255, 255, ids + 1))
    planted.edit(path, lambda ids: np.where(np.arange(ids.size).reshape(ids.shape) < 9, 11, ids))
    (found,) = (finding for finding in planted.found(root) if finding.severity == "error")
    assert (found.kind, planted.below(root, found)) == ("label", ("labels/train/01.png",))
    assert found.detail.endswith("are all ids of this map moved by one? The other maps are too few to tell")
