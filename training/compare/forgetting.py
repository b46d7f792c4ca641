"""What a backbone forgot: how much worse it continues ordinary sentences after it was adapted to a task.

The loss is the mean cross entropy, in nats a token, of the second halves of fixed sentences after their first halves,
by the backbone's own decoder and LM head. What was forgotten is the loss with the adapted encoder, less the loss before
training. A method that leaves the encoder as it is forgets nothing: that too is computed, not assumed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ladder import Backbone, Tokenizer
from ladder.answering import IGNORED
from ladder.backbone.passes import padded

SENTENCES = (
    ("The capital of France is", "Paris, a city on the river Seine."),
    ("Water boils at one hundred degrees", "Celsius at the pressure of the sea level."),
    ("She opened the window because", "the room was too warm."),
    ("Translate to German: The house is small.", "Das Haus ist klein."),
    ("Question: What color is the sky on a clear day? Answer:", "blue"),
    ("The children played in the garden until", "it was dark and their mother called them."),
    ("Two plus three equals", "five, and five plus five equals ten."),
    ("Summarize: The train to the coast was late, so we missed the boat.", "We missed the boat."),
)
"""What comes before, and what is to follow."""


class Continuations:
    """The sentences as tensors on a backbone's device."""

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer) -> None:
        before, after = zip(*SENTENCES, strict=True)
        self._backbone = backbone
        self.ids, self.mask = padded(backbone, tokenizer.encode_batch(list(before), 64))
        targets = [torch.tensor(ids) for ids in tokenizer.encode_targets(list(after), 64)]
        stacked = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        self.targets = stacked.to(backbone.device)
        """(B, T), padded with IGNORED."""

    @torch.no_grad()
    def loss(self, logits_of: Callable[[Tensor], Tensor]) -> float:
        """The mean cross entropy of a token.

        Args:
            logits_of: makes logits (B, T, V) of the decoder's inputs (B, T).
        """
        config = self._backbone.config
        start = torch.full_like(self.targets[:, :1], config.decoder_start_token_id)
        shifted = torch.cat([start, self.targets[:, :-1]], 1)
        logits = logits_of(shifted.masked_fill(shifted == IGNORED, config.pad_token_id))
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), self.targets.flatten(), ignore_index=IGNORED
        ).item()

    def backbone_loss(self) -> float | None:
        """Of the frozen backbone as it is now; None where it has no decoder."""
        if not self._backbone.has_decoder:
            return None
        return self.loss(lambda decoder_ids: self._backbone(self.ids, self.mask, decoder_ids))
