"""The goals, and which ratio of which script shows whether one is reached.

A goal uses the hardest comparison: the peer's fastest mode as well as the one that serves many tasks, and both kinds of
heads if they differ. The results file has all ratios that a script measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from benchmarks.harness.machine import BFLOAT16, instructions

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio with a lower or an upper bound."""

    text: str
    report: str
    """Name of the report: the script's, without bench_."""
    ratio: str
    """Name of the ratio, with wildcards where numbers or dtypes differ."""
    least: float | None = None
    most: float | None = None
    floor: str | None = None
    """Name of the best possible ratio, of `floors.best_ratios`."""
    elsewhere: Mapping[str, float] = field(default_factory=dict)
    """The bound where the instruction set has another one."""

    def on(self, document: Document) -> "Goal":
        """Return the goal with the bound of the instruction set of a results file."""
        bound = self.elsewhere.get(instructions(document["machine"]))
        if bound is None:
            return self
        return replace(self, least=bound) if self.most is None else replace(self, most=bound)

    @property
    def rule(self) -> str:
        """The goal as text, such as `≥ 0.8`."""
        if self.least is not None:
            return f"≥ {self.least:g}"
        return f"≤ {self.most:g}" if self.most is not None else ""

    def find(self, document: Document) -> Mapping[str, Any] | None:
        """Return the ratio's spread in a results file; None if it was not measured."""
        ratios = document["reports"].get(self.report, {}).get("ratios", {})
        return next((spread for name, spread in ratios.items() if fnmatchcase(name, self.ratio)), None)

    def reached(self, value: float) -> bool | None:
        """Whether the value reaches the goal; None if there is no bound."""
        if self.least is not None:
            return value >= self.least
        return None if self.most is None else value <= self.most

    def possible(self, document: Document) -> float | None:
        """Return the best possible ratio on that machine, by arithmetic and memory bandwidth; None if unknown."""
        return document.get("floors", {}).get("best_ratios", {}).get(self.floor)


GOALS: Mapping[str, tuple[Goal, ...]] = {
    "Many tasks in a batch": (
        Goal("32 rows of 16 tasks / of one task: rows/s", "tasks", "text batch, * tasks / 1", 0.97, floor="F1 text"),
        Goal("the same, heads without a decoder", "tasks", "linear batch, * tasks / 1", 0.97, floor="F1 linear"),
        Goal(
            "the same, tasks drawn at random",
            "tasks",
            "text batch, tasks drawn / 1",
            0.97,
            floor="F1 text",
            elsewhere={BFLOAT16: 0.95},
        ),
        Goal("a task's side network / the backbone alone", "tasks", "text batch, 1 task / *", 0.95, floor="F2 text"),
        Goal("the same, heads without a decoder", "tasks", "linear batch, 1 task / *", 0.95, floor="F2 linear"),
        Goal("rows of 10,000 resident tasks / of one alone", "many", "usual, all asked / *", 0.97, floor="F3 linear"),
        Goal("one of 10,000 resident tasks / one alone", "many", "usual, one asked / *", 0.97),
        Goal("a publish into 1,000 tasks / into one: time", "many", "publish to answer, * / 1", most=1.1),
        Goal("a start with 1,000 tasks: seconds to an answer", "startup", "first answer, while loading, s", most=5),
        Goal("the same, seconds until all are resident", "startup", "all resident, while loading, s", most=30),
    ),
    "Many tasks on one input": (
        Goal("16 tasks / one: time", "tasks", "text one input, * tasks / 1", most=1.4, floor="F4 text"),
        Goal(
            "the same, heads without a decoder", "tasks", "linear one input, * tasks / 1", most=1.4, floor="F4 linear"
        ),
        Goal("16 tasks / one, over gRPC: time", "doors", "text PredictTasks, * tasks / 1", most=1.4, floor="F4 text"),
        Goal("32 known inputs for another task / new ones", "tasks", "text batch, kept / cold", 10, floor="F7 text"),
        Goal("the same, heads without a decoder", "tasks", "linear batch, kept / cold", 10, floor="F7 linear"),
        Goal(
            "one known input / a new one",
            "tasks",
            "text one input, kept / cold",
            10,
            floor="F7 text, one input",
            elsewhere={BFLOAT16: 8},
        ),
        Goal("the same, over gRPC", "doors", "text Predict, new / kept", 10, floor="F7 text, one input"),
    ),
    "Compared with peers": (
        Goal(
            "8 classifiers on one text, over gRPC / 8 separate models: calls/s",
            "guard",
            "* tasks, Sidecast / separate *",
            4,
        ),
        Goal("(the same / PEFT's 8 LoRAs in turn)", "guard", "* tasks, Sidecast / *in turn"),
        Goal("(the same / PEFT's 8 LoRAs in a mixed batch)", "guard", "* tasks, Sidecast / *mixed batch"),
        Goal("(the same / 8 separate models: bytes of weights)", "guard", "weights, Sidecast / separate *"),
        Goal("32 rows, 16 tasks / PEFT's 16 LoRAs", "peers", "engine / PEFT mixed, 32 rows", 3),
        Goal("16 rows, 16 tasks / PEFT's 16 LoRAs", "peers", "engine / PEFT mixed, 16 rows", 3),
        Goal("(PEFT's 16 LoRAs / its one, 32 rows)", "peers", "PEFT mixed / *, 32 rows"),
        Goal("8x32 tokens, w8a8 / CTranslate2's int8 T5", "peers", "engine w8a8 / CTranslate2 int8*, 8x32", 1.5),
        Goal(
            "16x64 tokens, w8a8 / CTranslate2's int8 T5",
            "peers",
            "engine w8a8 / CTranslate2 int8*, 16x64",
            1.5,
            elsewhere={BFLOAT16: 1.2},
        ),
        Goal("8x32, unquantised / CTranslate2's int8 T5", "peers", "engine *float?? / CTranslate2 int8*, 8x32", 1.5),
        Goal("16x64, unquantised / CTranslate2's int8 T5", "peers", "engine *float?? / CTranslate2 int8*, 16x64", 1.5),
        Goal("(8x32, w8a8, head without a decoder / the same)", "peers", "engine w8a8 linear * / * int8*, 8x32"),
        Goal("(16x64, w8a8, head without a decoder / the same)", "peers", "engine w8a8 linear * / * int8*, 16x64"),
        Goal("(8x32, unquantised, head without a decoder / the same)", "peers", "*float?? linear * / * int8*, 8x32"),
        Goal("(16x64, unquantised, head without a decoder / the same)", "peers", "*float?? linear * / * int8*, 16x64"),
    ),
    "Texts: 16 rows of 8 tasks, 4 to 49 tokens": (
        Goal("tokens/s / HF generate, batch a task", "generation", "*float*, wave / Hugging Face, batch a task", 1.5),
        Goal("the same, w8a8", "generation", "*w8a8, wave / Hugging Face, batch a task", 1.5),
        Goal(
            "w8a8, 16 always running / CTranslate2 int8, batch a task",
            "generation",
            "*w8a8, stream / CTranslate2 *, batch a task",
            1.5,
        ),
        Goal("w8a8 / CTranslate2 int8, batch a task", "generation", "*w8a8, wave / CTranslate2 *, batch a task", 1.5),
        Goal("w8a8 / CTranslate2's bare T5 at its best", "generation", "*w8a8, wave / CTranslate2 at its best", 1.5),
        Goal("the same, 16 always running", "generation", "*w8a8, stream / CTranslate2 at its best", 1.5),
    ),
    "Served": (
        Goal("over gRPC, 256 callers / engine alone: rows/s", "server", "server / engine at saturation", 0.9),
        Goal("the same, 16 callers of 8 rows", "server", "server 16x8 / *", 0.9),
        Goal("HTTP / gRPC, requests of 1 row: rows/s", "http", "HTTP / gRPC, 1 rows", 0.8),
        Goal("the same, 8 rows", "http", "HTTP / gRPC, 8 rows", 0.8),
        Goal("the same, 64 rows", "http", "HTTP / gRPC, 64 rows", 0.8),
        Goal("TLS and tokens / without, mean of the six below: rows/s", "secured", "all, TLS * / *", 0.9),
        Goal("TLS and tokens / without, gRPC, requests of 1 row: rows/s", "secured", "gRPC, TLS * / *, 1 rows", 0.9),
        Goal("the same, 8 rows", "secured", "gRPC, TLS * / *, 8 rows", 0.9),
        Goal("the same, 64 rows", "secured", "gRPC, TLS * / *, 64 rows", 0.9),
        Goal("TLS and tokens / without, HTTP, requests of 1 row: rows/s", "secured", "HTTP, TLS * / *, 1 rows", 0.9),
        Goal("the same, 8 rows", "secured", "HTTP, TLS * / *, 8 rows", 0.9),
        Goal("the same, 64 rows", "secured", "HTTP, TLS * / *, 64 rows", 0.9),
        Goal("padding at saturation, GLUE's texts, 64 callers", "pressure", "padding, 64 callers", most=0.05),
        Goal("the same, 256 callers", "pressure", "padding, 256 callers", most=0.05),
        Goal("answers in time at twice the load / capacity, deadlines of 2 s", "pressure", "in time at * 2 s / *", 0.9),
        Goal("the same, deadlines of 5 s", "pressure", "in time at * 5 s / *", 0.9),
        Goal("a busy core beside a server / none: p99", "neighbours", "p99, defaults, busy core / quiet", most=1.5),
        Goal("(the same, as many threads as cores)", "neighbours", "p99, fixed threads, busy core / quiet"),
        Goal(
            "64 callers and no neighbour, the defaults / as many threads as cores: rows/s",
            "neighbours",
            "saturated, defaults / fixed threads",
            0.97,
        ),
        Goal("(a CPU quota of 1.5 cores / none: p99)", "neighbours", "p99, defaults, quota / quiet"),
        Goal("a shadow on all traffic, at half the load / none: p99", "shadow", "p99, shadow on all / *", most=1.03),
    ),
    "Images": (
        Goal("a first question on an image / a second: time", "images", "text new / known image", 3),
        Goal("the same, heads without a decoder", "images", "linear new / known image", 3),
        Goal("the same, CLIP ViT-B/16", "images", "CLIP text new / known image", 3),
        Goal("the same, CLIP, heads without a decoder", "images", "CLIP linear new / known image", 3),
        Goal("(a known question on a new image / a new one: time)", "images", "text known question / new"),
        Goal("(the same, heads without a decoder)", "images", "linear known question / new"),
        Goal("8 questions on a new image / one: time", "images", "text new, 8 questions / new", most=2),
        Goal("the same, heads without a decoder", "images", "linear new, 8 questions / new", most=2),
        Goal("the same, CLIP ViT-B/16", "images", "CLIP text new, 8 questions / new", most=2),
        Goal("the same, CLIP, heads without a decoder", "images", "CLIP linear new, 8 questions / new", most=2),
        Goal("16 tasks on a new image and question / one: time", "images", "text new, * tasks / new", most=1.4),
        Goal("the same, heads without a decoder", "images", "linear new, * tasks / new", most=1.4),
        Goal("the same, CLIP ViT-B/16", "images", "CLIP text new, * tasks / new", most=1.4),
        Goal("the same, CLIP, heads without a decoder", "images", "CLIP linear new, * tasks / new", most=1.4),
        Goal("16 tasks on a known image and question / one: time", "images", "text known, * tasks / known", most=1.4),
        Goal("the same, heads without a decoder", "images", "linear known, * tasks / known", most=1.4),
        Goal("text, vision loaded / not, mean of the four below: rows/s", "vision_loaded", "mean, vision / text", 0.99),
        Goal("(two servers alike, the same mean)", "vision_loaded", "mean, twin / text"),
        Goal("single rows of text, vision loaded / not: rows/s", "vision_loaded", "text, 1 row, vision / text", 0.99),
        Goal("the same, heads without a decoder", "vision_loaded", "linear, 1 row, vision / text", 0.99),
        Goal("batches of text, vision loaded / not: rows/s", "vision_loaded", "text, * rows, vision / text", 0.99),
        Goal("the same, heads without a decoder", "vision_loaded", "linear, * rows, vision / text", 0.99),
        Goal("(text beside image traffic / alone: p50)", "images", "p50, text text, *"),
        Goal("(the same, p99)", "images", "p99, text text, *"),
        Goal("(the same, heads without a decoder)", "images", "p99, linear text, *"),
    ),
    "Training": (
        Goal("memory of a step, T5-base: LST / full fine-tuning", "training_memory", "t5-base, LST / full", most=0.2),
        Goal("the same, taps kept", "training_memory", "t5-base, LST, taps kept / full", most=0.2),
        Goal("the same, with a GPU's kernels", "training_memory", "t5-base, LST, GPU / full, GPU", most=0.2),
        Goal("(the same, PEFT's LoRA)", "training_memory", "t5-base, LoRA / full"),
        Goal("CLIP-T5's largest step: LST / full", "training_memory", "CLIP-T5, largest step, LST / full", most=0.35),
        Goal("the same, taps kept", "training_memory", "CLIP-T5, largest step, LST, taps kept / full", most=0.35),
        Goal("the same, with a GPU's kernels", "training_memory", "CLIP-T5, largest step, LST, GPU / *", most=0.35),
    ),
}
"""By heading."""


def with_spreads(document: Document) -> Iterator[tuple[str, Goal, Mapping[str, Any] | None]]:
    """Yield every goal with its heading and its spread; None if it was not measured."""
    for heading, goals in GOALS.items():
        for goal in goals:
            yield heading, goal.on(document), goal.find(document)
