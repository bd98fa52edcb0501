"""What the project is made of: pinned with hashes, listed with licences, held against known vulnerabilities."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "dependencies" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_pin_has_hashes_and_nothing_names_an_address() -> None:
    entries = [entry for entry in LOCK.replace("\\\n", " ").splitlines() if entry.strip()]
    assert len(entries) > 50
    for entry in entries:
        assert "==" in entry.split(";")[0].split("--hash")[0], entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in LOCK


def test_the_bill_of_materials_lists_every_pin_with_its_licence(tmp_path: Path) -> None:
    sbom = script("sbom")
    made = sbom.bill(LOCK, "1.2.3")
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert made["metadata"]["component"]["version"] == "1.2.3"
    listed = {component["name"]: component for component in made["components"]}
    assert {name: component["version"] for name, component in listed.items()} == sbom.pins(LOCK)
    unknown = [name for name in listed if sbom.installed(name) is not None and not listed[name].get("licenses")]
    assert set(unknown) <= {"cuda-toolkit"}  # an empty package that only requires others
    assert len([name for name in listed if "licenses" in listed[name]]) > 50
    references = {component["bom-ref"] for component in made["components"]}
    leaning = {entry["ref"]: entry["dependsOn"] for entry in made["dependencies"]}
    assert leaning.keys() == references
    assert all(set(below) <= references for below in leaning.values())
    assert (
        f"pkg:pypi/pillow@{listed['pillow']['version']}"
        in leaning[f"pkg:pypi/torchvision@{listed['torchvision']['version']}"]
    )
    assert "://" not in json.dumps(made)
    assert sbom.bill(LOCK, "1.2.3") == made


def test_vulnerabilities_are_told_one_by_one() -> None:
    audit = script("audit")
    found = {"name": "pillow", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.0", "1.1"]}]}
    none = {"name": "numpy", "version": "2.0", "vulns": []}
    skipped = {"name": "a", "skip_reason": "not found"}
    report = json.dumps({"dependencies": [found, none, skipped]})
    assert audit.judged(report) == (["pillow 1.0: CVE-1, mended in 2.0, 1.1"], 2, 1)
    for broken in ("", "[]", "{}", "No network"):
        with pytest.raises(ValueError, match=r"report|Expecting"):
            audit.judged(broken)


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        ("", 0, "audit: skipped, since pip-audit or its database cannot be reached from here"),
        ('{"dependencies": [{"name": "a", "skip_reason": "not found"}]}', 0, "audit: skipped"),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', 0, "audit: none of 1 pins"),
        ('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X"}]}]}', 1, "audit: a 1: X, mended in no"),
    ],
)
def test_an_audit_fails_for_a_vulnerability_and_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], report: str, code: int, said: str
) -> None:
    audit = script("audit")
    monkeypatch.setattr(audit, "command", lambda: [sys.executable, "-c", f"print({report!r})"])
    assert audit.main() == code
    told = capsys.readouterr().out
    assert told.startswith(said)
    assert told.count("\n") == 1


def test_an_audit_without_the_tool_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    audit = script("audit")

    def late(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip-audit", 1)

    monkeypatch.setattr(audit, "command", lambda: [str(tmp_path / "none")])
    assert audit.main() == 0
    monkeypatch.setattr(subprocess, "run", late)
    assert audit.main() == 0
    assert capsys.readouterr().out.count("audit: skipped") == 2
