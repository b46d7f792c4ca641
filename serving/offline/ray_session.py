"""This process as a driver of a Ray cluster, its own or another, without Ray's log output."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

from serving.offline.errors import NoRay
from serving.offline.placing import Node

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning else
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # on standard error, of actors whose arguments might be lost
}
"""Ray's environment variables, unless the user set them."""


@contextlib.contextmanager
def ray_session(address: str) -> Iterator[list[Node]]:
    """Start or join a Ray cluster for the length of the block, without its log output. Yields the nodes.

    Raises:
        NoRay
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise NoRay(f"{error}; pip install 'sidecast[cluster]'") from None
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        with _no_stderr():
            ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises many kinds here, without a common class
        ray.shutdown()
        raise NoRay(" ".join(str(error).split())) from None
    try:
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what is written to standard error, also by Ray's C++ libraries, which report their log level there."""
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
