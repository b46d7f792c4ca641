"""Generated texts over the wire: decoding options, streams, and streams at once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from protos import open_inference_pb2 as oip
from serving.api.open_inference.stream import FINAL
from side_registry import GenerationSpec
from tests.conformance.targets import TITLES, Target, World
from tests.conformance.test_calls import infer
from tests.serving.kit import TEXTS, make_spec

pytestmark = pytest.mark.timeout(300)

OPTIONS = {
    "greedy": {},
    "beams": {"num_beams": 3, "length_penalty": 0.5},
    "sampled": {"do_sample": True, "temperature": 2.0, "top_k": 50, "seed": 4},
    "short": {"no_repeat_ngram_size": 1, "max_new_tokens": 3},
}
FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param"}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_texts_follow_the_requests_options_and_streamed_equals_unary(
    target: Target, world: World, options: dict[str, Any]
) -> None:
    generation = GenerationSpec(**{name: value for name, value in options.items() if name != "max_new_tokens"})
    limit = options.get("max_new_tokens", TITLES.max_new_tokens)
    spec = TITLES.model_copy(update={"generation": generation, "max_new_tokens": limit})
    expected = [world.model_answer(spec, text).text for text in TEXTS]  # type: ignore[union-attr]
    whole = target.client.predict("titles", TEXTS, decoding=options)
    assert [answer.text for answer in whole] == expected  # type: ignore[union-attr]
    if options:
        assert expected != [example.expected["text"] for example in world.expected("titles")]
    for text, wanted in zip(TEXTS, expected, strict=True):
        stream = target.client.stream("titles", text, decoding=options)
        pieces = list(stream)
        result = stream.result()
        assert "".join(piece.text for piece in pieces) == result.text == wanted
        assert sum(len(piece.tokens) for piece in pieces) == result.token_count <= limit
        assert open_inference_stream(target, text, options) == wanted


def open_inference_stream(target: Target, text: str, options: dict[str, Any]) -> str:
    """The text of one stream of the Open Inference Protocol."""
    request = infer("titles", (text,))
    for name, value in options.items():
        setattr(request.parameters[name], FIELDS[type(value)], value)
    responses: list[oip.ModelInferResponse] = [
        response.infer_response for response in target.oip.ModelStreamInfer(iter([request]))
    ]
    final = [response.parameters[FINAL].bool_param for response in responses]
    assert final == [False] * (len(responses) - 1) + [True]
    return b"".join(response.outputs[0].contents.bytes_contents[0] for response in responses).decode()


def test_the_options_of_a_request_do_not_change_the_task(target: Target) -> None:
    target.client.predict("titles", TEXTS, decoding={"num_beams": 3})
    assert target.client.task("titles").spec.generation["num_beams"] == 1  # type: ignore[union-attr]


def test_streams_at_once_equal_each_alone(target: Target) -> None:
    rows = [(task, f"{text} {number}") for task in ("titles", "story") for number, text in enumerate(TEXTS)]

    def read(row: tuple[str, str]) -> str:
        stream = target.client.stream(*row, decoding={"max_new_tokens": 8})
        return "".join(piece.text for piece in stream)

    alone = [read(row) for row in rows]
    with ThreadPoolExecutor(len(rows)) as threads:
        assert list(threads.map(read, rows)) == alone


def test_without_a_seed_every_row_is_sampled_anew(target: Target) -> None:
    answers = target.client.predict("titles", ["the same"] * 6, decoding={"do_sample": True, "temperature": 9.0})
    assert len({answer.text for answer in answers}) > 1  # type: ignore[union-attr]


def test_a_task_that_samples_loads_although_its_golden_texts_do_not_repeat(target: Target, world: World) -> None:
    generation = GenerationSpec(do_sample=True, temperature=9.0)
    named = target.own("verses").name
    spec = make_spec(named, kind="text", max_new_tokens=8, generation=generation)
    published = target.client.publish(world.run(spec))
    assert target.client.await_generation(published.generation).served
    assert target.client.task(named).spec.generation["do_sample"] is True  # type: ignore[union-attr]
    assert len({answer.text for answer in target.client.predict(named, ["the same"] * 6)}) > 1  # type: ignore[union-attr]
