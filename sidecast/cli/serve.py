"""`sidecast serve`: one process, one backbone, every task of a registry."""

import json
import logging
import os
import sys
import threading
from typing import Any

import click

from sidecast.cli import options


@click.command(short_help="Serve the registry's tasks over gRPC.")
@options.option("--backbone", metavar="B", help="A backbone: a Hugging Face folder, or a hub id.")
@options.option("--registry", metavar="R", help="The registry's folder or URL; made where it is not there yet.")
@options.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@options.option("--port", type=int, metavar="P", help="gRPC; 0 takes a free one.  [default: 8001]")
@options.option(
    "--metrics-port", type=int, metavar="M", help="Prometheus over HTTP; 0 takes a free one.  [default: 8002]"
)
@options.option("--device", help="auto, cpu, cuda, cuda:1 ...  [default: auto]")
@options.option("--dtype", help="auto, float32 or bfloat16.  [default: auto]")
@options.option("--quantize", help="Bits of the backbone's matrices: none, int8, int4 or w8a8.  [default: none]")
@options.option("--threads", type=int, help="Torch's threads on a CPU; 0 leaves torch's choice.  [default: 0]")
@options.option("--max-batch-tokens", type=int, help="Tokens of one backbone pass.  [default: 8192]")
@options.option("--max-batch-rows", type=int, help="Rows of one batch.  [default: 64]")
@options.option("--max-wait-s", type=float, help="Longest wait of a row for company, in seconds.  [default: 0.002]")
@options.option("--max-queued-rows", type=int, help="Rows that may wait; more are shed.  [default: 8192]")
@options.option(
    "--cache-bytes", type=int, help="Activations kept for other tasks on the same input.  [default: 256 MiB]"
)
@click.option("--compile/--no-compile", default=None, help="Compile the encoder at start; minutes.  [default: no]")
@options.option("--tenant-header", metavar="KEY", help="gRPC metadata that names a caller's tenant.  [default: none]")
@options.option("--grace-s", type=float, help="Seconds for requests in flight after SIGTERM.  [default: 30]")
@options.option("--log-level", help="DEBUG, INFO, WARNING or ERROR.  [default: INFO]")
@click.option("--config", metavar="FILE", envvar="SIDECAST_CONFIG", help="A TOML file with any of the settings.")
@options.as_json
def serve(as_json: bool, config: str | None, **flags: Any) -> None:
    """Serve every task of a registry by its name, over both gRPC doors, until SIGTERM or Ctrl-C.

    Prints one line when it is ready. A version published while it runs is served within a second.
    """
    from serving.config import read_config
    from serving.server import run_server

    settings = read_config(flags, file=config)
    options.pick_device(settings.device)  # a mistake is told before ports are taken and the backbone loads
    logging.basicConfig(
        level=settings.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )

    def ready(server: Any) -> None:
        document = {
            "ready": True,
            "address": f"{settings.host}:{server.port}",
            "metrics": f"http://{settings.host}:{server.metrics_port}/metrics",
            "tasks": server.task_count,
            "generation": server.generation,
        }
        line = "ready: gRPC on {address}, metrics on {metrics}, {tasks} tasks, generation {generation}"
        click.echo(json.dumps(document) if as_json else line.format(**document))

    code = run_server(settings, ready)
    if code and _device_is_busy():  # with calls that were cut off: Python would wait for them, for nobody
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    click.get_current_context().exit(code)


def _device_is_busy() -> bool:
    """Whether the device thread goes on a second after it was told to end."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("device")]
    for thread in threads:
        thread.join(1.0)
    return any(thread.is_alive() for thread in threads)
