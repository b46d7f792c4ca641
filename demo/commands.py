"""Runs Sidecast's commands as a user would: each is printed, then runs in its own process."""

import json
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from demo.folders import DemoError

START_S = 180
"""Longest start of a server, in seconds."""
INTERRUPTED = 130
CLI = "sidecast.cli"


class Commands:
    """Runs commands and the demo's own modules. `execute` is the one method that starts a process."""

    def run(self, *words: object) -> None:
        """Print a `sidecast` command and run it; its output goes to this process's output.

        Raises:
            DemoError: the command failed; it has printed why.
        """
        print(_shown(*words), flush=True)
        self._checked(f"sidecast {words[0]}", CLI, *words, capture=False)

    def run_json(self, *words: object) -> Any:
        """Print a `sidecast` command, run it with --json, and return the document that it printed.

        Raises:
            DemoError: the command failed; it has printed why.
        """
        print(_shown(*words, "--json"), flush=True)
        output = self._checked(f"sidecast {words[0]}", CLI, *words, "--json", capture=True)
        print(f"  {output.strip()}", flush=True)
        return json.loads(output)

    def run_python(self, module: str, *words: object) -> None:
        """Print and run one of the demo's own modules.

        Raises:
            DemoError: the module failed; it has printed why.
        """
        print(f"$ python -m {module} " + " ".join(shlex.quote(str(word)) for word in words), flush=True)
        self._checked(module, module, *words, capture=False)

    def execute(self, module: str, words: list[str], *, capture: bool) -> tuple[int, str]:
        """Run `python -m module words` to its end.

        Returns:
            The exit status, and the standard output if `capture`, else "".
        """
        command = [sys.executable, "-m", module, *words]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE if capture else None, text=True)
        return done.returncode, done.stdout or ""

    def _checked(self, label: str, module: str, *words: object, capture: bool) -> str:
        code, output = self.execute(module, [str(word) for word in words], capture=capture)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise DemoError(f"{label} failed", "read its message above, correct the cause, and run the demo again")
        return output


class Server:
    """`sidecast serve` on free ports, in its own process, for the length of a with block."""

    def __init__(self, backbone: Path, registry: Path, *options: object) -> None:
        words = ("serve", "--backbone", backbone, "--registry", registry, *options)
        self._words = (*words, "--port", 0, "--metrics-port", 0)
        self.address = ""
        self.metrics = ""
        """URL of its metrics."""

    def __enter__(self) -> Self:
        print(_shown(*self._words), flush=True)
        options = ("--json", "--log-level", "WARNING")
        command = [sys.executable, "-m", CLI, *map(str, self._words), *options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stopper = threading.Timer(START_S, self._process.kill)
        stopper.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        stopper.cancel()
        if not line:
            self._process.wait()
            self._process.stdout.close()
            advice = "read its message above, correct the cause, and run the demo again"
            raise DemoError("the server did not start", advice)
        ready = json.loads(line)
        self.address = ready["address"]
        self.metrics = ready["metrics"]
        print(f"  ready on {ready['address']}: {ready['tasks']} tasks, metrics on {ready['metrics']}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _shown(*words: object) -> str:
    return "$ sidecast " + " ".join(shlex.quote(str(word)) for word in words)
