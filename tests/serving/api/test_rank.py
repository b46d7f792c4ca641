"""Passages ranked for a query, over gRPC and by the clients."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.client import AsyncClient, Client, InvalidInputError, TooManyRowsError, arguments, client
from tests.serving.api_kit import PASSAGES, SST2, Parlour, rule

QUERY = "q"
TEXTS = ["x" * length for length in (9, 30, 2, 30, 60, 1, 44)]
"""More than the task's max_rows."""
ORDER = [4, 6, 1, 3, 0, 2, 5]


@pytest.fixture(scope="module")
def parlour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    with Parlour(folder, (PASSAGES, SST2)).open() as opened:
        yield opened


@pytest.fixture
def asks(parlour: Parlour) -> Iterator[Client]:
    with Client(parlour.address) as opened:
        yield opened


def test_passages_come_most_relevant_first(asks: Client) -> None:
    ranking = asks.rerank("passages", QUERY, TEXTS)
    assert (ranking.task, ranking.version, ranking.alias) == ("passages", 1, "production")
    assert [one.index for one in ranking] == ORDER
    best: Any = rule(PASSAGES, f"{QUERY} | {TEXTS[4]}")
    assert ranking[0].score == best.relevance
    assert [one.index for one in asks.rerank("passages:1", QUERY, TEXTS, top=2)] == ORDER[:2]
    assert asks.predict("passages", [{"query": QUERY, "passage": TEXTS[4]}])[0].relevance == best.relevance  # type: ignore[union-attr]


def test_a_long_list_goes_in_parts_to_one_version(
    parlour: Parlour, asks: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (arguments, client):
        monkeypatch.setattr(module, "RERANK_ROWS", 3)
    parlour.service.rows.clear()
    assert [one.index for one in asks.rerank("passages", QUERY, TEXTS, top=5)] == ORDER[:5]
    assert [len(rows) for rows in parlour.service.rows] == [3, 3, 1]


def test_the_async_client_ranks_the_same(parlour: Parlour) -> None:
    async def ask() -> list[int]:
        async with AsyncClient(parlour.address) as opened:
            return [one.index for one in await opened.rerank("passages", QUERY, TEXTS)]

    assert asyncio.run(ask()) == ORDER


@pytest.mark.parametrize(
    ("task", "query", "passages", "why"),
    [
        ("sst2", QUERY, TEXTS, "'sst2' is classification, only tasks of kind ranking"),
        ("passages", "", TEXTS, "query: is empty"),
        ("passages", QUERY, [*TEXTS, "\0"], r"passages\[7\]: holds a NUL"),
        ("passages", QUERY, [], "must be at least one text"),
        ("passages", QUERY, "text", "must be a list of texts"),
        ("passages", QUERY, [1], "passages"),
    ],
)
def test_each_mistake_is_told(asks: Client, task: str, query: str, passages: Any, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        asks.rerank(task, query, passages)


def test_more_passages_than_a_server_takes_are_refused(asks: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "RERANK_ROWS", 10_000)
    with pytest.raises(TooManyRowsError, match="8192"):
        asks.rerank("passages", QUERY, ["x"] * 10_000)
