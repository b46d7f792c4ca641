"""How a side network starts: at random, or as a pruned copy of its backbone. LST's structural initialisation.

Ties the pieces together: rows of the task to token ids, those to importances (Fisher), those to weights.
"""

import random
from collections.abc import Callable, Sequence

from ladder import Backbone, SideNetwork, Tokenizer
from ladder.quantise import full_precision
from ladder.structural import Order, check_order, initialise, magnitude
from side_registry.task import TaskSpec
from training.data import Example
from training.errors import RecipeError
from training.importance import Sample, check_has_loss, fisher
from training.recipe import SAMPLES, Init


def start_side(
    side: SideNetwork,
    backbone: Backbone,
    *,
    init: Init,
    order: Order = "consistent",
    spec: TaskSpec | None = None,
    tokenizer: Tokenizer | None = None,
    examples: Sequence[Example] = (),
    samples: int = SAMPLES,
    seed: int = 0,
    align: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Give a freshly made side network its start, in place; the backbone stays as it is.

    Args:
        side: as `SideNetwork(...)` made it (T5's random start); on the backbone's device.
        init: random leaves it so. magnitude: the backbone's weights with the largest sums of absolute values. fisher:
            those that matter most to the task's rows; needs `spec`, `tokenizer` and `examples`.
        order: consistent (ours) or reference (the authors' code's).
        align: see `ladder.structural.initialise`.
        samples: how many of `examples`, drawn by `seed`; all where there are fewer.
        progress: told samples done and samples in all, now and then; only Fisher takes long enough.

    Raises:
        RecipeError: fisher without rows.
        SideConfigError: a backbone that cannot be pruned so.
    """
    if init == "random":
        return
    backbone = full_precision(backbone)
    if init == "magnitude":
        initialise(side, backbone, magnitude(backbone), order=order, align=align)
        return
    if spec is None or tokenizer is None or not examples:
        raise RecipeError("init", init, "random or magnitude where there are no training rows")
    drawn = draw_samples(spec, tokenizer, examples, samples, seed)
    importance = fisher(backbone, drawn, encoder_only=not side.config.has_decoder, progress=progress)
    initialise(side, backbone, importance, order=order, align=align)


def check_start(init: Init, order: Order, backbone: Backbone, spec: TaskSpec | None = None) -> None:
    """Tell what is wrong with a start before anything is computed or written. Raises as `start_side`."""
    if init == "random":
        return
    check_order(backbone, order)
    if init == "fisher":
        check_has_loss(backbone)
        if spec is not None and spec.kind == "embedding":
            raise RecipeError("init", init, "random or magnitude for embedding, whose targets the backbone cannot say")


def draw_samples(
    spec: TaskSpec, tokenizer: Tokenizer, examples: Sequence[Example], count: int, seed: int
) -> list[Sample]:
    """`count` shuffled examples as token ids: the prompt, and the target as text (a label's word, a value's digits)."""
    order = list(range(len(examples)))
    random.Random(f"fisher:{seed}").shuffle(order)
    drawn = [examples[place] for place in order[:count]]
    sources = tokenizer.encode_batch([spec.render(example.fields) for example in drawn], spec.max_source_tokens)
    targets = tokenizer.encode_targets([target_text(example.target) for example in drawn], spec.max_new_tokens)
    return [Sample(tuple(source), tuple(target)) for source, target in zip(sources, targets, strict=True)]


def target_text(target: str | float) -> str:
    """What the backbone would say for it: 3.8 is "3.8", as in the LST authors' targets."""
    return target if isinstance(target, str) else f"{target:.1f}"
