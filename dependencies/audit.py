"""Hold the pins of requirements.lock against the known vulnerabilities, by pip-audit.

Fails where there are some. Where pip-audit or its database cannot be reached, one line says that nothing was audited,
and the run goes on: a machine without a network has to be able to check its code.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
WITHIN_S = 120


def command() -> list[str]:
    """pip-audit by uv, which gets it where it is not installed; hashed pins are not resolved again."""
    uv = Path(sys.executable).with_name("uv")
    asked = ["--requirement", str(LOCK), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    return [str(uv), "tool", "run", "--quiet", "pip-audit", *asked]


def judged(report: str) -> tuple[list[str], int, int]:
    """Of pip-audit's JSON: a line for each vulnerability, the pins that were looked up, and those that were not.

    Raises:
        ValueError: it is no such report.
    """
    data = json.loads(report)
    if not isinstance(data, dict) or not isinstance(data.get("dependencies"), list):
        raise ValueError("no report")
    known = [package for package in data["dependencies"] if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {one['id']}, mended in "
        f"{', '.join(one.get('fix_versions') or ['no version yet'])}"
        for package in known
        for one in package.get("vulns", ())
    ]
    return found, len(known), len(data["dependencies"]) - len(known)


def main() -> int:
    try:
        done = subprocess.run(command(), capture_output=True, text=True, timeout=WITHIN_S, check=False)
        found, known, unknown = judged(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError):
        found, known, unknown = [], 0, 0
    # Behind a mirror without the database, pip-audit knows no package, and calls that no vulnerability.
    if known == 0:
        print("audit: skipped, since pip-audit or its database cannot be reached from here")
        return 0
    for line in found:
        print(f"audit: {line}")
    if not found:
        print(f"audit: none of {known} pins of requirements.lock has a known vulnerability; {unknown} are unknown")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
