"""The console: static files for a browser, without a build step. Knows no server; `serving.http` sends them.

Each file of `static/` is plain HTML, CSS or an ES module. They ask the public HTTP API for everything.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""Media types by the ends of names."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    content: bytes
    media_type: str
    tag: str
    """Its ETag."""


@cache
def assets() -> Mapping[str, Asset]:
    """All files by their names. Blocks on the disk once."""
    found = {}
    for file in files(__name__).joinpath("static").iterdir():
        content = file.read_bytes()
        suffix = "." + file.name.rpartition(".")[2]
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        found[file.name] = Asset(content, TYPES[suffix], tag)
    return found
