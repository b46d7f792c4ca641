"""A run that is loaded to predict offline: texts or dicts as rows, scores, and errors that name what is wrong."""

from pathlib import Path

import pytest

import training
from ladder import ClassAnswer, load_backbone, load_tokenizer
from side_registry import ArtifactError, InvalidRow, TaskSpec
from tests import tiny
from tests.training import toy
from training import LoadedRun, load_run, read_examples, train
from training.errors import RunError

PAIRS = TaskSpec(name="pairs", kind="classification", template="{one} {two}", labels=("aa", "bb"))


@pytest.fixture(scope="module")
def model(tiny_t5: Path):
    return load_backbone(tiny_t5), load_tokenizer(tiny_t5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model) -> Path:
    """The folder that the run's data is in; the run is its `run`."""
    folder = tmp_path_factory.mktemp("loaded")
    train(toy.job(folder, toy.CLASSES, *model, count=8, epochs=1), folder / "run")
    return folder


@pytest.fixture(scope="module")
def loaded(finished: Path, model) -> LoadedRun:
    return load_run(finished / "run", *model)


def test_a_text_is_the_row_of_a_template_with_one_field(loaded: LoadedRun) -> None:
    [by_text, by_dict] = loaded.predict(["abab", {"sentence": "abab"}])
    assert isinstance(by_text, ClassAnswer)
    assert by_text == by_dict


def test_the_scores_are_those_of_the_best_epoch(loaded: LoadedRun, finished: Path) -> None:
    scores = loaded.score(read_examples(finished / "validation.jsonl", loaded.spec))
    assert scores == {"accuracy": loaded.manifest.metrics["accuracy"]}


def test_a_text_for_a_template_with_two_fields_names_the_missing_one(
    tmp_path: Path, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"one": "a", "two": letter, "label": label} for letter, label in (("a", "aa"), ("b", "bb")) * 4]
    monkeypatch.setattr(toy, "rows", lambda *_, **__: rows)
    train(toy.job(tmp_path, PAIRS, *model, epochs=1), tmp_path / "run")
    with pytest.raises(InvalidRow) as caught:
        load_run(tmp_path / "run", *model).predict(["a"])
    assert caught.value.field == "two"


def test_a_folder_that_is_no_finished_run_is_refused(tmp_path: Path, model) -> None:
    with pytest.raises(ArtifactError):
        load_run(tmp_path, *model)


def test_another_backbone_is_refused(finished: Path, tmp_path: Path, model) -> None:
    other = load_backbone(tiny.make_t5(tmp_path, seed=1))
    with pytest.raises(RunError, match="another backbone"):
        load_run(finished / "run", other, model[1])


def test_every_exported_name_is_there() -> None:
    for name in training.__all__:
        assert getattr(training, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        training.tain  # noqa: B018
