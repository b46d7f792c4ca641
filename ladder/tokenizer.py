"""The backbone's own tokenizer: text to ids that end in the end token, and back. Safe to call from many threads."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ladder.errors import BackboneError
from ladder.loading import resolve_folder


class Tokenizer:
    """Wraps a Hugging Face tokenizer, so that every text ends in one end token and nothing is padded."""

    def __init__(self, inner: object, fingerprint: str, eos_token_id: int = 1) -> None:
        self._inner, self.fingerprint, self.eos_token_id = inner, fingerprint, eos_token_id

    def encode_batch(self, texts: Sequence[str], max_tokens: int | None = None) -> list[list[int]]:
        """Ids of each text, at most `max_tokens` with the end token: a longer text is cut."""
        if not texts:
            return []
        # truncation stays ours: the fast tokenizer keeps it as shared state, which threads would fight over
        encoded = self._inner(list(texts), add_special_tokens=False, truncation=False)["input_ids"]  # type: ignore[operator]
        cut = None if max_tokens is None else max_tokens - 1
        return [[*ids[:cut], self.eos_token_id] for ids in encoded]

    def encode(self, text: str, max_tokens: int | None = None) -> list[int]:
        return self.encode_batch([text], max_tokens)[0]

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=True)  # type: ignore[attr-defined]


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer in a backbone's folder (tokenizer.json, or spiece.model).

    Raises:
        BackboneError: the folder has none, or it does not load.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    folder = resolve_folder(source)
    files = [folder / name for name in ("tokenizer.json", "spiece.model") if (folder / name).is_file()]
    if not files:
        raise BackboneError(f"{folder} has no tokenizer.json (nor spiece.model); copy the backbone's tokenizer into it")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings on sequence length and legacy modes do not concern us
    try:
        inner = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the loaders below raise whatever they meet
        raise BackboneError(f"the tokenizer in {folder} does not load: {str(error).splitlines()[0]}") from None
    finally:
        logging.set_verbosity(verbosity)
    inner.model_max_length = 10**9  # no warning per long text: cutting is ours
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    return Tokenizer(inner, f"sha256:{digest}", 1 if inner.eos_token_id is None else inner.eos_token_id)
