"""The backbone's own tokenizer: text to ids that end in the end token, and back. Safe to call from many threads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ladder.config import BackboneConfig
from ladder.errors import BackboneError, NoTokenizerError
from ladder.families import family_of
from ladder.loading import read_json, resolve_folder
from ladder.vocabulary import Vocabulary, read_vocabulary

BYTES = "ByT5Tokenizer"
"""What Hugging Face calls the tokenizer that needs no file."""


class Tokenizer:
    """A vocabulary, so used that every text ends in one end token and nothing is padded."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        fingerprint: str,
        eos_token_id: int = 1,
        *,
        bos_token_id: int | None = None,
        limit: int | None = None,
    ) -> None:
        """`bos_token_id`, if any, begins every prompt. `limit` is the most tokens that the backbone reads."""
        self._vocabulary, self.fingerprint, self.eos_token_id = vocabulary, fingerprint, eos_token_id
        self._start = [] if bos_token_id is None else [bos_token_id]
        self._limit = limit

    def encode_batch(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Ids of each prompt, at most `max_tokens` with start and end tokens: a longer text is cut."""
        return self._encode(texts, max_tokens, self._start)

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        """As `encode_batch`, of one prompt."""
        return self.encode_batch([text], max_tokens)[0]

    def encode_targets(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Ids of what a decoder is to say: no start token; at most `max_tokens` with the end token."""
        return self._encode(texts, max_tokens, [])

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without special tokens."""
        return self._vocabulary.decode(ids)

    def _encode(self, texts: Sequence[str], max_tokens: int | None, start: list[int]) -> list[list[int]]:
        if not texts:
            return []
        limits = [limit for limit in (max_tokens, self._limit) if limit is not None]
        cut = max(min(limits) - 1 - len(start), 0) if limits else None
        return [[*start, *ids[:cut], self.eos_token_id] for ids in self._vocabulary.encode(texts)]


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer in a backbone's folder: tokenizer.json, or the files that its family has instead.

    Raises:
        NoTokenizerError: the folder has none.
        BackboneError: it does not load, or the folder's config.json does not.
    """
    folder = resolve_folder(source)
    given = read_json(folder / "config.json")
    config = BackboneConfig.from_hf(given)
    vocabulary, fingerprint = read_vocabulary(folder, _files(folder, config, given))
    eos = config.eos_token_id if vocabulary.eos_token_id is None else vocabulary.eos_token_id
    bos = None
    if family_of(config).starts_prompts:
        bos = given.get("bos_token_id") if vocabulary.bos_token_id is None else vocabulary.bos_token_id
        if bos is None:
            raise BackboneError(f"{folder}: neither its tokenizer nor its config.json names the start token (bos)")
    return Tokenizer(vocabulary, fingerprint, eos, bos_token_id=bos, limit=config.max_positions)


def _files(folder: Path, config: BackboneConfig, given: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of the vocabulary; none for bytes. `given` is config.json, which may name the tokenizer too."""
    choices = family_of(config).vocabularies
    for names in choices:
        if all((folder / name).is_file() for name in names):
            return names
    settings = folder / "tokenizer_config.json"
    told = read_json(settings) if settings.is_file() else {}
    if BYTES in (told.get("tokenizer_class"), given.get("tokenizer_class")):
        return ()
    first, *others = (" with ".join(names) for names in choices)
    raise NoTokenizerError(
        f"{folder} has no {first} (nor {' nor '.join(others)}); copy the backbone's tokenizer into it"
    )
