"""What `sidecast absorb` makes of fine-tuned models: agreement, time, and what one backbone saves.

    python -m benchmarks.training.compare_absorb --backbone B --data DIR

DIR/<task>/train.jsonl and validation.jsonl have the rows of a built-in task of one text. The first rows of a shuffled
train.jsonl fine-tune two models of B with transformers' head for sequence classification: one whole, one as a LoRA of
PEFT. The next rows are the texts that both answer; their labels are not read. `sidecast absorb` then runs as a user
would run it, with its defaults but for --epochs if given, and scores both sides on validation.jsonl.

The seconds of absorbing are the command's, from its start to its end. Weights, files and latency are what it prints.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn import functional as F

from benchmarks.harness.machine import look
from benchmarks.harness.peers import hush, peer
from benchmarks.harness.samples import BenchmarkError, Column, Figures, Report, Samples, plain_errors
from side_registry import TaskSpec
from training.builtin_tasks import load_task

RATES: Mapping[str, float] = {"full": 3e-4, "lora": 2e-3}
"""Learning rates of the models; not searched for."""
BATCH_ROWS = 16
CLIP = 1.0
COLUMNS = (
    Column(figure="agreement", heading="agreement", digits=3),
    Column(figure="score", heading="score", digits=3),
    Column(figure="teacher_score", heading="of the model", digits=3),
    Column(figure="seconds", heading="seconds", digits=0),
    Column(figure="weights_mb", heading="weights MB"),
    Column(figure="files_mb", heading="files MB"),
    Column(figure="ms", heading="ms"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to fine-tune and absorb."""

    task: str
    rows: int
    """That the models are fine-tuned on."""
    texts: int
    """That they answer."""
    epochs: int
    """Of fine-tuning."""
    seed: int
    absorb: tuple[str, ...]
    """Further options of `sidecast absorb`."""


class Teachers:
    """Fine-tunes models and saves them as a user has them: a Hugging Face folder, a PEFT folder."""

    def __init__(self, backbone: str, spec: TaskSpec, plan: Plan) -> None:
        transformers = peer("transformers")
        self._backbone, self._spec, self._plan = backbone, spec, plan
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(backbone)
        self._make = transformers.AutoModelForSequenceClassification.from_pretrained

    def make(self, method: str, rows: Sequence[Mapping[str, str]], folder: Path) -> float:
        """Fine-tune a model; return the seconds."""
        started = time.monotonic()
        torch.manual_seed(self._plan.seed)
        labels = dict(enumerate(self._spec.labels))
        indices = {label: index for index, label in labels.items()}
        how = {"num_labels": len(labels), "id2label": labels, "label2id": indices, "dtype": torch.float32}
        hush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = self._make(self._backbone, **how)
            base.save_pretrained(folder / "base")
            self._tokenizer.save_pretrained(folder / "base")
            model = _lora(self._make(folder / "base", dtype=torch.float32)) if method == "lora" else base
            self._fit(model, rows, RATES[method])
            model.save_pretrained(folder / method)
            self._tokenizer.save_pretrained(folder / method)
        return time.monotonic() - started

    def _fit(self, model: Any, rows: Sequence[Mapping[str, str]], rate: float) -> None:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=rate)
        order = random.Random(self._plan.seed)
        steps = self._plan.epochs * -(-len(rows) // BATCH_ROWS)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
        model.train()
        for _ in range(self._plan.epochs):
            shuffled = order.sample(rows, len(rows))
            for start in range(0, len(rows), BATCH_ROWS):
                self._loss(model, shuffled[start : start + BATCH_ROWS]).backward()
                torch.nn.utils.clip_grad_norm_(trained, CLIP)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        model.eval()

    def _loss(self, model: Any, rows: Sequence[Mapping[str, str]]) -> torch.Tensor:
        [field] = self._spec.fields
        texts = [row[field] for row in rows]
        encoded = self._tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        targets = torch.tensor([self._spec.labels.index(row[self._spec.target]) for row in rows])
        return F.cross_entropy(model(**encoded).logits, targets)


def _lora(model: Any) -> Any:
    peft = peer("peft")
    settings = {"task_type": "SEQ_CLS", "r": 16, "lora_alpha": 32, "target_modules": ["q", "v"]}
    return peft.get_peft_model(model, peft.LoraConfig(**settings, modules_to_save=["classification_head"]))


def absorb(backbone: str, plan: Plan, spec: TaskSpec, folder: Path, validation: Path) -> tuple[dict[str, Any], float]:
    """Run `sidecast absorb` on both models; return what it prints as JSON, and its seconds."""
    for method in RATES:  # one task for each model, alike but for the name
        lines = [f'name = "{method}"', f'kind = "{spec.kind}"', f'template = "{spec.template}"', 'metric = "accuracy"']
        lines += [f"labels = {json.dumps(list(spec.labels))}", f'target = "{spec.target}"']
        (folder / f"{method}.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = [sys.executable, "-m", "sidecast.cli", "absorb", "--json", "--backbone", backbone]
    words += [f"{folder / method}.toml={folder / method}" for method in RATES]
    words += ["--texts", str(folder / "texts.jsonl"), "--output", str(folder / "runs"), *plan.absorb]
    words += ["--registry", str(folder / "registry")]
    for method in RATES:
        words += ["--labelled", f"{method}={validation}"]
    started = time.monotonic()
    ran = subprocess.run(words, capture_output=True, text=True)
    seconds = time.monotonic() - started
    if not ran.stdout.strip():
        raise BenchmarkError(f"sidecast absorb failed: {ran.stderr.strip().splitlines()[-1:]}")
    return json.loads(ran.stdout), seconds


def figures(document: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Figures]:
    """The rows of the table."""
    found: dict[str, Figures] = {}
    for model in document["models"]:
        measured = model["measured"]
        found[f"{model['task']}, absorbed"] = {
            "agreement": measured["agreement"],
            "score": measured["accuracy"],
            "teacher_score": measured["teacher_accuracy"],
            "published": float(model["version"] is not None),
        }
    savings = document["savings"]
    for name, when in (("before: each model", "before"), ("after: one backbone", "after")):
        cost = savings[when]
        sizes = {"weights_mb": cost["weight_bytes"] / 1e6, "files_mb": cost["file_bytes"] / 1e6}
        found[name] = {**sizes, "ms": cost["seconds"] * 1e3}
    found["of it the backbone"] = {"weights_mb": savings["backbone_bytes"] / 1e6}
    for name, taken in seconds.items():
        found[name] = {"seconds": taken}
    return found


def _read(path: Path) -> list[dict[str, str]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise BenchmarkError(f"cannot read {path.name} of the task: {error}") from None


def measure(backbone: str, data: Path, plan: Plan, folder: Path) -> dict[str, Figures]:
    """Fine-tune, absorb, and return the rows of the table."""
    spec = load_task(plan.task)
    lines = _read(data / plan.task / "train.jsonl")
    random.Random(plan.seed).shuffle(lines)
    texts = [{field: row[field] for field in spec.fields} for row in lines[plan.rows : plan.rows + plan.texts]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in texts), encoding="utf-8")
    teachers = Teachers(backbone, spec, plan)
    seconds: dict[str, float] = {}
    for method in RATES:
        seconds[f"fine-tuning, {method}"] = teachers.make(method, lines[: plan.rows], folder)
        click.echo(f"{method}: {seconds[f'fine-tuning, {method}']:.0f} s", err=True)
    document, taken = absorb(backbone, plan, spec, folder, data / plan.task / "validation.jsonl")
    return figures(document, {**seconds, "absorbing both": taken})


@click.command()
@click.option("--backbone", required=True, metavar="B", help="A T5's Hugging Face folder.")
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True), help="Holds <task>/train.jsonl.")
@click.option("--task", default="sst2", show_default=True, help="A built-in classification task of one text.")
@click.option("--rows", default=2000, show_default=True, type=click.IntRange(1), help="Rows to fine-tune on.")
@click.option("--texts", default=8000, show_default=True, type=click.IntRange(20), help="Texts that the models answer.")
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1), help="Of fine-tuning.")
@click.option("--absorb", "options", multiple=True, metavar="WORD", help="A further word for sidecast absorb.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Of fine-tuning.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep models and runs there.")
@click.option("--save", is_flag=True, help="Write it to benchmarks/results/<date>-<machine>-absorb.json.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON line alone.")
def main(
    backbone: str,
    data: Path,
    options: tuple[str, ...],
    threads: int,
    folder: Path | None,
    save: bool,
    as_json: bool,
    **plan: Any,
) -> None:
    """Fine-tune two models, absorb both, and compare."""
    torch.set_num_threads(threads)
    machine, chosen = look(), Plan(**plan, absorb=options)
    with plain_errors(), tempfile.TemporaryDirectory(prefix="sidecast-absorb-") as scratch:
        found = measure(backbone, data, chosen, folder or Path(scratch))
        settings = {"backbone": Path(backbone).name, **plan, "absorb": list(options), "threads": threads}
        title = f"{chosen.task}: two models of {chosen.rows} rows absorbed over {chosen.texts} texts"
        report = Report(
            name="absorb", title=title, machine=machine, settings=settings, samples=Samples([found]), ratios={}
        )
        if save:
            click.echo(f"saved {report.save().name}", err=True)
        report.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
