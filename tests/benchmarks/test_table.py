"""The table of docs/benchmarks.md is the newest results' one, and the goals know which ratio is theirs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.bench_all import document_of
from benchmarks.harness import table
from benchmarks.harness.goals import GOALS, Goal, with_spreads
from benchmarks.harness.samples import BenchmarkError

CPU = {"gpu": None, "cpu": "Some Chip 9", "cores": 2, "threads": 2, "dtype": "float32", "torch": "2.0"}
GPU = {**CPU, "gpu": "Some GPU"}


def results(date: str = "2026-01-02", machine: dict[str, Any] = CPU, value: float = 0.98) -> dict[str, Any]:
    spread = {"median": value, "q1": value - 0.01, "q3": value + 0.01}
    reports = {"tasks": {"ratios": {"text batch, 16 tasks / 1": spread, "text one input, 16 tasks / 1": spread}}}
    floors = {"best_ratios": {"F1 text": 0.999}}
    common = {"name": "all", "date": date, "machine": machine, "file": f"{date}-some-chip-9.json"}
    return {**common, "floors": floors, "reports": reports}


def write(folder: Path, *documents: dict[str, Any]) -> None:
    for document in documents:
        name = f"{document['date']}-{'-'.join(table.machine_of(document)).replace('/', '-')}-{document['name']}.json"
        (folder / name).write_text(json.dumps(document), encoding="utf-8")


def test_the_pages_have_the_newest_results_tables():
    done = CliRunner().invoke(table.main, ["--check"])
    assert done.exit_code == 0, done.output


def test_each_machines_newest_results_count_and_other_benchmarks_files_do_not(tmp_path):
    write(tmp_path, results("2026-01-03"), results("2026-01-02"), results("2026-01-01", GPU))
    write(tmp_path, {**results("2026-09-09"), "name": "server"})
    assert [(each["date"], table.machine_of(each)) for each in table.newest(tmp_path)] == [
        ("2026-01-03", ("Some Chip 9", "AVX2")),
        ("2026-01-01", ("Some GPU", "CUDA")),
    ]


def test_each_instruction_set_has_a_column_of_its_own_with_its_own_goals(tmp_path):
    newer = {**CPU, "instruction_sets": ["avx2", "avx512f", "avx512_bf16", "avx512_vnni"], "dtype": "bfloat16"}
    other = results("2026-01-04", newer)
    other["reports"]["tasks"]["ratios"]["text one input, kept / cold"] = {"median": 8.5, "q1": 8.0, "q3": 9.0}
    write(tmp_path, results(), other, results("2026-01-03", newer))
    documents = table.newest(tmp_path)
    assert [document["date"] for document in documents] == ["2026-01-02", "2026-01-04"]
    text = table.render(documents)
    assert "| goal | AVX2, float32 | possible | AVX512-BF16/VNNI, bfloat16 | possible |" in text
    assert "| one known input / a new one | ≥ 10 |  |  | **8.50**, goal ≥ 8 (8.00-9.00) |  |" in text
    short = table.summary(documents)
    assert "|  | goal | AVX2, float32 | AVX512-BF16/VNNI, bfloat16 |" in short
    assert "| 32 rows of 16 tasks / of one task: rows/s | ≥ 0.97 | **0.98** | **0.98** |" in short
    assert short.endswith("| goals that are reached, of those measured |  | 2 of 2 | 3 of 3 |")


def test_a_script_that_is_not_among_the_results_of_all_has_its_own(tmp_path):
    own = {"name": "images", "date": "2026-09-09", "machine": CPU, "ratios": {"a / b": {"median": 1.0}}}
    write(tmp_path, results(), own, {**own, "name": "tasks"}, {**own, "machine": GPU})
    [document] = table.newest(tmp_path)
    assert document["file"] == "2026-01-02-Some Chip 9-AVX2-all.json"
    assert document["reports"] == {**results()["reports"], "images": own}


def test_a_row_has_the_goal_the_figure_and_what_is_possible():
    text = table.render([results()])
    assert "| 32 rows of 16 tasks / of one task: rows/s | ≥ 0.97 | **0.98** (0.97-0.99) | 1.00 |" in text
    assert "Some Chip 9, 2 cores, 2 threads, float32, torch 2.0" in text
    table_rows, missing = text.split("\n\nNot measured: ")
    assert "PEFT" not in table_rows
    assert "32 rows, 16 tasks / PEFT's 16 LoRAs (peers)" in missing
    assert "of one task: rows/s" not in missing
    assert table.render([]) == table.NOTHING


def test_the_header_names_the_processors_instruction_sets_where_the_results_have_them():
    new = {**CPU, "instruction_sets": ["avx2", "avx512_bf16"]}
    assert "Some Chip 9, avx2 avx512_bf16, 2 cores" in table.render([results(machine=new)])
    for unknown in (CPU, {**CPU, "instruction_sets": None}, {**new, "gpu": "Some GPU"}):
        assert "avx2" not in table.render([results(machine=unknown)])


def test_the_links_lead_from_the_page_to_the_results():
    assert "(../benchmarks/results/2026-01-02-some-chip-9.json)" in table.render([results()])
    named = [table.PAGE.parent / link for link in re.findall(r"\]\(([^()]+\.json)\)", table.render(table.newest()))]
    assert named
    assert all(each.is_file() for each in named)


def test_a_figure_that_missed_its_goal_is_not_bold():
    assert "≥ 0.97 | 0.50 (0.49-0.51) |" in table.render([results(value=0.5)])


def test_two_machines_have_two_columns():
    text = table.render([results(), results(machine=GPU, value=0.99)])
    assert "| goal | AVX2, float32 | possible | CUDA, float32 | possible |" in text
    same = table.render([results(), results(machine={**CPU, "cpu": "Another"})])
    assert "| goal | Some Chip 9, AVX2, float32 | possible | Another, AVX2, float32 | possible |" in same
    assert "**0.98** (0.97-0.99) | 1.00 | **0.99** (0.98-1.00) | 1.00 |" in text


@pytest.mark.parametrize("text", ["no marks", f"{table.END} {table.BEGIN}", f"{table.BEGIN} {table.BEGIN} {table.END}"])
def test_marks_that_are_missing_or_wrong_are_told(text):
    with pytest.raises(BenchmarkError, match="needs"):
        table.replaced(text, "table")


def test_write_and_check(tmp_path, monkeypatch):
    page, readme = tmp_path / "benchmarks.md", tmp_path / "README.md"
    for each in (page, readme):
        each.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n", encoding="utf-8")
    write(tmp_path, results())
    monkeypatch.setattr(table, "PAGE", page)
    monkeypatch.setattr(table, "README", readme)
    monkeypatch.setattr(table, "newest", lambda newest=table.newest: newest(tmp_path))
    run = CliRunner().invoke
    assert run(table.main, ["--check"]).exit_code == 2
    assert run(table.main, ["--write"]).exit_code == 0
    assert run(table.main, ["--check"]).exit_code == 0
    assert page.read_text(encoding="utf-8").startswith(f"before\n{table.BEGIN}\nSome Chip 9")
    assert "goals that are reached" in readme.read_text(encoding="utf-8")
    assert "**0.98**" in run(table.main, []).output


@pytest.mark.parametrize(("value", "text"), [(0.0312, "0.031"), (0.976, "0.98"), (12.34, "12.3"), (1234.5, "1234")])
def test_numbers_have_the_digits_that_tell_something(value, text):
    assert table.number(value) == text


def test_a_goal_is_at_least_or_at_most_or_nothing():
    assert Goal("", "", "", 0.9).reached(0.9)
    assert Goal("", "", "", most=1.4).reached(1.5) is False
    assert Goal("", "", "").reached(1.0) is None
    rules = [goal.rule for goals in GOALS.values() for goal in goals]
    assert {"≥ 0.97", "≤ 1.4", ""} <= set(rules)


def test_what_is_measured_again_replaces_its_part_of_the_same_days_file():
    before = results()
    new = {"peers": {"ratios": {}}, "floors": {"best_ratios": {"F1 text": 0.9}}}
    document = document_of(new, CPU, "2026-01-02", before)
    assert set(document["reports"]) == {"tasks", "peers"}
    assert document["floors"]["best_ratios"]["F1 text"] == 0.9
    assert [goal.text for _, goal, spread in with_spreads(document) if spread] == [
        "32 rows of 16 tasks / of one task: rows/s",
        "16 tasks / one: time",
    ]
    assert document_of({}, CPU, "2026-01-02", before)["floors"] == before["floors"]
