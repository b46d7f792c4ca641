"""Texts of any tasks that are being made on one backbone: they join and leave between two tokens.

Greedy and sampled texts share one batch, whatever their tasks (`ladder.decoding.loop`); those that join together with
beams are searched together (`ladder.decoding.beam_search`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch

from ladder.answers import Answer
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
    settings: Generation
    limit: int
    """Tokens that it may have."""
    finish: Callable[[Sequence[Tokens | Exception]], Sequence[Answer | Exception]]
    """From the tokens of texts to their answers."""
    seed: int | None
    """Of sampling; None: new numbers every time."""
    handle: object
    """The caller's own."""


_Key = RunningRow | tuple[Segment, int]
Step = tuple[Text, Tokens, Answer | Exception | None]
"""A text, its tokens that are new and final, and its ending; None while it goes on."""


class RunningTexts:
    """The texts that are being made on one backbone. Used from one thread.

    A text depends neither on its neighbours nor on when they join and leave. What fails is one side network's alone.

    What they hold on the device, next to the taps of texts that join in the next step: see `StaticCache`, of which
    there is one for the backbone and one for the side networks of each shape; and for each beam search, keys and values
    of its beams. Nothing once no text is left.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone, self._running = backbone, RunningRows(backbone)
        self._searches: list[BeamSearch] = []
        self._texts: dict[_Key, Text] = {}

    def __len__(self) -> int:
        """Rows of the backbone that are in use: a beam is one."""
        return len(self._running) + sum(map(len, self._searches))

    @property
    def bytes(self) -> int:
        """Of keys and values on the device, those of beams apart."""
        return self._running.bytes

    @property
    def is_idle(self) -> bool:
        """The next step has nothing to do and nothing to tell."""
        return self._running.is_idle and all(search.is_idle for search in self._searches)

    @torch.inference_mode()
    def join(self, texts: Sequence[Text], given: BackbonePass, inputs: Sequence[int]) -> None:
        """Texts begin with the next step.

        Args:
            given: of the whole encoder.
            inputs: of each text, the input of `given` that it reads.
        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: no room for beams. None of the texts is here then.
        """
        beams = [text.settings.num_beams > 1 for text in texts]
        searched = [each for each, several in zip(zip(texts, inputs, strict=True), beams, strict=True) if several]
        if searched:
            self._search(searched, given)
        rows, places = [], []
        for text, place, several in zip(texts, inputs, beams, strict=True):
            if not several:
                rows.append(self._row(text))
                places.append(place)
        self._running.join(rows, given, places)

    def leave(self, texts: Collection[Text]) -> None:
        """Texts go, at whatever token they are: nothing is told of them any more. Those that ended are ignored.

        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: no room to close the gaps. Do it again then.
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
        """One token on, of every text.

        Returns:
            Those with new tokens and those that ended. A text with beams has all of its tokens at its end.

        Raises:
            torch.OutOfMemoryError, or on a CPU RuntimeError: the device has no room. Nothing has been told; every text
            is still here, and fewer of them may get further. Searches that find no room end with this error instead.
        """
        steps = [
            self._told(said.row, () if said.token is None else (said.token,), said.ending)
            for said in self._running.step()
        ]
        for search in self._searches:
            steps += self._step_of(search)
        self._searches = [search for search in self._searches if not search.is_idle]
        return steps

    def _row(self, text: Text) -> RunningRow:
        random = random_numbers(text.settings, text.seed, self._backbone.device)
        row = RunningRow(side=text.side, limit=text.limit, generation=text.settings, random=random)
        self._texts[row] = text
        return row

    def _search(self, texts: Sequence[tuple[Text, int]], given: BackbonePass) -> None:
        groups: dict[object, list[tuple[Text, int]]] = {}
        for text, place in texts:
            key = (id(text.side), replace(text.settings, seed=None), text.limit)
            groups.setdefault(key, []).append((text, place))
        segments = []
        for members in groups.values():
            first = members[0][0]
            taps = given.select([place for _, place in members]).taps
            segments.append(Segment(side=first.side, taps=taps, limit=first.limit, generation=first.settings))
        self._searches.append(BeamSearch(self._backbone, segments))
        for segment, members in zip(segments, groups.values(), strict=True):
            self._texts |= {(segment, row): text for row, (text, _) in enumerate(members)}

    def _step_of(self, search: BeamSearch) -> list[Step]:
        try:
            ended = search.step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ended = search.give_up(error)
        return [self._told((segment, row), _tokens(ending), ending) for segment, row, ending in ended]

    def _told(self, key: _Key, tokens: Tokens, ending: Tokens | Exception | None) -> Step:
        if ending is None:
            return self._texts[key], tokens, None
        text = self._texts.pop(key)
        try:
            [answer] = text.finish([ending])
        except Exception as error:  # a tokenizer that cannot decode
            answer = error
        return text, tokens, answer


def _tokens(ending: Tokens | Exception) -> Tokens:
    return () if isinstance(ending, Exception) else ending
