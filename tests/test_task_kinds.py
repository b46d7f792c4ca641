"""Whatever differs by a task's kind has an entry for every kind of `side_registry/specs/task_kinds.py`, and no other.

When a new kind makes one of these fail, the message names the table that lacks it.
"""

from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from ladder import load_tokenizer
from ladder.answering import answerers
from ladder.answers import Answer
from ladder.config import Head
from protos import sidecast_pb2 as pb
from serving.api.open_inference import tensors
from serving.offline import table
from side_registry.specs import task_kinds
from side_registry.specs.task_kinds import KINDS, Kind, TaskKind
from training import batches, data

TABLES = {
    "Kind in side_registry/specs/task_kinds.py": get_args(Kind),
    "HEADS in ladder/answering/answerers.py": answerers.HEADS,
    "READERS in training/data.py": data.READERS,
    "TARGETS in training/batches.py": batches.TARGETS,
    "message Answer in protos/sidecast.proto, _write_answer in serving/api/native.py and _read_answer in "
    "serving/client/responses.py": [field.name for field in pb.Answer.DESCRIPTOR.oneofs_by_name["answer"].fields],
}

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)


@pytest.mark.parametrize("where", TABLES)
def test_every_table_by_kind_has_exactly_the_known_kinds(where: str) -> None:
    assert set(TABLES[where]) == set(KINDS), f"make {where} agree with KINDS in side_registry/specs/task_kinds.py"


@each_kind
def test_a_kind_is_answered_by_the_heads_that_training_offers(kind: TaskKind, tiny_t5: Path) -> None:
    tokenizer = load_tokenizer(tiny_t5)
    assert answerers.HEADS[kind.name] == kind.heads
    for head in kind.heads:
        answerer = answerers.build_answerer(
            kind=kind.name,
            labels=("no", "yes"),
            low=None,
            high=None,
            max_new_tokens=4,
            head=head,
            tokenizer=tokenizer,
        )
        assert isinstance(answerer, answerers.Generate) == kind.makes_text


def test_the_registry_and_the_model_know_the_same_heads() -> None:
    assert set(get_args(task_kinds.Head)) == set(get_args(Head))


@each_kind
def test_the_columns_of_a_kind_are_values_of_one_answer_class(kind: TaskKind) -> None:
    classes = [answer for answer in get_args(Answer) if _attributes(kind) <= {field.name for field in fields(answer)}]
    assert len(classes) == 1, f"{kind.name}: no class, or several, in ladder/answers.py have {_attributes(kind)}"


def test_every_answer_class_has_a_kind() -> None:
    held = [_attributes(kind) for kind in KINDS.values()]
    for answer in get_args(Answer):
        names = {field.name for field in fields(answer)}
        assert any(attributes <= names for attributes in held), f"no kind answers with {answer.__name__}"


@each_kind
def test_the_types_of_columns_are_known_to_tables_and_tensors(kind: TaskKind) -> None:
    types = {column.dtype for column in kind.columns}
    assert types <= set(tensors.DATATYPES), "add it to DATATYPES in serving/api/open_inference/tensors.py"
    assert types <= set(table.TYPES), "add it to TYPES in serving/offline/table.py"


def _attributes(kind: TaskKind) -> set[str]:
    return {column.attribute for column in kind.columns}
