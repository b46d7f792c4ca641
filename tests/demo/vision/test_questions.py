"""easy-VQA from its package: splits, pictures, kinds of questions, and what a picture is said to show."""

import json
import zipfile
from pathlib import Path

import pytest

from demo.folders import DemoError
from demo.vision import questions
from demo.vision.questions import SPLITS, Question, by_picture, described, of_first_pictures, read_rows
from tests.demo.test_inputs import downloaded
from tests.demo.vision.kit import ROWS, made_data, write_wheel


def test_no_picture_is_in_two_splits(tmp_path, monkeypatch):
    data = made_data(tmp_path, monkeypatch)
    pictures = {split: list(by_picture(read_rows(data.file(split)))) for split in SPLITS}
    assert pictures == {
        "train": [f"train/{number}" for number in range(6)],
        "validation": ["test/0", "test/1"],
        "test": ["test/2", "test/3"],
    }
    first = json.loads(data.file("test").read_text().splitlines()[0])
    assert first == {"image_id": "test/2", "question": ROWS[0][0], "answer": ROWS[0][1]}
    with zipfile.ZipFile(tmp_path / "easy.whl") as archive:
        assert data.picture("test/2").read_bytes() == archive.read(f"{questions.DATA}/test/images/2.png")


def test_the_files_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "PICTURES", {"train": 6, "test": 4})
    fetched = []
    wheel = write_wheel(tmp_path / "easy.whl")
    monkeypatch.setattr(questions, "fetch", lambda *args: fetched.append(args) or wheel)
    data = questions.get_questions(tmp_path / "cache")
    assert questions.get_questions(tmp_path / "cache") == data
    assert len(fetched) == 1
    data.picture("train/3").unlink()
    assert questions.get_questions(tmp_path / "cache").picture("train/3").is_file()
    assert len(fetched) == 2


def test_a_package_with_fewer_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "PICTURES", {"train": 6, "test": 5})
    wheel = write_wheel(tmp_path / "easy.whl")
    with pytest.raises(DemoError, match=r"test/images/4\.png.*remove it"):
        questions.write_questions(wheel, tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an archive"], ids=["empty", "text"])
def test_a_damaged_package_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "easy.whl").write_bytes(content)
    with pytest.raises(DemoError, match=r"easy\.whl is not what it should be"):
        questions.write_questions(tmp_path / "easy.whl", tmp_path)


def test_the_rows_of_the_first_pictures_stay_together():
    rows = [Question(image_id=image, question=f"{number}?", answer="yes") for number, image in enumerate("abacb")]
    assert [row.question for row in of_first_pictures(rows, 2)] == ["0?", "2?", "1?", "4?"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((("what color is the shape?", "teal"), ("what shape is present?", "circle")), "a teal circle"),
        ((("what color is the triangle?", "red"),), "a red triangle"),
        ((("is there a gray shape?", "yes"), ("is there a circle?", "no")), "a gray shape"),
        ((("is there not a rectangle?", "no"), ("is there a red shape?", "no")), "a rectangle"),
        ((("is no red shape present?", "yes"),), "a shape"),
    ],
)
def test_a_picture_is_described_by_its_right_answers(asked, words):
    assert described([Question(image_id="1", question=text, answer=answer) for text, answer in asked]) == words


@pytest.mark.slow
@pytest.mark.real_weights
def test_the_package_has_the_questions_that_we_report(tmp_path):
    questions.write_questions(downloaded(questions.EASY_VQA), tmp_path)
    rows = {split: read_rows(tmp_path / f"{split}.jsonl") for split in SPLITS}
    assert {split: len(part) for split, part in rows.items()} == {"train": 38575, "validation": 4868, "test": 4805}
    assert {split: len(by_picture(part)) for split, part in rows.items()} == {
        "train": 4000,
        "validation": 500,
        "test": 500,
    }
    kinds = {row.kind for row in rows["test"]}
    assert kinds == {"yes or no", "shape", "colour"}
    answers = {row.answer for part in rows.values() for row in part}
    assert answers == {"yes", "no", *questions.SHAPES, *questions.COLOURS}
