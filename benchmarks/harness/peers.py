"""Peers that run on torch, in their fastest mode: Hugging Face's T5, and PEFT's LoRAs on it.

They load the same folder of weights, in the same process. CTranslate2 has its own process: see
`benchmarks.harness.converted`.
Only the benchmarks need PEFT and CTranslate2: the extra `bench` installs them.
"""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.models import Loaded
from benchmarks.harness.samples import BenchmarkError

RANK = 8
"""Rank of a LoRA."""


def peer(module: str) -> Any:
    """Import a peer's module.

    Raises:
        BenchmarkError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BenchmarkError(f"{module} is not installed: run `make bench`, or pip install 'sidecast[bench]'") from None


def hugging_face(loaded: Loaded) -> Any:
    """Return Hugging Face's T5 with the same weights, dtype and device, and its fastest attention."""
    from transformers import T5ForConditionalGeneration

    hush()
    model: Any = T5ForConditionalGeneration.from_pretrained(loaded.folder, dtype=loaded.backbone.dtype)
    return model.to(loaded.backbone.device).eval()


def hush() -> None:
    """Turn off Hugging Face's progress bars and warnings, which would mix with our output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def pad(rows: Sequence[Sequence[int]], device: torch.device, padding: int = 0) -> dict[str, Tensor]:
    """Return Hugging Face's arguments for token rows: `input_ids` and `attention_mask`, (B, S)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


class Loras:
    """LoRAs of rank 8 on queries and values, PEFT's default for T5, and an LM head with the label words only.

    The reduced head favours PEFT, which would otherwise score the whole vocabulary.
    """

    def __init__(self, loaded: Loaded, count: int, words: Sequence[int]) -> None:
        peft = peer("peft")
        self._device = loaded.backbone.device
        self._start = loaded.backbone.config.decoder_start_token_id
        base = hugging_face(loaded)
        base.lm_head = _sliced(base.lm_head, words)
        self.names = [f"lora-{number}" for number in range(count)]
        config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=RANK, lora_alpha=RANK, init_lora_weights=False)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            self._model = peft.get_peft_model(base, config, adapter_name=self.names[0])
            for name in self.names[1:]:
                self._model.add_adapter(name, config)
        self._model.to(device=self._device, dtype=loaded.backbone.dtype).eval()
        self._model.set_adapter(self.names[0])

    @torch.inference_mode()
    def answer(self, rows: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> list[list[float]]:
        """Return probabilities of the label words. `names`: the LoRA of each row, in a mixed batch; None: the first."""
        inputs = pad(rows, self._device)
        start = torch.full((len(rows), 1), self._start, device=self._device)
        mixed = {} if names is None else {"adapter_names": list(names)}
        logits = self._model(**inputs, decoder_input_ids=start, use_cache=False, **mixed).logits
        return torch.softmax(logits[:, -1].float(), -1).tolist()


def _sliced(head: nn.Linear, words: Sequence[int]) -> nn.Linear:
    small = nn.Linear(head.in_features, len(words), bias=False, device=head.weight.device, dtype=head.weight.dtype)
    small.weight.data.copy_(head.weight.data[torch.tensor(words, device=head.weight.device)])
    return small
