"""Peers that ask several classifiers about one text: a model for each in a pipeline, and one encoder with PEFT's LoRAs.

A classifier is the backbone's encoder, the mean over its tokens and a linear head. It has no decoder.
"""

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.models import Loaded
from benchmarks.harness.peers import RANK, hush, peer

LABELS = 2


def encoder_of(loaded: Loaded) -> Any:
    """Return Hugging Face's encoder with the same weights, dtype and device."""
    from transformers import T5EncoderModel

    hush()
    model: Any = T5EncoderModel.from_pretrained(loaded.folder, dtype=loaded.backbone.dtype)
    return model.to(loaded.backbone.device).eval()


def tokenizer_of(loaded: Loaded) -> Any:
    """Return Hugging Face's tokenizer of the same folder."""
    from transformers import AutoTokenizer

    hush()
    return AutoTokenizer.from_pretrained(loaded.folder)


def stored_bytes(*modules: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; storage that several of them use counts once."""
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


class Pipelines:
    """A `transformers` pipeline for each classifier, with a model and weights of its own."""

    def __init__(self, loaded: Loaded, count: int) -> None:
        from transformers import TextClassificationPipeline

        class Pipeline(TextClassificationPipeline):
            def check_model_type(self, supported_models: Any) -> None:
                """Take any model: the usual check logs an error for a class that is not in the library."""

        base, tokenizer = encoder_of(loaded), tokenizer_of(loaded)
        self.models = [_classifier(copy.deepcopy(base)) for _ in range(count)]
        self._pipelines = [
            Pipeline(model=model, tokenizer=tokenizer, device=loaded.backbone.device) for model in self.models
        ]

    @torch.inference_mode()
    def ask(self, text: str) -> list[Any]:
        """Return the answer of each classifier, one after the other."""
        return [pipeline(text) for pipeline in self._pipelines]


class LoraClassifiers:
    """One encoder with a LoRA of rank 8 on queries and values and a linear head for each classifier."""

    def __init__(self, loaded: Loaded, count: int) -> None:
        peft = peer("peft")
        self._tokenizer, self._device = tokenizer_of(loaded), loaded.backbone.device
        self._names = [f"lora-{number}" for number in range(count)]
        config = peft.LoraConfig(task_type="FEATURE_EXTRACTION", r=RANK, lora_alpha=RANK, init_lora_weights=False)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            self.model = peft.get_peft_model(encoder_of(loaded), config, adapter_name=self._names[0])
            for name in self._names[1:]:
                self.model.add_adapter(name, config)
        self.model.to(device=self._device, dtype=loaded.backbone.dtype).eval()
        self.heads = nn.ModuleList(_head(self.model.config.d_model, loaded) for _ in self._names)

    @torch.inference_mode()
    def ask_in_turn(self, text: str) -> list[list[float]]:
        """Return the probabilities of each classifier: a pass of the encoder for each LoRA."""
        inputs = self._tokenizer(text, return_tensors="pt").to(self._device)
        answers = []
        for name, head in zip(self._names, self.heads, strict=True):
            self.model.set_adapter(name)
            answers += _probabilities(self._pooled(inputs), [head])
        return answers

    @torch.inference_mode()
    def ask_mixed(self, text: str) -> list[list[float]]:
        """Return the same, from one batch that has the text once for each LoRA."""
        inputs = self._tokenizer([text] * len(self._names), return_tensors="pt").to(self._device)
        return _probabilities(self._pooled(inputs, adapter_names=self._names), self.heads)

    def _pooled(self, inputs: Any, **mixed: Any) -> Tensor:
        hidden = self.model(**inputs, **mixed).last_hidden_state
        return _mean(hidden, inputs["attention_mask"])


def _classifier(encoder: Any) -> Any:
    """Return an encoder with a mean over its tokens and a linear head, as the pipeline calls it."""
    from transformers import T5PreTrainedModel
    from transformers.modeling_outputs import SequenceClassifierOutput

    class EncoderClassifier(T5PreTrainedModel):
        def __init__(self) -> None:
            super().__init__(encoder.config)
            self.encoder = encoder
            self.score = nn.Linear(encoder.config.d_model, LABELS, device=encoder.device, dtype=encoder.dtype)

        def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutput:
            hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            logits: Any = self.score(_mean(hidden, attention_mask))
            return SequenceClassifierOutput(logits=logits)

    return EncoderClassifier().eval()


def _head(width: int, loaded: Loaded) -> nn.Linear:
    return nn.Linear(width, LABELS, device=loaded.backbone.device, dtype=loaded.backbone.dtype)


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of (B, S, D) over the S tokens that `mask` (B, S) names: (B, D)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _probabilities(pooled: Tensor, heads: Iterable[nn.Module]) -> list[list[float]]:
    rows = zip(pooled, heads, strict=True)
    return [torch.softmax(head(row).float(), -1).tolist() for row, head in rows]
