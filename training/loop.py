"""The trainer: one side network, one task, on a frozen backbone. No gradient enters the backbone.

Steps over batches of like lengths, validates after each epoch through the server's own code, keeps the best, and can be
interrupted anywhere: run again with the same settings, it goes on after the last whole epoch, to the same weights.
"""

import hashlib
import importlib.metadata
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from ladder import Answer, Backbone, ClassAnswer, NotFiniteError, SideNetwork, Tokenizer, load_side
from ladder.checkpoint import as_served
from ladder.side import MlpHead
from side_registry.manifest import Artifact, BackboneRef, GoldenExample, Manifest, read_artifact, write_manifest
from side_registry.task import TaskSpec
from training.batches import TokenizedRow, shuffled_batches, target_tensor, tokenize
from training.data import Example, Labelled
from training.errors import RunError
from training.evaluate import Model, answer_value, make_answerer, predict, score_answers
from training.recipe import Recipe
from training.run import RunFolder, optimizer_tensors, restore
from training.taps_cache import TapsCache

GOLDEN_EXAMPLES = 4
"""Validation rows whose answers go into the manifest, for a server to replay."""

DIVERGED = "training diverged, try a smaller --lr"


class Progress(Protocol):
    """Told how a run goes; see `Silent`."""

    def reading(self, rows: int, total: int) -> None: ...
    def start(self, epochs: int, steps: int) -> None: ...
    def step(self, epoch: int, step: int, loss: float) -> None: ...
    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None: ...


class Silent:
    """Says nothing."""

    def reading(self, rows: int, total: int) -> None: ...
    def start(self, epochs: int, steps: int) -> None: ...
    def step(self, epoch: int, step: int, loss: float) -> None: ...
    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """All that one run needs, loaded."""

    spec: TaskSpec
    backbone: Backbone
    backbone_source: str
    """The folder or hub id that it was loaded from."""
    tokenizer: Tokenizer
    training: Labelled
    validation: Labelled
    recipe: Recipe

    def settings(self) -> dict[str, Any]:
        """What makes a run this run and no other, JSON-ready."""
        return {
            "task": json.loads(self.spec.model_dump_json()),
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "data": [self.training.sha256, self.validation.sha256],
            "recipe": self.recipe.to_dict(),
        }


def train(job: Job, output: str | Path, progress: Progress | None = None) -> Artifact:
    """Train, or go on training, into a run folder; a complete one is returned as it is.

    Raises:
        RunError: the folder holds something else, or training diverged.
        RecipeError, SideConfigError: settings that make no side network.
    """
    run, settings = RunFolder(output), job.settings()
    side_config = job.recipe.side_config(job.spec).resolve(job.backbone.config)
    run.begin(settings, job.backbone_source)
    if run.complete:
        return read_artifact(run.path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.recipe.seed)
        side = SideNetwork(side_config, job.backbone.config).to(job.backbone.device)
        trainer = _Trainer(job, run, side, progress or Silent())
        trainer.run_epochs()
    return _complete(job, run, settings, trainer.scores)


class _Trainer:
    """State of a run while it goes: weights, optimizer, scores so far."""

    def __init__(self, job: Job, run: RunFolder, side: SideNetwork, progress: Progress) -> None:
        self.job, self.run, self.side, self.progress = job, run, side, progress
        self.rows: list[TokenizedRow] = tokenize(job.spec, job.tokenizer, job.training.examples)
        unit = start_at_targets(side, job.training.examples) if job.spec.kind == "regression" else 1.0
        self.answerer = make_answerer(job.spec, side, job.tokenizer, unit)
        recipe = job.recipe
        self.optimizer = torch.optim.AdamW(
            side.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.cache = TapsCache(job.backbone, side, [row.ids for row in self.rows])
        self.steps = math.ceil(len(self.rows) / recipe.batch_rows)
        self.scores: list[dict[str, Any]] = []

    def run_epochs(self) -> None:
        self._go_on()
        recipe = self.job.recipe
        epochs = recipe.epochs
        if len(self.scores) < epochs and recipe.cache_bytes:
            self.cache.fill(recipe.cache_bytes, recipe.batch_rows, self.progress.reading)
        self.progress.start(epochs, self.steps)
        for epoch in range(len(self.scores), epochs):
            torch.manual_seed(_seed(recipe.seed, epoch))  # dropout, the same after an interruption
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            self._validate(epoch, loss, started)

    def _go_on(self) -> None:
        last = self.run.read_last()
        if last is not None:
            self.scores, tensors = last
            restore(self.side, self.optimizer, tensors)

    def _train_epoch(self, epoch: int) -> float:
        """One pass over the rows; the mean loss."""
        recipe, job, total = self.job.recipe, self.job, 0.0
        self.side.train()
        batches = shuffled_batches(self.rows, recipe.batch_rows, f"{recipe.seed}:{epoch}")
        for step, places in enumerate(batches):
            rows = [self.rows[place] for place in places]
            given = self.cache.run(places)
            loss = self.answerer.loss(given, self.side, target_tensor(job.spec, rows, job.backbone.device))
            self._update(loss, epoch * self.steps + step)
            total += loss.item()
            if not math.isfinite(total):
                raise RunError(self.run.path, f"the loss is not finite in epoch {epoch + 1}; {DIVERGED}")
            self.progress.step(epoch, step, total / (step + 1))
        return total / self.steps

    def _update(self, loss: torch.Tensor, step: int) -> None:
        recipe = self.job.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * schedule(step, self.steps * recipe.epochs, recipe.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.side.parameters(), recipe.clip)
        self.optimizer.step()

    def _validate(self, epoch: int, loss: float, started: float) -> None:
        self.side.eval()
        served = as_served(self.side, self.job.backbone.dtype)
        model = Model(spec=self.job.spec, side=served, answerer=self.answerer)
        fields = [example.fields for example in self.job.validation.examples]
        try:
            answers = predict(model, self.job.backbone, self.job.tokenizer, fields)
        except NotFiniteError:
            raise RunError(self.run.path, f"its answers are not finite after epoch {epoch + 1}; {DIVERGED}") from None
        scores = score_answers(self.job.spec, answers, self.job.validation.examples)
        headline = scores[self.job.spec.metric]
        best = not self.scores or headline > max(line[self.job.spec.metric] for line in self.scores)
        if best:
            self.run.save_best(self.side)
        seconds = round(time.monotonic() - started, 3)
        self.scores.append({"epoch": epoch + 1, "loss": loss, **scores, "seconds": seconds})
        self.run.finish_epoch(self.scores, optimizer_tensors(self.side, self.optimizer))
        self.progress.validated(epoch, scores, best)


def schedule(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: a linear rise, then a linear fall that ends after the last step."""
    rise = warmup * steps
    return (step + 1) / (rise + 1) if step < rise else (steps - step) / max(steps - rise, 1)


def start_at_targets(side: SideNetwork, training: Sequence[Example]) -> float:
    """Start a regression head at the mean target; their standard deviation."""
    targets = torch.tensor([float(example.target) for example in training])
    last = side.head.out if isinstance(side.head, MlpHead) else side.head
    with torch.no_grad():
        last.bias.fill_(targets.mean().item())
    deviation = targets.std(correction=0).item()
    return deviation if deviation > 0 else 1.0


def _seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:6])


def _complete(job: Job, run: RunFolder, settings: dict[str, Any], epochs: list[dict[str, Any]]) -> Artifact:
    """Write the manifest of the best epoch: scores, provenance, golden examples."""
    best = max(epochs, key=lambda line: line[job.spec.metric])
    run_id = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    draft = Manifest(
        task=job.spec.name,
        spec=job.spec,
        backbone=BackboneRef(name=job.backbone.name, fingerprint=job.backbone.fingerprint),
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        side=job.recipe.side_config(job.spec).resolve(job.backbone.config).to_dict(),
        metrics={name: float(value) for name, value in best.items() if name not in ("epoch", "seconds")},
        provenance={
            "run_id": run_id,
            "data_sha256": settings["data"],
            "seed": job.recipe.seed,
            "recipe": settings["recipe"],
            "epoch": best["epoch"],
            "code_version": importlib.metadata.version("sidecast"),
            "torch_version": torch.__version__,
            "dtype": settings["dtype"],
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        examples=_golden_examples(job, run),
    )
    write_manifest(run.path, draft)
    run.finish()
    return read_artifact(run.path)


def _golden_examples(job: Job, run: RunFolder) -> tuple[GoldenExample, ...]:
    """The first few validation rows with the answers of the weights as they stand in the file."""
    side = load_side(run.side_network, job.backbone.config, device=job.backbone.device, dtype=job.backbone.dtype)
    model = Model(spec=job.spec, side=side, answerer=make_answerer(job.spec, side, job.tokenizer))
    fields = [example.fields for example in job.validation.examples[:GOLDEN_EXAMPLES]]
    answers = predict(model, job.backbone, job.tokenizer, fields)
    return tuple(
        GoldenExample(fields=row, expected=expected(given)) for row, given in zip(fields, answers, strict=True)
    )


def expected(given: Answer) -> dict[str, Any]:
    """An answer as a golden example stores it."""
    if isinstance(given, ClassAnswer):
        return {"label": given.label, "scores": list(given.scores)}
    value = answer_value(given)
    return {"value": value} if isinstance(value, float) else {"text": value}
