"""Settings are checked where they are born, and a wrong one is named by its path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fullyconv.config import (
    INPUTS,
    Classes,
    ClassInfo,
    DataConfig,
    FitConfig,
    InputConfig,
    ModelConfig,
    Recipe,
    voc_colour,
)
from fullyconv.errors import ConfigError

MODEL: dict[str, Any] = {"backbone": "vgg16", "heads": {"out": {"classes": 3, "skips": [{"tap": "fc7"}]}}}


def stage(**fit: Any) -> dict[str, Any]:
    return {"name": "a", "model": MODEL, "data": {"root": "x"}, "fit": {"steps": 1} | fit}


def test_an_unknown_setting_is_named_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"^r\.toml: stages\.0\.fit\.learning_rate: no such setting") as caught:
        Recipe.parse({"stages": [stage(learning_rate=1)]}, source="r.toml")
    assert caught.value.where == "stages.0.fit.learning_rate"
    assert "; known: accumulate, backbone_lr, batch, " in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stage": []}, "stage: no such setting; did you mean stages?"),
        ({"stages": [{**stage(), "fit": {"step": 3}}]}, "stages.0.fit.step: no such setting; did you mean steps"),
        (
            {"stages": [{**stage(), "model": {**MODEL, "heads": {"out": {"clases": 3}}}}]},
            "stages.0.model.heads.out.clases: no such setting; did you mean classes?",
        ),
    ],
)
def test_a_setting_that_is_written_wrong_is_told_before_the_one_that_is_missing_for_it(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(change)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        ({"steps": None}, "got none"),
        ({"epochs": 2}, "got epochs and steps"),
        ({"lr": -1}, "greater than 0"),
        ({"lr": float("nan")}, "finite"),
        ({"batch": 0}, "greater than or equal to 1"),
        ({"head_loss": {"out": -1}}, r"fit\.head_loss\.out: .*greater than or equal to 0, got -1"),
        ({"schedule": "linear"}, "'fixed', 'poly' or 'cosine'"),
    ],
)
def test_an_impossible_setting_is_refused_with_what_is_allowed(fit: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recipe.parse({"stages": [stage(**fit)]})


def test_a_setting_of_several_types_is_named_without_them() -> None:
    wrong = stage() | {"data": {"root": "x", "crop": ["a", 5]}}
    with pytest.raises(ConfigError) as caught:
        Recipe.parse({"stages": [wrong]})
    assert caught.value.where == "stages.0.data.crop"


def test_settings_cannot_be_changed_once_made() -> None:
    fit = FitConfig(steps=3)
    with pytest.raises(ValueError, match="frozen"):
        fit.steps = 4  # type: ignore[misc]


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="share a name"):
        Recipe.parse({"stages": [stage(), stage()]})


@pytest.mark.parametrize("name", ["../up", "", "a/b", ".hidden", "x" * 65])
def test_a_stage_name_cannot_leave_the_run_folder(name: str) -> None:
    with pytest.raises(ConfigError, match=r"stages\.0\.name"):
        Recipe.parse({"stages": [stage() | {"name": name}]})


@pytest.mark.parametrize("name", ["log.jsonl", "tensorboard", "Results.json"])
def test_a_stage_cannot_be_named_as_a_file_of_the_run_is(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"stages\.0\.name: '{name}' is a file of the run folder"):
        Recipe.parse({"stages": [stage() | {"name": name}]})


def test_a_recipe_reads_the_same_from_toml_and_json(tmp_path: Path) -> None:
    toml = tmp_path / "r.toml"
    toml.write_text(
        'name = "r"\n[[stages]]\nname = "a"\n[stages.model]\nbackbone = "vgg16"\n[stages.model.heads.out]\n'
        'classes = 3\nskips = [{tap = "fc7"}]\n[stages.data]\nroot = "x"\n[stages.fit]\nsteps = 1\n'
    )
    recipe = Recipe.read(toml)
    again = tmp_path / "r.json"
    again.write_text(recipe.model_dump_json())
    assert Recipe.read(again) == recipe


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.toml", "stages = [", "not valid TOML"),
        ("r.json", "{", "not valid JSON"),
        ("r.json", "[" * 100_000, "nested more than 64 deep"),
        ("r.json", "[]", "Recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        Recipe.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Recipe.read(tmp_path / "none.toml")


def test_a_preprocessing_may_be_given_by_name() -> None:
    assert ModelConfig.parse(MODEL | {"input": "caffe"}).input == INPUTS["caffe"]
    with pytest.raises(ConfigError, match="did you mean 'caffe'"):
        ModelConfig.parse(MODEL | {"input": "cafe"})


def test_mean_and_std_have_as_many_channels() -> None:
    with pytest.raises(ValueError, match="mean has 3 channels and std 4"):
        InputConfig(std=(1, 1, 1, 1))


@pytest.mark.parametrize("wrong", [{"scale": (2, 1)}, {"scale": (0, 1)}, {"crop": (0, 5)}])
def test_impossible_transforms_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DataConfig.parse({"root": "x"} | wrong)


def table(*entries: tuple[int, str, bool]) -> Classes:
    return Classes(entries=tuple(ClassInfo(id=i, name=n, colour=(i % 256, 0, 0), ignore=v) for i, n, v in entries))


def test_ids_with_gaps_and_void_in_between_become_channels_without() -> None:
    classes = table((0, "a", False), (3, "v", True), (7, "b", False))
    assert classes.names == ("a", "b")
    assert classes.index_of_id() == {0: 0, 3: 255, 7: 1, 255: 255}


def test_255_may_be_a_class_of_its_own() -> None:
    assert table((0, "no", False), (255, "yes", False)).index_of_id() == {0: 0, 255: 1}


def test_more_than_255_classes_have_a_wider_void() -> None:
    assert table(*((i, str(i), False) for i in range(300))).void == 65535


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([(0, "a", False), (0, "b", False)], "share the id 0"),
        ([(0, "a", False), (1, "a", False)], "share the name 'a'"),
        ([(1, "a", False), (0, "b", False)], "ascending"),
        ([(0, "a", True)], "every class is void"),
    ],
)
def test_a_table_that_means_nothing_is_refused(entries: list[tuple[int, str, bool]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        table(*entries)


@given(st.integers(0, 255), st.integers(0, 255))
def test_voc_colours_differ(a: int, b: int) -> None:
    assert (voc_colour(a) == voc_colour(b)) == (a == b)


def test_a_table_survives_json() -> None:
    classes = table((0, "straße", False), (9, "void", True))
    assert Classes.parse(json.loads(classes.model_dump_json())) == classes


def test_what_is_wrong_is_counted_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse({"stages": [stage(lr=-1)]})
    assert "more)" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        Recipe.parse({"stages": [stage(lr=-1, batch=0)]})


@pytest.mark.parametrize(("mean", "std"), [((1e308,), (1.0,)), ((0.0,), (1e7,)), ((-1e300,), (1.0,))])
def test_a_preprocessing_beyond_any_picture_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"mean and std are those of numbers in 0..255 or so, got 1e\+"):
        InputConfig.parse({"mean": mean, "std": std})
