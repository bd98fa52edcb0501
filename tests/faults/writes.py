"""Let every write of a command fail in turn: a full disk, a read-only one, a network file system that is gone.

    python tests/faults/writes.py --every 1

What a command writes under its folder is counted in an undisturbed run: files opened for writing or flushed, folders
made, renames, tensors stored. Then it runs again and again, and from write number n on everything fails, with an error
of the system that changes from n to n. It must end with code 2 (predict: 1 or 2) and one line; and, with the disk in
order, go on to what the undisturbed run gave. Exit code: 0 it always did, 1 once it did not.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kills import outcome, recipe
from PIL import Image
from safetensors import SafetensorError

from fullyconv import cli, weights

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EDQUOT)


class Disk:
    """The writes below a folder: counted, and from number ``fails_at`` on refused with this error of the system."""

    def __init__(self, folder: Path, fails_at: int | None, code: int) -> None:
        self.folder, self.fails_at, self.code, self.writes = str(folder), fails_at, code, 0

    def write(self, path: object, error: Callable[[str], Exception] | None = None) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.folder):
            return
        self.writes += 1
        if self.fails_at is not None and self.writes >= self.fails_at:
            said = os.strerror(self.code)
            raise OSError(self.code, said, os.fspath(path)) if error is None else error(f"I/O error: {said}")

    def mount(self) -> None:
        """For the rest of this process."""

        def watched(whole: Callable[..., Any], *, error: Callable[[str], Exception] | None = None, at: int = 0) -> Any:
            def call(*args: Any, **rest: Any) -> Any:
                self.write(args[at], error)
                return whole(*args, **rest)

            return call

        opens = io.open

        def open_(file: Any, mode: str = "r", *args: Any, **rest: Any) -> Any:
            if set(mode) & set("wxa+"):
                self.write(file)
            return opens(file, mode, *args, **rest)

        io.open = builtins.open = open_  # type: ignore[assignment]
        for name in ("mkdir", "rename", "replace"):
            setattr(os, name, watched(getattr(os, name)))
        weights.save_file = watched(weights.save_file, error=SafetensorError, at=1)


def run(args: list[str], folder: Path, *, fails_at: int | None, code: int = errno.ENOSPC) -> tuple[int, str, int]:
    """The exit code, the standard error, and the writes of a command in a forked child."""
    said, counted = folder.with_name("stderr.txt"), folder.with_name("writes.txt")
    child = os.fork()
    if not child:
        status = 70
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            disk = Disk(folder, fails_at, code)
            disk.mount()
            try:
                cli.main(args)
            except SystemExit as left:
                status = int(left.code or 0)
            counted.write_text(str(disk.writes))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said.read_text(), int(counted.read_text()) if counted.exists() else -1


def command(verb: str, place: Path, folder: Path) -> list[str]:
    if verb == "train":
        return ["train", "--recipe", str(place / "recipe.json"), "--out", str(folder), "--resume", "--no-check"]
    return ["predict", str(place / "train-whole"), str(place / "pictures"), "--out", str(folder), "--overlay"]


def result(verb: str, folder: Path) -> dict[str, object]:
    if verb == "train":
        return outcome(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".jpg")}


def torment(verb: str, place: Path, every: int) -> tuple[int, list[str]]:
    """How many faults were tried, and what was wrong with how they ended."""
    folder = place / f"{verb}-whole"
    code, said, writes = run(command(verb, place, folder), folder, fails_at=None)
    if code:
        raise RuntimeError(said)
    expected = result(verb, folder)
    tried, wrong = 0, list[str]()
    for number in range(1, writes + 1, every):
        folder, error = place / f"{verb}-{number}", ERRORS[number // every % len(ERRORS)]
        args = command(verb, place, folder)
        code, said, _ = run(args, folder, fails_at=number, code=error)
        lines = [line for line in said.splitlines() if "error: " in line]
        what = f"{verb}, write {number} of {writes}, {os.strerror(error)}"
        tried, known = tried + 1, len(wrong)
        if code not in ((2,) if verb == "train" else (1, 2)) or "Traceback" in said or len(lines) != (code == 2):
            wrong.append(f"{what}: code {code}: {said[-2000:]}")
        elif os.strerror(error) not in said:
            wrong.append(f"{what}: does not name the reason: {said[-500:]}")
        code, told, _ = run(args, folder, fails_at=None)
        if code or result(verb, folder) != expected:
            wrong.append(f"{what}: afterwards code {code}, other results: {told[-2000:]}")
        ended = "WRONG: " if len(wrong) > known else ""
        print(f"{what}: {ended}{lines[0] if lines else said.strip()[-200:]}", flush=True)
    return tried, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try every Nth write only")
    every = parser.parse_args().every
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as named:
        place = Path(named)
        (place / "recipe.json").write_text(recipe(workers=0).model_dump_json())
        (place / "pictures").mkdir()
        for number in range(3):
            Image.new("RGB", (40, 30), (80 * number, 90, 100)).save(place / "pictures" / f"{number}.png")
        done = {verb: torment(verb, place, every) for verb in ("train", "predict")}
    for verb, (tried, wrong) in done.items():
        print(f"{verb}: {tried} failing writes, {len(wrong)} ended wrongly")
        for line in wrong:
            print(f"wrong: {line}")
    print(f"{time.monotonic() - begun:.0f} s")
    sys.exit(1 if any(wrong for _, wrong in done.values()) else 0)


if __name__ == "__main__":
    main()
