"""Paths of the tests' data: golden numbers, the demo's packages, GLUE. A test without its data is skipped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "data" / "golden"
"""Golden numbers, described in data/README.md."""
GLUE = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue"


def glue_file(task: str, split: str) -> Path:
    """A file of GLUE's rows as JSON lines; skips the test if it is absent."""
    path = GLUE / task / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip("needs GLUE's files in ../shared/data/glue, beside the project")
    return path


@contextmanager
def demo_packages() -> Iterator[None]:
    """Skip the test if the demo's packages cannot be downloaded inside the block."""
    from demo.folders import DemoError

    try:
        yield
    except DemoError:
        pytest.skip("needs the demo's packages, which cannot be downloaded here; `make demo` says why")
