"""Closed and open loops before a server that is a function; windows, caps, deadlines, and how a load ends."""

import asyncio
import itertools
from typing import Any

import pytest

from sidecast.loadtest.inputs import Request
from sidecast.loadtest.measure import Call, Failure
from sidecast.loadtest.plan import Closed, Level, NothingAnswered, Open, Plan
from sidecast.loadtest.report import check_answered, make_document, tables
from sidecast.loadtest.runner import NOT_SENT, Ran, Runner, Steady
from sidecast.loadtest.scrape import ScrapeError
from tests.serving.scheduler.batch_kit import virtually

GONE = Failure("UNAVAILABLE", "UNREACHABLE", "no answer from nowhere")


class Desk:
    """Answers each request after a while, and sees how many are there at a time."""

    def __init__(self, seconds: float = 0.005, failure: Failure | None = None) -> None:
        self.seconds, self.failure = seconds, failure
        self.present = self.most = 0
        self.timeouts: list[float] = []

    async def __call__(self, request: Request, call: Call, timeout: float) -> Failure | None:  # noqa: ASYNC109
        self.present += 1
        self.most = max(self.most, self.present)
        self.timeouts.append(timeout)
        await asyncio.sleep(self.seconds)
        self.present -= 1
        return self.failure


class Everything:
    """Inputs without end."""

    came_round: tuple[int, ...] = ()

    def __iter__(self) -> "Everything":
        return self

    def __next__(self) -> Request:
        return Request(("sst2",), ("a", "b"))


def plan(*levels: Level, **changes: Any) -> Plan:
    return Plan(levels=levels, **{"duration_s": 0.2, "warmup_s": 0.05} | changes)


def run(made: Plan, desk: Desk, **how: Any) -> list[Ran]:
    """In virtual time: what is counted does not depend on how busy the machine is."""

    async def inside() -> list[Ran]:
        return await Runner(made, Everything(), desk, clock=asyncio.get_running_loop().time, **how).run()

    return virtually(inside())


def document(made: Plan, levels: Any) -> Any:
    return make_document(made, [], Everything(), levels)  # type: ignore[arg-type]


def test_closed_loops_keep_their_callers_busy_level_after_level() -> None:
    desk, told = Desk(), []
    made = plan(Closed(1), Closed(7))
    one, seven = run(made, desk, tell=lambda level, seconds, ended: told.append(level))
    assert (one.most_in_flight, seven.most_in_flight, desk.most, desk.present) == (1, 7, 7, 0)
    assert set(told) == {Closed(1), Closed(7)}
    assert one.calls[0].due < one.window.begins <= one.calls[-1].due < one.window.ends
    first, second = document(made, [one, seven])["levels"]
    assert first["requests"] == first["answered"] == sum(call.due in one.window for call in one.calls)
    assert first["rows_per_s"] == 2 * first["requests_per_s"]
    assert (second["name"], second["mode"], second["concurrency"], second["rate"]) == ("7 callers", "closed", 7, None)


def test_an_open_loop_sends_by_its_own_clock() -> None:
    made = plan(Open(100, "constant"))
    [ran] = run(made, Desk(0.05))
    dues = sorted(call.due for call in ran.calls)
    assert len(dues) == 25
    assert [later - sooner for sooner, later in itertools.pairwise(dues)] == pytest.approx([0.01] * 24)
    assert sorted(call.sent for call in ran.calls) == pytest.approx(dues)


class SlowFirst(Desk):
    """The first request takes longest."""

    async def __call__(self, request: Request, call: Call, timeout: float) -> Failure | None:  # noqa: ASYNC109
        if not self.timeouts:
            self.timeouts.append(timeout)
            await asyncio.sleep(0.3)
            return None
        return await super().__call__(request, call, timeout)


async def test_a_steady_window_begins_when_every_caller_has_ended_a_call() -> None:
    made = plan(Closed(3), warmup_s=0.01)
    [ran] = await Runner(made, Everything(), SlowFirst(), steady=Steady()).run()
    first = min(ran.calls, key=lambda call: call.sent)
    assert first.latency >= 0.3
    assert first.ended <= ran.window.begins
    assert ran.window.seconds >= 0.2
    [plain] = await Runner(made, Everything(), SlowFirst()).run()
    assert plain.window.begins < min(plain.calls, key=lambda call: call.sent).ended


@pytest.mark.parametrize(("longest_s", "enough"), [(60.0, True), (0.1, False)])
async def test_a_steady_window_lasts_until_there_are_calls_of_every_caller_but_not_for_ever(
    longest_s: float, enough: bool
) -> None:
    made = plan(Closed(2), warmup_s=0.01, duration_s=0.01)
    [ran] = await Runner(made, Everything(), Desk(0.08), steady=Steady(calls=3, longest_s=longest_s)).run()
    ended = sum(call.ended in ran.window for call in ran.calls)
    assert (ended >= 6) == enough
    assert ran.window.seconds < 30


async def test_a_steady_window_of_failures_ends_too() -> None:
    failing = Desk(0.0, Failure("RESOURCE_EXHAUSTED", "OVERLOADED", "full"))
    made = plan(Closed(2), duration_s=0.01)
    [ran] = await Runner(made, Everything(), failing, steady=Steady()).run()
    assert sum(call.ended in ran.window for call in ran.calls) >= 6


async def test_an_open_loops_load_goes_on_after_its_window_where_it_is_to() -> None:
    made = plan(Open(100, "constant"))
    [ran] = await Runner(made, Everything(), Desk(), tail_s=0.1).run()
    assert len(ran.calls) == 35
    assert sum(call.due in ran.window for call in ran.calls) == pytest.approx(20, abs=1)
    assert max(call.due for call in ran.calls) > ran.window.ends


def test_latency_counts_from_when_a_request_was_due() -> None:
    """A server that stalls is seen by all that should have asked meanwhile: no coordinated omission."""
    made = plan(Open(100, "constant"), max_in_flight=1, warmup_s=0)
    [ran] = run(made, Desk(0.05))
    assert (len(ran.calls), ran.most_in_flight) == (20, 1)
    for number, call in enumerate(sorted(ran.calls, key=lambda each: each.due)):
        assert call.latency >= 0.05 * (number + 1) - 0.01 * number - 1e-3  # the queue, though it stood on our side
    [note] = document(made, [ran])["notes"]
    assert note == "100/s: all 1 requests of --max-in-flight were under way; those due meanwhile waited here"


def test_the_deadline_too_counts_from_when_a_request_was_due() -> None:
    desk = Desk(0.05)
    made = plan(Open(100, "constant"), max_in_flight=1, warmup_s=0, timeout_s=0.1)
    [ran] = run(made, desk)
    assert max(desk.timeouts) <= 0.1
    assert NOT_SENT in [call.failure for call in ran.calls]
    assert len(ran.calls) == 20


def test_what_was_sent_is_waited_for() -> None:
    made = plan(Closed(3), duration_s=0.05, warmup_s=0)
    [ran] = run(made, Desk(0.15))
    [level] = document(made, [ran])["levels"]
    assert (level["requests"], level["answered"], level["requests_per_s"]) == (3, 3, 0)
    assert level["latency_ms"]["p50"] >= 100
    assert document(made, [ran])["notes"] == ["3 callers: only 3 requests in its window; give it a longer --duration"]


def test_a_failing_caller_takes_a_breath() -> None:
    desk = Desk(0.0, Failure("RESOURCE_EXHAUSTED", "OVERLOADED", "full"))
    made = plan(Closed(2))
    [ran] = run(made, desk)
    assert len(ran.calls) <= 2 * 26
    [level] = document(made, [ran])["levels"]
    assert (level["shed"], level["answered"]) == (level["requests"], 0)
    with pytest.raises(NothingAnswered, match=r"no request was answered: \d+ OVERLOADED \(full\)"):
        check_answered([ran])


def test_a_server_that_goes_away_ends_the_load() -> None:
    desk = Desk()
    made = plan(Closed(2), Closed(3), Closed(4))

    def tell(level: Level, seconds: float, ended: int) -> None:
        desk.failure = GONE if level == Closed(3) else None

    levels = run(made, desk, tell=tell)
    check_answered(levels)
    assert [ran.lost for ran in levels] == [False, True]
    told = document(made, levels)
    assert told["notes"] == ["the server has gone; what comes after was left out"]
    assert [title for title, _, _ in tables(told)] == ["What callers saw", "Errors"]


async def test_a_cancelled_load_tells_what_was_seen() -> None:
    made = plan(Closed(2), Closed(4), duration_s=30.0, warmup_s=0)
    enough = asyncio.Event()

    def tell(level: Level, seconds: float, ended: int) -> None:
        if ended > 10:
            enough.set()

    load = asyncio.create_task(Runner(made, Everything(), Desk(), tell=tell).run())
    await enough.wait()
    load.cancel()
    levels = await load
    assert [ran.interrupted for ran in levels] == [True]
    assert levels[0].window.seconds < 30
    told = document(made, levels)
    assert told["interrupted"]
    assert told["levels"][0]["answered"] > 10
    assert told["notes"][-1] == "1 of 2 levels were left out"
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_without_metrics_the_callers_figures_are_there() -> None:
    def scrape() -> Any:
        raise ScrapeError("http://127.0.0.1:1/metrics: refused")

    made = plan(Closed(2))
    levels = await Runner(made, Everything(), Desk(), scrape).run()
    told = document(made, levels)
    assert told["levels"][0]["server"] is None
    assert told["levels"][0]["answered"] > 0
    said = "without the server's metrics, so without stages: http://127.0.0.1:1/metrics: refused"
    assert [note for note in told["notes"] if note.startswith(said)]


def test_a_busy_client_says_so() -> None:
    made = plan(Closed(1))
    levels = run(made, Desk())
    levels[0].cpu_share = 0.97
    said = "1 caller: this client used 97% of a core, and may be the slower part; run several beside each other"
    assert said in document(made, levels)["notes"]
