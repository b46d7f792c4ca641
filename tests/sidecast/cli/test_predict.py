"""`sidecast predict`, and the other commands on a server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ladder.decoding.settings import Generation
from tests.serving.api_kit import RTE, SST2, VISUAL_SPECS, Parlour
from tests.sidecast.cli.house import House
from tests.sidecast.cli_kit import Ran, done, sidecast, wait_until
from tests.training import toy


def ask(parlour: Parlour, *words: str) -> Ran:
    return sidecast("predict", *words, "--server", parlour.address)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parlour]:
    """A server whose tasks read images, and two files beside its registry."""
    folder = tmp_path_factory.mktemp("gallery")
    for name in ("cat", "dog", "x=y"):
        (folder / f"{name}.png").write_bytes(name.encode())
    with Parlour(folder, VISUAL_SPECS).open() as opened:
        yield opened


def test_predict_prints_texts_as_they_come(parlour: Parlour) -> None:
    ran = ask(parlour, "titles", "one two", "three", "--stream", "--priority", "1")
    assert (ran.code, ran.out) == (0, "TITLE: ONE TWO\nTITLE: THREE\n")
    assert parlour.service.priorities[-2:] == [1, 1]
    *pieces, last = map(json.loads, ask(parlour, "titles", "one two", "--stream", "--json").out.splitlines())
    assert pieces == [{"text": text, "tokens": [n]} for n, text in enumerate(("TITLE:", " ONE", " TWO"))]
    result = last["result"]
    assert (result["text"], result["version"], result["finish_reason"]) == ("TITLE: ONE TWO", 1, "end")
    assert "'sst2' is classification" in ask(parlour, "sst2", "a", "--stream").mistake


def test_predict_answers_each_text(parlour: Parlour) -> None:
    long = "x" * 90
    ran = ask(parlour, "sst2", "dull", long)
    title, heading, *rows = ran.out.splitlines()
    assert (title.strip(), heading.split()) == ("sst2 version 1", ["answer", "score", "input"])
    assert [row.split() for row in rows] == [["negative", "0.9600", "dull"], ["positive", "0.9000", long]]
    document = ask(parlour, "sst2@production", "dull", "--json").document
    [answer] = document["answers"]
    assert (document["task"], document["version"], document["generation"]) == ("sst2", 1, 4)
    scores = {"negative": 0.96, "positive": pytest.approx(0.04)}
    assert answer == {"label": "negative", "score": 0.96, "scores": scores, "truncated": False}
    assert ask(parlour, "sst2:1", "dull", "--json").document == document


def test_predict_other_kinds(parlour: Parlour) -> None:
    assert ask(parlour, "tweets", "x" * 44).out.splitlines()[2].split() == ["0.0000", "x" * 44]
    assert ask(parlour, "tweets", "x" * 44, "--json").document["answers"] == [{"value": 0.0, "truncated": False}]
    assert ask(parlour, "titles", "a [b]bold[/b] one").out.splitlines()[2].startswith("TITLE: A [B]BOLD[/B] ONE ")
    assert ask(parlour, "titles", "a", "--json").document["answers"] == [{"text": "TITLE: A", "truncated": False}]


def test_predict_says_which_texts_were_cut(parlour: Parlour) -> None:
    long = "x" * 200
    ran = ask(parlour, "sst2", "dull", long, long)
    assert ran.err.strip() == "longer than 128 tokens (max_source_tokens), so its end was not read: input 2, 3"
    assert f"{'x' * 99}…" in ran.out
    assert max(map(len, ran.out.splitlines())) < 130  # the table shows an input's beginning
    assert not ask(parlour, "sst2", "dull").err
    answers = ask(parlour, "sst2", "dull", long, "--json").document["answers"]
    assert [answer["truncated"] for answer in answers] == [False, True]
    assert "its end was not read" in ask(parlour, "titles", long, "--stream").err


def test_predict_says_how_texts_are_made(parlour: Parlour) -> None:
    ask(parlour, "titles", "a", "--beams", "3", "--early-stopping", "true", "--max-new-tokens", "5")
    answerer = parlour.service.answerers[-1]
    assert answerer.generation == Generation(num_beams=3, early_stopping=True)
    assert answerer.max_new_tokens == 5
    ask(parlour, "titles", "a", "--temperature", "0.5", "--top-p", "0.9", "--seed", "7")  # which is to sample
    assert parlour.service.answerers[-1].generation == Generation(do_sample=True, temperature=0.5, top_p=0.9, seed=7)
    assert "generation.num_beams: " in ask(parlour, "titles", "a", "--beams", "99").mistake
    assert "is for text; task 'sst2' is classification" in ask(parlour, "sst2", "a", "--seed", "1").mistake


@pytest.mark.parametrize("name", ["sentence=", ""])
def test_predict_keeps_the_order_of_named_and_plain_texts(parlour: Parlour, name: str) -> None:
    ran = ask(parlour, "sst2", f"{name}{'x' * 80}", "a==b", "--json")
    assert [each["label"] for each in ran.document["answers"]] == ["positive", "negative"]


@pytest.mark.parametrize(
    "texts",
    [
        ["a man = a plan", "yes"],
        ["sentence2=yes", "sentence1=a man = a plan"],
        ["sentence2=yes", "a man = a plan"],
        ["a man = a plan", "sentence2=yes"],
    ],
)
def test_predict_takes_fields_in_order_or_by_name(parlour: Parlour, texts: list[str]) -> None:
    document = ask(parlour, "rte", *texts, "--json").document
    [answer] = document["answers"]
    assert answer["scores"]["no"] == pytest.approx(len("a man = a plan / yes") / 100)
    assert ask(parlour, "rte", *texts).out.splitlines()[2].endswith(" | ".join(texts))


def test_predict_takes_a_text_with_an_equals_sign(parlour: Parlour) -> None:
    def titles(*words: str) -> list[str]:
        return [answer["text"] for answer in ask(parlour, "titles", *words, "--json").document["answers"]]

    assert titles("1+1=2", "x = 3", "a == b", "a==b") == [
        "TITLE: 1+1=2",
        "TITLE: X = 3",
        "TITLE: A == B",
        "TITLE: A==B",
    ]
    assert titles("body=y=3", "--text", "z=4", "plain", "--text", "body=5") == [
        "TITLE: Y=3",
        "TITLE: PLAIN",
        "TITLE: Z=4",
        "TITLE: BODY=5",
    ]
    scores = ask(parlour, "rte", "--text", "b=2", "sentence1=a=1", "--json").document["answers"][0]["scores"]
    assert scores["no"] == pytest.approx(len("a=1 / b=2") / 100)


def test_predict_sends_images(gallery: Parlour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gallery.folder)

    def rows(*words: str) -> list[object]:
        ran = ask(gallery, *words)
        assert ran.code == 0, ran.err
        return list(gallery.service.rows[-1])

    assert rows("vqa", "a cat?", "--image", "cat.png") == [{"question": "a cat?", "image": b"cat"}]
    assert rows("vqa", "--image", "image=x=y.png", "question=a cat?") == [{"question": "a cat?", "image": b"x=y"}]
    assert rows("vqa", "a", "b", "--image", "cat.png", "--image", "x=y.png") == [
        {"question": text, "image": image} for image in (b"cat", b"x=y") for text in ("a", "b")
    ]
    both = [{"sentence": "s", "left": b"cat", "right": b"dog"}]
    assert rows("nlvr", "s", "--image", "right=dog.png", "--image", "cat.png") == both
    assert rows("nlvr", "s", "--image", "cat.png", "--image", "dog.png") == both
    assert rows("captions", "--image", "cat.png", "--stream") == [{"image": b"cat"}]


def test_predict_shows_what_differs_between_rows(gallery: Parlour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(gallery.folder)

    def inputs(*words: str) -> list[str]:
        return [line.strip().split("  ")[-1].strip() for line in ask(gallery, *words).out.splitlines()[2:]]

    two = ("--image", "cat.png", "--image", "dog.png")
    assert inputs("captions", *two) == ["cat.png", "dog.png"]
    assert inputs("vqa", "a", "b", "--image", "cat.png") == ["a", "b"]
    assert inputs("vqa", "a", *two) == ["cat.png", "dog.png"]
    assert inputs("vqa", "a", "b", *two) == ["a | cat.png", "b | cat.png", "a | dog.png", "b | dog.png"]
    assert inputs("nlvr", "s", *two) == ["s"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vqa", "a"], "this task reads 1 image: --image image=FILE; got no file for image"),
        (
            ["nlvr", "a", "--image", "cat.png"],
            "reads 2 images: --image left=FILE --image right=FILE; got no file for right",
        ),
        (["nlvr", "a", "--image", "left=cat.png"], "got no file for right"),
        (
            ["nlvr", "a", "--image", "left=cat.png", "--image", "left=dog.png"],
            "an image is given twice; give each once",
        ),
        (["nlvr", "a", *["--image", "cat.png"] * 3], "got 3 files"),
        (["vqa", "a", "--image", "picture=cat.png"], "this task has no image 'picture'; its images: image"),
        (["vqa", "a", "--image", "no.png"], "--image no.png cannot be read: No such file or directory"),
        (["vqa", "a", "--image", "http://a/b.png"], "URLs are not fetched: download the file first"),
        (["vqa", "image=cat.png"], "'image' is an image of this task: give it as --image image=cat.png"),
        (["vqa", "--image", "cat.png"], "this task takes texts: question=TEXT; got no text for question"),
        (["captions", "a", "--image", "cat.png"], "this task reads no text, only images (image); leave 'a' away"),
        (["captions"], "Missing argument 'TEXT...'"),
    ],
)
def test_predict_explains_wrong_images(
    gallery: Parlour, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(gallery.folder)
    ran = ask(gallery, *words)
    assert (ran.code, message in ran.err) == (2, True), ran.err


def test_predict_needs_a_task_that_reads_images(parlour: Parlour) -> None:
    assert "this task reads text alone; leave --image away" in ask(parlour, "sst2", "a", "--image", "cat.png").mistake


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rte", "a"], "takes one row of 2 fields: sentence1=TEXT sentence2=TEXT; got no text for sentence2"),
        (["rte", "sentence2=a"], "; got no text for sentence1"),
        (["rte", "a", "b", "c"], "got 3 texts"),
        (["rte", "sentence1=a", "b", "c"], "got 3 texts"),
        (["rte", "sentence1=a", "sentence1=b"], "a field is given twice; give each of sentence1, sentence2 once"),
        (
            ["rte", "sentence1=a", "c=b"],
            "this task has no field 'c'; its fields: sentence1, sentence2. If 'c=b' is a text",
        ),
        (["rte", "a=x", "c=y"], "this task has no field 'a'; its fields: sentence1, sentence2."),
        (
            ["sst2", "text=a"],
            "this task has no field 'text'; its fields: sentence. If 'text=a' is a text, write --text",
        ),
        (["sst3", "a"], "there is no task 'sst3'; did you mean 'sst2'?"),
        (["sst2@canary", "a"], "has no alias 'canary'; its aliases: production"),
        (["sst2:9", "a"], "has no version 9"),
        (["sst2@", "a"], "'' is no valid alias"),
        (["sst2:one", "a"], "'sst2:one' is no valid reference"),
        (["sst 2", "a"], "'sst 2' is no valid task name"),
        (["sst2", ""], "is empty; give it some text"),
        (["sst2", "fine", " \n "], "rows[1].sentence"),
        (["titles", "x" * 301], "has 301 characters, at most 300 are allowed"),
        (["sst2", "\udcff"], "rows[0]"),
        (["sst2", "a", "--timeout", "soon"], "Invalid value for '--timeout'"),
        (["sst2", "a", "--timeout", "-1"], "Invalid value for '--timeout'"),
    ],
)
def test_a_mistaken_question_is_one_line(parlour: Parlour, words: list[str], message: str) -> None:
    assert message in ask(parlour, *words).mistake


def test_predict_waits_no_longer_than_it_is_told(parlour: Parlour) -> None:
    parlour.service.slow = 30.0
    try:
        assert f"no answer from {parlour.address} within" in ask(parlour, "sst2", "a", "--timeout", "0.2").mistake
    finally:
        parlour.service.slow = 0.0


def test_a_server_and_its_registry_tell_the_same(parlour: Parlour) -> None:
    registry, server = ["--registry", parlour.folder / "registry"], ["--server", parlour.address]
    assert done("history", *server, "--json").document == done("history", *registry, "--json").document
    assert done("history", "rte", *server).out == done("history", "rte", *registry).out
    told, written = (done("tasks", *where, "--json").document for where in (server, registry))
    assert told["generation"] == written["generation"]
    for here, there in zip(told["tasks"], sorted(written["tasks"], key=lambda task: task["task"]), strict=True):
        assert here["serving"] == here["aliases"]
        for version in here["versions"]:
            assert (version.pop("resident"), version.pop("failure")) == (True, None)
        assert {name: value for name, value in here.items() if name != "serving"} == there


def test_changes_through_a_server(tmp_path: Path) -> None:
    with Parlour(tmp_path, [SST2]).open() as parlour:
        where = ["--server", parlour.address]
        second = done("publish", parlour.run(SST2, 1), *where)
        assert second.out.startswith("published sst2 version 2; callers still get version 1: sidecast promote sst2 2 ")
        undo = f"sidecast rollback sst2 --server {parlour.address} undoes it"
        told = f"sst2@production is version 2, was version 1: {undo} (generation 3)\n"
        assert done("promote", "sst2", 2, *where).out == told
        told = done("rollback", "sst2", *where, "--json").document
        assert (told["version_from"], told["version_to"], told["generation"]) == (2, 1, 4)
        assert "is in use as production" in sidecast("retire", "sst2", 1, *where).mistake
        assert done("retire", "sst2", 2, *where, "-m", "worse").out == "sst2 version 2 is retired (generation 5)\n"
        last = done("history", "sst2", *where, "--limit", 1, "--json").document[0]
        assert (last["message"], last["actions"][0]["verb"]) == ("worse", "retire")
        assert "has no version 7" in sidecast("promote", "sst2", 7, *where).mistake
        assert "there is no task 'sst3'" in sidecast("rollback", "sst3", *where).mistake
        assert "has no alias 'canary'" in sidecast("rollback", "sst2", "--alias", "canary", *where).mistake
        parlour.publish(RTE, backbone="another")
        wait_until(lambda: "does not load" in done("tasks", *where).out)
        [row] = [line for line in done("tasks", *where).out.splitlines() if line.startswith("rte")]
        assert "version 1 does not load: rte: trained on sha256:another" in row
        checks = sidecast("doctor", *where, "--json")
        assert checks.code == 1
        assert "versions of rte do not load" in checks.document["checks"][-1]["detail"]


def test_evaluate_on_a_server_takes_its_spec_and_its_limits(parlour: Parlour, tmp_path: Path) -> None:
    rows = [{"sentence1": "a", "sentence2": "b" * 90, "label": "no"}] * 7 + [
        {"sentence1": "a", "sentence2": "b", "label": "maybe"}
    ]
    data = toy.write(tmp_path / "rows.jsonl", rows)
    words = ["evaluate", "rte", "--data", data, "--server", parlour.address, "--predictions", tmp_path / "answers"]
    document = done(*words, "--json").document
    assert document["metrics"]["accuracy"] == 7 / 8
    assert list(document["intervals"]) == list(document["metrics"]) == ["accuracy", "ece"]
    assert (document["source"], document["version"], document["rows"]) == ("server", 1, 8)
    told = done(*words).out
    assert told.startswith("rte version 1: accuracy 0.8750 [")
    assert told.endswith(' on 8 rows; baseline 0.8750 (always "no")\n')
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text(encoding="utf-8").splitlines()]
    assert [each["label"] for each in answers] == ["no"] * 7 + ["yes"]
    asked = done("predict", "rte", "sentence1=a", "sentence2=b", "--server", parlour.address, "--json").document
    assert answers[-1].items() >= asked["answers"][0].items()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("sst3", "there is no task"),
        ("sst2@canary", "has no alias"),
        ("sst2:9", "no version 9"),
        ("a b", "no valid task"),
    ],
)
def test_evaluate_on_a_server_what_it_has_not(parlour: Parlour, house: House, task: str, message: str) -> None:
    rows = toy.write(house / "sst2.jsonl", [{"sentence": "a", "label": "positive"}])
    assert message in sidecast("evaluate", task, "--data", rows, "--server", parlour.address, "--json").err
