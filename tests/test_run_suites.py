"""`make test` runs every suite, and its last lines and exit code tell how each ended."""

from pathlib import Path

import pytest

from tests import run_suites

pytestmark = pytest.mark.slow

GOOD = "def test_good(): pass\n"
BAD = GOOD + "def test_bad(): assert False\nimport pytest\ndef test_skipped(): pytest.skip('why')\n"
FLAKY = f"""
from pathlib import Path
def test_flaky():
    tried = Path(__file__).with_name("tried")
    if not tried.exists():
        tried.touch()
        raise AssertionError
{GOOD}
"""


def suite(folder: Path, text: str) -> list[str]:
    """The arguments of pytest for one file of tests, which knows nothing of the project's settings."""
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_file.py").write_text(text, encoding="utf-8")
    return [str(folder), "-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "--quiet"]


def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **suites: list[str]) -> tuple[int, str]:
    """Exit code and what is printed, without the seconds."""
    monkeypatch.setattr(run_suites, "SUITES", suites)
    exit_code = run_suites.main()
    lines = [line.rpartition(" in ")[0] for line in capsys.readouterr().out.splitlines()]
    return exit_code, "\n".join(lines).strip()


def test_a_failed_suite_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = {"first": suite(tmp_path / "a", BAD), "second": suite(tmp_path / "b", GOOD)}
    assert ended(monkeypatch, capsys, **suites) == (
        1,
        "failed  first: 1 passed, 1 failed, 1 skipped\n"
        "failed  first, failed ones again: 0 passed, 1 failed, 0 skipped\n"
        "passed  second: 1 passed, 0 failed, 0 skipped",
    )


def test_a_suite_that_breaks_off_is_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = suite(tmp_path / "a", "import os; os._exit(3)\n")
    assert ended(monkeypatch, capsys, only=broken) == (1, "failed  only: 0 passed, 0 failed, 0 skipped")


def test_what_failed_is_run_again_and_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(monkeypatch, capsys, only=suite(tmp_path / "a", FLAKY)) == (
        0,
        "failed  only: 1 passed, 1 failed, 0 skipped\npassed  only, failed ones again: 1 passed, 0 failed, 0 skipped",
    )
