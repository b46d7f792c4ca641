"""Every script of examples/ runs to its end on a tiny random backbone."""

from pathlib import Path

import pytest

from sidecast import Classification, MultiLabel, Predictions, TokenClassification
from tests.docs.blocks import ROOT

EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def _in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are found as by `python examples/NAME.py`."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.slow
def test_train_and_serve(tiny_t5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import train_and_serve

    answers = train_and_serve.main(str(tiny_t5), tmp_path)
    assert (answers.version, len(answers)) == (1, 2)
    assert "published: version 1" in capsys.readouterr().out


@pytest.mark.slow
def test_many_tasks(tiny_t5: Path, tmp_path: Path) -> None:
    import many_tasks

    outcomes = many_tasks.main(str(tiny_t5), tmp_path)
    kinds = {task: type(outcome[0]) for task, outcome in outcomes.items() if isinstance(outcome, Predictions)}
    assert kinds == {"mood": Classification, "topics": MultiLabel, "places": TokenClassification}


@pytest.mark.slow
def test_swap(tiny_t5: Path, tmp_path: Path) -> None:
    import swap

    caller = swap.main(str(tiny_t5), tmp_path)
    assert caller.failed == []
    assert set(caller.answered) == {1, 2}


def test_the_list_of_examples_has_every_one() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [
        path.relative_to(EXAMPLES) for pattern in ("[!_]*.py", "notebooks/*.ipynb") for path in EXAMPLES.glob(pattern)
    ]
    assert [str(path) for path in files if f"({path})" not in text] == []
