"""A tokenizer maps text to ids and back; it uses one of several kinds of vocabulary."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ladder.backbone.families import family_of, read_config
from ladder.backbone.loading import read_json, resolve_folder
from ladder.config import BackboneConfig
from ladder.errors import BackboneError, NoTokenizerError

TokenOffsets = tuple[list[int], list[tuple[int, int]]]
"""Ids of a text, and for each the characters (start, end) of the text that it stands for. A space may stand for none;
several ids may share a character."""
Pair = tuple[tuple[int, int], tuple[int, int]]
"""For each text of a pair, its first token (or character) and the one after its last. Both are equal where nothing of
it is left."""


class Vocabulary(Protocol):
    """Maps text to ids and back. `encode` adds no start or end token; `decode` ignores special tokens."""

    bos_token_id: int | None
    eos_token_id: int | None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        ...

    def encode_offsets(self, texts: Sequence[str]) -> "list[TokenOffsets]":
        """Return the ids of each text, and which of its characters each id stands for."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        ...


class HuggingFace:
    """Reads tokenizer.json, or vocab.json with merges.txt, with transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # its warnings on sequence length and legacy modes do not apply
        try:
            self._inner: Any = AutoTokenizer.from_pretrained(folder)
        finally:
            logging.set_verbosity(verbosity)
        self._inner.model_max_length = 10**9  # no warning per long text: `Tokenizer` truncates
        self.bos_token_id = self._inner.bos_token_id
        self.eos_token_id = self._inner.eos_token_id

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        # `Tokenizer` truncates: in the fast tokenizer truncation is state that threads share
        return self._inner(list(texts), add_special_tokens=False, truncation=False)["input_ids"]

    def encode_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids of each text, and which of its characters each id stands for."""
        if not self._inner.is_fast:
            raise BackboneError("this tokenizer tells no positions in a text; give the folder a tokenizer.json")
        encoded = self._inner(list(texts), add_special_tokens=False, truncation=False, return_offsets_mapping=True)
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        return self._inner.decode(list(ids), skip_special_tokens=True)


class SentencePiece:
    """Reads spiece.model. Sentinels (<extra_id_0>) in a text are not recognised as tokens."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._inner: Any = SentencePieceProcessor(model_file=str(path))
        self.bos_token_id = _token(self._inner.bos_id())
        self.eos_token_id = _token(self._inner.eos_id())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return self._inner.encode(list(texts), num_threads=1)

    def encode_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids of each text, and which of its characters each id stands for."""
        encoded = self._inner.encode(list(texts), num_threads=1, return_type="offset_mapping")
        return [(row["ids"], row["offsets"]) for row in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        known = self._inner.vocab_size()  # sentinels have higher ids
        plain = [id for id in ids if id < known and not (self._inner.is_control(id) or self._inner.is_unknown(id))]
        return self._inner.decode(plain)


def _token(id: int) -> int | None:
    return None if id < 0 else id


class Bytes:
    """ByT5's vocabulary: one token per byte of UTF-8, after three special tokens. Needs no file."""

    FIRST = 3
    bos_token_id: int | None = None
    eos_token_id: int | None = 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [[byte + self.FIRST for byte in text.encode()] for text in texts]

    def encode_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids of each text, and which of its characters each id stands for."""
        characters = [[index for index, char in enumerate(text) for _ in char.encode()] for text in texts]
        offsets = [[(index, index + 1) for index in row] for row in characters]
        return list(zip(self.encode(texts), offsets, strict=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids."""
        return bytes(id - self.FIRST for id in ids if 0 <= id - self.FIRST < 256).decode(errors="ignore")


Result = TypeVar("Result")
SENTENCE_PIECES = ("spiece.model", "sentencepiece.bpe.model")


def read_vocabulary(folder: Path, files: Sequence[str]) -> tuple[Vocabulary, str]:
    """Read the vocabulary in `files` of `folder` (ByT5's if there are none); return it and its fingerprint.

    Raises:
        BackboneError: the vocabulary does not load.
    """
    if not files:
        return Bytes(), _digest(b"ByT5Tokenizer: bytes from 3")
    contents = _read(folder, lambda: [(folder / name).read_bytes() for name in files])
    if files[0] in SENTENCE_PIECES:
        return _read(folder, lambda: SentencePiece(folder / files[0])), _digest(*contents)
    return _read(folder, lambda: HuggingFace(folder)), _digest(*contents)


def _digest(*parts: bytes) -> str:
    return f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"


def _read(folder: Path, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except Exception as error:  # the libraries raise errors of many kinds
        why = str(error).splitlines() or [type(error).__name__]
        raise BackboneError(f"the tokenizer in {folder} does not load: {why[0]}") from None


BYTES = "ByT5Tokenizer"
"""Hugging Face's name of the tokenizer that needs no file."""


class Tokenizer:
    """Encodes with a vocabulary: every text ends in one end token, and nothing is padded."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        fingerprint: str,
        eos_token_id: int = 1,
        *,
        bos_token_id: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Make a tokenizer.

        Args:
            bos_token_id: begins every prompt; None: prompts have no start token.
            limit: most tokens that the backbone reads; None: any number.
        """
        self._vocabulary = vocabulary
        self.fingerprint = fingerprint
        self.eos_token_id = eos_token_id
        self._start = [] if bos_token_id is None else [bos_token_id]
        self._limit = limit

    def encode_batch(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Return the ids of each prompt, at most `max_tokens` with start and end tokens: a longer text is cut."""
        return self._encode(texts, max_tokens, self._start)

    def encode_cut(self, texts: Sequence[str], max_tokens: int | None = None) -> tuple[list[list[int]], list[bool]]:
        """As `encode_batch`, and for each prompt whether it was longer than its limit, and so is cut."""
        if not texts:
            return [], []
        bare = self._vocabulary.encode(texts)
        room = self._room(max_tokens, self._start)
        cut = [room is not None and len(ids) > room for ids in bare]
        return [[*self._start, *ids[:room], self.eos_token_id] for ids in bare], cut

    def encode_offsets(self, texts: Sequence[str]) -> list[TokenOffsets]:
        """Return the ids of each text without start and end token, and which of its characters each id stands for."""
        return self._vocabulary.encode_offsets(texts) if texts else []

    def complete(self, ids: Sequence[int], max_tokens: int | None = None) -> tuple[int, ...]:
        """Return a prompt's ids from those of `encode_offsets`: cut, between start and end token."""
        return (*self._start, *ids[: self._room(max_tokens, self._start)], self.eos_token_id)

    def room(self, max_tokens: int | None = None) -> int | None:
        """Return the most tokens of a prompt between its start and end token; None: any number."""
        return self._room(max_tokens, self._start)

    @property
    def start_tokens(self) -> int:
        """Number of tokens before a prompt's own: 1 or 0."""
        return len(self._start)

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """As `encode_batch`, for one prompt."""
        return self.encode_batch([text], max_tokens)[0]

    def locate(self, prompts: Sequence[str], cuts: Sequence[Pair], ids: Sequence[Sequence[int]]) -> list[Pair]:
        """Return where the two texts of each prompt lie among its tokens.

        What comes before a text's first and after its last character is counted in tokens, which works for every
        vocabulary. Where one token crosses such a place, it counts for either side.

        Args:
            cuts: of each prompt, the first character of each text and the one after its last.
            ids: of each prompt, from `encode_batch`. A text that is cut off there is left out.
        """
        ends = [
            prompt[:end].rstrip() for prompt, pair in zip(prompts, cuts, strict=True) for cut in pair for end in cut
        ]
        distinct = list(dict.fromkeys(ends))
        counts = {end: len(tokens) for end, tokens in zip(distinct, self._vocabulary.encode(distinct), strict=True)}
        start, pairs = len(self._start), []
        for row, tokens in enumerate(ids):
            a, b, c, d = (min(start + counts[end], len(tokens) - 1) for end in ends[4 * row : 4 * row + 4])
            pairs.append(((a, b), (c, d)))
        return pairs

    def encode_targets(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Return the ids of target texts: no start token, and at most `max_tokens` with the end token."""
        return self._encode(texts, max_tokens, [])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, without special tokens."""
        return self._vocabulary.decode(ids)

    def _encode(self, texts: Sequence[str], max_tokens: int | None, start: list[int]) -> list[list[int]]:
        if not texts:
            return []
        room = self._room(max_tokens, start)
        return [[*start, *ids[:room], self.eos_token_id] for ids in self._vocabulary.encode(texts)]

    def _room(self, max_tokens: int | None, start: list[int]) -> int | None:
        """Most tokens of a text between the start and the end token; None: any number."""
        limits = [limit for limit in (max_tokens, self._limit) if limit is not None]
        return max(min(limits) - 1 - len(start), 0) if limits else None


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Load the tokenizer in a backbone's folder: tokenizer.json, or the other files of its family.

    Raises:
        NoTokenizerError: the folder has no tokenizer.
        BackboneError: the tokenizer or the folder's config.json does not load.
    """
    folder = resolve_folder(source)
    values = read_json(folder / "config.json")
    config = read_config(values)
    vocabulary, fingerprint = read_vocabulary(folder, _files(folder, config, values))
    eos = config.eos_token_id if vocabulary.eos_token_id is None else vocabulary.eos_token_id
    bos = None
    if family_of(config).starts_prompts:
        bos = values.get("bos_token_id") if vocabulary.bos_token_id is None else vocabulary.bos_token_id
        if bos is None:
            raise BackboneError(f"{folder}: neither its tokenizer nor its config.json names the start token (bos)")
    return Tokenizer(vocabulary, fingerprint, eos, bos_token_id=bos, limit=config.max_positions)


def _files(folder: Path, config: BackboneConfig, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of the vocabulary; none for bytes. `values` is config.json, which may name the tokenizer too."""
    choices = family_of(config).vocabularies
    for names in choices:
        if all((folder / name).is_file() for name in names):
            return names
    settings = folder / "tokenizer_config.json"
    tokenizer_values = read_json(settings) if settings.is_file() else {}
    if BYTES in (tokenizer_values.get("tokenizer_class"), values.get("tokenizer_class")):
        return ()
    first, *others = (" with ".join(names) for names in choices)
    raise NoTokenizerError(
        f"{folder} has no {first} (nor {' nor '.join(others)}); copy the backbone's tokenizer into it"
    )
