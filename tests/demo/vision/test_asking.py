"""The client of the demo with images: what it sends, what it times."""

import pytest

from demo.folders import DemoError
from demo.vision.asking import PAIR, TASK, Asker
from demo.vision.questions import QuestionData, read_rows
from sidecast import Classification, SidecastError
from tests.demo.vision.kit import made_data


class FakeClient:
    """Answers `red` to everything, and remembers each request."""

    def __init__(self, error: str = "") -> None:
        self.calls: list[tuple[str, list[dict]]] = []
        self._error = error

    def predict(self, task, rows, *, timeout):
        self.calls.append((task, rows))
        if self._error:
            raise SidecastError(self._error)
        return [Classification(label="red", score=0.5, scores={}) for _ in rows]


@pytest.fixture
def data(tmp_path, monkeypatch) -> QuestionData:
    return made_data(tmp_path, monkeypatch)


def test_the_questions_about_a_picture_are_one_request(data):
    client = FakeClient()
    asker = Asker(client, data)  # type: ignore[arg-type]
    rows = read_rows(data.file("test"))
    answered = asker.ask_all(rows)
    assert [each.question for each in answered] == rows
    assert [each.is_right for each in answered[:4]] == [True, False, False, False]
    assert asker.requests == len(client.calls) == 2
    assert client.calls[1] == (
        TASK,
        [{"question": row.question, "image": data.picture("test/3")} for row in rows if row.image_id == "test/3"],
    )


def test_each_question_is_first_as_often_as_second_and_the_first_picture_is_not_timed(data):
    client = FakeClient()
    times = Asker(client, data).time_pairs([f"train/{number}" for number in range(5)])  # type: ignore[arg-type]
    asked = [(row["question"], row["image"]) for _, [row] in client.calls]
    assert len(times.first) == len(times.second) == 4
    assert [text for text, _ in asked[:2]] == list(PAIR)
    firsts = asked[2::2]
    assert sorted(text for text, _ in firsts) == sorted(PAIR * 2)
    assert [picture for _, picture in firsts] == [data.picture(f"train/{number}") for number in range(1, 5)]
    assert [picture for _, picture in asked[3::2]] == [picture for _, picture in firsts]


def test_a_refused_question_ends_the_demo_with_the_reason(data):
    with pytest.raises(DemoError, match="did not answer a question: no room"):
        Asker(FakeClient("no room"), data).ask_all(read_rows(data.file("test")))  # type: ignore[arg-type]
