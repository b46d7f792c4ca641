"""Settings of a server: frozen dataclasses, documented field by field, checked when they are made.

`read_config` fills them from the command line, the environment (`SIDECAST_<FIELD>`) and a TOML file, in that order of
precedence. The first sentence under a field is the help of its option in `sidecast serve` and `sidecast deploy`.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

PREFIX = "SIDECAST_"
METADATA_KEY = re.compile(r"(?!grpc-)[a-z0-9_.-]*(?<!-bin)")


class ConfigError(ValueError):
    """A setting has an invalid value; the message names the setting, the value and the rule."""

    reason = "CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How rows of all tasks are put into batches."""

    max_batch_tokens: int = 8192
    """Most tokens of one backbone pass, padding included. A longer single row still runs, alone."""
    max_batch_rows: int = 64
    """Most rows of one batch; each beam counts as a row. Rows with equal tokens share one row of the backbone pass, but
    each counts here."""
    batch_cost_tokens: int = 96
    """Fixed cost of a batch, in tokens. A higher value makes fuller batches with more padding. On a CPU 150 to 350 were
    measured; a little less loses no throughput and saves padding."""
    padding_cost: float = 1.0
    """Most that a padding token costs, relative to a real token. The engine lowers it where it leaves padding out."""
    max_wait_s: float = 0.002
    """Longest time a row waits for more rows while the device is idle, in seconds. While the device is busy, rows
    gather without this wait."""
    max_running_rows: int = 64
    """Most texts that are generated at once; each beam counts. Further texts wait; rows that generate no text overtake
    them."""
    max_tokens_beside_texts: int = 1024
    """Most tokens of new rows in one step while texts are generated, padding included; 0: as `max_batch_tokens`. Each
    running text gets one token per step, so this bounds the pause between its tokens. One input always goes in, however
    long."""
    max_queued_rows: int = 8192
    """Most rows that wait for the device; requests beyond are rejected. Each beam counts as a row. A request that finds
    the queue empty is always accepted."""
    max_queued_tokens: int = 2**20
    """Most tokens that wait for the device; requests beyond are rejected."""
    default_priority: int = 2
    """Priority of requests that name none: 1 is served first, 4 last."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_batch_tokens", "max_batch_rows", "max_queued_rows", "max_queued_tokens")
        _at_least(self, 1, "max_running_rows", "default_priority")
        _at_least(self, 0, "max_wait_s", "batch_cost_tokens", "max_tokens_beside_texts", "padding_cost")
        if self.default_priority > 4:
            raise ConfigError(f"default_priority must be within 1..4, got {self.default_priority}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """Limits on what one task has waiting and in flight."""

    max_task_rows: int = 0
    """Most rows of one task that wait for the device; 0: no limit. Each beam counts as a row."""
    max_task_tokens: int = 0
    """Most tokens of one task that wait for the device; 0: no limit. Tokens count once for each row."""
    max_task_requests: int = 0
    """Most requests of one task in flight; 0: no limit."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "max_task_rows", "max_task_tokens", "max_task_requests")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConfig(TaskLimits):
    """Limits of every task; `[limits.<task>]` in a TOML file sets those of one task, with the same names."""

    task_limits: dict[str, TaskLimits] = field(default_factory=dict)
    """Limits of single tasks, by task name. A limit that such a table leaves out is that of every task."""

    def of(self, task: str) -> TaskLimits:
        """The limits of one task."""
        return self.task_limits.get(task, self)

    @property
    def limits_any(self) -> bool:
        """Whether some task has a limit."""
        return any(
            limits.max_task_rows or limits.max_task_tokens or limits.max_task_requests
            for limits in (self, *self.task_limits.values())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the device answers batches."""

    cache_bytes: int = 256 * 2**20
    """Bytes of cached backbone activations, on the device; 0: no cache. Another task that asks about the same input
    then skips the backbone."""
    side_timeout_s: float = 5.0
    """Longest time one side network may take for its rows of a batch, in seconds. Beyond it these rows fail, and the
    side network is suspended for `side_bench_s`. Rows of more than 512 tokens have proportionally more time."""
    side_bench_s: float = 30.0
    """How long a side network that was too slow is suspended, in seconds. Its rows fail at once in that time, so that
    other rows need not wait for it again."""
    max_pass_bytes: int = 0
    """Most memory that one pass may need by estimate, in bytes; 0: half of what is free once the backbone is loaded. A
    batch beyond it is computed in parts, and a single row beyond it is rejected."""
    warmup_s: float = 10.0
    """Longest time to warm the device up before the server is ready, in seconds; 0: none. Compilation is not
    counted."""
    compile: bool = False
    """Compile the backbone's encoder at start, which takes minutes. It is compiled for a bounded set of shapes, all of
    them before the server is ready."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "cache_bytes", "side_bench_s", "max_pass_bytes", "warmup_s")
        _above_zero(self, "side_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How versions get from the registry onto the device."""

    max_side_bytes: int = 512 * 2**20
    """Largest side network file that is loaded, in bytes."""
    max_row_tokens: int = 4096
    """Most tokens of one row. A version whose task reads longer texts (`max_source_tokens`) is refused when it is
    loaded: time and memory of attention grow with the square of the length."""
    replay_examples: bool = True
    """Answer each version's golden examples before it serves. A version whose answers differ is refused."""
    replay_bytes: int = 32 * 2**20
    """Bytes of cached activations of golden examples, on the device; 0: no cache. Later versions with the same examples
    then load faster."""
    replay_tokens: int = 65_536
    """Most tokens of a version's golden examples, with those of texts to generate. A version with more is refused."""
    replay_timeout_s: float = 30.0
    """Longest time to answer a version's golden examples, in seconds. A version that takes longer is refused, and tried
    again later."""
    first_loads_s: float = 0.5
    """Longest time a server loads versions before it is ready, in seconds. The others are loaded while it answers; a
    request for one of them waits for it."""
    poll_s: float = 0.2
    """Time between two looks at the registry for changes, in seconds."""
    retry_s: float = 1.0
    """First pause before another try of a load that failed because the store could not be reached, in seconds. It
    doubles with each try."""
    max_retry_s: float = 60.0
    """Longest pause between two tries of a failed load, in seconds. When other tasks change, versions that cannot load
    are tried again at most this often."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_side_bytes", "max_row_tokens", "replay_tokens")
        _at_least(self, 0, "replay_bytes", "first_loads_s")
        _above_zero(self, "poll_s", "retry_s", "max_retry_s", "replay_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestConfig:
    """Limits of one request, and how it is read."""

    max_request_rows: int = 8192
    """Most rows of one request, over all of its tasks. Each task's spec has a limit of its own as well."""
    max_request_tasks: int = 256
    """Most tasks of one PredictTasks request."""
    tokenizer_threads: int = 2
    """Threads that validate and tokenize."""
    tenant_header: str = ""
    """gRPC metadata key that names a caller's tenant, such as x-tenant. Callers of different tenants share no cached
    activations. Empty: no tenants. The server trusts the value, so have the proxy in front of it set the header."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_request_rows", "max_request_tasks", "tokenizer_threads")
        if not METADATA_KEY.fullmatch(self.tenant_header):
            rule = "a gRPC metadata key (a-z, 0-9, '-', '_', '.'; neither grpc-... nor ...-bin)"
            raise ConfigError(f"tenant_header must be empty or {rule}, got {self.tenant_header!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowConfig:
    """How shadow versions run next to live traffic, to be compared with the version that answered."""

    max_shadow_rows: int = 1024
    """Most shadow rows that wait for the device; 0: no shadows run. Beyond it the newest are dropped."""
    shadow_turn_s: float = 0.01
    """Target time of one step of shadow rows, in seconds. A caller's row that arrives during the step waits about this
    long. The time is estimated from earlier steps."""
    shadow_wait_s: float = 0.1
    """Longest time a shadow row waits for more rows while the device is idle, in seconds."""
    shadow_timeout_s: float = 1.0
    """Longest time a version may take for one step of shadow rows, in seconds. A slower version gets no shadow rows for
    a while."""
    max_running_shadows: int = 8
    """Most shadow texts that are generated at once; each beam counts. They do not count in `max_running_rows`."""
    keep_inputs: bool = False
    """Keep the inputs on which versions disagree, in memory. Every caller who can read the comparison can read them."""
    kept_disagreements: int = 200
    """Most disagreements that are kept for each alias, the newest."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "max_shadow_rows", "shadow_wait_s")
        _at_least(self, 1, "max_running_shadows", "kept_disagreements")
        _above_zero(self, "shadow_turn_s", "shadow_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How images of requests are read, encoded and cached. Nothing of it has an effect without `vision`."""

    vision: str = ""
    """The vision encoder of tasks that read images: a Hugging Face folder. Empty: none, and such tasks are not served.
    Their side networks must have been trained on the same encoder, layer and size."""
    vision_layer: int | None = None
    """The encoder's hidden layer that gives the features, counted as transformers counts `hidden_states`; not given:
    the last state."""
    vision_size: int = 0
    """Height and width of the encoder's input, in pixels; 0: the folder's own."""
    image_cache_bytes: int = 256 * 2**20
    """Bytes of cached image features, on the device; 0: no cache. Another question about a known image then skips
    decoding and the encoder."""
    image_batch: int = 16
    """Most images of one pass of the vision encoder. At most twice as many decoded images wait for it."""
    image_threads: int = 2
    """Threads that decode images, which is also the number of images that are decoded at once. Decoding takes about 11
    bytes a pixel for a moment, of a WebP 20: 500 MB at the limit of `max_image_pixels`."""
    max_image_bytes: int = 20 * 2**20
    """Largest file of an image, in bytes."""
    max_image_pixels: int = 25_000_000
    """Most pixels of an image, width times height, checked before it is decoded."""
    max_queued_images: int = 1024
    """Most images that wait to be encoded; requests beyond are rejected. A request that finds none waiting is always
    accepted."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "vision_size", "image_cache_bytes")
        _at_least(self, 1, "image_batch", "image_threads", "max_image_bytes", "max_image_pixels", "max_queued_images")
        if not self.vision and (self.vision_layer is not None or self.vision_size):
            raise ConfigError("vision_layer and vision_size are settings of an encoder; give vision, its folder, too")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessConfig:
    """Who may call: TLS, callers' tokens, and limits of each caller. Files are read again when they change."""

    tls_cert: str = ""
    """PEM file of the server's certificate, followed by intermediate ones; empty: no TLS. It serves every port."""
    tls_key: str = ""
    """PEM file of the certificate's private key, without a password."""
    tls_client_ca: str = ""
    """PEM file of the authorities that clients' certificates must be signed by; empty: clients need none. Health checks
    of the metrics port need none either."""
    tokens: str = ""
    """TOML file of callers' tokens, which `sidecast token create` writes; empty: none. With it or `jwt_keys`, every
    call but health checks needs `authorization: Bearer TOKEN`, and the token says the caller's scopes and tenant."""
    jwt_keys: str = ""
    """JWKS that verifies callers' JWTs: a file, or an https URL, fetched again every five minutes; empty: no JWTs.
    Needs the extra `jwt`."""
    jwt_issuer: str = ""
    """Issuer (`iss`) that a JWT must have."""
    jwt_audience: str = ""
    """Audience (`aud`) that a JWT must have."""
    jwt_scopes_claim: str = "scope"
    """Claim of a JWT with the caller's scopes: a list, or a text with spaces between them. Other scopes are ignored."""
    jwt_tenant_claim: str = "tenant"
    """Claim of a JWT with the caller's tenant; a JWT without it belongs to the tenant ""."""
    caller_requests_per_s: float = 0.0
    """Most requests a second of one caller to one task; 0: no limit. Requests beyond are rejected."""
    caller_rows_per_s: float = 0.0
    """Most rows a second of one caller to one task; 0: no limit. Requests beyond are rejected."""
    caller_burst_s: float = 5.0
    """A caller that sent nothing for so many seconds may send what it missed at once."""
    admin_port: int | None = None
    """gRPC port of its own for what changes the registry: publish, routes, roll back, retire. `port` then refuses
    these; 0: a free one; not given: they come by `port`."""
    admin_host: str = ""
    """Address of `admin_port`, such as 127.0.0.1; empty: as `host`."""
    audit_log: str = ""
    """File for the audit log, one line of JSON for each change and each refusal; empty: the server's log has them."""
    trust: str = ""
    """TOML file of the keys that may sign the versions of tasks; empty: signatures are not looked at. Needs the extra
    `signing`."""
    insecure: bool = False
    """Serve other machines without TLS or without tokens. Otherwise a server whose host is not this machine alone
    refuses to start without them."""

    def __post_init__(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("tls_cert and tls_key belong together; give both")
        if self.tls_client_ca and not self.tls_cert:
            raise ConfigError("tls_client_ca needs tls_cert and tls_key, the server's own certificate")
        if self.jwt_keys and not (self.jwt_issuer and self.jwt_audience):
            raise ConfigError("jwt_keys needs jwt_issuer and jwt_audience: which tokens are for this server")
        if self.jwt_keys.startswith("http://") and not self.jwt_keys.startswith(
            ("http://127.0.0.1", "http://localhost")
        ):
            raise ConfigError(f"jwt_keys must be a file or an https URL, got {self.jwt_keys}")
        if self.admin_port is not None and not 0 <= self.admin_port <= 65535:
            raise ConfigError(f"admin_port must be within 0..65535, got {self.admin_port}")
        if self.admin_host and self.admin_port is None:
            raise ConfigError("admin_host is the address of admin_port; give admin_port, too")
        _at_least(self, 0, "caller_requests_per_s", "caller_rows_per_s")
        _above_zero(self, "caller_burst_s")

    @property
    def names_callers(self) -> bool:
        """Whether callers must say who they are."""
        return bool(self.tokens or self.jwt_keys)


REQUIRED = ("backbone", "registry")
"""Flat names that have no default."""

GROUPS = {
    "batch": BatchConfig,
    "limits": LimitConfig,
    "engine": EngineConfig,
    "load": LoadConfig,
    "request": RequestConfig,
    "shadow": ShadowConfig,
    "images": ImageConfig,
    "access": AccessConfig,
}
"""Fields of `ServeConfig` that hold a group of settings; the name is also the group's table in a TOML file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One serving process."""

    backbone: str
    """The backbone: a Hugging Face folder, or a hub id such as google/flan-t5-small."""
    registry: str
    """The registry: a folder, or a URL such as s3://bucket/path; created if it does not exist."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface. Beyond this machine the server wants TLS and tokens, or
    `insecure`."""
    port: int = 8001
    """Port of gRPC; 0: a free one."""
    http_port: int | None = None
    """Port of the HTTP API; 0: none; not given: 8000, or a free one where `port` is 0. It needs the extra `http`;
    without it there is no HTTP API unless a port is given."""
    metrics_port: int = 8002
    """Port of Prometheus metrics over HTTP, or HTTPS where there is a certificate; 0: a free one."""
    device: str = "auto"
    """Where torch runs: auto (cuda if there is one), cpu, cuda, cuda:1."""
    dtype: str = "auto"
    """Precision of the backbone and the side networks: auto, float32 or bfloat16. auto: bfloat16 on a device whose
    matrix products have it (GPUs since Ampere; CPUs with AVX512-BF16 or AMX, if the backbone is not quantised), else
    float32."""
    quantize: str = "none"
    """Format of the backbone's matrices: none, int8, int4 or w8a8. The server serves side networks that were trained on
    the same format."""
    threads: int = 0
    """Threads of torch on a CPU; 0: torch's own choice, no more than the container's CPU quota has room for, and fewer
    while other processes use the cores."""
    openmp_spins: int = -1
    """How often a waiting thread of torch looks for work before it sleeps (GOMP_SPINCOUNT); -1: OpenMP's own choice. 0
    is for a machine whose cores other processes need."""
    grace_s: float = 30.0
    """Longest time for requests in flight after SIGTERM, in seconds."""
    max_message_bytes: int = 20 * 2**20
    """Largest gRPC message, and largest body of an HTTP request, in bytes, decompressed. The default has room for 1,024
    embeddings of 4,096 numbers over gRPC. A text of many megabytes delays other calls by tens of milliseconds."""
    max_in_flight_bytes: int = 512 * 2**20
    """Most bytes of requests in flight, decompressed; requests beyond are rejected, and streams wait. A request takes
    about three times its bytes of memory. Requests of up to 4 KiB are always accepted, and so is any request that finds
    no other in flight."""
    log_level: str = "INFO"
    """Least severe messages that are logged: DEBUG, INFO, WARNING or ERROR."""
    log_format: str = "human"
    """Form of the log on standard error: human, or json for one object on each line."""
    otlp_endpoint: str = ""
    """Where OpenTelemetry traces are sent by OTLP over gRPC, such as http://localhost:4317; empty: as the variables
    OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT say, or no traces. Needs the extra `otel`."""
    trace_ratio: float = 1.0
    """Share of the requests that are traced, 0 to 1. A caller's own decision (`traceparent`) goes first, and so does
    OTEL_TRACES_SAMPLER."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    load: LoadConfig = field(default_factory=LoadConfig)
    request: RequestConfig = field(default_factory=RequestConfig)
    shadow: ShadowConfig = field(default_factory=ShadowConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    access: AccessConfig = field(default_factory=AccessConfig)

    def __post_init__(self) -> None:
        _not_empty(self, "backbone", "registry", "host")
        _at_least(self, 0, "threads", "grace_s")
        _at_least(self, -1, "openmp_spins")
        _at_least(self, 1024, "max_message_bytes", "max_in_flight_bytes")
        ports = {name: getattr(self, name) for name in ("port", "metrics_port", "http_port")}
        for name, port in ports.items():
            if port is not None and not 0 <= port <= 65535:
                raise ConfigError(f"{name} must be within 0..65535, got {port}")
        ports["admin_port"] = self.access.admin_port
        for name, other in combinations(ports, 2):
            if ports[name] and ports[name] == ports[other]:
                raise ConfigError(f"{name} and {other} must differ, both are {ports[name]}")
        if self.request.tenant_header and self.access.names_callers:
            raise ConfigError("tenant_header must be empty where callers have tokens: a caller's token says its tenant")
        _one_of(self, "dtype", ("auto", "float32", "bfloat16"))
        _one_of(self, "quantize", ("none", "int8", "int4", "w8a8"))
        _one_of(self, "log_level", ("DEBUG", "INFO", "WARNING", "ERROR"))
        _one_of(self, "log_format", ("human", "json"))
        if not 0 <= self.trace_ratio <= 1:
            raise ConfigError(f"trace_ratio must be within 0..1, got {self.trace_ratio}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Make the settings from flat names: `max_batch_rows` fills `batch.max_batch_rows`.

        Raises:
            ConfigError: an unknown name, a required one missing, or a value that breaks its rule.
        """
        unknown = sorted(set(values) - set(setting_names()))
        if unknown:
            raise ConfigError(f"unknown settings {unknown}; known are {', '.join(setting_names())}")
        missing = [name for name in REQUIRED if name not in values]
        if missing:
            how = f"as an option, as {PREFIX}{missing[0].upper()} or in the config file"
            raise ConfigError(f"{' and '.join(missing)} must be given, {how}")
        groups = {name: _make(group, _take(values, group)) for name, group in GROUPS.items()}
        return _make(cls, _take(values, cls) | groups)


def setting_names() -> list[str]:
    """Every flat name, in the order of the classes."""
    ungrouped = [field.name for field in fields(ServeConfig) if field.name not in GROUPS]
    return ungrouped + [field.name for group in GROUPS.values() for field in fields(group)]


def read_config(
    flags: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, file: str | Path | None = None
) -> ServeConfig:
    """Read settings: flags that are not None take precedence over `SIDECAST_*` variables, these over a TOML file.

    The file has flat names at its top or in tables `[batch]`, `[limits]` and so on. Variables with that prefix that
    name no setting are ignored: other commands may read them.

    Raises:
        ConfigError: an unreadable file, an unknown setting in it, or a value that breaks its rule.
    """
    environ = os.environ if environ is None else environ
    known = setting_names()
    values = _read_toml(Path(file)) if file else {}
    values |= {name: environ[PREFIX + name.upper()] for name in known if PREFIX + name.upper() in environ}
    values |= {name: value for name, value in flags.items() if value is not None}
    return ServeConfig.from_values(values)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _group_of(name, value) if isinstance(value, dict) else {name: value}
    return flat


def _group_of(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """The settings in a group's table. In `[limits]`, tables by task become `task_limits`."""
    settings = {key: value for key, value in table.items() if not (name == "limits" and isinstance(value, dict))}
    tasks = {key: value for key, value in table.items() if key not in settings}
    return settings | {"task_limits": tasks} if tasks else settings


def _take(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {field.name: values[field.name] for field in fields(kind) if field.name in values}


def _make(kind: type, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    if tasks := values.get("task_limits"):
        every = {name: value for name, value in values.items() if name != "task_limits"}
        values = every | {"task_limits": _task_limits(tasks, every)}
    return kind(**{name: _as(name, value, hints[name]) for name, value in values.items()})


def _task_limits(tables: Any, every: dict[str, Any]) -> dict[str, TaskLimits]:
    """By task: the settings of its table, and those of every task where the table has none."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"task_limits must be tables by task, [limits.<task>] in a TOML file, got {tables!r}")
    known = [field.name for field in fields(TaskLimits)]
    for task, table in tables.items():
        if unknown := sorted(set(table) - set(known)):
            raise ConfigError(f"unknown settings {unknown} in [limits.{task}]; known are {', '.join(known)}")
    return {task: _make(TaskLimits, every | table) for task, table in tables.items()}


def _as(name: str, value: Any, kind: type) -> Any:
    """Convert text from the environment to `kind`; any other value must be of that type already."""
    kind = without_none(kind)
    kind = get_origin(kind) or kind
    if isinstance(value, Path) and kind is str:
        return str(value)
    if isinstance(value, str) and kind is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if value.lower() in words:
            return words[value.lower()]
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, str) and kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{name} must be of type {kind.__name__}, got {value!r}")


def without_none(kind: Any) -> Any:
    """`int` for `int | None`; any other type as it is."""
    kinds = [member for member in get_args(kind) if member is not NoneType]
    return kinds[0] if isinstance(kind, UnionType) and len(kinds) == 1 else kind


def _at_least(config: Any, least: float, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= least:
            raise ConfigError(f"{name} must be >= {least}, got {getattr(config, name)}")


def _above_zero(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} must be > 0, got {getattr(config, name)}")


def _not_empty(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name):
            raise ConfigError(f"{name} must not be empty")


def _one_of(config: Any, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")
