"""`sidecast tasks --where`: on which servers each version is loaded, as each server itself tells."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.output import say, show_table

Document = dict[str, Any]

ASK_S = 5.0
"""Longest wait for one server."""
NO_ADDRESS = "is a replica on Ray Serve, which has no address of its own; ask the application's address with --server"


def show_where(registry: str | None, server: str | None, as_json: bool) -> None:
    """Print the versions that are loaded on the servers that follow a registry, and the servers that did not tell."""
    source, where = options.choose(registry=registry, server=server)
    servers, faults = _of_server(where) if source == "server" else _of_registry(where)
    if as_json:
        say(True, {"servers": servers, "faults": faults}, "")
        return
    rows = [row for one in servers for row in _rows(one)]
    if rows:
        headings = ("task", "version", "server", "device", "size", "since", "last asked", "requests")
        show_table(headings, sorted(rows), below=("since", "last asked"))
    else:
        click.echo("no version is loaded on a server that could be asked")
    for fault in faults:
        click.echo(f"Warning: {fault['address']} {fault['why']}", err=True)


def _of_server(address: str) -> tuple[list[Document], list[Document]]:
    with options.connect(address) as client:
        told = client.residents()
    others, faults = _ask([server.address for server in told.others])
    return [_document(told), *(one for one in others if one["id"] != told.server.id)], faults


def _of_registry(url: str) -> tuple[list[Document], list[Document]]:
    from side_registry import Registry

    return _ask([server.address for server in Registry.open(url).servers()])


def _ask(addresses: Sequence[str]) -> tuple[list[Document], list[Document]]:
    """What the servers at these addresses tell, and why some do not. All are asked with the command's TLS and token."""
    from serving.client import Client, SidecastError

    servers: list[Document] = []
    faults: list[Document] = []
    for address in addresses:
        if "/" in address:
            faults.append({"address": address, "why": NO_ADDRESS})
            continue
        try:
            with Client(address, timeout=ASK_S, retry=False, **options.connection()) as client:
                servers.append(_document(client.residents()))
        except SidecastError as error:
            faults.append({"address": address, "why": f"did not tell: {error}"})
    return servers, faults


def _document(told: Any) -> Document:
    residents = [
        {
            "task": one.task,
            "version": one.version,
            "bytes": one.bytes,
            "since": _time(one.since),
            "last_asked": _time(one.last_asked),
            "requests": one.requests,
        }
        for one in told.residents
    ]
    server = told.server
    return {
        "id": server.id,
        "address": server.address,
        "device": told.device,
        "generation": server.generation,
        "residents": residents,
    }


def _rows(server: Document) -> Iterator[tuple[object, ...]]:
    for one in server["residents"]:
        size = f"{one['bytes'] / 1e6:.1f} MB"
        asked = one["last_asked"] or "never"
        place = (one["task"], one["version"], server["address"], server["device"])
        yield (*place, size, one["since"] or "", asked, one["requests"])


def _time(time: datetime | None) -> str | None:
    return time and time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
