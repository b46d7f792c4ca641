"""Human ratings of text snippets, as Hutto & Gilbert published them (VADER, ICWSM 2014).

Source: an archive in vaderSentiment's source distribution (MIT). Each ground truth file is UTF-8, one snippet a line
(CRLF between lines), tab-separated: id, mean rating of about 20 people from -4 to 4, text. Does not know tasks.
"""

import gzip
import html
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.folders import DemoError

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
SUFFIX = "_GroundTruth.txt"
ROWS = {"movieReviewSnippets": 10_605, "amazonReviewSnippets": 3_708, "tweets": 4_200, "nytEditorialSnippets": 5_190}
"""Ground truth files of the archive, and their numbers of snippets."""
CONTRIVED = ((1424, 1486), (1818, 1876), (2215, 2226), (2849, 2855), (3201, 3212), (3550, 3554), (3855, 3866))
"""First and last ids of the contrived tweets; the tweets that they vary come earlier in the file."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """One rated text."""

    id: str
    rating: float
    text: str

    @property
    def review(self) -> str:
        """The review that the snippet comes from: 12_3 is from review 12; other ids are their own review."""
        return self.id.partition("_")[0]


def read_archive(source: Path) -> dict[str, list[Snippet]]:
    """Read the ground truth files in the source distribution, by name without suffix, and check their row counts.

    Raises:
        DemoError: the archive does not hold the expected files.
    """
    try:
        ratings = {name: parse(content, name) for name, content in _members(source)}
    except (StopIteration, tarfile.TarError, gzip.BadGzipFile, EOFError) as error:
        raise _unexpected(source.name, f"no readable {ARCHIVE} in it") from error
    counts = {name: len(rows) for name, rows in ratings.items()}
    if counts != ROWS:
        raise _unexpected(source.name, f"expected rows {ROWS}, found {counts}")
    return ratings


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(source) as outer:
        inner = [member for member in outer if member.name.endswith(f"/{ARCHIVE}")]
        if not inner:
            raise tarfile.ReadError(f"no {ARCHIVE}")
        with tarfile.open(fileobj=outer.extractfile(inner[0])) as archive:
            for member in archive:
                name = Path(member.name).name
                file = archive.extractfile(member) if name.removesuffix(SUFFIX) in ROWS else None
                if file and name.endswith(SUFFIX):
                    yield name.removesuffix(SUFFIX), file.read()


def parse(content: bytes, name: str) -> list[Snippet]:
    """Parse one ground truth file; the text is cleaned.

    Raises:
        DemoError: a line is not id, rating and text.
    """
    snippets = []
    for number, line in enumerate(content.removesuffix(b"\r\n").split(b"\r\n"), start=1):
        try:
            id_, rating, text = line.decode("utf-8").split("\t")
            snippets.append(Snippet(id_, float(rating), clean(text)))
        except ValueError:
            raise _unexpected(f"{name}{SUFFIX}", f"line {number} is not id, rating and text") from None
    return snippets


def clean(text: str) -> str:
    """Resolve HTML entities (some are escaped twice) and replace white space by single spaces."""
    return " ".join(html.unescape(html.unescape(text)).split())


def without_contrived(tweets: Sequence[Snippet]) -> list[Snippet]:
    """Remove the 200 texts that were added to test syntax from the 4,000 tweets.

    They are 30 families of a text and its variants (capitals, exclamation marks, intensifiers): near copies, which
    would be on both sides of a split.
    """
    variants = {str(id_) for first, last in CONTRIVED for id_ in range(first, last + 1)}
    families = {_loose(tweet.text) for tweet in tweets if tweet.id in variants}
    return [tweet for tweet in tweets if tweet.id not in variants and _loose(tweet.text) not in families]


def distinct(snippets: Iterable[Snippet]) -> list[Snippet]:
    """Keep the first of snippets whose texts differ only in case."""
    first: dict[str, Snippet] = {}
    for snippet in snippets:
        first.setdefault(snippet.text.casefold(), snippet)
    return list(first.values())


def _loose(text: str) -> str:
    return re.sub(r"[!.,\s]+", " ", text.lower()).strip()


def _unexpected(name: str, why: str) -> DemoError:
    return DemoError(f"{name} is not what it should be ({why})", "remove it from the cache and run again")
