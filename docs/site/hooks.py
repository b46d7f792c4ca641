"""Hooks of mkdocs.yml: what the site has that docs/ does not.

The pages of docs/ are written for GitHub. Here they become pages of a site: links to files outside docs/ lead to a
copy of the file under repository/, lists get the blank line and the indentation that Python-Markdown wants, and the
reference is made from the code.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads a hook as a file, without its folder

import reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
COPIES = "repository"
"""Folder of the site for files of the repository that are not in docs/."""
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "examples/README.md")
LINK = re.compile(r"(?P<before>\]\(|\b(?:src|srcset|href)=\")(?P<target>[^)\"\s]+)(?=[)\"])")
MARK = re.compile(r"^ *<!-- not run: .* -->\n", re.MULTILINE)
"""Of a block that no test runs; it may not stand right above a fence in this dialect."""
FENCE = re.compile(r"^ *```")
ITEM = re.compile(r"^(?P<indent> *)(?:[-*]|\d+\.) ")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, the list of decisions, and every file of the repository that a page links to."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    files.append(File.generated(config, "decisions/index.md", content=_decisions()))
    waiting = [*ALWAYS]
    for file in files.documentation_pages():
        if file.abs_src_path:
            waiting.extend(_linked(f"{DOCS}/{file.src_uri}", Path(file.abs_src_path)))
    copied: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in copied or path.startswith(f"{DOCS}/") or not (ROOT / path).is_file():
            continue
        copied.add(path)
        files.append(File.generated(config, f"{COPIES}/{path}", abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting.extend(_linked(path, ROOT / path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn GitHub's Markdown into that of the site."""
    here = page.file.src_uri
    inside = here.removeprefix(f"{COPIES}/")
    source = inside if inside != here else f"{DOCS}/{here}"
    if here.startswith("reference/"):
        return markdown
    text = "\n".join(_spaced(MARK.sub("", markdown).splitlines()))
    return LINK.sub(lambda match: match["before"] + _site_link(match["target"], source, here), text)


def _decisions() -> str:
    lines = ["# Decisions", "", "Why things are as they are, one page each.", ""]
    for path in sorted((ROOT / DOCS / "decisions").glob("*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def _linked(source: str, path: Path) -> Iterator[str]:
    """The repository's paths that a page links to."""
    for match in LINK.finditer(path.read_text(encoding="utf-8")):
        target = match["target"].partition("#")[0]
        if target and not _is_outside(target):
            yield normpath(f"{dirname(source)}/{target}").removeprefix("/")


def _is_outside(target: str) -> bool:
    return bool(re.match(r"[a-z]+:|#", target))


def _site_link(target: str, source: str, here: str) -> str:
    """A link as the site has it.

    Args:
        target: the link in the repository.
        source: the page's path in the repository.
        here: the page's path in the site.
    """
    if _is_outside(target):
        return target
    path, mark, anchor = target.partition("#")
    wanted = normpath(f"{dirname(source)}/{path}").removeprefix("/")
    if (ROOT / wanted).is_dir():
        wanted = f"{wanted}/index.md"
    inside = wanted.removeprefix(f"{DOCS}/")
    placed = inside if inside != wanted else f"{COPIES}/{wanted}"
    return relpath(placed, dirname(here) or ".") + mark + anchor


def _spaced(lines: list[str]) -> Iterator[str]:
    """Give each list a blank line before it, and nested items four spaces instead of two or three."""
    fenced = in_list = False
    before = ""
    for line in lines:
        if FENCE.match(line):
            fenced = not fenced
        item = None if fenced else ITEM.match(line)
        if item:
            if not in_list and before.strip():
                yield ""
            in_list = True
            if item["indent"]:
                line = "    " + line.lstrip(" ")
        elif in_list and not fenced and line.strip() and not line.startswith(" "):
            in_list = False
        before = line
        yield line
