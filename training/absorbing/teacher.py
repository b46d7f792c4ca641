"""A fine-tuned classifier of any architecture as teacher: it reads rows with its own tokenizer, and answers.

Knows transformers and PEFT, and no backbone: the teacher's answers are all that a side network learns from. Code that
lies in a teacher's folder is never run.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from side_registry.specs.task import TaskSpec
from training.absorbing.folders import TeacherFolder
from training.errors import TeacherError

BATCH_ROWS = 32
MOST_TOKENS = 512
"""Tokens of a row that a teacher without a limit of its own reads."""
SAME = 1e-4
"""Largest difference between a teacher's two answers to the same rows."""
SAFELY: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class HfTeacher:
    """A loaded teacher."""

    folder: TeacherFolder
    model: Any
    """A transformers model for sequence classification, in evaluation mode."""
    tokenizer: Any
    labels: tuple[str, ...]
    """Its labels in the order of its outputs; empty for regression."""

    @property
    def has_own_names(self) -> bool:
        """Whether its labels have names, not only numbers as LABEL_0."""
        return not all(label == f"LABEL_{index}" for index, label in enumerate(self.labels))

    @property
    def weight_bytes(self) -> int:
        """Of all its tensors, each once."""
        return tensor_bytes(self.model)

    @torch.inference_mode()
    def outputs(self, rows: Sequence[Sequence[str]]) -> Tensor:
        """Logits (N, labels) or values (N, 1), float32 on the CPU.

        Args:
            rows: one text each, or two.

        Raises:
            TeacherError: it cannot read the rows.
        """
        texts = [list(part) for part in zip(*rows, strict=True)]
        encoded = self.tokenizer(
            *texts, padding=len(rows) > 1, truncation=True, max_length=self._most_tokens(), return_tensors="pt"
        )
        try:
            logits = self.model(**encoded.to(self.model.device)).logits
        except (ValueError, IndexError, RuntimeError) as error:
            raise TeacherError(self.folder.path, f"cannot answer its rows: {str(error).splitlines()[0]}") from None
        return logits.float().cpu()

    def answers(self, rows: Sequence[Sequence[str]], step: Callable[[int, int], None]) -> Tensor:
        """As `outputs`, for any number of rows, in batches of rows of similar length.

        Raises:
            TeacherError: as `outputs`; answers that are not finite, or not the same when asked again.
        """
        size = BATCH_ROWS if self._pads else 1
        order = sorted(range(len(rows)), key=lambda index: sum(map(len, rows[index])))
        parts: list[Tensor] = []
        for start in range(0, len(order), size):
            batch = [rows[index] for index in order[start : start + size]]
            part = self.outputs(batch)
            if not torch.isfinite(part).all():
                raise TeacherError(self.folder.path, "its answers are not finite (NaN or infinite); it cannot teach")
            if not parts:
                self._check_same(batch, part)
            parts.append(part)
            step(min(start + size, len(order)), len(order))
        joined = torch.cat(parts)
        answers = torch.empty_like(joined)
        answers[order] = joined
        return answers

    def seconds(self, rows: Sequence[Sequence[str]]) -> list[float]:
        """What each row alone takes it, tokenization included."""
        self.outputs(rows[:1])  # the first call is slower
        taken: list[float] = []
        for row in rows:
            started = time.perf_counter()
            self.outputs([row])
            taken.append(time.perf_counter() - started)
        return taken

    @property
    def _pads(self) -> bool:
        return self.tokenizer.pad_token is not None and self.model.config.pad_token_id is not None

    def _most_tokens(self) -> int:
        config = self.model.config
        positions = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
        if config.model_type in ("roberta", "xlm-roberta", "camembert", "longformer", "mpnet"):
            positions -= (config.pad_token_id or 0) + 1  # their positions start after that of padding
        return max(1, min(self.tokenizer.model_max_length, positions, MOST_TOKENS))

    def _check_same(self, batch: Sequence[Sequence[str]], first: Tensor) -> None:
        again = self.outputs(batch)
        difference = (first - again).abs().max().item()
        if not difference <= SAME:
            why = f"answers the same rows differently when asked again (by {difference:.3g}); switch its randomness off"
            raise TeacherError(self.folder.path, why)


def load_teacher_model(folder: TeacherFolder, device: torch.device) -> HfTeacher:
    """Load a model for sequence classification, or an adapter on one.

    Raises:
        TeacherError: another kind of model, code of its own, weights that lack a head, or several answers a row.
        ModuleNotFoundError: an adapter, and PEFT is not installed.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    _check_kind(folder)
    brings_head = folder.adapter_labels is not None
    try:
        with _quiet():
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                folder.model,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=brings_head,  # the adapter's head takes the place of the base's
                **SAFELY,
                **_changes(folder),
            )
            has_tokenizer = (folder.path / "tokenizer_config.json").is_file()
            tokenizer = AutoTokenizer.from_pretrained(folder.path if has_tokenizer else folder.model, **SAFELY)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise TeacherError(folder.path, f"cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    missing = sorted(loading["missing_keys"])
    if missing and not brings_head:
        raise TeacherError(folder.path, f"its weights lack {missing[0]}; give a model that was fine-tuned to classify")
    if folder.is_adapter:
        model = _with_adapter(model, folder)
    model = model.to(device).eval()
    return HfTeacher(folder=folder, model=model, tokenizer=tokenizer, labels=_labels(folder, model.config))


def teacher_labels(folder: TeacherFolder) -> tuple[str, ...]:
    """A teacher's labels in the order of its outputs, read from its configuration; empty where it answers a number.

    Raises:
        TeacherError: another kind of model, or a configuration that transformers does not know.
    """
    from transformers import AutoConfig

    _check_kind(folder)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder.model, **SAFELY, **_changes(folder))
    except (OSError, ValueError, KeyError) as error:
        raise TeacherError(folder.path, f"cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    return _labels(folder, config)


def in_order_of(spec: TaskSpec, teacher: HfTeacher, outputs: Tensor) -> Tensor:
    """What a side network of `spec` learns from: (N, labels) log probabilities in the spec's order, or (N,) values."""
    if spec.kind == "regression":
        return outputs[:, 0].clamp(spec.low, spec.high) if (spec.low, spec.high) != (None, None) else outputs[:, 0]
    order = range(len(spec.labels))
    if teacher.has_own_names:
        order = [teacher.labels.index(label) for label in spec.labels]
    return torch.log_softmax(outputs[:, list(order)], -1)


def check_labels(spec: TaskSpec, teacher: HfTeacher) -> None:
    """Raises TeacherError: the teacher's labels are not the task's."""
    path = teacher.folder.path
    if spec.kind not in ("classification", "regression"):
        raise TeacherError(path, f"cannot teach {spec.name}: {spec.kind} is neither classification nor regression")
    if (spec.kind == "regression") != (not teacher.labels):
        what = "labels" if teacher.labels else "a number"
        raise TeacherError(path, f"answers {what}, and task {spec.name} is {spec.kind}; give another task")
    same = len(teacher.labels) == len(spec.labels)
    if teacher.has_own_names:
        same = sorted(teacher.labels) == sorted(spec.labels)
    if not same:
        theirs = ", ".join(teacher.labels)
        raise TeacherError(path, f"has the labels {theirs}, and task {spec.name} has {', '.join(spec.labels)}")


def texts_of(spec: TaskSpec, fields: Mapping[str, str]) -> tuple[str, ...]:
    """What a teacher reads of a row: the fields' texts, one or a pair, without the task's template."""
    return tuple(fields[name] for name in spec.fields)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, those that share memory once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in module.state_dict().values()}
    return sum(tensors.values())


def _check_kind(folder: TeacherFolder) -> None:
    config = folder.config
    if config.get("problem_type") == "multi_label_classification":
        raise TeacherError(folder.path, "answers with several labels a row; absorb takes one label or one number")
    names = config.get("architectures") or []
    kinds = ("ForSequenceClassification",)
    if names and not folder.is_adapter and not any(name.endswith(kinds) for name in names):
        why = f"is a {names[0]}; absorb takes models for sequence classification, of labels or of one number"
        raise TeacherError(folder.path, why)


def _changes(folder: TeacherFolder) -> dict[str, Any]:
    """What an adapter changes in its base's configuration."""
    return {} if folder.adapter_labels is None else {"num_labels": folder.adapter_labels}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' reports and bars: a head that weights lack is an error here."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    had_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()


def _with_adapter(model: Any, folder: TeacherFolder) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder.path))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TeacherError(folder.path, f"cannot be loaded on its base: {' '.join(str(error).split())[:300]}") from None


def _labels(folder: TeacherFolder, config: Any) -> tuple[str, ...]:
    count = config.num_labels
    regression = folder.config.get("problem_type") == "regression"
    if regression and count > 1:
        raise TeacherError(folder.path, f"answers {count} numbers a row; absorb takes one number")
    if count == 1:
        return ()
    own = {int(index): str(label) for index, label in (folder.config.get("id2label") or {}).items()}
    names = own if len(own) == count else config.id2label
    return tuple(str(names[index]) for index in range(count))
