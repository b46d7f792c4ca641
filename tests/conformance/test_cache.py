"""The activation cache over the wire: a cached answer equals the uncached one, and tasks share one backbone pass."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from protos import open_inference_pb2 as oip
from protos import sidecast_pb2 as pb
from tests.conformance.targets import SPECS, Target, World
from tests.conformance.test_calls import KINDS, infer

pytestmark = pytest.mark.timeout(300)

SPEC_OF = {spec.name: spec for spec in SPECS}


@pytest.mark.parametrize("task", KINDS)
def test_cached_answers_equal_uncached_ones(target: Target, world: World, task: str) -> None:
    text = f"a text that only {task} reads"
    repeats = target.followers + 1  # so that a server reads the text a second time
    hits = sum(target.counted("sidecast_cache_hits_total"))
    misses = sum(target.counted("sidecast_cache_misses_total"))
    found = [_values(target.client.predict(task, [text])[0]) for _ in range(repeats)]
    found += [_tensor_values(target.oip.ModelInfer(infer(task, (text,)))) for _ in range(repeats)]
    missed = sum(target.counted("sidecast_cache_misses_total")) - misses
    assert 1 <= missed <= target.followers
    assert sum(target.counted("sidecast_cache_hits_total")) - hits >= len(found) - missed
    uncached = _values(world.model_answer(SPEC_OF[task], text))
    for values in found:
        assert values == (uncached if isinstance(uncached[0], str) else pytest.approx(uncached, abs=1e-4))


def _values(answer: Any) -> list[Any]:
    """The numbers of an answer, or its text, of the model or of the client."""
    if hasattr(answer, "scores"):
        return list(answer.scores.values() if isinstance(answer.scores, dict) else answer.scores)
    if hasattr(answer, "values"):
        return list(answer.values)
    if hasattr(answer, "spans"):
        return [_places([asdict(span) for span in answer.spans])]
    return [answer.value if hasattr(answer, "value") else answer.text]


def _places(spans: list[dict[str, Any]]) -> str:
    return str([(span["start"], span["end"], span["label"]) for span in spans])


def _tensor_values(response: oip.ModelInferResponse) -> list[Any]:
    """The same of the Open Inference Protocol, where the last tensor holds them."""
    contents = response.outputs[-1].contents
    if response.outputs[-1].name == "spans":
        return [_places(json.loads(text)) for text in contents.bytes_contents]
    return list(contents.fp32_contents) or [text.decode() for text in contents.bytes_contents]


def test_many_tasks_on_one_input_cost_one_row_of_the_backbone(target: Target) -> None:
    misses = sum(target.counted("sidecast_cache_misses_total"))
    request = pb.PredictTasksRequest(
        tasks=[pb.TaskRef(task=task) for task in KINDS], rows=[pb.Row(text="a text that all tasks read at once")]
    )
    results = target.native.PredictTasks(request).results
    assert [result.WhichOneof("outcome") for result in results] == ["prediction"] * len(KINDS)
    assert sum(target.counted("sidecast_cache_misses_total")) == misses + 1
