"""Makes a side network wrong, and checks that a load is refused."""

import pickle

import pytest

from ladder import SideNetwork
from serving.errors import LoadError
from serving.versions.loader import Loader


def refusal(loader: Loader, kind: type[LoadError]) -> LoadError:
    """Load sst2:1, which must be refused; return the error, which must pickle."""
    with pytest.raises(kind) as caught:
        loader.load("sst2", 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


def negate(side: SideNetwork) -> None:
    side.upsample.weight.mul_(-1)
