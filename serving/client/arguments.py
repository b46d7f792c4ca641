"""Arguments of a client's methods, as messages. A value that no server would take is an error here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from google.protobuf.message import Message

from protos import sidecast_pb2 as pb
from serving.client.errors import InvalidInputError, InvalidNameError
from serving.client.results import Prompt, Row
from serving.client.routes import Route


def parse_ref(text: str, version: int | None = None, alias: str | None = None) -> pb.TaskRef:
    """`sst2`, `sst2@canary` or `sst2:7`; or the task's name and one of the other arguments.

    Raises:
        InvalidNameError: it is none of these.
        InvalidInputError: it names a version or an alias twice.
    """
    name, mark, which = next((parts for mark in "@:" if (parts := text.partition(mark))[1]), (text, "", ""))
    if (bool(mark), version is not None, alias is not None).count(True) > 1:
        raise InvalidInputError(f"{text!r}: name one version or one alias", fields={"field": "task"})
    if mark == ":" and not (which.isascii() and which.isdigit() and len(which) < 10):
        raise InvalidNameError(f"{text!r} is no task reference: use TASK, TASK@alias or TASK:version")
    if mark == "@" and not which:
        raise InvalidNameError(f"{text!r} is no task reference: name an alias after the @")
    version = int(which) if mark == ":" else version
    alias = which if mark == "@" else alias
    ref = pb.TaskRef(task=name)
    if version is not None:
        ref.version = version
    elif alias is not None:
        ref.alias = alias
    return ref


def set_version_or_alias(request: pb.PredictRequest | pb.GenerateRequest | pb.GetTaskRequest, ref: pb.TaskRef) -> None:
    """Copy the version or the alias of a reference, where it has one, into a request."""
    if ref.HasField("version"):
        request.version = ref.version
    elif ref.HasField("alias"):
        request.alias = ref.alias


def set_options(
    request: pb.PredictRequest | pb.PredictTasksRequest | pb.GenerateRequest,
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
    for name, value in (decoding or {}).items():
        is_flag = name == "early_stopping" and isinstance(value, bool)  # on the wire it is a word
        wire_value = str(value).lower() if is_flag else value
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
    """One row as a message. `where` names it in the InvalidInputError."""
    try:
        match row:
            case str():
                return pb.Row(text=row)
            case Prompt():
                return pb.Row(prompt=row.text)
            case Mapping():
                return pb.Row(fields=row)
    except (TypeError, UnicodeEncodeError) as error:
        raise _invalid(where, f"cannot be sent as text: {error}") from None
    raise _invalid(where, f"must be a text, fields by name, or a Prompt, got {type(row).__name__}")


def write_refs(tasks: Sequence[str]) -> list[pb.TaskRef]:
    """References of tasks as messages. Raises what `parse_ref` raises, and InvalidInputError where it is no list."""
    _check_list(tasks, "tasks")
    return [parse_ref(task) for task in tasks]


def write_route(shares: Mapping[int, int], shadows: Sequence[int], bounds: Mapping[str, Any] | None) -> pb.Route:
    """A route as a message, also where it is plain: then it ends what the alias has.

    Raises:
        InvalidInputError: a bound that does not exist, or a value of a wrong type.
    """
    _check_list(shadows, "route.shadows")
    try:
        share_messages = [pb.Route.Share(version=version, share=share) for version, share in shares.items()]
        route = pb.Route(shares=share_messages, shadows=shadows)
    except (TypeError, ValueError, AttributeError) as error:
        raise _invalid("route", f"must have shares by version and a list of shadows: {error}") from None
    if bounds is not None:
        route.bounds.SetInParent()
        for name, value in bounds.items():
            _set_named(route.bounds, name, value, "route.bounds.", "bound")
    return route


def write_seen(route: Route) -> pb.Route:
    """A route that a client has read before, as a message."""
    return write_route(route.shares, route.shadows, route.bounds and asdict(route.bounds))


def set_field(message: Message, name: str, value: Any, prefix: str = "") -> None:
    """Set a field of a message.

    Raises:
        InvalidInputError: the field cannot have the value. It names `prefix` and the field.
    """
    try:
        setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise _invalid(prefix + name, f"cannot be {value!r}: {error}") from None


def _set_named(message: Message, name: str, value: Any, prefix: str, noun: str) -> None:
    """Set a field that a caller has named; None leaves it unset. `noun` says what the fields are."""
    known = message.DESCRIPTOR.fields_by_name
    if name not in known:
        raise _invalid(prefix + name, f"is no {noun}; use {', '.join(known)}")
    if value is not None:
        set_field(message, name, value, prefix)


def _check_list(values: Sequence[Any], where: str) -> None:
    if isinstance(values, (str, bytes, Mapping)):
        raise _invalid(where, f"must be a list, got one {type(values).__name__}; put it in brackets")


def _invalid(field: str, why: str) -> InvalidInputError:
    return InvalidInputError(f"{field}: {why}", fields={"field": field, "why": why})
