"""`sidecast serve`: one process, one backbone, every task of a registry."""

import json
import logging
import os
import sys
import threading
from typing import Any

import click

from sidecast.cli import options
from sidecast.cli.serving.server_settings import settings
from sidecast.cli.settings import GroupedCommand


@click.command(cls=GroupedCommand, short_help="Serve the registry's tasks over gRPC and HTTP.")
@settings
@click.option("--config", metavar="FILE", envvar="SIDECAST_CONFIG", help="A TOML file with any of the settings.")
@options.as_json
def serve(as_json: bool, config: str | None, **flags: Any) -> None:
    """Serve every task of a registry by its name, over gRPC and HTTP, until SIGTERM or Ctrl-C.

    Prints one line when it is ready. A version published while it runs is served within a second.
    """
    from serving.access import check_exposure
    from serving.config import ConfigError, read_config
    from serving.cores import set_spins
    from serving.logs import log_to_stderr, write_audit

    chosen = read_config(flags, file=config)
    for host in (chosen.host, chosen.access.admin_host or chosen.host):
        check_exposure(host, chosen.access)
    set_spins(chosen.openmp_spins)

    from serving.server import run_server

    options.pick_device(chosen.device)  # report a mistake before ports open and the backbone loads
    log_to_stderr(chosen.log_format, chosen.log_level)
    try:
        write_audit(chosen.access.audit_log)
    except OSError as error:
        raise ConfigError(f"audit_log {chosen.access.audit_log} cannot be written: {error.strerror}") from None
    scheme = "https" if chosen.access.tls_cert else "http"

    def ready(server: Any) -> None:
        document = {
            "ready": True,
            "address": f"{chosen.host}:{server.port}",
            "http": None if server.http_port is None else f"{scheme}://{chosen.host}:{server.http_port}",
            "metrics": f"{scheme}://{chosen.host}:{server.metrics_port}/metrics",
            "tasks": server.task_count,
            "generation": server.generation,
        }
        if chosen.access.admin_port is not None:
            document["admin"] = f"{chosen.access.admin_host or chosen.host}:{server.admin_port}"
        http = "" if server.http_port is None else " HTTP on {http},"
        noun = "task" if server.task_count == 1 else "tasks"
        line = f"ready: gRPC on {{address}},{http} metrics on {{metrics}}, {{tasks}} {noun}, generation {{generation}}"
        click.echo(json.dumps(document) if as_json else line.format(**document))

    code = run_server(chosen, ready)
    if code and _device_is_busy():  # calls were cut off; Python would wait for their threads
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    click.get_current_context().exit(code)


def _device_is_busy() -> bool:
    """Whether the device thread still runs a second after it was told to stop."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("device")]
    for thread in threads:
        thread.join(1.0)
    return any(thread.is_alive() for thread in threads)
