"""What one knows without training: the majority class, and the bare backbone's own answer to a flan-style question."""

from collections import Counter
from pathlib import Path

import torch

from ladder import LabelTrie, load_backbone, load_tokenizer, run_backbone
from side_registry import KINDS, TaskSpec
from training.builtin_tasks import load_task
from training.data import read_examples
from training.evaluation import length_batches
from training.metrics import score

QUESTIONS = {
    "movie-sentiment": "Is this review positive or negative? {sentence}",
    "product-sentiment": "Is this review positive or negative? {sentence}",
    "tweet-sentiment": "Is this tweet positive or negative? {sentence}",
}
WORDS = ("negative", "positive")


def majority(task: str, train: Path, test: Path) -> float:
    """The test score of always answering the training rows' commonest label, or their mean value."""
    spec = load_task(task)
    known = [example.target for example in read_examples(train, spec)]
    targets = [example.target for example in read_examples(test, spec)]
    if KINDS[spec.kind].has_range:
        guess = sum(float(value) for value in known) / len(known)
    else:
        guess = Counter(known).most_common(1)[0][0]
    return score(spec.metric, [guess] * len(targets), targets, labels=spec.labels)[spec.metric]


def zero_shot(backbone: Path, task: str, test: Path) -> float:
    """The test score of the bare backbone: its likelier word of positive and negative, or how much likelier."""
    spec = load_task(task)
    examples = read_examples(test, spec)
    shares = positive_shares(backbone, task, spec, [example.fields for example in examples])
    if KINDS[spec.kind].has_range:
        predictions: list[str | float] = list(shares)
    else:
        predictions = [WORDS[share > 0.5] for share in shares]
    return score(spec.metric, predictions, [example.target for example in examples], labels=spec.labels)[spec.metric]


@torch.inference_mode()
def positive_shares(folder: Path, task: str, spec: TaskSpec, rows: list[dict[str, str]]) -> list[float]:
    """P(positive) of every row, from the backbone's own LM head."""
    backbone, tokenizer = load_backbone(folder), load_tokenizer(folder)
    trie = LabelTrie(tuple(tuple(tokenizer.encode(word)) for word in WORDS))
    inputs = tokenizer.encode_batch([QUESTIONS[task].format(**row) for row in rows], spec.max_source_tokens)
    shares: dict[int, float] = {}
    for places in length_batches([len(ids) for ids in inputs], 2048):
        given = run_backbone(backbone, [inputs[place] for place in places])

        def logits_after(prefix: tuple[int, ...], tokens: tuple[int, ...], given=given) -> torch.Tensor:
            final = given.decoder_taps(prefix).final
            assert final is not None
            return backbone.logits(final[:, -1], torch.tensor(tokens))

        probabilities = trie.log_probabilities(logits_after).exp()[:, 1].tolist()
        shares |= dict(zip(places, probabilities, strict=True))
    return [shares[place] for place in range(len(rows))]
