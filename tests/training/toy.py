"""A toy task that a tiny random backbone can learn: which letter a sentence is made of."""

import json
import random
from pathlib import Path

from side_registry.specs.task import TaskSpec
from training.data import read_labelled
from training.job import Job
from training.recipes.recipe import Recipe

CLASSES = TaskSpec(name="letters", kind="classification", template="{sentence}", labels=("aa", "bb"))
VALUES = TaskSpec(name="share", kind="regression", template="{sentence}", low=0, high=1)
TWO_TEXTS = TaskSpec(name="ends", kind="classification", template="{sentence} | {end}", labels=("aa", "bb"))
TEXTS = TaskSpec(name="echo", kind="text", template="{sentence}", max_new_tokens=6)
MANY = TaskSpec(name="has", kind="multilabel", template="{sentence}", labels=("aa", "bb", "many"))
"""Labels: some a, more than two b, at least eight letters."""
MANY_METRICS = ("f1_micro", "f1_macro", "average_precision")
NAMES = TaskSpec(name="names", kind="token_classification", template="{text}", labels=("PER", "LOC"))
BEGINNINGS = TaskSpec(name="beginnings", kind="ranking", template="{query} {sentence}")
"""Relevant: a sentence that is mostly b."""
PAIRS = TaskSpec(name="capitals", kind="embedding", template="{sentence}", dimensions=8)


def rows(spec: TaskSpec, count: int, seed: int = 0) -> list[dict[str, object]]:
    pick = random.Random(seed)
    if spec.kind == "embedding":
        return pairs(pick, count)
    if spec.kind == "token_classification":
        return [tagged(pick) for _ in range(count)]
    made: list[dict[str, object]] = []
    for _ in range(count):
        share = pick.random()
        sentence = "".join("b" if pick.random() < share else "a" for _ in range(pick.randint(4, 10)))
        truth = sentence.count("b") / len(sentence)
        flags = {"aa": "a" in sentence, "bb": sentence.count("b") > 2, "many": len(sentence) > 7}
        target: object = {
            "classification": "bb" if truth > 0.5 else "aa",
            "regression": truth,
            "multilabel": [label for label, is_right in flags.items() if is_right],
            "ranking": float(truth > 0.5),
        }.get(spec.kind, sentence[0])
        ends: dict[str, object] = {"end": sentence[-3:]} if "end" in spec.fields else {}
        if "query" in spec.fields:
            ends = {"query": pick.choice("xyz")}
        made.append({"sentence": sentence, **ends, spec.target: target})
    return made


def pairs(pick: random.Random, count: int) -> list[dict[str, object]]:
    """The same letters as capitals, in any order."""
    made: list[dict[str, object]] = []
    for _ in range(count):
        letters = pick.choices("abcdef", k=pick.randint(3, 8))
        made.append({"sentence": "".join(letters), "positive": "".join(pick.sample(letters, len(letters))).upper()})
    return made


def tagged(pick: random.Random) -> dict[str, object]:
    """Words of a and b; those of X are persons and those of Y places, one word or two."""
    tokens: list[str] = []
    tags: list[str] = []
    for _ in range(pick.randint(2, 5)):
        letter, label = pick.choice([("ab", ""), ("ab", ""), ("X", "PER"), ("Y", "LOC")])
        for number in range(pick.randint(1, 2)):
            tokens.append("".join(pick.choices(letter, k=3)))
            tags.append(("I-" if number else "B-") + label if label else "O")
    return {"tokens": tokens, "tags": tags}


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def job(folder: Path, spec: TaskSpec, backbone, tokenizer, count: int = 96, **recipe: object) -> Job:
    settings = {"epochs": 2, "batch_rows": 8, "reduction": 4, "cache_gb": 0.1} | recipe
    return Job(
        spec=spec,
        backbone=backbone,
        backbone_source=backbone.name,
        tokenizer=tokenizer,
        training=read_labelled(write(folder / "train.jsonl", rows(spec, count)), spec),
        validation=read_labelled(write(folder / "validation.jsonl", rows(spec, 40, seed=1)), spec),
        recipe=Recipe(**settings),  # type: ignore[arg-type]
    )
