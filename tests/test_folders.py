"""Many files to a folder of label maps: names, keeping, replacing, failing."""

from __future__ import annotations

import errno
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from fullyconv import folders, images, rasters, streaming
from fullyconv.building import build
from fullyconv.config import Classes, HeadConfig, ModelConfig, SkipConfig
from fullyconv.datasets.folder import open_folder
from fullyconv.errors import ConfigError
from fullyconv.folders import Outcome, PictureFile, find_pictures, segment_files, write_results
from fullyconv.inference import Predictor
from fullyconv.labels import read_labels
from fullyconv.opening import read_size
from fullyconv.values import read_values

CLASSES = Classes.of("sky", "road", "cat")


def predictor_of(*heads: str, probabilities: bool = False) -> Predictor:
    skips = (SkipConfig(tap="stride32", init="gaussian"),)
    config = ModelConfig(
        backbone="tinyvgg", weights=None, heads={head: HeadConfig(classes=3, skips=skips) for head in heads}
    )
    torch.manual_seed(0)
    model = build(config, classes=dict.fromkeys(heads, CLASSES))
    return Predictor(model, device="cpu", probabilities=probabilities)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of("out", probabilities=True)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., list[Path]]:
    def make(*names: str) -> list[Path]:
        for i, name in enumerate(names):
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            images.write_image(path, np.full((10 + i, 20, 3), 25 * i, np.uint8))
        return [tmp_path / name for name in names]

    return make


def keys(inputs: list[str | Path], out: Path) -> dict[str, str]:
    """Keys by file name."""
    return {picture.path.name: picture.key for picture in find_pictures(inputs, out=out)}


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_pictures_with_subfolders_as_they_are(make: Callable[..., None], tmp_path: Path) -> None:
    make("in/b.png", "in/deep/er/a.jpg", "in/.hidden.png", "in/.git/c.png")
    (tmp_path / "in/notes.txt").write_text("no picture")
    assert keys([tmp_path / "in"], tmp_path / "out") == {"b.png": "b", "a.jpg": "deep/er/a"}


def test_a_pattern_keeps_the_folders_below_its_fixed_part(make: Callable[..., None], tmp_path: Path) -> None:
    make("in/x/a.png", "in/y/b.png", "in/c.jpg")
    assert keys([f"{tmp_path}/in/*/*.png"], tmp_path / "out") == {"a.png": "x/a", "b.png": "y/b"}
    assert keys([f"{tmp_path}/in/**/*"], tmp_path / "out") == {"a.png": "x/a", "b.png": "y/b", "c.jpg": "c"}


def test_names_with_the_signs_of_patterns_are_files_where_they_exist(make: Callable[..., None], tmp_path: Path) -> None:
    (path,) = make("in/shot [1].png")
    assert keys([path], tmp_path / "out") == {"shot [1].png": "shot [1]"}


def test_equal_names_are_told_apart(make: Callable[..., None], tmp_path: Path) -> None:
    found = make("in/a.jpg", "in/a.png", "x/b.png", "y/b.png", "in/A.png")
    pictures = find_pictures([tmp_path / "in", *found[2:4]], out=tmp_path / "out")
    assert [p.key for p in pictures] == ["A.png", "a.jpg", "a.png-2", "b.png", "b.png-2"]
    assert len({p.key.casefold() for p in pictures}) == 5


def test_a_picture_named_twice_is_done_once(make: Callable[..., None], tmp_path: Path) -> None:
    (path,) = make("in/a.png")
    assert len(find_pictures([path, tmp_path / "in", tmp_path / "in/../in/a.png"], out=tmp_path / "out")) == 1


def test_our_own_outputs_in_a_folder_are_not_taken_for_pictures(make: Callable[..., None], tmp_path: Path) -> None:
    make("in/a.png", "in/out/a.png", "in/out/deep/b.png")
    for given in (tmp_path / "in", f"{tmp_path}/in/**/*.png"):
        assert keys([given], tmp_path / "in/out") == {"a.png": "a"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none*.png", r"none\*\.png: no file matches"),
        ("empty", "no pictures: expected"),
        ("out", "would lie among the"),
    ],
)
def test_inputs_without_pictures_are_refused(given: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=message):
        find_pictures([f"{tmp_path}/{given}"], out=tmp_path / "out")


# --- segmenting -------------------------------------------------------------------------------------------------------


def run(predictor: Predictor, inputs: list[Path], out: Path, **options: bool) -> dict[str, Outcome]:
    """Outcomes by file name."""
    outcomes = segment_files(predictor, find_pictures(inputs, out=out), out, **options)
    return {outcome.path.name: outcome for outcome in outcomes}


def test_every_picture_gets_a_label_map_of_its_size(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    paths = make(*(f"in/{i}.png" for i in range(9)))
    outcomes = run(predictor, [tmp_path / "in"], tmp_path / "out")
    assert {o.status for o in outcomes.values()} == {"done"}
    for i, path in enumerate(paths):
        labels = read_labels(tmp_path / "out" / path.name, classes=CLASSES, size=(10 + i, 20))
        np.testing.assert_array_equal(labels, predictor(path).labels["out"])
        assert outcomes[path.name].size == (10 + i, 20)
        assert sum(outcomes[path.name].area["out"].values()) == pytest.approx(1)


def test_a_bad_file_is_reported_and_all_others_are_done(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    a, b, c = make("in/a.png", "in/b.png", "in/c.png")
    b.write_bytes(b"no picture")
    outcomes = run(predictor, [a, b, c, tmp_path / "missing.png"], tmp_path / "out")
    assert {name: o.status for name, o in outcomes.items()} == {
        "a.png": "done",
        "b.png": "failed",
        "c.png": "done",
        "missing.png": "failed",
    }
    assert outcomes["b.png"].error.startswith(f"{b}: not a picture")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]


def test_what_exists_is_kept_unless_it_is_to_be_overwritten(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make("in/a.png")
    out.mkdir()
    (out / "a.png").write_text("precious")
    assert run(predictor, [tmp_path / "in"], out)["a.png"].status == "kept"
    # A kind that is missing is added; the one that is there stays.
    assert run(predictor, [tmp_path / "in"], out, overlay=True)["a.png"].status == "done"
    assert (out / "a.png").read_text() == "precious"
    assert (out / "a.overlay.jpg").exists()
    assert run(predictor, [tmp_path / "in"], out, overwrite=True)["a.png"].status == "done"
    assert read_size(out / "a.png") == (10, 20)


def test_overlays_and_probabilities_are_written_beside(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    make("in/x/a.png")
    outcome = run(predictor, [tmp_path / "in"], tmp_path / "out", overlay=True, probabilities=True)["a.png"]
    assert images.read_image(outcome.outputs["overlay"]).pixels.shape == (10, 20, 3)
    assert np.load(outcome.outputs["probabilities"])["probabilities"].shape == (10, 20, 3)
    assert sorted(p.name for p in (tmp_path / "out/x").iterdir()) == ["a.npz", "a.overlay.jpg", "a.png"]


def test_several_heads_write_a_file_each(make: Callable[..., list[Path]], tmp_path: Path) -> None:
    make("in/a.png")
    predictor, out = predictor_of("parts", "whole"), tmp_path / "out"
    outcomes = run(predictor, [tmp_path / "in"], out)
    write_results(predictor, list(outcomes.values()), out, settings={})
    written = ["a.parts.png", "a.whole.png", "classes.parts.json", "classes.whole.json", "results.json"]
    assert sorted(p.name for p in out.iterdir()) == written


def test_a_picture_is_never_replaced_by_its_label_map(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    (path,) = make("in/a.png")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"a\.png: would replace one of the pictures; choose another folder"):
        run(predictor, [path], tmp_path / "in", overwrite=True)
    assert path.read_bytes() == before


def test_outputs_do_not_follow_a_link_out_of_their_folder(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    make("in/x/a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="a link leads out of"):
        run(predictor, [tmp_path / "in"], tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_keys_that_climb_out_are_refused_too(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    (path,) = make("in/a.png")
    with pytest.raises(ConfigError, match="leads out of"):
        list(segment_files(predictor, [PictureFile(path, "../a")], tmp_path / "out"))


def test_an_output_that_cannot_be_written_is_said_and_the_others_are_done(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    make("in/x/a.png", "in/b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x").write_text("a file where a folder should be")
    outcomes = run(predictor, [tmp_path / "in"], tmp_path / "out")
    assert outcomes["a.png"].error.startswith(f"{tmp_path}/in/x/a.png: not written")
    assert outcomes["b.png"].status == "done"


def test_a_full_disk_stops_before_all_other_pictures_are_computed_for_nothing(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for some in "ab":
        make(*(f"in/{some}{i}.png" for i in range(10)))
    done: list[str] = []
    save = PIL.Image.Image.save

    def until_full(self: PIL.Image.Image, file: Any, kind: str, **options: Any) -> None:
        done.append(file.name)
        if len(done) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, file, kind, **options)

    monkeypatch.setattr(PIL.Image.Image, "save", until_full)
    with pytest.raises(ConfigError, match=r"out/..[.]png: no space left; make room and run the same again"):
        run(predictor, [tmp_path / "in"], tmp_path / "out")
    assert len(done) < 20
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_a_file_in_the_place_of_the_folder_is_said(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    make("in/a.png")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(ConfigError, match="out: cannot be made: File exists"):
        run(predictor, [tmp_path / "in"], tmp_path / "out")


def test_large_pictures_are_streamed_to_the_same_label_maps(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("in/a.png", "in/b.png", "in/x/c.png", "in/d.jpg")
    (tmp_path / "in/d.jpg").write_bytes((tmp_path / "in/d.jpg").read_bytes()[:50])
    plain = run(predictor, [tmp_path / "in"], tmp_path / "plain")
    streamed_: list[str] = []
    stream = streaming.segment_raster
    monkeypatch.setattr(folders, "LARGE", 200)
    monkeypatch.setattr(
        streaming, "segment_raster", lambda p, s, t, **o: streamed_.append(s.name) or stream(p, s, t, **o)
    )
    outcomes = run(predictor, [tmp_path / "in"], tmp_path / "out")
    assert streamed_ == ["b.png", "c.png"]  # of 11 and 12 rows of 20 pixels
    for name in ("a.png", "b.png", "x/c.png"):
        outcome = outcomes[Path(name).name]
        np.testing.assert_array_equal(*(read_values(tmp_path / out / name) for out in ("out", "plain")))
        assert (outcome.status, outcome.size) == ("done", plain[Path(name).name].size)
        assert outcome.area["out"] == pytest.approx(plain[Path(name).name].area["out"])
    assert outcomes["d.jpg"].status == "failed"
    assert run(predictor, [tmp_path / "in"], tmp_path / "out")["b.png"].status == "kept"
    # What needs the picture is done in memory.
    run(predictor, [tmp_path / "in"], tmp_path / "all", overlay=True)
    assert len(streamed_) == 2
    assert (tmp_path / "all/b.overlay.jpg").exists()


@pytest.mark.skipif(not rasters.installed(), reason="rasterio (the extra geo) is not installed")
def test_a_geotiff_becomes_a_geotiff(tmp_path: Path) -> None:
    import rasterio
    from affine import Affine

    (tmp_path / "in").mkdir()
    profile = {"count": 3, "height": 40, "width": 30, "dtype": "uint8", "crs": "EPSG:32633", "nodata": 0}
    with rasterio.open(
        tmp_path / "in/a.tif", "w", driver="GTiff", transform=Affine(2, 0, 5e5, 0, -2, 5e6), **profile
    ) as dataset:
        values = np.random.default_rng(0).integers(1, 255, (3, 40, 30)).astype(np.uint8)
        values[:, :10] = 0
        dataset.write(values)
    predictor = predictor_of("parts", "whole")
    outcome = run(predictor, [tmp_path / "in"], tmp_path / "out")["a.tif"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.parts.tif", "a.whole.tif"]
    assert outcome.outputs["labels.parts"] == tmp_path / "out/a.parts.tif"
    with rasterio.open(tmp_path / "out/a.parts.tif") as labels:
        assert labels.crs == rasterio.crs.CRS.from_epsg(32633)
        assert labels.transform == Affine(2, 0, 5e5, 0, -2, 5e6)
        read = labels.read(1)
    assert (read[:10] == 255).all()
    assert (read[10:] < 3).all()
    assert run(predictor, [tmp_path / "in"], tmp_path / "out")["a.tif"].status == "kept"


def test_memory_stays_flat_over_many_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    images.write_image(tmp_path / "in/0.png", np.zeros((64, 64, 3), np.uint8))
    for i in range(1, 300):
        (tmp_path / f"in/{i}.png").symlink_to(tmp_path / "in/0.png")
    pictures = [PictureFile(tmp_path / f"in/{i}.png", str(i)) for i in range(300)]
    peaks = []
    predictor = predictor_of("out")
    tracemalloc.start()
    try:
        for part in (pictures[:30], pictures[30:]):
            tracemalloc.reset_peak()
            for _ in segment_files(predictor, part, tmp_path / "out", batch_size=4):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    # Nine times as many pictures, each of 12 KiB, and their names.
    assert peaks[1] - peaks[0] < 270 * 4096


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_tell_what_became_of_each_picture_and_remember_those_kept(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _, b = make("in/a.png", "in/b.png")
    b.write_bytes(b"no picture")
    for _ in range(2):
        outcomes = run(predictor, [tmp_path / "in"], out)
        path = write_results(predictor, list(outcomes.values()), out, settings={"model": "m"})
    results = json.loads(path.read_text())
    assert {k: results[k] for k in ("model", "done", "kept", "failed")} == {
        "model": "m",
        "done": 0,
        "kept": 1,
        "failed": 1,
    }
    kept, failed = results["files"]
    assert kept["status"] == "kept"
    assert kept["outputs"] == {"labels": "a.png"}
    assert (kept["height"], kept["width"]) == (10, 20)
    assert sum(kept["area"]["out"].values()) == pytest.approx(1)
    assert failed["input"] == str(b)
    assert "not a picture" in failed["error"]


def test_what_was_made_of_another_picture_is_not_kept_as_this_ones(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make("one/a.png", "two/a.png", "two/b.png")
    write_results(predictor, list(run(predictor, [tmp_path / "one"], out).values()), out, settings={})
    before = (out / "a.png").read_bytes()
    with pytest.raises(ConfigError, match=r"out/a\.png: is there, made of .*one/a\.png, not of .*two/a\.png"):
        run(predictor, [tmp_path / "two"], out)
    assert not (out / "b.png").exists()
    assert (out / "a.png").read_bytes() == before
    # Another way to name the same file is no other picture.
    monkeypatch.chdir(tmp_path)
    assert run(predictor, [Path("one")], out)["a.png"].status == "kept"
    # What is replaced on purpose is no longer said to be of the other.
    outcomes = run(predictor, [tmp_path / "two"], out, overwrite=True)
    path = write_results(predictor, list(outcomes.values()), out, settings={})
    files = json.loads(path.read_text())["files"]
    assert {Path(one["input"]).parent.name for one in files} == {"two"}
    assert len(files) == 2


def test_a_path_that_was_recorded_in_another_folder_of_work_is_the_same_file(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make("one/a.png")
    make("two/a.png")
    monkeypatch.chdir(tmp_path / "two")
    write_results(predictor, list(run(predictor, [Path("../one/a.png")], out).values()), out, settings={})
    monkeypatch.chdir(tmp_path / "one")
    outcomes = run(predictor, [Path("a.png")], out)
    assert outcomes["a.png"].status == "kept"
    (record,) = json.loads(write_results(predictor, list(outcomes.values()), out, settings={}).read_text())["files"]
    assert (record["height"], record["width"], record["status"]) == (10, 20, "kept")  # what was known of it stays
    monkeypatch.chdir(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"is there, made of .*one/a\.png, not of a\.png"):
        run(predictor, [Path("a.png")], out)
    # All moved together, as into a container.
    (tmp_path / "moved").mkdir()
    for name in ("one", "out"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert run(predictor, [tmp_path / "moved/one/a.png"], tmp_path / "moved/out")["a.png"].status == "kept"


def test_records_of_before_are_known_by_more_than_a_bare_name(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make("one/a.png")
    path = write_results(predictor, list(run(predictor, [tmp_path / "one"], out).values()), out, settings={})
    found = json.loads(path.read_text())
    del found["files"][0]["picture"]
    for recorded, same in (("one/a.png", True), ("two/a.png", False), ("a.png", False)):
        found["files"][0]["input"] = recorded
        path.write_text(json.dumps(found))
        if same:
            assert run(predictor, [tmp_path / "one"], out)["a.png"].status == "kept"
        else:
            with pytest.raises(ConfigError, match="is there, made of"):
                run(predictor, [tmp_path / "one"], out)


def test_label_maps_of_other_classes_are_not_kept_under_a_new_table(
    predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    make("in/a.png", "in/b.png")
    write_results(predictor, list(run(predictor, [tmp_path / "in/a.png"], out).values()), out, settings={})
    table = json.loads((out / "classes.json").read_text())
    table[0]["name"] = "something else"
    (out / "classes.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"classes\.json: a model of other classes has made what is there"):
        run(predictor, [tmp_path / "in"], out)
    assert not (out / "b.png").exists()
    assert {o.status for o in run(predictor, [tmp_path / "in"], out, overwrite=True).values()} == {"done"}


def test_the_results_can_be_learnt_from(predictor: Predictor, make: Callable[..., list[Path]], tmp_path: Path) -> None:
    make("images/a.png", "images/b.png")
    out = tmp_path / "labels"
    outcomes = run(predictor, [tmp_path / "images"], out)
    write_results(predictor, list(outcomes.values()), out, settings={})
    (out / "classes.json").rename(tmp_path / "classes.json")
    data = open_folder(tmp_path)
    assert data.classes["out"] == CLASSES
    assert set(data[0].labels["out"].ravel()) <= {0, 1, 2}
