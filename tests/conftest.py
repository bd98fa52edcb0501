"""What test files share: one thread a worker, the real data where it is there, and a folder to plant faults in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


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
