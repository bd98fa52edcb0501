"""`check` as a user meets it: counts, findings, pages, mended copies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from fullyconv.config import Classes
from fullyconv.images import write_image
from fullyconv.labels import write_labels


def test_check_of_clean_data_exits_with_0_and_counts(run: Run, data: Path) -> None:
    code, out, _ = run("check", data)
    assert code == 0
    assert "train: 6 pictures" in out
    assert "test is not looked at: " in out
    assert "no split 'test'; found train, val" in out
    code, out, _ = run("check", data, "--json", "-")
    assert sum(json.loads(out)["train"]["pixels"]["out"].values()) == 6 * 64 * 80


def test_check_of_a_wrong_label_exits_with_1_and_names_it(run: Run, data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "copy")
    write_labels(root / "labels/train/0.png", np.full((64, 80), 3, np.uint8), Classes.of(*"abcd"))
    code, out, _ = run("check", root)
    assert code == 1
    assert "error: " in out
    assert "labels/train/0.png" in out
    assert "label: it would do: a label that no class has cannot be learnt; what to do: add it" in out


def test_check_writes_a_page_an_object_a_finding_and_a_mended_copy(run: Run, data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "copy")
    write_labels(root / "labels/train/0.png", np.full((64, 80), 3, np.uint8), Classes.of(*"abcd"))
    code, out, _ = run(
        "check", root, "--json", tmp_path / "a.json", "--html", tmp_path / "a.html", "--fix", tmp_path / "mended"
    )
    assert code == 1
    assert f"done: label: left out of train: {root / 'images/train/0.png'}" in out
    assert f"mended copy: {tmp_path / 'mended'} (train 5, val 2); in it: 0 errors, 0 warnings" in out
    (found,) = json.loads((tmp_path / "a.json").read_text())["findings"]
    assert (found["kind"], found["files"], found["severity"], found["split"]) == (
        "label",
        [str(root / "labels/train/0.png")],
        "error",
        "train",
    )
    assert "labels/train/0.png: 1 value outside the table" in (tmp_path / "a.html").read_text()
    assert run("check", tmp_path / "mended")[0] == 0


def test_check_refuses_a_copy_inside_the_data_before_it_reads_them(run: Run, data: Path) -> None:
    code, out, err = run("check", data, "--fix", data / "mended")
    assert (code, out) == (2, "")
    assert "lies inside or around the data" in err
    assert not (data / "mended").exists()


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize(("name", "reason"), [("none/found", "no folder"), (".", "is a folder")])
def test_check_refuses_a_file_that_it_could_not_write_before_it_reads_the_data(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, name: str, reason: str
) -> None:
    monkeypatch.setattr("fullyconv.checking.check_splits", lambda *args, **options: pytest.fail("the data was read"))
    code, _, error = run("check", data, option, tmp_path / name)
    assert code == 2
    assert f"{tmp_path / name}: " in error
    assert reason in error
    assert error.count("\n") == 1


def test_check_of_what_is_no_data_set_exits_with_2(run: Run, tmp_path: Path) -> None:
    code, out, err = run("check", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("fullyconv: error: ")
    assert "no folder of pictures" in err


def test_check_names_a_picture_that_is_in_train_and_val(run: Run, data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "copy")
    for folder in ("images", "labels"):
        shutil.copy(root / folder / "train/0.png", root / folder / "val/copy.png")
    code, out, _ = run("check", root)
    assert code == 1
    assert "error: val: 1 of the " in out
    assert "copy (as 0 in train); a picture that is learnt cannot be scored" in out
    (found,) = json.loads(run("check", root, "--json", "-")[1])["findings"]
    assert (found["kind"], found["severity"], found["split"]) == ("overlap", "error", "val")
    assert found["files"] == [str(root / "images/val/copy.png"), str(root / "images/train/0.png")]


def test_check_of_a_mended_copy_counts_what_fix_counted(run: Run, tmp_path: Path) -> None:
    root = tmp_path / "small"  # pictures smaller than a cell of the coarsest map
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(i + 10 * (split == "val")).integers(0, 255, (24, 48, 3), dtype=np.uint8)
            write_image(root / "images" / split / f"{i}.png", pixels)
            write_labels(root / "labels" / split / f"{i}.png", pixels[..., 0] % 2, Classes.of("a", "b"))
    (root / "classes.txt").write_text("a\nb\n")
    out = run("check", root, "--fix", tmp_path / "mended")[1]
    _, _, counted = out.rpartition("in it: ")
    run("check", tmp_path / "mended", "--json", tmp_path / "again.json")
    found = json.loads((tmp_path / "again.json").read_text())["findings"]
    assert any(finding["kind"] == "field" for finding in found)
    assert counted.strip() == f"0 errors, {len(found)} warnings"
