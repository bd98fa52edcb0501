"""What test files share: one thread a worker, the real data where it is there, a folder to plant faults in, a
command line to run, and a model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Tests run on several workers; torch would start as many threads in each.
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside the checkout on the project's own machines, never inside it."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the project's real data (../shared/data) is not on this machine")
    return folder


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of generated scenes without a fault; only to be read."""
    import planted

    return planted.scenes(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to plant faults in."""
    return Path(shutil.copytree(sound, tmp_path / "data"))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; gives the exit code, stdout and stderr."""

    from fullyconv import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            cli.main([str(argument) for argument in arguments])
        said = capfd.readouterr()
        return int(done.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few small pictures: bright is sky, dark is road."""
    from fullyconv.config import Classes
    from fullyconv.images import write_image
    from fullyconv.labels import write_labels

    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    (root / "classes.txt").write_text("sky\nroad\ncat\n")
    for split, count in (("train", 6), ("val", 2)):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for i in range(count):
            labels = np.repeat(np.repeat(generator.integers(0, 3, (4, 5), np.uint8), 16, 0), 16, 1)
            pixels = (60 + 70 * labels[..., None] + generator.integers(0, 40, (64, 80, 3))).astype(np.uint8)
            write_image(root / "images" / split / f"{i}.png", pixels)
            write_labels(root / "labels" / split / f"{i}.png", labels, Classes.of("sky", "road", "cat"))
    return root


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model for such pictures, which has learnt nothing."""
    from fullyconv import checkpoint, presets
    from fullyconv.building import build
    from fullyconv.config import Classes

    config = presets.fcn8s("tinyvgg", classes=3, weights=None)
    table = {"out": Classes.of("sky", "road", "cat")}
    return checkpoint.save(build(config, classes=table), tmp_path_factory.mktemp("models") / "m")
