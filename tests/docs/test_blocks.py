"""Every block of the documentation is run by a test or marked as not run; what is not run is checked."""

import ast
import json
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from side_registry import TaskSpec
from sidecast.cli.app import app
from tests.docs.blocks import DOCUMENTS, ROOT, Block, blocks_of, commands_of
from tests.docs.pages import PAGES

DATA = ("json", "toml")
"""Languages whose blocks are read wherever they are."""
BLOCKS = [block for page in DOCUMENTS for block in blocks_of(page)]
SHELL = ("", "bash")


def is_run(block: Block) -> bool:
    return str(block.page.relative_to(ROOT)) in PAGES or block.language in DATA


def test_every_block_is_run_or_says_why_not() -> None:
    silent = [str(block) for block in BLOCKS if block.why_not is None and not is_run(block)]
    assert silent == [], "put <!-- not run: WHY --> above the block, or the page into tests/docs/pages.py"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in DATA and b.why_not is None], ids=str)
def test_a_block_of_data_is_read(block: Block) -> None:
    if block.language == "toml":
        TaskSpec(**tomllib.loads(block.text))
    else:
        for line in block.text.splitlines():
            assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python" and b.why_not], ids=str)
def test_python_that_is_not_run_is_python(block: Block) -> None:
    compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_have_the_options_that_they_are_given(page: Path) -> None:
    """Also of blocks that are not run."""
    unknown = [f"{block}: {word}" for block in blocks_of(page) for word in unknown_options(block)]
    assert unknown == []


def unknown_options(block: Block) -> Iterator[str]:
    """Words of its `sidecast` commands that are options which the command has not."""
    if block.language not in SHELL:
        return
    for line in commands_of(block.text):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # output
            continue
        if "sidecast" not in words[:1] and ".venv/bin/sidecast" not in words[:1]:
            continue
        command: click.Command | None = app
        rest = words[1:]
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            command = command.get_command(click.Context(command), name)
            if command is None:
                yield name
        if command is None:
            continue
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in rest:
            option = word.partition("=")[0]
            if option.startswith("-") and option not in known | {"--help", "-h", "--version"} and len(option) > 1:
                yield f"{line}: {option}"


def test_a_mark_and_its_lack_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        '<!-- not run: it costs money -->\n```bash\nsidecast train\n```\n\n  ```csv title="a.csv"\n  x,y\n  ```\n',
        encoding="utf-8",
    )
    marked, titled = blocks_of(page)
    assert (marked.why_not, marked.line, titled.why_not) == ("it costs money", 3, None)
    assert (titled.title, titled.text) == ("a.csv", "x,y\n")


def test_an_option_that_is_none_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\n$ sidecast tasks --registry R --colour red\nsst2 --x\n```\n", encoding="utf-8")
    [block] = blocks_of(page)
    [found] = unknown_options(block)
    assert found.endswith(": --colour")
