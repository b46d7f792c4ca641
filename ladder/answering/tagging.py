"""Token classification: tags of words, from a linear head on every token of the side encoder, and entities of tags.

Tags are BIO: outside (O), and for each label the beginning of an entity (B) and its inside (I). A word's tag is that of
its first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ladder.answering.reading import Reading, SingleReading
from ladder.answering.words import Words
from ladder.answers import Answer, Span, SpansAnswer
from ladder.backbone.passes import BackbonePass
from ladder.errors import NotFiniteError
from ladder.side.network import SideNetwork

IGNORED = -100
"""Target that teaches nothing, and padding of targets, as torch's cross entropy takes it."""


@dataclass(frozen=True, kw_only=True)
class TagWords:
    """The entities of a text. Needs a head with `2 * len(labels) + 1` outputs: O, then all B, then all I."""

    labels: tuple[str, ...]

    def loss(self, backbone_pass: BackbonePass, side: SideNetwork, targets: Tensor) -> Tensor:
        """Mean cross entropy per word; `targets` (B, T) are tags of the first T tokens, IGNORED where none is taught.

        Tokens past T teach nothing either.
        """
        outputs, _ = SingleReading(backbone_pass, side).token_outputs()
        padded = F.pad(targets, (0, outputs.shape[1] - targets.shape[1]), value=IGNORED)
        total = F.cross_entropy(outputs.flatten(0, 1), padded.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)

    def answers(self, reading: Reading) -> list[Answer | Exception]:
        """Find the entities of each input's text; an exception in place of one that is not finite."""
        outputs, mask = reading.token_outputs()
        probabilities = torch.softmax(outputs.float(), -1)
        count = len(self.labels)
        begins, insides = probabilities[..., 1 : count + 1], probabilities[..., count + 1 :]
        kinds = torch.cat([probabilities[..., :1], begins + insides], -1)
        scores, best = kinds.max(-1)
        is_begin = (begins >= insides).gather(-1, (best - 1).clamp(min=0)[..., None])[..., 0]
        offsets = mask.int().argmax(1).tolist()  # padding may be on either side
        rows = zip(
            reading.words,
            offsets,
            best.tolist(),
            scores.tolist(),
            is_begin.tolist(),
            kinds[..., 0].tolist(),
            strict=True,
        )
        return [self._row(words, *tokens) for words, *tokens in rows]

    def _row(
        self,
        words: Words | None,
        offset: int,
        best: Sequence[int],
        scores: Sequence[float],
        is_begin: Sequence[bool],
        outside: Sequence[float],
    ) -> Answer | Exception:
        if words is None:
            return SpansAnswer(spans=(), outside=())
        at = [first + offset for first in words.firsts]
        if not all(scores[index] == scores[index] for index in at):  # NaN
            return NotFiniteError("the side network's scores are not finite numbers")
        tags = [(best[index], is_begin[index], scores[index]) for index in at]
        return SpansAnswer(spans=self._spans(words, tags), outside=tuple(outside[index] for index in at))

    def _spans(self, words: Words, tags: Sequence[tuple[int, bool, float]]) -> tuple[Span, ...]:
        """Join words to entities. An I that follows no word of its label begins an entity too."""
        entities: list[tuple[int, list[int]]] = []
        before = 0
        for word, (label, is_begin, _) in enumerate(tags):
            if label and (is_begin or label != before):
                entities.append((label, [word]))
            elif label:
                entities[-1][1].append(word)
            before = label
        spans: list[Span] = []
        for label, members in entities:
            start = words.bounds[members[0]][0]
            end = words.bounds[members[-1]][1]
            score = sum(tags[word][2] for word in members) / len(members)
            spans.append(
                Span(start=start, end=end, label=self.labels[label - 1], score=score, text=words.text[start:end])
            )
        return tuple(spans)
