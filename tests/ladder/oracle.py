"""Hugging Face's generate on our side network's logits: the reference for our decoding."""

from typing import Any

import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from ladder import Backbone, SideNetwork
from ladder.side.network import forward


class Oracle(T5ForConditionalGeneration):
    """A model whose logits are those of `ladder.side.network.forward`, without a cache; its weights are not used."""

    def __init__(self, backbone: Backbone, side: SideNetwork) -> None:
        config = backbone.config
        start, pad, end = config.decoder_start_token_id, config.pad_token_id, config.eos_token_id
        tiny: dict[str, Any] = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
        tiny |= {"decoder_start_token_id": start, "pad_token_id": pad, "eos_token_id": end}
        super().__init__(T5Config(vocab_size=config.vocab_size, **tiny))
        self.networks = (backbone, side)
        self.eval()

    def forward(self, decoder_input_ids: Tensor, encoder_outputs: Any = None, **_: Any) -> Seq2SeqLMOutput:
        ids = self.ids.repeat_interleave(len(decoder_input_ids) // len(self.ids), 0)
        logits = forward(*self.networks, ids, ids != self.config.pad_token_id, decoder_input_ids)
        return Seq2SeqLMOutput(logits=logits)

    @torch.inference_mode()
    def tokens(self, ids: Tensor, limit: int, **settings: Any) -> list[tuple[int, ...]]:
        """Return the tokens of every row without start and end tokens. `ids` (B, S) are padded."""
        self.ids = ids
        generate: Any = self.generate
        encoded = BaseModelOutput(last_hidden_state=torch.zeros(*ids.shape, 8))
        generated = generate(encoder_outputs=encoded, max_new_tokens=limit, use_cache=False, **settings)
        return [self._cut(row[1:], limit) for row in generated.tolist()]

    def _cut(self, row: list[int], limit: int) -> tuple[int, ...]:
        end = self.networks[0].config.eos_token_id
        return tuple(row[: min(row.index(end) if end in row else limit, limit)])
