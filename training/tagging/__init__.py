"""Token classification: entities in data files, and the tags that teach a side network to find them."""

from training.tagging.conll import is_conll, read_conll
from training.tagging.entities import TAGS, TOKENS, SpanReader, check_spans, join_tokens
from training.tagging.targets import tag_windows, windows_of

__all__ = [
    "TAGS",
    "TOKENS",
    "SpanReader",
    "check_spans",
    "is_conll",
    "join_tokens",
    "read_conll",
    "tag_windows",
    "windows_of",
]
