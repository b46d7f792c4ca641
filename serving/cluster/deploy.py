"""Deploys the application to a Ray cluster by config, as `serve deploy` does, and reads its state.

Blocks: for commands, not for event loops. Ray is imported only where it is needed, because that takes seconds.
"""

import contextlib
import logging
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from serving.cluster.local_cluster import LocalCluster, ProxyTls, start
from serving.cluster.serve_config import (
    DEPLOYMENT,
    Wanted,
    check_room,
    deployed,
    kept_ports,
    merged,
    serve_config,
    without,
)
from serving.cluster.status import Deployed, read
from serving.config import ConfigError
from side_registry.errors import DataclassError

Document = dict[str, Any]

REQUEST_S = 120.0
"""Longest time for a request to Ray's dashboard. The first one starts Serve."""
CONNECT_S = 5.0
"""Longest time to connect to a port."""
STATUS_S = 5.0
"""Longest time for the replicas to report their status."""
POLL_S = 0.5
"""Pause between two reads of the application's state."""
GCS_ADDRESS = re.compile(r"--gcs-address=(\S+)")
SLOW_PROXY = (
    "calls go through Ray's Python proxy, a few hundred a second: start every node of the cluster with "
    "RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1"
)


class NoCluster(DataclassError):
    """No Ray cluster answers at the address."""

    reason: ClassVar[str] = "NO_CLUSTER"
    address: str
    why: str = ""

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return f"no Ray cluster answers at {self.address}{why}; 'sidecast deploy' starts one, or give --address"


class SignInRefused(NoCluster):
    """A cluster answers, and asks for a token."""

    reason = "SIGN_IN_REFUSED"

    def __str__(self) -> str:
        return (
            f"the Ray cluster at {self.address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the "
            "file of that cluster's token"
        )


class DeployFailed(DataclassError):
    """The cluster refused the config, or the application did not come to run."""

    reason: ClassVar[str] = "DEPLOY_FAILED"
    message = "{name} was not deployed: {why}"
    name: str
    why: str


def check_args(wanted: Wanted) -> None:
    """Validate the application's arguments before anything is sent.

    Raises:
        ConfigError: the application would refuse them.
    """
    from pydantic import ValidationError

    with _no_warnings():
        from serving.cluster.app import AppArgs
    try:
        AppArgs.model_validate(wanted.args)
    except ValidationError as error:
        faults = [
            (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")) for fault in error.errors()
        ]
        raise ConfigError("; ".join(f"{name}: {why}" if name else why for name, why in faults)) from None


class Cluster:
    """A Ray cluster, through the HTTP interface of its dashboard. Each method may raise NoCluster.

    Args:
        address: http://HOST:PORT of the dashboard.

    Raises:
        NoCluster, SignInRefused
    """

    def __init__(self, address: str) -> None:
        if not listens(address):  # before the import of Ray, which takes seconds
            raise NoCluster(address)
        with _no_warnings():
            from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
        self.address = address.rstrip("/")
        with self._errors():
            self._client = ServeSubmissionClient(self.address)

    def details(self) -> Document:
        """Serve's description of itself and of all applications."""
        return self._get("/api/serve/applications/")

    def nodes(self) -> list[Mapping[str, float]]:
        """Ray's resources of each live node, used ones too."""
        nodes = self._get("/api/v0/nodes")["data"]["result"]["result"]
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    def has_fast_proxies(self) -> bool:
        """Whether calls go through HAProxy, or cannot be seen to go through Ray's Python proxy. Serve must run."""
        actors = self._get("/api/v0/actors")["data"]["result"]["result"]
        kinds = {actor["class_name"] for actor in actors if actor["state"] == "ALIVE"}
        return "HAProxyManager" in kinds or "ProxyActor" not in kinds

    def gcs(self) -> str | None:
        """HOST:PORT of Ray's control store, to which drivers connect; None if no node shows it."""
        nodes = self._get("/nodes?view=summary")["data"]["summary"]
        commands = [str((node.get("raylet") or {}).get("cmdline", "")) for node in nodes]
        addresses = [match[1].strip("',\"") for command in commands if (match := GCS_ADDRESS.search(command))]
        return addresses[0] if addresses else None

    def deploy(self, wanted: Wanted, *, check: bool = True) -> str:
        """Send the config; other applications stay. Returns before the application runs.

        Returns:
            a warning about ports that stay as they were, or an empty text.

        Raises:
            ConfigError: a mistake that shows before anything changes.
            DeployFailed, NoCluster.
        """
        running = self.details()
        document = merged(serve_config(wanted), running)
        if check:
            check_room(wanted, self.nodes(), running)
        self._change("PUT", wanted.name, document)
        return kept_ports(wanted, running)

    def await_running(
        self, name: str, timeout_s: float, on_progress: Callable[[Deployed], None] | None = None
    ) -> Deployed:
        """Wait until an application runs as it was deployed.

        Raises:
            DeployFailed: it failed, or the time is over. The version that ran before goes on.
            NoCluster
        """
        deadline = time.monotonic() + timeout_s
        while True:
            app = read(self.details(), name)
            if app is None:
                raise DeployFailed(name, "it is gone: somebody else removed it")
            if on_progress:
                on_progress(app)
            if app.status == "RUNNING":
                return app
            if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                goes_on = "; what ran before goes on" if app.running else ""
                raise DeployFailed(name, (app.message or app.status.lower()) + goes_on)
            if time.monotonic() > deadline:
                why = app.message or f"{app.running} of {app.wanted} replicas run"
                raise DeployFailed(name, f"not done after {timeout_s:g} s, and it goes on; {why}")
            time.sleep(POLL_S)

    def remove(self, name: str, timeout_s: float) -> bool:
        """Remove an application, and end Serve if it is the last one.

        Args:
            timeout_s: longest wait until it is gone; 0 does not wait.

        Returns:
            whether there was one.

        Raises:
            DeployFailed: the cluster refuses, or it is still there when the time is over.
            NoCluster
        """
        running = self.details()
        if not deployed(name, running):
            return False
        if len(running["applications"]) == 1:
            self._change("DELETE", name)
        else:
            options = {key: running[key] for key in ("http_options", "grpc_options")}
            self._change("PUT", name, {"applications": without(name, running)} | options)
        deadline = time.monotonic() + timeout_s
        while timeout_s and deployed(name, self.details()):
            if time.monotonic() > deadline:
                raise DeployFailed(name, f"it is still being removed after {timeout_s:g} s")
            time.sleep(POLL_S)
        return True

    def _change(self, method: str, name: str, document: Document | None = None) -> None:
        answer = self._ask(method, "/api/serve/applications/", json_data=document)
        if answer.status_code != 200:
            what = "config" if document else "removal"
            raise DeployFailed(name, f"the cluster refused the {what}: {' '.join(answer.text.split())}")

    def _get(self, path: str) -> Any:
        answer = self._ask("GET", path)
        if answer.status_code != 200:
            raise NoCluster(self.address, f"{path} answers {answer.status_code}: {' '.join(answer.text.split())[:200]}")
        return answer.json()

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        with self._errors():
            return self._client._do_request(method, path, timeout=REQUEST_S, **options)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns the errors of Ray and requests into NoCluster or SignInRefused."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise SignInRefused(self.address) from None
        except (ConnectionError, requests.exceptions.ConnectionError):
            raise NoCluster(self.address) from None
        except (RuntimeError, ValueError, requests.exceptions.RequestException) as error:
            raise NoCluster(self.address, " ".join(str(error).split())[:200]) from None


def answers(address: str) -> bool:
    """Whether a dashboard answers, and Serve can be used through it.

    Raises:
        SignInRefused
    """
    try:
        Cluster(address).details()
    except SignInRefused:
        raise
    except NoCluster:
        return False
    return True


class Driver:
    """A connection to a cluster's replicas, for the length of a with block.

    Args:
        gcs: HOST:PORT of Ray's control store.

    Raises:
        NoCluster
    """

    def __init__(self, gcs: str) -> None:
        self._gcs = gcs

    def __enter__(self) -> "Driver":
        if not listens(self._gcs):
            raise NoCluster(self._gcs)
        with _no_warnings():
            import ray
            import ray.serve

            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            try:
                ray.init(self._gcs, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
            except Exception as error:  # other versions of Ray or Python, a node that is not of the cluster ...
                raise NoCluster(self._gcs, (str(error).strip() or type(error).__name__).splitlines()[0]) from None
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()

    def statuses(self, name: str) -> list[Mapping[str, Any]]:
        """The statuses of an application's replicas, of those that answer in time."""
        from ray import serve

        try:
            responses = serve.get_deployment_handle(DEPLOYMENT, name).broadcast("status")
            statuses = responses.results(timeout_s=STATUS_S, return_exceptions=True)
        except Exception:  # the deployment went away, or none of its replicas answers
            return []
        return [status for status in statuses if isinstance(status, Mapping)]


def listens(address: str) -> bool:
    """Whether something accepts connections at an address.

    Args:
        address: a URL, or HOST:PORT.
    """
    try:
        url = urlsplit(address if "://" in address else f"//{address}")
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), timeout=CONNECT_S):
            return True
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Hide Ray's warnings, which are for authors of programs that use Ray."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def start_here(
    folder: Path, dashboard_port: int, *, affinity: bool = False, tls: ProxyTls | None = None
) -> LocalCluster:
    """Start a cluster of this machine alone, and wait until it answers.

    Args:
        affinity: send calls with equal inputs to the same replica.
        tls: callers come over TLS; None: without.

    Raises:
        LocalClusterError
    """
    return start(folder, dashboard_port, answers, affinity=affinity, tls=tls)
