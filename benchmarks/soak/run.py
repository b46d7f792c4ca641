"""Runs the soak: a server, its callers and the registry's changes, in rounds; then audits the recorded answers."""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.models import Loaded
from benchmarks.harness.samples import BenchmarkError, Step
from benchmarks.harness.secured import Issuer
from benchmarks.harness.served import Served, free_port, serve
from benchmarks.soak.audit import Fault, audit
from benchmarks.soak.churn import Change, Churn
from benchmarks.soak.load import Record, calling, read_records
from benchmarks.soak.oracle import Oracle, distance
from benchmarks.soak.trouble import Troubles, troubling, write_asked
from benchmarks.soak.versions import make_spec, make_version
from benchmarks.soak.vitals import Watch, look, watching
from serving.client import Client
from side_registry import KINDS, Registry
from sidecast.loadtest.sentences import SENTENCES

SETTLE_S = 30.0
"""Longest time until the server must serve a change."""
POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Size of the soak. A round is a steady half, as long as `changes` pauses, and a half with `changes` changes."""

    tasks: int = 8
    rounds: int = 10
    """Without the warm-up round, which is audited but not measured."""
    changes: int = 100
    """Of a round."""
    pause_s: float = 0.25
    """Before each change."""
    rushes: bool = False
    """Do not wait until the last change is served: the server loads all the time."""
    rate: float = 12.0
    """Requests a second."""
    fewest: int = 0
    """Minimum number of requests."""
    texts: int = 32
    seed: int = 0
    secured: bool = False
    """TLS and tokens, callers over HTTP too, callers that are killed, certificates and tokens that are renewed."""
    trouble_s: float = 20.0
    """Time between two callers that are killed, and between two renewals, in seconds."""


@dataclass(frozen=True, slots=True)
class Span:
    """From one time.monotonic() to another."""

    began: float
    ended: float

    def holds(self, record: Record) -> bool:
        """Whether an answer began and ended within the span."""
        return self.began <= record.started and record.ended <= self.ended

    def touches(self, record: Record) -> bool:
        """Whether an answer overlaps the span."""
        return record.started <= self.ended and self.began <= record.ended

    def shifted(self, seconds: float) -> "Span":
        """The span that much later."""
        return Span(self.began + seconds, self.ended + seconds)


@dataclass(frozen=True, slots=True)
class Round:
    """The spans of one round."""

    steady: Span
    changing: Span
    swaps: Sequence[Span]
    """From before the commit of each change until the server served it."""
    loads: Sequence[Span]
    """Those swaps for which the server loaded a version, or tried to."""


@dataclass
class Outcome:
    """Result of a soak after its warm-up; `records`, `changes` and `faults` include the warm-up."""

    records: list[Record]
    changes: list[Change]
    watch: Watch
    rounds: list[Round]
    after: Span
    """The time after the last round, without changes, as long as the steady half of a round."""
    troubles: Troubles = field(default_factory=Troubles)
    refusals: int = 0
    """Calls that the server refused by the audit log."""
    faults: list[Fault] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    """`Oracle.apart` of each task that was answered by two versions or more."""

    @property
    def apart(self) -> float:
        """The smallest share of all tasks; 0 if no task was answered by two versions."""
        return min(self.shares.values(), default=0.0)


class Soak:
    """A server, its callers and its registry's writer.

    Args:
        folder: for the registry and the records; a long soak needs hundreds of megabytes.
    """

    def __init__(self, loaded: Loaded, folder: Path, plan: Plan, threads: int = 0) -> None:
        self._loaded, self._folder, self._plan, self._threads = loaded, folder, plan, threads
        self.registry = Registry.open(folder / "registry", create=True)
        self.churn = Churn(self.registry, plan.tasks, self._make, plan.seed)
        self._made = 0
        draw = random.Random(plan.seed)
        self._texts = [f"{number}. {draw.choice(SENTENCES)}" for number in range(plan.texts)]

    def run(self, step: Step = lambda name: None) -> Outcome:
        """Run all rounds and audit the answers.

        Raises:
            BenchmarkError: the server or the load process failed, or a change was not served.
            Exception: the error that ended the watching of the server.
        """
        step("start")
        self.churn.start()
        self._prepare()
        specs = [make_spec(number) for number in range(self._plan.tasks)]
        records = self._folder / "records.jsonl"
        tasks = [spec.name for spec in specs]
        text_tasks = [spec.name for spec in specs if KINDS[spec.kind].makes_text]
        plan, asked = self._plan, self._folder / "asked.json"
        issuer = Issuer(self._folder / "access") if plan.secured else None
        with self._serve(issuer) as served, ExitStack() as stack:
            self._warm(served, tasks)
            what = {"address": served.address, "tasks": tasks, "text_tasks": text_tasks, "texts": self._texts}
            write_asked(asked, what, issuer, served.http_url)
            watch = stack.enter_context(watching(served, lambda: len(self.churn.changes)))
            troubles = Troubles()
            with calling(asked, plan.rate, plan.seed, records, plan.fewest), ExitStack() as trouble:
                if issuer:
                    troubles = trouble.enter_context(troubling(issuer, asked, plan.trouble_s, plan.seed))
                step("warm-up")
                self._round(watch)
                watch.vitals[:] = [look(served, len(self.churn.changes))]
                rounds = []
                for number in range(self._plan.rounds):
                    step(f"round {number + 1}")
                    rounds.append(self._round(watch))
                after = self._rest()
                watch.vitals.append(look(served, len(self.churn.changes)))
        step("audit")
        outcome = Outcome(read_records(records), self.churn.changes, watch, rounds, after, troubles)
        if issuer:
            outcome.refusals = issuer.refusals()
        return self._judge(outcome)

    @contextmanager
    def _serve(self, issuer: Issuer | None) -> Iterator[Served]:
        settings = {"registry": self._folder / "registry", **self._loaded.settings(self._threads)}
        if issuer is None:
            with serve(**settings) as served:
                yield served
            return
        with serve(issuer.operator, http_port=free_port(), **settings, **issuer.settings()) as served:
            yield served

    def _make(self, number: int, broken: bool) -> Path:
        self._made += 1
        return make_version(self._folder / "runs" / str(self._made), self._loaded, number, self._made, broken=broken)

    def _prepare(self) -> None:
        """Make all run folders before the server starts: making them later would take CPU time from the server."""
        changes = self._plan.changes * (self._plan.rounds + 1) // self._plan.tasks
        self.churn.prepare(changes // 3 + 4, changes // 30 + 2)

    def _warm(self, served: Served, tasks: Sequence[str]) -> None:
        """Ask all inputs once, so that all are cached: a later backbone pass is then caused by a change."""
        with Client(served.address, **served.client()) as client:
            for _ in range(2):
                client.predict_tasks(tasks, self._texts)

    def _round(self, watch: Watch) -> Round:
        plan = self._plan
        steady = self._rest()
        began, changes = time.monotonic(), []
        for _ in range(plan.changes):
            time.sleep(plan.pause_s)
            changes.append(self.churn.step())
            if not plan.rushes:
                self._settle(watch, changes[-1].generation)
        self._settle(watch, changes[-1].generation)
        swaps = [Span(change.began, watch.served(change.generation) or change.ended) for change in changes]
        loads = [swap for swap, change in zip(swaps, changes, strict=True) if self._loads(change)]
        return Round(steady, Span(began, time.monotonic()), swaps, loads)

    def _loads(self, change: Change) -> bool:
        """Whether the server loads a version. It retries a refused version whenever the task changes."""
        refused = {version for task, version in self.churn.broken if task == change.task}
        return change.verb == "publish" or not refused.isdisjoint(change.live)

    def _rest(self) -> Span:
        began = time.monotonic()
        time.sleep(self._plan.changes * self._plan.pause_s)
        return Span(began, time.monotonic())

    def _settle(self, watch: Watch, generation: int) -> None:
        deadline = time.monotonic() + SETTLE_S
        while watch.served(generation) is None:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"generation {generation} was not served within {SETTLE_S:.0f} s")
            time.sleep(POLL_S)

    def _judge(self, outcome: Outcome) -> Outcome:
        oracle = Oracle(self.registry, self._loaded, self._texts)

        def off(record: Record) -> float:
            if len(record.answers) != len(record.inputs):
                return float("inf")
            expected = oracle.answers(record.task, record.version)
            pairs = zip(record.answers, record.inputs, strict=True)
            return max(distance(answer, expected[index]) for answer, index in pairs) / oracle.tolerance

        outcome.faults += audit(outcome.records, outcome.changes, outcome.watch.sightings, off)
        versions: dict[str, set[int]] = {}
        for record in outcome.records:
            if not record.reason:
                versions.setdefault(record.task, set()).add(record.version)
        outcome.shares = {
            task: oracle.apart(task, sorted(numbers)) for task, numbers in versions.items() if len(numbers) > 1
        }
        return outcome
