"""Run all benchmarks, one after the other, and write down what they found: ``make bench``.

    python benchmarks/run.py [NAME ...] [--quick] [--minutes 15]
    python benchmarks/run.py --docs

Each script has a process of its own and a share of the time; one that fails or takes too long is named, and the others
run. Other people's packages (``benchmarks/peers.txt``) go into ``.bench-venv``, over this interpreter's packages, so
that all compute with the same torch; what pip cannot install is left out. Written are the results of the machine,
``benchmarks/results/MACHINE.json``, in which scripts that did not run keep what they found before, and from them
``docs/performance.md`` and its figure, which ``--docs`` writes again without measuring. A quick run writes beside them,
to ``quick.json``, and no document.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from common import RESULTS, cpu, machine

HERE = Path(__file__).parent
ROOT = HERE.parent
VENV = ROOT / ".bench-venv"
DOCS = ROOT / "docs" / "performance.md"
Row = dict[str, Any]
FIGURE = ROOT / "docs" / "images" / "cost.png"


class Script(NamedTuple):
    name: str
    seconds: float
    """It is stopped after."""
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ("--quick",)
    peers: bool = False


SCRIPTS = (
    Script("ceiling", 60),
    Script("tail", 150, ("--rounds", "5"), ("--quick", "--rounds", "3")),
    Script("loss", 120),
    Script("depthwise", 30),
    Script("training", 240, ("--rounds", "3"), peers=True),
    Script("inference", 360, ("--rounds", "7"), ("--quick", "--rounds", "3"), peers=True),
    Script("agreement", 150, ("--rounds", "5"), peers=True),
    Script("growth", 120, ("--rounds", "3")),
    Script("tiled", 150, ("--size", "3000", "--rounds", "1"), ("--size", "2500", "--rounds", "1")),
    Script("pipeline", 90, ("--pictures", "100"), ("--pictures", "40", "--rounds", "2")),
    Script("cold_start", 90, ("--rounds", "5"), ("--rounds", "2")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(script.name for script in SCRIPTS))
    parser.add_argument("--quick", action="store_true", help="small cases and few rounds, to see that all runs")
    parser.add_argument("--minutes", type=float, default=15, help="in all; what has not begun by then is left out")
    parser.add_argument("--docs", action="store_true", help="only write docs/performance.md again")
    options = parser.parse_args()
    known = {script.name: script for script in SCRIPTS}
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"{unknown[0]}: expected some of {', '.join(known)}")
    path = RESULTS / ("quick.json" if options.quick else f"{slug()}.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    failed: list[str] = []
    if not options.docs:
        chosen = [script for script in SCRIPTS if not options.names or script.name in options.names]
        deadline = time.monotonic() + 60 * options.minutes
        interpreter = peers() if any(script.peers for script in chosen) else sys.executable
        if "found" in found.get("ceiling", {}):  # for the others, should it not run now
            (RESULTS / "ceiling.json").write_text(json.dumps(found["ceiling"]["found"]), encoding="utf-8")
        for script in chosen:
            seconds = min(script.seconds, deadline - time.monotonic())
            python = interpreter if script.peers else sys.executable
            record = run(script, python, script.quick if options.quick else script.options, seconds)
            found[script.name] = record
            # After each, so that nothing is lost with the rest.
            path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            if "failed" in record:
                failed.append(script.name)
        for script in SCRIPTS:
            (RESULTS / f"{script.name}.json").unlink(missing_ok=True)
    if not found:
        parser.error(f"{path} is not there; run without --docs first")
    found = {script.name: found[script.name] for script in SCRIPTS if script.name in found}
    if not options.quick:
        draw(found)
        DOCS.write_text(page(found, path), encoding="utf-8")
        print(f"{path.relative_to(ROOT)}, {DOCS.relative_to(ROOT)}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


def slug() -> str:
    """The name of this machine, for a file."""
    words = re.sub(r"\(.*?\)|CPU|@.*", " ", cpu())
    return re.sub(r"[^a-z0-9]+", "-", f"{words} {os.cpu_count()} cores".lower()).strip("-")


def peers() -> str:
    """The interpreter that has the packages of others, or this one where no such can be made."""
    python = VENV / "bin" / "python"
    wanted, done = HERE / "peers.txt", VENV / "peers.txt"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True, capture_output=True)
            ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
            theirs = next((VENV / "lib").glob("python*/site-packages"))
            (theirs / "ours.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
    except (OSError, StopIteration, subprocess.CalledProcessError) as error:
        print(f"peers: left out, since {VENV.name} cannot be made: {error}")
        return sys.executable
    if done.exists() and done.read_text() == wanted.read_text():
        return str(python)
    missing = []
    for line in wanted.read_text().splitlines():
        # A line may end in options of pip: ultralytics would bring an OpenCV that wants a screen.
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *line.split()]
        with contextlib.suppress(subprocess.TimeoutExpired):
            if subprocess.run(command, capture_output=True, timeout=120).returncode == 0:
                continue
        missing.append(line)
    if missing:
        print(f"peers: pip cannot install {', '.join(missing)}; left out")
    else:
        shutil.copy(wanted, done)
    return str(python)


def run(script: Script, python: str, options: Sequence[str], seconds: float) -> dict[str, Any]:
    """What a script printed and found; or under "failed" why it did not."""
    arguments = [f"benchmarks/{script.name}.py", *options]
    command = " ".join(["python", *arguments])
    print(f"\n{command}", flush=True)
    record: dict[str, Any] = {"command": command, "before": machine(), "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}
    part = RESULTS / f"{script.name}.json"
    if seconds < 5:
        print("failed: no time was left")
        return record | {"failed": "no time was left"}
    if not (ROOT / arguments[0]).exists():
        print("failed: no such script")
        return record | {"failed": "no such script"}
    part.unlink(missing_ok=True)
    begun = time.monotonic()
    # A group of its own, so that competitors end with it.
    process = subprocess.Popen(
        [python, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        table, errors = process.communicate(timeout=seconds)
        failed = ""
        if process.returncode:
            failed = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        table, errors = process.communicate()
        failed = f"it took more than {seconds:.0f} s"
    print(table, end="")
    lines = [line for line in table.splitlines() if not line.startswith(str(ROOT)) and line.strip() != str(part)]
    record |= {"seconds": round(time.monotonic() - begun, 1), "table": [line.replace(f"{ROOT}/", "") for line in lines]}
    record["load_after"] = round(os.getloadavg()[0], 2)
    if failed:
        print(errors[-2000:], end="", file=sys.stderr)
        print(f"failed: {failed}")
        return record | {"failed": failed}
    if part.exists():
        record["found"] = json.loads(part.read_text(encoding="utf-8"))
    return record


def draw(found: dict[str, Any]) -> None:
    """The figure: cost against pixels and against classes."""
    rows = found.get("growth", {}).get("found", {}).get("rows")
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels: tuple[tuple[list[Row], Callable[[Row], float], str], ...] = (
        ([row for row in rows if row["classes"] == 21], lambda row: row["side"] ** 2 / 1e6, "megapixels (21 classes)"),
        ([row for row in rows if row["side"] == 512], lambda row: row["classes"], "classes (512 x 512 pixels)"),
    )
    for axis, (points, along, label) in zip(axes, panels, strict=True):
        points = sorted(points, key=along)
        for name in rows[0]["ms"]:
            axis.plot([along(row) for row in points], [row["ms"][name] for row in points], "o-", ms=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[1].legend(frameon=False, fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=80)


def page(found: dict[str, Any], path: Path) -> str:
    """The text of ``docs/performance.md``."""
    first = next(iter(found.values()))
    on = first["before"]
    rates = found.get("ceiling", {}).get("found", {}).get("rates", {})
    units = {name: "GB/s" if name.startswith("copy") else "GFLOP/s" for name in rates}
    limits = "; ".join(f"{name} {rate:,.0f} {units[name]}" for name, rate in rates.items())
    bf16 = " and ".join(on["bf16"]) or "none"
    versions = f"fullyconv {on['fullyconv']}, torch {on['torch']}, Python {on['python']}"
    lines = [
        "# Performance",
        "",
        "Written by `make bench`, which runs every script of `benchmarks/` and prints these tables. Competitors run",
        "side by side, one process each, in turns, so believe the ratios: milliseconds belong to the machine and its",
        "load. Weights and pictures are random (seed 0), unless a section says otherwise.",
        "",
        f"Machine: {cpu()}, {on['cores']} cores, bf16 in hardware: {bf16}; {platform.system()}; {versions}.",
        f"All numbers: `{path.relative_to(ROOT)}`.",
        "",
        *([f"What this machine can do at most, measured in the same run: {limits}.", ""] if limits else []),
    ]
    for name, record in found.items():
        source = HERE / f"{name}.py"
        document = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) if source.exists() else None
        load = f"load {record['before']['load']} before, {record.get('load_after', '-')} after"
        lines += [
            f"## {(document or name).splitlines()[0]}",
            "",
            f"`{record['command']}`, {record['at']}, {load}.",
            "",
        ]
        if failed := record.get("failed"):
            lines += [f"This script did not finish: {failed}.", ""]
        if table := [line.rstrip() for line in record.get("table", []) if line.strip()]:
            lines += ["```text", *table, "```", ""]
        if limits and name != "ceiling":
            lines += [f"Limits: {limits}.", ""]
        if name == "growth" and FIGURE.exists():
            lines += [f"![Cost against pixels and classes]({FIGURE.relative_to(DOCS.parent)})", ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(main())
