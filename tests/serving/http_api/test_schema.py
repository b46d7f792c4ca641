"""The OpenAPI document is true: requests made from it get the statuses, types and bodies that it says."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from tests.serving.http_api.kit import Asker

EXAMPLES = 10
"""For each operation and mode."""
bounded = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


PATIENCE_S = 30
TASKS = {"/v1/embeddings": "meaning", "/classify": "sst2"}
"""A task that each path can be asked for; others: `titles`."""


def name_task(case: Any) -> None:
    """Have the request name a task that there is."""
    task = TASKS.get(case.operation.path, "titles")
    for name in ("task", "model"):
        if name in case.path_parameters:
            case.path_parameters[name] = task
        if isinstance(case.body, dict) and name in case.body:
            case.body[name] = task


def give_time(case: Any) -> None:
    """Have the request wait long enough: the checks take the 504 of a short deadline for a fault."""
    if "X-Request-Timeout" in case.headers:
        case.headers["X-Request-Timeout"] = str(PATIENCE_S)
    if isinstance(case.body, dict) and case.body.get("timeout") is not None:
        case.body["timeout"] = PATIENCE_S


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_made_from_the_document_are_answered_as_it_says(ask: Asker, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{ask.url}/openapi.json")
    for found in document.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not operation.body:
            continue

        @bounded
        @given(case=operation.as_strategy(generation_mode=mode), is_known=strategies.booleans())
        def answer(case: Any, is_known: bool) -> None:
            if mode is GenerationMode.POSITIVE:
                give_time(case)
                if is_known:
                    name_task(case)
            # a row fits its task by more than types
            case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

        answer()
