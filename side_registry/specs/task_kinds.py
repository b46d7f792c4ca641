"""The kinds of task, one row each: what their specs hold, what answers them, and what an answer is made of.

Facts only. Code that a kind needs is in one place per subject, by the kind's name: `HEADS` and `build_answerer` in
`ladder/answering/answerers.py`, `READERS` in `training/data.py`, `TARGETS` in `training/batches.py`.
`tests/test_task_kinds.py` compares them with KINDS.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Kind = Literal["classification", "regression", "text", "embedding", "multilabel", "token_classification", "ranking"]

Head = Literal["text", "linear", "attention", "mlp"]
"""As in `ladder/config.py`, which this package does not import."""

DataType = Literal["string", "float32", "spans"]
"""`spans`: a list of records with start, end, label, score and text."""

Fact = Literal[
    "makes_text",
    "has_labels",
    "has_range",
    "has_dimensions",
    "has_thresholds",
    "has_spans",
    "ranks",
    "may_have_label_index",
    "may_have_open_labels",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerColumn:
    """One column of a kind's answers, in a table or as a tensor of the Open Inference Protocol."""

    name: str
    dtype: DataType
    is_list: bool = False
    """A row has TaskSpec.outputs values, not one."""
    varies: bool = False
    """A row has any number of values: a list in a table, and a JSON list as one element of a tensor."""
    attribute: str
    """Name of the value in the answer's class in `ladder/answers.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKind:
    """What holds for every task of a kind."""

    name: Kind
    columns: tuple[AnswerColumn, ...]
    """What an answer is made of. Metrics compare the first column with the target; with thresholds, all of them."""
    metrics: tuple[str, ...]
    """Metrics that a spec may name; the first is the default."""
    target: str
    """Default name of the expected answer in data files."""
    heads: tuple[Head, ...]
    """Heads of side networks that can answer; the first is the default."""
    makes_text: bool = False
    """The answer is generated token by token: it can be streamed, and the spec may hold decoding settings."""
    has_labels: bool = False
    """The answer is made of the spec's labels; where it has one number for each, that is the label's score. With
    `has_spans` each span has one of them."""
    least_labels: int = 2
    """Fewest labels of a spec, where the kind has labels."""
    may_have_label_index: bool = False
    """Targets may be positions of labels, where the spec says so."""
    may_have_open_labels: bool = False
    """Targets may be texts that are no labels, where the spec says so."""
    has_thresholds: bool = False
    """Any number of the labels are right for a row. An answer has those whose score reaches the label's threshold,
    which is fitted on the validation rows and kept in the manifest."""
    has_spans: bool = False
    """The answer is a list of spans of the text, which do not overlap. A head has outputs for each token, the template
    has one field, once, and long texts are read in windows."""
    ranks: bool = False
    """The answer says how relevant a passage is for a query. The template has two fields, of which the first that it
    names is the query. Metrics compare the passages of each query with each other."""
    has_range: bool = False
    """The answer is one number. The spec may limit it by low and high; training starts at the targets' mean."""
    has_dimensions: bool = False
    """The answer is a vector of as many numbers as the spec's dimensions."""
    target_is_input: bool = False
    """The target is a second input, not an answer. Training compares rows, so a batch has two rows or more, and the
    template has one field."""
    can_distill: bool = True
    """A run's side network can teach another one."""
    lm_head_teaches: bool = False
    """The backbone's LM head can teach too: the answer is words."""


def _column(
    name: str, dtype: DataType, *, is_list: bool = False, varies: bool = False, attribute: str = ""
) -> AnswerColumn:
    return AnswerColumn(name=name, dtype=dtype, is_list=is_list, varies=varies, attribute=attribute or name)


_ROWS = (
    TaskKind(
        name="classification",
        columns=(_column("label", "string"), _column("score", "float32"), _column("scores", "float32", is_list=True)),
        metrics=("accuracy", "matthews", "accuracy_f1"),
        target="label",
        heads=("linear", "text", "attention", "mlp"),
        has_labels=True,
        may_have_label_index=True,
        may_have_open_labels=True,
        lm_head_teaches=True,
    ),
    TaskKind(
        name="regression",
        columns=(_column("value", "float32"),),
        metrics=("pearson_spearman",),
        target="score",
        heads=("linear", "attention", "mlp"),
        has_range=True,
    ),
    TaskKind(
        name="text",
        columns=(_column("text", "string"),),
        metrics=("exact_match", "vqa_accuracy", "cider", "bleu", "rouge_l"),
        target="target",
        heads=("text",),
        makes_text=True,
        lm_head_teaches=True,
    ),
    TaskKind(
        name="embedding",
        columns=(_column("embedding", "float32", is_list=True, attribute="values"),),
        metrics=("recall_at_1", "mrr"),
        target="positive",
        heads=("linear", "mlp"),
        has_dimensions=True,
        target_is_input=True,
        can_distill=False,
    ),
    TaskKind(
        name="multilabel",
        columns=(_column("labels", "string", varies=True), _column("scores", "float32", is_list=True)),
        metrics=("f1_micro", "f1_macro", "average_precision"),
        target="labels",
        heads=("linear", "attention", "mlp"),
        has_labels=True,
        least_labels=1,
        may_have_label_index=True,
        has_thresholds=True,
        can_distill=False,
    ),
    TaskKind(
        name="token_classification",
        columns=(_column("spans", "spans"),),
        metrics=("entity_f1",),
        target="spans",
        heads=("linear",),
        has_labels=True,
        has_spans=True,
        least_labels=1,
        can_distill=False,
    ),
    TaskKind(
        name="ranking",
        columns=(_column("relevance", "float32"),),
        metrics=("ndcg_at_10", "mrr_at_10"),
        target="relevance",
        heads=("linear", "attention", "mlp"),
        ranks=True,
        can_distill=False,
    ),
)

KINDS: Mapping[str, TaskKind] = MappingProxyType({kind.name: kind for kind in _ROWS})


def kinds_with(fact: Fact) -> str:
    """Names of the kinds for which `fact` is true, for a message: "classification, multilabel and text"."""
    *others, last = (kind.name for kind in KINDS.values() if getattr(kind, fact))
    return f"{', '.join(others)} and {last}" if others else last
