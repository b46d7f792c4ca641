"""What a server can be told: frozen settings, documented field by field, checked when made.

`read_config` fills them from the command line, the environment (`SIDECAST_<FIELD>`) and a TOML file, in that order of
precedence. Knows nothing of what the settings do.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_origin, get_type_hints

PREFIX = "SIDECAST_"
METADATA_KEY = re.compile(r"(?!grpc-)[a-z0-9_.-]*(?<!-bin)")


class ConfigError(ValueError):
    """A setting that cannot be: names the setting, its value and the rule."""

    reason = "CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How rows of all tasks gather into batches."""

    max_batch_tokens: int = 8192
    """Tokens of one backbone pass, padding counted. A longer single row still runs, alone."""
    max_batch_rows: int = 64
    """Rows of one batch. Rows with the same tokens are one row of the backbone, but each counts here, and each beam."""
    batch_cost_tokens: int = 96
    """What a batch is taken to cost besides its tokens, in tokens. More makes fuller batches with more padding; on a
    CPU 150 to 350 were measured, and a little less costs no throughput and saves padding."""
    padding_cost: float = 1.0
    """What a token of padding is taken to cost beside a real one, at most: less where the engine leaves padding out."""
    max_wait_s: float = 0.002
    """Longest a row waits for company while the device is idle. A busy device gathers company by itself."""
    max_running_rows: int = 64
    """Texts that are made at a time, each beam counted. Others wait, and rows that make no text overtake them."""
    max_tokens_beside_texts: int = 1024
    """Tokens of new rows in one turn while texts are being made, padding counted: these get one token a turn, however
    much else waits. One input goes in any case. 0: as many as `max_batch_tokens`."""
    max_queued_rows: int = 8192
    """Rows waiting for the device, each beam counted; beyond it requests are shed. A request that finds no queue is
    always taken."""
    max_queued_tokens: int = 2**20
    """Tokens waiting for the device, in the same way."""
    default_priority: int = 2
    """Of requests that name none: 1 is served first, 4 last."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_batch_tokens", "max_batch_rows", "max_queued_rows", "max_queued_tokens")
        _at_least(self, 1, "max_running_rows", "default_priority")
        _at_least(self, 0, "max_wait_s", "batch_cost_tokens", "max_tokens_beside_texts", "padding_cost")
        if self.default_priority > 4:
            raise ConfigError(f"default_priority must be within 1..4, got {self.default_priority}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLimits:
    """What one task may have waiting and in flight. 0: no limit."""

    max_task_rows: int = 0
    """Rows of a task that may wait for the device, each beam counted."""
    max_task_tokens: int = 0
    """Tokens of a task that may wait for the device, those of each row."""
    max_task_requests: int = 0
    """Requests of a task that may be in flight."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "max_task_rows", "max_task_tokens", "max_task_requests")


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitConfig(TaskLimits):
    """Every task's limits, and those that some have instead: `[limits.<task>]` in a TOML file, with the same names."""

    task_limits: dict[str, TaskLimits] = field(default_factory=dict)
    """By task. What such a table leaves out is as for every task."""

    def of(self, task: str) -> TaskLimits:
        return self.task_limits.get(task, self)

    @property
    def limits_any(self) -> bool:
        """Some task has a limit."""
        return any(
            each.max_task_rows or each.max_task_tokens or each.max_task_requests
            for each in (self, *self.task_limits.values())
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the device answers batches."""

    cache_bytes: int = 256 * 2**20
    """Activations of earlier inputs that are kept, on the device, for other tasks that ask about them. 0: none."""
    side_timeout_s: float = 5.0
    """Longest that one side network may take for its rows of a batch; beyond it they fail, and it is benched."""
    side_bench_s: float = 30.0
    """How long rows of a side network that was too slow fail at once, so that its neighbours need not wait again."""
    warmup_s: float = 10.0
    """Longest that the device is warmed up before the server is ready; 0: not at all. Compilation is not counted."""
    compile: bool = False
    """Compile the backbone's encoder for a bounded set of shapes, all of them before the server is ready."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "cache_bytes", "side_bench_s", "warmup_s")
        _above_zero(self, "side_timeout_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadConfig:
    """How versions get from the registry onto the device."""

    max_side_bytes: int = 512 * 2**20
    """Largest side network file that is loaded."""
    replay_examples: bool = True
    """Answer each version's golden examples before it serves, and refuse the version where they differ."""
    replay_bytes: int = 32 * 2**20
    """Activations of golden examples that are kept, on the device, for later versions with the same. 0: none."""
    poll_s: float = 0.2
    """How often the registry is asked whether it changed."""
    retry_s: float = 1.0
    """First pause before a load that failed because the store was away is tried again; doubles each time."""
    max_retry_s: float = 60.0
    """Longest such pause. Versions that cannot load are tried again at most this often when other tasks change."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_side_bytes")
        _at_least(self, 0, "replay_bytes")
        _above_zero(self, "poll_s", "retry_s", "max_retry_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestConfig:
    """What one request may ask."""

    max_request_rows: int = 8192
    """Rows of one request over all of its tasks. Each task's spec has its own limit besides."""
    max_request_tasks: int = 256
    """Tasks of one PredictTasks."""
    tokenizer_threads: int = 2
    """Threads that validate and tokenize, beside the event loop."""
    tenant_header: str = ""
    """gRPC metadata that names a caller's tenant, such as x-tenant: different ones share no cached activations. Empty:
    no tenants. It is believed as it comes, so have whatever stands before the server set it."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_request_rows", "max_request_tasks", "tokenizer_threads")
        if not METADATA_KEY.fullmatch(self.tenant_header):
            rule = "a gRPC metadata key (a-z, 0-9, '-', '_', '.'; neither grpc-... nor ...-bin)"
            raise ConfigError(f"tenant_header must be empty or {rule}, got {self.tenant_header!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowConfig:
    """How versions are asked beside callers' traffic, to be compared with the one that answered."""

    max_shadow_rows: int = 1024
    """Rows in shadow that may wait for the device; newer ones are dropped. 0: none are asked."""
    shadow_turn_s: float = 0.01
    """What a turn of rows in shadow should take, by those before: about so long a caller may have to wait behind it."""
    shadow_wait_s: float = 0.1
    """Longest a row in shadow waits for company while the device is idle."""
    shadow_timeout_s: float = 1.0
    """A version that takes longer than this for a turn in shadow is not asked for a while."""
    max_running_shadows: int = 8
    """Texts that are made in shadow at a time, each beam counted; they are no part of `max_running_rows`."""
    keep_inputs: bool = False
    """Keep the inputs on which versions disagree, in memory, for whoever may ask for the comparison."""
    kept_disagreements: int = 200
    """How many of them for each alias, the newest."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "max_shadow_rows", "shadow_wait_s")
        _at_least(self, 1, "max_running_shadows", "kept_disagreements")
        _above_zero(self, "shadow_turn_s", "shadow_timeout_s")


REQUIRED = ("backbone", "registry")
"""Flat names that have no default."""

GROUPS = {
    "batch": BatchConfig,
    "limits": LimitConfig,
    "engine": EngineConfig,
    "load": LoadConfig,
    "request": RequestConfig,
    "shadow": ShadowConfig,
}
"""Fields of `ServeConfig` that hold settings of their own, which is also their table in a TOML file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """One serving process."""

    backbone: str
    """A Hugging Face folder, or a hub id."""
    registry: str
    """The registry's folder or URL."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface. There is no authentication yet."""
    port: int = 8001
    """gRPC, both doors. 0 takes a free one."""
    metrics_port: int = 8002
    """Prometheus metrics over HTTP. 0 takes a free one."""
    device: str = "auto"
    """Where torch runs: auto (cuda where there is one), cpu, cuda, cuda:1."""
    dtype: str = "auto"
    """The backbone's and side networks' precision: float32, bfloat16; auto: bfloat16 on a GPU that has it."""
    quantize: str = "none"
    """Bits of the backbone's matrices: none, int8, int4, w8a8. Serves side networks that were trained on the same."""
    threads: int = 0
    """Threads of torch on a CPU. 0 leaves torch's own choice."""
    grace_s: float = 30.0
    """How long requests in flight may take after SIGTERM."""
    max_message_bytes: int = 64 * 2**20
    """Largest gRPC message."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    load: LoadConfig = field(default_factory=LoadConfig)
    request: RequestConfig = field(default_factory=RequestConfig)
    shadow: ShadowConfig = field(default_factory=ShadowConfig)

    def __post_init__(self) -> None:
        _not_empty(self, "backbone", "registry", "host")
        _at_least(self, 0, "threads", "grace_s")
        _at_least(self, 1024, "max_message_bytes")
        for name in ("port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{name} must be within 0..65535, got {getattr(self, name)}")
        if self.port and self.port == self.metrics_port:
            raise ConfigError(f"port and metrics_port must differ, both are {self.port}")
        _one_of(self, "dtype", ("auto", "float32", "bfloat16"))
        _one_of(self, "quantize", ("none", "int8", "int4", "w8a8"))
        _one_of(self, "log_level", ("DEBUG", "INFO", "WARNING", "ERROR"))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From flat names: `max_batch_rows` fills `batch.max_batch_rows`.

        Raises:
            ConfigError: a name that no setting has, a required one missing, or a value against its rule.
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
    own = [each.name for each in fields(ServeConfig) if each.name not in GROUPS]
    return own + [each.name for group in GROUPS.values() for each in fields(group)]


def read_config(
    flags: Mapping[str, Any], *, environ: Mapping[str, str] | None = None, file: str | Path | None = None
) -> ServeConfig:
    """Flags that are not None over `SIDECAST_*` variables over a TOML file.

    The file has flat names at its top or in tables `[batch]`, `[limits]` and so on. Variables of that prefix that
    name no setting are left alone: other tools of ours may read them.

    Raises:
        ConfigError: an unreadable file, an unknown setting in it, or a value against its rule.
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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _group_of(name, value) if isinstance(value, dict) else {name: value}
    return flat


def _group_of(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """A group's own settings; tables in `[limits]` are those of tasks."""
    own = {each: value for each, value in table.items() if not (name == "limits" and isinstance(value, dict))}
    tasks = {each: value for each, value in table.items() if each not in own}
    return own | {"task_limits": tasks} if tasks else own


def _take(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    return {each.name: values[each.name] for each in fields(kind) if each.name in values}


def _make(kind: type, values: dict[str, Any]) -> Any:
    hints = get_type_hints(kind)
    if tasks := values.get("task_limits"):
        every = {name: value for name, value in values.items() if name != "task_limits"}
        values = every | {"task_limits": _task_limits(tasks, every)}
    return kind(**{name: _as(name, value, hints[name]) for name, value in values.items()})


def _task_limits(tables: Any, every: dict[str, Any]) -> dict[str, TaskLimits]:
    """Each task's table over what holds for every task."""
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigError(f"task_limits must be tables by task, [limits.<task>] in a TOML file, got {tables!r}")
    known = [each.name for each in fields(TaskLimits)]
    for task, table in tables.items():
        if unknown := sorted(set(table) - set(known)):
            raise ConfigError(f"unknown settings {unknown} in [limits.{task}]; known are {', '.join(known)}")
    return {task: _make(TaskLimits, every | table) for task, table in tables.items()}


def _as(name: str, value: Any, kind: type) -> Any:
    """Text from the environment as `kind`; anything else must be of that kind already."""
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
