"""The soak itself: a server, its callers, its registry's changes, in rounds; and what is left of it to be judged."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness import BenchmarkError, Step
from benchmarks.models import Loaded
from benchmarks.served import Served, serve
from benchmarks.soak.audit import Fault, audit
from benchmarks.soak.churn import Change, Churn
from benchmarks.soak.load import Told, calling, read_told
from benchmarks.soak.oracle import Oracle, distance
from benchmarks.soak.versions import make_spec, make_version
from benchmarks.soak.vitals import Watch, look, watching
from serving.client import Client
from side_registry import KINDS, Registry
from sidecast.loadtest.sentences import SENTENCES

SETTLE_S = 30.0
"""Longest that the server may take to serve the last change of a round."""
POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long, and how hard. A round is `changes` pauses without a change, and these."""

    tasks: int = 8
    rounds: int = 10
    """Besides the first one, which warms up and counts for correctness alone."""
    changes: int = 100
    """Of a round."""
    pause_s: float = 0.25
    """Before each change."""
    rushes: bool = False
    """A change need not wait until the last one is served: the server loads all the time."""
    rate: float = 12.0
    """Requests a second."""
    fewest: int = 0
    """Requests that are sent in any case, however soon the changes are made."""
    texts: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """From one time.monotonic() to another."""

    began: float
    ended: float

    def holds(self, told: Told) -> bool:
        return self.began <= told.started and told.ended <= self.ended

    def touches(self, told: Told) -> bool:
        return told.started <= self.ended and self.began <= told.ended


@dataclass(frozen=True, slots=True)
class Round:
    steady: Span
    changing: Span
    swaps: Sequence[Span]
    """From before each change's commit until the server served it."""
    loads: Sequence[Span]
    """Those of them for which it loaded a version, or tried to."""


@dataclass
class Outcome:
    """What a soak has seen, from after its warm-up on; `told`, `changes` and `faults` from its very start."""

    told: list[Told]
    changes: list[Change]
    watch: Watch
    rounds: list[Round]
    after: Span
    """After the last round, without changes, as long as a round's first half."""
    faults: list[Fault] = field(default_factory=list)
    apart: float = 0.0
    """As `Oracle.apart`, the least of all tasks; 0 where none was answered by two versions."""


class Soak:
    """
    Args:
        folder: for the registry and what was told; hundreds of megabytes of a long one.
    """

    def __init__(self, loaded: Loaded, folder: Path, plan: Plan, threads: int = 0) -> None:
        self._loaded, self._folder, self._plan, self._threads = loaded, folder, plan, threads
        self.registry = Registry.open(folder / "registry", create=True)
        self.churn = Churn(self.registry, plan.tasks, self._make, plan.seed)
        self._made = 0
        draw = random.Random(plan.seed)
        self._texts = [f"{number}. {draw.choice(SENTENCES)}" for number in range(plan.texts)]

    def run(self, step: Step = lambda name: None) -> Outcome:
        """
        Raises:
            BenchmarkError: the server or the load process failed, or a change was not served.
            whatever kept the server from being watched.
        """
        step("start")
        self.churn.start()
        self._prepare()
        specs, told = [make_spec(number) for number in range(self._plan.tasks)], self._folder / "told.jsonl"
        tasks, speaking = [spec.name for spec in specs], [spec.name for spec in specs if KINDS[spec.kind].makes_text]
        with serve(registry=self._folder / "registry", **self._loaded.settings(self._threads)) as served:
            self._warm(served, tasks)
            with (
                watching(served, lambda: len(self.churn.changes)) as watch,
                calling(
                    served.address,
                    tasks,
                    speaking,
                    self._texts,
                    self._plan.rate,
                    self._plan.seed,
                    told,
                    self._plan.fewest,
                ),
            ):
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
        return self._judge(Outcome(read_told(told), self.churn.changes, watch, rounds, after))

    def _make(self, number: int, broken: bool) -> Path:
        self._made += 1
        return make_version(self._folder / "runs" / str(self._made), self._loaded, number, self._made, broken=broken)

    def _prepare(self) -> None:
        """What is going to be published, now: to make it beside the server takes the cores that it answers with."""
        changes = self._plan.changes * (self._plan.rounds + 1) // self._plan.tasks
        self.churn.prepare(changes // 3 + 4, changes // 30 + 2)

    def _warm(self, served: Served, tasks: Sequence[str]) -> None:
        """All inputs are known before the first change: what the backbone does after it, a change has caused."""
        with Client(served.address) as client:
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
        swaps = [Span(each.began, watch.served(each.generation) or each.ended) for each in changes]
        loads = [swap for swap, each in zip(swaps, changes, strict=True) if self._loads(each)]
        return Round(steady, Span(began, time.monotonic()), swaps, loads)

    def _loads(self, change: Change) -> bool:
        """A server tries a version that it refused again whenever its task changes."""
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

        def off(told: Told) -> float:
            if len(told.answers) != len(told.inputs):
                return float("inf")
            expected = oracle.answers(told.task, told.version)
            pairs = zip(told.answers, told.inputs, strict=True)
            return max(distance(answer, expected[place]) for answer, place in pairs) / oracle.tolerance

        outcome.faults += audit(outcome.told, outcome.changes, outcome.watch.sightings, off)
        versions: dict[str, set[int]] = {}
        for each in outcome.told:
            if not each.reason:
                versions.setdefault(each.task, set()).add(each.version)
        shares = [oracle.apart(task, sorted(found)) for task, found in versions.items() if len(found) > 1]
        outcome.apart = min(shares, default=0.0)
        return outcome
