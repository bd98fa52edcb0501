"""Compiles the native kernel while the package is built; without a compiler the package is plain Python, and works.

A library for one platform, not for one Python: it is plain C to the outside, so the wheel is ``py3-none-<platform>``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/fullyconv/native")
LIBRARY = {"win32": "_kernel.dll", "darwin": "_kernel.dylib"}.get(sys.platform, "_kernel.so")
# Fused multiply-adds would round differently from one instruction set to another.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden", "-shared"]


class NativeKernel(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        library = Path(self.root, FOLDER, LIBRARY)
        library.unlink(missing_ok=True)  # an old one must not stand in for one that cannot be built
        problem = build(Path(self.root, FOLDER, "kernel.cpp"), library)
        if problem:
            self.app.display_warning(f"fullyconv: no native kernel, plain torch will be used: {problem}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"
        build_data["artifacts"].append(f"/{FOLDER.as_posix()}/{LIBRARY}")  # git ignores it; the wheel must not


def build(source: Path, library: Path) -> str | None:
    """Compile; what went wrong, in one line, or None."""
    compiler = next(filter(None, map(_found, (os.environ.get("CXX"), "c++", "g++", "clang++"))), None)
    if compiler is None:
        return "no C++ compiler found (c++, g++, clang++ or the environment's CXX)"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, library.name)
        command = [*compiler, *FLAGS, *_platform_flags(), "-o", str(made), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{compiler[0]}: {error}"
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            return f"{compiler[0]} failed: {lines[0] if lines else done.returncode}"
        # Whole or not at all: a process may have the old one open.
        beside = library.with_suffix(".new")
        shutil.copy(made, beside)
        beside.replace(library)
    return None


def _found(command: str | None) -> list[str] | None:
    words = shlex.split(command) if command else []
    return words if words and shutil.which(words[0]) else None


def _platform_flags() -> list[str]:
    if sys.platform == "win32":
        return ["-static"]
    if sys.platform == "darwin":
        both = sysconfig.get_platform().endswith("universal2")
        return ["-fPIC", *(["-arch", "arm64", "-arch", "x86_64"] if both else [])]
    # Libraries of C++ are older on other machines.
    return ["-fPIC", "-pthread", "-static-libstdc++", "-static-libgcc", "-s"]


def platform_tag() -> str:
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
