"""The guard of `examples/guard`: what its policy decides, which policies are refused, and what its rows are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from demo.folders import DemoError
from demo.ratings import Snippet
from examples.guard.guard import POLICY, check, check_labels
from examples.guard.personal import COPIES, LABELS, personal_rows, read_package
from examples.guard.policy import Policy, PolicyError, Rule, read_policy
from examples.guard.tasks import RATED, rated_tasks, read_glue
from sidecast import Classification, Regression, SideFailedError, Span, TokenClassification

BLOCK = Rule(task="tone", label="heated", threshold=0.9, action="block")
ROUTE = Rule(task="topic", label="product", threshold=0.5, action="route", to="shop")
LATER = Rule(task="topic", label="film", threshold=0.1, action="route", to="cinema")
FAILED = SideFailedError("it answered NaN")


def answers(heated: float = 0.0, product: float = 0.0) -> dict[str, dict[str, float]]:
    film = 1 - product
    return {"tone": {"calm": 1 - heated, "heated": heated}, "topic": {"film": film, "product": product}}


def test_a_block_wins_over_an_earlier_route_and_of_routes_the_first_counts() -> None:
    policy = Policy(rules=[ROUTE, LATER, BLOCK])
    assert str(policy.decide(answers(heated=0.9, product=0.6))) == "block: tone, heated 0.90"
    assert str(policy.decide(answers(heated=0.89, product=0.6))) == "route to shop: topic, product 0.60"
    assert policy.decide(answers(product=0.4)).to == "cinema"
    assert str(Policy(rules=[BLOCK]).decide(answers())) == "allow: no rule applies"


def test_a_classifier_that_fails_blocks_or_is_passed_over() -> None:
    failed = {**answers(product=0.6), "tone": FAILED}
    assert "tone failed" in Policy(rules=[BLOCK, ROUTE]).decide(failed).cause
    assert Policy(rules=[BLOCK, ROUTE], on_error="allow").decide(failed).to == "shop"
    assert Policy(rules=[ROUTE]).decide(failed).to == "shop", "no rule names the one that failed"


def test_an_unknown_task_or_label_says_what_there_is() -> None:
    with pytest.raises(PolicyError, match="names the task tone; the group has topic"):
        Policy(rules=[BLOCK]).decide({"topic": {"film": 1.0}})
    with pytest.raises(PolicyError, match="names the label heated; tone has calm"):
        Policy(rules=[BLOCK]).decide({"tone": {"calm": 1.0}})


RULE = 'task = "tone"\nlabel = "heated"\nthreshold = 0.9\naction = "block"\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"[[rule]]\n{RULE}".replace("0.9", "1.5"), "threshold of tone, heated must be 0 to 1, got 1.5"),
        (f"[[rule]]\n{RULE}".replace("0.9", '"high"'), "must be 0 to 1, got 'high'"),
        (f"[[rule]]\n{RULE}".replace("0.9", "nan"), "must be 0 to 1, got nan"),
        (f"[[rule]]\n{RULE}".replace("block", "drop"), "must be block or route, got 'drop'"),
        (f"[[rule]]\n{RULE}".replace("block", "route"), "a route needs `to`"),
        (f"[[rule]]\n{RULE}treshold = 1", "rule 1 has the unknown setting treshold"),
        ("[[rule]]\n" + RULE.replace("threshold = 0.9\n", ""), "rule 1 lacks threshold"),
        (f'on_error = "ask"\n[[rule]]\n{RULE}', "on_error must be block or allow"),
        (f"[[rules]]\n{RULE}", "unknown setting rules"),
        ("", "at least one"),
        ("rule = 1", "at least one"),
        ("rule = [1]", "rule 1 is no table"),
        ("=", "cannot be read"),
    ],
)
def test_a_wrong_policy_is_one_error(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(PolicyError, match=why):
        read_policy(tmp_path / "policy.toml")


def test_the_policy_of_the_example_fits_its_tasks() -> None:
    rules = read_policy(POLICY).rules
    labels = {name: labels for name, (labels, _) in RATED.items()} | {"personal": LABELS}
    assert all(rule.label in labels[rule.task] for rule in rules)


def test_a_request_is_one_call_of_the_group() -> None:
    calls: list[tuple[str, list[str]]] = []

    def predict_group(group: str, rows: list[str]) -> dict[str, Any]:
        calls.append((group, rows))
        return {"tone": [Classification("heated", 0.95, {"calm": 0.05, "heated": 0.95})], "topic": FAILED}

    client: Any = SimpleNamespace(predict_group=predict_group)
    assert check(client, Policy(rules=[BLOCK]), "no!").action == "block"
    assert calls == [("guard", ["no!"])]
    client.predict_group = lambda group, rows: {"tone": [Regression(0.5)]}
    with pytest.raises(PolicyError, match="tone finds neither labels nor entities"):
        check(client, Policy(rules=[BLOCK]), "no!")


def test_of_entities_the_highest_score_of_a_label_counts() -> None:
    spans = (Span(0, 2, "card", 0.6, "12"), Span(3, 5, "card", 0.9, "34"), Span(6, 7, "name", 1.0, "X"))
    found = {"personal": [TokenClassification(spans)], "none": [TokenClassification(())]}
    client: Any = SimpleNamespace(
        predict_group=lambda group, rows: found,
        task=lambda name: SimpleNamespace(spec=SimpleNamespace(labels=("card", "name"))),
    )
    rules = [Rule(task=task, label="card", threshold=0.8, action="block") for task in ("none", "personal")]
    assert str(check(client, Policy(rules=rules), "12 34 X")) == "block: personal, card 0.90"
    assert check(client, Policy(rules=rules[:1]), "12 34 X").action == "allow"
    check_labels(client, Policy(rules=rules))
    with pytest.raises(PolicyError, match="names the label cart; personal has card, name"):
        check_labels(client, Policy(rules=[Rule(task="personal", label="cart", threshold=0.8, action="block")]))


PEOPLE = [
    {"GivenName": f"Ann{n}", "Surname": "Lee", "StreetAddress": f"{n} High St", "ZipCode": "1", "City": "Rome"}
    for n in range(40)
]


def test_spans_are_what_was_filled_in_and_test_rows_have_other_people_and_sentences() -> None:
    templates = [
        f"{{{{first_name}}}} of {{{{city}}}} wrote {n}: {{{{address}}}}, {{{{credit_card_number}}}}." for n in range(20)
    ]
    rows = personal_rows([*templates, "nobody"], PEOPLE)
    assert rows == personal_rows([*templates, "nobody"], PEOPLE)
    names: dict[str, set[str]] = {}
    for part, filled in rows.items():
        for row in filled:
            found = [(span["label"], row["sentence"][span["start"] : span["end"]]) for span in row["spans"]]
            if row["sentence"] == "nobody":
                assert not found
                continue
            assert [label for label, _ in found] == ["person", "address", "card"]
            assert found[0][1].startswith("Ann")
            assert found[1][1].endswith(" High St, 1 Rome")
            names.setdefault(part, set()).add(found[0][1])
    assert not names["train"] & names["test"]
    assert sum(map(len, rows.values())) == 20 * COPIES + 1


def test_a_package_that_is_another_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"")
    with pytest.raises(DemoError, match=r"x\.whl is not what it should be"):
        read_package(tmp_path / "x.whl")


def test_rows_of_the_rated_tasks_have_the_labels_of_their_spec_and_no_text_twice() -> None:
    ratings = {
        source: [
            Snippet(f"{number}_1", rating, f"{source} says {number}{mark}")
            for number, (rating, mark) in enumerate([(-3.0, "?"), (0.2, "."), (0.7, "?"), (2.5, "!")] * 10)
        ]
        for source in ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")
    }
    for task in rated_tasks(ratings):
        texts = [row["sentence"] for rows in task.rows.values() for row in rows]
        labels = {row["label"] for row in task.rows["train"]}
        assert labels == set(task.spec.labels), task.spec.name
        assert len(texts) == len(set(texts))
        if task.spec.name == "question":
            assert not any(text.endswith(("?", ".", "!")) for text in texts)


def test_a_folder_without_glue_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"cola.train\.jsonl cannot be read .*; give --data a folder"):
        read_glue(tmp_path, "cola")
