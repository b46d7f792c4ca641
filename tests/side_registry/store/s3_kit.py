"""A server with S3's API on this machine (moto)."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "ada", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[str]:
    """Start the server with one bucket and point the environment to it; yields its URL."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = _one_by_one(DomainDispatcherApplication(create_backend_app))
    server, before = make_server("127.0.0.1", 0, app, threaded=True), dict(os.environ)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        send(f"{endpoint}/moto-api/reset")  # moto keeps what an earlier server of this process held
        send(f"{endpoint}/{bucket}", "PUT")
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=endpoint, AWS_ALLOW_HTTP="true")
        yield endpoint
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.shutdown()
        thread.join()
        server.server_close()


def send(url: str, method: str = "POST", data: bytes = b"") -> bytes:
    with urlopen(Request(url, data, {"Content-Type": "text/plain"}, method=method), timeout=10) as answer:
        return answer.read()


def _one_by_one(app: Callable[..., Any]) -> Callable[..., Any]:
    """Serve one request at a time: moto's conditional write is not atomic, S3's is."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        with lock:
            return app(environ, start_response)

    return serve
