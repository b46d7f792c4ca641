"""A small easy-VQA: a wheel as the package is, and results as the story makes them."""

import json
import zipfile
from pathlib import Path

import pytest

from demo.swap import SwapLog
from demo.vision import questions
from demo.vision.questions import Question, QuestionData, write_questions
from demo.vision.results import Asked, Results, Times
from tests.vision.images import noise, saved

ROWS = (
    ("what color is the shape?", "red"),
    ("what is the red shape?", "circle"),
    ("is there a circle?", "yes"),
    ("is there no circle?", "no"),
)
"""Asked about every picture."""


def write_wheel(path: Path, train: int = 6, test: int = 4) -> Path:
    """Write a wheel with pictures of noise. `questions.PICTURES` has to be set to the same numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        for seed, part, count in ((0, "train", train), (1000, "test", test)):
            rows = [[question, answer, number] for number in range(count) for question, answer in ROWS]
            archive.writestr(f"{questions.DATA}/{part}/questions.json", json.dumps(rows))
            for number in range(count):
                archive.writestr(f"{questions.DATA}/{part}/images/{number}.png", saved(noise(8, 8, seed=seed + number)))
    return path


def made_data(folder: Path, monkeypatch: pytest.MonkeyPatch, train: int = 6, test: int = 4) -> QuestionData:
    """The files of a small easy-VQA."""
    monkeypatch.setattr(questions, "PICTURES", {"train": train, "test": test})
    wheel = write_wheel(folder / "easy.whl", train, test)
    (folder / "data").mkdir()
    write_questions(wheel, folder / "data")
    return QuestionData(folder=folder / "data")


def results_of(asked: list[Asked], train: list[Question]) -> Results:
    """Results with these answers; the other figures are fixed."""
    log = SwapLog(order=[1, 2, 1], lags={"publish": 0.4, "rollback": 0.1})
    return Results(
        asked=asked,
        train=train,
        quick_pictures=2,
        quick_score=0.5,
        text_only_score=0.25,
        times=Times(first=[0.03, 0.05, 0.04], second=[0.01, 0.02, 0.03]),
        swap=log,
        requests=1234,
        hits=987,
        misses=65,
    )
