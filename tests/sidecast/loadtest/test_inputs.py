"""The requests of a load: tasks, rows out of files, repeated ones."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.client.results import Prompt
from sidecast.loadtest.inputs import Inputs, Request, Target
from sidecast.loadtest.plan import Closed, LoadError, Plan
from training.errors import DataError

SST2 = Target("sst2", "classification", ("sentence",))
COLA = Target("cola@canary", "classification", ("sentence",))
TITLES = Target("titles", "text", ("body",))
RTE = Target("rte", "classification", ("sentence1", "sentence2"))


def plan(**changes: Any) -> Plan:
    return Plan(levels=(Closed(1),), **changes)


def take(count: int, *targets: Target, file: Path | None = None, **changes: Any) -> list[Request]:
    inputs = Inputs(targets, plan(**changes), str(file) if file else None)
    return [next(inputs) for _ in range(count)]


def test_all_tasks_are_asked_and_no_text_comes_twice() -> None:
    requests = take(600, SST2, COLA, RTE)
    assert min(Counter(request.tasks for request in requests).values()) > 150
    texts = [json.dumps(request.rows) for request in requests]
    assert len(set(texts)) == len(texts)
    assert all(set(r.rows[0]) == {"sentence1", "sentence2"} for r in requests if r.tasks == ("rte",))


def test_a_seed_makes_the_same_requests_and_another_makes_others() -> None:
    assert take(50, SST2, RTE, seed=3, repeat_share=0.5) == take(50, SST2, RTE, seed=3, repeat_share=0.5)
    first = {request.rows for request in take(50, SST2, seed=3)}
    assert not first & {request.rows for request in take(50, SST2, seed=4)}


def test_rows_of_a_request() -> None:
    [request] = take(1, SST2, rows=5)
    assert (len(request.rows), len(set(map(str, request.rows)))) == (5, 5)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_repeated_rows_have_been_sent_for_the_same_task(share: float) -> None:
    seen: set[tuple[Any, ...]] = set()
    repeated = 0
    for request in take(2000, SST2, COLA, repeat_share=share):
        key = (request.tasks, request.rows)
        repeated += key in seen
        seen.add(key)
    assert repeated / 2000 == pytest.approx(share, abs=0.04)


def test_several_tasks_share_the_rows_of_a_request() -> None:
    requests = take(100, SST2, COLA, TITLES, tasks_per_request=2)
    assert all(len(set(request.tasks)) == 2 for request in requests)
    assert all(isinstance(request.rows[0], str) for request in requests)  # fits each task's only field
    assert {task for request in requests for task in request.tasks} == {"sst2", "cola@canary", "titles"}


def test_tasks_that_cannot_share_a_request() -> None:
    with pytest.raises(LoadError, match="--tasks-per-request 3 needs as many tasks, there are 2"):
        take(1, SST2, COLA, tasks_per_request=3)
    with pytest.raises(LoadError, match="sst2 and rte take different fields"):
        take(1, SST2, RTE, tasks_per_request=2)
    [request] = take(1, SST2, RTE, tasks_per_request=2, whole_prompts=True)
    assert isinstance(request.rows[0], Prompt)


def test_a_text_file_has_one_row_a_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text("one\n\ntwo \n three\n", encoding="utf-8-sig")
    inputs = Inputs([SST2, TITLES], plan(), str(file))
    assert {next(inputs).rows[0] for _ in range(40)} == {"one", "two ", " three"}
    assert inputs.came_round == [3]
    assert {request.rows[0] for request in take(3, SST2, file=file)} == {
        "one",
        "two ",
        " three",
    }  # each before any again
    assert take(1, SST2, RTE, file=file, whole_prompts=True)[0].rows[0].text in {"one", "two ", " three"}
    with pytest.raises(LoadError, match=r"holds one text a line, and a task takes sentence1, sentence2"):
        take(1, RTE, file=file)


def test_given_texts_come_once_each_before_any_comes_again() -> None:
    inputs = Inputs([SST2, TITLES], plan(), texts=["x", "y", "z"])
    sent: dict[str, list[Any]] = {SST2.ref: [], TITLES.ref: []}
    for request in itertools.islice(inputs, 60):
        sent[request.tasks[0]].append(request.rows[0])
    for rows in sent.values():
        assert len(rows) > 6
        assert sorted(rows[:3]) == sorted(rows[3:6]) == ["x", "y", "z"]


def test_skewed_texts_come_by_zipfs_law() -> None:
    inputs = Inputs([SST2], plan(rows=3), texts=[str(number) for number in range(1, 101)], skew=1.0)
    counts = Counter(row for request in itertools.islice(inputs, 4000) for row in request.rows)
    assert counts["1"] / counts["4"] == pytest.approx(4, rel=0.15)
    assert counts["1"] / counts["10"] == pytest.approx(10, rel=0.2)


def test_files_of_columns(tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "body": 7, "other": None}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    (tmp_path / "rows.csv").write_text("body,sentence2,sentence1\n7,b,a\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        inputs = Inputs([RTE, TITLES], plan(), str(tmp_path / name))
        rows_of = {request.tasks: request.rows[0] for request in (next(inputs) for _ in range(30))}
        assert rows_of == {("rte",): {"sentence1": "a", "sentence2": "b"}, ("titles",): "7"}


def test_files_that_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "null.jsonl").write_text('{"sentence": null}', encoding="utf-8")
    (tmp_path / "none.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "rows.xml").write_text("x", encoding="utf-8")
    for name, says in {
        "empty.txt": "holds no rows; put one on each line",
        "none.jsonl": "holds no rows",
        "bad.txt": "cannot be read: it is not UTF-8",
        "nothing.txt": "cannot be read: No such file",
    }.items():
        with pytest.raises(LoadError, match=says):
            take(1, SST2, file=tmp_path / name)
    for name, says in {
        "null.jsonl": "column 'sentence' holds NoneType; give a text",
        "rows.xml": "cannot read",
    }.items():
        with pytest.raises(DataError, match=says):
            take(1, SST2, file=tmp_path / name)


VQA = Target("vqa", "classification", ("question", "image"), images=("image",))
CAPTIONS = Target("captions", "text", ("image",), images=("image",))


def test_images_come_as_bytes_or_as_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["a cat?"], "image": [b"\xffcat"]}), tmp_path / "rows.parquet")
    (tmp_path / "dog.png").write_bytes(b"dog")
    (tmp_path / "rows.jsonl").write_text('{"question": "a dog?", "image": "dog.png"}\n', encoding="utf-8")
    [request] = take(1, VQA, file=tmp_path / "rows.parquet")
    assert request.rows == ({"question": "a cat?", "image": b"\xffcat"},)
    [request] = take(1, VQA, file=tmp_path / "rows.jsonl")
    assert request.rows == ({"question": "a dog?", "image": b"dog"},)
    [request] = take(1, CAPTIONS, file=tmp_path / "rows.jsonl")
    assert request.rows == ({"image": b"dog"},)


def test_images_that_cannot_be_sent_are_explained(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a dog?", "image": "dog.png"}\n', encoding="utf-8")
    (tmp_path / "rows.txt").write_text("dog.png\n", encoding="utf-8")
    for changes, says in (
        ({}, r"vqa reads images \(image\): give its rows with --prompts FILE"),
        ({"file": tmp_path / "rows.jsonl", "whole_prompts": True}, "without --whole-prompts"),
        ({"file": tmp_path / "rows.jsonl"}, "dog.png cannot be read: No such file or directory"),
    ):
        with pytest.raises(LoadError, match=says):
            take(1, VQA, **changes)  # type: ignore[arg-type]
    with pytest.raises(LoadError, match=r"a task takes image: give \.jsonl with these columns"):
        take(1, CAPTIONS, file=tmp_path / "rows.txt")
    pq.write_table(pa.table({"question": [b"a cat?"], "image": [[1]]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="column 'question' holds bytes; give a text"):
        take(1, VQA, file=tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="column 'image' holds list; give the bytes or the path of an image"):
        take(1, CAPTIONS, file=tmp_path / "rows.parquet")
