"""The page of answers: it is whole, needs nothing outside itself, and shows what was answered."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from demo.vision.page import WRONG_SHOWN, write_page
from demo.vision.questions import Question, QuestionData, read_rows
from demo.vision.results import Asked, Results
from tests.demo.vision.kit import made_data, results_of

VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """Reads a page; an element that is not closed, or closed out of order, is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1] != "style":
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def data(tmp_path, monkeypatch) -> QuestionData:
    return made_data(tmp_path, monkeypatch)


def results(data: QuestionData, wrong: int = 1) -> Results:
    """Answers to the test questions, the first `wrong` of them wrong."""
    rows = read_rows(data.file("test"))
    asked = [
        Asked(question=row, answer="brown" if number < wrong else row.answer, score=0.875)
        for number, row in enumerate(rows)
    ]
    return results_of(asked, read_rows(data.file("train")))


def written(results: Results, data: QuestionData, pictures: int = 2) -> Page:
    path = data.folder / "page.html"
    write_page(path, results, data, pictures)
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_has_pictures_questions_answers_and_scores(data):
    page = written(results(data), data)
    images = page.all("img")
    assert len(images) == 3  # two pictures, one of them again with its wrong answer
    assert {image["alt"] for image in images} == {"a red circle"}
    for text in ("what color is the shape?", "red", "0.88", "brown", "right: red", "1 in all; 1 of them are shown."):
        assert text in page.words
    assert {"0.875", "0.500", "0.250", "1,234", "40.0 ms", "20.0 ms", "987", "65", "1, 2, 1"} <= set(page.words)


def test_the_page_needs_nothing_outside_itself(data):
    page = written(results(data), data)
    assert {tag for tag, _ in page.elements} & {"script", "link", "iframe", "object"} == set()
    sources = [value for _, attributes in page.elements for name, value in attributes.items() if name == "src"]
    assert all(value and value.startswith("data:image/png;base64,") for value in sources)
    assert not [attributes for _, attributes in page.elements if "href" in attributes]
    assert "url(" not in (data.folder / "page.html").read_text(encoding="utf-8")


def test_texts_are_escaped(data):
    text = '<b>&"what"</b>?'
    found = results(data)
    asked = [replace(found.asked[0], question=Question(image_id="test/2", question=text, answer="<red>"))]
    page = written(results_of(asked, list(found.train)), data)
    assert not page.all("b")
    assert text in page.words
    assert "right: <red>" in page.words


def test_of_many_wrong_answers_some_are_shown_and_of_none_it_says_so(data):
    found = results(data)
    rows = read_rows(data.file("test"))
    many = [
        Asked(
            question=Question(image_id=rows[number % 8].image_id, question=f"{number}?", answer="no"),
            answer="yes",
            score=1,
        )
        for number in range(WRONG_SHOWN + 3)
    ]
    assert (
        f"{len(many)} in all; {WRONG_SHOWN} of them are shown."
        in written(results_of(many, list(found.train)), data).words
    )
    assert "None: every answer is right." in written(results(data, wrong=0), data).words


def test_results_are_counted_by_kind(data):
    found = results(data, wrong=1)
    assert found.score == 7 / 8
    assert found.majority == 1 / 4
    assert found.of_kind("colour") == (2, 0.5, 1.0)
    assert found.of_kind("shape") == (2, 1.0, 1.0)
    assert found.of_kind("yes or no") == (4, 1.0, 0.5)
