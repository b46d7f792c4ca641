"""How a side network starts, before its first step.

At random, or as a pruned copy of its backbone: LST's structural initialisation, which turns rows of the task into token
ids and features of images, those into importances (Fisher), and those into weights. A regression head starts at the
mean target. An embedding starts as the whitened mean of its text's token embeddings, with nothing added yet: whitening
weighs what few texts share over what all do, and on real text this start alone finds more than the mean of the frozen
backbone's last states, with half their numbers. Training has the side network add what single words cannot tell.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ladder import Backbone, SideNetwork, Tokenizer
from ladder.backbone import full_precision
from ladder.side import AttentionHead, MlpHead, Order, check_order, initialize, magnitude
from side_registry.specs.task import TaskSpec
from side_registry.specs.task_kinds import KINDS
from training.data import Example, references
from training.errors import RecipeError
from training.fisher import Sample, check_has_loss, fisher
from training.images import ImageFeatures
from training.images.inputs import image_ids
from training.recipes.recipe import SAMPLES, Init

Features = Mapping[str, ImageFeatures]
"""Features of the images of tasks, by the task's name."""
NO_FEATURES: Features = MappingProxyType({})


def start_side(
    side: SideNetwork,
    backbone: Backbone,
    *,
    init: Init,
    order: Order = "consistent",
    spec: TaskSpec | None = None,
    tokenizer: Tokenizer | None = None,
    examples: Sequence[Example] = (),
    others: Sequence[tuple[TaskSpec, Sequence[Example]]] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    align: bool | None = None,
    features: Features = NO_FEATURES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Give a freshly made side network its start, in place; the backbone stays as it is.

    Args:
        side: as `SideNetwork(...)` made it (T5's random start); on the backbone's device.
        init: random leaves it so. magnitude: the backbone's weights with the largest sums of absolute values. fisher:
            those that matter most to the task's rows; needs `spec`, `tokenizer` and `examples`.
        others: more tasks that share the side network, and their rows: samples are drawn from all rows together.
        order: consistent (ours) or reference (the authors' code's).
        align: see `ladder.side.structural_init.initialize`.
        samples: how many of `examples`, drawn by `seed`; all where there are fewer.
        features: for fisher, of every task whose rows have images.
        progress: called with samples done and samples in all, now and then; only Fisher takes long enough.

    Raises:
        RecipeError: fisher without rows.
        SideConfigError: a backbone that cannot be pruned so.
    """
    if init == "random":
        return
    backbone = full_precision(backbone)
    if init == "magnitude":
        initialize(side, backbone, magnitude(backbone), order=order, align=align)
        return
    if spec is None or tokenizer is None or not examples:
        raise RecipeError("init", init, "random or magnitude where there are no training rows")
    drawn = draw_samples(spec, tokenizer, examples, samples, seed, others, features)
    visual = None if side.config.visual is None else side.visual
    only = not side.config.has_decoder
    importance = fisher(backbone, drawn, visual=visual, encoder_only=only, progress=progress)
    initialize(side, backbone, importance, order=order, align=align)


def check_start(init: Init, order: Order, backbone: Backbone, spec: TaskSpec | None = None) -> None:
    """Refuse a start that `start_side` would refuse, before anything is computed or written. Raises as it does."""
    if init == "random":
        return
    check_order(backbone, order)
    if init == "fisher":
        check_has_loss(backbone)
        if spec is not None and (KINDS[spec.kind].target_is_input or KINDS[spec.kind].has_spans):
            rule = f"random or magnitude for {spec.kind}, whose targets the backbone cannot say"
            raise RecipeError("init", init, rule)


def draw_samples(
    spec: TaskSpec,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    count: int,
    seed: int,
    others: Sequence[tuple[TaskSpec, Sequence[Example]]] = (),
    features: Features = NO_FEATURES,
) -> list[Sample]:
    """`count` shuffled examples as token ids: the prompt, and the target as text (a label's word, a value's digits).

    Args:
        others: more tasks and their examples, which are drawn from as well.
        features: of every task whose rows have images.
    """
    pool = [(task, example) for task, rows in ((spec, examples), *others) for example in rows]
    random.Random(f"fisher:{seed}").shuffle(pool)
    drawn: list[Sample] = []
    for task, example in pool[:count]:
        [source] = tokenizer.encode_batch([task.render(example.fields)], task.max_source_tokens)
        [target] = tokenizer.encode_targets([target_text(references(example.target)[0])], task.max_new_tokens)
        images = None
        if task.images:
            [ids] = image_ids(task, [example.fields])
            images = features[task.name].read(ids)
        drawn.append(Sample(tuple(source), tuple(target), images))
    return drawn


def target_text(target: str | float | frozenset[str]) -> str:
    """A target as the backbone would write it: 3.8 is "3.8", as in the LST authors' targets; labels with commas."""
    if isinstance(target, frozenset):
        return ", ".join(sorted(target)) or "none"
    return target if isinstance(target, str) else f"{target:.1f}"


def start_at_targets(side: SideNetwork, examples: Sequence[Example]) -> float:
    """Set the bias of a regression head to the mean target, in place.

    Returns:
        The targets' standard deviation; 1 where they are all equal.
    """
    targets = torch.tensor([float(example.target) for example in examples])
    last = side.head.out if isinstance(side.head, MlpHead | AttentionHead) else side.head
    with torch.no_grad():
        last.bias.fill_(targets.mean().item())
    deviation = targets.std(correction=0).item()
    return deviation if deviation > 0 else 1.0


@torch.no_grad()
def start_at_words(side: SideNetwork, backbone: Backbone, inputs: Sequence[Sequence[int]]) -> None:
    """Set the head of a side network whose `config.words` is on, in place. Training leaves the words' part as it is.

    Args:
        inputs: token ids of the training texts.
    """
    device = side.words.weight.device
    means = torch.stack([backbone.embed(torch.tensor(ids, device=device)).float().mean(0) for ids in inputs])
    center = means.mean(0)
    weights = whitening(means - center, len(side.words.weight))
    side.words.weight.copy_(weights)
    side.words.requires_grad_(False)  # E x D weights that a few thousand pairs would only fit by heart
    assert isinstance(side.head, nn.Linear)
    side.head.weight.zero_()
    side.head.bias.copy_(-weights @ center)


def whitening(centered: Tensor, outputs: int) -> Tensor:
    """The directions in which rows differ most, so scaled that they count alike.

    Deviations are shrunk towards their mean: of few rows, the small ones are chance.

    Args:
        centered: (N, D), of mean 0.
        outputs: E, how many directions.
    Returns:
        (E, D) float32; directions past D are zero.
    """
    values, vectors = torch.linalg.eigh(centered.T @ centered / len(centered))
    variances = values.flip(0).clamp(min=0)
    directions = vectors.T.flip(0)
    scaled = directions / (variances + variances.mean()).clamp(min=torch.finfo(values.dtype).tiny).sqrt()[:, None]
    weights = centered.new_zeros(outputs, centered.shape[1])
    kept = scaled[:outputs] / outputs**0.5
    weights[: len(kept)] = kept
    return weights
