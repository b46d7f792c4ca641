"""CTranslate2's conversion of a backbone, in a process of its own.

In one process, its OpenMP pool and torch's have more threads than there are cores; then barriers are slow, and our
engine took twice its time (see `serving.engine.device`). So only the other process loads CTranslate2, and it waits on a
pipe while others are measured. It times its calls itself, so that the pipe and pickle do not count.
"""

import math
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.models import Loaded
from benchmarks.harness.peers import hush, peer
from benchmarks.harness.samples import BenchmarkError, time_calls

ENVIRONMENTS: dict[str, dict[str, str]] = {
    "defaults": {},
    "MKL": {"CT2_USE_MKL": "1"},
    "no MKL": {"CT2_USE_MKL": "0"},
    "AVX2": {"CT2_FORCE_CPU_ISA": "AVX2"},
    "AVX512": {"CT2_FORCE_CPU_ISA": "AVX512"},
    "AVX512, MKL": {"CT2_FORCE_CPU_ISA": "AVX512", "CT2_USE_MKL": "1"},
    "AVX512, no MKL": {"CT2_FORCE_CPU_ISA": "AVX512", "CT2_USE_MKL": "0"},
}
"""Settings of CTranslate2's process on a CPU, of which the fastest counts."""
TRIED_S = 0.5
"""Seconds of calls with each."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to convert, to which precision, and where to write it."""

    source: str
    folder: str
    kind: str
    """CTranslate2's precision: int8, float32 ..."""
    hardware: str
    threads: int
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of texts of `longest` tokens; with `limits`, a row ends at its own length."""

    rows: list[list[str]]
    longest: int
    limits: tuple[int, ...] = ()


class Converted:
    """CTranslate2's T5, in `kind` ("int8", "float32" ...), with as many threads as torch has here.

    Its process ends with this one, or at `close`.

    Args:
        environment: one of ENVIRONMENTS.

    Raises:
        BenchmarkError: it is not installed, or does not support this precision here; all methods: the process ended.
    """

    def __init__(self, loaded: Loaded, folder: Path, kind: str, environment: str = "defaults") -> None:
        self.kind, self.spent_s = kind, 0.0
        threads, settings = torch.get_num_threads(), ENVIRONMENTS[environment]
        conversion = Conversion(loaded.folder, str(folder / kind), kind, loaded.hardware, threads, settings)
        self._words = _vocabulary(loaded)
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(
            target=_run_process, args=(theirs, conversion), name=f"CTranslate2 {kind}", daemon=True
        )
        self.process.start()
        theirs.close()
        self._receive()

    def clock(self) -> float:
        """Return the seconds of CTranslate2's calls so far, measured by its process; a clock for `time_calls`."""
        return self.spent_s

    def words(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """Return token ids as the words that CTranslate2 takes; not to be timed."""
        return [[self._words[token] for token in row] for row in rows]

    def step(self, rows: Sequence[Sequence[str]]) -> list[str]:
        """Encode and take one greedy decoder step; return the word of each row."""
        return [words[0] if words else "" for words in self.texts(rows, 1)]

    def texts(self, rows: Sequence[Sequence[str]], longest: int, limits: Sequence[int] = ()) -> list[list[str]]:
        """Generate exactly `longest` tokens greedily for each row; the end token is suppressed.

        Args:
            limits: number of tokens of each row, after which it leaves the batch.
        """
        try:
            self._pipe.send(Batch([list(row) for row in rows], longest, tuple(limits)))
        except OSError:
            raise self._ended() from None
        seconds, texts = self._receive()
        self.spent_s += seconds
        return texts

    def close(self) -> None:
        """End the process and wait for it."""
        self._pipe.close()
        self.process.join()

    def _receive(self) -> Any:
        try:
            reply = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        if isinstance(reply, BenchmarkError):
            raise reply
        return reply

    def _ended(self) -> BenchmarkError:
        self.process.join(1.0)
        return BenchmarkError(f"CTranslate2's process has ended, exit code {self.process.exitcode}")


def fastest_environment(
    loaded: Loaded, folder: Path, kind: str, rows: Sequence[Sequence[int]]
) -> tuple[str, dict[str, float | None]]:
    """Return the name of CTranslate2's fastest environment for one step of `rows`, and the milliseconds of each.

    None for those that this processor or this build of CTranslate2 lacks. On a GPU there is only one.
    """
    tried: dict[str, float | None] = {}
    for name in ENVIRONMENTS if loaded.hardware == "cpu" else ("defaults",):
        try:
            with closing(Converted(loaded, folder, kind, name)) as converted:
                words = converted.words(rows)
                spent = time_calls(
                    lambda _, converted=converted, words=words: converted.step(words),
                    seconds=TRIED_S,
                    lead_s=TRIED_S,
                    clock=converted.clock,
                )
                tried[name] = round(1e3 * statistics.median(spent), 2)
        except BenchmarkError:
            tried[name] = None
    return min(tried, key=lambda name: tried[name] or math.inf), tried


def _vocabulary(loaded: Loaded) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(loaded.folder)
    known = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    missing = loaded.backbone.config.vocab_size - len(known)
    return [*known, *[tokenizer.unk_token] * missing]


def _run_process(pipe: Connection, conversion: Conversion) -> None:
    """Main function of the process: convert, then answer until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the other process, and then the pipe closes
    try:
        translator = _translator(conversion)
        pipe.send(None)
        while True:
            pipe.send(_timed(translator, pipe.recv()))
    except (EOFError, ConnectionError):
        return
    except Exception as error:
        pipe.send(_plain(error))


def _translator(conversion: Conversion) -> Any:
    os.environ.update(conversion.environment)  # before the library is loaded
    ctranslate2 = peer("ctranslate2")
    hush()
    torch.set_num_threads(1)  # torch does the conversion, and must leave no thread pool behind
    if conversion.kind not in ctranslate2.get_supported_compute_types(conversion.hardware):
        raise BenchmarkError(f"CTranslate2 has no {conversion.kind} here")
    ctranslate2.converters.TransformersConverter(conversion.source).convert(
        conversion.folder, quantization=conversion.kind, force=True
    )
    return ctranslate2.Translator(
        conversion.folder,
        device=conversion.hardware,
        compute_type=conversion.kind,
        inter_threads=1,
        intra_threads=conversion.threads,
    )


def _timed(translator: Any, batch: Batch) -> tuple[float, list[list[str]]]:
    """Run one batch; return its seconds and texts."""
    more = {"callback": _leaving(batch.limits)} if batch.limits else {}
    exactly = {"max_decoding_length": batch.longest, "min_decoding_length": batch.longest}
    started = time.perf_counter()
    results = translator.translate_batch(batch.rows, beam_size=1, **exactly, **more)
    seconds = time.perf_counter() - started
    return seconds, [result.hypotheses[0] for result in results]


def _leaving(limits: Sequence[int]) -> Callable[[Any], bool]:
    """Return a callback for every new token, which returns whether its row ends."""

    def stop(step: Any) -> bool:
        return step.step + 1 >= limits[step.batch_id]

    return stop


def _plain(error: Exception) -> BenchmarkError:
    """Return the error as a BenchmarkError of one line."""
    if isinstance(error, BenchmarkError):
        return error
    return BenchmarkError(f"CTranslate2 cannot do this: {' '.join(str(error).split()) or type(error).__name__}")
