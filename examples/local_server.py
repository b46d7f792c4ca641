"""A Sidecast server inside this program, for the examples. In production, run `sidecast serve`."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

from serving.config import ServeConfig
from serving.server import Server

GRACE_S = 1.0
"""How long calls in flight have at the end."""


@dataclass(frozen=True)
class Addresses:
    """Where the server is."""

    grpc: str
    """For `sidecast.Client`."""
    http: str | None
    """For a browser or curl; None without the extra `http`."""


@contextmanager
def serve(backbone: str, registry: Path) -> Iterator[Addresses]:
    """Serve a registry on free ports until the block ends. The server follows the registry.

    Args:
        backbone: a Hugging Face folder or a hub id, the one that the registry's versions were trained on.
    """

    async def start() -> Server:
        server = Server(ServeConfig(backbone=backbone, registry=str(registry), port=0, metrics_port=0))
        await server.start()
        return server

    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="server")
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(start(), loop).result()
        try:
            http = f"http://127.0.0.1:{server.http_port}" if server.http_port else None
            yield Addresses(f"127.0.0.1:{server.port}", http)
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(GRACE_S), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
