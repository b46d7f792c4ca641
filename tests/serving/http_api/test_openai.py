"""OpenAI's shapes, asked by OpenAI's own client, and vLLM's classify."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.serving.api_kit import MEANING, SST2, Parlour, rule
from tests.serving.http_api.kit import Asker


@pytest.fixture(scope="module")
def client(ask: Asker) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{ask.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.mark.parametrize("how", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"dimensions": 3}])
def test_embeddings_of_the_official_client(client: openai.OpenAI, how: dict[str, Any]) -> None:
    found = client.embeddings.create(model="meaning", input=["a", "a longer one"], **how)
    assert [data.index for data in found.data] == [0, 1]
    if how.get("encoding_format") != "base64":  # else the client leaves it as it is
        for data, text in zip(found.data, ("a", "a longer one"), strict=True):
            wanted: Any = rule(MEANING, text)
            assert data.embedding == pytest.approx(list(wanted.values))
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (13, 13)


def test_completions_of_the_official_client(client: openai.OpenAI, lounge: Parlour) -> None:
    found = client.completions.create(model="titles", prompt=["a fine day", "b"], max_tokens=7, user="ada")
    assert [choice.text for choice in found.choices] == ["TITLE: A FINE DAY", "TITLE: B"]
    assert {choice.finish_reason for choice in found.choices} == {"stop"}
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (len("title: a fine daytitle: b"), 4)
    assert lounge.service.answerers[-1].max_new_tokens == 7
    assert lounge.service.route_keys[-1] == "ada"


def test_sampling_follows_the_temperature(client: openai.OpenAI, lounge: Parlour) -> None:
    client.completions.create(model="titles", prompt="a", temperature=0.7, top_p=0.9, seed=1)
    generation = lounge.service.answerers[-1].generation
    assert (generation.do_sample, generation.temperature, generation.top_p, generation.seed) == (True, 0.7, 0.9, 1)
    client.completions.create(model="titles", prompt="a", temperature=0)
    assert not lounge.service.answerers[-1].generation.do_sample


def test_a_completion_is_streamed_to_the_official_client(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="titles", prompt="a fine day", stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "TITLE: A FINE DAY"
    assert len(chunks) > 3
    *_, last, usage = chunks
    assert [choice.finish_reason for choice in last.choices] == ["stop"]
    assert usage.usage is not None
    assert usage.usage.total_tokens == len("title: a fine day") + 2


def test_models_are_the_tasks(client: openai.OpenAI) -> None:
    models = {model.id: model for model in client.models.list()}
    assert {"sst2", "titles", "meaning"} <= models.keys()
    assert models["sst2"].created > 0
    assert client.models.retrieve("sst2") == models["sst2"]


def test_errors_have_the_clients_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="nope", input="a")
    assert missing.value.code == "UNKNOWN_TASK"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="titles", prompt="a", max_tokens=65)
    assert (wrong.value.code, wrong.value.param) == ("INVALID_INPUT", "max_tokens")


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/embeddings", {"model": "sst2", "input": "a"}, "model: 'sst2' is classification"),
    ("/v1/embeddings", {"model": "meaning", "input": [1, 2]}, "input: must be a text or a list of texts"),
    ("/v1/embeddings", {"model": "meaning", "input": []}, "input: must be a text or a list of texts"),
    ("/v1/embeddings", {"model": "meaning", "input": ["a", ""]}, "input[1].sentence: is empty"),
    ("/v1/embeddings", {"model": "meaning", "input": "a", "dimensions": 4}, "dimensions: must be 3"),
    ("/v1/completions", {"model": "meaning", "prompt": "a"}, "model: 'meaning' is embedding"),
    ("/v1/completions", {"model": "titles", "prompt": "a", "n": 2}, "n: Input should be 1"),
    ("/v1/completions", {"model": "titles", "prompt": "a", "stop": ["."]}, "stop: is not supported"),
    ("/v1/completions", {"model": "titles", "prompt": ["a", "b"], "stream": True}, "prompt: has 2 texts"),
    ("/v1/completions", {"model": "titles", "prompt": "a", "temperature": 1e9}, "temperature: Input should be"),
    ("/classify", {"model": "titles", "input": "a"}, "model: 'titles' is text"),
    ("/classify", {"model": "sst2", "input": 7}, "input[0]: must be a text, or an object"),
]


@pytest.mark.parametrize(("path", "body", "detail"), WRONG)
def test_each_mistake_is_told_in_the_clients_words(ask: Asker, path: str, body: dict[str, Any], detail: str) -> None:
    status, reason, found = ask.problem(path, body)
    assert (status, reason) == (400, "INVALID_INPUT")
    assert found.startswith(detail)


def test_rows_are_classified(ask: Asker) -> None:
    found = ask.post("/classify", {"model": "sst2", "input": ["a", {"sentence": "b" * 80}]})
    wanted: list[Any] = [rule(SST2, text) for text in ("a", "b" * 80)]
    assert found["data"] == [
        {"index": index, "label": answer.label, "probs": list(answer.scores), "num_classes": 2}
        for index, answer in enumerate(wanted)
    ]
    assert found["usage"]["prompt_tokens"] == 81
    assert len(ask.post("/classify", {"model": "sst2", "input": "a"})["data"]) == 1
