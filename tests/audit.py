"""Asks for known vulnerabilities of the pinned packages: `python -m tests.audit`, which `make check` runs.

The package index has the advisories. Not every mirror of it has: one package is asked for first, and where nothing is
known of it, one line says that nothing was checked, and the check does not fail.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PINS = Path(__file__).parent.parent / "constraints.txt"
FIRST = "click"
"""The package that is asked for first."""
TIMEOUT_S = 600.0


def ask(requirements: Path) -> Mapping[str, Any]:
    """What pip-audit says of pinned requirements. Raises OSError: it says nothing."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--timeout", "10", "--format", "json"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        return json.loads(ran.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise OSError("no answer") from error


def is_known(document: Mapping[str, Any]) -> bool:
    """Whether any package of a report was audited."""
    return any("vulns" in package for package in document["dependencies"])


def findings(document: Mapping[str, Any]) -> list[str]:
    """A line for each known vulnerability."""
    return [
        f"{package['name']} {package['version']}: {fault['id']}, fixed in {', '.join(fault['fix_versions']) or 'none'}"
        for package in document["dependencies"]
        for fault in package.get("vulns", ())
    ]


def main() -> int:
    """Exit code: 1 where a pinned package has a known vulnerability."""
    first = next(line for line in PINS.read_text(encoding="utf-8").splitlines() if line.startswith(f"{FIRST}=="))
    with tempfile.TemporaryDirectory(prefix="sidecast-audit-") as folder:
        one = Path(folder) / "one.txt"
        one.write_text(first, encoding="utf-8")
        try:
            document = ask(PINS) if is_known(ask(one)) else None
        except OSError:
            document = None
    if document is None:
        print("packages not audited: the package index has no advisories here")
        return 0
    found = findings(document)
    print("\n".join(found) or "packages audited: no known vulnerabilities")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
