"""Run Sidecast's commands as a user would: shown, in a process of their own, stopped by their id."""

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


def _arguments(*words: object) -> list[str]:
    return [sys.executable, "-m", "sidecast.cli", *map(str, words)]


def _shown(*words: object) -> str:
    return "$ sidecast " + " ".join(shlex.quote(str(word)) for word in words)


def run_command(*words: object) -> None:
    """Show a command and run it, its output in ours.

    Raises:
        DemoError: it failed; it has said why.
    """
    print(_shown(*words), flush=True)
    code = subprocess.run(_arguments(*words), check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise DemoError(f"sidecast {words[0]} failed", "read what it said above, mend it, and run make demo again")


def run_json(*words: object) -> Any:
    """Show a command, run it with --json, and give what it printed."""
    print(_shown(*words, "--json"), flush=True)
    done = subprocess.run(_arguments(*words, "--json"), check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DemoError(f"sidecast {words[0]} failed", "read what it said above, mend it, and run make demo again")
    print(f"  {done.stdout.strip()}", flush=True)
    return json.loads(done.stdout)


def run_python(module: str, *words: object) -> None:
    """Show and run one of the demo's own modules."""
    print(f"$ python -m {module} " + " ".join(shlex.quote(str(word)) for word in words), flush=True)
    if subprocess.run([sys.executable, "-m", module, *map(str, words)], check=False).returncode:
        raise DemoError(f"{module} failed", "read what it said above, mend it, and run make demo again")


class Server:
    """`sidecast serve` on free ports, for the length of a with block."""

    def __init__(self, backbone: Path, registry: Path) -> None:
        self._words = ("serve", "--backbone", backbone, "--registry", registry, "--port", 0, "--metrics-port", 0)
        self.address = ""

    def __enter__(self) -> Self:
        print(_shown(*self._words), flush=True)
        self._process = subprocess.Popen(
            _arguments(*self._words, "--json", "--log-level", "WARNING"), stdout=subprocess.PIPE, text=True
        )
        stopper = threading.Timer(START_S, self._process.kill)
        stopper.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        stopper.cancel()
        if not line:
            raise DemoError("the server did not start", "read what it said above, mend it, and run make demo again")
        ready = json.loads(line)
        self.address = ready["address"]
        print(f"  ready on {ready['address']}: {ready['tasks']} tasks, metrics on {ready['metrics']}", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
