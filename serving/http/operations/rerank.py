"""`/v1/rerank`: passages sorted by their relevance for a query, in the shape of Cohere, Jina and vLLM."""

from collections.abc import Iterator
from http import HTTPMethod
from typing import Annotated, Any, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict

from protos import sidecast_pb2 as pb
from serving.api.native import ranked, relevance
from serving.errors import InvalidInput
from serving.http.body import Body, Int64, Name
from serving.http.call import HttpCall
from serving.http.operation import Operation, Reply
from serving.http.operations.openai import Usage, usage_of
from serving.http.operations.tasks import JSON, renamed, which_of
from serving.http.replies import json_bytes, with_member, write_list
from serving.http.services import Services

Document = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            ]
        }
    ),
]
PATHS = {"rerank": "/v1/rerank", "rerankAsV2": "/v2/rerank", "rerankAsVllm": "/rerank"}
"""Operations by name: clients of different servers ask different paths."""


class RerankBody(Body):
    """A query and the passages to sort."""

    model: Name
    """A task of kind ranking, `TASK:VERSION` or `TASK@ALIAS`."""
    query: str
    documents: Annotated[list[Document], Field(min_length=1)]
    """Texts, or objects with a `text`."""
    top_n: Annotated[Int64, Field(ge=1)] | None = None
    """Only so many of the best; not given: all."""
    return_documents: bool = False
    """Send the texts back too."""
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Where an alias's traffic is split, requests of one user get one version."""


class Passage(TypedDict):
    """A passage, as it was sent."""

    text: str


class RankedPassage(TypedDict):
    """One passage."""

    index: int
    """In the request's documents, from 0."""
    relevance_score: float
    """0 to 1."""
    document: NotRequired[Passage]


class Reranked(TypedDict):
    """The passages, most relevant first."""

    id: str
    model: str
    usage: Usage
    results: list[RankedPassage]


class Rerank:
    """The operation that sorts passages, under the paths that clients ask."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def operations(self) -> Iterator[Operation]:
        """One for each path."""
        for name, path in PATHS.items():
            yield Operation(
                name=name,
                method=HTTPMethod.POST,
                path=path,
                summary="Sort passages by their relevance for a query",
                handler=self.rerank,
                request=RerankBody,
                responses={JSON: Reranked},
                counted=True,
                tag="rerank",
            )

    async def rerank(self, call: HttpCall, body: RerankBody) -> Reply:
        """Sort passages."""
        self._services.check_rows(len(body.documents))
        texts = [_text(document, index) for index, document in enumerate(body.documents)]
        request = pb.RankRequest(**which_of(body.model), query=body.query, passages=texts, route_key=body.user or "")
        try:
            prediction = await self._services.rank(call, request)
        except InvalidInput as error:
            names = {"task": "model", "route_key": "user"}
            field = names.get(error.field, error.field).replace("passages", "documents", 1)
            raise renamed(InvalidInput(field, error.why), "documents") from None

        def describe(index: int) -> RankedPassage:
            passage = RankedPassage(index=index, relevance_score=relevance(prediction.answers[index]))
            if body.return_documents:
                passage["document"] = Passage(text=texts[index])
            return passage

        head = {"id": f"rerank-{call.request_id}", "model": body.model, "usage": usage_of(prediction.input_tokens)}
        results = await write_list(map(describe, ranked(prediction)[: body.top_n]))
        return json_bytes(with_member(head, "results", results))


def _text(document: Any, index: int) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise InvalidInput(f"documents[{index}]", 'must be a text, or {"text": "..."}')
    return text
