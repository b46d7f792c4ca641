"""Marks for single cases of a parametrised test: the fast suite runs one case, the slow suite the others."""

import pytest
from _pytest.mark.structures import ParameterSet


def slow(*values: object, id: str | None = None) -> ParameterSet:
    """A case that only the slow suite runs."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)
