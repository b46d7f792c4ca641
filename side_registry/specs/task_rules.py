"""The rules that hold between the fields of a task's spec, and all faults of a spec that a person wrote.

A fault names the fields that it is about: what follows from a field that is wrong by itself is not reported.
"""

import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from side_registry.documents import fault_text
from side_registry.specs.decoding_spec import GenerationSpec
from side_registry.specs.task_kinds import KINDS, Fact, Kind, kinds_with

MAX_DIMENSIONS = 4096
MAX_LABEL = 1_000
"""Characters of one."""
MAX_TYPES = 500
"""Labels of a task that answers with spans: each token has two outputs for each."""
MAX_IMAGES = 2
"""Image fields of a task."""
FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
LABEL_FIELDS: Mapping[str, Fact] = {
    "labels": "has_labels",
    "label_index": "may_have_label_index",
    "open_labels": "may_have_open_labels",
}
"""Fields of a spec about labels, and what must hold for the kind to have them."""
STAND_INS = {"name": "task", "template": "{text}"}
"""Instead of values that are wrong by themselves, so that the other fields can be checked."""


class Spec(Protocol):
    """What the rules read of a `TaskSpec`."""

    kind: Kind
    template: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    label_index: bool
    open_labels: bool
    low: float | None
    high: float | None
    dimensions: int
    generation: GenerationSpec
    target: str
    metric: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule that is broken."""

    fields: tuple[str, ...]
    """Those that it is about."""
    text: str


class SpecFaults(ValueError):
    """All rules that a spec breaks."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(fault.text for fault in faults))
        self.faults = tuple(faults)


def check_rules(spec: Spec, fields: tuple[str, ...]) -> None:
    """Raises SpecFaults; `fields` are the template's."""
    faults = [
        *_images(spec, fields),
        *_labels(spec),
        *_range(spec),
        *_embedding(spec, fields),
        *_spans(spec, fields),
        *_ranking(spec, fields),
        *_kind(spec, fields),
    ]
    if faults:
        raise SpecFaults(faults)


def toml_faults(model: type[BaseModel], table: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a spec's table: misspelt fields, wrong values, broken rules.

    Args:
        model: `TaskSpec`.
    """
    unknown = _unknown_keys(table, tuple(model.model_fields))
    wrong = {near for near, _ in unknown}
    generation = table.get("generation")
    if isinstance(generation, dict):
        unknown += _unknown_keys(generation, tuple(GenerationSpec.model_fields))
    faults = [text for _, text in unknown]
    values = {name: value for name, value in table.items() if name in model.model_fields and name not in wrong}
    for fault in _errors(model, values):
        if fault["loc"]:
            faults.append(fault_text(fault))
            wrong.add(str(fault["loc"][0]))
    if "kind" in wrong:
        return faults
    right = {name: value for name, value in values.items() if name not in wrong}
    for fault in _errors(model, {name: STAND_INS[name] for name in STAND_INS if name in wrong} | right):
        broken = fault.get("ctx", {}).get("error")
        if isinstance(broken, SpecFaults):
            faults += [one.text for one in broken.faults if not wrong.intersection(one.fields)]
    labels = table.get("labels")
    if table.get("metric") == "accuracy_f1" and "labels" not in wrong and isinstance(labels, list) and len(labels) > 2:
        count = len(labels)
        faults.append(f"metric accuracy_f1 is for two labels, the second the positive one; got {count}")
    return faults


def template_fields(template: str) -> tuple[str, ...]:
    """The names in braces, in order, without repetition.

    Plain `{name}` only: positions, attributes, indexes, conversions and formats could reach into the program.
    """
    fields: dict[str, None] = {}
    for _, name, form, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not FIELD_NAME.fullmatch(name) or form or conversion:
            raise ValueError(f"each field must be a plain name in braces such as {{sentence}}, got {{{name}}} in it")
        fields[name] = None
    return tuple(fields)


def text_fault(text: str) -> str | None:
    """What keeps a text from being tokenized: NUL ends C strings, half a surrogate pair has no UTF-8."""
    if "\0" in text:
        return "a NUL character"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return None


def _images(spec: Spec, fields: tuple[str, ...]) -> Iterator[Fault]:
    images = spec.images
    if not fields and not images:
        yield Fault(("template", "images"), "template needs at least one field in braces such as {sentence}")
    if len(images) > MAX_IMAGES:
        yield Fault(("images",), f"images must be at most {MAX_IMAGES} names, got {len(images)}")
    for name in images:
        if not FIELD_NAME.fullmatch(name):
            yield Fault(("images",), f"images must be names such as image, got {name[:80]!r}")
        elif name in (*fields, spec.target):
            why = f"images must be names that neither the template nor the target has, got {name!r}"
            yield Fault(("images", "template", "target"), why)
    if len(set(images)) < len(images):
        yield Fault(("images",), f"images must be distinct, got {', '.join(images)[:200]}")
    if images and KINDS[spec.kind].target_is_input:
        yield Fault(("images",), f"images must be left out for {spec.kind}, which compares texts")


def _ranking(spec: Spec, fields: tuple[str, ...]) -> Iterator[Fault]:
    if not KINDS[spec.kind].ranks:
        return
    if len(fields) != 2:
        why = f"template must have two fields for {spec.kind}, the query and then the passage, got {len(fields)}"
        yield Fault(("template",), why)
    if spec.images:
        yield Fault(("images",), f"images must be left out for {spec.kind}, which compares texts")


def _labels(spec: Spec) -> Iterator[Fault]:
    kind = KINDS[spec.kind]
    for name, fact in LABEL_FIELDS.items():
        if getattr(spec, name) and not getattr(kind, fact):
            verb = "are" if name == "labels" else "is"
            yield Fault((name,), f"{name} {verb} for {kinds_with(fact)}, this task is {spec.kind}")
    if not kind.has_labels:
        return
    labels = spec.labels
    least = kind.least_labels
    if len(labels) < least:
        words = "two" if least == 2 else str(least)
        yield Fault(("labels",), f"labels must be at least {words} for {spec.kind}, got {len(labels)}")
    for label in [label for label in labels if not label or label != label.strip() or text_fault(label)][:1]:
        yield Fault(("labels",), f"labels must be words without spaces around them, got {label[:80]!r}")
    if long := next((label for label in labels if len(label) > MAX_LABEL), None):
        why = f"labels must have at most {MAX_LABEL} characters, got {len(long)} in {long[:80]!r}"
        yield Fault(("labels",), why)
    if len(set(labels)) < len(labels):
        yield Fault(("labels",), f"labels must be distinct, got {', '.join(labels)[:200]}")
    if spec.label_index and (number := next((label for label in labels if INTEGER.fullmatch(label)), None)):
        why = f"label_index must be left out where a label is a number: {number!r} in a file is that label"
        yield Fault(("label_index", "labels"), why)
    if spec.open_labels and spec.label_index:
        why = "open_labels must be left out where label_index is true: a position that no label has is a mistake"
        yield Fault(("open_labels", "label_index"), why)
    if spec.open_labels and spec.metric == "accuracy_f1":
        yield Fault(("open_labels", "metric"), "metric must be accuracy or matthews where open_labels is true")


def _range(spec: Spec) -> Iterator[Fault]:
    if not KINDS[spec.kind].has_range and (spec.low is not None or spec.high is not None):
        yield Fault(("low", "high"), f"low and high are for {kinds_with('has_range')}, this task is {spec.kind}")
    elif spec.low is not None and spec.high is not None and spec.low >= spec.high:
        yield Fault(("low", "high"), f"low must be below high, got {spec.low} and {spec.high}")


def _embedding(spec: Spec, fields: tuple[str, ...]) -> Iterator[Fault]:
    kind = KINDS[spec.kind]
    if spec.dimensions and not kind.has_dimensions:
        yield Fault(("dimensions",), f"dimensions are for {kinds_with('has_dimensions')}, this task is {spec.kind}")
    if kind.has_dimensions and not spec.dimensions:
        yield Fault(("dimensions",), f"dimensions must be 1 to {MAX_DIMENSIONS} for {spec.kind}, got 0")
    if kind.target_is_input and len(fields) != 1:
        why = f"template must have one field for {spec.kind}, the text that becomes a vector; got {', '.join(fields)}"
        yield Fault(("template",), why)


def _spans(spec: Spec, fields: tuple[str, ...]) -> Iterator[Fault]:
    if not KINDS[spec.kind].has_spans:
        return
    if not 1 <= len(spec.labels) <= MAX_TYPES:
        why = f"labels must be 1 to {MAX_TYPES} types of entities for {spec.kind}, got {len(spec.labels)}"
        yield Fault(("labels",), why)
    for label in [label for label in spec.labels if label == "O" or label.startswith(("B-", "I-"))][:1]:
        why = f"labels must be types of entities such as PER, not tags, for {spec.kind}; got {label[:80]!r}"
        yield Fault(("labels",), why)
    for name in ("label_index", "open_labels"):
        if getattr(spec, name):
            yield Fault((name,), f"{name} must be left out for {spec.kind}")
    if spec.images:
        yield Fault(("images",), f"images must be left out for {spec.kind}, which reads text alone")
    if [name for _, name, _, _ in string.Formatter().parse(spec.template) if name is not None] != list(fields[:1]):
        why = f"template must have one field, once, for {spec.kind}: the text whose entities are found"
        yield Fault(("template",), why)


def _kind(spec: Spec, fields: tuple[str, ...]) -> Iterator[Fault]:
    kind = KINDS[spec.kind]
    if not kind.makes_text and not spec.generation.is_default:
        yield Fault(("generation",), f"generation is for {kinds_with('makes_text')}, this task is {spec.kind}")
    if spec.metric not in kind.metrics:
        known = " or ".join(kind.metrics)
        yield Fault(("metric",), f"metric must be {known} for {spec.kind}, got {spec.metric!r}")
    if not FIELD_NAME.fullmatch(spec.target) or spec.target in fields:
        why = f"target must be a name that is not a field of the template, got {spec.target!r}"
        yield Fault(("target", "template"), why)


def _errors(model: type[BaseModel], values: Mapping[str, Any]) -> list[Any]:
    try:
        model.model_validate(dict(values))
    except ValidationError as error:
        return error.errors(include_url=False, include_input=False)
    return []


def _unknown_keys(table: Mapping[str, object], known: tuple[str, ...]) -> list[tuple[str, str]]:
    """Of each unknown field: the known one that it is near to (empty if there is none), and what to report."""
    faults: list[tuple[str, str]] = []
    for key in table:
        if key not in known:
            near = next(iter(get_close_matches(key, known, n=1)), "")
            hint = f"did you mean {near!r}?" if near else "use " + ", ".join(known)
            faults.append((near, f"unknown field {key!r}; {hint}"))
    return faults
