"""A client that asks questions about pictures, and counts and times its requests."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from demo.folders import DemoError
from demo.vision.questions import Question, QuestionData, by_picture
from demo.vision.results import Asked, Times
from sidecast import Classification, Client, SidecastError

TASK = "easy-vqa"
PAIR = ("what color is the shape?", "what shape is in the image?")
"""Two questions that fit every picture."""


class Asker:
    """Asks TASK on one connection."""

    def __init__(self, client: Client, data: QuestionData) -> None:
        self._client = client
        self._data = data
        self.requests = 0

    def ask(self, rows: Sequence[Question]) -> list[Asked]:
        """Ask questions in one request; each row has its picture's bytes.

        Raises:
            DemoError: the server refused them.
        """
        self.requests += 1
        try:
            answers = self._client.predict(TASK, [row_of(row, self._data) for row in rows], timeout=60)
        except SidecastError as error:
            raise DemoError(f"the server did not answer a question: {error}", "read its messages above") from error
        found = []
        for row, answer in zip(rows, answers, strict=True):
            assert isinstance(answer, Classification)
            found.append(Asked(question=row, answer=answer.label, score=answer.score))
        return found

    def ask_all(self, rows: Iterable[Question]) -> list[Asked]:
        """Ask questions, those about one picture in one request."""
        return [asked for questions in by_picture(rows).values() for asked in self.ask(questions)]

    def time_pairs(self, image_ids: Sequence[str]) -> Times:
        """Ask two questions about each picture, one after the other.

        Which question is the first alternates. Both were asked about another picture before, so that only the
        pictures are new to the server.

        Args:
            image_ids: of pictures that the server has not seen.
        """
        warm, *others = image_ids
        for text in PAIR:
            self._seconds(warm, text)
        times = []
        for number, image_id in enumerate(others):
            first, second = PAIR if number % 2 else reversed(PAIR)
            times.append((self._seconds(image_id, first), self._seconds(image_id, second)))
        return Times(first=[first for first, _ in times], second=[second for _, second in times])

    def _seconds(self, image_id: str, text: str) -> float:
        began = time.perf_counter()
        self.ask([Question(image_id=image_id, question=text, answer="")])
        return time.perf_counter() - began


def row_of(row: Question, data: QuestionData) -> dict[str, str | Path]:
    """Return a question as the client takes it."""
    return {"question": row.question, "image": data.picture(row.image_id)}


def read_counters(url: str, names: Iterable[str]) -> Mapping[str, int]:
    """Read counters without labels from a server's metrics."""
    with urlopen(url, timeout=30) as response:
        families = list(text_string_to_metric_families(response.read().decode("utf-8")))
    values = {sample.name: int(sample.value) for family in families for sample in family.samples}
    return {name: values[name] for name in names}
