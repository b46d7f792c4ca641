"""The guard's tasks and their rows: texts of two packages and, where a folder is given, GLUE.

Every task has the template `{sentence}`, so all of them read the same prompt and share one pass of the backbone. GLUE's
tasks of two texts are not used: a request is one text.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.dataset import VADER, split
from demo.downloads import cache_folder, fetch
from demo.folders import DemoError
from demo.ratings import Snippet, distinct, read_archive, without_contrived
from examples.guard.personal import LABELS, PRESIDIO, Person, personal_rows, read_package
from sidecast import TaskSpec
from training import load_task

SOURCES = {
    "movieReviewSnippets": "film",
    "amazonReviewSnippets": "product",
    "nytEditorialSnippets": "editorial",
    "tweets": "tweet",
}
"""Label of the task `topic` by file of ratings."""
GLUE = ("cola", "sst2")
"""GLUE tasks of one text: their built-in specs fit the files."""
BALANCED = ("question", "stance")
"""Tasks with one label that is much rarer than the other."""
SPLITS = ("train", "validation", "test")
ENDS = " .!?'\""
NEUTRAL, OPINION, HEATED = 0.5, 1.0, 2.0
"""Distances of a mean rating (-4 to 4) from 0."""

Row = Mapping[str, Any]
Splits = Mapping[str, Sequence[Row]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRows:
    """A task and its labelled rows by split."""

    spec: TaskSpec
    rows: Splits


def read_tasks(glue: Path | None, train_rows: int) -> list[TaskRows]:
    """Return all tasks with their rows.

    Args:
        glue: folder with `cola/train.jsonl`, `cola/validation.jsonl`, `sst2/...`; None: the packages' tasks alone.
        train_rows: most training rows of a task; validation and test have at most a fifth of it each.
    Raises:
        DemoError: a package cannot be had, or the folder does not have the files.
    """
    ratings = read_archive(fetch(VADER, cache_folder()))
    tasks = [*rated_tasks(ratings), personal(*read_package(fetch(PRESIDIO, cache_folder())))]
    if glue is not None:
        tasks += [read_glue(glue, name) for name in GLUE]
    return [TaskRows(spec=task.spec, rows=shortened(task.rows, train_rows)) for task in tasks]


def rated_tasks(ratings: Mapping[str, Sequence[Snippet]]) -> list[TaskRows]:
    """Return the five tasks that are made of rated texts."""
    snippets = {**ratings, "tweets": without_contrived(ratings["tweets"])}
    return [
        TaskRows(spec=_spec(name, labels), rows=_labelled(name, snippets, label_of))
        for name, (labels, label_of) in RATED.items()
    ]


def personal(templates: Sequence[str], people: Sequence[Person]) -> TaskRows:
    """Return the task that finds personal data."""
    spec = TaskSpec(name="personal", kind="token_classification", template="{sentence}", labels=LABELS)
    return TaskRows(spec=spec, rows=personal_rows(templates, people))


def _topic(source: str, snippet: Snippet) -> str | None:
    return SOURCES[source]


def _sentiment(source: str, snippet: Snippet) -> str | None:
    if abs(snippet.rating) < NEUTRAL:
        return None
    return "positive" if snippet.rating > 0 else "negative"


def _tone(source: str, snippet: Snippet) -> str | None:
    if abs(snippet.rating) >= HEATED:
        return "heated"
    return "calm" if abs(snippet.rating) < OPINION else None


def _stance(source: str, snippet: Snippet) -> str | None:
    if abs(snippet.rating) >= OPINION:
        return "opinion"
    return "statement" if abs(snippet.rating) < NEUTRAL else None


def _question(source: str, snippet: Snippet) -> str | None:
    return "question" if snippet.text.rstrip("'\" ").endswith("?") else "statement"


LabelOf = Callable[[str, Snippet], str | None]
RATED: Mapping[str, tuple[tuple[str, ...], LabelOf]] = {
    "topic": (tuple(SOURCES.values()), _topic),
    "sentiment": (("negative", "positive"), _sentiment),
    "tone": (("calm", "heated"), _tone),
    "stance": (("statement", "opinion"), _stance),
    "question": (("statement", "question"), _question),
}
"""By task: its labels, and the label of a text; None where the text is left out."""


def _spec(name: str, labels: tuple[str, ...]) -> TaskSpec:
    return TaskSpec(name=name, kind="classification", template="{sentence}", labels=labels, metric="accuracy")


def _labelled(task: str, ratings: Mapping[str, Sequence[Snippet]], label_of: LabelOf) -> dict[str, list[Row]]:
    """Return the rows of a task by split; reviews stay together. In BALANCED tasks labels are equally frequent.

    Of `question`, marks at a text's end are removed: they would tell the label.
    """
    labels: dict[str, str] = {}
    usable: list[Snippet] = []
    for source in SOURCES:
        for snippet in ratings[source]:
            if (label := label_of(source, snippet)) is None:
                continue
            text = snippet.text.strip(ENDS) if task == "question" else snippet.text
            labels[text] = label
            usable.append(Snippet(f"{source}-{snippet.id}", snippet.rating, text))
    parts = split(distinct(usable), task)
    rows: dict[str, list[Row]] = {
        name: [{"sentence": snippet.text, "label": labels[snippet.text]} for snippet in part]
        for name, part in parts.items()
    }
    return {name: balanced(part) for name, part in rows.items()} if task in BALANCED else rows


def balanced(rows: Iterable[Row]) -> list[Row]:
    """Return the first rows of each label, as many as the rarest label has, in turn."""
    by_label: dict[str, list[Row]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    return [row for turn in zip(*by_label.values(), strict=False) for row in turn]


def shortened(rows: Splits, train_rows: int) -> dict[str, list[Row]]:
    """Return at most `train_rows` training rows, and a fifth as many of validation and test."""
    most = {"train": train_rows, "validation": max(1, train_rows // 5), "test": max(1, train_rows // 5)}
    return {name: list(rows[name])[: most[name]] for name in SPLITS}


def read_glue(folder: Path, name: str) -> TaskRows:
    """Return a GLUE task. Its test labels are not public: validation is a part of train, test is GLUE's validation.

    Raises:
        DemoError: a file cannot be read.
    """
    train = _read(folder / name / "train.jsonl")
    random.Random(0).shuffle(train)
    kept = len(train) // 10
    rows = {"train": train[kept:], "validation": train[:kept], "test": _read(folder / name / "validation.jsonl")}
    return TaskRows(spec=load_task(name).model_copy(update={"metric": "accuracy"}), rows=rows)


def _read(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        layout = "a folder with cola/train.jsonl, cola/validation.jsonl and the same of sst2"
        raise DemoError(f"{path} cannot be read ({error})", f"give --data {layout}") from None


def write_rows(folder: Path, rows: Splits) -> dict[str, Path]:
    """Write `folder`/<split>.jsonl; return the files by split."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in SPLITS}
    for name, path in files.items():
        path.write_text("".join(_lines(rows[name])), encoding="utf-8")
    return files


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
