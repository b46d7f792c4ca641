"""The Ray Serve application, for `sidecast deploy`, `serve run serving.cluster.app:build` and serveConfigV2.

It has one deployment, which is the ingress and owns the device: Ray's HAProxy sends a call straight to a replica. The
HTTP API is on Ray's HTTP port.
"""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.deployment import Application

from serving.cluster.autoscaling import LoadPolicy
from serving.cluster.grpc_bridge import add_services
from serving.config import ServeConfig

__all__ = ["AppArgs", "Autoscaling", "add_services", "build"]

DEPLOYMENT = "Server"
START_TRIES = 2
"""Failed starts per replica. When all replicas together had so many, the deployment has failed."""
HEALTH_TIMEOUT_S = 30.0
MESSAGE_SIZE = "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"
"""Environment variable: most bytes of a message to a replica's gRPC server. Ray's default is 2 GiB."""
LOOK_BACK_S = 15.0
"""Age of the samples that the autoscaler reads; a replica takes five in that time."""
DRAIN_CHECK_S = 0.5
"""Pause between Ray's checks whether a stopping replica still has calls in flight."""
SURGE_PERCENT = 100


class Autoscaling(BaseModel):
    """Number of replicas by load."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(1, ge=0)
    """0: no replica runs while there are no calls. The next call then waits until one has started."""
    max_replicas: int = Field(8, ge=1)
    initial_replicas: int | None = Field(None, ge=0)
    target_requests: float = Field(64, gt=0)
    """Calls in flight at one replica."""
    target_busy: float = Field(0.8, gt=0, le=1)
    """Share of what a replica's device can do in full batches."""
    upscale_delay_s: float = Field(5, ge=0)
    downscale_delay_s: float = Field(300, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        first = self.min_replicas if self.initial_replicas is None else self.initial_replicas
        if not self.min_replicas <= first <= self.max_replicas:
            raise ValueError("min_replicas <= initial_replicas <= max_replicas must hold")
        return self


class AppArgs(BaseModel):
    """`args` of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any]
    """As in a configuration file of `sidecast serve`: `backbone`, `registry`, `max_batch_rows` and so on."""
    cpus: float = Field(1, ge=0)
    """CPU cores of a replica, and torch's threads unless `threads` is set."""
    gpus: float = Field(0, ge=0)
    """GPUs of a replica."""
    replicas: int | None = Field(None, ge=1)
    """A fixed number of replicas; not together with `autoscaling`. 1 if neither is given."""
    autoscaling: Autoscaling | None = None
    max_ongoing_requests: int = Field(4096, ge=1)
    """Calls in flight at a replica; Ray holds back more. The replica's limits, `max_queued_rows` first, should reject
    calls before that: their errors say why, and when to try again."""
    grace_s: float = Field(30, ge=0)
    """Longest time for the calls in flight at a replica that is stopped. Ray makes it at least 35 s, and stops no
    replica before RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, 30 s."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.replicas is not None and self.autoscaling is not None:
            raise ValueError("give either replicas or autoscaling")
        config = ServeConfig.from_values(self.settings)
        if config.access.admin_port is not None:
            raise ValueError("admin_port is for 'sidecast serve': Ray gives all services one port")
        device = str(self.settings.get("device", "auto"))
        if device.startswith("cuda") and not self.gpus:
            raise ValueError(f"device is {device}, but gpus is 0: give each replica a GPU")
        if device.startswith("cuda:"):
            raise ValueError(f"device is {device}, but which GPU a replica gets is Ray's choice: say cuda, or auto")
        return self


def build(args: AppArgs) -> Application:
    """Build the application. Ray calls it with validated arguments: AppArgs raises pydantic.ValidationError before."""
    from serving.cluster.replica import HEALTH_EVERY_S, Server

    replica = Server if args.settings.get("http_port") == 0 else serve.ingress()(Server)
    config = ServeConfig.from_values(args.settings)
    most = args.autoscaling.max_replicas if args.autoscaling else args.replicas or 1
    options: dict[str, Any] = {
        "name": DEPLOYMENT,
        "ray_actor_options": {
            "num_cpus": args.cpus,
            "num_gpus": args.gpus,
            "runtime_env": {"env_vars": {MESSAGE_SIZE: str(config.max_message_bytes)}},
        },
        "max_ongoing_requests": args.max_ongoing_requests,
        "health_check_period_s": HEALTH_EVERY_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "graceful_shutdown_timeout_s": args.grace_s,
        "graceful_shutdown_wait_loop_s": DRAIN_CHECK_S,
        "max_constructor_retry_count": START_TRIES * most,
        "max_surge_percent": SURGE_PERCENT,
    }
    if args.autoscaling:
        options["autoscaling_config"] = _autoscaling(args.autoscaling, config)
    else:
        options["num_replicas"] = args.replicas or 1
    return serve.deployment(**options)(replica).bind(args.settings)


def _autoscaling(wanted: Autoscaling, config: ServeConfig) -> AutoscalingConfig:
    """Scaling by LoadPolicy, which keeps the delays itself; see docs/decisions/0012-scaling.md."""
    kwargs = {
        "target_requests": wanted.target_requests,
        "target_busy": wanted.target_busy,
        "upscale_delay_s": wanted.upscale_delay_s,
        "downscale_delay_s": wanted.downscale_delay_s,
        "queue_tokens": config.batch.max_batch_tokens,
        "signal": "load",
    }
    return AutoscalingConfig(
        min_replicas=wanted.min_replicas,
        max_replicas=wanted.max_replicas,
        initial_replicas=wanted.initial_replicas,
        target_ongoing_requests=wanted.target_requests,
        upscale_delay_s=0,
        downscale_delay_s=0,
        look_back_period_s=LOOK_BACK_S,
        policy=AutoscalingPolicy(
            policy_function=f"{LoadPolicy.__module__}:{LoadPolicy.__name__}", policy_kwargs=kwargs
        ),
    )
