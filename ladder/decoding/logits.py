"""Logits processors: what decoding settings change before a token is chosen. Pure functions over (B, V) scores.

Meanings and order are those of Hugging Face's generate, transformers 5.23 (generation/logits_process.py): repetition
penalty, no repeated n-gram, least number of new tokens; then, for sampling, temperature, top-k, top-p. Scores are
logits, or in a beam search log-probabilities. A token with score -inf is never chosen while another has a finite one.
"""

import torch
from torch import Tensor

from ladder.decoding.settings import Generation

NEVER = float("-inf")


def adjust(scores: Tensor, earlier: Tensor, decoding: Generation, end: int) -> Tensor:
    """Apply all of the settings.

    Args:
        scores: (B, V) float32.
        earlier: (B, T) tokens so far, the start token first.
        end: the end token.
    """
    if decoding.repetition_penalty != 1:
        scores = penalise_repeated(scores, earlier, decoding.repetition_penalty)
    if decoding.no_repeat_ngram_size:
        scores = forbid_repeated_ngrams(scores, earlier, decoding.no_repeat_ngram_size)
    if earlier.shape[1] - 1 < decoding.min_new_tokens:
        scores = scores.index_fill(1, torch.tensor([end], device=scores.device), NEVER)
    if not decoding.do_sample:
        return scores
    if decoding.temperature != 1:
        scores = scores / decoding.temperature
    if decoding.top_k:
        scores = keep_top_k(scores, decoding.top_k)
    return scores if decoding.top_p == 1 else keep_top_p(scores, decoding.top_p)


def penalise_repeated(scores: Tensor, earlier: Tensor, penalty: float) -> Tensor:
    """Divide positive scores of tokens in `earlier` by `penalty`, multiply negative ones."""
    repeated = scores.gather(1, earlier)
    return scores.scatter(1, earlier, torch.where(repeated < 0, repeated * penalty, repeated / penalty))


def forbid_repeated_ngrams(scores: Tensor, earlier: Tensor, size: int) -> Tensor:
    """Forbid the tokens that would make the last `size` tokens equal to an earlier run of as many."""
    length = earlier.shape[1]
    if length < size:
        return scores
    runs = earlier.unfold(1, size, 1)
    last = earlier[:, length - size + 1 :]
    alike = (runs[:, :, :-1] == last[:, None]).all(-1)
    vocabulary = scores.shape[1]
    forbidden = torch.zeros(len(scores), vocabulary + 1, dtype=torch.bool, device=scores.device)
    forbidden.scatter_(1, torch.where(alike, runs[:, :, -1], vocabulary), True)  # the last column is thrown away
    return scores.masked_fill(forbidden[:, :vocabulary], NEVER)


def keep_top_k(scores: Tensor, count: int) -> Tensor:
    """Forbid tokens with a score below the `count`-th best; those with an equal score stay."""
    least = scores.topk(min(count, scores.shape[1])).values[:, -1:]
    return scores.masked_fill(scores < least, NEVER)


def keep_top_p(scores: Tensor, share: float) -> Tensor:
    """Forbid the unlikeliest tokens whose probabilities sum up to at most 1 - `share`; the best one stays."""
    ascending, tokens = scores.sort(-1)
    unlikely = ascending.softmax(-1).cumsum(-1) <= 1 - share
    unlikely[:, -1] = False
    return scores.masked_fill(unlikely.scatter(1, tokens, unlikely), NEVER)


def draw(scores: Tensor, rows: list[int], generators: list[torch.Generator], end: int) -> Tensor:
    """Draw a token for each of `rows` with its generator, (B,); the end token for other rows.

    A row without a finite score gets the end token too: torch would raise, or on a GPU end the process.
    """
    probabilities = scores.softmax(-1)
    hopeless = ~probabilities.isfinite().all(-1)
    certain = torch.zeros_like(probabilities[0]).index_fill(0, torch.tensor([end], device=scores.device), 1.0)
    probabilities = torch.where(hopeless[:, None], certain, probabilities)
    tokens = torch.full((len(scores),), end, device=scores.device)
    for row in rows:
        tokens[row] = torch.multinomial(probabilities[row], 1, generator=generators[row])[0]
    return tokens
