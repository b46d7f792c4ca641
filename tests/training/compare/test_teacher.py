"""What `sidecast compare` trained, as the teacher of a side network."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from ladder import load_backbone, load_tokenizer
from side_registry.specs.task import TaskSpec
from tests import tiny
from tests.training import toy
from training import train
from training.compare.comparison import compare
from training.compare.folder import ComparisonFolder
from training.compare.inputs import Inputs, Settings
from training.data import read_labelled
from training.distillation import Distillation, MethodTeacher, load_teacher
from training.errors import RunError
from training.methods.trained import load_trained

TWO_VALUES = TaskSpec(name="shares", kind="regression", template="{sentence} | {end}", low=0, high=1)


def compared(folder: Path, spec: TaskSpec, tiny_t5: Path, method: str) -> tuple[Inputs, Path, float]:
    """What a comparison read, the file of one method, and its score on the validation rows."""
    parts = {
        name: read_labelled(toy.write(folder / f"{name}.jsonl", toy.rows(spec, 16, seed)), spec)
        for seed, name in enumerate(("train", "validation"))
    }
    inputs = Inputs(
        spec=spec,
        backbone=load_backbone(str(tiny_t5), dtype="float32"),
        source=str(tiny_t5),
        tokenizer=load_tokenizer(str(tiny_t5)),
        training=parts["train"],
        validation=parts["validation"],
        test=None,
        settings=Settings(epochs=2, batch_rows=8),
    )
    table = compare(inputs, [method], [0], {}, ComparisonFolder(folder / "out"), "sidecast compare", lambda text: None)
    return inputs, folder / "out" / "runs" / f"{method}-seed-0.safetensors", table.rows[0]["score"]


@pytest.mark.parametrize(
    ("spec", "method"),
    [(toy.TWO_TEXTS, "full"), (TWO_VALUES, "full"), (toy.CLASSES, "lora")],
    ids=["labels", "values", "PEFT"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_was_compared_teaches_with_the_answers_that_it_was_scored_by(tmp_path, tiny_t5, spec, method):
    inputs, file, score = compared(tmp_path, spec, tiny_t5, method)
    model = load_trained(file, spec, inputs.backbone, str(tiny_t5))
    rows = inputs.validation_rows
    alone = torch.cat([model.answers(rows.batch([index])) for index in range(16)])
    if spec.labels:
        right = [
            spec.labels[best] == example.target
            for best, example in zip(alone.argmax(-1).tolist(), rows.examples, strict=True)
        ]
        assert sum(right) / 16 == pytest.approx(score)
    settings = {"epochs": 1, "distill": 1.0, "teacher": str(file), "batch_rows": 8}
    job = toy.job(tmp_path, spec, inputs.backbone, inputs.tokenizer, count=16, **settings)
    seen: list[torch.Tensor] = []
    prepare = Distillation.prepare

    def spied(self, step):
        prepare(self, step)
        seen.append(self._answers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "prepare", spied)
        job = replace(job, training=inputs.validation, backbone_source=str(tiny_t5))
        artifact = train(job, tmp_path / "student")
    assert_close(seen[0], alone, rtol=1e-4, atol=1e-5)
    assert artifact.manifest.provenance["teacher"] == model.identity


def test_files_that_cannot_teach_are_refused(tmp_path, tiny_t5):
    inputs, file, _ = compared(tmp_path, toy.CLASSES, tiny_t5, "linear-probe")

    def load(file: Path, spec: TaskSpec = toy.CLASSES, backbone=inputs.backbone):
        return load_teacher(str(file), spec, backbone, inputs.tokenizer, None, str(tiny_t5))

    assert isinstance(load(file), MethodTeacher)
    with pytest.raises(RunError, match="its task has another labels"):
        load(file, toy.CLASSES.model_copy(update={"labels": ("aa", "cc")}))
    with pytest.raises(RunError, match="its task has another kind"):
        load(file, toy.VALUES)
    with pytest.raises(RunError, match="another backbone"):
        load(file, backbone=load_backbone(tiny.make_t5(tmp_path / "other", seed=9)))
    with pytest.raises(RunError, match="no file of a method"):
        load(tmp_path / "train.jsonl")
