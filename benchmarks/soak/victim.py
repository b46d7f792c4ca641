"""A caller that is killed: `python -m benchmarks.soak.victim ASKED` streams texts over gRPC and HTTP until then.

Where no task makes texts it asks for other answers. It prints a line once the server has answered it. No torch.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.secured import Credentials
from benchmarks.soak.http_calls import HttpCalls
from serving.client import AsyncClient

CALLS = 4
"""Calls at a time, by each way."""
CALL_S = 30.0


async def ask(how: Mapping[str, Any]) -> None:
    """Ask for ever."""
    credentials = Credentials(Path(how["ca"]), Path(how["token_file"]))
    over_http = HttpCalls(how["http_url"], credentials, CALL_S)
    task, text = next(iter(how["text_tasks"]), how["tasks"][0]), how["texts"][0]
    streams = task in how["text_tasks"]

    async def ask_http() -> None:
        while True:
            await (over_http.stream(task, text, {}) if streams else over_http.predict(task, [text], {}))

    async with AsyncClient(how["address"], retry=False, **credentials.client()) as client:

        async def ask_grpc() -> None:
            while True:
                if not streams:
                    await client.predict(task, [text])
                    continue
                async for _ in client.stream(task, text):
                    pass

        await client.predict(task, [text])
        print("begun", flush=True)
        async with asyncio.TaskGroup() as calls:
            for _ in range(CALLS):
                calls.create_task(ask_grpc())
                calls.create_task(ask_http())


if __name__ == "__main__":
    asyncio.run(ask(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
