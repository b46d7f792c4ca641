"""The pages whose blocks are executed, in order, in a folder that has what a reader has."""

import contextlib
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from serving.components import assemble
from serving.config import read_config
from sidecast.cli.app import app
from tests import tiny
from tests.docs.blocks import ROOT, Block, blocks_of, commands_of
from tests.serving.api_kit import serving

BACKBONE = "google/flan-t5-small"
"""A tiny random backbone has this name in the folder."""
ADDRESSES = {"8001": "port", "8000": "http_port", "8002": "metrics_port"}
"""Ports that the pages name, and the server's that take their place."""


def write_reviews(folder: Path) -> None:
    """Rows of sst2, as train.jsonl and dev.jsonl."""
    labels = ("negative", "positive")
    for name, count in (("train.jsonl", 8), ("dev.jsonl", 4)):
        rows = [{"sentence": f"film {number}", "label": labels[number % 2]} for number in range(count)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_two_tasks(folder: Path) -> None:
    """Those, and a registry that has the task cola already."""
    write_reviews(folder)
    shell("sidecast init --backbone google/flan-t5-small --task cola --head linear --output runs/cola")
    shell("sidecast publish runs/cola --registry registry --allow-untrained --promote")


PAGES: dict[str, Callable[[Path], None] | None] = {
    "README.md": write_two_tasks,
    "docs/coming-from/peft.md": None,
    "docs/guides/canary.md": write_reviews,
    "docs/guides/csv.md": None,
    "docs/guides/images.md": None,
    "docs/guides/new-head.md": None,
    "docs/guides/observe.md": write_reviews,
    "docs/guides/publish.md": write_reviews,
    "docs/guides/secure.md": write_reviews,
    "docs/python.md": write_reviews,
    "docs/quickstart.md": None,
}
"""By page: what makes its files, beside the backbone."""


class Reader:
    """Runs a page's blocks as a reader would, in the current folder; the page's server runs in this process."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.names: dict[str, Any] = {"__name__": "page"}
        self.ports: dict[str, int] = {}

    def run(self, block: Block) -> None:
        """Run one block. Raises what the block raises."""
        if block.title is not None:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(self.addressed(block.text), encoding="utf-8")
        elif block.language == "python":
            text = "\n" * (block.line - 1) + self.addressed(block.text)
            exec(compile(text, str(block.page), "exec"), self.names)
        elif block.language == "bash":
            for command in commands_of(block.text):
                if command.startswith("sidecast serve"):
                    self.serve(command)
                else:
                    shell(self.addressed(command))

    def addressed(self, text: str) -> str:
        """A text of the page with the server's ports in place of the page's."""
        for page, port in self.ports.items():
            text = text.replace(f"127.0.0.1:{page}", f"127.0.0.1:{port}")
        return text

    def serve(self, command: str) -> None:
        """Start the server of a `sidecast serve` on free ports, until the page ends."""
        words = shlex.split(command, comments=True)[2:]
        context = app.make_context("sidecast", ["serve"])
        parser = app.get_command(context, "serve")
        assert parser is not None
        flags = parser.make_context("serve", words, parent=context).params
        for name in ("as_json", "config"):
            flags.pop(name)
        config = read_config({**flags, "port": 0, "metrics_port": 0})
        server, _ = self.stack.enter_context(serving(config, assemble))
        self.ports = {page: getattr(server, name) for page, name in ADDRESSES.items()}


def shell(command: str) -> str:
    """Run a command and return its output: `sidecast` in this process, others in bash.

    Raises:
        AssertionError: the command fails.
    """
    command, _, output = command.partition(" > ")
    words = shlex.split(command, comments=True)
    if words[0] == "sidecast":
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}{result.stderr}"
        if output:
            Path(output).write_text(result.stdout, encoding="utf-8")
        return result.stdout
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def reading(page: str, folder: Path) -> Iterator[Reader]:
    """Run all blocks of a page in `folder`, which becomes the current one; its server runs until the end."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        tiny.make_t5(folder / BACKBONE)
        prepare = PAGES[page]
        if prepare is not None:
            prepare(folder)
        with contextlib.ExitStack() as stack:
            reader = Reader(stack)
            for block in blocks_of(ROOT / page):
                if block.why_not is None:
                    reader.run(block)
            yield reader
    finally:
        os.chdir(before)
