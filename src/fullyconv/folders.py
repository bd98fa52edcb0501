"""From many picture files to a folder of label maps: which files, under which names, kept or replaced."""

from __future__ import annotations

import errno
import glob
import json
import os
import sys
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fullyconv import images, rasters, records
from fullyconv.config import MultiScale
from fullyconv.errors import CheckpointError, ConfigError, FullyConvError, ImageError, one_line
from fullyconv.opening import MAX_PIXELS, read_size
from fullyconv.quick import QuickPredictor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from fullyconv.inference import Predictor
    from fullyconv.segmentation import Segmentation


DATA = ("classes.txt", "images", "labels")
"""What stands in a folder of labelled pictures, of which results would change the meaning."""
LARGE = 1 << 25
"""Pictures of more pixels are not held in memory, but read, segmented and written a row of tiles at a time."""


@dataclass(frozen=True)
class PictureFile:
    """A picture to segment and the name of its outputs: ``OUT/{key}.png`` and so on."""

    path: Path
    key: str


@dataclass(frozen=True)
class Outcome:
    """What became of one picture file.

    Attributes:
        path: the picture.
        status: done; kept, since all its outputs were there; or failed.
        outputs: files written or kept, by what they are, such as ``{"labels": Path("out/a.png")}``.
        size: (height, width) in pixels; None unless done.
        area: for each head the share of each class that occurs, 0..1, largest first.
        notes: what was done to the picture on the way in.
        multiscale: how it was looked at; None unless done.
        error: why it failed, one line.
    """

    path: Path
    status: Literal["done", "kept", "failed"]
    outputs: dict[str, Path] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    area: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    multiscale: MultiScale | None = None
    error: str = ""


def with_standard_input(inputs: Sequence[str]) -> list[str]:
    """The inputs, with ``-`` replaced by the paths on standard input: one a line, or ended by NUL (find -print0)."""
    if "-" not in inputs:
        return list(inputs)
    data = sys.stdin.buffer.read()
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    listed = [os.fsdecode(line) for line in lines if line]
    return [path for given in inputs for path in (listed if given == "-" else [given])]


def find_pictures(inputs: Iterable[str | os.PathLike[str]], *, out: Path) -> list[PictureFile]:
    """The picture files among files, folders (with all below them) and glob patterns, each once, with their keys.

    A key is the file's path below the folder it was found in, without suffix; a named file's is its bare name. Where
    two would be the same, as of ``a.jpg`` and ``a.png``, the suffix is kept, and failing that they are numbered.

    Raises:
        ConfigError: an input is neither a file nor a folder and matches none, or there is no picture in any of them.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for given in inputs:
        if not os.fspath(given):
            raise ConfigError("an empty path among the inputs; expected files, folders or patterns", where="inputs")
        matches = list(_expand(os.fspath(given), out.resolve()))
        for path, name in matches:
            found.setdefault(Path(os.path.realpath(path)), (path, name))  # Path.resolve fails on a link to itself
    if not found:
        raise ConfigError("no pictures: expected files, folders or patterns that hold some", where="inputs")
    # Folded, since a.png and A.png are one file on many a disk.
    plain = Counter(str(name.with_suffix("")).casefold() for _, name in found.values())
    taken: set[str] = set()
    pictures = []
    for path, name in found.values():
        stem = name.with_suffix("")
        base = key = str(stem if plain[str(stem).casefold()] == 1 else name)
        number = 1
        while key.casefold() in taken:
            number += 1
            key = f"{base}-{number}"
        taken.add(key.casefold())
        pictures.append(PictureFile(path, key))
    return pictures


def _expand(given: str, out: Path) -> Iterator[tuple[Path, Path]]:
    """Pairs of a file and its name below what was given."""
    path = Path(given)
    if path.is_dir() and path.resolve() == out:
        raise ConfigError(f"{given}: the label maps would lie among the pictures; choose another folder", where="out")
    if path.is_dir():
        yield from _walk(path, out)
    elif path.exists() or not glob.has_magic(given):
        # A named file that is missing fails like one that is damaged: it is reported, and the others are done.
        yield path, Path(path.name)
    else:
        parts = path.parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:fixed])
        matches = sorted(Path(m) for m in glob.glob(given, recursive=True))
        if not matches:
            raise ConfigError(f"{given}: no file matches; expected a file, a folder or a pattern", where="inputs")
        ours = out if out != root.resolve() and out.is_relative_to(root.resolve()) else None
        for match in matches:
            is_ours = ours is not None and Path(os.path.realpath(match)).is_relative_to(ours)
            if match.is_file() and match.suffix.lower() in images.SUFFIXES and not is_ours:
                yield match, match.relative_to(root)


def _walk(folder: Path, out: Path) -> Iterator[tuple[Path, Path]]:
    """Pictures in a folder and below it; not hidden ones, and not our own outputs of an earlier run."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (Path(parent) / f).resolve() != out)
        for file in sorted(files):
            if not file.startswith(".") and Path(file).suffix.lower() in images.SUFFIXES:
                path = Path(parent) / file
                yield path, path.relative_to(folder)


def segment_files(
    predictor: Predictor | QuickPredictor,
    pictures: Sequence[PictureFile],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    overwrite: bool = False,
    batch_size: int = 1,
    weights: str = "",
    begin: Callable[[Mapping[str, Mapping[str, Path]]], None] = lambda targets: None,
) -> Iterator[Outcome]:
    """Segment files into a folder: ``OUT/{key}.png``, and ``.overlay.jpg`` and ``.npz`` where asked for.

    Decoding, computing and encoding overlap. A model with several heads writes ``{key}.{head}.png`` and so on. Each
    file is written whole or not at all. A GeoTIFF becomes a GeoTIFF, ``OUT/{key}.tif``, where rasterio is installed; it
    and pictures of more than `LARGE` pixels come last, by `fullyconv.streaming`, which has a limit of pixels of its own
    unless the predictor's is below the default. Where more than labels are asked for, all that is done in memory.

    Args:
        predictor: made with ``probabilities=True`` where they are asked for.
        pictures: as `find_pictures` gives them.
        out: folder, created where missing.
        overlay: write the picture with the classes laid over it, too.
        probabilities: write the probability of every class at every pixel, too.
        overwrite: write again what exists; otherwise that is kept, and a picture all of whose outputs exist is not
            even read.
        batch_size: neighbours of equal size that go through the net together.
        weights: what tells the model's weights from others, such as their SHA-256; "" where nobody compares them.
        begin: called with the outputs of each picture, by its key, when all has been looked at and nothing written.

    Yields:
        What became of each picture, as it becomes known.

    Raises:
        ConfigError: an output would replace one of the pictures or lie outside of ``out``, or ``out`` cannot be made;
            or what would be kept is of another picture of the same name, or of a model with other classes or weights,
            or other looks; or the disk is full.
    """
    kinds = (
        {"labels": ".png"}
        | ({"overlay": ".overlay.jpg"} if overlay else {})
        | ({"probabilities": ".npz"} if probabilities else {})
    )
    heads = {"" if len(predictor.classes) == 1 else f".{head}": head for head in predictor.classes}
    only_labels = not overlay and not probabilities
    placed = {p.key for p in pictures if only_labels and rasters.georeferenced(p.path)}
    targets = {
        p.key: {
            kind + head: out / f"{p.key}{head}{'.tif' if p.key in placed else suffix}"
            for head in heads
            for kind, suffix in kinds.items()
        }
        for p in pictures
    }
    _refuse_to_harm(pictures, targets, out)
    if not overwrite:
        _refuse_to_mix(predictor, pictures, targets, out, weights=weights, placed=placed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be made: {error.strerror}", where="out") from None
    begin(targets)
    todo: list[PictureFile] = []
    for picture in pictures:
        if not overwrite and all(target.exists() for target in targets[picture.key].values()):
            yield Outcome(picture.path, "kept", targets[picture.key])
        else:
            todo.append(picture)
    by_source = {os.fspath(picture.path): targets[picture.key] for picture in todo}
    failed: list[Outcome] = []

    def skip(picture: images.Picture, error: FullyConvError) -> None:
        failed.append(Outcome(Path(str(picture)), "failed", error=str(error)))

    def unread() -> Iterator[Outcome]:
        while failed:
            yield failed.pop(0)

    by_rows: list[PictureFile] = []

    def at_once() -> Iterator[Path]:
        for picture in todo:
            if picture.key in placed or (only_labels and _is_large(picture.path, predictor)):
                by_rows.append(picture)
            else:
                yield picture.path

    writing: deque[Future[Outcome]] = deque()
    with ThreadPoolExecutor(2, thread_name_prefix="write") as writers:
        pixels = predictor.map(at_once(), batch_size=batch_size, on_error=skip)
        for segmentation in pixels:
            targets_of = by_source[segmentation.source]
            writing.append(writers.submit(_write, segmentation, targets_of, overwrite, predictor.multiscale))
            yield from unread()
            # A result holds a picture, so only a few may wait for the disk.
            while len(writing) > 4:
                yield writing.popleft().result()
        yield from unread()
        for future in writing:
            yield future.result()
    for picture in by_rows:
        yield _stream(predictor, picture.path, targets[picture.key], overwrite)


def _is_large(path: Path, predictor: Predictor | QuickPredictor) -> bool:
    if isinstance(predictor, QuickPredictor):
        return False  # it takes small ones only, and knows no torch
    from fullyconv import streaming

    if _tile_of(predictor.strategy) == 0:
        return False
    try:
        height, width = read_size(path, max_pixels=streaming.MAX_PIXELS)
    except ImageError:
        return False  # `read_image` will say what is wrong
    return height * width > LARGE


def _tile_of(strategy: object) -> int | None:
    """The tile of a strategy, None where it is to be chosen; 0 where the user wants no tiles, or other ones."""
    from fullyconv.inference import choose
    from fullyconv.tiling import tiled

    if isinstance(strategy, partial) and strategy.func is tiled:
        return strategy.keywords.get("tile")
    return None if strategy in (choose, tiled) else 0


def _stream(predictor: Predictor | QuickPredictor, path: Path, targets: Mapping[str, Path], overwrite: bool) -> Outcome:
    from fullyconv import streaming

    assert not isinstance(predictor, QuickPredictor)
    heads = {kind: kind.removeprefix("labels").removeprefix(".") for kind in targets}
    only = next(iter(predictor.classes))
    wanted = {heads[kind] or only: target for kind, target in targets.items() if overwrite or not target.exists()}
    limit = predictor.max_pixels
    try:
        for target in wanted.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        result = streaming.segment_raster(
            predictor,
            path,
            wanted,
            tile=_tile_of(predictor.strategy) or None,
            max_pixels=limit if limit < MAX_PIXELS else max(limit, streaming.MAX_PIXELS),
        )
    except (OSError, FullyConvError) as error:
        _refuse_full(error, target)
        return Outcome(path, "failed", error=one_line(str(error)))
    area = {
        head: {n: shares[n] for n in sorted(shares, key=lambda n: -shares[n]) if shares[n]}
        for head, shares in result.area.items()
    }
    return Outcome(
        path, "done", outputs=dict(targets), size=result.size, area=area, notes=result.notes, multiscale=MultiScale()
    )


def _refuse_to_harm(pictures: Sequence[PictureFile], targets: Mapping[str, Mapping[str, Path]], out: Path) -> None:
    written = [target for outputs in targets.values() for target in outputs.values()]
    refuse_replacing(written, [picture.path for picture in pictures], "pictures")
    for target in written:
        refuse_escape(target, out)


def _refuse_to_mix(
    predictor: Predictor | QuickPredictor,
    pictures: Sequence[PictureFile],
    targets: Mapping[str, Mapping[str, Path]],
    out: Path,
    *,
    weights: str,
    placed: Collection[str],
) -> None:
    """Refuse to keep what an earlier run has made of another picture, or otherwise, as this one's.

    Args:
        weights: what tells them from others, or "".
        placed: keys of pictures that are looked at once whatever the model's looks.
    """
    looks, once = str(predictor.multiscale), str(MultiScale())
    kept = [picture for picture in pictures if any(target.exists() for target in targets[picture.key].values())]
    owners = _by_output(_earlier(out / "results.json"))
    for picture in kept:
        for target in targets[picture.key].values():
            owner = owners.get(target.relative_to(out).as_posix())
            if owner is not None and target.exists() and not _is_of(owner, picture.path, out):
                other = os.path.normpath(out / str(owner["picture"])) if "picture" in owner else owner["input"]
                raise ConfigError(
                    f"{target}: is there, made of {other}, not of {picture.path}; name another --out, or add "
                    "--overwrite",
                    where="out",
                )
            if owner is None or not target.exists():
                continue
            if weights and owner.get("weights", weights) != weights:
                raise ConfigError(
                    f"{target}: is there, made with other weights; name another --out, or add --overwrite", where="out"
                )
            looked = owner.get("multiscale", looks)
            if looked != looks and not (
                looked == once and (picture.key in placed or _is_large(picture.path, predictor))
            ):
                raise ConfigError(
                    f"{target}: is there, looked at {looked}, not {looks}; name another --out, or add --overwrite",
                    where="out",
                )
    for name, table in _tables(predictor).items() if kept else ():
        with suppress(CheckpointError):  # none is there, or nobody's
            if records.read_json(out / name) != table:
                raise ConfigError(
                    f"{out / name}: a model of other classes has made what is there; name another --out, or add "
                    "--overwrite",
                    where="out",
                )


def _by_output(earlier: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {output: record for record in earlier.values() for output in record.get("outputs", {}).values()}


def _is_of(record: Mapping[str, Any], path: Path, out: Path) -> bool:
    """Whether a record is of this picture, in whatever folder of work it was named."""
    if "picture" in record:
        return os.path.realpath(out / str(record["picture"])) == os.path.realpath(path)
    # Records of before have the name alone, as it was given.
    named = str(record["input"])
    if os.path.realpath(named) == os.path.realpath(path):
        return True
    tail = Path(os.path.normpath(named)).parts
    return len(tail) > 1 and tail == Path(os.path.abspath(path)).parts[-len(tail) :]


def _tables(predictor: Predictor | QuickPredictor) -> dict[str, list[dict[str, Any]]]:
    """The tables of classes, by the name of the file that each is written to."""
    several = len(predictor.classes) > 1
    return {
        f"classes.{head}.json" if several else "classes.json": [
            entry.model_dump(mode="json") for entry in table.entries
        ]
        for head, table in predictor.classes.items()
    }


def refuse_replacing(targets: Iterable[Path], sources: Iterable[Path], what: str) -> None:
    """Refuse outputs that are one of the files they are made of, by whatever links; ``what`` those are.

    Raises:
        ConfigError: names the output.
    """
    there = {os.path.realpath(source) for source in sources}
    for target in targets:
        if os.path.realpath(target) in there:
            raise ConfigError(f"{target}: would replace one of the {what}; choose another folder", where="out")


def refuse_escape(target: Path, out: Path) -> None:
    """Refuse an output whose folder lies outside of ``out``, by a link in it, say.

    Raises:
        ConfigError: names the output.
    """
    if not Path(os.path.realpath(target.parent)).is_relative_to(os.path.realpath(out)):
        raise ConfigError(f"{target}: a link leads out of {out}; remove it or choose another folder", where="out")


def _write(segmentation: Segmentation, targets: Mapping[str, Path], overwrite: bool, multiscale: MultiScale) -> Outcome:
    heads = {"" if len(segmentation.labels) == 1 else f".{head}": head for head in segmentation.labels}
    area = {}
    try:
        for suffix, head in heads.items():
            for kind, write in (
                ("labels", segmentation.save),
                ("overlay", segmentation.save_overlay),
                ("probabilities", segmentation.save_probabilities),
            ):
                target = targets.get(kind + suffix)
                if target is not None and (overwrite or not target.exists()):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write(target, head)
            shares = segmentation.area(head)
            area[head] = {n: shares[n] for n in sorted(shares, key=lambda n: -shares[n]) if shares[n]}
    except (OSError, FullyConvError) as error:
        _refuse_full(error, target)
        return Outcome(
            Path(segmentation.source), "failed", error=one_line(f"{segmentation.source}: not written: {error}")
        )
    return Outcome(
        Path(segmentation.source),
        "done",
        outputs=dict(targets),
        size=segmentation.size,
        area=area,
        notes=segmentation.notes,
        multiscale=multiscale,
    )


def _refuse_full(error: Exception, target: Path | None) -> None:
    """Stop where no other picture could be written either, before all of them are computed for nothing.

    Raises:
        ConfigError: there is no space left.
    """
    reasons = [reason for reason in (error, error.__cause__) if isinstance(reason, OSError)]
    if any(reason.errno in (errno.ENOSPC, errno.EDQUOT) for reason in reasons):
        raise ConfigError(
            f"{target}: no space left; make room and run the same again, which keeps what is done", where="out"
        ) from None


def begin_results(
    pictures: Sequence[PictureFile],
    targets: Mapping[str, Mapping[str, Path]],
    out: Path,
    *,
    weights: str,
    settings: Mapping[str, Any],
) -> None:
    """Write down in ``results.json`` which files are about to be written, so that they are known for ours if we stop.

    Args:
        pictures, targets: as `segment_files` has them.
        weights: as there.
        settings: as for `write_results`.

    Raises:
        ConfigError: a file is there of which no ``results.json`` says that predict has made it; or nothing can be
            written.
    """
    path = out / "results.json"
    earlier = _earlier(path)
    made = _by_output(earlier)
    begun = []
    for picture in pictures:
        outputs = {kind: target.relative_to(out).as_posix() for kind, target in targets[picture.key].items()}
        for output in outputs.values():
            if output not in made and (out / output).exists():
                raise ConfigError(
                    f"{out / output}: is there, and was not made by predict; name another --out", where="out"
                )
        if not any(output in made for output in outputs.values()):
            begun.append(_record(picture.path, out) | {"status": "begun", "outputs": outputs, "weights": weights})
    if begun:
        with records.writing(out):
            records.write_json(path, {**settings, "files": [*earlier.values(), *begun]})


def _record(path: Path, out: Path) -> dict[str, Any]:
    """What names a picture in ``results.json``."""
    where = Path(os.path.relpath(os.path.realpath(path), os.path.realpath(out))).as_posix()
    return {"input": os.fspath(path), "picture": where}


def write_results(
    predictor: Predictor | QuickPredictor,
    outcomes: Sequence[Outcome],
    out: Path,
    *,
    settings: Mapping[str, Any],
    weights: str = "",
) -> Path:
    """Write ``results.json``, what became of each picture, and ``classes.json``, what the ids in the PNGs mean.

    ``classes.json`` has the form that the folder dataset reads, one file a head where there are several. What an
    earlier ``results.json`` says of other pictures, or of one whose outputs were kept, stays in, but for what was
    replaced. ``input`` is the picture as it was named, ``picture`` its path from ``out``, ``weights`` what tells the
    weights that made its outputs from others. Sizes are in pixels, shares in 0..1.

    Returns:
        The path of ``results.json``.
    """
    path = out / "results.json"
    earlier = _earlier(path)
    made = _by_output(earlier)
    for name, table in _tables(predictor).items():
        records.write_json(out / name, table)
    named = {os.fspath(outcome.path) for outcome in outcomes}
    ours = {target.relative_to(out).as_posix() for outcome in outcomes for target in outcome.outputs.values()}
    files = [
        record
        for source, record in earlier.items()
        if source not in named and ours.isdisjoint(record.get("outputs", {}).values())
    ]
    for outcome in sorted(outcomes, key=lambda outcome: outcome.path):
        record = _record(outcome.path, out) | {"status": outcome.status}
        if outcome.status == "kept":
            outputs = [target.relative_to(out).as_posix() for target in outcome.outputs.values()]
            record = next((made[output] for output in outputs if output in made), {}) | record
        if outcome.outputs:
            record["outputs"] = {kind: target.relative_to(out).as_posix() for kind, target in outcome.outputs.items()}
        if outcome.size is not None:
            record |= {"height": outcome.size[0], "width": outcome.size[1], "area": outcome.area}
            record |= {"weights": weights} if weights else {}
        if outcome.multiscale is not None:
            record["multiscale"] = str(outcome.multiscale)
        if outcome.notes:
            record["notes"] = list(outcome.notes)
        if outcome.error:
            record["error"] = outcome.error
        files.append(record)
    counts = Counter(outcome.status for outcome in outcomes)
    totals = {status: counts[status] for status in ("done", "kept", "failed")}
    records.write_json(path, {**settings, **totals, "files": files})
    return path


def refuse_foreign(out: Path) -> None:
    """Refuse a folder whose ``results.json`` or ``classes.json`` are somebody else's, such as a run, and a data set.

    Raises:
        ConfigError: names the file.
    """
    ours = bool(_earlier(out / "results.json"))
    for path in [out / "results.json", *out.glob("classes*.json"), *(out / name for name in DATA)]:
        if path.exists() and not ours:
            raise ConfigError(
                f"{path}: was not written by predict, and lies where its files would; name another --out",
                where="out",
            )


def _earlier(path: Path) -> dict[str, dict[str, Any]]:
    """Records of an earlier run by input; none where there is no such file, or one that is not ours."""
    try:
        return {record["input"]: record for record in json.loads(path.read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}
