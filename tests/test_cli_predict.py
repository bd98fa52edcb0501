"""`predict` as a user meets it: what it writes, keeps and refuses."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run

from fullyconv import checkpoint, folders, images
from fullyconv.config import Classes
from fullyconv.labels import read_labels
from fullyconv.records import digest_of


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i, name in enumerate(("one.jpg", "two.png", "deep/three.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images.write_image(folder / name, np.full((20 + i, 30, 3), 50 * i, np.uint8))
    return folder


def test_predict_writes_label_maps_and_says_what_it_did(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, _ = run("predict", model, photos, "--out", out, "--overlay")
    assert code == 0
    assert said == f"3 segmented: {out}/results.json\n"
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*"))
    pairs = [f"{name}.{kind}" for name in ("deep/three", "one", "two") for kind in ("overlay.jpg", "png")]
    assert found == sorted(["classes.json", "results.json", *pairs])
    assert read_labels(out / "deep/three.png", classes=Classes.of("sky", "road", "cat")).shape == (22, 30)


def test_predict_keeps_what_is_there(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    for words in ("3 segmented:", "0 segmented, 3 kept since they were there (--overwrite writes them again):"):
        code, said, _ = run("predict", model, photos, "--out", tmp_path / "out")
        assert code == 0
        assert said.startswith(words)
    assert run("predict", model, photos, "--out", tmp_path / "out", "--overwrite")[1].startswith("3 segmented:")


@pytest.mark.parametrize("name", ["results.json", "classes.json"])
def test_predict_replaces_nothing_that_it_did_not_write(
    run: Run, model: Path, photos: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text('{"mean_iu": 0.5}')
    code, _, err = run("predict", model, photos, "--out", tmp_path)
    assert code == 2
    assert f"{name}: was not written by predict" in err
    assert (tmp_path / name).read_text() == '{"mean_iu": 0.5}'


def test_predict_keeps_the_records_of_other_pictures(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    pictures = sorted(photos.rglob("*.png"))
    for path in pictures:
        assert run("predict", model, path, "--out", tmp_path)[0] == 0
    records = json.loads((tmp_path / "results.json").read_text())["files"]
    assert {record["input"] for record in records} == set(map(str, pictures))


def test_a_pixel_limit_refuses_before_decoding(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    code, _, err = run("predict", model, photos, "--out", tmp_path, "--max-pixels", "10")
    assert code == 2
    assert "more than the limit of 10" in err


def test_predict_exits_with_1_when_some_fail_and_with_2_when_all_do(
    run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "one.jpg").write_bytes(b"no picture")
    code, said, err = run("predict", model, photos, "--out", tmp_path / "out")
    assert code == 1
    assert said.startswith("2 segmented, 1 failed:")
    assert f"skipped: {photos}/one.jpg: not a picture" in err
    assert run("predict", model, photos / "one.jpg", "--out", tmp_path / "other")[0] == 2


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_predict_takes_paths_from_standard_input(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    listed = b"".join(str(photos / name).encode() + end for name in ("one.jpg", "deep/three.png"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert run("predict", model, "-", "--out", tmp_path / "out")[1].startswith("2 segmented:")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["one.png", "three.png"]


def test_predict_in_tiles_gives_the_same_files(run: Run, model: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 170, 3), np.uint8)
    images.write_image(tmp_path / "a.png", pixels)
    for name, options in (("whole", []), ("tiled", ["--tile", "64"])):
        options = ["--strategy", name, *options, "--precision", "32"]
        assert run("predict", model, tmp_path / "a.png", "--out", tmp_path / name, *options)[0] == 0
    assert (tmp_path / "whole/a.png").read_bytes() == (tmp_path / "tiled/a.png").read_bytes()


def test_a_size_of_tiles_without_tiles_is_refused(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    code, _, err = run("predict", model, photos, "--out", tmp_path / "out", "--tile", "64")
    assert (code, err) == (2, "fullyconv: error: --tile 64: only tiles have a size; add --strategy tiled\n")


def other_weights(model: Path, folder: Path) -> Path:
    """The same net with other weights."""
    net = checkpoint.load(model)
    for parameter in net.heads.parameters():
        torch.nn.init.ones_(parameter)
    return checkpoint.save(net, folder)


def test_what_other_weights_or_looks_have_made_is_not_kept_for_ones_own(
    run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    other, out = other_weights(model, tmp_path / "other"), tmp_path / "out"
    assert run("predict", model, photos, "--out", out)[0] == 0
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    records = json.loads((out / "results.json").read_text())["files"]
    assert {record["weights"] for record in records} == {digest_of(model)}
    for arguments, why in (
        ((other, photos), "made with other weights"),
        ((other, photos, "--overlay"), "made with other weights"),
        ((model, photos, "--mirror"), "looked at scales 1, not scales 1, mirrored too"),
    ):
        code, _, err = run("predict", *arguments, "--out", out)
        assert code == 2
        assert why in err
        assert "name another --out, or add --overwrite" in err
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    assert run("predict", other, photos, "--out", out, "--overwrite")[1].startswith("3 segmented")
    assert run("predict", other, photos, "--out", out)[1].startswith("0 segmented, 3 kept")
    records = json.loads((out / "results.json").read_text())["files"]
    assert {record["weights"] for record in records} == {digest_of(other)}


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_label_maps_that_predict_has_not_made_are_neither_kept_nor_replaced(
    run: Run, model: Path, photos: Path, tmp_path: Path, more: list[str]
) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    images.write_image(truth / "two.png", np.zeros((21, 30, 3), np.uint8))
    before = (truth / "two.png").read_bytes()
    code, _, err = run("predict", model, photos, "--out", truth, *more)
    assert code == 2
    assert f"{truth / 'two.png'}: is there, and was not made by predict; name another --out" in err
    assert [path.name for path in truth.iterdir()] == ["two.png"]
    assert (truth / "two.png").read_bytes() == before


@pytest.mark.parametrize("name", ["classes.txt", "images", "labels"])
def test_predict_writes_into_no_data_set(run: Run, model: Path, photos: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "set"
    (out / name).mkdir(parents=True)
    code, _, err = run("predict", model, photos, "--out", out)
    assert code == 2
    assert f"{out / name}: was not written by predict" in err
    assert [path.name for path in out.iterdir()] == [name]


def test_what_a_stopped_run_has_written_is_known_and_kept(
    run: Run, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "out", folders._write

    def killed(segmentation: Any, *others: Any) -> Any:
        if segmentation.source.endswith("two.png"):
            raise SystemExit(9)
        return write(segmentation, *others)

    with monkeypatch.context() as patch:
        patch.setattr(folders, "_write", killed)
        patch.setattr(folders, "write_results", lambda *_, **__: out)  # no time for it
        run("predict", model, photos, "--out", out)
    records = json.loads((out / "results.json").read_text())["files"]
    assert {record["status"] for record in records} == {"begun"}
    written = {path.name for path in out.rglob("*.png")}
    assert written
    assert "two.png" not in written
    assert f", {len(written)} kept" in run("predict", model, photos, "--out", out)[1]
    records = json.loads((out / "results.json").read_text())["files"]
    assert sorted(record["status"] for record in records) == ["done"] * (3 - len(written)) + ["kept"] * len(written)


def test_an_empty_path_is_not_the_folder_one_is_in(run: Run, model: Path, tmp_path: Path) -> None:
    code, _, err = run("predict", model, "", "--out", tmp_path / "out")
    assert code == 2
    assert "an empty path among the inputs" in err
