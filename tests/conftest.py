"""What every test file shares: one thread a worker, and the real data where it is there."""

from __future__ import annotations

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
