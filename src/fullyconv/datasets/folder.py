"""Pictures and label maps in a folder, in any of four layouts.

    ROOT/images/{train,val,test}/NAME.*     ROOT/labels/{train,val,test}/NAME.png
    ROOT/{train,val,test}/images/NAME.*     ROOT/{train,val,test}/labels/NAME.png
    ROOT/images/NAME.*                      ROOT/labels/NAME.png                    ROOT/{train,val}.txt, optional
    ROOT/JPEGImages/NAME.jpg                ROOT/SegmentationClass/NAME.png         ROOT/ImageSets/Segmentation/*.txt

and, where a picture is more than colour, depth/ and hha/ beside images/, in its layout and with the same names; and
ROOT/classes.txt (one name a line, in order of id) or ROOT/classes.json (id, name, colour, ignore). What was recognised
is said in `Folder.notes`; what cannot be recognised for certain is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from fullyconv.config import MOST_CLASSES, Classes, voc_colour
from fullyconv.datasets.base import About, Sample
from fullyconv.datasets.inputs import CHANNELS, check_inputs, read_inputs
from fullyconv.datasets.listed import inside_of, walk
from fullyconv.datasets.voc import CLASSES as VOC
from fullyconv.documents import parse_json, read_text
from fullyconv.errors import DatasetError, ImageError
from fullyconv.images import SUFFIXES
from fullyconv.labels import label_values, read_labels

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "ann_dir", "SegmentationClass")
LIST_FOLDERS = (".", "ImageSets/Segmentation", "splits", "lists")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
NEARLY_A_SPLIT = re.compile(r"(train(ing)?|val(id(ation)?)?)[-_ ]?\d+", re.IGNORECASE)
"""Such as train2017."""
NUMBERED = re.compile(r"(\d{1,5})(?:\s*[:,;]\s*|\s+)(\S.*)")
"""A class with its id before it."""
VOID_NAMES = frozenset({"void", "unlabelled", "unlabeled", "ignore"})
VAL_SHARE = 0.1
"""Share of the pictures that is drawn for val where the folder has no val split."""

ABOUT = About(
    title="Folder of your own pictures",
    layout="""\
DATA/images/{train,val,test}/NAME.jpg
DATA/labels/{train,val,test}/NAME.png
DATA/classes.txt                                 a name a line; or classes.json: id, name, colour, ignore""",
    licence="yours",
    remark="DATA/{train,val,test}/images and labels, DATA/images/NAME.jpg with train.txt and val.txt, and the folders "
    "of PASCAL VOC are read, too; without a val split a tenth is drawn for it. See docs/data.md.",
)


@dataclass(frozen=True)
class Folder:
    """One split of a folder of pictures and label maps; see `SegmentationDataset`.

    Attributes:
        root: the folder.
        split: as asked for.
        classes: ``{"out": table}``.
        names: paths below the split without suffix, with forward slashes, sorted.
        files: of each name the file of each input of the picture, and the label map.
        notes: what was recognised, chosen or left out.
        unpaired: pictures of this split without a label map and the reverse, left out of ``names``.
    """

    root: Path
    split: str
    classes: Mapping[str, Classes]
    names: Sequence[str]
    files: Sequence[tuple[Mapping[str, Path], Path]]
    notes: Sequence[str] = ()
    unpaired: Sequence[Path] = ()
    name: str = field(default="folder", init=False)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        """Read sample ``index``; raises `ImageError` where a file cannot be used."""
        pictures, label_path = self.files[index]
        image, notes = read_inputs(pictures)
        labels = read_labels(label_path, classes=self.classes["out"], size=(image.shape[0], image.shape[1]))
        return Sample(self.names[index], image, {"out": labels}, notes)

    def paths(self, index: int) -> tuple[Path, Path]:
        """The files of picture (of its first input) and label map of sample ``index``."""
        pictures, label_path = self.files[index]
        return next(iter(pictures.values())), label_path


def open_folder(
    root: str | PathLike[str], *, split: str = "train", seed: int = 0, inputs: Sequence[str] = ("color",)
) -> Folder:
    """Open one split of a folder, whatever of the four layouts it has.

    ``inputs`` are what a picture is made of, channel after channel. "color" is what lies in images/, "depth" in depth/
    and "hha" in hha/ beside it, with the same names.

    Without a val split, a tenth of train is drawn for it, by a hash of ``seed`` and name: the same pictures on every
    machine, and a picture stays where it was drawn when others are added (but the only one of val, which was nearest to
    the tenth, makes room for the first that falls into it). Nothing is written.

    Raises:
        DatasetError: no such folder, no layout that is known, two readings of it, no classes, nothing that pairs, or a
            picture without one of its inputs.
        ConfigError: the table of classes is not valid.
    """
    root = Path(root)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise DatasetError(f"{root}: {found} there; expected a folder with images/, labels/ and classes.txt")
    check_inputs(inputs, CHANNELS, where=str(root))
    notes: list[str] = []
    source = _of_split(root, split, notes) or _source(*_halves(root, notes), split, notes)
    images, labels = source.images, source.labels
    if not source.divided:
        _refuse_overlap(root)
    pictures, maps = _files(source.pictures, notes), _files(source.maps, notes)
    listed = None if source.divided else _listed(root, images, pictures, split, notes)
    wanted = sorted(pictures.keys() | maps.keys() if listed is None else listed)
    files = {name: (pictures[name], maps[name]) for name in wanted if name in pictures and name in maps}
    unpaired = [pictures.get(name, maps.get(name, images / name)) for name in wanted if name not in files]
    if not files:
        raise DatasetError(_nothing_pairs(root, images, labels, split, unpaired), findings=[str(p) for p in unpaired])
    names = list(files)
    if source.draw or (not source.divided and split in ("train", "val") and not _list(root, "val")):
        names = _draw(names, split, seed, notes)
    if unpaired:
        shown = ", ".join(str(path.relative_to(root)) for path in unpaired[:10])
        more = f" and {len(unpaired) - 10} more" if len(unpaired) > 10 else ""
        notes.append(f"{len(unpaired)} files have no partner of the same name and are left out: {shown}{more}")
    classes = _classes(root, labels, [files[name][1] for name in names[:20]], notes)
    of_input = {name: pictures if name == "color" else _input(source, name, names, notes) for name in inputs}
    paired = [({key: there[name] for key, there in of_input.items()}, files[name][1]) for name in names]
    return Folder(root, split, {"out": classes}, names, paired, notes, unpaired)


# Which folders -------------------------------------------------------------------------------------------------------


def _halves(root: Path, notes: list[str]) -> tuple[Path, Path]:
    """The folder of pictures and the folder of label maps."""
    folders = {p.name.lower(): p for p in root.iterdir() if p.is_dir()}
    halves = []
    for kind, known in (("pictures", IMAGE_FOLDERS), ("label maps", LABEL_FOLDERS)):
        there = [folders[name.lower()] for name in known if name.lower() in folders]
        if not there:
            inside = sorted(p.name + "/" * p.is_dir() for p in root.iterdir() if not p.name.startswith("."))
            below = [p for p in root.iterdir() if p.is_dir() and any((p / name).is_dir() for name in IMAGE_FOLDERS)]
            raise DatasetError(
                f"{root}: no folder of {kind}; expected {known[0]}/ (or {', '.join(known[1:])}), "
                f"found {', '.join(inside[:12]) or 'nothing'}{f'; did you mean {below[0]}?' if len(below) == 1 else ''}"
            )
        if len(there) > 1:
            # PASCAL VOC's Annotations/ holds boxes, and labels/ may hold what a detector learns.
            there = [folder for folder in there if any(map(_by_suffix, walk(folder)))] or there
        if len(there) > 1:
            names = " and ".join(f"{p.name}/" for p in there)
            if there[0].name.lower() != known[0]:
                raise DatasetError(f"{root}: {names} could each hold the {kind}; keep one, or name it {known[0]}/")
            notes.append(f"of {names}, {there[0].name}/ is taken for the {kind}")
        halves.append(there[0])
    images, labels = halves
    if (images.name, labels.name) == ("JPEGImages", "SegmentationClass"):
        notes.append("PASCAL VOC layout: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/")
    elif (images.name, labels.name) != ("images", "labels"):
        notes.append(f"pictures are taken from {images.name}/, label maps from {labels.name}/")
    return images, labels


@dataclass(frozen=True)
class _Source:
    """Where the files of a split lie: in images/ and labels/, or in pictures, images/train, and maps, labels/train."""

    images: Path
    labels: Path
    pictures: Path
    maps: Path
    divided: bool  # by folders: images/train or train/images
    draw: bool = False  # val is drawn from train


def _of_split(root: Path, split: str, notes: list[str]) -> _Source | None:
    """The source of a split that has a folder of its own, with pictures and label maps in it; None: it is not so."""
    folders = _folders(root)
    if any(map(_is_of_images, folders)):
        return None
    halves = {name: half for name in {*SPLITS, split} if (half := _subfolder(folders, name))}
    if not any(_is_of_images(folder) for half in halves.values() for folder in _folders(half)):
        return None
    wanted, draw = _wanted(split, halves, root)
    notes.append(f"{halves[wanted].name}/ holds the pictures and label maps of {wanted}")
    images, labels = _halves(halves[wanted], notes)
    return _Source(images, labels, images, labels, divided=True, draw=draw)


def _is_of_images(folder: Path) -> bool:
    return folder.name.lower() in map(str.lower, IMAGE_FOLDERS)


def _source(images: Path, labels: Path, split: str, notes: list[str]) -> _Source:
    below = _folders(images), _folders(labels)
    halves = {name: (_subfolder(below[0], name), _subfolder(below[1], name)) for name in {*SPLITS, split}}
    for name, (picture_half, label_half) in halves.items():
        if name in (split, "train", "val") and (picture_half is None) != (label_half is None):
            lacking = labels if label_half is None else images
            raise DatasetError(f"{picture_half or label_half} has no counterpart; expected {lacking / name}")
    whole = {name: (p, m) for name, (p, m) in halves.items() if p and m}
    inside = sorted({path.name for path in below[0]} & {path.name for path in below[1]})
    if not whole:
        alike = [name for name in inside if NEARLY_A_SPLIT.fullmatch(name)]
        if {name[:1].lower() for name in alike} >= {"t", "v"}:
            raise DatasetError(
                f"{images}: {', '.join(alike)} look like splits; name them train/ and val/, here and in {labels}"
            )
        return _Source(images, labels, images, labels, divided=False)
    wanted, draw = _wanted(split, whole, images)
    if draw and (unread := [name for name in inside if images / name not in {half for half, _ in whole.values()}]):
        notes.append(
            f"{images.name}/ holds folders that are no split by their names and are not read: {', '.join(unread)}"
        )
    picture_half, label_half = whole[wanted]
    for half in (picture_half, label_half):
        if half.name != wanted:
            notes.append(f"{half.parent.name}/{half.name} is taken for {wanted}")
    return _Source(images, labels, picture_half, label_half, divided=True, draw=draw)


def _wanted(split: str, there: Mapping[str, object], where: Path) -> tuple[str, bool]:
    """The split to read, and whether what is asked for is drawn from it, for want of a val split."""
    draw = split in ("train", "val") and "val" not in there
    wanted = "train" if draw else split
    if wanted not in there:
        raise DatasetError(f"{where}: no split {split!r}; found {', '.join(sorted(there))}")
    return wanted, draw


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir())


def _subfolder(folders: Sequence[Path], split: str) -> Path | None:
    there = [path for path in folders if path.name.lower() in SPLITS.get(split, (split.lower(),))]
    if len(there) > 1:
        names = " and ".join(path.name for path in there)
        raise DatasetError(f"{there[0].parent}: {names} could each be {split}; keep one")
    return there[0] if there else None


def _listed(
    root: Path, images: Path, pictures: Mapping[str, Path], split: str, notes: list[str]
) -> Sequence[str] | None:
    """The names of a split in a folder that is not divided; None: all there are."""
    path = _list(root, split)
    if path is None and split not in ("train", "val"):
        raise DatasetError(f"{root}: no split {split!r}; expected {images.name}/{split}/ or {split}.txt")
    if path is None and split == "val" and (path := _list(root, "train")):
        return _names(path, images, pictures)
    if path is None:
        held_out = [*filter(None, [_list(root, "val")]), *_lists(root, "test")]
        if not held_out:
            return None
        said = " and ".join(str(there.relative_to(root)) for there in held_out)
        notes.append(
            f"no list of train: every picture that {said} {'do' if held_out[1:] else 'does'} not name is taken"
        )
        others = {name for there in held_out for name in _names(there, images, pictures)}
        left = [name for name in pictures if name not in others]
        if not left:
            raise DatasetError(
                f"{root}: {said} names every picture, so that none is left for {split}; add a list of train"
            )
        return left
    names = _names(path, images, pictures)
    notes.append(f"{split} is what {path.relative_to(root)} names ({len(names)} pictures)")
    return names


def _list(root: Path, split: str) -> Path | None:
    """The file that names the pictures of a split."""
    there = _lists(root, split)
    if len(there) > 1:
        raise DatasetError(
            f"{root}: {' and '.join(str(p.relative_to(root)) for p in there)} could each name {split}; keep one"
        )
    return there[0] if there else None


def _lists(root: Path, split: str) -> list[Path]:
    files = [root / folder / f"{name}.txt" for folder in LIST_FOLDERS for name in SPLITS.get(split, (split,))]
    return [path for path in files if path.is_file()]


def _refuse_overlap(root: Path) -> None:
    """A picture that is learnt must not be scored."""
    train, val = _list(root, "train"), _list(root, "val")
    if train is None or val is None:
        return
    lines = [{_stem(_key(line.strip())) for line in _text(path).splitlines()} - {""} for path in (train, val)]
    if shared := sorted(lines[0] & lines[1]):
        raise DatasetError(
            f"{root}: {train.relative_to(root)} and {val.relative_to(root)} share {len(shared)} pictures "
            f"({', '.join(shared[:5])}); a picture that is learnt cannot be scored: drop them from one",
            findings=shared,
        )


def _names(path: Path, images: Path, pictures: Mapping[str, Path]) -> list[str]:
    """The names that a list holds, a line each: NAME, NAME.jpg, images/NAME.jpg, or one of these and more columns."""
    names: dict[str, None] = {}  # a set that keeps its order
    for line in map(_key, map(str.strip, _text(path).splitlines())):
        if line:
            forms = [form for text in (line, line.split()[0]) for form in (text, _stem(text))]
            forms += [form.removeprefix("/").removeprefix(f"{images.name}/") for form in forms]
            names[next((form for form in forms if form in pictures), _stem(line))] = None
    return list(names)


def _draw(names: list[str], split: str, seed: int, notes: list[str]) -> list[str]:
    """The part of these names that is ``split``, when val is drawn by hash from them all."""
    if len(names) < 2:
        raise DatasetError(f"only one labelled picture ({names[0]}); expected 2 or more, to hold one out for val")
    # Each name is drawn by itself, so that pictures that are added later move no other from train to val.
    drawn = {name: int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8]) / 2**64 for name in names}
    order = sorted(names, key=lambda name: drawn[name])
    count = min(max(1, sum(share < VAL_SHARE for share in drawn.values())), len(order) - 1)
    notes.append(
        f"no val split: {count} of {len(order)} pictures are drawn for it with seed {seed}; "
        "if neighbours resemble each other, as frames of a video do, give a val split of your own"
    )
    return sorted(order[:count] if split == "val" else order[count:])


# Which files ---------------------------------------------------------------------------------------------------------


def _files(folder: Path, notes: list[str]) -> dict[str, Path]:
    """Pictures below ``folder`` by their path in it without suffix."""
    found: dict[str, Path] = {}
    doubles: list[str] = []
    others = 0
    for path in walk(folder):
        if not _by_suffix(path):
            others += 1
            continue
        name = _stem(_key(path.relative_to(folder).as_posix()))
        if name in found:
            doubles.append(f"{found[name]} and {path.name}")
        found[name] = path
    if doubles:
        raise DatasetError(
            f"{folder}: {len(doubles)} names stand for two files: {'; '.join(doubles[:5])}; keep one of each",
            findings=doubles,
        )
    if others:
        notes.append(f"{others} files in {folder.name}/ are no pictures by their suffix and are left out")
    return found


def _input(source: _Source, name: str, names: Sequence[str], notes: list[str]) -> dict[str, Path]:
    """The files of an input other than colour, by name; there is one for each of the names."""
    beside = source.images.parent
    folder = beside / name / source.pictures.relative_to(source.images)
    if not folder.is_dir():
        raise DatasetError(
            f"{folder}: no such folder; expected the input {name!r} of each picture; found {inside_of(beside)}"
        )
    found = _files(folder, notes)
    if lacking := [picture for picture in names if picture not in found]:
        raise DatasetError(
            f"{folder}: no file for {len(lacking)} of {len(names)} pictures ({', '.join(lacking[:5])}); expected one "
            "of the same name as each",
            findings=[f"{folder / picture}: no such file" for picture in lacking],
        )
    return found


def _by_suffix(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _key(name: str) -> str:
    # macOS stores é as two code points, everybody else as one.
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in SUFFIXES else name


def _nothing_pairs(root: Path, images: Path, labels: Path, split: str, unpaired: list[Path]) -> str:
    pictures = [p.name for p in unpaired if images in p.parents]
    maps = [p.name for p in unpaired if labels in p.parents]
    return (
        f"{root}: no picture of {split} has a label map of the same name; found {len(pictures)} pictures without "
        f"({', '.join(pictures[:3]) or 'none'}) and {len(maps)} label maps without ({', '.join(maps[:3]) or 'none'}); "
        f"expected {images.name}/NAME.jpg beside {labels.name}/NAME.png"
    )


# Which classes -------------------------------------------------------------------------------------------------------


def _classes(root: Path, folder: Path, labels: Sequence[Path], notes: list[str]) -> Classes:
    as_json, as_text = root / "classes.json", root / "classes.txt"
    if as_json.is_file():
        if as_text.is_file():
            notes.append("classes.json is used, classes.txt is not")
        return _from_json(as_json, notes)
    if as_text.is_file():
        return _from_text(as_text, notes)
    if folder.name == "SegmentationClass":
        notes.append("no classes.txt: the 21 classes of PASCAL VOC are assumed")
        return VOC
    raise DatasetError(
        f"{root}: no classes.txt; write one name a line, line 1 for id 0 (a line `void` is ignored in training); "
        f"{_ids_found(labels)}"
    )


def _ids_found(labels: Sequence[Path]) -> str:
    values: set[int] = set()
    colours = 0
    for path in labels:
        try:
            found = label_values(path)
        except ImageError as error:
            return str(error)
        colours += any(isinstance(value, tuple) for value in found)
        values |= {value for value in found if isinstance(value, int)}
    if colours:
        return f"the first {len(labels)} label maps hold colours: write classes.json, each with id, name and colour"
    return f"the first {len(labels)} label maps hold the ids {', '.join(map(str, sorted(values)))} (255 is void)"


def _from_text(path: Path, notes: list[str]) -> Classes:
    lines = [line.strip() for line in _text(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) > MOST_CLASSES:
        raise DatasetError(f"{path}: {len(lines):,} lines; expected a name a line, {MOST_CLASSES:,} at most")
    if "" in lines:
        raise DatasetError(
            f"{path}: line {lines.index('') + 1} is empty, and lines count as ids; write a name or `void`"
        )
    ids = list(range(len(lines)))
    numbered = [NUMBERED.fullmatch(line) for line in lines]
    if len(lines) > 1 and all(numbered):
        # The lines of many published lists, such as PASCAL-Context's "1: aeroplane", which begins at 1.
        found, names = [int(m[1]) for m in numbered if m], [m[2] for m in numbered if m]
        if len({*names}) < len(names):  # as of coins: "1 cent", "2 cent"
            notes.append(f"{path.name}: its lines begin with numbers that are part of the names; lines count as ids")
        elif found != sorted(set(found)):
            raise DatasetError(
                f"{path}: every line begins with a number, as an id, but they do not ascend; sort them, or if they are "
                "part of the names, write classes.json"
            )
        else:
            ids, lines = found, names
            notes.append(f"{path.name}: the numbers that its lines begin with are taken for ids, {ids[0]}..{ids[-1]}")
    entries = []
    for i, line in zip(ids, lines, strict=True):
        marked = line.lower().endswith(" ignore")
        name = line[: -len(" ignore")].strip() if marked else line
        entries.append({"id": i, "name": name, "colour": voc_colour(i), "ignore": marked or name.lower() in VOID_NAMES})
    return _table(path, entries, notes)


def _from_json(path: Path, notes: list[str]) -> Classes:
    try:
        data = parse_json(_text(path))
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from None
    if not isinstance(data, list) or not all(isinstance(e, dict) and type(e.get("id")) is int for e in data):
        raise DatasetError(f'{path}: expected a list such as [{{"id": 0, "name": "sky", "colour": [0, 0, 255]}}]')
    if len(data) > MOST_CLASSES:
        raise DatasetError(f"{path}: {len(data):,} classes; expected {MOST_CLASSES:,} at most")
    entries = []
    for entry in sorted(data, key=lambda entry: entry["id"]):
        name = str(entry.get("name", ""))
        colour = entry.get("colour", entry.get("color", voc_colour(entry["id"])))
        rest = {key: value for key, value in entry.items() if key != "color"}
        entries.append({"ignore": name.lower() in VOID_NAMES} | rest | {"colour": colour})
    return _table(path, entries, notes)


def _table(path: Path, entries: list[dict[str, object]], notes: list[str]) -> Classes:
    classes = Classes.parse({"entries": entries}, source=str(path))
    if void := [f"{c.name} (id {c.id})" for c in classes.entries if c.ignore]:
        notes.append(f"{path.name}: {len(classes)} classes; void: {', '.join(void)}")
    return classes


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
