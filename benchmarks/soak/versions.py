"""Makes versions of the soak's tasks: random weights, so different that their answers cannot be confused."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.models import Loaded
from ladder import SideNetwork, save_side
from ladder.side import as_served
from side_registry import KINDS, SIDE_NETWORK, BackboneRef, GoldenExample, Manifest, TaskSpec, write_manifest
from training.artifact import golden_expectation
from training.evaluation import Model, make_answerer, predict
from training.recipes.recipe import Recipe

GOLDEN = ({"sentence": "a gripping film"}, {"sentence": "far too long for what it has to say"})
REDUCTIONS = (4, 8, 16)
"""The two largest that the backbone allows are used in turn, so that the shapes of side networks change too."""
NOISE = {"text": 0.01, "linear": 0.1}
"""Standard deviation of the noise on the weights, by head: a new side network hardly changes the answer."""
LABELS = ("negative", "positive", "neutral")
DIMENSIONS = 8
LONGEST = 4
"""Tokens of a text."""
VARIANTS = 5


def make_spec(number: int) -> TaskSpec:
    """Return the spec of a task: classification by a head or by words, regression, embedding and text in turn."""
    name, template = f"task-{number:02d}", "{sentence}"
    match number % VARIANTS:
        case 0 | 1:
            return TaskSpec(name=name, kind="classification", template=template, labels=LABELS)
        case 2:
            return TaskSpec(name=name, kind="regression", template=template)
        case 3:
            return TaskSpec(name=name, kind="embedding", template=template, dimensions=DIMENSIONS)
        case _:
            return TaskSpec(name=name, kind="text", template=template, max_new_tokens=LONGEST)


def make_version(folder: Path, loaded: Loaded, number: int, seed: int, *, broken: bool = False) -> Path:
    """Write a run folder for the task of that number.

    Servers refuse a broken one: its golden examples are wrong. For a text task, whose texts are not compared in every
    precision, it names another tokenizer.
    """
    spec = make_spec(number)
    head, makes_text = ("text" if number % VARIANTS in (1, 4) else "linear"), KINDS[spec.kind].makes_text
    model = _random(loaded, spec, head, seed)
    folder.mkdir(parents=True)
    save_side(folder / SIDE_NETWORK, model.side)
    manifest = Manifest(
        task=spec.name,
        spec=spec,
        backbone=BackboneRef(
            name=loaded.backbone.name,
            fingerprint=loaded.backbone.fingerprint,
            quantization=loaded.backbone.quantization,
        ),
        tokenizer_fingerprint="another" if broken and makes_text else loaded.tokenizer.fingerprint,
        side=model.side.config.to_dict(),
        provenance={"run_id": f"random-{number}-{seed}-{broken}", "seed": seed, "dtype": loaded.dtype},
        examples=_examples(loaded, model, shift=1000.0 if broken else 0.0),
    )
    write_manifest(folder, manifest)
    return folder


def _random(loaded: Loaded, spec: TaskSpec, head: str, seed: int) -> Model:
    width = loaded.backbone.config.d_kv
    fitting = [reduction for reduction in REDUCTIONS if width % reduction == 0][-2:]
    config = Recipe(head=head, reduction=fitting[seed % len(fitting)], encoder_layers="all").side_config(spec)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        side = SideNetwork(config, loaded.backbone.config)
        for parameter in side.parameters():
            parameter.add_(torch.randn_like(parameter) * NOISE[head])
    side = as_served(side, loaded.backbone.dtype).to(loaded.backbone.device)
    return Model(spec=spec, side=side, answerer=make_answerer(spec, side, loaded.tokenizer))


def _examples(loaded: Loaded, model: Model, shift: float) -> tuple[GoldenExample, ...]:
    """Return the model's answers, with `shift` added to every number."""
    predicted = predict(model, loaded.backbone, loaded.tokenizer, list(GOLDEN))
    answers = [golden_expectation(answer) for answer in predicted]
    shifted = [{name: _shifted(value, shift) for name, value in expected.items()} for expected in answers]
    return tuple(GoldenExample(fields=row, expected=expected) for row, expected in zip(GOLDEN, shifted, strict=True))


def _shifted(value: Any, shift: float) -> Any:
    if isinstance(value, list | tuple):
        return [number + shift for number in value]
    return value if isinstance(value, str) else value + shift
