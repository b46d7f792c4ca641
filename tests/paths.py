"""Where the tests' data stand: numbers of their own, the demo's packages, GLUE beside the project."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "data" / "golden"
"""What data/README.md describes."""
GLUE = Path(__file__).resolve().parents[2] / "shared" / "data" / "glue"


def glue_file(task: str, split: str) -> Path:
    """GLUE's rows of a task as JSON lines; skips where they are absent, for one reason, so that pytest says it once."""
    path = GLUE / task / f"{split}.jsonl"
    if not path.is_file():
        pytest.skip("needs GLUE's files in ../shared/data/glue, beside the project")
    return path


@contextmanager
def demo_packages() -> Iterator[None]:
    """Skip what needs the demo's downloads where they cannot be had; one reason, so that pytest says it once."""
    from demo.folders import DemoError

    try:
        yield
    except DemoError:
        pytest.skip("needs the demo's packages, which cannot be downloaded here; `make demo` says why")
