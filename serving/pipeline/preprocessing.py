"""Turns the rows of a request into tokens: finds each task's version, renders its prompts, tokenizes them.

A fault of one task stands in that task's place, so that the others go on. Knows no queue and no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ladder.answering import Framed, OffsetTokenizer, WindowedText, Words, split_texts
from ladder.answering.words import MAX_WINDOWS
from ladder.answers import Answer
from serving.engine import EncodedImage
from serving.errors import InvalidInput, ServingError, TooManyRows, detached
from serving.pipeline.request import DecodingOverrides, Ids, InputRow, Prompt, Refused, RequestOptions, Target
from serving.versions import PoolState
from side_registry.errors import InvalidRow
from side_registry.specs.task import PRODUCTION, Pair, TaskRef, TaskSpec
from side_registry.specs.task_kinds import KINDS


def render_rows(spec: TaskSpec, rows: Sequence[InputRow]) -> list[str]:
    """The prompts of one request to one task. Images are checked to be there, and not looked into.

    Raises:
        TooManyRows: more than the spec allows.
        InvalidInput: the first faulty row.
    """
    if len(rows) > spec.max_rows:
        raise TooManyRows(len(rows), spec.max_rows)
    prompts = [_render(spec, row, f"rows[{index}]") for index, row in enumerate(rows)]
    if spec.images:
        read_images(spec, rows)
    return prompts


def cut_pairs(spec: TaskSpec, rows: Sequence[InputRow]) -> list[Pair]:
    """Where the two texts of each row lie in its prompt, in characters. For rows that `render_rows` takes.

    Raises:
        InvalidInput: the first row that is a whole prompt, which does not say.
    """
    pairs = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            why = f"is a whole prompt, and task {spec.name!r} reads its two texts apart; give the fields "
            raise InvalidInput(f"rows[{index}]", f"{why}{' and '.join(spec.fields)}")
        pairs.append(spec.render_pair(row)[1])  # type: ignore[arg-type]  # it is rendered already
    return pairs


def read_images(spec: TaskSpec, rows: Sequence[InputRow]) -> list[tuple[bytes | EncodedImage, ...]]:
    """Each row's images, in the order of the spec's.

    Raises:
        InvalidInput: the first row that lacks one, or has something else in its place.
    """
    return [_images_of(spec, row, f"rows[{index}]") for index, row in enumerate(rows)]


def _images_of(spec: TaskSpec, row: InputRow, where: str) -> tuple[bytes | EncodedImage, ...]:
    values = row.images if isinstance(row, Prompt) else row
    if not isinstance(values, Mapping):
        raise InvalidInput(where, f"task {spec.name!r} needs {', '.join(spec.inputs)}, got {type(values).__name__}")
    encoded = {name: value for name, value in values.items() if isinstance(value, EncodedImage)}
    try:
        images = spec.images_of({**values, **dict.fromkeys(encoded, b"encoded")})  # type: ignore[dict-item]
    except InvalidRow as error:
        raise InvalidInput(f"{where}.{error.field}", error.why) from None
    return tuple(encoded.get(name, data) for name, data in zip(spec.images, images, strict=True))


def _render(spec: TaskSpec, row: InputRow, where: str) -> str:
    if isinstance(row, Prompt):
        return _whole_prompt(spec, row.text, f"{where}.text")
    if isinstance(row, str):
        if len(spec.fields) != 1 or spec.images:
            raise InvalidInput(where, f"task {spec.name!r} needs the fields {', '.join(spec.inputs)}, got one text")
        row = {spec.fields[0]: row}
    if not isinstance(row, Mapping):
        raise InvalidInput(where, f"must be a text, or fields by name, got {type(row).__name__}")
    try:
        return spec.render(row)  # type: ignore[arg-type]  # an encoded image in it is no text, and refused as such
    except InvalidRow as error:
        raise InvalidInput(f"{where}.{error.field}", error.why) from None


def _whole_prompt(spec: TaskSpec, text: str, where: str) -> str:
    limit = spec.max_chars * max(len(spec.fields), 1) + len(spec.template)
    if not isinstance(text, str):
        raise InvalidInput(where, f"must be text, got {type(text).__name__}")
    if len(text) > limit:
        raise InvalidInput(where, f"has {len(text)} characters, at most {limit} are allowed; shorten it")
    if not text.strip():
        raise InvalidInput(where, "is empty; give it some text")
    if "\0" in text:
        raise InvalidInput(where, "holds a NUL character; remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(where, "holds half a surrogate pair; remove it") from None
    return text


class Encoder(OffsetTokenizer, Protocol):
    """What the service needs of a tokenizer; called from several threads."""

    def encode_cut(self, texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        """The tokens of each text, at most `max_tokens` of them, and for each text whether it is cut."""
        ...

    def locate(self, prompts: Sequence[str], cuts: Sequence[Pair], ids: Sequence[Sequence[int]]) -> list[Pair]:
        """Where the two texts of each prompt lie among its tokens; `cuts` is where they lie among its characters."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """One task's rows as tokens. Where the task tags words, a long text is several prompts: its windows."""

    target: Target
    prompts: list[str]
    ids: list[Ids]
    truncated: list[bool]
    """For each row, whether its prompt was longer than the spec's `max_source_tokens`, and so is cut."""
    images: Sequence[tuple[EncodedImage, ...]] = ()
    """Each row's images; empty where the task reads text alone."""
    pairs: Sequence[Pair] = ()
    """Where each row's two texts lie among its tokens; empty where the side network reads all tokens alike."""
    texts: Sequence[WindowedText] = ()
    """Each row's text; empty where the task does not tag words."""
    window_inputs: Sequence[InputRow] = ()
    """For each prompt the input that makes it alone; empty where the task does not tag words."""

    @property
    def words(self) -> list[Words]:
        """For each prompt the words of its text; empty where the task does not tag words."""
        return [window.words for text in self.texts for window in text.windows]

    def join(self, outcomes: Sequence[Answer | Exception]) -> Sequence[Answer | Exception]:
        """One outcome for each row, from one for each prompt."""
        if not self.texts:
            return outcomes
        prompts = iter(outcomes)
        return [text.join([next(prompts) for _ in text.windows]) for text in self.texts]

    @property
    def token_count(self) -> int:
        """Tokens of all rows together."""
        return sum(map(len, self.ids))


@dataclass(frozen=True, slots=True)
class _Rendered:
    target: Target
    prompts: list[str]
    rows: Sequence[InputRow]
    cuts: Sequence[Pair] = ()
    """Where each prompt's two texts lie among its characters; empty where that does not matter."""
    texts: Sequence[Framed] = ()
    """Where the task tags words: each row's text, and what the template adds."""

    @property
    def limit(self) -> int:
        return self.target.resident.spec.max_source_tokens


def resolve(state: PoolState, ref: TaskRef, options: RequestOptions, *, many: bool = False) -> Target:
    """Find the version that answers one task of a request.

    Args:
        many: the request may name several tasks. Its decoding settings then touch only those that make texts.

    Raises:
        UnknownTask, UnknownVersion, UnknownAlias, NotLoaded.
        InvalidInput: decoding settings that are out of bounds, or for a task that makes no texts.
    """
    resident = state.resolve(ref.task, version=ref.version, alias=ref.alias, key=options.route_key)
    overrides = DecodingOverrides() if many and not KINDS[resident.spec.kind].makes_text else options.decoding
    answerer = overrides.answerer(resident)
    target = Target(resident, None, answerer, overrides=overrides, generation=state.generation)
    if ref.version is not None:
        return target
    alias = ref.alias or PRODUCTION
    since = state.routed_since(ref.task, alias, resident.version)
    shadows = () if since is None else state.shadows(ref.task, alias, resident.version)
    return replace(target, alias=alias, since=since, shadows=shadows)


def encode(
    tokenizer: Encoder,
    requests: Sequence[tuple[Sequence[Target | Refused], Sequence[InputRow]]],
    most_windows: int = MAX_WINDOWS,
) -> list[list[Encoded | Refused] | Exception]:
    """Render each request's rows for its targets, and tokenize all prompts with one call. For a tokenizer thread.

    A request that fails as a whole is its exception in the result; the others are then tokenized without it.

    Args:
        most_windows: of one text whose words are tagged.
    """
    try:
        return [*_tokenized(tokenizer, [_rendered(targets, rows) for targets, rows in requests], most_windows)]
    except Exception as error:
        if len(requests) == 1:
            return [error]
    return [outcome for request in requests for outcome in encode(tokenizer, [request], most_windows)]


def _rendered(targets: Sequence[Target | Refused], rows: Sequence[InputRow]) -> "list[_Rendered | Refused]":
    return [target if isinstance(target, Exception) else _render_target(target, rows) for target in targets]


def _render_target(target: Target, rows: Sequence[InputRow]) -> _Rendered | Refused:
    try:
        spec = target.resident.spec
        prompts = render_rows(spec, rows)
        if KINDS[spec.kind].has_spans:
            return _Rendered(target, prompts, rows, texts=[_framed(spec, row) for row in rows])
        reads_two = target.resident.side.config.reads_two_texts
        return _Rendered(target, prompts, rows, cut_pairs(spec, rows) if reads_two else ())
    except ServingError as error:
        return detached(error)


def _framed(spec: TaskSpec, row: InputRow) -> Framed:
    """The text of a row whose prompt was rendered before. Of a whole prompt it is all."""
    if isinstance(row, Prompt):
        return Framed("", row.text, "")
    before, after = spec.frame
    return Framed(before, row if isinstance(row, str) else str(row[spec.fields[0]]), after)


def _part_of(spec: TaskSpec, row: InputRow, text: str) -> InputRow:
    """The row with a part of its text."""
    if isinstance(row, Prompt):
        return Prompt(text)
    return text if isinstance(row, str) else {**row, spec.fields[0]: text}


def _tokenized(
    tokenizer: Encoder, requests: "Sequence[list[_Rendered | Refused]]", most_windows: int
) -> list[list[Encoded | Refused]]:
    """Tokenize each distinct prompt of all the requests once."""
    prompts: dict[int, dict[str, None]] = {}
    texts: dict[int, dict[Framed, None]] = {}
    for request in requests:
        for task in request:
            if isinstance(task, _Rendered) and task.texts:
                texts.setdefault(task.limit, {}).update(dict.fromkeys(task.texts))
            elif isinstance(task, _Rendered):
                prompts.setdefault(task.limit, {}).update(dict.fromkeys(task.prompts))
    split = {
        limit: dict(zip(framed, split_texts(tokenizer, list(framed), limit, most_windows), strict=True))
        for limit, framed in texts.items()
    }
    ids = {limit: _tokenize(tokenizer, list(texts), limit) for limit, texts in prompts.items()}

    def encoded(task: _Rendered | Refused) -> Encoded | Refused:
        if isinstance(task, Exception):
            return task
        if task.texts:
            return _in_windows(task, [split[task.limit][framed] for framed in task.texts])
        tokens = [ids[task.limit][prompt] for prompt in task.prompts]
        rows = [row for row, _ in tokens]
        pairs = tokenizer.locate(task.prompts, task.cuts, rows) if task.cuts else ()
        return Encoded(task.target, task.prompts, rows, [cut for _, cut in tokens], pairs=pairs)

    return [[encoded(task) for task in request] for request in requests]


def _in_windows(task: _Rendered, texts: Sequence[WindowedText]) -> Encoded:
    spec = task.target.resident.spec
    windows = [(row, window) for row, text in zip(task.rows, texts, strict=True) for window in text.windows]
    return Encoded(
        task.target,
        [window.prompt for _, window in windows],
        [window.ids for _, window in windows],
        [text.truncated for text in texts],
        texts=texts,
        window_inputs=[_part_of(spec, row, window.words.text) for row, window in windows],
    )


def _tokenize(tokenizer: Encoder, texts: list[str], limit: int) -> Mapping[str, tuple[Ids, bool]]:
    """Each text's tokens, and whether it is cut."""
    ids, cut = tokenizer.encode_cut(texts, limit)
    return dict(zip(texts, zip(map(tuple, ids), cut, strict=True), strict=True))
