"""What `sidecast deploy` and `sidecast status` share: options that name a cluster, and how its errors are reported."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import plain

FAILED = 1
DASHBOARD_PORT = 8265
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")

_OPTIONS = (
    click.option("--name", default="sidecast", show_default=True, help="The application's name on the cluster."),
    options.option(
        "--address", metavar="URL", help="A cluster's dashboard, http://HOST:8265.  [default: this machine's]"
    ),
    options.option(
        "--dashboard-port",
        type=click.IntRange(1, 65535),
        default=DASHBOARD_PORT,
        show_default=True,
        help="Of this machine's cluster.",
    ),
    options.option(
        "--cluster-folder", metavar="DIR", type=Path, help="Files of this machine's cluster; a short path under /tmp."
    ),
    options.as_json,
)


def which_cluster(command: options.Command) -> options.Command:
    """Add the options that name an application and its cluster."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def dashboard(address: str | None, dashboard_port: int) -> str:
    """The URL of a cluster's dashboard."""
    url = address or f"http://{LOOPBACK[0]}:{dashboard_port}"
    return url if "://" in url else f"http://{url}"


def is_here(url: str) -> bool:
    """Whether the URL of a dashboard is on this machine."""
    try:
        return urlsplit(url).hostname in LOOPBACK
    except ValueError:
        return False


def folder_of(cluster_folder: Path | None, dashboard_port: int) -> Path:
    """The folder with the files of this machine's cluster."""
    from serving.cluster.local_cluster import folder_for

    return cluster_folder.absolute() if cluster_folder else folder_for(dashboard_port)


def local_cluster(cluster_folder: Path | None, dashboard_port: int, url: str) -> Any:
    """The cluster of a URL, if `sidecast deploy` started it on this machine; else None.

    Also signs this process in to it, or to a cluster that is still to be started there. Call it before Ray is imported.
    """
    from serving.cluster.deploy import listens
    from serving.cluster.local_cluster import find, sign_in, token_of

    folder = folder_of(cluster_folder, dashboard_port)
    cluster = find(folder)
    if cluster and cluster.dashboard == url.rstrip("/"):
        sign_in(cluster.token)
        return cluster
    if is_here(url) and not listens(url):
        sign_in(token_of(folder))
    return None


NEEDED = ("ray", "requests", "yaml")
"""Packages of the extra `cluster`."""


@contextlib.contextmanager
def failures(as_json: bool) -> Iterator[None]:
    """Report an error of the cluster, which is no mistake of the user, in one line and exit with 1."""
    from serving.cluster.deploy import DeployFailed, NoCluster
    from serving.cluster.local_cluster import LocalClusterError

    try:
        yield
    except (DeployFailed, NoCluster, LocalClusterError) as error:
        fail(str(error), error.reason, as_json)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in NEEDED:
            raise
        raise UserError(f"{error.name} is not installed; clusters need it: pip install 'sidecast[cluster]'") from None


def fail(text: str, reason: str, as_json: bool) -> None:
    """Print one line on standard error and exit with 1."""
    text = plain(" ".join(text.split()))
    document = {"error": {"reason": reason, "message": text}}
    click.echo(json.dumps(document) if as_json else f"Error: {text}", err=True)
    raise click.exceptions.Exit(FAILED)
