"""What must not be loaded to say what the program can do."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "torchvision", "timm", "PIL", "numpy", "rich", "matplotlib", "lightning_fabric")
LIMIT_S = 0.3


def loaded_by(code: str) -> set[str]:
    """The heavy packages in ``sys.modules`` after a fresh interpreter has run ``code``."""
    report = f"import sys\n{code}\nprint('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


HELP = """
from fullyconv.cli import main
try:
    main({arguments!r})
except SystemExit as done:
    assert done.code == 0, done.code
"""


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import fullyconv")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["predict", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    assert not loaded_by(HELP.format(arguments=arguments))


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_by("import numpy") == {"numpy"}


@pytest.mark.parametrize("command", [["-c", "import fullyconv"], ["-m", "fullyconv", "--help"]])
def test_help_answers_within_a_third_of_a_second(command: list[str]) -> None:
    # The best of several: the others measure what else the machine was doing.
    best = float("inf")
    for _ in range(8):
        started_at = time.perf_counter()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        best = min(best, time.perf_counter() - started_at)
        if best < LIMIT_S:
            return
    pytest.fail(f"{' '.join(command)} took {best:.2f} s at best; expected under {LIMIT_S} s")
