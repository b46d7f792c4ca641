"""Arguments of a client's methods, as messages. A value that no server would take is an error here."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from numbers import Real
from typing import Any, TypeVar

from google.protobuf.message import Message

from protos import sidecast_pb2 as pb
from serving.client.errors import InvalidInputError, InvalidNameError
from serving.client.images import image_bytes, is_image, needs_work
from serving.client.results import Prompt, Row
from serving.client.routes import RATES, Bounds, Route, read_rate, read_shares

RERANK_ROWS = 1000
"""Most passages of one call."""
LONGEST_TIMEOUT_S = 1e9
"""Longest timeout of a call, about 31 years. gRPC's clock and the protocol's durations end some time after it."""

Built = TypeVar("Built", bound=Message)


def build(kind: type[Built], /, **values: Any) -> Built:
    """A message with these fields.

    Raises:
        InvalidInputError: a field cannot have its value; it names the field.
    """
    try:
        return kind(**values)
    except (TypeError, ValueError):
        for name, value in values.items():
            try:
                kind(**{name: value})
            except (TypeError, ValueError) as error:
                raise _invalid(name, f"cannot be {_shown(value)}: {error}") from None
        raise


def check_timeout(seconds: float | None, name: str = "timeout") -> None:
    """Check a timeout in seconds; None: no limit.

    Raises:
        InvalidInputError: no number, not finite, or longer than LONGEST_TIMEOUT_S.
    """
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise _invalid(name, f"must be a number of seconds, or None for no limit; got {_shown(seconds)}")
    if not seconds <= LONGEST_TIMEOUT_S:  # not a number, too
        why = f"must be at most {LONGEST_TIMEOUT_S:.0f} seconds, or None for no limit; got {_shown(seconds)}"
        raise _invalid(name, why)


def read_decoding(decoding: Mapping[str, Any] | None, generation: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The decoding settings of a method that takes them by their old name `generation` too.

    Raises:
        InvalidInputError: both are given.
    """
    if generation is None:
        return decoding
    warnings.warn("the argument `generation` is now `decoding`", DeprecationWarning, stacklevel=3)
    if decoding is not None:
        raise _invalid("decoding", "is given twice: generation is its old name")
    return generation


def parse_ref(text: str, version: int | None = None, alias: str | None = None) -> pb.TaskRef:
    """`sst2`, `sst2@canary` or `sst2:7`; or the task's name and one of the other arguments.

    Raises:
        InvalidNameError: it is none of these.
        InvalidInputError: it is no text, or names a version or an alias twice.
    """
    if not isinstance(text, str):
        raise _invalid("task", f"must be a text such as 'sst2', got {_shown(text)}")
    name, mark, which = next((parts for mark in "@:" if (parts := text.partition(mark))[1]), (text, "", ""))
    if (bool(mark), version is not None, alias is not None).count(True) > 1:
        raise InvalidInputError(f"{text!r}: name one version or one alias", fields={"field": "task"})
    if mark == ":" and not (which.isascii() and which.isdigit() and len(which) < 10):
        raise InvalidNameError(f"{text!r} is no task reference: use TASK, TASK@alias or TASK:version")
    if mark == "@" and not which:
        raise InvalidNameError(f"{text!r} is no task reference: name an alias after the @")
    version = int(which) if mark == ":" else version
    alias = which if mark == "@" else alias
    ref = build(pb.TaskRef, task=name)
    if version is not None:
        set_field(ref, "version", version)
    elif alias is not None:
        set_field(ref, "alias", alias)
    return ref


def split_passages(passages: Sequence[str]) -> list[Sequence[str]]:
    """The passages in parts of at most RERANK_ROWS.

    Raises:
        InvalidInputError: there is none, or it is one text instead of a list.
    """
    if isinstance(passages, str) or not isinstance(passages, Sequence):
        raise _invalid("passages", f"must be a list of texts, got {_shown(passages)}")
    if not passages:
        raise _invalid("passages", "must be at least one text")
    return [passages[start : start + RERANK_ROWS] for start in range(0, len(passages), RERANK_ROWS)]


def check_group(name: str) -> None:
    """Check that a group's name is a text, and not empty. Raises InvalidInputError."""
    if not isinstance(name, str) or not name:
        raise _invalid("group", f"must be the name of a group, got {_shown(name)}")


def set_version_or_alias(
    request: pb.PredictRequest | pb.RankRequest | pb.GenerateRequest | pb.GetTaskRequest, ref: pb.TaskRef
) -> None:
    """Copy the version or the alias of a reference, where it has one, into a request."""
    if ref.HasField("version"):
        request.version = ref.version
    elif ref.HasField("alias"):
        request.alias = ref.alias


def set_options(
    request: pb.PredictRequest | pb.PredictTasksRequest | pb.RankRequest | pb.GenerateRequest,
    timeout: float | None,
    decoding: Mapping[str, Any] | None,
    priority: int,
    route_key: str,
) -> None:
    """Fill the options of a request.

    Args:
        timeout: seconds; None: none.
        decoding: settings of texts, by the names of `pb.Generation`.
    Raises:
        InvalidInputError: a setting that does not exist, or a value of a wrong type.
    """
    if timeout is not None:
        request.timeout.FromNanoseconds(int(timeout * 1e9))
    if decoding is not None and not isinstance(decoding, Mapping):
        raise _invalid("decoding", f"must be settings by name, got {type(decoding).__name__}")
    for name, value in (decoding or {}).items():
        is_flag = name == "early_stopping" and isinstance(value, bool)  # on the wire it is a word
        wire_value = str(value).lower() if is_flag else value
        assert not isinstance(request, pb.RankRequest)
        _set_named(request.generation, name, wire_value, "generation.", "setting")
    set_field(request, "priority", priority)
    set_field(request, "route_key", route_key)


def write_rows(rows: Sequence[Row]) -> list[pb.Row]:
    """Rows as messages.

    Raises:
        InvalidInputError: it is no list, or one of them is no row.
    """
    _check_list(rows, "rows")
    return [write_row(row, f"rows[{index}]") for index, row in enumerate(rows)]


def write_row(row: Row, where: str) -> pb.Row:
    """One row as a message. Reads the files of its images. `where` names it in the InvalidInputError."""
    try:
        match row:
            case str():
                return pb.Row(text=row)
            case Prompt():
                return pb.Row(prompt=row.text, images=_write_images(row.images, where))
            case Mapping():
                images = {name: value for name, value in row.items() if is_image(value)}
                texts: Any = {name: value for name, value in row.items() if name not in images}
                _check_texts(texts, where)
                return pb.Row(fields=texts, images=_write_images(images, where))
    except (TypeError, UnicodeEncodeError) as error:
        raise _invalid(where, f"cannot be sent as text: {error}") from None
    raise _invalid(where, f"must be a text, fields by name, or a Prompt, got {type(row).__name__}")


def _check_texts(texts: Mapping[str, Any], where: str) -> None:
    """Raises InvalidInputError: a value is neither a text nor an image; it names the first such field."""
    for name, value in texts.items():
        if not isinstance(value, str):
            field = f"{where}.{name if _is_word(name) else _shown(name)}"
            what = "must be a text, or an image as bytes, a path or a PIL.Image"
            raise _invalid(field, f"{what}, got {type(value).__name__}")


def _write_images(images: Mapping[str, Any], where: str) -> dict[str, bytes]:
    """The bytes of each image. Raises InvalidInputError: one is no image, or its file cannot be read."""
    if not isinstance(images, Mapping):
        raise _invalid(f"{where}.images", f"must be images by name, got {type(images).__name__}")
    written: dict[str, bytes] = {}
    for name, value in images.items():
        field = f"{where}.{name if _is_word(name) else _shown(name)}"
        if not is_image(value):
            raise _invalid(field, f"must be bytes, a path or a PIL.Image, got {type(value).__name__}")
        try:
            written[name] = image_bytes(value)
        except ValueError as error:
            raise _invalid(field, str(error)) from None
    return written


def need_work(rows: object) -> bool:
    """Whether images of some rows must be read or encoded first, which may take long."""
    if not isinstance(rows, Sequence):
        return False
    values = (row.images if isinstance(row, Prompt) else row for row in rows)
    return any(needs_work(value) for row in values if isinstance(row, Mapping) for value in row.values())


def write_refs(tasks: Sequence[str]) -> list[pb.TaskRef]:
    """References of tasks as messages. Raises what `parse_ref` raises, and InvalidInputError where it is no list."""
    _check_list(tasks, "tasks")
    return [parse_ref(task) for task in tasks]


def write_route(
    shares: Mapping[int, float | str], shadows: Sequence[int], bounds: Mapping[str, Any] | Bounds | None
) -> pb.Route:
    """A route as a message, also where it is plain: then it ends what the alias has.

    Raises:
        InvalidInputError: a bound that does not exist, a share or a rate without a unit, or a value of a wrong type.
    """
    _check_list(shadows, "route.shadows")
    if not isinstance(shares, Mapping):
        raise _invalid("route.shares", f"must be shares by version, got {type(shares).__name__}")
    hundredths = read_shares(shares)
    try:
        share_messages = [pb.Route.Share(version=version, share=share) for version, share in hundredths.items()]
        route = pb.Route(shares=share_messages, shadows=shadows)
    except (TypeError, ValueError) as error:
        raise _invalid("route", f"must have shares by version and a list of shadows: {error}") from None
    if bounds is not None:
        route.bounds.SetInParent()
        for name, value in _by_name(bounds).items():
            wire_value = read_rate(name, value) if name in RATES else value
            _set_named(route.bounds, name, wire_value, "route.bounds.", "bound")
    return route


def write_seen(route: Route) -> pb.Route:
    """A route that a client has read before, as a message."""
    return write_route(route.shares, route.shadows, route.bounds)


def _by_name(bounds: Mapping[str, Any] | Bounds) -> Mapping[str, Any]:
    if isinstance(bounds, Bounds):
        return asdict(bounds)
    if not isinstance(bounds, Mapping):
        raise _invalid("route.bounds", f"must be bounds by name, got {type(bounds).__name__}")
    return bounds


def set_field(message: Message, name: str, value: Any, prefix: str = "") -> None:
    """Set a field of a message.

    Raises:
        InvalidInputError: the field cannot have the value. It names `prefix` and the field.
    """
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise _invalid(prefix + name, f"cannot be {_shown(value)}: {error}") from None


def _set_named(message: Message, name: str, value: Any, prefix: str, noun: str) -> None:
    """Set a field that a caller has named; None leaves it unset. `noun` says what the fields are."""
    known = [field.name for field in message.DESCRIPTOR.fields]  # protobuf's own mapping fails for a surrogate
    if name not in known:
        raise _invalid(prefix + (name if _is_word(name) else _shown(name)), f"is no {noun}; use {', '.join(known)}")
    if value is not None:
        set_field(message, name, value, prefix)


def _check_list(values: Sequence[Any], where: str) -> None:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise _invalid(where, f"must be a list, got one {type(values).__name__}; put it in brackets")


def _is_word(name: object) -> bool:
    return isinstance(name, str) and name.isascii() and name.isidentifier()


def _shown(value: object) -> str:
    """A value in an error message: its repr in ASCII, cut short."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # too many digits, or nested too deep
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:100]}..."


def _invalid(field: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"{field}: {why}", fields={"field": field, "why": why})
