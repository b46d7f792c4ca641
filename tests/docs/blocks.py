"""The fenced blocks of the documentation, and whether each is run.

A block is run, unless the line above it says why it is not:

    <!-- not run: it needs a Kubernetes cluster -->

The comment does not show in the rendered page. What running means depends on the block's language:

    toml, json      read; in a page of `pages.PAGES` also whatever its title says
    python, bash    executed, in the pages of `pages.PAGES`, from the first block of a page to the last
    any, with title="FILE"   written to that file, for the blocks below it
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "benchmarks/README.md",
        ROOT / "examples/README.md",
    ]
    if path.name not in ("CHANGELOG.md", "LOG.md")
)
OPENING = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?: +title=\"(?P<title>[^\"]+)\")?$")
MARK = re.compile(r"^ *<!-- not run: (?P<why>\S.*) -->$")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    """Of the first line inside, from 1."""
    language: str
    title: str | None
    """The file that it is written to."""
    text: str
    why_not: str | None
    """Why it is not run."""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, in order.

    Raises:
        ValueError: a fence is written in another form than ```language title="FILE".
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if not lines[at].lstrip().startswith("```"):
            at += 1
            continue
        opening = OPENING.fullmatch(lines[at])
        if opening is None:
            raise ValueError(f'{page}:{at + 1}: write ```language or ```language title="FILE", not {lines[at]!r}')
        indent = opening["indent"]
        end = next(number for number in range(at + 1, len(lines)) if lines[number] == f"{indent}```")
        mark = MARK.fullmatch(lines[at - 1]) if at else None
        yield Block(
            page=page,
            line=at + 2,
            language=opening["language"],
            title=opening["title"],
            text="\n".join(line.removeprefix(indent) for line in lines[at + 1 : end]) + "\n",
            why_not=mark and mark["why"],
        )
        at = end + 1


def commands_of(text: str) -> Iterator[str]:
    """The commands of a shell block, one each, with continued lines joined; prompts and output are left out."""
    lines = text.replace("\\\n", " ").splitlines()
    prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    for line in prompted or lines:
        if line.strip() and not line.startswith("#"):
            yield line
