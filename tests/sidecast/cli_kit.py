"""Runs Sidecast's commands in this process: what they print, and how they exit."""

import contextlib
import io
import json
from dataclasses import dataclass
from typing import Any

from sidecast.cli.app import main


@dataclass(frozen=True)
class Ran:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What `--json` printed: one document, on one line."""
        [line] = self.out.splitlines()
        return json.loads(line)

    @property
    def mistake(self) -> str:
        """The one line that a user's mistake gets, on standard error, with nothing on standard output."""
        assert (self.code, self.out) == (2, ""), self
        [line] = self.err.splitlines()
        assert line.startswith("Error: "), line
        return line.removeprefix("Error: ")


def sidecast(*words: object) -> Ran:
    """Run `sidecast WORDS...`."""
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as exit_:
            code = exit_.code
    assert isinstance(code, int), code
    return Ran(code, out.getvalue(), err.getvalue())


def done(*words: object) -> Ran:
    """Run a command that must succeed."""
    ran = sidecast(*words)
    assert ran.code == 0, ran.err
    return ran
