"""How a backbone's folder keeps its vocabulary, read: Hugging Face's own files, a bare SentencePiece model, or bytes.

Bare SentencePiece models are read by sentencepiece itself: Hugging Face converts them by a schema that many versions of
protobuf refuse, and falls back to other tokens. Safe to call from many threads.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ladder.errors import BackboneError


class Vocabulary(Protocol):
    """Text to ids and back. No start and end tokens are added; in ids, special ones say nothing."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class HuggingFace:
    """tokenizer.json, or vocab.json with merges.txt, by transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # its warnings on sequence length and legacy modes do not concern us
        try:
            self._inner: Any = AutoTokenizer.from_pretrained(folder)
        finally:
            logging.set_verbosity(verbosity)
        self._inner.model_max_length = 10**9  # no warning per long text: cutting is ours
        self.bos_token_id, self.eos_token_id = self._inner.bos_token_id, self._inner.eos_token_id

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        # truncation stays ours: the fast tokenizer keeps it as shared state, which threads would fight over
        return self._inner(list(texts), add_special_tokens=False, truncation=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=True)


class SentencePiece:
    """spiece.model. Sentinels (<extra_id_0>) are not read out of texts."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._inner: Any = SentencePieceProcessor(model_file=str(path))
        self.bos_token_id, self.eos_token_id = _token(self._inner.bos_id()), _token(self._inner.eos_id())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._inner.encode(list(texts), num_threads=1)

    def decode(self, ids: Sequence[int]) -> str:
        known = self._inner.vocab_size()  # sentinels stand behind it
        said = [id for id in ids if id < known and not (self._inner.is_control(id) or self._inner.is_unknown(id))]
        return self._inner.decode(said)


def _token(id: int) -> int | None:
    return None if id < 0 else id


class Bytes:
    """ByT5's: a token for each byte of UTF-8, after three special ones. No file."""

    FIRST = 3
    bos_token_id: int | None = None
    eos_token_id: int | None = 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + self.FIRST for byte in text.encode()] for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(id - self.FIRST for id in ids if 0 <= id - self.FIRST < 256).decode(errors="ignore")


Result = TypeVar("Result")
SENTENCE_PIECES = ("spiece.model", "sentencepiece.bpe.model")


def read_vocabulary(folder: Path, files: Sequence[str]) -> tuple[Vocabulary, str]:
    """The vocabulary that stands in `files` of `folder`, or ByT5's where there are none; and its fingerprint.

    Raises:
        BackboneError: it does not load.
    """
    if not files:
        return Bytes(), _digest(b"ByT5Tokenizer: bytes from 3")
    kept = _read(folder, lambda: [(folder / name).read_bytes() for name in files])
    if files[0] in SENTENCE_PIECES:
        return _read(folder, lambda: SentencePiece(folder / files[0])), _digest(*kept)
    return _read(folder, lambda: HuggingFace(folder)), _digest(*kept)


def _digest(*parts: bytes) -> str:
    return f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"


def _read(folder: Path, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except Exception as error:  # the libraries raise whatever they meet
        why = str(error).splitlines() or [type(error).__name__]
        raise BackboneError(f"the tokenizer in {folder} does not load: {why[0]}") from None
