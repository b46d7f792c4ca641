"""CTranslate2's conversion of a backbone, in a process of its own.

Its OpenMP pool and torch's in one process outnumber the cores together, and then neither spins at its barriers: beside
it our engine took twice its time (see `serving.engine.device`), and it may have lost as much. So this process never
loads CTranslate2, and its process computes nothing else: it sleeps on its pipe while others are measured. It takes the
time of a call itself, so that neither pipe nor pickle counts against it.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import BenchmarkError
from benchmarks.models import Loaded
from benchmarks.peers import hush, peer


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is converted, into what, and where to."""

    source: str
    folder: str
    kind: str
    """CTranslate2's precision: int8, float32 ..."""
    hardware: str
    threads: int


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch of texts that all go on to `longest` tokens, or each to its own of `limits`."""

    rows: list[list[str]]
    longest: int
    limits: tuple[int, ...] = ()


class Converted:
    """CTranslate2's T5, in `kind` ("int8", "float32" ...), with as many threads as torch has here.

    Its process ends with this one, or at `close`.

    Raises:
        BenchmarkError: it is not installed, or cannot do that here; of all methods too: the process has ended.
    """

    def __init__(self, loaded: Loaded, folder: Path, kind: str) -> None:
        self.kind, self.spent_s = kind, 0.0
        given = Conversion(loaded.folder, str(folder / kind), kind, loaded.hardware, torch.get_num_threads())
        self._words = _vocabulary(loaded)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=_live, args=(theirs, given), name=f"CTranslate2 {kind}", daemon=True)
        self.process.start()
        theirs.close()
        self._receive()

    def clock(self) -> float:
        """Seconds inside CTranslate2's calls so far, by its own process: what `time_calls` may take for the time."""
        return self.spent_s

    def words(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """Token ids as the words that CTranslate2 takes: made before what is timed."""
        return [[self._words[token] for token in row] for row in rows]

    def step(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """Encode, take one greedy decoder step: its word for each row."""
        return [words[0] if words else "" for words in self.texts(rows, 1)]

    def texts(self, rows: Sequence[Sequence[str]], longest: int, limits: Sequence[int] = ()) -> list[list[str]]:
        """Greedy words of exactly `longest` tokens: the end is not said before.

        Args:
            limits: each row's own number of tokens, at which it leaves the batch.
        """
        try:
            self._pipe.send(Asked([list(row) for row in rows], longest, tuple(limits)))
        except OSError:
            raise self._ended() from None
        seconds, texts = self._receive()
        self.spent_s += seconds
        return texts

    def close(self) -> None:
        """Have the process end, and wait until it has."""
        self._pipe.close()
        self.process.join()

    def _receive(self) -> Any:
        try:
            said = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(said, BenchmarkError):
            raise said
        return said

    def _ended(self) -> BenchmarkError:
        self.process.join(1.0)
        return BenchmarkError(f"CTranslate2's process has ended, exit code {self.process.exitcode}")


def _vocabulary(loaded: Loaded) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loaded.folder)
    known = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    missing = loaded.backbone.config.vocab_size - len(known)
    return [*known, *[tokenizer.unk_token] * missing]


def _live(pipe: Connection, given: Conversion) -> None:
    """The life of the process: convert, then answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; this one then ends too
    try:
        translator = _translator(given)
        pipe.send(None)
        while True:
            pipe.send(_timed(translator, pipe.recv()))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        pipe.send(_plain(error))


def _translator(given: Conversion) -> Any:
    ctranslate2 = peer("ctranslate2")
    hush()
    torch.set_num_threads(1)  # the conversion is torch's work, and is to leave no pool behind
    if given.kind not in ctranslate2.get_supported_compute_types(given.hardware):
        raise BenchmarkError(f"CTranslate2 has no {given.kind} here")
    ctranslate2.converters.TransformersConverter(given.source).convert(
        given.folder, quantization=given.kind, force=True
    )
    return ctranslate2.Translator(
        given.folder,
        device=given.hardware,
        compute_type=given.kind,
        inter_threads=1,
        intra_threads=given.threads,
    )


def _timed(translator: Any, asked: Asked) -> tuple[float, list[list[str]]]:
    """The seconds of a call, and its texts."""
    more = {"callback": _leaving(asked.limits)} if asked.limits else {}
    exactly = {"max_decoding_length": asked.longest, "min_decoding_length": asked.longest}
    started = time.perf_counter()
    results = translator.translate_batch(asked.rows, beam_size=1, **exactly, **more)
    seconds = time.perf_counter() - started
    return seconds, [result.hypotheses[0] for result in results]


def _leaving(limits: Sequence[int]) -> Callable[[Any], bool]:
    """Told each new token of each row, says whether that row ends."""

    def stop(said: Any) -> bool:
        return said.step + 1 >= limits[said.batch_id]

    return stop


def _plain(error: Exception) -> BenchmarkError:
    """In one line."""
    if isinstance(error, BenchmarkError):
        return error
    return BenchmarkError(f"CTranslate2 cannot do this: {' '.join(str(error).split()) or type(error).__name__}")
