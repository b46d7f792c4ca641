"""A run folder or a downloaded version, loaded to answer rows in this process: no server, no registry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ladder import Answer, Answerer, Backbone, SideNetwork, Tokenizer
from side_registry.manifest import Manifest, read_artifact
from side_registry.task import TaskSpec
from training.data import Example
from training.evaluation import Model, load_model, predict, score_answers
from training.metrics import rows_to_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A side network with the backbone and tokenizer that it was trained with. Many runs may share one backbone."""

    manifest: Manifest
    model: Model
    backbone: Backbone
    tokenizer: Tokenizer

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

    def predict(self, rows: Sequence[str | Mapping[str, str]]) -> list[Answer]:
        """Answers in the rows' order, by the code that servers run. Batches are made by length.

        Args:
            rows: a dict of the template's fields, or a text where the template has one field.

        Raises:
            InvalidRow: a row does not fit the spec.
            NotFiniteError: the side network answered NaN.
        """
        return predict(self.model, self.backbone, self.tokenizer, [self._fields(row) for row in rows])

    def score(self, examples: Sequence[Example]) -> dict[str, float]:
        """Scores on labelled rows, as `sidecast evaluate` gives them: the spec's metric first, then its parts.

        Args:
            examples: one at least, as `read_examples` returns them.

        Raises:
            MetricError: no rows, or answers that cannot be scored.
            NotFiniteError: the side network answered NaN.
        """
        answers = self.predict(rows_to_answer(self.spec, examples))
        return score_answers(self.spec, answers, examples)

    def _fields(self, row: str | Mapping[str, str]) -> dict[str, str]:
        """A text is the first field; where the template has more, `render` names those that are missing."""
        return {self.spec.fields[0]: row} if isinstance(row, str) else dict(row)


def load_run(folder: str | Path, backbone: Backbone, tokenizer: Tokenizer) -> LoadedRun:
    """Load a finished run, or a version that `Registry.download` copied, on a backbone that is loaded already.

    Raises:
        ArtifactError: the folder is not a complete, sound run.
        RunError: it was trained on another backbone or tokenizer.
        CheckpointError: its weights do not fit or are damaged.
    """
    artifact = read_artifact(folder)
    model = load_model(artifact, backbone, tokenizer)
    return LoadedRun(manifest=artifact.manifest, model=model, backbone=backbone, tokenizer=tokenizer)
