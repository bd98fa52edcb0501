"""Rows of pictures in, rows of label maps out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fullyconv import images, rasters
from fullyconv.config import Classes
from fullyconv.errors import ConfigError, ImageError
from fullyconv.labels import read_labels, write_labels

needs_rasterio = pytest.mark.skipif(not rasters.installed(), reason="rasterio (the extra geo) is not installed")
CLASSES = Classes.of("sky", "road", "cat")


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def read(path: Path, step: int = 7) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """All rows of a picture, some at a time."""
    with rasters.opened(path) as source:
        height = source.size[0]
        parts = [source.rows(start, min(start + step, height)) for start in range(0, height, step)]
        void = None if parts[0][1] is None else np.concatenate([v for _, v in parts])
        return np.concatenate([pixels for pixels, _ in parts]), void, source.notes


def save(path: Path, mode: str, **options: object) -> Path:
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "P": (), "I;16": (), "1": ()}[mode]
    values = noise(40, 50, *channels, dtype=np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(values)
    if mode in ("P", "1"):
        image = image.convert(mode)
    assert image.mode == mode
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("grey.png", "L", {}),
        ("rgb.png", "RGB", {}),
        ("rgba.png", "RGBA", {}),
        ("grey-alpha.png", "LA", {}),
        ("palette.png", "P", {}),
        ("wide.png", "I;16", {}),
        ("bits.png", "1", {}),
        ("turned.png", "RGB", {"exif": {0x0112: 6}}),
        ("rgb.jpg", "RGB", {"quality": 90}),
        ("turned.jpg", "RGB", {"exif": {0x0112: 8}}),
        ("rgb.tif", "RGB", {}),
        ("grey.tif", "L", {"compression": "tiff_lzw"}),
        ("rgba.tif", "RGBA", {"compression": "tiff_deflate"}),
        ("palette.tif", "P", {}),
        ("wide.tif", "I;16", {}),
        ("turned.tif", "RGB", {"tiffinfo": {0x0112: 3}}),
        ("rgb.webp", "RGB", {"lossless": True}),
        ("rgb.bmp", "RGB", {}),
    ],
)
def test_rows_are_those_of_the_picture_that_is_read_whole(
    tmp_path: Path, name: str, mode: str, options: dict[str, object]
) -> None:
    if isinstance(given_exif := options.get("exif"), dict):
        exif = Image.Exif()
        exif.update(given_exif)
        options = {"exif": exif}
    path = save(tmp_path / name, mode, **options)
    pixels, _, notes = read(path)
    np.testing.assert_array_equal(pixels, images.read_image(path).pixels)
    by_rows = {"grey.png", "rgb.png", "rgba.png", "grey-alpha.png"}
    by_rows |= {"rgb.tif", "grey.tif", "rgba.tif", "palette.tif", "wide.tif"}
    whole = [note for note in notes if note.startswith("decoded whole, 3 bytes a pixel, since")]
    assert len(whole) == (name not in by_rows or not rasters.installed())


def test_without_rasterio_a_picture_is_decoded_whole_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rasters, "installed", lambda: False)
    path = save(tmp_path / "a.png", "RGB")
    pixels, void, notes = read(path)
    np.testing.assert_array_equal(pixels, images.read_image(path).pixels)
    assert void is None
    assert notes == ("decoded whole, 3 bytes a pixel, since rasterio is not installed (pip install 'fullyconv[geo]')",)
    assert not rasters.georeferenced(path)
    with (
        pytest.raises(ConfigError, match=r"TIFF is written by rasterio; pip install 'fullyconv\[geo\]'"),
        rasters.created(tmp_path / "b.tif", (4, 5), CLASSES),
    ):
        pass


@pytest.mark.parametrize("name", ["none.png", "broken.png", "broken.tif", "text.jpg"])
def test_what_is_no_picture_is_refused_as_images_refuses_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("broken"):
        data = save(path, "RGB").read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif name.startswith("text"):
        path.write_text("no picture")
    with pytest.raises(ImageError, match=name):
        read(path)


# --- GeoTIFF ----------------------------------------------------------------------------------------------------------


def geotiff(path: Path, values: np.ndarray, **profile: object) -> Path:
    """Write (bands, H, W)."""
    import rasterio
    from affine import Affine

    options = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)}
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=count, dtype=values.dtype, **options | profile
    ) as dataset:
        dataset.write(values)
    return path


@needs_rasterio
def test_pixels_without_data_are_told(tmp_path: Path) -> None:
    values = noise(3, 20, 30)
    values[:, 4:9, 7:11] = 0
    values[0, 15, 15] = 0  # in one band only: that is a colour
    _, void, _ = read(geotiff(tmp_path / "a.tif", values, nodata=0))
    expected = (values == 0).all(0)
    assert void is not None
    np.testing.assert_array_equal(void, expected)
    assert read(geotiff(tmp_path / "b.tif", values))[1] is None


@needs_rasterio
def test_bands_beyond_colour_are_left_out_and_that_is_said(tmp_path: Path) -> None:
    values = noise(5, 20, 30)
    pixels, _, notes = read(geotiff(tmp_path / "a.tif", values, photometric="RGB"))
    np.testing.assert_array_equal(pixels, np.moveaxis(values[:3], 0, 2))
    assert any("bands, of which 1, 2, 3 are used" in note for note in notes)


@needs_rasterio
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_numbers_without_a_meaning_as_colour_are_refused(tmp_path: Path, dtype: str) -> None:
    path = geotiff(tmp_path / "a.tif", noise(3, 8, 8).astype(dtype))
    message = rf"a\.tif: {dtype} numbers, of which nothing says what is white; expected uint8: scale it"
    with pytest.raises(ImageError, match=message):
        read(path)


@needs_rasterio
def test_what_is_georeferenced_is_told_from_what_is_not(tmp_path: Path) -> None:
    assert rasters.georeferenced(geotiff(tmp_path / "a.tif", noise(3, 8, 8)))
    assert not rasters.georeferenced(save(tmp_path / "b.tif", "RGB"))
    assert not rasters.georeferenced(save(tmp_path / "c.png", "RGB"))
    assert not rasters.georeferenced(tmp_path / "none.tif")
    (tmp_path / "d.tif").write_text("no TIFF")
    assert not rasters.georeferenced(tmp_path / "d.tif")


# --- writing ----------------------------------------------------------------------------------------------------------


def write(path: Path, labels: np.ndarray, classes: Classes, cuts: list[int], **options: object) -> None:
    with rasters.created(path, labels.shape, classes, **options) as target:
        for rows in np.split(labels, sorted(cuts)):
            target.write(rows)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from((1, 3, 255, 300)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.lists(st.integers(0, 40), max_size=4),
    st.booleans(),
)
def test_a_png_written_by_rows_holds_what_one_written_at_once_does(
    tmp_path_factory: pytest.TempPathFactory, count: int, height: int, width: int, cuts: list[int], with_void: bool
) -> None:
    folder = tmp_path_factory.mktemp("png")
    classes = Classes.of(*(f"c{i}" for i in range(count)))
    labels = np.random.default_rng(height).integers(0, count, (height, width)).astype(np.uint16)
    if with_void:
        labels[0, 0] = classes.void
    write(folder / "rows.png", labels, classes, [min(cut, height) for cut in cuts])
    write_labels(folder / "once.png", labels, classes)
    one, other = Image.open(folder / "rows.png"), Image.open(folder / "once.png")
    assert one.mode == other.mode
    assert one.getpalette() == other.getpalette()
    np.testing.assert_array_equal(np.array(one), np.array(other))
    np.testing.assert_array_equal(read_labels(folder / "rows.png", classes=classes), labels)


@needs_rasterio
@pytest.mark.parametrize("size", [(30, 40), (700, 1100)])
def test_a_geotiff_keeps_its_place_and_names_its_classes(tmp_path: Path, size: tuple[int, int]) -> None:
    import rasterio

    path = geotiff(tmp_path / "a.tif", noise(3, *size), nodata=0)
    labels = np.random.default_rng(0).integers(0, 3, size).astype(np.uint8)
    labels[:5] = CLASSES.void
    with rasters.opened(path) as source:
        place = source.place
    write(tmp_path / "b.tif", labels, CLASSES, [11, 13], place=place)
    with rasterio.open(path) as one, rasterio.open(tmp_path / "b.tif") as other:
        assert (one.crs, one.transform, one.shape) == (other.crs, other.transform, other.shape)
        np.testing.assert_array_equal(other.read(1), labels)
        assert other.nodata == 255
        assert other.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert other.colormap(1)[1][:3] == CLASSES.entries[1].colour
        assert [entry["name"] for entry in json.loads(other.tags()["CLASSES"])] == ["sky", "road", "cat"]
        if max(size) > 512:
            assert other.block_shapes == [(512, 512)]
            assert other.overviews(1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tif"]


@pytest.mark.parametrize("suffix", [".png", pytest.param(".tif", marks=needs_rasterio)])
def test_what_was_not_finished_is_not_there(tmp_path: Path, suffix: str) -> None:
    def stop_half_way() -> None:
        with rasters.created(tmp_path / f"a{suffix}", (4, 5), CLASSES) as target:
            target.write(np.zeros((2, 5), np.uint8))
            raise KeyError

    with pytest.raises(KeyError):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


def test_labels_are_not_written_as_what_loses_them(tmp_path: Path) -> None:
    with (
        pytest.raises(ImageError, match=r"label maps are written as \.png or \.tif, .* got '\.jpg'"),
        rasters.created(tmp_path / "a.jpg", (4, 5), CLASSES),
    ):
        pass
    with (
        pytest.raises(ImageError, match=r"a\.png: cannot be written: No such file or directory"),
        rasters.created(tmp_path / "none" / "a.png", (4, 5), CLASSES),
    ):
        pass
