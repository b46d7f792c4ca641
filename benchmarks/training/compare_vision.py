"""Which way of training answers questions about images best: LST, LoRA, full fine-tuning, or a probe?

    python -m benchmarks.training.compare_vision --backbone B --data FOLDER --features FILE

FOLDER has train.jsonl and validation.jsonl of a built-in classification task with images, FILE the features of its
images, made before. All methods get the same rows, batches, seed and labels, and are scored by `training.metrics` on
the same validation rows; the best epoch counts.

- majority: the commonest label.
- probe: the frozen encoder's mean state of the question attends over the image's tokens; a linear layer answers.
- text only: a side network that does not see the images.
- lst, lst text head: side networks as `sidecast train` makes them, with a linear head and with the backbone's words.
- lora, full: Hugging Face's T5, as the baselines of CLIP-T5: visual tokens, embedded as side networks embed them,
  follow the text in the encoder, without relative positions. The answer is the label with the most probable words, by
  the decoder. PEFT's LoRA on q and v, or all weights; the visual embedding is trained by both.

`cpu_s` is the processor time of training and validation, with the features in memory. `total_gb` is what a training
step holds (`training.memory`), in 10^9 bytes. `trained_percent` is the share of the T5's parameters. No method has
dropout or weight decay; the learning rate rises over a tenth of the steps and falls to 0.

The result is written after each method. Run again with the same settings and the same --output, methods that are
already in the file are kept.
"""

import json
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.harness.machine import look
from benchmarks.harness.peers import hush, peer
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Report, Samples, plain_errors, write_document
from ladder import Backbone, Images, SideNetwork, Tokenizer, load_backbone, load_tokenizer
from ladder.answering.label_trie import LabelTrie
from ladder.config import VisualConfig
from ladder.side.visual import VisualEmbedding
from training.baseline import baseline_of
from training.batches import TokenizedRow, count_batches, shuffled_batches, tokenize
from training.builtin_tasks import load_task
from training.data import Labelled, read_labelled
from training.images import ImageInputs
from training.images.inputs import image_ids
from training.job import Job
from training.memory import count_memory
from training.metrics import score_values
from training.multitask.task_data import TaskData
from training.recipes.optimizers import SCHEDULES, make_optimizer, update
from training.recipes.recipe import Recipe
from training.trainer import train
from vision import FeatureFile

RATES: Mapping[str, float] = {
    "probe": 3e-3,
    "text only": 3e-3,
    "lst": 3e-3,
    "lst text head": 3e-3,
    "lora": 3e-3,
    "full": 1e-3,
}
"""Default learning rates. Side networks and the probe have that of `sidecast train`; those of the others were not
searched for."""
METHODS = ("majority", *RATES)
PROBE = 256
"""Width of the probe."""
WARMUP = 0.1
CLIP = 1.0
SCORED = 100
"""Rows of a batch whose labels are scored."""
MEMORY_STEPS = 2
"""From the second step on there are gradients of the step before."""
GIGABYTE = 1e9
COLUMNS = (
    Column(figure="score", heading="score", digits=3),
    Column(figure="trained_percent", heading="trained %", digits=2),
    Column(figure="total_gb", heading="memory GB", digits=2),
    Column(figure="cpu_s", heading="CPU s", digits=0),
    Column(figure="learning_rate", heading="rate", digits=4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What all methods share."""

    task: str
    rows: int
    scored: int
    epochs: int
    batch_rows: int
    rank: int
    """Of LoRA."""
    seed: int


class Rows:
    """The rows of one part of the data as tensors: texts, features of images, labels."""

    def __init__(self, job: Job, part: Labelled) -> None:
        self.job = job
        self.examples = part.examples
        self.tokens: list[TokenizedRow] = tokenize(job.spec, job.tokenizer, part.examples)
        self.targets = torch.tensor([row.target for row in self.tokens])
        self._images = image_ids(job.spec, [example.fields for example in part.examples])

    def ids(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, (B, S)."""
        rows = [torch.tensor(self.tokens[index].inputs[0]) for index in indices]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.job.backbone.config.pad_token_id)
        return ids, torch.arange(ids.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]

    def images(self, indices: Sequence[int]) -> Images:
        """Features of the rows' images."""
        assert self.job.features is not None
        return self.job.features.images([self._images[index] for index in indices])


class ClipT5(nn.Module):
    """Hugging Face's T5 that reads visual tokens after the text, and scores labels as words of its decoder."""

    def __init__(
        self, source: str, visual: VisualConfig, backbone: Backbone, labels: Sequence[tuple[int, ...]]
    ) -> None:
        from transformers import T5ForConditionalGeneration

        hush()
        super().__init__()
        self.t5: Any = T5ForConditionalGeneration.from_pretrained(source, dtype=torch.float32, dropout_rate=0.0)
        self.visual = VisualEmbedding(visual, backbone.config)
        self.visual.reset()
        self.trie = LabelTrie(tuple(labels))
        self._start = backbone.config.decoder_start_token_id
        self._visual_tokens = visual.tokens
        attention = self.t5.encoder.block[0].layer[0].SelfAttention
        attention.compute_bias = partial(self._bias, attention.compute_bias)

    def log_probabilities(self, ids: Tensor, mask: Tensor, images: Images) -> Tensor:
        """(B, K) of the labels."""
        embedded = self.t5.get_input_embeddings()(ids)
        visual = self.visual(images)
        mask = torch.cat([mask, mask.new_ones(visual.shape[:2])], 1).long()
        memory = self.t5.get_encoder()(
            inputs_embeds=torch.cat([embedded, visual], 1), attention_mask=mask
        ).last_hidden_state

        def logits_after(prefix: tuple[int, ...], tokens: tuple[int, ...]) -> Tensor:
            state = self.t5.get_decoder()(
                input_ids=torch.tensor([[self._start, *prefix]]).expand(len(ids), -1),
                encoder_hidden_states=memory,
                encoder_attention_mask=mask,
                use_cache=False,
            ).last_hidden_state[:, -1]
            scale = self.t5.config.d_model**-0.5 if self.t5.config.scale_decoder_outputs else 1.0
            return F.linear(state * scale, self.t5.get_output_embeddings().weight[list(tokens)])

        return self.trie.log_probabilities(logits_after)

    def _bias(self, of_text: Callable[..., Tensor], queries: int, keys: int, **given: Any) -> Tensor:
        """Visual tokens have no relative positions, as in CLIP-T5."""
        count = self._visual_tokens
        return F.pad(of_text(queries - count, keys - count, **given), (0, count, 0, count))


class Probe(nn.Module):
    """The question's state attends over an image's tokens; both together choose the label."""

    def __init__(self, backbone: Backbone, features: int, labels: int) -> None:
        super().__init__()
        self.backbone = [backbone]  # in a list: it is no part of the probe
        self.question = nn.Linear(backbone.config.d_model, 2 * PROBE)
        self.image = nn.Linear(features, 2 * PROBE)
        self.answer = nn.Linear(3 * PROBE, labels)

    def log_probabilities(self, ids: Tensor, mask: Tensor, images: Images) -> Tensor:
        """(B, K) of the labels."""
        final = self.backbone[0].encode(ids, mask).final
        assert final is not None
        mean = (final * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        query, text = self.question(mean).chunk(2, -1)
        tokens = images.features[[index for row in images.rows for index in row]].view(
            len(ids), -1, images.features.shape[-1]
        )
        keys, values = self.image(tokens).chunk(2, -1)
        weights = torch.softmax((keys @ query[..., None]).squeeze(-1) * PROBE**-0.5, -1)
        seen = (weights[..., None] * values).sum(1)
        return torch.log_softmax(self.answer(torch.cat([seen, text, seen * text], -1)), -1)


Scorer = ClipT5 | Probe


def fit(model: Scorer, plan: Plan, rate: float, training: Rows, validation: Rows, note: Callable[[str], None]) -> float:
    """Train with the batches and the step of `sidecast train`; return the best epoch's score."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer("adamw", trained, rate, 0.0)
    steps = count_batches(len(training.tokens), plan.batch_rows)
    best = 0.0
    for epoch in range(plan.epochs):
        model.train()
        total = 0.0
        for step, indices in enumerate(shuffled_batches(training.tokens, plan.batch_rows, f"{plan.seed}:{epoch}")):
            share = SCHEDULES["adamw"](epoch * steps + step, steps * plan.epochs, WARMUP, "linear")
            loss = loss_of(model, training, indices)
            update(model, optimizer, loss, rate * share, CLIP)
            total += loss.item()
        score = score_of(model, validation)
        note(f"epoch {epoch + 1}: loss {total / steps:.3f}, score {score:.3f}")
        best = max(best, score)
    return best


def loss_of(model: Scorer, rows: Rows, indices: Sequence[int]) -> Tensor:
    """Mean cross entropy of the labels."""
    scores = model.log_probabilities(*rows.ids(indices), rows.images(indices))
    return F.nll_loss(scores, rows.targets[list(indices)])


@torch.inference_mode()
def score_of(model: Scorer, rows: Rows) -> float:
    """The task's metric."""
    model.eval()
    spec = rows.job.spec
    order = sorted(range(len(rows.tokens)), key=lambda index: rows.tokens[index].length)
    answers: dict[int, str] = {}
    for start in range(0, len(order), SCORED):
        indices = order[start : start + SCORED]
        best = model.log_probabilities(*rows.ids(indices), rows.images(indices)).argmax(-1).tolist()
        answers |= {index: spec.labels[label] for index, label in zip(indices, best, strict=True)}
    return score_values(spec, [answers[index] for index in range(len(order))], rows.examples)[spec.metric]


class Comparison:
    """The data, and a call for each method."""

    def __init__(
        self,
        plan: Plan,
        backbone: Backbone,
        source: str,
        tokenizer: Tokenizer,
        features: Path,
        note: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.backbone = backbone
        self.source = source
        self.tokenizer = tokenizer
        self.images = ImageInputs(source=FeatureFile(features))
        self.note = note
        self.rows: dict[str, Labelled] = {}

    def read(self, data: Path) -> None:
        """Take the rows of both parts, drawn by a fixed seed.

        Raises:
            BenchmarkError: a task that is not classification, or has no images.
        """
        spec = load_task(self.plan.task)
        if spec.kind != "classification" or not spec.images:
            raise BenchmarkError(f"give a classification task with images, not {spec.name}")
        for part, count in (("train", self.plan.rows), ("validation", self.plan.scored)):
            whole = read_labelled(data / f"{part}.jsonl", spec)
            examples = random.Random("rows").sample(whole.examples, min(count, len(whole.examples)))
            self.rows[part] = replace(whole, examples=examples)

    def job(self, rate: float, **recipe: Any) -> Job:
        """A run of `sidecast train`, with the settings that all methods share."""
        plan = self.plan
        common = {"epochs": plan.epochs, "batch_rows": plan.batch_rows, "seed": plan.seed, "dropout": 0.0}
        return Job(
            spec=load_task(plan.task),
            backbone=self.backbone,
            backbone_source=self.source,
            tokenizer=self.tokenizer,
            training=self.rows["train"],
            validation=self.rows["validation"],
            recipe=Recipe(**{**common, "learning_rate": rate, "warmup": WARMUP, "clip": CLIP, **recipe}),
            images=self.images,
        )

    def measure(self, method: str, rate: float) -> Figures:
        """Train and score one method."""
        job = self.job(rate)
        if method == "majority":
            baseline = baseline_of(job.spec, job.validation.examples)
            assert baseline is not None
            return {"score": baseline.score, "trained_percent": 0.0}
        if method == "text only":
            spec = job.spec.model_copy(update={"images": ()})
            return self._side_network(replace(job, spec=spec, images=None))
        if method in ("lst", "lst text head"):
            return self._side_network(self.job(rate, head="text") if method != "lst" else job)
        return self._scorer(method, job, rate)

    def _side_network(self, job: Job) -> Figures:
        torch.manual_seed(self.plan.seed)
        side = SideNetwork(job.side_config(), self.backbone.config)
        data = TaskData(job, side, None)
        if job.features is not None:
            job.features.prepare(job.image_ids(job.training, job.validation), lambda done, total: None)
        [(rows, batches)] = [data.epoch(0)]
        longest = max(batches, key=lambda indices: max(rows[index].length for index in indices))
        memory = _memory([self.backbone, side], side, lambda: data.loss(side, rows, longest))
        trained = sum(parameter.numel() for parameter in side.parameters())
        with tempfile.TemporaryDirectory(prefix="sidecast-compare-") as folder:
            started = time.process_time()
            train(job, Path(folder) / "run")
            seconds = time.process_time() - started
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        scores = [json.loads(line)[job.spec.metric] for line in lines]
        self.note(f"scores {scores}")
        return self._figures(max(scores), trained, memory, seconds, job.recipe.learning_rate)

    def _scorer(self, method: str, job: Job, rate: float) -> Figures:
        training, validation = Rows(job, job.training), Rows(job, job.validation)
        assert job.features is not None
        job.features.prepare(job.image_ids(job.training, job.validation), lambda done, total: None)
        longest = sorted(range(len(training.tokens)), key=lambda index: training.tokens[index].length)
        batch = longest[-self.plan.batch_rows :]
        memory, trained = self._count(method, job, training, batch)
        model = self._model(method, job)
        started = time.process_time()
        score = fit(model, self.plan, rate, training, validation, self.note)
        return self._figures(score, trained, memory, time.process_time() - started, rate)

    def _count(self, method: str, job: Job, training: Rows, batch: Sequence[int]) -> tuple[float, int]:
        """Gigabytes of a training step, and trained parameters; of a model that is dropped afterwards."""
        model = self._model(method, job)
        modules: list[nn.Module] = [model, self.backbone] if method == "probe" else [model]
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        return _memory(modules, model, lambda: loss_of(model, training, batch)), trained

    def _model(self, method: str, job: Job) -> Scorer:
        torch.manual_seed(self.plan.seed)
        width = self.images.width
        if method == "probe":
            return Probe(self.backbone, width, len(job.spec.labels))
        visual = job.side_config().visual
        assert visual is not None
        words = [tuple(ids) for ids in self.tokenizer.encode_targets(job.spec.labels)]
        model = ClipT5(self.source, visual, self.backbone, words)
        if method == "lora":
            peft = peer("peft")
            settings = {"r": self.plan.rank, "lora_alpha": self.plan.rank, "target_modules": ["q", "v"]}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT asks T5 for an attribute by its old name
                model.t5 = peft.get_peft_model(model.t5, peft.LoraConfig(**settings)).base_model.model
        return model

    def _figures(self, score: float, trained: int, memory: float, seconds: float, rate: float) -> Figures:
        whole = sum(parameter.numel() for parameter in self.backbone.parameters())
        return {
            "score": score,
            "trained_percent": 100 * trained / whole,
            "total_gb": memory,
            "cpu_s": seconds,
            "learning_rate": rate,
        }


def _memory(modules: Sequence[nn.Module], trained: nn.Module, loss: Callable[[], Tensor]) -> float:
    """Gigabytes that training steps on the longest batch hold."""
    parameters = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = make_optimizer("adamw", parameters, 1e-9, 0.0)
    with count_memory(modules, optimizer) as report:
        for _ in range(MEMORY_STEPS):
            update(trained, optimizer, loss(), 1e-9, CLIP)
    return report.total / GIGABYTE


def kept(path: Path | None, settings: Mapping[str, Any]) -> dict[str, Figures]:
    """The figures that a file of an earlier run has, if that run had these settings."""
    if path is None or not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["settings"] != settings:
        return {}
    return {
        method: {name: spread["median"] for name, spread in figures.items()}
        for method, figures in document["variants"].items()
    }


def _read_rates(ctx: click.Context, param: click.Parameter, value: Sequence[str]) -> dict[str, float]:
    """METHOD=RATE, such as lora=1e-3."""
    try:
        given = {name: float(rate) for name, rate in (item.split("=", 1) for item in value)}
    except ValueError:
        raise click.BadParameter("give METHOD=RATE, such as lora=1e-3") from None
    if unknown := sorted(given.keys() - RATES):
        raise click.BadParameter(f"unknown method {unknown[0]!r}; give one of {', '.join(RATES)}")
    return {**RATES, **given}


@click.command()
@click.option("--backbone", required=True, metavar="B", help="A T5's Hugging Face folder, or a hub id.")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--features", required=True, type=click.Path(path_type=Path, exists=True), help="Of the rows' images.")
@click.option("--task", default="easy-vqa", show_default=True, help="A built-in classification task with images.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Repeat it.  [default: all]")
@click.option("--rate", "rates", multiple=True, callback=_read_rates, metavar="METHOD=RATE", help="A learning rate.")
@click.option("--rows", default=6000, show_default=True, type=click.IntRange(1), help="Training rows.")
@click.option("--scored", default=1000, show_default=True, type=click.IntRange(1), help="Validation rows.")
@click.option("--epochs", default=2, show_default=True, type=click.IntRange(1))
@click.option("--batch-rows", default=32, show_default=True, type=click.IntRange(1))
@click.option("--rank", default=32, show_default=True, type=click.IntRange(1), help="Of LoRA.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option("--output", type=click.Path(path_type=Path), help="Write the result there, after each method.")
@click.option("--save", is_flag=True, help="Write it to benchmarks/results/<date>-<machine>-vision_methods.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON line alone.")
def main(
    backbone: str,
    data: Path,
    features: Path,
    methods: Sequence[str],
    rates: Mapping[str, float],
    threads: int,
    output: Path | None,
    save: bool,
    as_json: bool,
    **plan: Any,
) -> None:
    """Compare side networks with LoRA, full fine-tuning and a probe on a task with images."""
    torch.set_num_threads(threads)
    machine = look()

    def note(text: str) -> None:
        click.echo(f"  {text}", err=True)

    with plain_errors():
        comparison = Comparison(
            Plan(**plan), load_backbone(backbone), backbone, load_tokenizer(backbone), features, note
        )
        comparison.read(data)
        loaded = comparison.backbone
        settings = {"backbone": loaded.name, "fingerprint": loaded.fingerprint, **plan, "threads": threads}
        settings["data"] = {part: rows.sha256 for part, rows in comparison.rows.items()}
        title = f"{plan['task']}: {plan['rows']} rows, {plan['epochs']} epochs ({loaded.name})"
        report = Report(
            name="vision_methods",
            title=title,
            machine=machine,
            settings=settings,
            samples=Samples([kept(output, settings)]),
            ratios={},
        )
        [found] = report.samples.rounds
        for method in methods or METHODS:
            if method in found and found[method].get("learning_rate") in (None, rates.get(method)):
                continue
            note(method)
            found[method] = comparison.measure(method, rates.get(method, RATES["lst"]))
            if output is not None:
                write_document(report.document(), output)
        if save:
            click.echo(f"saved {report.save().name}", err=True)
        report.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
