"""The console's pages at `/`: static files that a browser shows, which ask the API with the caller's token.

Also keeps pages of other sites from having a browser change the registry.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPMethod
from urllib.parse import urlsplit

from starlette.responses import Response

from serving.console import Asset, assets
from serving.http.call import HttpCall
from serving.http.errors import ForeignPage
from serving.http.operation import Operation, Reply

LOCAL = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", re.IGNORECASE)
"""Host headers of requests to this machine. A site's name that leads here (DNS rebinding) is none."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Content-Security-Policy: everything comes from this server; no script or style stands in a page."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Console:
    """The pages. They are open to everybody: nothing of a task or a caller is in them."""

    def operations(self) -> Iterator[Operation]:
        """One for each file. They are no part of the API, and so of no document."""
        for name, asset in assets().items():
            yield Operation(
                name=name,
                method=HTTPMethod.GET,
                path="/" if name == "index.html" else f"/console/{name}",
                summary="",
                handler=partial(_show, asset),
                responses={},
                lasting=True,
            )


async def _show(asset: Asset, call: HttpCall) -> Reply:
    headers = HEADERS | {"ETag": asset.tag}
    if asset.tag in call.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def check_origin(headers: Mapping[str, str], *, is_local: bool) -> None:
    """Refuse a request that a page of another site sent. Clients that are no browsers send no Origin.

    Args:
        is_local: the server is for callers on this machine, so its name is one of this machine's.

    Raises:
        ForeignPage.
    """
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is None:
        return
    if urlsplit(origin).netloc.lower() != host.lower() or (is_local and not LOCAL.fullmatch(host)):
        raise ForeignPage(origin[:200])
