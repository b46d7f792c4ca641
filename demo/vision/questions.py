"""The demo's pictures and questions: easy-VQA (Victor Zhou, MIT), from its package.

A picture is 64 x 64 pixels with one shape (circle, rectangle, triangle) in one of eight colours. About ten questions
are asked of each; most are answered yes or no. The package has a training part and a test part. The first half of the
test part's pictures are our validation part, the second half our test part, so no picture is in two parts.
"""

import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from demo.downloads import Package, fetch
from demo.folders import DemoError, building, intact

EASY_VQA = Package(
    name="easy-vqa",
    version="1.0",
    file="easy_vqa-1.0-py3-none-any.whl",
    sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    bytes=3_215_672,
)
RECIPE = f"{EASY_VQA.name} {EASY_VQA.version} {EASY_VQA.sha256}, 1"
DATA = "easy_vqa/data"
PICTURES = {"train": 4000, "test": 1000}
"""The package's parts, and their numbers of pictures."""
SPLITS = ("train", "validation", "test")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about one picture, and its right answer."""

    image_id: str
    question: str
    answer: str

    @property
    def kind(self) -> str:
        """What is asked for: "yes or no", "shape" or "colour"."""
        if self.answer in SHAPES:
            return "shape"
        return "colour" if self.answer in COLOURS else "yes or no"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionData:
    """The files: a JSONL file for each split, and a folder of pictures that holds `image_id`.png for each image."""

    folder: Path

    @property
    def images(self) -> Path:
        """Folder of the pictures."""
        return self.folder / "images"

    def file(self, split: str) -> Path:
        """Return the rows' file of train, validation or test."""
        return self.folder / f"{split}.jsonl"

    def picture(self, image_id: str) -> Path:
        """Return the file of a picture."""
        return self.images / f"{image_id}.png"


def get_questions(cache: Path, progress: Progress | None = None) -> QuestionData:
    """Return the files of easy-VQA, made on the first call and read from `cache` on later ones.

    Raises:
        DemoError: the package could not be downloaded, or does not hold the expected files.
    """
    folder = cache / "datasets" / "easy-vqa"
    if not intact(folder, RECIPE):
        wheel = fetch(EASY_VQA, cache, progress)
        with building(folder, RECIPE) as staging:
            write_questions(wheel, staging)
    return QuestionData(folder=folder)


def write_questions(wheel: Path, folder: Path) -> None:
    """Write `folder`/<split>.jsonl and `folder`/images/<part>/<number>.png.

    Raises:
        DemoError: the wheel does not hold the expected files.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            rows = {part: _rows(archive, part) for part in PICTURES}
            for part, count in PICTURES.items():
                (folder / "images" / part).mkdir(parents=True)
                for number in range(count):
                    content = archive.read(f"{DATA}/{part}/images/{number}.png")
                    (folder / "images" / part / f"{number}.png").write_bytes(content)
    except (KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        what = f"{wheel} is not what it should be ({error})"
        raise DemoError(what, "remove it and run the demo again; it is downloaded again") from error
    half = PICTURES["test"] // 2
    write_rows(folder / "train.jsonl", rows["train"])
    write_rows(folder / "validation.jsonl", (row for row in rows["test"] if _number(row) < half))
    write_rows(folder / "test.jsonl", (row for row in rows["test"] if _number(row) >= half))


def read_rows(path: Path) -> list[Question]:
    """Read the rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [Question(**json.loads(line)) for line in lines]


def write_rows(path: Path, rows: Iterable[Question]) -> None:
    """Write rows as a JSONL file."""
    documents = ({"image_id": row.image_id, "question": row.question, "answer": row.answer} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in documents), encoding="utf-8", newline="\n")


def of_first_pictures(rows: Iterable[Question], count: int) -> list[Question]:
    """Return the rows of the first `count` pictures, in the order of the rows."""
    grouped = by_picture(rows)
    return [row for image_id in list(grouped)[:count] for row in grouped[image_id]]


def by_picture(rows: Iterable[Question]) -> dict[str, list[Question]]:
    """Group rows by their picture."""
    grouped: dict[str, list[Question]] = defaultdict(list)
    for row in rows:
        grouped[row.image_id].append(row)
    return dict(grouped)


def described(rows: Sequence[Question]) -> str:
    """Say what a picture shows, from the questions about it and their right answers: "a red triangle"."""
    words = [row.answer for row in rows]
    for row in rows:
        asked = row.question.removesuffix("?").split()
        negated = "no" in asked or "not" in asked
        if row.kind != "yes or no" or (row.answer == "yes") != negated:
            words += asked
    colour = next((word for word in words if word in COLOURS), "")
    shape = next((word for word in words if word in SHAPES), "shape")
    return " ".join(filter(None, ("a", colour, shape)))


def _rows(archive: zipfile.ZipFile, part: str) -> list[Question]:
    rows: list[Any] = json.loads(archive.read(f"{DATA}/{part}/questions.json"))
    return [
        Question(image_id=f"{part}/{number}", question=question, answer=answer) for question, answer, number in rows
    ]


def _number(row: Question) -> int:
    return int(row.image_id.rpartition("/")[2])
