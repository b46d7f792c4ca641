"""Ways to spoil a side network, and the check of a refusal."""

import pickle

import pytest

from ladder import SideNetwork
from serving.errors import LoadError
from serving.versions.loader import Loader


def refusal(loader: Loader, kind: type[LoadError]) -> LoadError:
    """The error that sst2:1 is refused with."""
    with pytest.raises(kind) as caught:
        loader.load("sst2", 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return caught.value


def negate(side: SideNetwork) -> None:
    side.upsample.weight.mul_(-1)
