"""A few of the kills and failing writes that run by the hundred at night (docs/reliability.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch")
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (["kills.py", "--kills", "4", "--seed", "1"], "4 kills in"),
        (["writes.py", "--every", "110"], "train: 3 failing writes, 0 ended wrongly"),
    ],
)
def test_runs_go_on_as_if_undisturbed(script: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / script[0]), *script[1:]], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout
