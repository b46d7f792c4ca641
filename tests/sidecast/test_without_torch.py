"""An installation without extras: the client and most commands work, and the others say what to install."""

import json
import subprocess
import sys

import pytest

from sidecast.cli.app import COMMANDS
from sidecast.cli.missing import OF_EXTRAS
from tests.sidecast.cli_kit import ROOT, plain_environment, python

BLOCKED = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {set(OF_EXTRAS)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
"""
"""Makes the packages of all extras look as if they were not installed."""

RUN = """
import contextlib, io, json
from sidecast.cli.app import main

def ran(words):
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as exit_:
            code = exit_.code
    return [code, out.getvalue(), err.getvalue()]

print(json.dumps([ran(words) for words in json.loads(sys.stdin.read())]))
"""


def run_each(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Run commands in one process that lacks the packages; exit code, output and errors of each."""
    done = python("-c", BLOCKED + RUN, text_input=json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return [tuple(each) for each in json.loads(done.stdout)]


def test_every_help_is_there() -> None:
    for code, out, err in run_each([], *([name, "--help"] for name in COMMANDS)):
        assert (code, err) == (0, "")
        assert "Usage: sidecast" in out


def test_the_client_and_the_registry_import_nothing_of_the_extras(tmp_path) -> None:
    code = BLOCKED + (
        "import sidecast\n"
        "for name in {*sidecast.__all__} - {'train', 'TrainedRun'}: getattr(sidecast, name)\n"
        f"sidecast.Registry.open({str(tmp_path / 'registry')!r}, create=True).state()\n"
        "sidecast.Client('127.0.0.1:1').close()\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_training_from_python_says_what_to_install() -> None:
    done = python("-c", BLOCKED + "import sidecast\nsidecast.train")
    assert done.returncode == 1
    assert done.stderr.endswith("sidecast.train needs an extra: pip install 'sidecast[train]'\n")


@pytest.mark.slow
def test_what_needs_no_torch_works_and_what_does_says_which_extra(tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"sentence": "a", "label": "negative"}\n')
    rows = str(tmp_path / "rows.jsonl")
    python("-c", f"from sidecast import Registry; Registry.open({str(tmp_path / 'r')!r}, create=True)")
    registry = ["--registry", str(tmp_path / "r")]
    train = [
        "train",
        "sst2",
        "--backbone",
        "b",
        "--train",
        rows,
        "--validation",
        rows,
        "--output",
        str(tmp_path / "run"),
    ]
    tasks, history, predict, doctor, trained, serve, batch = run_each(
        ["tasks", *registry],
        ["history", *registry],
        ["predict", "sst2", "a", "--server", "127.0.0.1:1", "--json"],
        ["doctor", *registry],
        [*train, "--json"],
        ["serve", "--backbone", "b", *registry],
        ["batch", rows, str(tmp_path / "out"), "--task", "sst2", "--backbone", "b", *registry],
    )
    assert (tasks[0], history[0]) == (0, 0)
    assert json.loads(predict[2])["error"]["reason"] == "UNREACHABLE"
    assert "registry" in doctor[1]
    error = json.loads(trained[2])["error"]
    assert error["reason"] == "NOT_INSTALLED"
    assert error["message"].endswith("sidecast train needs it here: pip install 'sidecast[train]'")
    assert serve[2].startswith("Error: ")
    assert "pip install 'sidecast[serve]'" in serve[2]
    assert "pip install 'sidecast[cluster]'" in batch[2]
    assert [trained[0], serve[0], batch[0]] == [2, 2, 2]


def test_python_m_sidecast_is_the_command() -> None:
    ran = python("-m", "sidecast", "--version")
    assert ran.returncode == 0
    assert ran.stdout.startswith("sidecast, version ")


def test_a_shell_completes_commands_and_options() -> None:
    environment = plain_environment() | {"_SIDECAST_COMPLETE": "bash_complete"}
    environment |= {"COMP_WORDS": "sidecast publish --better", "COMP_CWORD": "2"}
    command = [sys.executable, "-m", "sidecast"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "plain,--better-than\n", done.stderr
