"""Calls a server with tritonclient in every way, streams too, and prints what it saw, as JSON. Not a test: run by one.

The server has the tasks of api_kit.
"""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

FINAL = "triton_final_response"
TEXTS = ["a gripping film", "x" * 90]


def tensor(name: str, texts: list[str], kind: Any = triton.InferInput) -> Any:
    array = np.array([text.encode() for text in texts], dtype=object)
    made = kind(name, list(array.shape), "BYTES")
    made.set_data_from_numpy(array)
    return made


def read(result: Any) -> dict[str, Any]:
    label, score, scores = (result.as_numpy(name) for name in ("label", "score", "scores"))
    response = result.get_response()
    return {
        "id": response.id,
        "version": response.model_version,
        "label": [text.decode() for text in label],
        "score": score.tolist(),
        "scores": scores.tolist(),
    }


def refusal(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["OK", ""]


async def ask_async(address: str) -> dict[str, Any]:
    async with triton_aio.InferenceServerClient(address) as client:
        result = await client.infer("sst2", [tensor("sentence", TEXTS, triton_aio.InferInput)], request_id="7")
    return read(result)


def ask_by_callback(client: triton.InferenceServerClient) -> dict[str, Any]:
    answers: queue.Queue[Any] = queue.Queue()
    client.async_infer(
        "sst2", [tensor("sentence", TEXTS)], lambda result, error: answers.put(result or error), request_id="7"
    )
    return read(answers.get(timeout=10))


def refusals(client: triton.InferenceServerClient) -> dict[str, list[str]]:
    wrong = triton.InferInput("sentence", [1], "FP32")
    wrong.set_data_from_numpy(np.zeros(1, np.float32))
    return {
        "config": refusal(lambda: client.get_model_config("sst3")),
        "datatype": refusal(lambda: client.infer("sst2", [wrong])),
        "task": refusal(lambda: client.infer("sst3", [tensor("sentence", TEXTS)])),
        "unload": refusal(lambda: client.unload_model("sst2")),
    }


class Seen:
    """What came, by the request's id. Three requests end with a final response, one with an error."""

    def __init__(self) -> None:
        self.found: dict[str, list[Any]] = {"a": [], "b": [], "labels": [], "errors": []}
        self.open = 4

    def add(self, result: Any, error: Any) -> None:
        if error:
            self.found["errors"].append(error.message())
            self.open -= 1
            return
        response = result.get_response()
        final = response.parameters[FINAL].bool_param
        self.open -= final
        if response.id == "labels":
            self.found["labels"].append([label.decode() for label in result.as_numpy("label")])
            return
        text = result.as_numpy("text")
        decoded = None if text is None else text[0].decode()
        self.found[response.id].append([decoded, response.model_version, final])


def stream(address: str) -> dict[str, list[Any]]:
    client, seen = triton.InferenceServerClient(address), Seen()
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("titles", [tensor("body", ["one two three"])], request_id="a", priority=1)
    client.async_stream_infer("nope", [tensor("body", ["x"])], request_id="c")
    client.async_stream_infer(
        "titles", [tensor("body", ["four"])], request_id="b", enable_empty_final_response=True, timeout=5_000_000
    )
    client.async_stream_infer("sst2", [tensor("sentence", ["short", "x" * 90])], request_id="labels")
    while seen.open:
        seen.add(*answers.get(timeout=10))
    client.stop_stream()
    client.close()
    return seen.found


async def stream_async(address: str) -> dict[str, list[Any]]:
    def made(task: str, field: str, texts: list[str], id: str) -> dict[str, Any]:
        return {"model_name": task, "inputs": [tensor(field, texts, triton_aio.InferInput)], "request_id": id}

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield made("titles", "body", ["one two three"], "a")
        yield made("nope", "body", ["x"], "c")
        yield made("titles", "body", ["four"], "b")
        yield made("sst2", "sentence", ["short", "x" * 90], "labels")

    seen = Seen()
    async with triton_aio.InferenceServerClient(address) as client:
        responses: Any = client.stream_infer(requests())  # untyped there
        async for result, error in responses:
            seen.add(result, error)
    assert seen.open == 0
    return seen.found


def cancel_stream(address: str) -> str:
    """The status of a stream that its client cancels."""
    client = triton.InferenceServerClient(address)
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("titles", [tensor("body", ["one"])])
    answers.get(timeout=10)
    client.stop_stream(cancel_requests=True)
    while True:
        _, error = answers.get(timeout=10)
        if error:
            return str(error.status())


def main(address: str) -> None:
    client = triton.InferenceServerClient(address)
    timed = {"request_id": "7", "timeout": 5_000_000, "priority": 1, "client_timeout": 10.0}
    only = client.infer("sst2", [tensor("sentence", TEXTS)], outputs=[triton.InferRequestedOutput("score")])
    squeezed = client.infer("titles", [tensor("body", ["about", "über"])], compression_algorithm="gzip")
    client.load_model("sst2")
    seen = {
        "sync": read(client.infer("sst2", [tensor("sentence", TEXTS)], model_version="production", **timed)),
        "async": asyncio.run(ask_async(address)),
        "callback": ask_by_callback(client),
        "score only": [[output.name for output in only.get_response().outputs], only.as_numpy("score").tolist()],
        "text": [text.decode() for text in squeezed.as_numpy("text")],
        "live": [client.is_server_live(), client.is_model_ready("sst2"), client.is_model_ready("nope")],
        "ready": [client.is_server_ready(), client.is_model_ready("sst2", "1"), client.is_model_ready("sst2", "2")],
        "metadata": client.get_model_metadata("sst2", as_json=True),
        "config": client.get_model_config("rte", as_json=True),
        "server": client.get_server_metadata(as_json=True),
        "index": client.get_model_repository_index(as_json=True),
        "errors": refusals(client),
        "statistics": client.get_inference_statistics("titles", as_json=True),
        "streams": {
            "sync": stream(address),
            "async": asyncio.run(stream_async(address)),
            "cancelled": cancel_stream(address),
        },
    }
    client.close()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
