"""The OpenAPI document is true: requests made from it get the statuses, types and bodies that it says."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi import checks

from tests.serving.http.kit import Asker

EXAMPLES = 20
"""For each operation."""


@pytest.fixture(scope="module")
def document(ask: Asker) -> Any:
    return schemathesis.openapi.from_url(f"{ask.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_requests_made_from_the_document_are_answered_as_it_says(case: Any) -> None:
    case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])  # rows fit a task by more than types
