"""`sidecast webhooks`: follows a registry and posts its changes to an HTTP server."""

import logging
import sys
from pathlib import Path

import click

from sidecast.cli import options
from sidecast.cli.output import say

POLL_S = 1.0
"""Pause between two looks at the registry, in seconds."""


@click.command(short_help="Tell an HTTP server of every change of a registry.")
@options.registry
@click.option("--url", required=True, envvar="SIDECAST_WEBHOOK_URL", help="Where each change is posted.")
@click.option(
    "--secret-file",
    required=True,
    type=click.Path(path_type=Path),
    help="File with the secret that signs, as whsec_BASE64; two lines while it is replaced.",
)
@click.option(
    "--position",
    required=True,
    type=click.Path(path_type=Path),
    help="File that keeps what was delivered; made at the first start, which sends only later changes.",
)
@click.option("--once", is_flag=True, help="Deliver what there is now, and exit.")
@options.as_json
def webhooks(registry: str | None, url: str, secret_file: Path, position: Path, once: bool, as_json: bool) -> None:
    """Post a signed event for each publish, promote, rollback, route and retire, until Ctrl-C.

    Each event is sent until the receiver accepts it (status 2xx), in the order of the changes, and at least once.
    """
    from side_registry import Registry
    from side_registry.maintenance import Webhooks, read_secrets

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    follower = Webhooks(Registry.open(options.choose(registry=registry)[1]), url, read_secrets(secret_file), position)
    if once:
        delivered = follower.deliver()
        say(as_json, {"delivered": delivered}, f"{delivered} events delivered")
        return
    generation = follower.position.generation
    say(as_json, {"generation": generation}, f"following from generation {generation}")
    follower.follow(POLL_S)
