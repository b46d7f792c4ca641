"""Cases of a parametrised test that the slow suite takes, where the fast one proves the same of their neighbours."""

import pytest
from _pytest.mark.structures import ParameterSet


def slow(*values: object, id: str | None = None) -> ParameterSet:
    return pytest.param(*values, marks=pytest.mark.slow, id=id)
