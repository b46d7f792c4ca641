"""The audit of packages: what it makes of pip-audit's reports."""

from pathlib import Path
from typing import Any

import pytest

from tests import audit

SKIPPED = {"dependencies": [{"name": "click", "skip_reason": "not found"}]}
CLEAN = {"dependencies": [{"name": "click", "version": "8.5.1", "vulns": []}]}
FAULT = {"id": "PYSEC-1", "fix_versions": ["9.0"]}
VULNERABLE = {"dependencies": [{"name": "click", "version": "8.5.1", "vulns": [FAULT]}]}


@pytest.mark.parametrize(
    ("reports", "code", "text"),
    [
        ([SKIPPED], 0, "packages not audited: the package index has no advisories here\n"),
        ([OSError()], 0, "packages not audited: the package index has no advisories here\n"),
        ([CLEAN, CLEAN], 0, "packages audited: no known vulnerabilities\n"),
        ([CLEAN, VULNERABLE], 1, "click 8.5.1: PYSEC-1, fixed in 9.0\n"),
    ],
)
def test_a_known_vulnerability_alone_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], reports: list[Any], code: int, text: str
) -> None:
    asked = iter(reports)

    def ask(requirements: Path) -> Any:
        assert requirements.read_text().startswith(("click==", audit.PINS.read_text()[:20]))
        report = next(asked)
        if isinstance(report, Exception):
            raise report
        return report

    monkeypatch.setattr(audit, "ask", ask)
    assert audit.main() == code
    assert capsys.readouterr().out == text
    assert list(asked) == []
