"""What a client answers with: plain frozen values that compare, print and pickle."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, overload

from serving.client.routes import Route


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row that is a whole prompt: the task's template is not applied."""

    text: str


Row = str | Mapping[str, str] | Prompt
"""The value of the template's only field; or a value per field; or a whole prompt."""


@dataclass(frozen=True, slots=True)
class Classification:
    label: str
    score: float
    """The label's probability."""
    scores: dict[str, float]
    """Every label's probability, in the task's order."""


@dataclass(frozen=True, slots=True)
class Regression:
    value: float


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Embedding:
    values: tuple[float, ...]
    """A vector of length 1: the product of two is the cosine of their angle."""


Answer = Classification | Regression | Text | Embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions(Sequence[Answer]):
    """One answer per row, in the rows' order, and which version gave them all."""

    task: str
    version: int
    generation: int
    """The registry's generation that the server served."""
    alias: str | None
    """The alias that led to the version; None where the version was asked for."""
    answers: tuple[Answer, ...]

    @overload
    def __getitem__(self, index: int) -> Answer: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Answer, ...]: ...
    def __getitem__(self, index: int | slice) -> Answer | tuple[Answer, ...]:
        return self.answers[index]

    def __len__(self) -> int:
        return len(self.answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self.answers)


@dataclass(frozen=True, slots=True)
class Piece:
    """A few more tokens of a text that is being made."""

    text: str
    """What the text grows by; all pieces joined are the text. "" while a character is not complete."""
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """What became of a streamed text, and which version made it."""

    task: str
    version: int
    generation: int
    """The registry's generation that the server served."""
    alias: str | None
    """The alias that led to the version; None where the version was asked for."""
    text: str
    finish_reason: str
    """`end`: the task ended it; `length`: it has as many tokens as it may."""
    token_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    kind: str
    """classification, regression, text or embedding."""
    template: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    low: float | None
    high: float | None
    dimensions: int
    """Of an embedding; 0 for other kinds."""
    max_rows: int
    max_chars: int
    max_source_tokens: int
    max_new_tokens: int
    generation: Mapping[str, Any]
    """Text: how tokens are chosen, by Hugging Face's names; empty for other kinds."""
    description: str
    target: str
    """The column of data files that holds the expected answer."""
    metric: str
    """What evaluation reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    version: int
    published_at: datetime | None
    author: str
    message: str
    run_id: str
    retired: bool
    resident: bool
    """Loaded on the server."""
    failure: str
    """Why the server could not load it; empty where it could, or is about to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """One task as the server sees it."""

    task: str
    spec: TaskSpec | None
    """None while the server has no version of it loaded."""
    aliases: dict[str, int]
    """In the registry."""
    serving: dict[str, int]
    """Alias to the version that answers on the server; it lags behind `aliases` while that loads or cannot load."""
    versions: tuple[VersionInfo, ...]
    """Oldest first."""
    routes: dict[str, Route] = field(default_factory=dict)
    """Alias to its route in the registry, where its traffic is split or shadowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    task: str
    version: int
    generation: int
    aliases: dict[str, int]
    """What this publish moved: alias to version."""
    already: bool
    """The same run was published before, as this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    task: str
    alias: str
    version: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    task: str
    alias: str
    version_from: int
    version_to: int
    generation: int
    canary_ended: bool = False
    """The alias stayed at `version_to`, and the shares of its traffic were taken away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    task: str
    version: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    verb: str
    """publish, set_alias, set_route, rollback, retire or delete_task."""
    task: str
    version: int | None
    alias: str | None
    route: Route | None = None
    """Of set_route."""
    run_id: str | None = None
    """Of publish: the run that made the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One change of the registry."""

    generation: int
    time: datetime | None
    author: str
    message: str
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What a server tells a watcher."""

    wanted: int
    """The registry's newest generation that the server knows."""
    served: int
    """The generation that the server answers with."""
    changed: dict[str, dict[str, int]]
    """Tasks that changed since the last event, each with its alias to version; empty when the task is gone."""
    routes: dict[str, dict[str, Route]] = field(default_factory=dict)
    """Of those tasks: alias to its route as far as this server can follow it; without plain ones."""
