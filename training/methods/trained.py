"""A model that `sidecast compare` trained: its file, and the model of it, which answers rows.

The file has the weights that were trained, and in its metadata what else the model is made of.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ladder import Backbone
from side_registry.specs.task import TaskSpec
from training.errors import RunError
from training.methods.methods import METHODS
from training.methods.rows import Batch
from training.methods.scorers import Scorer
from training.methods.source import load_source

MADE_OF = "sidecast"
"""Of the file's metadata, what the model is made of, as JSON."""
SAME = ("kind", "template", "labels")
"""Of the task's spec: what another task must have in common with it to get its answers."""


def save_trained(file: Path, scorer: Scorer, method: str, backbone: Backbone) -> Mapping[str, Tensor]:
    """Write what was trained. Return its tensors, by name."""
    trained = {name: tensor for name, tensor in scorer.named_parameters() if tensor.requires_grad}
    made_of = {
        "method": method,
        "backbone": backbone.fingerprint,
        "task": {name: getattr(scorer.spec, name) for name in SAME},
        "mean": scorer.mean,
        "unit": scorer.unit,
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in trained.items()}
    save_file(tensors, file, {MADE_OF: json.dumps(made_of)})
    return trained


class TrainedModel:
    """A trained model, ready to answer."""

    def __init__(self, scorer: Scorer, identity: str) -> None:
        self.identity = identity
        """Names its file's contents."""
        self._scorer = scorer.eval()

    @torch.no_grad()
    def answers(self, batch: Batch) -> Tensor:
        """Log probabilities of the labels (B, labels), or values (B,); float32."""
        outputs = self._scorer(batch).float()
        return outputs[:, 0] if self._scorer.is_number else torch.log_softmax(outputs, -1)


def load_trained(file: Path, spec: TaskSpec, backbone: Backbone, source: str) -> TrainedModel:
    """The model of a file that `save_trained` wrote, for a task with the same template and answers.

    Args:
        source: the folder or hub id that `backbone` was loaded from.

    Raises:
        RunError: another file, or one of another task or backbone.
        ModuleNotFoundError: its method needs PEFT, and it is not installed.
    """
    made_of, tensors = _read(file)
    for name in SAME:
        taught, asked = made_of["task"][name], json.loads(json.dumps(getattr(spec, name)))
        if taught != asked:
            raise RunError(file, f"cannot answer {spec.name}: its task has another {name}, {taught!r}")
    if made_of["backbone"] != backbone.fingerprint:
        raise RunError(file, f"trained on another backbone than {backbone.name}; give that one")
    make = METHODS[made_of["method"]].make
    assert make is not None
    with torch.random.fork_rng(devices=[]), quiet():
        scorer = make(load_source(source, backbone, spec, made_of["mean"], made_of["unit"])).to(backbone.device)
    own = {name for name, tensor in scorer.named_parameters() if tensor.requires_grad}
    if own != tensors.keys():
        raise RunError(file, "has other weights than its method trains; run `sidecast compare` again")
    scorer.load_state_dict(tensors, strict=False)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return TrainedModel(scorer, f"sha256:{digest}")


def _read(file: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            made_of = json.loads((opened.metadata() or {})[MADE_OF])
            return made_of, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(file, f"is no file of a method that `sidecast compare` trained ({error})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and warnings of Hugging Face's libraries."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT asks T5 for an attribute by its old name
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
