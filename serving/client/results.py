"""Results of a client's calls: frozen dataclasses that compare, print and pickle."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, overload

from serving.client.images import ImageInput
from serving.client.routes import Route, ServerInfo


@dataclass(frozen=True, slots=True)
class Prompt:
    """A row that is a whole prompt: the task's template is not applied."""

    text: str
    images: Mapping[str, ImageInput] = field(default_factory=dict, hash=False)
    """By name, for tasks that read images."""


Row = str | Mapping[str, str | ImageInput] | Prompt
"""The value of the template's only field; or a value per field; or a whole prompt.

A value is a text, or an image: bytes, a path (`os.PathLike`), or a PIL.Image. A str is always a text.
"""


@dataclass(frozen=True, slots=True)
class Classification:
    """An answer of a classification task."""

    label: str
    score: float
    """The label's probability."""
    scores: dict[str, float]
    """Every label's probability, in the task's order."""
    truncated: bool = False
    """The row's text was longer than the task's `max_source_tokens`: its end was not read."""


@dataclass(frozen=True, slots=True)
class Regression:
    """An answer of a regression task."""

    value: float
    truncated: bool = False
    """As Classification's."""


@dataclass(frozen=True, slots=True)
class Text:
    """An answer of a text task."""

    text: str
    truncated: bool = False
    """As Classification's."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """An answer of an embedding task."""

    values: tuple[float, ...]
    """A vector of length 1: the dot product of two is the cosine of their angle."""
    truncated: bool = False
    """As Classification's."""


@dataclass(frozen=True, slots=True)
class MultiLabel:
    """An answer of a multilabel task."""

    labels: tuple[str, ...]
    """The labels whose score reaches their threshold, highest score first; there may be none."""
    scores: dict[str, float]
    """Every label's score, 0 to 1, in the task's order. They do not sum to 1."""
    truncated: bool = False
    """As Classification's."""


@dataclass(frozen=True, slots=True)
class Span:
    """An entity in a text. Positions count characters (code points) of the text that was sent, as Python does."""

    start: int
    end: int
    """One past its last character."""
    label: str
    score: float
    """Mean over its words of the label's probability."""
    text: str
    """`text[start:end]` of the text that was sent."""


@dataclass(frozen=True, slots=True)
class TokenClassification:
    """An answer of a token classification task: the entities in the text's order. They do not overlap."""

    spans: tuple[Span, ...]
    truncated: bool = False
    """The row's text was longer than all of the windows that the task reads: its end was not read."""


@dataclass(frozen=True, slots=True)
class Relevance:
    """An answer of a ranking task: how relevant the passage is for the query."""

    relevance: float
    """0 to 1."""
    truncated: bool = False
    """As Classification's."""


@dataclass(frozen=True, slots=True)
class RankedPassage:
    """A passage in the order of its relevance."""

    index: int
    """In the list that was sent, from 0."""
    score: float
    """0 to 1."""
    truncated: bool = False
    """As Classification's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Sequence[RankedPassage]):
    """Passages, highest score first, and the version that scored all of them."""

    task: str
    version: int
    generation: int
    """The registry's generation that the server served."""
    alias: str | None
    """The alias that led to the version; None where the version was asked for."""
    passages: tuple[RankedPassage, ...]

    @overload
    def __getitem__(self, index: int) -> RankedPassage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RankedPassage, ...]: ...
    def __getitem__(self, index: int | slice) -> RankedPassage | tuple[RankedPassage, ...]:
        return self.passages[index]

    def __len__(self) -> int:
        return len(self.passages)


Answer = Classification | Regression | Text | Embedding | MultiLabel | TokenClassification | Relevance


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions(Sequence[Answer]):
    """One answer per row, in the rows' order, and the version that gave all of them."""

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
    """The next tokens of a streamed text."""

    text: str
    """Appended to the text; all pieces joined are the text. "" while a character is not complete."""
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """A streamed text as a whole, and the version that made it."""

    task: str
    version: int
    generation: int
    """The registry's generation that the server served."""
    alias: str | None
    """The alias that led to the version; None where the version was asked for."""
    text: str
    finish_reason: str
    """`end`: the side network ended it; `length`: it reached the most tokens that it may have."""
    token_count: int
    truncated: bool = False
    """The row's text was longer than the task's `max_source_tokens`: its end was not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A task's spec: its kind, its template and its limits."""

    kind: str
    """classification, regression, text, embedding, multilabel, token_classification or ranking."""
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
    """Decoding settings of a text task, by Hugging Face's names; empty for other kinds."""
    description: str
    target: str
    """The column of data files that holds the expected answer."""
    metric: str
    """What evaluation reports."""
    images: tuple[str, ...] = ()
    """Names of a row's images, in the order in which the task reads them."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """All that a row needs: the template's fields, then the images."""
        return (*self.fields, *self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """One version of a task as the server sees it."""

    version: int
    published_at: datetime | None
    author: str
    message: str
    run_id: str
    retired: bool
    resident: bool
    """Loaded on the server."""
    failure: str
    """Why the server could not load it; empty if it is loaded, or not tried yet."""
    untrained: bool = False
    """No training has changed its weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """One task as the server sees it."""

    task: str
    spec: TaskSpec | None
    """None while the server has no version of it loaded."""
    aliases: dict[str, int]
    """In the registry."""
    serving: dict[str, int]
    """Alias to the version that answers on the server. It differs from `aliases` while a version loads or fails to."""
    versions: tuple[VersionInfo, ...]
    """Oldest first."""
    routes: dict[str, Route] = field(default_factory=dict)
    """Alias to its route in the registry, for aliases with shares or shadows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A version that is loaded on one server."""

    task: str
    version: int
    bytes: int
    """Of its weights on the device."""
    since: datetime | None
    """When it was loaded."""
    last_asked: datetime | None
    """When it last answered a request there; None: it has not since it was loaded."""
    requests: int
    """That it answered there since it was loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Residents:
    """The versions that one server has loaded."""

    server: ServerInfo
    device: str
    residents: tuple[Resident, ...]
    """Sorted by task and version."""
    others: tuple[ServerInfo, ...]
    """The other servers that follow the registry and are alive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The outcome of a publish."""

    task: str
    version: int
    generation: int
    aliases: dict[str, int]
    """Aliases that this publish moved, and the version to which."""
    already: bool
    """The same run was published before, as this version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoted:
    """The outcome of a promotion."""

    task: str
    alias: str
    version: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolled:
    """The outcome of a rollback."""

    task: str
    alias: str
    version_from: int
    version_to: int
    generation: int
    canary_ended: bool = False
    """The alias stayed at `version_to`; the rollback ended the shares of its route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retired:
    """The outcome of a retirement."""

    task: str
    version: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One action of a commit. Fields that the verb has no use for are None."""

    verb: str
    """publish, set_alias, set_route, rollback, retire or delete_task; of a group set_group, rollback_group or
    delete_group."""
    task: str
    """Empty where it is about a group."""
    version: int | None
    alias: str | None
    route: Route | None = None
    """Set by set_route."""
    run_id: str | None = None
    """Set by publish: the run that made the version."""
    group: str | None = None
    """The group that it is about; `version` is the group's then."""
    members: tuple[str, ...] = ()
    """Set by set_group: references of the group's tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A name for several tasks that are asked together."""

    group: str
    version: int
    """Of its list of tasks: each change makes the next one."""
    tasks: tuple[str, ...]
    """References, in the order in which they are answered: `sst2` follows production, `sst2:7` is that version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChanged(Group):
    """The outcome of a change of a group."""

    version_from: int
    """Its version before; 0: there was no such group."""
    generation: int


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
    """One event of `watch`: what the server serves now, and what changed."""

    wanted: int
    """The registry's newest generation that the server knows."""
    served: int
    """The generation that the server serves."""
    changed: dict[str, dict[str, int]]
    """Tasks that changed since the last event: alias to the version that serves it; empty if the task is gone."""
    routes: dict[str, dict[str, Route]] = field(default_factory=dict)
    """Routes of those tasks that this server follows, by alias; without plain routes."""
