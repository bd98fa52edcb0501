"""Does some test fail when the code is wrong? Mutants of the modules that everything rests on, one by one.

Each mutant runs in a process forked from one that has all libraries loaded already, and meets only the tests that
reach its lines, those that killed most first and then the quickest, until one fails. What is written:
``docs/results/mutation.json`` and ``mutation.md``, with the reasons for survivors from ``survivors.toml``.

    python tests/mutation/run.py                     # all mutants of all modules
    python tests/mutation/run.py geometry dense --sample 200
    python tests/mutation/run.py --rest              # go on: those that survived last time or were not run
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import pickle
import random
import resource
import sys
import time
import tomllib
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mutants import Mutant, mutants

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "fullyconv"
RESULTS = ROOT / "docs" / "results"
SURGERY = ["test_surgery", "test_surgery_refusals", "test_edits", "test_postconditions"]
# The tests that are there for a module; others would kill some mutants too, but later and by chance.
TESTS = {
    "geometry": ["test_geometry"],
    "metrics": ["test_metrics"],
    "checkpoint": ["test_checkpoint"],
    "surgery": [*SURGERY, "test_taps"],
    "edits": SURGERY,
    "postconditions": SURGERY,
    "dense": ["test_dense", "test_native", "test_fused"],
}
ALIVE = ("survived", "not reached")
SLOWEST = 15.0
"""Seconds: a test that takes longer is left out, to a survivor's advantage."""
LEFT_OUT = [
    "at_native_size_on_live",
    "families_that_no_table",
    "transformers_are_refused",
    "compiler",
    "thousand_classes",
]
"""Tests that take minutes together, as words in their names."""


class Mutated(MetaPathFinder, Loader):
    """Imports one module from changed source."""

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source, self.path = f"fullyconv.{name}", source, str(SOURCE / f"{name}.py")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin=self.path) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = self.path
        exec(compile(self.source, self.path, "exec"), module.__dict__)


class Reaching:
    """Pytest plugin of the first run: which tests reach which lines, and how long each takes."""

    def __init__(self, name: str) -> None:
        import coverage

        self.file = str(SOURCE / f"{name}.py")
        self.coverage = coverage.Coverage(data_file=None, include=[self.file], config_file=False)
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        started = time.process_time()
        self.coverage.switch_context(item.nodeid)
        yield
        self.coverage.switch_context("")
        self.seconds[item.nodeid] = time.process_time() - started

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    def found(self) -> dict[str, Any]:
        self.coverage.stop()
        assert not self.failed, f"tests fail without any mutant: {self.failed}"
        lines = self.coverage.get_data().contexts_by_lineno(self.file)
        return {"seconds": self.seconds, "lines": lines, "modules": list(sys.modules)}


class Chosen:
    """Pytest plugin of all other runs: runs some tests, in the order given, and keeps the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: i for i, test in enumerate(tests)}
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda i: self.order[i.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid


def forked(work: Callable[[], Any], seconds: float, log: Path | None = None) -> Any:
    """What ``work`` returns in a process of its own; None where it dies or needs more processor time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        silent = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1,) * 2)
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30,) * 2)
        try:
            with os.fdopen(writer, "wb") as out:
                out.write(pickle.dumps(work()))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        data = answer.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else None


def run_tests(plugin: object, files: list[str]) -> int:
    options = ["-q", "-x", "--tb=no", "--timeout=120", "--rootdir", str(ROOT), "-o", "tmp_path_retention_policy=none"]
    options += ["-m", "not slow", "-k", " and ".join(f"not {words}" for words in LEFT_OUT)]
    for plugin_name in ("pytest_timeout", "no:cacheprovider", "no:unraisableexception", "no:threadexception"):
        options += ["-p", plugin_name]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def test_files(name: str) -> list[str]:
    return [str(ROOT / "tests" / f"{test}.py") for test in TESTS[name]]


def reach(name: str) -> dict[str, Any]:
    """The first run, without a mutant."""
    plugin = Reaching(name)
    run_tests(plugin, test_files(name))
    return plugin.found()


def judge(name: str, source: str, tests: list[str]) -> str:
    """Killed by which test, or "survived"."""
    sys.meta_path.insert(0, Mutated(name, source))
    plugin = Chosen(tests)
    files = sorted({str(ROOT / test.split("::")[0]) for test in tests})
    code = run_tests(plugin, files)
    if code == pytest.ExitCode.OK:
        return "survived"
    return plugin.failed or "at collection"


def warm(name: str, modules: list[str]) -> None:
    """Load what the tests load, but for what rests on the module that is to change."""
    sys.modules[f"fullyconv.{name}"] = None  # type: ignore[assignment]
    mine = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    for module in modules:
        if module.split(".")[0] in mine or module.startswith("pytest_") or "plugin" in module:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                importlib.import_module(module)
            except Exception:
                continue
    del sys.modules[f"fullyconv.{name}"]
    gc.freeze()  # so that no child touches, and thereby copies, what is loaded


def tests_reaching(mutant: Mutant, found: dict[str, Any]) -> list[str]:
    """The quickest first."""
    contexts = {c for line in range(mutant.lines[0], mutant.lines[1] + 1) for c in found["lines"].get(line, ())}
    # What runs when the module is imported concerns every test.
    reached = set(found["seconds"]) if "" in contexts else contexts
    chosen = [test for test in reached if found["seconds"].get(test, SLOWEST) < SLOWEST]
    return sorted(chosen, key=lambda test: (found["seconds"][test], test))


def run_module(name: str, sample: int | None, seed: int, before: dict[str, Any] | None) -> None:
    source = (SOURCE / f"{name}.py").read_text(encoding="utf-8")
    every = list(mutants(source))
    # In random order, so that a run that is cut off is a sample.
    chosen = random.Random(seed).sample(every, len(every))[:sample]
    verdicts: dict[str, str] = {}
    if before is not None:
        assert before["source"] == source_hash(source), f"{name} has changed since; run all of its mutants"
        verdicts = before["verdicts"]
    found = forked(lambda: reach(name), 3600, ROOT / "runs" / f"mutation-{name}.log")
    assert found is not None, f"the first run failed; see runs/mutation-{name}.log"
    warm(name, found["modules"])

    def keep() -> None:
        alive = [mutant for mutant in every if verdicts.get(str(mutant.number)) in ALIVE]
        survivors = [
            {"number": m.number, "line": m.lines[0], "verdict": verdicts[str(m.number)], "change": m.change(source)}
            for m in alive
        ]
        sampled = {} if len(verdicts) == len(every) else {"seed": seed}
        counts = {"source": source_hash(source), "mutants": len(every), "run": len(verdicts), **sampled}
        write(name, {**counts, "verdicts": verdicts, "survivors": survivors})

    done, kills = 0, Counter[str]()
    for mutant in chosen:
        if verdicts.get(str(mutant.number), "survived") not in ALIVE:
            continue
        tests = sorted(tests_reaching(mutant, found), key=lambda test: -kills[test])
        limit = 30 + 5 * sum(found["seconds"][test] for test in tests)
        text = mutant.source()
        verdict = forked(lambda text=text, tests=tests: judge(name, text, tests), limit) if tests else "not reached"
        verdicts[str(mutant.number)] = verdict or "time or memory"
        kills[verdicts[str(mutant.number)]] += 1
        if verdict in ALIVE:
            print(f"{name} #{mutant.number} {verdict} ({len(tests)} tests)\n{mutant.change(source)}", flush=True)
        if (done := done + 1) % 10 == 0:
            print(f"{name}: {len(verdicts)} of {len(every)}", flush=True)
            keep()
    control = forked(lambda: judge(name, source, sorted(found["seconds"])), 3600)
    assert control == "survived", f"a test fails without any mutant, so nothing was shown: {control}"
    keep()


def write(name: str, result: dict[str, Any]) -> None:
    file = RESULTS / "mutation.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    results[name] = result
    results = {known: results[known] for known in TESTS if known in results}
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def source_hash(source: str) -> str:
    import hashlib

    return hashlib.sha256(source.encode()).hexdigest()[:16]


def page(results: dict[str, Any], reasons: list[dict[str, Any]]) -> str:
    """The table, and the survivors with what is said about them."""
    lines = ["| module | mutants | run | killed | survived | killed, % |", "|---|---:|---:|---:|---:|---:|"]
    rows = [(f"`{name}`", r["mutants"], r["run"], len(r["survivors"])) for name, r in results.items()]
    rows.append(("all", *(sum(row[i] for row in rows) for i in (1, 2, 3))))  # type: ignore[arg-type]
    for name, total, run, alive in rows:
        lines.append(f"| {name} | {total} | {run} | {run - alive} | {alive} | {100 * (run - alive) / run:.1f} |")
    for name, result in results.items():
        if not result["survivors"]:
            continue
        lines += ["", f"### Survivors in `{name}`", ""]
        by_reason: dict[str, list[dict[str, Any]]] = {}
        for survivor in result["survivors"]:
            told = (r["reason"] for r in reasons if r["module"] == name and survivor["change"] in r["changes"])
            said = next(told, "no reason is known yet")
            by_reason.setdefault(said, []).append(survivor)
        for reason, survivors in by_reason.items():
            lines += [f"{reason[0].upper()}{reason[1:]} ({len(survivors)}):", "", "```diff"]
            lines += [survivor["change"] for survivor in survivors]
            lines += ["```", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--sample", type=int, help="so many mutants of each module, drawn by --seed; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rest", action="store_true", help="only those that survived last time or have not been run")
    parser.add_argument("--page", action="store_true", help="run nothing, only write the page")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(ROOT / "runs" / "pycache")
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    (ROOT / "runs").mkdir(exist_ok=True)

    import hypothesis

    hypothesis.settings.register_profile(
        "mutants", max_examples=25, derandomize=True, database=None, deadline=None, print_blob=False
    )
    hypothesis.settings.load_profile("mutants")
    file = RESULTS / "mutation.json"
    for name in [] if options.page else options.modules or TESTS:
        before = json.loads(file.read_text()).get(name) if options.rest else None
        # In a process of its own, so that no module sees what another's tests have loaded.
        child = os.fork()
        if child == 0:
            run_module(name, options.sample, options.seed, before)
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"the run of {name} failed; see above")
    results = json.loads(file.read_text())
    reasons = tomllib.loads((Path(__file__).parent / "survivors.toml").read_text(encoding="utf-8"))["reasons"]
    (RESULTS / "mutation.md").write_text(page(results, reasons), encoding="utf-8")


if __name__ == "__main__":
    main()
