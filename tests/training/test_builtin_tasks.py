"""Built-in task specs and the loading of a user's own."""

import json
import pickle
import re
from pathlib import Path

import pytest

from side_registry.errors import InvalidSpec
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from tests.paths import glue_file
from training.builtin_tasks import FOLDER, builtin_tasks, load_task
from training.errors import DataError, MetricError, TrainingError, UnknownBuiltinTask
from training.metrics import METRICS

TASKS = builtin_tasks()
DOCS = Path(__file__).parents[2] / "docs"
GLUE = {"cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"}
DEMO = {"movie-sentiment", "product-sentiment", "tweet-sentiment"}
IMAGES = {"easy-vqa", "nlvr", "daquar", "flickr8k"}


def test_the_eight_glue_tasks_the_demos_three_an_embedding_and_four_with_images_are_built_in():
    assert set(TASKS) == GLUE | DEMO | {"paraphrase-embedding"} | IMAGES
    assert list(TASKS) == sorted(TASKS)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_builtin_tasks_file_has_its_name_and_a_one_line_description(name):
    spec = load_task(name)
    assert spec == TASKS[name] == load_task(FOLDER / f"{name}.toml")
    assert spec.name == name
    assert spec.description
    assert "\n" not in spec.description


def test_tasks_with_the_same_fields_share_prompts_and_with_them_activations():
    templates: dict[tuple[str, ...], set[str]] = {}
    for spec in TASKS.values():
        templates.setdefault(spec.inputs, set()).add(spec.template)
    assert all(len(forms) == 1 for forms in templates.values())
    assert templates[("sentence",)] == {"{sentence}"}
    assert templates[("sentence1", "sentence2")] == {"sentence1: {sentence1} sentence2: {sentence2}"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_documentation_lists_every_builtin_task(name):
    text = (DOCS / "models" / "tasks.md").read_text(encoding="utf-8")
    [listed] = re.findall(r"\(or one of the built-in ones: (.*?); see `training/tasks/`\)", text, re.DOTALL)
    assert f"`{name}`" in listed


def test_tasks_with_images_read_one_and_questions_share_their_prompt():
    assert {name for name, spec in TASKS.items() if spec.images} == IMAGES
    assert {TASKS[name].images for name in IMAGES} == {("image",)}
    assert TASKS["easy-vqa"].template == TASKS["daquar"].template == "vqa: {question}"
    assert TASKS["flickr8k"].render({}) == "caption:"


@pytest.mark.parametrize(("name", "low", "high"), [("stsb", 0, 5), ("tweet-sentiment", -4, 4)])
def test_regression_tasks_know_their_range(name, low, high):
    spec = TASKS[name]
    assert (spec.kind, spec.low, spec.high, spec.target) == ("regression", low, high, "score")
    assert spec.metric == "pearson_spearman"


def test_metrics_are_those_of_glue():
    assert TASKS["cola"].metric == "matthews"
    assert {TASKS["mrpc"].metric, TASKS["qqp"].metric} == {"accuracy_f1"}
    assert {TASKS[name].metric for name in ("sst2", "qnli", "rte", "mnli", "movie-sentiment")} == {"accuracy"}


def test_the_positive_class_of_f1_is_the_second_label():
    assert TASKS["mrpc"].labels[1] == "equivalent"
    assert TASKS["qqp"].labels[1] == "duplicate"


def test_every_metric_that_a_spec_may_name_can_be_computed():
    assert {metric for kind in KINDS.values() for metric in kind.metrics} == set(METRICS)


def test_an_unknown_task_lists_the_builtin_ones_and_the_nearest():
    with pytest.raises(UnknownBuiltinTask) as caught:
        load_task("SST-2")
    text = str(caught.value)
    assert text.startswith(
        "no built-in task 'SST-2' (did you mean sst2?); give one of cola, daquar, easy-vqa, flickr8k, mnli, "
    )
    assert text.endswith("or a task spec's .toml file")


def test_a_file_that_is_named_without_its_suffix_is_what_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sst.toml").touch()
    with pytest.raises(UnknownBuiltinTask, match=r"no built-in task 'sst' \(did you mean sst\.toml\?\)"):
        load_task("sst")


@pytest.mark.parametrize("as_type", [str, Path])
def test_a_users_task_is_read_from_its_file(tmp_path, as_type):
    path = tmp_path / "tickets.toml"
    path.write_text('name = "tickets"\nkind = "text"\ntemplate = "summarize: {ticket}"\n', encoding="utf-8")
    assert load_task(as_type(path)) == TaskSpec(name="tickets", kind="text", template="summarize: {ticket}")


@pytest.mark.parametrize("name", ["none.toml", "folder/sst2"])
def test_a_missing_task_file_is_said_to_be_missing(tmp_path, name):
    with pytest.raises(InvalidSpec, match="No such file"):
        load_task(str(tmp_path / name))


def test_a_task_file_that_breaks_a_rule_is_refused_with_its_path(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("name = ", encoding="utf-8")
    with pytest.raises(InvalidSpec) as caught:
        load_task(path)
    assert str(path) in str(caught.value)


def test_f1_of_three_labels_is_refused_before_training(tmp_path):
    path = tmp_path / "three.toml"
    lines = ('name = "three"', 'kind = "classification"', 'template = "{s}"', 'labels = ["a", "b", "c"]')
    path.write_text("\n".join([*lines, 'metric = "accuracy_f1"']), encoding="utf-8")
    with pytest.raises(InvalidSpec, match="accuracy_f1 is for two labels"):
        load_task(path)


@pytest.mark.parametrize(
    "error",
    [
        UnknownBuiltinTask("sst", ("sst2",)),
        DataError("a.csv", 3, "bad"),
        DataError("a.csv", None, "bad"),
        MetricError("f1", "bad"),
    ],
)
def test_errors_pickle_and_have_a_reason(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, str(copy)) == (type(error), error.args, str(error))
    assert isinstance(error, TrainingError)
    assert error.reason.isupper()
    assert error.reason != TrainingError.reason


@pytest.mark.real_weights
@pytest.mark.parametrize("name", sorted(GLUE))
def test_builtin_labels_are_those_of_the_real_data(name):
    spec = TASKS[name]
    with glue_file(name, "train").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert {*spec.fields, spec.target} == set(rows[0])
    if spec.kind == "classification":
        assert {row["label"] for row in rows} == set(spec.labels)
    else:
        assert (spec.low, spec.high) == (min(row["score"] for row in rows), max(row["score"] for row in rows))
