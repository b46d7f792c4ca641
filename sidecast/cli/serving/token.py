"""`sidecast token`: the tokens file of a server."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import say, show_table

tokens_file = options.option("--tokens", "file", required=True, metavar="FILE", help="The server's tokens file.")


@click.group(short_help="Make, list and revoke the tokens of a server's callers.")
def token() -> None:
    """Make, list and revoke the tokens of a server's callers.

    The file has the hash of each token, never the token. Servers that were started with --tokens FILE read it again
    within a second after it changed.
    """


@token.command(short_help="Make a token, and print it this once.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="VERB[:TASKS]",
    help="What its caller may do: predict, read, publish or admin, alone or with tasks, as predict:sst2*. May be given "
    "again.",
)
@click.option(
    "--tenant", default="", metavar="TENANT", help="Callers of different tenants share no cached activations."
)
@click.option("--days", type=click.FloatRange(0, 36_500, min_open=True), help="It expires after so many days.")
@tokens_file
@options.as_json
def create(name: str, scopes: Sequence[str], tenant: str, days: float | None, file: str, as_json: bool) -> None:
    """Make a token for the caller NAME, append its hash to the file, and print the token. It is printed this once."""
    from serving.access.tokens import create_token

    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    try:
        made = create_token(Path(file).expanduser(), name=name, scopes=scopes, tenant=tenant, expires=expires)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
    say(as_json, {"name": name, "token": made}, made)


@token.command("list", short_help="List the tokens of a file, without their secrets.")
@tokens_file
@options.as_json
def list_(file: str, as_json: bool) -> None:
    """List the tokens of a file: who they stand for, their scopes, tenants and ends."""
    from serving.access.tokens import read_tokens

    try:
        entries = read_tokens(Path(file).expanduser())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
    documents = [
        {
            "name": entry.caller.name,
            "tenant": entry.caller.tenant,
            "scopes": [str(scope) for scope in entry.scopes],
            "expires": entry.expires.isoformat() if entry.expires else None,
        }
        for entry in entries
    ]
    if as_json:
        say(True, documents, "")
        return
    rows = [(d["name"], d["tenant"], ", ".join(d["scopes"]), d["expires"] or "never") for d in documents]
    show_table(("name", "tenant", "scopes", "expires"), rows)


@token.command(short_help="Take a token out of a file.")
@click.argument("name")
@tokens_file
@options.as_json
def revoke(name: str, file: str, as_json: bool) -> None:
    """Take the token of the caller NAME out of the file. Servers refuse it within a second."""
    from serving.access.tokens import revoke_token

    try:
        revoke_token(Path(file).expanduser(), name)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}") from None
    say(as_json, {"name": name, "revoked": True}, f"revoked {name}")
