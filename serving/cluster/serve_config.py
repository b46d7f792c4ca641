"""What `sidecast deploy` sends to a Ray cluster: the Serve config of the application. Knows no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from serving.config import GROUPS, ConfigError, ServeConfig, TaskLimits

Document = dict[str, Any]

IMPORT_PATH, ADD_SERVICES = "serving.cluster.app:build", "serving.cluster.app:add_services"
DEPLOYMENT = "Server"
ATTEMPT = "SIDECAST_ATTEMPT"
"""Variable in the application's environment that tells a second try of a failed config from the first: Ray would not
try the same one again."""
NOT_A_REPLICAS = ("host", "port", "grace_s")
"""Settings of one process that on a cluster are the proxies' or the deployment's."""


class TooBig(ConfigError):
    """The cluster has no room for what is asked."""

    reason = "TOO_BIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One application on a cluster."""

    name: str
    args: Document
    """Of `serving.cluster.app.AppArgs`, without `replicas`."""
    replicas: int | None
    """A fixed number of them; None where `args` has `autoscaling`."""
    surge: int
    """Replicas of an update that may run beside the old ones, in percent of all; 0 stops old ones first."""
    host: str
    port: int
    http_port: int
    """Ray's HTTP door; health checks of load balancers only."""

    @property
    def most(self) -> int:
        """Replicas that it may have to begin with."""
        scaling = self.args.get("autoscaling") or {}
        return self.replicas or max(1, scaling.get("initial_replicas") or scaling.get("min_replicas", 1))

    @property
    def needs(self) -> dict[str, float]:
        """Ray's resources of one replica."""
        return {"CPU": self.args["cpus"], "GPU": self.args["gpus"]}


def app_args(
    config: ServeConfig, *, cpus: float, gpus: float, max_ongoing_requests: int | None, autoscaling: Document | None
) -> Document:
    """`args` of the application: what differs from the defaults, so that the document stays readable."""
    args: Document = {"settings": settings_of(config), "cpus": cpus, "gpus": gpus, "grace_s": config.grace_s}
    if max_ongoing_requests is not None:
        args["max_ongoing_requests"] = max_ongoing_requests
    if autoscaling is not None:
        args["autoscaling"] = autoscaling
    return args


def settings_of(config: ServeConfig) -> Document:
    """A replica's settings that differ from the defaults, by flat name; folders as absolute paths."""
    plain = ServeConfig(backbone=config.backbone, registry=config.registry)
    found: Document = {"backbone": _source(config.backbone), "registry": _place(config.registry)}
    for owner, default in [(config, plain), *((getattr(config, g), getattr(plain, g)) for g in GROUPS)]:
        for name in (each.name for each in fields(owner) if each.name not in GROUPS):
            value = getattr(owner, name)
            if name not in NOT_A_REPLICAS and value != getattr(default, name):
                found[name] = _tables(value) if name == "task_limits" else value
    return found


def _tables(limits: Mapping[str, TaskLimits]) -> Document:
    return {task: {each.name: getattr(own, each.name) for each in fields(own)} for task, own in limits.items()}


def _source(backbone: str) -> str:
    """A folder as an absolute path; a hub id as it is."""
    path = Path(backbone).expanduser()
    named = backbone.startswith((".", "~", "/"))
    return str(path.resolve()) if named or path.is_dir() else backbone


def _place(registry: str) -> str:
    return registry if "://" in registry else str(Path(registry).expanduser().resolve())


def serve_config(wanted: Wanted) -> Document:
    """For `serve deploy`, Ray's REST interface and KubeRay's serveConfigV2."""
    overrides: Document = {"name": DEPLOYMENT, "max_surge_percent": wanted.surge}
    if wanted.replicas:
        overrides["num_replicas"] = wanted.replicas  # not in args: a change of those restarts every replica
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
    """`document` beside what a cluster runs: applications that it leaves out would be removed.

    Args:
        running: what Serve's REST interface tells.

    Raises:
        ConfigError: another application has the route, or Serve runs with another gRPC port or other services.
    """
    [ours] = document["applications"]
    apps = running.get("applications", {})
    if taken := [name for name, each in apps.items() if name != ours["name"] and each.get("route_prefix") == "/"]:
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


def kept_doors(wanted: Wanted, running: Document) -> str:
    """What Serve, where it runs, keeps of its own though another is wanted, in a line; empty where nothing."""
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
    return [each["deployed_app_config"] for own, each in apps.items() if own != name and each["deployed_app_config"]]


def deployed(name: str, running: Document) -> Document:
    """What the cluster tells of an application; nothing where there is none."""
    return running.get("applications", {}).get(name, {})


def restarts(wanted: Wanted, running: Document) -> bool:
    """Whether replicas that run would be replaced by new ones."""
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
    """
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
