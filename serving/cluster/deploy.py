"""Deploys the application to a Ray cluster by config, as `serve deploy` does, and asks how it is.

Blocks: for commands, not for event loops. Ray is imported where it is needed, it takes seconds.
"""

import contextlib
import logging
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serving.cluster.local_cluster import LocalCluster, start
from serving.cluster.serve_config import (
    DEPLOYMENT,
    Wanted,
    check_room,
    deployed,
    kept_doors,
    merged,
    serve_config,
    without,
)
from serving.cluster.status import Deployed, read
from serving.config import ConfigError

Document = dict[str, Any]

REQUEST_S = 120.0
"""Longest that Ray's dashboard may take for a request: the first one starts Serve."""
LOOK_S = 5.0
TELL_S = 5.0
"""Longest that replicas may take to tell their state."""
POLL_S = 0.5
GCS_ADDRESS = re.compile(r"--gcs-address=(\S+)")
SLOW_PROXY = (
    "calls go through Ray's Python proxy, a few hundred a second: start every node of the cluster with "
    "RAY_SERVE_ENABLE_HA_PROXY=1 and RAY_SERVE_THROUGHPUT_OPTIMIZED=1"
)


class NoCluster(ConnectionError):
    """No Ray cluster answers."""

    reason = "NO_CLUSTER"

    def __init__(self, address: str, why: str = "") -> None:
        super().__init__(address, why)
        self.address, self.why = address, why

    def __str__(self) -> str:
        why = f" ({self.why})" if self.why else ""
        return f"no Ray cluster answers at {self.address}{why}; 'sidecast deploy' starts one, or give --address"


class SignInRefused(NoCluster):
    """A cluster answers, and wants a token."""

    reason = "SIGN_IN_REFUSED"

    def __str__(self) -> str:
        return (
            f"the Ray cluster at {self.address} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the "
            "file of that cluster's token"
        )


class DeployFailed(RuntimeError):
    """The cluster took the config, and the application did not come to run."""

    reason = "DEPLOY_FAILED"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        return f"{self.name} was not deployed: {self.why}"


def check_args(wanted: Wanted) -> None:
    """
    Raises:
        ConfigError: the application would refuse its arguments.
    """
    from pydantic import ValidationError

    with _quiet():
        from serving.cluster.app import AppArgs
    try:
        AppArgs.model_validate(wanted.args)
    except ValidationError as error:
        told = [(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
        raise ConfigError("; ".join(f"{place}: {text}" if place else text for place, text in told)) from None


class Cluster:
    """A Ray cluster, through its dashboard.

    Args:
        address: http://HOST:PORT of the dashboard.

    Raises:
        NoCluster
    """

    def __init__(self, address: str) -> None:
        if not listens(address):  # before seconds are spent on importing Ray
            raise NoCluster(address)
        with _quiet():
            from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
        self.address = address.rstrip("/")
        with self._asking():
            self._client = ServeSubmissionClient(self.address)

    def details(self) -> Document:
        """What Serve tells of itself and of all applications."""
        return self._get("/api/serve/applications/")

    def nodes(self) -> list[Mapping[str, float]]:
        """Ray's resources of each live node, used ones too."""
        found = self._get("/api/v0/nodes")["data"]["result"]["result"]
        return [each["resources_total"] for each in found if each["state"] == "ALIVE"]

    def has_fast_proxies(self) -> bool:
        """Whether calls go through HAProxy, as far as can be seen: Serve must run."""
        actors = self._get("/api/v0/actors")["data"]["result"]["result"]
        kinds = {each["class_name"] for each in actors if each["state"] == "ALIVE"}
        return "HAProxyManager" in kinds or "ProxyActor" not in kinds

    def gcs(self) -> str | None:
        """HOST:PORT for drivers; None where it cannot be seen."""
        nodes = self._get("/nodes?view=summary")["data"]["summary"]
        words = [str((node.get("raylet") or {}).get("cmdline", "")) for node in nodes]
        found = [match[1].strip("',\"") for each in words if (match := GCS_ADDRESS.search(each))]
        return found[0] if found else None

    def deploy(self, wanted: Wanted, *, check: bool = True) -> str:
        """Have the application run as is wanted; other applications stay. Returns before it does.

        Returns:
            a warning, or nothing: what is as it was before, though something else is wanted.

        Raises:
            ConfigError: a mistake that shows before anything changes.
            DeployFailed, NoCluster.
        """
        running = self.details()
        document = merged(serve_config(wanted), running)
        if check:
            check_room(wanted, self.nodes(), running)
        self._change("PUT", wanted.name, document)
        return kept_doors(wanted, running)

    def await_running(
        self, name: str, timeout_s: float, on_progress: Callable[[Deployed], None] | None = None
    ) -> Deployed:
        """Until an application runs as it was deployed.

        Raises:
            DeployFailed: it failed, or the time is over. What ran before goes on.
            NoCluster
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = read(self.details(), name)
            if found is None:
                raise DeployFailed(name, "it is gone: somebody else removed it")
            if on_progress:
                on_progress(found)
            if found.status == "RUNNING":
                return found
            if found.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                goes_on = "; what ran before goes on" if found.running else ""
                raise DeployFailed(name, (found.message or found.status.lower()) + goes_on)
            if time.monotonic() > deadline:
                why = found.message or f"{found.running} of {found.wanted} replicas run"
                raise DeployFailed(name, f"not done after {timeout_s:g} s, and it goes on; {why}")
            time.sleep(POLL_S)

    def remove(self, name: str, timeout_s: float) -> bool:
        """Take an application down, and Serve with it where it is the last one. False: there was none.

        Args:
            timeout_s: 0 returns while it is being removed.

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
            rest = {"applications": without(name, running)}
            self._change("PUT", name, rest | {each: running[each] for each in ("http_options", "grpc_options")})
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

    def _ask(self, method: str, path: str, **named: Any) -> Any:
        with self._asking():
            return self._client._do_request(method, path, timeout=REQUEST_S, **named)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
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
    """Whether a cluster's dashboard answers for Serve.

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
        gcs: HOST:PORT.

    Raises:
        NoCluster
    """

    def __init__(self, gcs: str) -> None:
        self._gcs = gcs

    def __enter__(self) -> "Driver":
        if not listens(self._gcs):
            raise NoCluster(self._gcs)
        with _quiet():
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

    def told(self, name: str) -> list[Mapping[str, Any]]:
        """What the replicas of an application tell of themselves, of those that do in time."""
        from ray import serve

        try:
            asked = serve.get_deployment_handle(DEPLOYMENT, name).broadcast("status")
            found = asked.results(timeout_s=TELL_S, return_exceptions=True)
        except Exception:  # the deployment went away, or none of its replicas answers
            return []
        return [each for each in found if isinstance(each, Mapping)]


def listens(address: str) -> bool:
    """Whether anybody does.

    Args:
        address: a URL, or HOST:PORT.
    """
    try:
        found = urlsplit(address if "://" in address else f"//{address}")
        port = found.port or (443 if found.scheme == "https" else 80)
        with socket.create_connection((found.hostname or "", port), timeout=LOOK_S):
            return True
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray's advice is for those who write programs for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def start_here(folder: Path, dashboard_port: int, *, affinity: bool = False) -> LocalCluster:
    """A cluster of this machine alone.

    Args:
        affinity: calls go by their input.

    Raises:
        LocalClusterError
    """
    return start(folder, dashboard_port, answers, affinity=affinity)
