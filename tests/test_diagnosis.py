"""Each fault that keeps a pair from being read is found as what it is, with its files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import miniatures as mini
import numpy as np
import planted
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fullyconv.checking import check
from fullyconv.config import Classes
from fullyconv.datasets import dataset
from fullyconv.diagnosis import shift_of
from fullyconv.findings import KINDS

PICTURE, MAP = "images/train/03.png", "labels/train/03.png"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def jpeg(path: Path) -> Image.Image:
    stored = io.BytesIO()
    Image.open(path).convert("RGB").save(stored, "JPEG")
    return Image.open(stored)


def clear(path: Path) -> None:
    image = Image.open(path).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (planted.SIZE[0], planted.SIZE[1] // 2))))
    image.save(path)


def grown(path: Path) -> None:
    """Another palette than the table's, so that colours mean nothing to it."""
    image = Image.open(path)
    image.putpalette([255 - channel for channel in image.getpalette() or []])
    image.convert("RGB").save(path)


def sideways(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / PICTURE).transpose(Image.Transpose.ROTATE_90).save(root / PICTURE, exif=exif)
    Image.open(root / MAP).transpose(Image.Transpose.ROTATE_90).save(root / MAP)


def interpolated(path: Path) -> None:
    Image.open(path).convert("RGB").resize((256, 192)).resize((128, 96), Image.Resampling.BICUBIC).save(path)


FAULTS: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...]]] = {
    "a picture that is cut off": (lambda root: cut(root / PICTURE), "corrupt", (PICTURE,)),
    "an empty picture": (lambda root: (root / PICTURE).write_bytes(b""), "corrupt", (PICTURE,)),
    "text for a picture": (lambda root: (root / PICTURE).write_text("no picture"), "corrupt", (PICTURE,)),
    "a label map that is cut off": (lambda root: cut(root / MAP), "corrupt", (MAP,)),
    "a label map of half the size": (
        lambda root: planted.edit(root / MAP, lambda ids: ids[::2, ::2]),
        "size",
        (MAP, PICTURE),
    ),
    "an id that no class has": (
        lambda root: planted.edit(root / MAP, lambda ids: ids * 0 + 77),
        "label",
        (MAP,),
    ),
    "colours that no class has": (lambda root: grown(root / MAP), "rgb", (MAP,)),
    "ids as grey RGB": (lambda root: planted.edit(root / MAP, lambda ids: np.stack([ids] * 3, axis=2)), "rgb", (MAP,)),
    "a label map that is half clear": (lambda root: clear(root / MAP), "alpha", (MAP,)),
    "a JPEG for a label map": (
        lambda root: Image.open(root / MAP).convert("RGB").save(root / MAP, "JPEG"),
        "lossy",
        (MAP,),
    ),
    "a JPEG stored as PNG": (
        lambda root: jpeg(root / MAP).save(root / MAP),
        "antialiased",
        (MAP,),
    ),
    "colours resized with interpolation": (lambda root: interpolated(root / MAP), "antialiased", (MAP,)),
    "a picture that EXIF turns, and not its label map": (sideways, "exif", (MAP, PICTURE)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_as_what_it_is(root: Path, fault: str) -> None:
    plant, kind, files = FAULTS[fault]
    plant(root)
    (found,) = (finding for finding in planted.found(root) if finding.kind != "absent")
    assert (found.kind, found.severity) == (kind, "error")
    assert planted.below(root, found) == files
    assert str(root / files[0]) in found.detail
    assert found.json()["mend"] == KINDS[kind].mend


def test_sound_scenes_have_no_findings(root: Path) -> None:
    assert planted.found(root) == []


def test_label_maps_that_can_be_read_are_found_where_others_would_read_them_otherwise(root: Path) -> None:
    Image.open(root / MAP).save(root / MAP, transparency=0)
    Image.open(root / "labels/train/05.png").convert("RGB").save(root / "labels/train/05.png")
    alpha, rgb = planted.found(root)
    assert (alpha.kind, alpha.severity, planted.below(root, alpha)) == ("alpha", "warning", (MAP,))
    assert (rgb.kind, rgb.severity, planted.below(root, rgb)) == ("rgb", "warning", ("labels/train/05.png",))
    assert "1 label maps hold colours, and the other 15 hold ids" in rgb.detail


def test_palettes_that_show_ids_in_the_colours_of_other_classes_are_told(root: Path) -> None:
    """The table exchanges two ids; the maps, as made by another tool, know better."""
    names = (root / "classes.txt").read_text().split("\n")
    entries = [{"id": i, "name": name, "colour": [10 * i, 200, 0]} for i, name in enumerate(names)]
    (root / "classes.txt").unlink()

    def write(order: Sequence[int]) -> None:
        table = [{**entry, "id": number} for entry, number in zip(entries, order, strict=True)]
        (root / "classes.json").write_text(json.dumps(table))

    shown = [number for entry in entries for number in entry["colour"]]
    for path in root.glob("labels/*/*.png"):
        image = Image.open(path)
        image.putpalette([*shown, *[255] * (768 - len(shown))])
        image.save(path)
    ids = list(range(len(names)))
    write(ids)
    assert planted.found(root) == []
    write([0, 2, 1, *ids[3:]])
    learnt, scored = (finding for finding in planted.found(root) if finding.kind != "absent")
    assert (learnt.kind, learnt.severity, len(learnt.files)) == ("palette", "warning", 16)
    assert (scored.kind, len(scored.files)) == ("palette", 8)
    said = f"shows id 1, which the table calls {names[2]!r}, in the table's colour of {names[1]!r} (id 2); so do 16 of"
    assert said in learnt.detail
    entries[0]["colour"] = [0, 0, 0]
    write(ids)
    for path in root.glob("labels/*/*.png"):
        image = Image.open(path)
        image.putpalette([0] * 768)
        image.save(path)
    assert planted.found(root) == []  # a palette that nobody has set, beside a black class
    (root / "classes.json").unlink()
    (root / "classes.txt").write_text("\n".join(names))
    assert planted.found(root) == []  # a table without colours says nothing of them


def test_two_label_maps_of_each_others_size_are_exchanged(root: Path) -> None:
    for path in ("images/train/02.png", "labels/train/02.png"):
        image = Image.open(root / path)
        image.crop((0, 0, 100, 80)).save(root / path)
    one, other = root / "labels/train/02.png", root / MAP
    one_bytes, other_bytes = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_bytes)
    other.write_bytes(one_bytes)
    (found,) = planted.found(root)
    assert (found.kind, found.severity) == ("swapped", "error")
    assert set(planted.below(root, found)) == {"images/train/02.png", "labels/train/02.png", PICTURE, MAP}


@given(
    st.integers(2, 30),
    st.sets(st.integers(0, 29), min_size=2),
    st.booleans(),
)
def test_moved_ids_are_proven_only_by_the_id_after_the_last_without_the_first(
    count: int, present: set[int], with_void: bool
) -> None:
    table = Classes.of(*map(str, range(count)))
    ids = sorted({number % count for number in present})
    void = [255] if with_void else []
    assert shift_of(ids + void, table) == 0
    raised = [number + 1 for number in ids]
    proves = count in raised and len(raised) + len(void) > 1
    assert shift_of(raised + void, table) == (-1 if proves else 0)
    assert shift_of(sorted({0, *raised}) + void, table) == 0


def test_ids_from_nought_where_the_table_starts_at_one_are_too_low() -> None:
    table = Classes.parse(
        {"entries": [{"id": i, "name": str(i), "colour": [i, 0, 0]} for i in (1, 2, 3)]}, source="classes.json"
    )
    assert shift_of([0, 1, 2], table) == 1
    assert shift_of([0, 1, 3], table) == 0


def test_a_table_of_numbers_that_cannot_be_read_is_corrupt(tmp_path: Path) -> None:
    folder = mini.sbd(tmp_path / "sbd", train=("a", "b", "c"))
    (folder / "cls/b.mat").write_bytes((folder / "cls/b.mat").read_bytes()[:150])
    mini.mat(folder / "cls/c.mat", GTcls={"Segmentation": mini.grid(0, 99).astype(np.uint8)})
    kinds = {Path(one.files[0]).name: one.kind for one in check(dataset("sbd", tmp_path)).findings if one.files}
    assert kinds == {"b.mat": "corrupt", "c.mat": "label"}


def test_many_ids_that_go_on_where_the_table_ends_are_no_blends(root: Path) -> None:
    planted.edit(root / MAP, lambda ids: np.where(ids == 255, ids, np.arange(ids.size).reshape(ids.shape) // 8 % 60))
    (finding,) = [one for one in planted.found(root) if one.severity == "error"]
    assert finding.kind == "label"
    assert "ids go on to 59, and the table ends at 10" in finding.detail
