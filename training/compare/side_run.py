"""Trains a side network for a comparison: the run of `sidecast train`, with its steps counted.

The backbone's activations are computed in every step and not kept between epochs, so that its memory and time are
those of a step like the other methods'. `sidecast train` keeps them, which is faster.
"""

import copy
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladder import Backbone, Row, SideNetwork, answer
from ladder.side.cost import count_parameters
from training.artifact import complete
from training.compare.inputs import Inputs
from training.compare.measured import Measured
from training.compare.serving_cost import serving_cost
from training.compare.step_log import StepLog
from training.job import Job, Silent
from training.loaded_run import LoadedRun, load_run
from training.multitask.task_data import TaskData
from training.recipes.named_recipes import named_recipe
from training.run_folder import RunFolder
from training.trainer import Trainer, begin_settings

Note = Callable[[str], None]


def train_side_network(
    seed: int, rate: float, given: Mapping[str, Any], inputs: Inputs, folder: Path, note: Note
) -> Measured:
    """Train a side network with one seed; an interrupted run goes on after its last whole epoch.

    Steps and seconds are then those of the epochs that were left.

    Args:
        given: what differs from the default recipe.
        folder: the run folder, complete afterwards.
        note: called with a line about each epoch.
    """
    before = inputs.continuations.backbone_loss()
    job = _job(seed, rate, given, inputs)
    run = RunFolder(folder)
    side_config = job.side_config()
    settings, teacher = begin_settings(job, run)
    run.begin(settings, job.backbone_source)
    backbone = inputs.backbone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        side = SideNetwork(side_config, backbone.config).to(backbone.device)
        trainer = Trainer([TaskData(job, side, teacher)], run, side, _Notes(note, inputs))
        started, cpu = time.monotonic(), time.process_time()
        with StepLog([*side.parameters(), *side.buffers(), *encoder_tensors(backbone)], trainer.optimizer) as steps:
            trainer.run_epochs()
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    metric = inputs.spec.metric
    complete(job, run, settings, side_config, max(trainer.scores, key=lambda line: line[metric]))
    loaded = load_run(folder, backbone, inputs.tokenizer)
    after = inputs.continuations.backbone_loss()
    return Measured(
        scores=loaded.score(inputs.scored.examples),
        epochs=[{"loss": line["loss"], "score": line[metric]} for line in trainer.scores],
        steps=steps,
        train_seconds=seconds,
        cpu_seconds=cpu_seconds,
        trained=count_parameters(side),
        total=sum(tensor.numel() for tensor in chain(side.parameters(), encoder_tensors(backbone))),
        file_bytes=run.side_network.stat().st_size,
        serving=serving_cost(_answers(loaded, inputs)),
        forgetting=None if before is None or after is None else after - before,
    )


def encoder_tensors(backbone: Backbone) -> list[Tensor]:
    """Parameters and buffers of the part of a backbone that a linear head needs."""
    parts = (backbone.embedding, backbone.encoder)
    return [backbone.shared, *(tensor for part in parts for tensor in (*part.parameters(), *part.buffers()))]


def _job(seed: int, rate: float, more: Mapping[str, Any], inputs: Inputs) -> Job:
    settings = inputs.settings
    given = {
        **more,
        "epochs": settings.epochs,
        "batch_rows": settings.batch_rows,
        "warmup": settings.warmup,
        "clip": settings.clip,
        "seed": seed,
        "learning_rate": rate,
        "cache_gb": 0.0,
    }
    return Job(
        spec=inputs.spec,
        backbone=inputs.backbone,
        backbone_source=inputs.source,
        tokenizer=inputs.tokenizer,
        training=inputs.training,
        validation=inputs.validation,
        recipe=named_recipe("default", [inputs.spec], given),
    )


def _answers(loaded: LoadedRun, inputs: Inputs) -> Callable[[int], object]:
    tokens = inputs.scored_rows.tokens[0]
    sides = [copy.deepcopy(loaded.side) for _ in range(16)]

    def respond(tasks: int) -> object:
        rows = [Row(ids=tokens.inputs[0], side=side, answerer=loaded.answerer, pair=tokens.pair) for side in sides]
        return answer(inputs.backbone, rows[:tasks])

    return respond


class _Notes(Silent):
    """A line about each epoch."""

    def __init__(self, note: Note, inputs: Inputs) -> None:
        self._note = note
        self._inputs = inputs
        self._loss = 0.0

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Keep the mean loss."""
        self._loss = loss

    def validated(self, epoch: int, scores: dict[str, float], best: bool) -> None:
        """Tell the epoch's loss and score."""
        metric = self._inputs.spec.metric
        shown = f"loss {self._loss:.4f}, {metric} {scores[metric]:.4f}"
        self._note(f"epoch {epoch + 1}/{self._inputs.settings.epochs}: {shown}")
