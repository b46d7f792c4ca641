"""Continuous batching: texts of any tasks on one backbone, which join and leave between two tokens.

Greedy and sampled texts of all tasks share one batch (`ladder.decoding.loop`). Texts with beams that join in one call
share one search (`ladder.decoding.beam_search`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch

from ladder.answers import Answer
from ladder.backbone.images import Images
from ladder.backbone.model import Backbone
from ladder.backbone.passes import BackbonePass
from ladder.decoding.beam_search import BeamSearch
from ladder.decoding.lanes import RunningRow
from ladder.decoding.loop import RunningRows, random_numbers
from ladder.decoding.segments import Segment, Tokens
from ladder.decoding.settings import Generation
from ladder.errors import is_out_of_memory
from ladder.stacked.network import Side


@dataclass(slots=True, eq=False, repr=False)
class Text:
    """One row that makes a text."""

    side: Side
    decoding: Generation
    limit: int
    """Most new tokens."""
    finish: Callable[[Sequence[Tokens | Exception]], Sequence[Answer | Exception]]
    """Makes answers of the tokens of texts."""
    seed: int | None
    """Of sampling; None: other random numbers every time."""
    handle: object
    """Anything by which the caller recognises it."""


_Key = RunningRow | tuple[Segment, int]
Step = tuple[Text, Tokens, Answer | Exception | None]
"""A text, its new tokens, and its ending; None while it goes on."""


class RunningTexts:
    """The texts that are being made on one backbone. Used from one thread.

    A text depends neither on its neighbours nor on when they join and leave. A side network that fails ends its own
    texts alone.

    Memory on the device: a `StaticCache` for the backbone and one for the side networks of each shape, the keys and
    values of each beam search, and the taps of texts that join in the next step. None once no text is left.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._running = RunningRows(backbone)
        self._searches: list[BeamSearch] = []
        self._texts: dict[_Key, Text] = {}

    def __len__(self) -> int:
        """Rows of the backbone that are in use; each beam is one."""
        return len(self._running) + sum(map(len, self._searches))

    @property
    def bytes(self) -> int:
        """Bytes of keys and values on the device, without those of beams."""
        return self._running.bytes

    @property
    def is_idle(self) -> bool:
        """True where the next step has nothing to do and nothing to return."""
        return self._running.is_idle and all(search.is_idle for search in self._searches)

    @torch.inference_mode()
    def join(
        self,
        texts: Sequence[Text],
        backbone_pass: BackbonePass,
        inputs: Sequence[int],
        images: Images | None = None,
    ) -> None:
        """Add texts, which begin with the next step.

        Args:
            backbone_pass: of the whole encoder.
            inputs: for each text, the index of the input in `backbone_pass` that it reads.
            images: of these texts; None where no side network reads images.
        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: no memory for beams. None of the texts has joined then.
        """
        searched = [number for number, text in enumerate(texts) if text.decoding.num_beams > 1]
        if searched:
            self._search(texts, backbone_pass, inputs, images, searched)
        single = [number for number, text in enumerate(texts) if text.decoding.num_beams == 1]
        self._running.join(
            [self._row(texts[number]) for number in single],
            backbone_pass,
            [inputs[number] for number in single],
            None if images is None else images.select(single),
        )

    def leave(self, texts: Collection[Text]) -> None:
        """Remove texts, at any token: no step returns them any more. Texts that ended are ignored.

        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: no memory to move the others. Call it again then.
        """
        chosen = set(texts)
        gone = [key for key, text in self._texts.items() if text in chosen]
        self._running.leave({key for key in gone if isinstance(key, RunningRow)})
        for search in self._searches:
            search.leave({key for key in gone if isinstance(key, tuple)})
        for key in gone:
            del self._texts[key]
        self._searches = [search for search in self._searches if not search.is_idle]

    def step(self) -> list[Step]:
        """Decode one token of every text.

        Returns:
            Texts with new tokens and texts that ended. A text with beams has all of its tokens at its end.

        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: the device has no memory. All texts are still there, and
            the next step does again what this one has not finished; it may succeed with fewer texts. Beam searches
            without memory do not raise: their texts end with this error.
        """
        steps = [
            self._step(result.row, () if result.token is None else (result.token,), result.ending)
            for result in self._running.step()
        ]
        for search in self._searches:
            steps += self._step_of(search)
        self._searches = [search for search in self._searches if not search.is_idle]
        return steps

    def _row(self, text: Text) -> RunningRow:
        random = random_numbers(text.decoding, text.seed, self._backbone.device)
        row = RunningRow(side=text.side, limit=text.limit, decoding=text.decoding, random=random)
        self._texts[row] = text
        return row

    def _search(
        self,
        texts: Sequence[Text],
        backbone_pass: BackbonePass,
        inputs: Sequence[int],
        images: Images | None,
        numbers: Sequence[int],
    ) -> None:
        """Begin a search of some of the texts: those with these numbers. The other arguments are those of `join`."""
        groups: dict[object, list[int]] = {}
        for number in numbers:
            text = texts[number]
            count = 0 if images is None else len(images.rows[number])
            key = (id(text.side), replace(text.decoding, seed=None), text.limit, count)
            groups.setdefault(key, []).append(number)
        segments = []
        for members in groups.values():
            first = texts[members[0]]
            taps = backbone_pass.select([inputs[number] for number in members]).taps
            if images is not None:
                taps = replace(taps, images=images.select(members))
            segments.append(Segment(side=first.side, taps=taps, limit=first.limit, decoding=first.decoding))
        self._searches.append(BeamSearch(self._backbone, segments))
        for segment, members in zip(segments, groups.values(), strict=True):
            self._texts |= {(segment, row): texts[number] for row, number in enumerate(members)}

    def _step_of(self, search: BeamSearch) -> list[Step]:
        try:
            ended = search.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ended = search.give_up(error)
        return [
            self._step((segment, row), () if isinstance(ending, Exception) else ending, ending)
            for segment, row, ending in ended
        ]

    def _step(self, key: _Key, tokens: Tokens, ending: Tokens | Exception | None) -> Step:
        if ending is None:
            return self._texts[key], tokens, None
        text = self._texts.pop(key)
        try:
            [answer] = text.finish([ending])
        except Exception as error:  # a tokenizer that cannot decode
            answer = error
        return text, tokens, answer
