"""Runs all test suites, then prints one line for each; the exit code is 1 if any failed.

    python -m tests.run_suites

The tests on Ray clusters run last and alone: they kill processes and wait for others to start. The failed tests of a
suite get a second try, which counts, and both tries have their line: many tests have real servers and other processes,
which the rest of the machine may disturb.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITES = {
    "fast and slow": ["-m", "not cluster", "-n", "2", "--dist", "worksteal"],
    "cluster": ["-m", "cluster"],
}
"""Name to the arguments of pytest. Fast and slow tests are one suite: it imports and collects once."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a suite ended; counts are of tests."""

    name: str
    exit_code: int
    passed: int
    failed: int
    skipped: int
    seconds: float

    def __str__(self) -> str:
        verdict = "failed" if self.exit_code else "passed"
        counts = f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{verdict}  {self.name}: {counts} in {self.seconds:.0f} s"


def run(name: str, arguments: list[str]) -> Result:
    """Run pytest in its own process, which prints as usual.

    The process keeps compiled bytecode, even where the caller's environment says not to: the tests start many processes
    that import the same modules.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", *arguments, f"--junit-xml={report}"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        exit_code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        return read_report(name, exit_code, report)


def read_report(name: str, exit_code: int, report: Path) -> Result:
    """Read pytest's report. Without one, pytest did not come to its end: no test counts."""
    counts = {}
    if report.is_file():
        [suite] = ElementTree.parse(report).getroot().iter("testsuite")
        counts = suite.attrib
    failed = int(counts.get("failures", 0)) + int(counts.get("errors", 0))
    skipped = int(counts.get("skipped", 0))
    return Result(
        name=name,
        exit_code=exit_code,
        passed=int(counts.get("tests", 0)) - failed - skipped,
        failed=failed,
        skipped=skipped,
        seconds=float(counts.get("time", 0)),
    )


def main() -> int:
    """Run every suite, whatever the others do."""
    results = []
    failed = False
    for name, arguments in SUITES.items():
        result = run(name, arguments)
        results.append(result)
        if result.exit_code == 1:
            result = run(
                f"{name}, failed ones again", [*arguments, "--last-failed", "--last-failed-no-failures=none", "-n", "0"]
            )
            results.append(result)
        failed = failed or result.exit_code != 0
    print("", *results, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
