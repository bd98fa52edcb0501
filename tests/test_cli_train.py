"""`train` as a user meets it: the recipe that it makes, resumption, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import miniatures as mini
import numpy as np
import pytest
from conftest import Run
from PIL import Image

from fullyconv import presets, training
from fullyconv.config import FitConfig, Recipe


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
    assert stage.fit == FitConfig(minutes=30, class_weights="median", lovasz=0.5, lr=0.002)
    assert stage.data.scale == (0.6, 1.6)
    assert stage.model == presets.fcn4s("tinyvgg", {"out": 3}, weights=None)
    assert stage.data.root == str(data)
    assert others["out"] == tmp_path
    assert others["check"] is True
    assert others["resume"] is False


@pytest.mark.parametrize(
    ("options", "rate"),
    [
        ("", 0.001),
        ("--weights alexnet.pth", 0.001),
        ("--weights none", 0.002),
        ("--weights none --lr 0.0005", 0.0005),
        ("--lr 0.0005", 0.0005),
    ],
)
def test_random_weights_learn_at_twice_the_rate_of_trained_ones(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, options: str, rate: float
) -> None:
    recipe, _ = recipe_for(monkeypatch, run, data, "--backbone", "alexnet", *options.split())
    assert recipe.stages[0].fit.lr == rate


@pytest.mark.parametrize(
    ("options", "stride", "factor"),
    [
        ("", 2, 0.3),
        ("--weights alexnet.pth", 2, 0.3),
        ("--weights alexnet.pth --freeze 0 --backbone-lr 1", 0, 1),
        ("--backbone-lr 0", 2, 0),
        ("--weights none", 0, 1),
        ("--weights none --freeze 8 --backbone-lr 0.5", 8, 0.5),
    ],
)
def test_trained_layers_move_little_the_first_not_at_all_and_random_ones_as_all_others(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, options: str, stride: int, factor: float
) -> None:
    recipe, _ = recipe_for(monkeypatch, run, data, "--backbone", "alexnet", *options.split())
    fit = recipe.stages[0].fit
    assert (fit.freeze, fit.backbone_lr) == (stride, factor)


def test_where_there_is_more_than_colour_trained_layers_learn_as_all_others(
    monkeypatch: pytest.MonkeyPatch, run: Run, tmp_path: Path
) -> None:
    folder = miniature_with_depth(tmp_path / "data")
    recipe, _ = recipe_for(monkeypatch, run, folder, "--backbone", "alexnet", "--inputs", "color,depth")
    fit = recipe.stages[0].fit
    assert (fit.freeze, fit.backbone_lr) == (0, 1)


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


def test_help_says_what_no_check_does_not_save(run: Run) -> None:
    code, out, _ = run("train", "--help")
    assert code == 0
    assert "pixels are counted all the same" in " ".join(out.split())


def test_what_only_training_can_refuse_names_the_option(run: Run, data: Path, tmp_path: Path) -> None:
    options = ("--backbone", "tinyvgg", "--weights", "none", "--steps", "1")
    code, _, err = run("train", data, *options, "--device", "cuda:99", "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("fullyconv: error: --device: got 'cuda:99'; expected auto, cpu")
    assert not (tmp_path / "run").exists()


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


def test_what_is_not_said_of_a_run_that_goes_on_is_its_own(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(monkeypatch, run, data, tmp_path / "recipe.json")
    (tmp_path / "fcn8s" / "last").mkdir(parents=True)
    again, _ = recipe_for(monkeypatch, run, data, "--out", tmp_path, "--resume")
    assert again == recipe
    moved, _ = recipe_for(monkeypatch, run, tmp_path, "--workers", "0", "--out", tmp_path, "--resume")
    assert moved.stages[0].data == recipe.stages[0].data.model_copy(update={"root": str(tmp_path), "workers": 0})
    assert moved.stages[0].model == recipe.stages[0].model
    other, _ = recipe_for(monkeypatch, run, data, "--lr", "0.5", "--weights", "none", "--out", tmp_path, "--resume")
    assert other.stages[0].fit.lr == 0.5  # which training refuses to go on with


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    code, _, err = run("train", data, "--backbone", "tinyvgg", "--weights", "none", "--out", tmp_path / "r")
    assert code == 130
    assert err.splitlines()[-1] == f"stopped; go on with: fullyconv train --out {tmp_path}/r --resume"


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
    expected = "--inputs color: got 3 channels; expected the 4 that the model reads: it learnt --inputs color,depth"
    assert expected in " ".join(err.split())


@pytest.mark.parametrize(("inputs", "first"), [("depth,color", "depth"), ("depth,hha", "depth"), ("hha,color", "hha")])
def test_of_several_inputs_colour_comes_first(run: Run, tmp_path: Path, inputs: str, first: str) -> None:
    folder = miniature_with_depth(tmp_path / "data")
    (folder / "hha").symlink_to(folder / "images")
    options = ["--backbone", "tinyvgg", "--weights", "none", "--out", tmp_path / "run"]
    code, _, err = run("train", folder, "--inputs", inputs, *options)
    assert code == 2
    assert f"--inputs {inputs}: got {first} first; expected color first" in err


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


def test_a_score_on_pictures_that_the_model_learnt_is_told(run: Run, tmp_path: Path) -> None:
    mini.sbd(tmp_path / "sbd", train=["2008_000011", "2008_000012"], val=["2008_000013"])
    mini.voc(tmp_path / "VOC2012", train=["2008_000013"], val=["2008_000011", "2008_000014"])
    options = ["--backbone", "tinyvgg", "--weights", "none", "--steps", "1", "--batch", "1", "--crop", "whole"]
    code, _, err = run("train", tmp_path / "sbd", "--dataset", "sbd", *options, "--out", tmp_path / "run")
    assert code == 0, err
    (last,) = (tmp_path / "run").glob("*/last")
    for model in (tmp_path / "run", last):
        code, _, err = run("evaluate", model, tmp_path / "VOC2012", "--dataset", "voc")
        assert code == 0, err
        assert "warning: 1 of the 2 pictures of val are among those that this model learnt (2008_000011);" in err
    code, _, err = run("evaluate", tmp_path / "run", tmp_path / "VOC2012", "--dataset", "voc", "--split", "train")
    assert (code, "warning" in err) == (0, False)
    (tmp_path / "run/recipe.json").write_text("{")  # the model is whole all the same
    code, _, err = run("evaluate", tmp_path / "run", tmp_path / "VOC2012", "--dataset", "voc")
    assert (code, "warning" in err) == (0, False)


def test_commands_that_are_suggested_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, run: Run, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a run"
    options = ("--backbone", "tinyvgg", "--weights", "none", "--out", out)
    monkeypatch.setattr(training, "train", lambda recipe, **_: None)
    assert f"fullyconv predict '{out}' PICTURES" in run("train", data, *options)[1]

    def stopped(recipe: Recipe, **_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stopped)
    assert f"fullyconv train --out '{out}' --resume" in run("train", data, *options)[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume",), "holds no run to go on with; name the run with --out"),
        (("", "--weights", "none"), "DATA is empty"),
        (("DATA", "--batch", "99999999999999999999"), "batch"),
        (("DATA", "--context", "9000"), "context"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", *(data if word == "DATA" else word for word in arguments))
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_nothing_but_void_have_no_score(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\nroad\ncat\n")
    mini.put(tmp_path / "images/val/a.png", np.zeros((20, 30, 3), np.uint8))
    mini.put(tmp_path / "labels/val/a.png", np.full((20, 30), 255, np.uint8))
    code, out, err = run("evaluate", model, tmp_path)
    assert (code, out) == (2, "")
    assert "no pixel of val has a label, all are void; expected some to score" in err
