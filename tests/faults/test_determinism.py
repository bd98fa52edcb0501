"""The same seed on the same machine gives the same files, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from kills import outcome, recipe

from fullyconv import cli
from fullyconv.config import Recipe
from fullyconv.devices import deterministic
from fullyconv.errors import ConfigError
from fullyconv.learner import Learner


def run(out: Path, *options: str, settings: Recipe | None = None) -> dict[str, object]:
    file = out.with_name("recipe.json")
    file.write_text((settings or recipe(workers=0, stages=1)).model_dump_json())
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--recipe", str(file), "--out", str(out), *options])
    assert not left.value.code
    return outcome(out)


def test_two_trainings_give_the_same_bytes_on_the_cpu(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one"), run(tmp_path / "other")
    assert one == other
    assert len(one) == 6
    assert run(tmp_path / "another", "--seed", "1") != one


def test_deterministic_holds_while_it_learns_and_scores_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    whole = Learner.step

    def step(self: Learner, *args: object, **rest: object) -> tuple[float, float]:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return whole(self, *args, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "step", step)
    strict = run(tmp_path / "strict", "--deterministic")
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    plain = run(tmp_path / "plain")
    # The files name no setting of the run; on the CPU nothing else differs either.
    assert strict == plain


def test_settings_are_as_before_and_what_cannot_repeat_is_one_line() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    with (
        pytest.raises(ConfigError, match="deterministic: kthvalue has no such form on this device"),
        deterministic(True),
    ):
        raise RuntimeError("kthvalue does not have a deterministic implementation, but you set ...")
    assert (cudnn.deterministic, cudnn.benchmark) == before
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another"), deterministic(True):
        raise RuntimeError("another")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.skipif("CUBLAS_WORKSPACE_CONFIG" not in os.environ, reason="CUDA may have been started without it")
def test_two_trainings_give_the_same_bytes_on_cuda(tmp_path: Path) -> None:
    options = ("--device", "cuda", "--deterministic")
    assert run(tmp_path / "one", *options) == run(tmp_path / "other", *options)
