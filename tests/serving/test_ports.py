"""The metrics' HTTP server: its port, IPv6, and that close gives the port back."""

import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from serving.ports import MetricsServer


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "localhost"])
def test_metrics_are_served_until_close_gives_the_port_back(host: str) -> None:
    registry = CollectorRegistry()
    Gauge("rows", "Rows.", registry=registry).set(7)
    server = MetricsServer(host, 0, registry)
    try:
        assert server.port
        address = f"[{host}]" if ":" in host else host
        with urllib.request.urlopen(f"http://{address}:{server.port}/metrics", timeout=5) as response:
            assert "rows 7.0" in response.read().decode()
    finally:
        server.close()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, server.port), family=family):
        pass
