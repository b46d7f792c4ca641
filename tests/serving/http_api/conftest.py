"""A server without a model that answers over HTTP too."""

from collections.abc import Iterator

import pytest

from tests.serving.api_kit import MEANING, SPECS, VISUAL_SPECS, Parlour
from tests.serving.http_api.kit import Asker


@pytest.fixture(scope="package")
def lounge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    """A server that answers by a rule, over gRPC and HTTP. Tests share it and leave it unchanged."""
    folder = tmp_path_factory.mktemp("lounge")
    with Parlour(folder, (*SPECS, MEANING, *VISUAL_SPECS), http_port=None).open() as opened:
        yield opened


@pytest.fixture(scope="package")
def ask(lounge: Parlour) -> Iterator[Asker]:
    asker = Asker(lounge)
    yield asker
    asker.close()
