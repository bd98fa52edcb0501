"""Pictures read and label maps written some rows at a time, so that neither need ever be whole in memory.

TIFF, BigTIFF, GeoTIFF and PNG are read through rasterio (the extra ``geo``), from top to bottom. What its decoders do
not give as `fullyconv.images` would (a JPEG, whose colours are spread otherwise; an EXIF orientation; an interlaced
PNG) and any file where rasterio is not installed is decoded whole, into 3 bytes a pixel, and a note says so. Label
maps are written as PNG, here, or as Cloud-Optimised GeoTIFF, through rasterio.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fullyconv import images
from fullyconv.config import Classes, voc_colour
from fullyconv.errors import ConfigError, ImageError
from fullyconv.images import UInt8
from fullyconv.labels import Labels
from fullyconv.opening import MAX_PIXELS, Array

Mask = npt.NDArray[np.bool_]

TIFF = frozenset((".tif", ".tiff"))
_CACHE = 128 << 20
"""Bytes of decoded blocks that GDAL may keep, in place of a twentieth of the machine's memory."""


def installed() -> bool:
    """Whether rasterio is there (the extra ``geo``)."""
    return importlib.util.find_spec("rasterio") is not None


@dataclass(frozen=True)
class Georeference:
    """Where on the earth a raster lies, as rasterio says it."""

    crs: Any
    transform: Any
    gcps: Any = None
    rpcs: Any = None


class Source(Protocol):
    """A picture of which rows can be read.

    Attributes:
        size: (height, width) in pixels.
        notes: what was done to the picture on the way in.
        place: where it lies on the earth, if it says so.
    """

    size: tuple[int, int]
    notes: tuple[str, ...]
    place: Georeference | None

    def rows(self, start: int, stop: int) -> tuple[UInt8, Mask | None]:
        """(rows, W, 3) uint8 RGB, and (rows, W) True where there are no data, None where there are everywhere.

        Asked for from top to bottom.
        """
        ...


# --- reading ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Iterator[Source]:
    """Open a picture for reading by rows.

    Grey, RGB and palettes of 8 bits, and grey and RGB of 16, become what `images.read_image` makes of them. Where a
    TIFF says that a pixel has no data (its no-data value in all bands, or 0 in its mask or alpha), that is said, too.

    Args:
        path: a file.
        max_pixels: most pixels that a file may declare which has to be decoded whole; see `images.read_image`. What can
            be read by rows may declare any number.

    Raises:
        ImageError: no picture, truncated or corrupt, or of numbers that have no meaning as colour.
    """
    path = Path(path)
    why = "rasterio is not installed (pip install 'fullyconv[geo]')"
    if installed():
        with contextlib.ExitStack() as stack:
            dataset = _dataset(path, stack)
            why = "it is neither TIFF nor PNG" if dataset is None else _why_not_by_rows(path, dataset)
            if not why:
                yield _Rows(path, dataset)
                return
    yield _Whole(path, why, max_pixels)


def georeferenced(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a TIFF that says where on the earth it lies, and rasterio is there to keep that."""
    if Path(path).suffix.lower() not in TIFF or not installed():
        return False
    with contextlib.ExitStack() as stack:
        dataset = _dataset(Path(path), stack)
        return dataset is not None and _place(dataset) is not None


_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG", b"II*\x00": "GTiff", b"MM\x00*": "GTiff", b"II+\x00": "GTiff", b"MM\x00+": "GTiff",
}  # fmt: skip


def _dataset(path: Path, stack: contextlib.ExitStack) -> Any:
    """The open dataset; None where it is no format that is read by rows, or one that cannot be read."""
    import rasterio
    from rasterio.errors import RasterioError

    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(8)
    driver = next((name for magic, name in _STARTS.items() if start.startswith(magic)), None)
    if driver is None:
        return None
    stack.enter_context(_session())
    try:
        return stack.enter_context(rasterio.open(path, driver=driver))
    except RasterioError:
        return None


class _Whole:
    """A picture that is decoded at once."""

    place: Georeference | None = None

    def __init__(self, path: Path, why: str, max_pixels: int) -> None:
        read = images.read_image(path, max_pixels=max_pixels)
        self._pixels = read.pixels
        self.size = read.pixels.shape[0], read.pixels.shape[1]
        self.notes = (*read.notes, f"decoded whole, 3 bytes a pixel, since {why}")

    def rows(self, start: int, stop: int) -> tuple[UInt8, Mask | None]:
        return self._pixels[start:stop], None


class _Rows:
    """A picture that rasterio reads."""

    def __init__(self, path: Path, dataset: Any) -> None:
        from rasterio.enums import ColorInterp, MaskFlags

        self._path, self._dataset = path, dataset
        self.size = dataset.height, dataset.width
        self.place = _place(dataset)
        if {str(kind) for kind in dataset.dtypes} not in ({"uint8"}, {"uint16"}):
            raise ImageError(
                path,
                f"{' and '.join(sorted(set(dataset.dtypes)))} numbers, of which nothing says what is white; expected "
                "uint8: scale it, for instance with gdal_translate -ot Byte -scale",
            )
        meaning = list(dataset.colorinterp)
        self._palette = _palette_of(dataset) if meaning[0] == ColorInterp.palette else None
        self._alpha = meaning.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in meaning else None
        colours = [i + 1 for i, kind in enumerate(meaning) if kind != ColorInterp.alpha]
        named = [meaning.index(c) + 1 for c in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) if c in meaning]
        self._bands = named if len(named) == 3 else colours[:3] if len(colours) >= 3 else colours[:1]
        self._masked = dataset.driver == "GTiff" and any(
            MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums
        )
        notes = []
        if len(colours) > len(self._bands):
            notes.append(f"{len(colours)} bands, of which {', '.join(map(str, self._bands))} are used")
        if dataset.dtypes[0] == "uint16":
            how = "divided by 257" if len(self._bands) == 1 else "the upper 8 are kept"
            notes.append(f"16 bits a channel scaled to 8 ({how})")
        if self._alpha:
            notes.append("transparent parts composed on (255, 255, 255)")
        self.notes = tuple(notes)

    def rows(self, start: int, stop: int) -> tuple[UInt8, Mask | None]:
        # In parts whose bands all fit GDAL's cache, and that end where its blocks do: what falls out of the cache is
        # decoded again, in a PNG from the top.
        block = self._dataset.block_shapes[0][0]
        step = max(_CACHE // 4 // (self.size[1] * self._dataset.count) // block, 1) * block
        cuts = [start, *range((start // step + 1) * step, stop, step), stop]
        parts = [self._read(top, bottom) for top, bottom in itertools.pairwise(cuts)]
        void = [void for _, void in parts if void is not None]
        return np.concatenate([pixels for pixels, _ in parts]), np.concatenate(void) if void else None

    def _read(self, start: int, stop: int) -> tuple[UInt8, Mask | None]:
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        window = Window(0, start, self.size[1], stop - start)
        bands = [*self._bands, self._alpha] if self._alpha else self._bands
        try:
            read = np.moveaxis(self._dataset.read(bands, window=window), 0, -1)
            void = self._dataset.dataset_mask(window=window) == 0 if self._masked else None
        except RasterioError as error:
            raise ImageError(self._path, f"truncated or corrupt: {_said(error)}") from None
        if read.dtype == np.uint16:
            wide = read.astype(np.uint32)
            read = ((wide + 128) // 257 if len(self._bands) == 1 else wide >> 8).astype(np.uint8)
        if self._palette is not None:
            return self._palette[read[..., 0]], void
        if read.shape[2] == 1:
            read = read[..., 0]
        elif read.shape[2] == 2:
            read = read[..., (0, 0, 0, 1)]
        return images.read_image(np.ascontiguousarray(read)).pixels, void


def _why_not_by_rows(path: Path, dataset: Any) -> str:
    """Why `fullyconv.images` has to read the file, which knows more of pictures than GDAL; "" if it need not."""
    if dataset.driver == "GTiff":
        if dataset.photometric is not None and dataset.photometric.name in ("cmyk", "cielab", "icclab", "itulab"):
            return f"it is a TIFF in {dataset.photometric.name}"
        return "it is a TIFF that lies on its side" if _orientation(path) != 1 else ""
    return _why_not_png(path)


def _why_not_png(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(29)
        depth, colour, interlaced = head[24], head[25], head[28]
        if interlaced:
            return "it is an interlaced PNG"
        if depth != 8 or colour == 3:
            return "it is a PNG of a palette" if colour == 3 else f"it is a PNG of {depth} bits"
        file.seek(33)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"tRNS":
                return "it is a PNG with a transparent colour"
            keyword = file.read(min(length, 32)) if kind in (b"zTXt", b"tEXt", b"iTXt") else b""
            if kind == b"eXIf" or b"exif" in keyword:
                return "it is a PNG with EXIF data"
            file.seek(length + 4 - len(keyword), os.SEEK_CUR)
    return ""


def _orientation(path: Path) -> int:
    """Of the first picture of a TIFF, 1..8."""
    with path.open("rb") as file:
        order = {b"II": "<", b"MM": ">"}.get(file.read(2), "<")
        big = struct.unpack(f"{order}H", file.read(2))[0] == 43
        file.seek(8 if big else 4)
        file.seek(struct.unpack(order + ("Q" if big else "I"), file.read(8 if big else 4))[0])
        entries = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))[0]
        for _ in range(min(entries, 1 << 16)):
            entry = file.read(20 if big else 12)
            if len(entry) >= 12 and struct.unpack(f"{order}H", entry[:2])[0] == 0x0112:
                at = 12 if big else 8
                return int(struct.unpack(f"{order}H", entry[at : at + 2])[0])
    return 1


def _palette_of(dataset: Any) -> UInt8:
    palette = np.zeros((256, 3), np.uint8)
    for value, colour in dataset.colormap(1).items():
        if value < 256:
            palette[value] = colour[:3]
    return palette


def _place(dataset: Any) -> Georeference | None:
    gcps, gcps_crs = dataset.gcps
    crs = dataset.crs or gcps_crs
    if crs is None and dataset.transform.is_identity and not gcps and not dataset.rpcs:
        return None
    return Georeference(crs, dataset.transform, gcps or None, dataset.rpcs)


@contextlib.contextmanager
def _session() -> Iterator[None]:
    """GDAL with little cache, and silent: what goes wrong is raised."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    log = logging.getLogger("rasterio")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    log.propagate = False
    # Not catch_warnings, which would restore a list that readers in other threads have since replaced.
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)
    with rasterio.Env(GDAL_CACHEMAX=_CACHE, CPL_LOG_ERRORS="OFF"):
        yield


def _said(error: BaseException) -> str:
    error = error.__cause__ or error
    return " ".join(str(error).split())[:200]


# --- writing ----------------------------------------------------------------------------------------------------------


class Target(Protocol):
    """A label map that is written row by row."""

    def write(self, indices: Labels) -> None:
        """The next rows, (rows, W) channel numbers or void."""
        ...


@contextlib.contextmanager
def created(
    path: str | os.PathLike[str], size: tuple[int, int], classes: Classes, *, place: Georeference | None = None
) -> Iterator[Target]:
    """Create a label map of class ids, .png or .tif, that appears when all rows are written, or not at all.

    A PNG has the classes' colours as palette (16-bit grey where ids are above 255) and is what `write_labels`
    writes. A TIFF is cloud-optimised (tiles of 512, compressed, with overviews), has the colours as colour table, the
    void id as no-data value and the table of classes as JSON in its tag ``CLASSES``.

    Args:
        path: of the file.
        size: (height, width) in pixels.
        classes: the table of ids, colours and void classes.
        place: where it lies on the earth; a PNG has no place for that.

    Raises:
        ImageError: another suffix, or the folder cannot be written.
        ConfigError: a TIFF, and rasterio is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix != ".png" and suffix not in TIFF:
        raise ImageError(path, f"label maps are written as .png or .tif, which keep ids exactly; got {suffix!r}")
    if suffix in TIFF and not installed():
        raise ConfigError(
            f"{path}: TIFF is written by rasterio; pip install 'fullyconv[geo]', or write .png", where="target"
        )
    part = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.part{suffix}")
    ids = _Ids(path, classes)
    make = _png if suffix == ".png" else _cog
    try:
        with make(part, size, ids, place) as target:
            yield target
        part.replace(path)
    except OSError as error:
        raise ImageError(path, f"cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


class _Ids:
    """From channel numbers to ids."""

    def __init__(self, path: Path, classes: Classes) -> None:
        self.path, self.classes = path, classes
        used = [entry.id for entry in classes.used]
        self.void = next((entry.id for entry in classes.entries if entry.ignore), classes.void)
        self.of_void = None if self.void in used else self.void
        self.wide = max(*used, self.void) > 255
        self._table = np.zeros(classes.void + 1, np.uint16 if self.wide else np.uint8)
        self._table[: len(used)] = used
        self._table[classes.void] = self.void
        colours = {i: voc_colour(i) for i in range(256)}
        self.colours = colours | {entry.id: entry.colour for entry in classes.entries if entry.id < 256}

    def __call__(self, indices: Labels) -> Array:
        if self.of_void is None and (indices == self.classes.void).any():
            raise ImageError(self.path, f"void pixels, but {self.void} is the id of a class; add a void class")
        return self._table[indices]


@contextlib.contextmanager
def _png(path: Path, size: tuple[int, int], ids: _Ids, _: Georeference | None) -> Iterator[Target]:
    height, width = size
    with path.open("xb") as file:

        def chunk(kind: bytes, data: bytes) -> None:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))

        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16 if ids.wide else 8, 0 if ids.wide else 3, 0, 0, 0))
        if not ids.wide:
            chunk(b"PLTE", bytes(channel for i in range(256) for channel in ids.colours[i]))
        packer = zlib.compressobj(6)

        class Rows:
            def write(self, indices: Labels) -> None:
                values = ids(indices)
                rows = values.astype(">u2").view(np.uint8) if ids.wide else values
                # Every row begins with the filter it was put through: 0, none.
                filtered = np.zeros((len(rows), rows.shape[1] + 1), np.uint8)
                filtered[:, 1:] = rows
                if packed := packer.compress(filtered.data):
                    chunk(b"IDAT", packed)

        yield Rows()
        chunk(b"IDAT", packer.flush())
        chunk(b"IEND", b"")


@contextlib.contextmanager
def _cog(path: Path, size: tuple[int, int], ids: _Ids, place: Georeference | None) -> Iterator[Target]:
    """A plain TIFF first, in strips, as rows come; the cloud-optimised one begins with what is known last."""
    import rasterio
    import rasterio.shutil
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    height, width = size
    plain = path.with_name(f"{path.stem}.strips{path.suffix}")
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint16" if ids.wide else "uint8",
        "nodata": ids.of_void, "compress": "deflate", "zlevel": 1, "blockysize": 64, "bigtiff": "if_safer",
    }  # fmt: skip
    if place is not None:
        profile |= {"crs": place.crs, "transform": place.transform}
    table = [entry.model_dump(mode="json") for entry in ids.classes.entries]
    try:
        with _session():
            with rasterio.open(plain, "w", **profile) as dataset:
                if place is not None and place.gcps:
                    dataset.gcps = (place.gcps, place.crs)
                if place is not None and place.rpcs:
                    dataset.rpcs = place.rpcs
                if not ids.wide:
                    dataset.write_colormap(1, ids.colours)
                dataset.update_tags(CLASSES=json.dumps(table))
                dataset.set_band_description(1, "class id")

                class Rows:
                    done = 0

                    def write(self, indices: Labels) -> None:
                        rows = ids(indices)
                        dataset.write(rows, 1, window=Window(0, self.done, width, len(rows)))
                        self.done += len(rows)

                yield Rows()
            options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": 512, "OVERVIEWS": "AUTO", "RESAMPLING": "NEAREST"}
            rasterio.shutil.copy(plain, path, driver="COG", BIGTIFF="IF_SAFER", **options)
    except RasterioError as error:
        raise ImageError(ids.path, f"cannot be written: {_said(error)}") from None
    finally:
        plain.unlink(missing_ok=True)
