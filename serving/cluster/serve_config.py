"""Builds the Serve config that `sidecast deploy` sends to a Ray cluster. Knows no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from serving.access import Certificates
from serving.cluster.proxy_tls import LOOPBACK, TlsPorts
from serving.config import GROUPS, ConfigError, ServeConfig, TaskLimits

Document = dict[str, Any]

IMPORT_PATH = "serving.cluster.app:build"
ADD_SERVICES = "serving.cluster.app:add_services"
DEPLOYMENT = "Server"
ATTEMPT = "SIDECAST_ATTEMPT"
"""Variable in the application's environment that differs between two tries of the same config. Ray does not try an
unchanged config again after it failed."""
FILES = ("vision", "tls_cert", "tls_key", "tls_client_ca", "tokens", "jwt_keys", "trust", "audit_log")
"""Settings that name files, which a replica needs as absolute paths. Some may be URLs."""
NOT_OF_REPLICAS = ("host", "port", "http_port", "grace_s")
"""Settings of a single process that on a cluster are set for the proxies or the deployment."""


class TooBig(ConfigError):
    """The cluster has too few resources for the replicas that are asked for."""

    reason = "TOO_BIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One application, as it should run on a cluster."""

    name: str
    args: Document
    """As `serving.cluster.app.AppArgs`, without `replicas`."""
    replicas: int | None
    """A fixed number of replicas; None if `args` has `autoscaling`."""
    surge: int
    """New replicas of an update that may run in addition to the old ones, in percent; 0 stops old ones first."""
    host: str
    port: int
    http_port: int
    """Ray's HTTP port: the HTTP API, and health checks of load balancers."""
    certificates: Certificates | None = None
    """What callers are shown; None: they come without TLS."""

    @property
    def most(self) -> int:
        """Replicas at the start."""
        scaling = self.args.get("autoscaling") or {}
        return self.replicas or max(1, scaling.get("initial_replicas") or scaling.get("min_replicas", 1))

    @property
    def tls(self) -> TlsPorts | None:
        """Where the cluster's proxy should end TLS; None: nowhere."""
        if self.certificates is None:
            return None
        asks = self.certificates.asks_clients
        return TlsPorts(host=self.host, port=self.port, http_port=self.http_port, asks_clients=asks)

    def behind(self, ports: TlsPorts | None) -> "Wanted":
        """As Ray is told it: its own ports, where the proxy before them ends TLS."""
        if ports is None:
            return self
        return replace(self, host=LOOPBACK, port=ports.inner_port, http_port=ports.inner_http_port)

    @property
    def needs(self) -> dict[str, float]:
        """Ray's resources of one replica."""
        return {"CPU": self.args["cpus"], "GPU": self.args["gpus"]}


def app_args(
    config: ServeConfig, *, cpus: float, gpus: float, max_ongoing_requests: int | None, autoscaling: Document | None
) -> Document:
    """`args` of the application. Settings with their default value are left out, so that the document stays short."""
    args: Document = {"settings": settings_of(config), "cpus": cpus, "gpus": gpus, "grace_s": config.grace_s}
    if max_ongoing_requests is not None:
        args["max_ongoing_requests"] = max_ongoing_requests
    if autoscaling is not None:
        args["autoscaling"] = autoscaling
    return args


def settings_of(config: ServeConfig) -> Document:
    """A replica's settings that differ from the defaults, by name without groups; folders as absolute paths."""
    defaults = ServeConfig(backbone=config.backbone, registry=config.registry)
    is_url = "://" in config.registry
    settings: Document = {
        "backbone": _absolute_backbone(config.backbone),
        "registry": config.registry if is_url else str(Path(config.registry).expanduser().resolve()),
    }
    for group, default in [(config, defaults), *((getattr(config, g), getattr(defaults, g)) for g in GROUPS)]:
        for name in (field.name for field in fields(group) if field.name not in GROUPS):
            value = getattr(group, name)
            if name in FILES and value and "://" not in value:
                settings[name] = str(Path(value).expanduser().resolve())
            elif name not in NOT_OF_REPLICAS and value != getattr(default, name):
                settings[name] = _tables(value) if name == "task_limits" else value
    return settings


def _tables(limits: Mapping[str, TaskLimits]) -> Document:
    return {task: asdict(limit) for task, limit in limits.items()}


def _absolute_backbone(backbone: str) -> str:
    """A folder as an absolute path; a hub id as it is."""
    path = Path(backbone).expanduser()
    is_path = backbone.startswith((".", "~", "/")) or path.is_dir()
    return str(path.resolve()) if is_path else backbone


def serve_config(wanted: Wanted) -> Document:
    """The config for `serve deploy`, Ray's REST interface and KubeRay's serveConfigV2."""
    overrides: Document = {"name": DEPLOYMENT, "max_surge_percent": wanted.surge}
    if wanted.replicas:
        overrides["num_replicas"] = wanted.replicas  # not in args: a change of args restarts every replica
    application = {
        "name": wanted.name,
        "import_path": IMPORT_PATH,
        "route_prefix": "/",
        "args": wanted.args,
        "deployments": [overrides],
    }
    return {
        "http_options": {"host": wanted.host, "port": wanted.http_port},
        "grpc_options": {
            "port": wanted.port,
            "grpc_servicer_functions": [ADD_SERVICES],
            "enable_reflection": True,
        },
        "applications": [application],
    }


def merged(document: Document, running: Document) -> Document:
    """`document` with the other applications of a cluster added: Ray removes applications that a config leaves out.

    Args:
        running: what Serve's REST interface answers.

    Raises:
        ConfigError: another application has the route, or Serve runs with another gRPC port or other services.
    """
    [ours] = document["applications"]
    apps = running.get("applications", {})
    if taken := [name for name, app in apps.items() if name != ours["name"] and app.get("route_prefix") == "/"]:
        raise ConfigError(f"application {taken[0]!r} answers on this cluster's ports already; remove it first")
    if grpc := running.get("grpc_options"):
        _check_grpc(document["grpc_options"], grpc)
    before = deployed(ours["name"], running)
    if attempt := _attempt(before, ours):
        ours = ours | {"runtime_env": {"env_vars": {ATTEMPT: str(attempt)}}}
    http = running.get("http_options") if running.get("grpc_options") else None
    return document | {
        "applications": [*without(ours["name"], running), ours],
        "http_options": http or document["http_options"],
    }


def kept_ports(wanted: Wanted, running: Document) -> str:
    """A warning if Serve runs already and keeps its address and HTTP port instead of the wanted ones; else empty."""
    http = running.get("http_options") if running.get("grpc_options") else None
    if not http or (http.get("host"), http.get("port")) == (wanted.host, wanted.http_port):
        return ""
    return (
        f"Serve runs on this cluster already, listening on {http.get('host')} with HTTP port {http.get('port')}, and "
        f"keeps them instead of {wanted.host} and {wanted.http_port}; to change them end it with 'serve shutdown' first"
    )


def without(name: str, running: Document) -> list[Document]:
    """The configs of all other applications that were deployed by config."""
    apps = running.get("applications", {})
    configs = [app["deployed_app_config"] for app_name, app in apps.items() if app_name != name]
    return [config for config in configs if config]


def deployed(name: str, running: Document) -> Document:
    """What the cluster says of an application; empty if there is none."""
    return running.get("applications", {}).get(name, {})


def restarts(wanted: Wanted, running: Document) -> bool:
    """Whether running replicas would be replaced by new ones."""
    before = deployed(wanted.name, running)
    return bool(before.get("deployments")) and (before["deployed_app_config"] or {}).get("args") != wanted.args


def _check_grpc(wanted: Document, has: Document) -> None:
    functions = has.get("grpc_servicer_functions") or []
    if has.get("port") != wanted["port"] or ADD_SERVICES not in functions:
        raise ConfigError(
            f"Serve runs on this cluster already, with gRPC port {has.get('port')} and {functions or 'no services'}, "
            f"and keeps them; give --port {has.get('port')} if they are Sidecast's, or end it with 'serve shutdown'"
        )


def _attempt(before: Document, ours: Document) -> int:
    config = before.get("deployed_app_config") or {}
    last = int(config.get("runtime_env", {}).get("env_vars", {}).get(ATTEMPT, 0))
    failed = before.get("status") in ("DEPLOY_FAILED", "UNHEALTHY") and config.get("args") == ours["args"]
    return last + failed


def check_room(wanted: Wanted, nodes: Sequence[Mapping[str, float]], running: Document) -> None:
    """Check that the cluster has the resources for all replicas, and for an update in addition to the old ones.

    Args:
        nodes: Ray's resources of each node, used ones too.

    Raises:
        TooBig
    """
    room = sum(_fit(wanted.needs, node) for node in nodes)
    per_replica = " and ".join(f"{number:g} {kind}" for kind, number in wanted.needs.items() if number)
    has = ", ".join(f"{sum(node.get(kind, 0) for node in nodes):g} {kind}" for kind in wanted.needs)
    if room < wanted.most:
        raise TooBig(
            f"replicas of {per_replica} each: {wanted.most} are asked for, the cluster ({has}) has room for {room}; "
            "ask for less, or give --no-check where it grows on demand"
        )
    if room == wanted.most and wanted.surge and restarts(wanted, running):
        raise TooBig(
            f"an update starts new replicas beside the old ones, and the cluster has room for {room} alone ({has}); "
            "ask for fewer or smaller ones, or give --surge 0 to stop old ones first"
        )


def _fit(needs: Mapping[str, float], node: Mapping[str, float]) -> int:
    shares = [node.get(kind, 0) / number for kind, number in needs.items() if number]
    return int(min(shares) + 1e-9) if shares else 1000
