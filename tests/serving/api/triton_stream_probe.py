"""Streams from a server with tritonclient, sync and async, and prints what it saw, as JSON. Not a test: run by one.

The server has the tasks of api_kit.
"""

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from triton_probe import tensor  # beside this file

FINAL = "triton_final_response"


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
            self.found["labels"].append([each.decode() for each in result.as_numpy("label")])
            return
        text = result.as_numpy("text")
        said = None if text is None else text[0].decode()
        self.found[response.id].append([said, response.model_version, final])


def ask(address: str) -> dict[str, list[Any]]:
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


async def ask_async(address: str) -> dict[str, list[Any]]:
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


def cancel(address: str) -> str:
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
    print(json.dumps({"sync": ask(address), "async": asyncio.run(ask_async(address)), "cancelled": cancel(address)}))


if __name__ == "__main__":
    main(sys.argv[1])
