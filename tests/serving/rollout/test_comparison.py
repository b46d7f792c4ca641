"""When two answers agree, how far apart they are, and what is counted of a route's versions."""

import math
from dataclasses import replace
from typing import Any

import pytest

from ladder.answers import (
    Answer,
    ClassAnswer,
    LabelsAnswer,
    Span,
    SpansAnswer,
    TextAnswer,
    ValueAnswer,
    VectorAnswer,
)
from serving.rollout.agreement import COMPARED_TOKENS, compare, in_words
from serving.rollout.comparison import MAX_ROLLED_BACK, Comparisons, Disagreement, Routed, Window, routed_of
from serving.versions.pool import PoolState
from side_registry import TaskSpec
from side_registry.route import Bounds, Route
from tests.serving.kit import make_spec
from tests.serving.versions.test_pool import task_state

SST2 = make_spec("sst2")
STARS = make_spec("stars", kind="regression", low=1.0, high=5.0)
COUNTS = make_spec("counts", kind="regression")
TITLES = make_spec("titles", kind="text")
TAGS = make_spec("tags", kind="multilabel")
NAMES = make_spec("names", kind="token_classification")
MEANING = make_spec("meaning", kind="embedding", dimensions=2)


def classed(*scores: float, spec: TaskSpec = SST2) -> ClassAnswer:
    best = max(range(len(scores)), key=scores.__getitem__)
    return ClassAnswer(label=spec.labels[best], score=scores[best], scores=scores)


def labelled(*scores: float) -> LabelsAnswer:
    labels = tuple(label for label, score in zip(TAGS.labels, scores, strict=True) if score >= 0.5)
    return LabelsAnswer(labels=labels, scores=scores)


def valued(value: float) -> ValueAnswer:
    return ValueAnswer(value=value)


def text(words: str) -> TextAnswer:
    return TextAnswer(text=words, tokens=tuple(map(hash, words.split())))


def tagged(*edges: tuple[int, int]) -> SpansAnswer:
    spans = [Span(start=start, end=end, label="PER", score=0.9, text="x") for start, end in edges]
    return SpansAnswer(spans=tuple(spans), outside=(0.5,))


def vector(degrees: float) -> VectorAnswer:
    return VectorAnswer(values=(math.cos(math.radians(degrees)), math.sin(math.radians(degrees))))


@pytest.mark.parametrize(
    ("spec", "left", "right", "agreed", "drift"),
    [
        (SST2, classed(0.2, 0.8), classed(0.4, 0.6), True, 0.2),
        (SST2, classed(0.2, 0.8), classed(0.9, 0.1), False, 0.7),
        (SST2, classed(1.0, 0.0), classed(0.0, 1.0), False, 1.0),
        (STARS, valued(3.0), valued(3.19), True, 0.0475),
        (STARS, valued(3.0), valued(3.3), False, 0.075),
        (STARS, valued(1.0), valued(5.0), False, 1.0),
        (COUNTS, valued(1000.0), valued(999.5), True, 0.0005),
        (COUNTS, valued(1000.0), valued(-5000.0), False, 1.0),
        (COUNTS, valued(0.0), valued(0.0), True, 0.0),
        (TITLES, text("a b c d"), text("a b c d"), True, 0.0),
        (TITLES, text("a b c d"), text("a b c x"), False, 0.25),
        (TITLES, text(""), text("a"), False, 1.0),
        (MEANING, vector(0), vector(5), True, (1 - math.cos(math.radians(5))) / 2),
        (MEANING, vector(0), vector(90), False, 0.5),
        (MEANING, vector(0), vector(180), False, 1.0),
        (TAGS, labelled(0.6, 0.7), labelled(0.9, 0.8), True, 0.3),
        (TAGS, labelled(0.6, 0.7), labelled(0.4, 0.7), False, 0.2),
        (TAGS, labelled(0.1, 0.2), labelled(0.1, 0.2), True, 0.0),
        (NAMES, tagged((0, 3), (4, 7)), tagged((0, 3), (4, 7)), True, 0.0),
        (NAMES, tagged((0, 3), (4, 7)), tagged((0, 3), (4, 9)), False, 0.5),
        (NAMES, tagged((0, 3)), tagged(), False, 1.0),
        (NAMES, tagged(), tagged(), True, 0.0),
        (SST2, classed(0.2, 0.8), valued(0.8), False, 1.0),
        (MEANING, vector(0), VectorAnswer(values=(1.0, 0.0, 0.0)), False, 1.0),
    ],
)
def test_answers_agree_by_their_kind(spec: TaskSpec, left: Answer, right: Answer, agreed: bool, drift: float) -> None:
    for pair in (((spec, left), (spec, right)), ((spec, right), (spec, left))):
        assert compare(*pair) == (agreed, pytest.approx(drift))


def test_labels_are_compared_by_name_and_not_by_place() -> None:
    turned = make_spec("sst2", labels=("positive", "negative"))
    more = make_spec("sst2", labels=("negative", "neutral", "positive"))
    said = (SST2, classed(0.2, 0.8))
    assert compare(said, (turned, classed(0.8, 0.2, spec=turned))) == (True, pytest.approx(0.0))
    assert compare(said, (more, classed(0.1, 0.3, 0.6, spec=more))) == (True, pytest.approx(0.3))


def test_of_long_texts_the_first_tokens_tell_how_far_apart_they_are() -> None:
    same = "a b " * COMPARED_TOKENS
    assert compare((TITLES, text(same + "x")), (TITLES, text(same + "y"))) == (False, 0.0)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (classed(0.2, 0.8), "positive (0.80)"),
        (valued(3.14159), "3.142"),
        (text("a b"), "a b"),
        (VectorAnswer(values=(0.5,) * 8), "[0.500, 0.500, 0.500, 0.500, ...] (8 numbers)"),
    ],
)
def test_answers_in_words(answer: Answer, words: str) -> None:
    assert in_words(answer) == words


ROUTE = Route(shares={7: 500}, shadows=(8,), bounds=Bounds(disagreement=0.1))


def test_a_window_counts_each_version_for_itself() -> None:
    window = Window(Routed(6, ROUTE, since=41))
    window.answered(6, 3, 1, 0.2)
    window.answered(6, 1, 0, 0.4)
    window.answered(7, 2, 0, 0.5)
    window.asked(8, failed=False)
    window.asked(8, failed=True)
    window.add_device_time(8, 0.01)
    window.dropped(8, 5)
    window.compare(8, "p", (SST2, classed(0.2, 0.8)), (SST2, classed(0.4, 0.6)))
    window.compare(8, "p", (SST2, classed(0.2, 0.8)), (SST2, classed(0.6, 0.4)))
    own, canary, shadow = window.comparisons()
    assert (own.version, own.answers, own.rows, own.failed, own.answered) == (6, True, 4, 1, 4)
    assert own.latency_seconds == pytest.approx(0.3)
    assert (canary.version, canary.answers, canary.rows, canary.latency_seconds) == (7, True, 2, 0.5)
    assert (canary.compared, canary.drift, canary.disagreement, canary.cost_seconds) == (0, 0.0, 0.0, 0.0)
    assert (shadow.version, shadow.answers, shadow.rows, shadow.failed, shadow.dropped) == (8, False, 2, 1, 5)
    assert (shadow.compared, shadow.agreed, shadow.disagreement, shadow.error_rate) == (2, 1, 0.5, 0.5)
    assert (shadow.drift, shadow.cost_seconds) == (pytest.approx(0.3), 0.005)
    assert (shadow.latency_seconds, shadow.answered) == (0.0, 0)


def test_a_request_that_was_left_counts_as_no_less_than_the_mean_and_never_as_failed() -> None:
    window = Window(Routed(6, ROUTE))
    window.abandoned(7, 2, 0.5)
    window.answered(7, 1, 0, 0.5)
    window.abandoned(7, 1, 0.001)  # by a caller in a hurry
    window.abandoned(7, 3, 2.5)
    seen = window.comparison(7)
    assert (seen.rows, seen.failed, seen.error_rate, seen.answered) == (1, 0, 0.0, 7)
    assert seen.latency_seconds == pytest.approx((0.5 + 0.5 + 0.5 + 2.5) / 4)


def test_windows_of_routes_that_are_over_or_changed_are_forgotten() -> None:
    routes = Routes(production=Routed(6, ROUTE, 41), canary=Routed(6, ROUTE, 42), other=Routed(6, ROUTE, 43))
    comparisons = Comparisons(routes, kept=5)
    for alias in ("production", "canary", "other"):
        window = comparisons.window("sst2", alias)
        assert window is not None
        disagree(window, "what a caller wrote")
    del routes.now["sst2", "canary"]
    routes.now["sst2", "other"] = Routed(6, ROUTE, 44)
    comparisons.forget_gone()
    assert list(comparisons._windows) == [("sst2", "production")]
    kept = comparisons.read("sst2", "production")
    assert kept is not None
    assert len(kept.disagreements) == 1


def disagree(window: Window, prompt: str) -> None:
    window.compare(8, prompt, (SST2, classed(0.25, 0.75)), (SST2, classed(0.75, 0.25)))


def test_the_newest_disagreements_are_kept_where_inputs_may_be() -> None:
    keeping, forgetting = Window(Routed(6, ROUTE), kept=2), Window(Routed(6, ROUTE))
    for window in (keeping, forgetting):
        window.compare(8, "agreed", (SST2, classed(0.25, 0.75)), (SST2, classed(0.25, 0.75)))
        for prompt in ("a", "b", "c"):
            disagree(window, prompt)
    assert not forgetting.disagreements()
    newest, older = keeping.disagreements()
    assert isinstance(newest, Disagreement)
    assert (newest.prompt, older.prompt) == ("c", "b")
    assert (newest.version, newest.expected, newest.found) == (8, "positive (0.75)", "negative (0.75)")
    assert newest.drift == 0.5


class Routes:
    """What aliases' traffic is, as a test sets it."""

    def __init__(self, **aliases: Routed) -> None:
        self.now: dict[tuple[str, str], Any] = {("sst2", alias): routed for alias, routed in aliases.items()}

    def __call__(self, task: str, alias: str) -> Routed | None:
        return self.now.get((task, alias))


def test_a_route_that_changes_begins_a_new_window() -> None:
    routes = Routes(production=Routed(6, ROUTE, 41))
    comparisons = Comparisons(routes, kept=5)
    first = comparisons.window("sst2", "production")
    assert first is not None
    disagree(first, "a")
    assert comparisons.window("sst2", "production") is first
    before = comparisons.read("sst2", "production")
    assert before is not None
    assert (before.version, before.since, before.keeps_inputs, len(before.disagreements)) == (6, 41, True, 1)
    assert [each.version for each in before.comparisons] == [6, 7, 8]
    for changed in (Routed(6, ROUTE, 42), Routed(5, ROUTE, 42), Routed(5, Route(shadows=(8,)), 42)):
        routes.now["sst2", "production"] = changed
        after = comparisons.read("sst2", "production")
        assert after is not None
        assert (after.version, after.since, after.disagreements) == (changed.version, 42, ())
        assert not any(each.compared for each in after.comparisons)
        window = comparisons.window("sst2", "production")
        assert window is not None
        disagree(window, "b")
    disagree(first, "an answer of before, late")
    assert [each.prompt for each in (comparisons.read("sst2", "production") or before).disagreements] == ["b"]


def test_the_comparison_of_a_rollback_is_kept_until_the_next_route() -> None:
    before = Routed(6, ROUTE, 41)
    routes = Routes(production=before)
    comparisons = Comparisons(routes, kept=5)
    window = comparisons.window("sst2", "production")
    assert window is not None
    disagree(window, "a")
    assert comparisons.rolled_back("sst2", "production") is None
    comparisons.keep("sst2", "production", window, "it differs", 42)
    for now in (before, None, Routed(6, Route(shadows=ROUTE.shadows), 42)):
        routes.now["sst2", "production"] = now
        comparisons.forget_gone()
        kept = comparisons.rolled_back("sst2", "production")
        assert kept is not None
        assert (kept.why, kept.generation, kept.routed) == ("it differs", 42, before)
        assert [each.compared for each in kept.comparisons] == [0, 0, 1]
        assert [each.prompt for each in kept.disagreements] == ["a"]
    routes.now["sst2", "production"] = Routed(6, ROUTE, 43)
    assert comparisons.rolled_back("sst2", "production") is None
    comparisons.forget_gone()
    routes.now["sst2", "production"] = None
    assert comparisons.rolled_back("sst2", "production") is None


def test_only_the_newest_rollbacks_are_kept() -> None:
    comparisons = Comparisons()
    for number in range(MAX_ROLLED_BACK + 1):
        comparisons.keep(f"task-{number}", "production", Window(Routed(6, ROUTE)), "", 1)
    assert comparisons.rolled_back("task-0", "production") is None
    assert comparisons.rolled_back("task-1", "production") is not None
    assert len(comparisons._rolled_back) == MAX_ROLLED_BACK


def test_an_alias_without_a_route_has_no_comparisons() -> None:
    routes = Routes(production=Routed(6, ROUTE, 41))
    comparisons = Comparisons(routes)
    assert comparisons.read("sst2", "canary") is None
    assert comparisons.read("made-up", "production") is None
    assert comparisons.read("sst2", "production") is not None
    del routes.now["sst2", "production"]
    assert comparisons.read("sst2", "production") is None
    assert not comparisons._windows
    assert Comparisons().read("sst2", "production") is None


def test_the_route_is_the_registrys_whatever_is_resident() -> None:
    task = task_state(8, {"production": (5, 6), "other": (6,)}, routes={"production": ROUTE})
    state = PoolState(tasks={"sst2": task})
    assert routed_of(state, "sst2", "production") == Routed(6, ROUTE, task.routed["production"])
    assert routed_of(state, "sst2", "other") is None
    assert routed_of(state, "gone", "production") is None
    assert routed_of(PoolState(tasks={"sst2": replace(task, routed={})}), "sst2", "production") == Routed(6, ROUTE, 0)
