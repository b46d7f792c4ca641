"""What several seeds are worth: means of answers, a whole run, tasks whose answers have no mean."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.training import bench_seeds
from benchmarks.training.bench_seeds import ONE, SETTINGS, mean_answer
from ladder import ClassAnswer, ValueAnswer
from tests.benchmarks.test_defaults import write_rows


def test_the_mean_of_answers_is_of_probabilities_or_of_values():
    answers = [
        ClassAnswer(label="a", score=0.6, scores=(0.6, 0.4)),
        ClassAnswer(label="b", score=0.9, scores=(0.1, 0.9)),
    ]
    mean = mean_answer(("a", "b"), answers)
    assert isinstance(mean, ClassAnswer)
    assert (mean.label, mean.scores) == ("b", pytest.approx((0.35, 0.65)))
    assert mean_answer((), [ValueAnswer(value=1.0), ValueAnswer(value=4.0)]) == ValueAnswer(value=2.5)


@pytest.mark.slow
def test_it_runs_and_ends_in_its_json_line(tmp_path, tiny_t5):
    write_rows(tmp_path, 60)
    words = ["--backbone", str(tiny_t5), "--data", str(tmp_path), "--tasks", "sst2", "--threads", "1"]
    sizes = ["--rows", "30", "--selecting", "10", "--scored", "20", "--set", "epochs=1", "--set", "reduction=4"]
    ran = CliRunner().invoke(bench_seeds.main, [*words, *sizes, "--runs", "2", "--groups", "2"])
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout.splitlines()[-1])
    assert [row["setting"] for row in document["settings"]] == list(SETTINGS)
    assert document["settings"][0]["difference"] == 0
    assert [line["seed"] for line in document["scores"] if line["setting"] == ONE] == [0, 1]


def test_tasks_whose_answers_have_no_mean_are_refused(tmp_path, tiny_t5):
    spec = tmp_path / "titles.toml"
    spec.write_text('name = "titles"\nkind = "text"\ntemplate = "{text}"\ntarget = "title"\n')
    ran = CliRunner().invoke(
        bench_seeds.main, ["--backbone", str(tiny_t5), "--data", str(tmp_path), "--tasks", str(spec)]
    )
    assert ran.exit_code != 0
    assert "is text: give tasks of classification or regression" in ran.output
