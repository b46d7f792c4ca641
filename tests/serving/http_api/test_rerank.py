"""`/v1/rerank` in the shape of Cohere, Jina and vLLM."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.api_kit import PASSAGES, SST2, Parlour, rule
from tests.serving.http_api.kit import Asker

TEXTS = ["x" * length for length in (9, 30, 2, 44, 60, 1)]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    folder: Path = tmp_path_factory.mktemp("rerank")
    with Parlour(folder, (PASSAGES, SST2), http_port=None).open() as parlour:
        asker = Asker(parlour)
        yield asker
        asker.close()


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_most_relevant_first(ask: Asker, path: str) -> None:
    body = {"model": "passages", "query": "q", "documents": [*TEXTS[:5], {"text": TEXTS[5]}], "top_n": 2}
    found = ask.post(path, body | {"return_documents": True})
    best: Any = rule(PASSAGES, f"q | {TEXTS[4]}")
    assert (found["model"], [one["index"] for one in found["results"]]) == ("passages", [4, 3])
    assert found["results"][0] == {"index": 4, "relevance_score": best.relevance, "document": {"text": TEXTS[4]}}
    assert found["usage"]["prompt_tokens"] > 0
    assert len(ask.post(path, {"model": "passages:1", "query": "q", "documents": TEXTS})["results"]) == len(TEXTS)


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"model": "sst2"}, "model: 'sst2' is classification"),
        ({"query": ""}, "query: is empty"),
        ({"documents": [*TEXTS, ""]}, "documents[6]"),
        ({"documents": [{"title": "a"}]}, "documents[0]: must be a text"),
        ({"documents": []}, "documents"),
        ({"top_n": 0}, "top_n"),
    ],
)
def test_each_mistake_is_told(ask: Asker, changes: dict[str, Any], detail: str) -> None:
    status, reason, found = ask.problem("/v1/rerank", {"model": "passages", "query": "q", "documents": TEXTS} | changes)
    assert (status, reason) == (400, "INVALID_INPUT")
    assert detail in found


def test_a_list_over_the_limit_is_refused(ask: Asker) -> None:
    body = {"model": "passages", "query": "q", "documents": ["x"] * 10_000}
    assert ask.problem("/v1/rerank", body)[:2] == (400, "TOO_MANY_ROWS")
