"""A run folder or a downloaded version, loaded to answer rows in this process: no server, no registry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ladder import Answer, Answerer, Backbone, SideNetwork, Tokenizer
from side_registry.manifest import Manifest, read_artifact
from side_registry.specs.task import TaskSpec
from table_files import ImageSource
from training.data import Example
from training.evaluation import (
    Model,
    answer_value,
    check_vision,
    confidences_of,
    load_model,
    predict,
    score_answers,
)
from training.images import encode_bytes, with_bytes
from training.metrics import Evaluation, evaluation_of, rows_to_answer
from vision import VisionEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A side network with the backbone and tokenizer that it was trained with. Many runs may share one backbone."""

    manifest: Manifest
    model: Model
    backbone: Backbone
    tokenizer: Tokenizer
    encoder: VisionEncoder | None = None
    """Of a task with images."""

    @property
    def spec(self) -> TaskSpec:
        """The task."""
        return self.model.spec

    @property
    def side(self) -> SideNetwork:
        """The side network: a torch module in evaluation mode, on the backbone's device."""
        return self.model.side

    @property
    def answerer(self) -> Answerer:
        """Turns the side network's outputs into answers; `ladder.Row` takes it."""
        return self.model.answerer

    def predict(self, rows: Sequence[str | Mapping[str, str | bytes]]) -> list[Answer]:
        """Answers in the rows' order, by the code that servers run. Batches are made by length.

        Args:
            rows: a dict of the template's fields and the bytes of the task's images, or a text where the template has
                one field and there are no images.

        Raises:
            InvalidRow: a row does not fit the spec.
            ImageError: bytes that are no image.
            InputsError: a task with images, and the run was loaded without an encoder.
            NotFiniteError: the side network answered NaN.
        """
        given = [self._fields(row) for row in rows]
        for row in given:
            self.spec.images_of(row)
        read_images = None if self.encoder is None else partial(encode_bytes, self.encoder)
        return predict(self.model, self.backbone, self.tokenizer, given, read_images=read_images)

    def score(self, examples: Sequence[Example], images: ImageSource | None = None) -> dict[str, float]:
        """Scores on labelled rows, as `sidecast evaluate` gives them: the spec's metric first, then its parts.

        Args:
            examples: one at least, as `read_examples` returns them.
            images: where a task's images are, as `training.images.open_images` opens it.

        Raises:
            MetricError: no rows, or answers that cannot be scored.
            NotFiniteError: the side network answered NaN.
        """
        return score_answers(self.spec, self.answers(examples, images), examples)

    def evaluate(self, examples: Sequence[Example], images: ImageSource | None = None) -> Evaluation:
        """What `sidecast evaluate` tells: scores, their 95 % intervals, calibration, and the scores of each class.

        Arguments and errors as of `score`.
        """
        answers = self.answers(examples, images)
        values = [answer_value(answer) for answer in answers]
        return evaluation_of(self.spec, values, confidences_of(answers), examples)

    def answers(self, examples: Sequence[Example], images: ImageSource | None = None) -> list[Answer]:
        """Answers to `rows_to_answer(spec, examples)`; arguments and errors as of `score`."""
        rows: Sequence[Mapping[str, str | bytes]] = rows_to_answer(self.spec, examples)
        if images is not None:
            rows = with_bytes(self.spec, rows, images)
        return self.predict(rows)

    def _fields(self, row: str | Mapping[str, str | bytes]) -> dict[str, Any]:
        """A text is the first field; where the template has more, `render` names those that are missing."""
        return dict.fromkeys(self.spec.fields[:1], row) if isinstance(row, str) else dict(row)


def load_run(
    folder: str | Path, backbone: Backbone, tokenizer: Tokenizer, encoder: VisionEncoder | None = None
) -> LoadedRun:
    """Load a finished run, or a version that `Registry.download` copied, on a backbone that is loaded already.

    Args:
        encoder: of a task with images: the one that it was trained with, on the backbone's device.

    Raises:
        ArtifactError: the folder is not a complete, sound run.
        RunError: it was trained on another backbone, tokenizer or encoder.
        CheckpointError: its weights do not fit or are damaged.
    """
    artifact = read_artifact(folder)
    model = load_model(artifact, backbone, tokenizer)
    if encoder is not None:
        check_vision(artifact, encoder.fingerprint, encoder.name)
    return LoadedRun(manifest=artifact.manifest, model=model, backbone=backbone, tokenizer=tokenizer, encoder=encoder)
