"""Write what this project is made of as a CycloneDX bill of materials: every pin of requirements.lock, with licences.

    python dependencies/sbom.py dist/fullyconv.cdx.json

Licences and what leans on what are those of the packages as they are installed; of pins for other platforms only name
and version are known. The same lock and the same packages give the same bytes.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
NAMED = re.compile(r"^[A-Za-z0-9._-]+")


def pins(lock: str) -> dict[str, str]:
    """Versions by name, as the index spells names."""
    return {normal(name): version for name, version in PIN.findall(lock)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def licences(package: Distribution) -> list[dict[str, Any]]:
    """As the package states them: an SPDX expression, else its classifiers, else the first line of its own words."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return [{"expression": expression}]
    classified = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License ::")
    ]
    words = [line.strip() for line in (about.get("License") or "").splitlines() if line.strip()][:1]
    return [{"license": {"name": name}} for name in classified or words]


def needs(package: Distribution) -> set[str]:
    """Names of what it requires, whatever the platform, without extras."""
    found = (NAMED.match(line) for line in package.requires or [] if "extra ==" not in line)
    return {normal(match[0]) for match in found if match}


def bill(lock: str, version: str) -> dict[str, Any]:
    """The bill of materials."""
    wanted = pins(lock)
    components, dependencies = [], []
    for name, pinned in sorted(wanted.items()):
        reference = f"pkg:pypi/{name}@{pinned}"
        component: dict[str, Any] = {
            "type": "library", "bom-ref": reference, "name": name, "version": pinned, "purl": reference,
        }  # fmt: skip
        package = installed(name)
        if package is not None and (stated := licences(package)):
            component["licenses"] = stated
        components.append(component)
        inside = sorted(needs(package) & wanted.keys()) if package is not None else []
        dependencies.append({"ref": reference, "dependsOn": [f"pkg:pypi/{n}@{wanted[n]}" for n in inside]})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, lock)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": "fullyconv",
                "name": "fullyconv",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
        "dependencies": dependencies,
    }


def main() -> None:
    from fullyconv import __version__

    path = Path(sys.argv[1])
    made = bill((ROOT / "requirements.lock").read_text(encoding="utf-8"), __version__)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    known = sum("licenses" in component for component in made["components"])
    print(f"{path}: {len(made['components'])} components, {known} of them with a licence")


if __name__ == "__main__":
    main()
