"""Golden examples: those that would pass every answer, and those that would take too long, are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from side_registry import MANIFEST, ArtifactError, GoldenExample, Registry, TaskSpec, read_artifact, write_manifest
from side_registry.golden import MAX_REPLAY_TOKENS, replay_tokens
from tests.side_registry.runs import ROW, make_manifest, make_run

KINDS: dict[str, dict[str, Any]] = {
    "classification": {"labels": ["negative", "positive"]},
    "regression": {},
    "text": {},
    "embedding": {"dimensions": 2},
    "multilabel": {"labels": ["rude", "threat"]},
    "token_classification": {"labels": ["PER"]},
}
SPAN = {"start": 0, "end": 3, "label": "PER", "score": 0.9}


def write(folder: Path, kind: str, expected: dict[str, Any], **change: Any) -> Path:
    """A run folder of that kind with one golden example."""
    make_run(folder)
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["spec"] = {"name": "sst2", "kind": kind, "template": "{sentence}"} | KINDS[kind]
    manifest["examples"] = [{"fields": ROW, "expected": expected}]
    path.write_text(json.dumps(manifest | change))
    return folder


@pytest.mark.parametrize(
    ("kind", "expected", "says"),
    [
        ("classification", {}, "needs score or scores"),
        ("classification", {"label": "positive"}, "needs score or scores"),
        ("classification", {"newer": 1}, "unknown key 'newer'"),
        ("classification", {"scores": [0.1, 0.9], "lable": "positive"}, "unknown key 'lable'"),
        ("classification", {"scores": [0.1, 0.9], "label": "neutral"}, "'neutral' is none of the spec's labels"),
        ("classification", {"scores": [0.1, 0.2, 0.7]}, "must be 2 finite numbers"),
        ("classification", {"scores": [0.1, float("nan")]}, "must be 2 finite numbers"),
        ("classification", {"scores": "01"}, "must be 2 finite numbers"),
        ("classification", {"score": 10**400}, "must be a finite number"),
        ("classification", {"score": True}, "must be a finite number"),
        ("regression", {}, "needs value"),
        ("regression", {"value": float("inf")}, "must be a finite number"),
        ("regression", {"value": "3"}, "must be a finite number"),
        ("regression", {"value": None}, "must be a finite number"),
        ("text", {}, "needs text"),
        ("text", {"text": 3}, "must be a text"),
        ("embedding", {}, "needs embedding"),
        ("embedding", {"embedding": [0.6, 0.8, 0.0]}, "must be 2 finite numbers"),
        ("embedding", {"embedding": []}, "must be 2 finite numbers"),
        ("multilabel", {"labels": ["rude"]}, "needs scores"),
        ("multilabel", {"labels": ["kind"], "scores": [0.1, 0.9]}, "must be a list of the spec's labels"),
        ("multilabel", {"labels": "rude", "scores": [0.1, 0.9]}, "must be a list of the spec's labels"),
        ("multilabel", {"scores": [0.1]}, "must be 2 finite numbers"),
        ("token_classification", {"spans": []}, "needs outside"),
        ("token_classification", {"outside": ["0"]}, "must be finite numbers, one for each word"),
        ("token_classification", {"outside": [0.5], "spans": [SPAN | {"label": "LOC"}]}, "none of the spec's labels"),
        ("token_classification", {"outside": [0.5], "spans": [SPAN | {"end": 0}]}, "must have 0 <= start < end"),
        ("token_classification", {"outside": [0.5], "spans": [{"start": 0}]}, "must have start, end, label and score"),
    ],
)
def test_an_example_that_cannot_be_compared_is_refused(tmp_path: Path, kind: str, expected: dict, says: str) -> None:
    with pytest.raises(ArtifactError, match=r"examples\.0\.expected: ") as caught:
        read_artifact(write(tmp_path / "run", kind, expected))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("classification", {"label": "positive", "scores": [0.1, 0.9]}),
        ("classification", {"score": 0.9}),
        ("regression", {"value": -3}),
        ("text", {"text": ""}),
        ("embedding", {"embedding": [0.6, 0.8]}),
        ("token_classification", {"outside": [0.1, 0.9], "spans": [SPAN]}),
    ],
)
def test_an_example_that_can_be_compared_is_kept(tmp_path: Path, kind: str, expected: dict) -> None:
    [example] = read_artifact(write(tmp_path / "run", kind, expected)).manifest.examples
    assert example.expected == expected


@pytest.mark.parametrize("tolerance", [float("inf"), float("nan"), "inf", 1e9, 0.5, -0.1])
def test_a_tolerance_that_passes_every_answer_is_refused(tmp_path: Path, tolerance: Any) -> None:
    run = write(tmp_path / "run", "regression", {"value": 3.0}, tolerance={"float32": tolerance})
    with pytest.raises(ArtifactError, match=r"tolerance\.float32: must be within 0\.\.0\.2"):
        read_artifact(run)


def test_a_row_counts_its_bytes_or_the_specs_limit_and_a_text_its_answer() -> None:
    short = GoldenExample(fields={"sentence": "ab"}, expected={})
    long = GoldenExample(fields={"sentence": "ab" * 400}, expected={})
    spec = TaskSpec(name="sst2", kind="regression", template="{sentence}", max_source_tokens=100)
    assert replay_tokens(spec, [short, long]) == 4 + 100
    text = TaskSpec.model_validate(
        {"name": "t", "kind": "text", "template": "{sentence}", "max_new_tokens": 8, "generation": {"num_beams": 3}}
    )
    assert replay_tokens(text, [short]) == 4 + 3 * 8


def test_examples_of_too_many_tokens_are_not_published(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    manifest = make_manifest()
    spec = manifest.spec.model_copy(update={"max_source_tokens": 2048})
    long = manifest.examples[0].model_copy(update={"fields": {"sentence": "word " * 1000}})
    fits = MAX_REPLAY_TOKENS // 2048
    registry = Registry.open(tmp_path / "registry", create=True)
    write_manifest(run, manifest.model_copy(update={"spec": spec, "examples": (long,) * (fits + 1)}))
    with pytest.raises(ArtifactError, match="may have 67,584 tokens, at most 65,536 are allowed"):
        registry.publish(run)
    assert registry.state().tasks == {}
    write_manifest(run, manifest.model_copy(update={"spec": spec, "examples": (long,) * fits}))
    assert registry.publish(run).version == 1


def test_an_example_that_is_no_row_is_not_published(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    example = make_manifest().examples[0].model_copy(update={"fields": {"text": "x"}})
    write_manifest(run, make_manifest().model_copy(update={"examples": (example,)}))
    with pytest.raises(ArtifactError, match="golden example's field 'sentence' is missing"):
        Registry.open(tmp_path / "registry", create=True).publish(run)
