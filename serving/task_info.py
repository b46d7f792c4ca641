"""What a server makes of a task: the registry's state beside what is loaded here."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.pool import PoolState
from side_registry.state import TaskState
from side_registry.task import PRODUCTION, TaskSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """One task as this server sees it."""

    task: str
    spec: TaskSpec | None
    """Of the version that serves production; else of the newest resident one; None where none is resident."""
    serving: Mapping[str, int]
    """Alias to the version that answers for it here, which lags behind the registry while that loads, or fails to."""
    resident: tuple[int, ...]
    failed: Mapping[int, str]
    """Version to why it did not load."""
    state: TaskState


def describe_task(state: PoolState, name: str) -> TaskInfo:
    """Raises UnknownTask."""
    known = state.task_state(name)
    serving = {alias: state.aliases[name, alias] for alias in known.aliases if (name, alias) in state.aliases}
    resident = tuple(version for version in sorted(known.versions) if (name, version) in state.residents)
    shown = serving.get(PRODUCTION, resident[-1] if resident else None)
    return TaskInfo(
        task=name,
        spec=None if shown is None else state.residents[name, shown].spec,
        serving=serving,
        resident=resident,
        failed={v: state.failed[name, v].why for v in sorted(known.versions) if (name, v) in state.failed},
        state=known,
    )
