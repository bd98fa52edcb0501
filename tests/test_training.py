"""A recipe makes a run folder that repeats, stage after stage, and what cannot be is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from PIL import Image
from small_fits import SCENES, net, of, recipe, settings

from fullyconv import checkpoint, datasets, training
from fullyconv.backbones import BACKBONES
from fullyconv.building import build
from fullyconv.config import INPUTS, RUN_FILES, Classes, DataConfig, Recipe, Stage
from fullyconv.datasets import Sample, dataset
from fullyconv.datasets.folder import open_folder
from fullyconv.errors import CheckpointError, ConfigError, DatasetError
from fullyconv.events import Alarm, Evaluated, Event, Said, Step
from fullyconv.presets import fcn
from fullyconv.sampling import View
from fullyconv.training import train
from fullyconv.weights import write_weights


def test_a_label_outside_the_table_names_the_file_before_training_and_during_it(tmp_path: Path) -> None:
    from fullyconv.images import write_image
    from fullyconv.labels import write_labels

    small, large = Classes.of("a", "b"), Classes.of("a", "b", "c")
    for split in ("train", "val"):
        for i in range(2):
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
            write_image(tmp_path / "images" / split / f"{i}.png", np.zeros((40, 40, 3), np.uint8))
            labels = np.tile(np.arange(40, dtype=np.uint8) % (3 if (split, i) == ("train", 1) else 2), (40, 1))
            write_labels(tmp_path / "labels" / split / f"{i}.png", labels, large)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    config = fcn(4, "tinyvgg", classes=len(small), weights=None, context=0)
    wrong = recipe(model=config, data=DataConfig(root=str(tmp_path), workers=0), fit=settings(steps=3, batch=2))
    with pytest.raises(DatasetError, match=r"labels/train/1\.png: .*2"):
        train(wrong, out=tmp_path / "checked")
    with pytest.raises(Exception, match=r"labels/train/1\.png: .*2"):
        train(wrong, out=tmp_path / "unchecked", check=False)


def test_a_run_that_would_score_what_it_learns_is_stopped_before_training(tmp_path: Path) -> None:
    config = fcn(4, "tinyvgg", classes=11, weights=None, context=0)
    same = DataConfig(root=SCENES, name="scenes", val="train", workers=0)
    for check in (True, False):
        with pytest.raises(DatasetError, match=r"all 12 pictures of train are in train, too: train-000000, .*learnt"):
            train(recipe(model=config, data=same, fit=settings(steps=1)), out=tmp_path / "run", check=check)
    assert not (tmp_path / "run").exists()


def test_what_an_earlier_stage_learns_is_not_scored_by_a_later_one(tmp_path: Path) -> None:
    config = fcn(4, "tinyvgg", classes=11, weights=None, context=0)
    stages = [
        Stage(
            name=name, model=config, fit=settings(steps=1), data=DataConfig(root=SCENES, name="scenes", workers=0, **of)
        )
        for name, of in (("one", {"train": "a", "val": "b"}), ("two", {"train": "c", "val": "a"}))
    ]
    with pytest.raises(DatasetError, match="all 12 pictures of a are in a, too"):
        train(Recipe(name="two", stages=tuple(stages)), out=tmp_path / "run")
    # What is scored first may be learnt later.
    train(Recipe(name="two", stages=tuple(reversed(stages))), out=tmp_path / "turned")
    assert (tmp_path / "turned/one/results.json").exists()


def test_heads_that_do_not_fit_the_data_are_refused_with_both_numbers(tmp_path: Path) -> None:
    config = fcn(4, "tinyvgg", classes=5, weights=None, context=0)
    with pytest.raises(ConfigError, match=r"stages\.0\.model\.heads\.out\.classes: got 5; the data has 11"):
        train(recipe(model=config), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fit": {"loss": "crossentropy"}}, r"stages\.1\.fit\.loss: no loss 'crossentropy'; did you mean"),
        ({"fit": {"head_loss": {"outt": 1}}}, r"stages\.1\.fit\.head_loss: no head 'outt'; did you mean 'out'"),
        ({"fit": {"head_loss": {"out": 0}}}, r"stages\.1\.fit\.head_loss: got 0 for every head"),
        ({"fit": {"device": "tpu"}}, r"stages\.1\.fit\.device: got 'tpu'; expected auto, cpu"),
        ({"model": {"backbone": "vgg61"}}, r"stages\.1\.model: no backbone 'vgg61'; did you mean"),
        ({"model": {"heads": {"out": {"classes": 11, "skips": [{"tap": "pool9"}]}}}}, r"stages\.1\.model: .*'pool9'"),
        ({"data": {"crop": (32, 32), "shift": 8}}, r"stages\.1\.data\.shift: 8 px beside a crop"),
    ],
)
def test_what_is_wrong_with_a_later_stage_is_said_before_the_first_learns(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    one = recipe().stages[0].model_dump()
    two = {**one, "name": "two"} | {part: {**one[part], **settings} for part, settings in changes.items()}
    with pytest.raises(ConfigError, match=said):
        train(Recipe.parse({"stages": [one, two]}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    train(recipe(fit=settings(steps=1)), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run; resume it, or choose another folder"):
        train(recipe(fit=settings(steps=1)), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"stages\.0\.fit\.steps differs from the run's own recipe\.json"):
        train(recipe(fit=settings(steps=2)), out=tmp_path / "run", resume=True)


def test_a_run_cannot_be_among_the_pictures_it_learns_from(data: Path) -> None:
    before = sorted(data.iterdir())
    chosen = recipe(fit=settings(steps=1)).model_dump()
    chosen["stages"][0]["data"] |= {"name": "folder", "root": str(data)}
    with pytest.raises(ConfigError, match="the run would lie among the pictures; name another folder"):
        train(Recipe.parse(chosen), out=data)
    assert sorted(data.iterdir()) == before


def test_a_run_cannot_be_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be made a folder for the run"):
        train(recipe(fit=settings(steps=1)), out=tmp_path / "run")


@pytest.mark.parametrize("name", sorted(RUN_FILES))
def test_a_run_replaces_no_model_and_no_results_of_others(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("theirs")
    with pytest.raises(ConfigError, match=f"{name}: no run has written it, and it would be replaced"):
        train(recipe(fit=settings(steps=1)), out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert (tmp_path / name).read_text() == "theirs"


@pytest.mark.parametrize("name", ["best", "last"])
def test_notes_where_a_model_of_a_stage_will_be_are_named_before_anything_is_learnt(tmp_path: Path, name: str) -> None:
    chosen = recipe(fit=settings(steps=1))
    place = tmp_path / "run" / chosen.stages[0].name / name
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt, which is no part of a model and would be lost"):
        train(chosen, out=tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()
    assert (place / "notes.txt").read_text() == "mine"


def test_a_recipe_that_was_written_by_hand_is_not_replaced_by_its_run(tmp_path: Path) -> None:
    plain = recipe(fit=settings(steps=1)).model_dump(mode="json")
    del plain["stages"][0]["fit"]["lovasz"]  # which has a default
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(plain))
    (tmp_path / "log.jsonl").write_text("my notes\n")
    with pytest.raises(ConfigError, match="no run has written it"):
        train(path, out=tmp_path)
    assert json.loads(path.read_text()) == plain
    assert (tmp_path / "log.jsonl").read_text() == "my notes\n"


def test_a_start_that_failed_before_learning_leaves_no_run_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "torn.pth").write_bytes(b"torn")
    torn = fcn(4, "tinyvgg", classes=11, weights=str(tmp_path / "torn.pth"), context=0)
    with pytest.raises(CheckpointError, match="not a file of PyTorch weights"):
        train(recipe(model=torn, fit=settings(steps=1)), out=tmp_path / "run")
    assert (tmp_path / "run" / "recipe.json").exists()
    train(recipe(fit=settings(steps=1)), out=tmp_path / "run")
    assert Recipe.read(tmp_path / "run" / "recipe.json").stages[0].model.weights is None


def test_weights_that_are_not_there_are_missed_before_the_data_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "check_data", lambda _: pytest.fail("the data is looked at"))
    missing = fcn(4, "tinyvgg", classes=11, weights=str(tmp_path / "none.pth"), context=0)
    (one,), (bad,) = recipe().stages, recipe(name="two", model=missing).stages
    for stages in ([bad], [one, bad.model_copy(update={"start": "classifier"})]):
        with pytest.raises(CheckpointError, match=r"none\.pth: no such file; expected weights"):
            train(Recipe(stages=tuple(stages)), out=tmp_path / "run", resume=True)
    with pytest.raises(pytest.fail.Exception, match="looked at"):  # what starts from a stage does not read them
        train(Recipe(stages=(one, bad)), out=tmp_path / "run")


def classifier_of_caffe(path: Path) -> Path:
    """Weights of a TinyVGG whose file says that they are for BGR minus a mean."""
    torch.manual_seed(1)
    write_weights(path, BACKBONES["tinyvgg"].classifier().state_dict(), {"converted_from": '{"input": "caffe"}'})
    return path


def test_a_run_goes_on_where_the_classifiers_weights_are_gone(tmp_path: Path) -> None:
    weights = classifier_of_caffe(tmp_path / "w.safetensors")
    config = fcn(4, "tinyvgg", classes=11, weights=str(weights), context=0)
    (one,) = recipe(model=config).stages
    both = Recipe(stages=(one, one.model_copy(update={"name": "two"})))
    whole = train(both, out=tmp_path / "whole").state_dict()

    def breaks(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(both, out=tmp_path / "torn", on_event=breaks)
    weights.unlink()
    torn = train(tmp_path / "torn" / "recipe.json", out=tmp_path / "torn", resume=True).state_dict()
    assert [name for name in whole if not torch.equal(whole[name], torn[name])] == []
    for folder in (tmp_path / "torn" / "8s" / "last", tmp_path / "torn"):
        assert checkpoint.load(folder).config.input == INPUTS["caffe"]


def test_a_later_stage_has_the_preprocessing_of_the_weights_that_it_comes_from(tmp_path: Path) -> None:
    weights = classifier_of_caffe(tmp_path / "w.safetensors")
    config = fcn(4, "tinyvgg", classes=11, weights=str(weights), context=0)
    (one,) = recipe(model=config, fit=settings(steps=1)).stages
    # As one writes a stage that starts from the one before: without weights.
    two = one.model_copy(update={"name": "two", "model": config.model_copy(update={"weights": "default"})})
    train(Recipe(stages=(one, two)), out=tmp_path / "run")
    assert checkpoint.load(tmp_path / "run").config.input == INPUTS["caffe"]


def test_a_run_that_did_not_record_its_preprocessing_is_resumed(tmp_path: Path) -> None:
    weights = classifier_of_caffe(tmp_path / "w.safetensors")
    config = fcn(4, "tinyvgg", classes=11, weights=str(weights), context=0)
    whole = recipe(model=config)
    train(whole, out=tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    plain = json.loads(path.read_text())
    assert plain["stages"][0]["model"].pop("input")["order"] == "BGR"
    path.write_text(json.dumps(plain))
    told = json.loads((tmp_path / "run" / "run.json").read_text())
    del told["recipe_sha256"]  # nor did it record that
    (tmp_path / "run" / "run.json").write_text(json.dumps(told))
    assert train(path, out=tmp_path / "run", resume=True).config.input == INPUTS["caffe"]
    with pytest.raises(ConfigError, match=r"stages\.0\.fit\.steps differs"):
        train(recipe(model=config, fit=settings(steps=9)), out=tmp_path / "run", resume=True)


def test_a_run_folder_holds_all_and_repeats_from_its_recipe(tmp_path: Path) -> None:
    seen: list[Event] = []
    model = train(recipe(), out=tmp_path / "a", on_event=seen.append)
    run = tmp_path / "a"
    assert {p.name for p in run.iterdir()} >= {
        "recipe.json", "run.json", "log.jsonl", "8s", "config.json", "model.safetensors", "results.json", "report.html",
    }  # fmt: skip
    assert not (run / "8s" / "resume").exists()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == [type(e).__name__.lower() for e in seen]
    results = json.loads((run / "results.json").read_text())
    assert 0 < results["mean_iu"] < 1
    assert results["protocol"]["pictures"] > 0
    again = train(run / "recipe.json", out=tmp_path / "b")
    for loaded in (checkpoint.load(run), again):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_a_stage_starts_from_the_best_of_the_one_before(tmp_path: Path) -> None:
    coarse, fine = net(8).config, net(4).config
    assert coarse is not None
    assert fine is not None
    stages = [
        {"name": name, "model": model, "data": DataConfig(root=SCENES, name="scenes", workers=0), "fit": settings()}
        for name, model in (("8s", coarse), ("4s", fine))
    ]
    stages[1]["fit"] = settings(steps=1, optimizer="sgd", lr=5e-9, weight_decay=0)
    seen: list[Event] = []
    model = train(Recipe.parse({"stages": stages}), out=tmp_path, on_event=seen.append)
    before = checkpoint.load(tmp_path / "8s" / "best").state_dict()
    shared = [name for name in before if name in model.state_dict() and "running" not in name and "num_" not in name]
    assert len(shared) > 4
    for name in shared:
        torch.testing.assert_close(model.state_dict()[name], before[name], rtol=0, atol=1e-6)
    ends = [of(Evaluated, [e for e in seen if getattr(e, "stage", "") == s])[-1].mean_iu for s in ("8s", "4s")]
    # A new skip starts at zero: nothing changes before it learns, but for the kernel between the two.
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


def test_a_finer_net_predicts_what_the_coarser_one_did_before_it_learns() -> None:
    from fullyconv.postconditions import revive
    from fullyconv.transplant import transplant

    for geometry in ("same", "pad100"):
        coarse = build(fcn(32, "tinyvgg", 5, weights=None, context=0, geometry=geometry)).double().eval()
        with torch.no_grad():
            revive(coarse, 255 * torch.rand(2, 3, 96, 96, dtype=torch.float64))
        fine = build(fcn(16, "tinyvgg", 5, weights=None, context=0, geometry=geometry)).double().eval()
        transplant(coarse.state_dict(), fine)
        image = 255 * torch.rand(1, 3, 160, 192, dtype=torch.float64)
        with torch.no_grad():
            scores = coarse.score_maps(image)["out"]
            before, after = coarse(image)["out"], fine(image)["out"]
        assert before.std() > 1e-3
        # Bilinear to half the stride and from there to pixels cuts the corners of the one line: by an eighth of the
        # bend at each, along either axis. Away from the border, where nets of two strides frame alike.
        down, across = scores.diff(n=2, dim=2).abs().max() / 8, scores.diff(n=2, dim=3).abs().max() / 8
        bound = float(down + across) * 1.25
        inside = (..., slice(48, -48), slice(48, -48))
        assert float((before - after)[inside].abs().max()) <= bound
        same = (before.argmax(1) == after.argmax(1))[inside].double().mean().item()
        assert same > 0.9


def test_streams_start_from_the_stages_named_for_them(tmp_path: Path) -> None:
    alone = fcn(8, "tinyvgg", classes=11, weights=None, context=0)
    (head,) = alone.heads.values()
    taps = [skip.tap for skip in head.skips]
    skips = [{"tap": f"{stream}/{tap}"} for tap in taps for stream in ("left", "right")]
    both = {
        "backbone": "tinyvgg",
        "streams": {"left": {"weights": None}, "right": {"weights": None}},
        "heads": {"out": {"classes": 11, "skips": skips, "fusion": "mean"}},
    }
    data = DataConfig(root="", name="twice", workers=0, crop="whole")
    single = DataConfig(root=SCENES, name="scenes", workers=0, crop="whole")
    still = settings(steps=1, optimizer="sgd", lr=5e-9, weight_decay=0, freeze_norm=True)
    one, other = (settings(steps=2, batch=2, seed=seed) for seed in (1, 2))
    stages = [
        {"name": "a", "model": alone, "data": single, "fit": one},
        {"name": "b", "start": "classifier", "model": alone, "data": single, "fit": other},
        {"name": "ab", "start": {"left": "a", "right": "b"}, "model": both, "data": data, "fit": still},
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, "twice", twice)  # type: ignore[arg-type]
        seen: list[Event] = []
        model = train(Recipe.parse({"stages": stages}), out=tmp_path, on_event=seen.append)
    said = [event.message for event in of(Said, seen)]
    assert any("tensors from a as left" in line for line in said)
    assert "ab: new: none" in said
    found = model.state_dict()
    for name, stream in (("a", "left"), ("b", "right")):
        before = checkpoint.load(tmp_path / name / "best").state_dict()
        for key, tensor in before.items():
            if key.startswith("backbone.net.") and "num_batches" not in key:
                goal = key.replace("backbone.", f"backbone.streams.{stream}.", 1)
            elif ".score." in key:
                goal = key.replace(".score.", f".score.{stream}/")
            else:
                continue
            torch.testing.assert_close(found[goal], tensor, rtol=0, atol=1e-6, msg=goal)
    # Two streams that see the same picture: the mean of what each alone says.
    image = torch.randint(0, 256, (1, 3, 48, 64))
    alone_scores = [checkpoint.load(tmp_path / name / "best").score_maps(image)["out"] for name in ("a", "b")]
    together = model.score_maps(torch.cat((image, image), 1))["out"]
    torch.testing.assert_close(together, sum(alone_scores) / 2, rtol=1e-4, atol=1e-5)


def twice(root: str, *, split: str, seed: int, inputs: tuple[str, ...]) -> Any:
    """Scenes whose pictures have their colours twice, for two streams."""
    data = dataset("scenes", SCENES, split=split)

    class Twice(View):
        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            return Sample(sample.name, np.concatenate((sample.image, sample.image), 2), sample.labels)

    return Twice(data, range(len(data)))


def test_a_stage_may_start_from_the_classifier_once_more(tmp_path: Path) -> None:
    seen: list[Event] = []
    stage = recipe(fit=settings(steps=1)).stages[0]
    again = stage.model_copy(update={"name": "again", "start": "classifier"})
    train(Recipe(stages=(stage, again)), out=tmp_path, on_event=seen.append)
    assert not any("tensors from" in event.message for event in of(Said, seen))
    assert [alarm.stage for alarm in of(Alarm, seen) if alarm.kind == "uninitialised"] == ["8s", "again"]


def test_what_is_noted_of_pictures_says_of_which_split(tmp_path: Path) -> None:
    root = planted.scenes(tmp_path / "data", train=4, val=2)
    said: list[Event] = []
    training._checked([(open_folder(root), open_folder(root, split="val"))], said.append)
    sizes = [event.message for event in of(Said, said) if "all pictures have" in event.message]
    assert [line.split(" have")[0] for line in sizes] == ["train: all pictures", "val: all pictures"]


def test_what_val_nearly_shares_with_train_is_said_and_what_cannot_be_read_stops(tmp_path: Path) -> None:
    root = planted.scenes(tmp_path / "data", train=8, val=2)
    mirrored = Image.open(root / "images/train/05.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(root / "images/val/01.png")
    pair = open_folder(root), open_folder(root, split="val")
    said: list[Event] = []
    training._checked([pair], said.append)
    (line,) = (event.message for event in of(Said, said) if "nearly" in event.message)
    assert line.startswith("1 of the 2 pictures of val are nearly pictures of train: 01 (like 05, 1.000)")
    planted.edit(root / "labels/val/01.png", lambda ids: ids * 0 + 77)
    with pytest.raises(DatasetError, match=r"labels/val/01\.png: 1 value outside the table"):
        training._checked([pair], said.append)


def test_a_recipe_that_was_changed_in_the_folder_of_its_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    made = recipe(fit=settings(steps=2))
    train(made, out=out)
    told = json.loads((out / "run.json").read_text())["recipe_sha256"]
    plain = json.loads((out / "recipe.json").read_text())
    plain["stages"][0]["fit"]["device"] = "cpu"  # where to compute may change
    (out / "recipe.json").write_text(json.dumps(plain))
    train(Recipe.read(out / "recipe.json"), out=out, resume=True)
    assert json.loads((out / "run.json").read_text())["recipe_sha256"] == told
    plain["stages"][0]["fit"]["lr"] *= 50
    (out / "recipe.json").write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match=r"recipe\.json: was changed since the run began with it"):
        train(Recipe.read(out / "recipe.json"), out=out, resume=True)


def test_two_processes_do_not_learn_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    code = (
        "import fcntl, os, sys, time\n"
        f"file = open({str(out / '.lock')!r}, 'a+')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\n"
        "file.write(f'{os.getpid()}\\n'); file.flush(); print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"process {other.pid} learns here; wait until it ends, or name another"):
            train(recipe(fit=settings(steps=1)), out=out)
        assert not (out / "recipe.json").exists()
        other.communicate(b"")
    train(recipe(fit=settings(steps=1)), out=out)
    assert not (out / ".lock").exists()


def test_a_batch_of_one_picture_that_leaves_a_norm_one_value_is_refused_in_one_line(tmp_path: Path) -> None:
    small = recipe(fit=settings(steps=1, batch=1))
    stage = small.stages[0]
    data = stage.data.model_copy(update={"crop": (32, 32)})
    model = fcn(32, "resnet18", classes=len(dataset("scenes", SCENES).classes["out"]), weights=None)
    with pytest.raises(ConfigError, match="batch: 1 picture of 32x32 leaves a BatchNorm one value"):
        train(Recipe(stages=(stage.model_copy(update={"data": data, "model": model}),)), out=tmp_path / "run")
