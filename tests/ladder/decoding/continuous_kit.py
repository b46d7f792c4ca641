"""Side networks of several shapes, and running texts with their expected tokens, for tests of continuous batching."""

from dataclasses import dataclass, field
from functools import cache

import torch

from ladder import Backbone, Generate, Generation, SideNetwork, TextAnswer, run_backbone
from ladder.backbone.passes import BackbonePass
from ladder.decoding import lanes as lanes
from ladder.decoding import loop as loop
from ladder.decoding.continuous import RunningTexts, Text
from ladder.decoding.logits import adjust, draw
from ladder.decoding.loop import random_numbers
from ladder.side.network import forward
from ladder.stacked.bank import SideBank
from ladder.stacked.network import Side, StackedBatch
from tests.ladder import decoding_kit

LIMIT = 20
SHAPES = [{}, {}, {}, {"merge_last": True}, {"mix_after": True}, {"decoder_layers": (0, 2)}, {"decoder_layers": ()}]
SETTINGS = [
    Generation(),
    Generation(min_new_tokens=12),
    Generation(repetition_penalty=2.0),
    Generation(no_repeat_ngram_size=2, min_new_tokens=15),
    Generation(do_sample=True, temperature=1.5),
    Generation(do_sample=True, top_k=5, min_new_tokens=3),
    Generation(num_beams=3),
    Generation(num_beams=2, min_new_tokens=6),
]
INPUTS = (*decoding_kit.INPUTS, (7, 7, 7, 7, 7, 7, 7, 7, 7, 4, 1), (1,))


@dataclass(frozen=True, repr=False)
class Decoders:
    """A backbone, side networks on it, and a bank that holds what can be stacked."""

    backbone: Backbone
    sides: list[SideNetwork]
    stacked: list[Side]
    bank: SideBank
    _slow: dict[object, tuple[int, ...]] = field(default_factory=dict)

    def answer(self, side: int, how: Generation, limit: int, ids: tuple[int, ...], seed: int) -> tuple[int, ...]:
        """Compute a row's tokens slowly: without batch or cache, or by a beam search alone."""
        key = (side, how, limit, ids, seed)
        if key not in self._slow:
            make = slow_beams if how.num_beams > 1 else slow_text
            self._slow[key] = make(self.backbone, self.sides[side], how, limit, ids, seed)
        return self._slow[key]


@torch.inference_mode()
def slow_text(backbone, side, how, limit, ids, seed) -> tuple[int, ...]:
    """Decode one text without batch or cache: the reference."""
    config, tokens, random = backbone.config, [0], random_numbers(how, seed, torch.device("cpu"))
    source = torch.tensor([ids])
    while len(tokens) <= limit:
        earlier = torch.tensor([tokens])
        logits = forward(backbone, side, source, torch.ones_like(source, dtype=torch.bool), earlier)[:, -1]
        scores = adjust(logits, earlier, how, config.eos_token_id)
        token = int(scores.argmax() if random is None else draw(scores, [0], [random], config.eos_token_id))
        if token == config.eos_token_id:
            break
        tokens.append(token)
    return tuple(tokens[1:])


def slow_beams(backbone, side, how, limit, ids, seed) -> tuple[int, ...]:
    running = RunningTexts(backbone)
    running.join([text_of(side, how, limit, seed)], run_backbone(backbone, [ids]), [0])
    return finish(running)[0].tokens


def text_of(side, how=SETTINGS[0], limit: int = LIMIT, seed: int | None = 0, handle: object = None) -> Text:
    return Text(side, how, limit, Generate(max_new_tokens=limit, decode=str, generation=how).finish, seed, handle)


def finish(running: RunningTexts) -> list[TextAnswer]:
    """Step until all texts have ended; return their endings in order."""
    endings = []
    while not running.is_idle:
        endings += [ending for _, _, ending in running.step() if ending is not None]
    return endings


@cache
def make_decoders(folder) -> Decoders:
    backbone = decoding_kit.make_backbone(folder)
    return furnish(backbone, SHAPES)


def furnish(backbone, shapes) -> Decoders:
    sides = [decoding_kit.make_side(backbone, seed, **shape) for seed, shape in enumerate(shapes)]
    bank = SideBank(backbone)
    return Decoders(backbone, sides, [bank.add(side) for side in sides], bank)


class Play:
    """Running texts, their tokens so far, and the expected tokens of every text."""

    def __init__(self, decoders: Decoders) -> None:
        self.decoders, self.running = decoders, RunningTexts(decoders.backbone)
        self.tokens: dict[Text, tuple[int, ...]] = {}
        self.expected: dict[Text, tuple[int, ...]] = {}
        self.broken: set[Text] = set()

    def join_broken(self, text: Text, backbone_pass: BackbonePass, index: int) -> None:
        """Add a text that must fail."""
        self.running.join([text], backbone_pass, [index])
        self.broken.add(text)

    def join(self, wanted: list[tuple[int, int, int, int, int, bool]]) -> None:
        inputs = [INPUTS[index] for _, _, _, index, _, _ in wanted]
        backbone_pass = run_backbone(self.decoders.backbone, inputs)
        texts = []
        for side, how, limit, index, seed, is_stacked in wanted:
            network = (self.decoders.stacked if is_stacked else self.decoders.sides)[side]
            texts.append(text_of(network, SETTINGS[how], limit, seed))
            self.tokens[texts[-1]] = ()
            self.expected[texts[-1]] = self.decoders.answer(side, SETTINGS[how], limit, INPUTS[index], seed)
        self.running.join(texts, backbone_pass, range(len(texts)))

    def leave(self, indices: set[int]) -> None:
        here = list(self.tokens)
        gone = [here[index] for index in indices if index < len(here)]
        self.running.leave(gone)
        for text in gone:
            del self.tokens[text]

    def step(self) -> None:
        for text, tokens, ending in self.running.step():
            if text in self.broken:
                assert (tokens, type(ending)) == ((), ArithmeticError)
                self.broken.remove(text)
                continue
            self.tokens[text] += tokens
            if ending is None:
                assert self.tokens[text] == self.expected[text][: len(self.tokens[text])]
            else:
                expected = self.expected[text]
                assert ending == TextAnswer(text=str(expected), tokens=expected)
                assert self.tokens.pop(text) == expected

    def finish(self) -> None:
        while not self.running.is_idle:
            self.step()
        assert not self.tokens
        assert not self.broken
        assert len(self.running) == 0


@dataclass
class Fault:
    """Makes a side network raise after `calls` calls."""

    side: Side
    calls: int

    def install(self, monkeypatch) -> None:
        for kind in (StackedBatch, SideNetwork):
            monkeypatch.setattr(kind, "decode", self.around(kind.decode))

    def around(self, decode):
        def decode_or_raise(network, *arguments):
            if any(side is self.side for side in getattr(network, "_sides", [network])):
                self.calls -= 1
                if self.calls < 0:
                    raise ArithmeticError("broken")
            return decode(network, *arguments)

        return decode_or_raise
