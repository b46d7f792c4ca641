"""Trains and scores a model of `scorers`, with the batches, the loss and the schedule of `sidecast train`."""

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ladder.answering import IGNORED
from side_registry.specs.task_kinds import KINDS
from training.batches import count_batches, shuffled_batches
from training.compare.inputs import Inputs
from training.compare.measured import Measured
from training.compare.serving_cost import serving_cost
from training.compare.step_log import StepLog
from training.evaluation import BATCH_TOKENS, length_batches
from training.methods.errors import CompareError
from training.methods.methods import HEAD_RATE, Method
from training.methods.rows import Rows
from training.methods.scorers import Scorer
from training.methods.source import Source, load_source
from training.methods.trained import quiet, save_trained
from training.metrics import score_values
from training.recipes.optimizers import schedule

Note = Callable[[str], None]


def fit(method: Method, seed: int, rate: float, inputs: Inputs, weights: Path, note: Note) -> Measured:
    """Train a method with one seed; the epoch with the best validation score counts.

    Args:
        weights: the file that the trained weights are written to.
        note: called with a line about each epoch.

    Raises:
        CompareError: the loss is not finite.
    """
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(seed)
        source = source_of(inputs)
        before = _forgetting_loss(inputs, source, None)
        assert method.make is not None
        scorer = method.make(source).to(inputs.backbone.device)
        started, cpu = time.monotonic(), time.process_time()
        epochs, steps, best = _train(method, scorer, seed, rate, inputs, note)
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu
    scorer.load_state_dict(best, strict=False)
    scorer.eval()
    trained = save_trained(weights, scorer, method.name, inputs.backbone)
    after = _forgetting_loss(inputs, source, scorer)
    return Measured(
        scores=score_values(inputs.spec, answers_of(scorer, inputs.scored_rows), inputs.scored_rows.examples),
        epochs=epochs,
        steps=steps,
        train_seconds=seconds,
        cpu_seconds=cpu_seconds,
        trained=sum(tensor.numel() for tensor in trained.values()),
        total=sum(tensor.numel() for tensor in scorer.parameters()),
        file_bytes=weights.stat().st_size,
        serving=serving_cost(_answers(scorer, inputs)),
        forgetting=None if before is None or after is None else after - before,
        peft_config=_peft_config(scorer),
    )


def source_of(inputs: Inputs) -> Source:
    """The encoder that every method starts from."""
    mean, unit = 0.0, 1.0
    if KINDS[inputs.spec.kind].has_range:
        targets = [float(example.target) for example in inputs.training.examples]
        mean, unit = statistics.fmean(targets), statistics.pstdev(targets) or 1.0
    return load_source(inputs.source, inputs.backbone, inputs.spec, mean, unit)


def answers_of(scorer: Scorer, rows: Rows) -> list[Any]:
    """A label or a value for each row, in order. Values are clipped to the task's range."""
    spec = rows.spec
    found: dict[int, Any] = {}
    scorer.eval()
    with torch.inference_mode():
        for indices in length_batches([row.length for row in rows.tokens], BATCH_TOKENS):
            outputs = scorer(rows.batch(indices))
            if scorer.is_number:
                values = outputs[:, 0].clamp(spec.low, spec.high) if _is_clipped(spec) else outputs[:, 0]
                found |= zip(indices, values.tolist(), strict=True)
            else:
                found |= {i: spec.labels[k] for i, k in zip(indices, outputs.argmax(-1).tolist(), strict=True)}
    return [found[index] for index in range(len(rows.tokens))]


def _is_clipped(spec: Any) -> bool:
    return spec.low is not None or spec.high is not None


def loss_of(scorer: Scorer, rows: Rows, indices: list[int]) -> Tensor:
    """Mean cross entropy, or mean squared error in standard deviations of the targets."""
    outputs, targets = scorer(rows.batch(indices)), rows.targets(indices)
    if scorer.is_number:
        return F.mse_loss(outputs[:, 0] / scorer.unit, targets / scorer.unit)
    total = F.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def _train(
    method: Method, scorer: Scorer, seed: int, rate: float, inputs: Inputs, note: Note
) -> tuple[list[dict[str, float]], StepLog, Mapping[str, Tensor]]:
    """All epochs. Return their figures, the steps, and the best epoch's trained weights."""
    settings, rows, spec = inputs.settings, inputs.training_rows, inputs.spec
    trained = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    head = {id(parameter) for parameter in scorer.head.parameters()}
    groups = [
        {"params": [parameter for parameter in trained if id(parameter) not in head]},
        {"params": list(scorer.head.parameters())},
    ]
    rates = [rate, rate if scorer.frozen else HEAD_RATE]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=True)
    batches = count_batches(len(rows.tokens), settings.batch_rows)
    epochs: list[dict[str, float]] = []
    best: dict[str, Tensor] = {}
    with StepLog(chain(scorer.parameters(), scorer.buffers()), optimizer) as steps:
        for epoch in range(settings.epochs):
            scorer.train()
            total = 0.0
            for step, indices in enumerate(shuffled_batches(rows.tokens, settings.batch_rows, f"{seed}:{epoch}")):
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(scorer, rows, indices)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, settings.clip)
                share = schedule(epoch * batches + step, batches * settings.epochs, settings.warmup)
                for group, full in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = full * share
                optimizer.step()
                total += loss.item()
            if not total < float("inf"):
                raise CompareError(
                    method.name,
                    f"the loss is not finite in epoch {epoch + 1}; give a smaller rate with --lr {method.name}=RATE",
                )
            answers = answers_of(scorer, inputs.validation_rows)
            score = score_values(spec, answers, inputs.validation.examples)[spec.metric]
            epochs.append({"loss": total / batches, "score": score})
            note(f"epoch {epoch + 1}/{settings.epochs}: loss {total / batches:.4f}, {spec.metric} {score:.4f}")
            if score >= max(line["score"] for line in epochs):
                named = scorer.named_parameters()
                best = {name: tensor.detach().clone() for name, tensor in named if tensor.requires_grad}
    return epochs, steps, best


def _answers(scorer: Scorer, inputs: Inputs) -> Callable[[int], object]:
    batch = inputs.scored_rows.batch([0])

    def answer(tasks: int) -> object:
        if scorer.frozen:
            states = scorer.read(batch)
            return [scorer.outputs(states, batch) for _ in range(tasks)]
        return [scorer(batch) for _ in range(tasks)]

    return answer


def _forgetting_loss(inputs: Inputs, source: Source, scorer: Scorer | None) -> float | None:
    """Of the whole model with the encoder that the method has; None where it has no decoder."""
    if not inputs.backbone.has_decoder:
        return None
    from transformers.modeling_outputs import BaseModelOutput

    ids, mask = inputs.continuations.ids, inputs.continuations.mask
    source.model.eval()
    with torch.no_grad():
        if scorer is None:
            state = source.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        else:
            state, mask = scorer.encode(ids, mask)

    def logits_of(decoder_ids: Tensor) -> Tensor:
        memory = BaseModelOutput(last_hidden_state=state)
        given = {"encoder_outputs": memory, "attention_mask": mask.long(), "decoder_input_ids": decoder_ids}
        return source.model(**given, use_cache=False).logits

    return inputs.continuations.loss(logits_of)


def _peft_config(scorer: Scorer) -> dict[str, Any] | None:
    """As PEFT's own suite writes it."""
    configs = getattr(scorer.encoder, "peft_config", None)
    if not isinstance(configs, dict):
        return None
    [config] = configs.values()
    return {name: _plain(value) for name, value in config.to_dict().items()}


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return value if isinstance(value, str | int | float | list | dict | None) else str(value)
