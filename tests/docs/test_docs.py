"""The documentation: relative links lead to files and headings that exist; the drawing is one in light and dark."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])
DRAWINGS = [ROOT / "docs/sidecast-light.svg", ROOT / "docs/sidecast-dark.svg"]

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)|\b(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
STYLE = re.compile(r"<style>.*?</style>", re.DOTALL)


def anchors_of(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    seen, anchors = Counter[str](), set()
    for heading in HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        anchors.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return anchors


def links_of(page: Path) -> list[str]:
    """Targets of a page's relative links and pictures."""
    text = CODE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    targets = [markdown or html for markdown, html in LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def broken_links(page: Path) -> Iterator[str]:
    for target in links_of(page):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        if not linked.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors_of(linked):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `name`, twice\n# A name, twice\n[1](#a-name-twice) [2](#a-name-twice-1) [3](page.md#a-name-twice-2)\n"
        '[4](other.md) [5](https://example.com) `[6](in_code.md)`\n<img src="picture.svg">\n'
        "```\n# [7](fenced.md)\n```\n",
        encoding="utf-8",
    )
    assert list(broken_links(page)) == [
        "page.md#a-name-twice-2: no such heading",
        "other.md: no such file",
        "picture.svg: no such file",
    ]


def test_the_light_and_the_dark_drawing_differ_in_colours_alone() -> None:
    light, dark = (STYLE.sub("", path.read_text(encoding="utf-8")) for path in DRAWINGS)
    assert light == dark


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.name)
def test_a_drawing_needs_nothing_from_elsewhere(path: Path) -> None:
    """GitHub shows it as an image, which may load no fonts, scripts or pictures."""
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|@font-face|url\((?!#)", text)
    ids = set(re.findall(r"\bid=\"([^\"]+)\"", text))
    for element in ElementTree.fromstring(text).iter():
        assert not element.tag.endswith(("}image", "}script", "}foreignObject"))
        for name, value in element.attrib.items():
            if name.endswith("href"):
                assert value.removeprefix("#") in ids, f"{value} is not in the drawing"
