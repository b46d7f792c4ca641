"""Which port the HTTP API has. Needs none of its packages."""

from importlib.util import find_spec

from serving.config import ServeConfig
from serving.errors import HttpNotInstalled

DEFAULT_PORT = 8000
PACKAGES = ("starlette", "uvicorn", "httptools")
"""Of the extra `http`."""


def wanted_port(config: ServeConfig) -> int | None:
    """The port to listen on, 0 for a free one; None: there is no HTTP API.

    Raises:
        HttpNotInstalled: the settings name a port, and the packages are missing.
    """
    if config.http_port == 0:
        return None
    if not all(map(find_spec, PACKAGES)):
        if config.http_port is None:
            return None
        raise HttpNotInstalled(config.http_port)
    if config.http_port is None:
        return DEFAULT_PORT if config.port else 0
    return config.http_port
