"""Pages whose blocks are run in order, as a reader would paste them, with a tiny random backbone."""

from pathlib import Path

import pytest

from side_registry import TaskRef
from tests.docs.pages import PAGES, reading

OTHERS = sorted(PAGES.keys() - {"docs/python.md"})


@pytest.mark.parametrize("page", OTHERS)
def test_every_block_of_a_page_runs(page: str, tmp_path: Path) -> None:
    with reading(page, tmp_path):
        pass


def test_the_python_page_answers_as_its_server(tmp_path: Path) -> None:
    with reading("docs/python.md", tmp_path) as reader:
        names = reader.names
        assert names["first"].version != names["second"].version
        assert names["registry"].state().resolve(TaskRef("sst2")) == names["first"].version
        [here, _] = names["run"].predict(["a gripping film", "dull"])
        there = names["answers"][0]
        assert (there.label, there.score) == (here.label, pytest.approx(here.score, abs=1e-6))
