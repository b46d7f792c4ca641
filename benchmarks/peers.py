"""The peers, at their best: Hugging Face's T5, PEFT's LoRAs on it, CTranslate2's conversion of it.

All start from the same folder of weights as ours. PEFT and CTranslate2 are no dependencies of the project's but of its
benchmarks alone: the extra `bench`.
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import BenchmarkError
from benchmarks.models import Loaded

RANK = 8
"""Of a LoRA."""


def peer(module: str) -> Any:
    """A peer's module.

    Raises:
        BenchmarkError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BenchmarkError(f"{module} is not installed: run `make bench`, or pip install 'sidecast[bench]'") from None


def hugging_face(loaded: Loaded) -> Any:
    """Their T5 of the same weights, dtype and device, with the fastest attention that it has."""
    from transformers import T5ForConditionalGeneration

    hush()
    model: Any = T5ForConditionalGeneration.from_pretrained(loaded.folder, dtype=loaded.backbone.dtype)
    return model.to(loaded.backbone.device).eval()


def hush() -> None:
    """Their progress bars and advice would stand between our lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def pad(rows: Sequence[Sequence[int]], device: torch.device, padding: int = 0) -> dict[str, Tensor]:
    """Their arguments for token rows: `input_ids` and `attention_mask`, (B, S)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


class Loras:
    """LoRAs of rank 8 on the queries and values, PEFT's own choice for T5, and a head of the label words alone.

    The sliced head is to PEFT's favour: it would score the whole vocabulary.
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
        """Probabilities of the label words. `names`: each row's LoRA, for a mixed batch; None: all have the first."""
        given = pad(rows, self._device)
        start = torch.full((len(rows), 1), self._start, device=self._device)
        mixed = {} if names is None else {"adapter_names": list(names)}
        logits = self._model(**given, decoder_input_ids=start, use_cache=False, **mixed).logits
        return torch.softmax(logits[:, -1].float(), -1).tolist()


def _sliced(head: nn.Linear, words: Sequence[int]) -> nn.Linear:
    small = nn.Linear(head.in_features, len(words), bias=False, device=head.weight.device, dtype=head.weight.dtype)
    small.weight.data.copy_(head.weight.data[torch.tensor(words, device=head.weight.device)])
    return small


class Converted:
    """CTranslate2's T5, in `kind` ("int8", "float32" ...), with as many threads as torch has here.

    Raises:
        BenchmarkError: it is not installed, or cannot do that here.
    """

    def __init__(self, loaded: Loaded, folder: Path, kind: str) -> None:
        self.kind, self._ctranslate2 = kind, peer("ctranslate2")
        hush()
        if kind not in self._ctranslate2.get_supported_compute_types(loaded.hardware):
            raise BenchmarkError(f"CTranslate2 has no {kind} here")
        try:
            self._ctranslate2.converters.TransformersConverter(loaded.folder).convert(
                str(folder / kind), quantization=kind, force=True
            )
            self._translator = self._ctranslate2.Translator(
                str(folder / kind),
                device=loaded.hardware,
                compute_type=kind,
                inter_threads=1,
                intra_threads=torch.get_num_threads(),
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise BenchmarkError(f"CTranslate2 cannot convert this backbone: {error}") from error
        self._words = _vocabulary(loaded)

    def words(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """Token ids as the words that CTranslate2 takes: made before what is timed."""
        return [[self._words[token] for token in row] for row in rows]

    def step(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """Encode, take one greedy decoder step: its word for each row."""
        return [words[0] if words else "" for words in self.texts(rows, 1)]

    def texts(
        self, rows: Sequence[Sequence[str]], longest: int, stop: Callable[[Any], bool] | None = None
    ) -> list[list[str]]:
        """Greedy words of exactly `longest` tokens: the end is not said before.

        Args:
            stop: told each new token of each row (`batch_id`, `step`); True ends that row, which leaves the batch.
        """
        more = {} if stop is None else {"callback": stop}
        results = self._translator.translate_batch(
            list(rows), beam_size=1, max_decoding_length=longest, min_decoding_length=longest, **more
        )
        return [result.hypotheses[0] for result in results]


def _vocabulary(loaded: Loaded) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loaded.folder)
    known = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    missing = loaded.backbone.config.vocab_size - len(known)
    return [*known, *[tokenizer.unk_token] * missing]
