"""The registry's commands: publish, promote, rollback, retire, tasks, history."""

import json
import re
import shutil
from pathlib import Path

import pytest

from side_registry import Registry
from side_registry.manifest import MANIFEST
from sidecast.cli.output import show_table
from tests.side_registry.runs import make_run
from tests.sidecast.cli.house import House
from tests.sidecast.cli_kit import done, sidecast


def test_publish_tells_what_callers_get_and_the_next_command(house: House, tmp_path: Path) -> None:
    new = ["--registry", tmp_path / "new"]
    first = done("publish", house / "run-1", *new)
    assert first.out == "published letters version 1; production now points at it (generation 1)\n"
    second = done("publish", house / "run-2", *new, "--message", "better")
    promote = f"sidecast promote letters 2 --registry {tmp_path / 'new'}"
    stays = f"callers still get version 1: {promote} moves them to version 2 (generation 2)\n"
    assert second.out == f"published letters version 2; {stays}"
    again = done("publish", house / "run-2", *new)
    assert again.out == f"letters version 2 was published before from this very run; {stays}"
    canary = done("publish", house / "run-2", *new, "--alias", "canary", "--json").document
    expected = {"task": "letters", "version": 2, "generation": 3, "already": True, "aliases": {"canary": 2}}
    assert canary == expected | {"production": 1}
    rollback = f"sidecast rollback letters --registry {tmp_path / 'new'}"
    assert done("publish", house / "run-2", *new, "--promote").out == (
        "letters version 2 was published before from this very run; production now points at it, was version 1: "
        f"{rollback} undoes it (generation 4)\n"
    )
    assert done("publish", house / "run-2", *new).out == (
        "letters version 2 was published before from this very run; production points at it (generation 4)\n"
    )
    assert done("publish", house / "run-1", *new, "--alias", "canary").out == (
        "letters version 1 was published before from this very run; canary now points at it, was version 2: "
        f"{rollback} --alias canary undoes it; callers still get version 2: "
        f"sidecast promote letters 1 --registry {tmp_path / 'new'} moves them to version 1 (generation 5)\n"
    )


def test_a_task_without_production_is_told_how_to_get_one(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAST_REGISTRY", str(tmp_path / "new"))
    assert done("publish", house / "run-1", "--alias", "canary").out == (
        "published letters version 1; canary now points at it; "
        "letters has no production version yet: sidecast promote letters 1 (generation 1)\n"
    )


def test_promote_and_alias_exclude_each_other(house: House, registry: Path) -> None:
    told = sidecast("publish", house / "run-1", "--registry", registry, "--promote", "--alias", "canary").mistake
    assert "--promote is short for --alias production; give one of the two" in told


def test_a_mistaken_publish_leaves_no_registry_behind(house: House, tmp_path: Path) -> None:
    assert sidecast("publish", house / "t5", "--registry", tmp_path / "new").code == 2
    assert not (tmp_path / "new").exists()


def test_a_run_that_was_changed_is_not_published(house: House, registry: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(house / "run-1", tmp_path / "run"))
    data = bytearray((run / "side_network.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "side_network.safetensors").write_bytes(data)
    assert "its sha256 differs" in sidecast("publish", run, "--registry", registry).mistake
    (run / "side_network.safetensors").write_bytes(data[:-1])
    assert "manifest.json says" in sidecast("publish", run, "--registry", registry).mistake


def test_promote_rollback_and_retire(registry: Path) -> None:
    where = ["--registry", registry]
    undo = f"sidecast rollback letters --registry {registry}"
    assert done("promote", "letters", 2, *where).out == (
        f"letters@production is version 2, was version 1: {undo} undoes it (generation 3)\n"
    )
    told = done("promote", "letters", 1, *where, "--alias", "canary", "--json").document
    assert told == {"task": "letters", "alias": "canary", "version": 1, "generation": 4}
    assert done("rollback", "letters", *where).out == "letters@production is version 1 again, was 2 (generation 5)\n"
    assert done("retire", "letters", 2, *where, "-m", "worse").out == "letters version 2 is retired (generation 6)\n"
    assert "version 2 of task 'letters' is retired; use one of 1" in sidecast("promote", "letters", 2, *where).mistake
    shown = done("tasks", *where).out.splitlines()
    assert shown[0].split() == ["task", "kind", "aliases", "versions", "notes"]
    assert shown[1].split() == ["letters", "classification", "production", "1,", "canary", "1", "1"]


def test_rollback_as_json(registry: Path) -> None:
    where = ["--registry", registry]
    for version in (2, 1, 2):
        done("promote", "letters", version, *where)
    told = done("rollback", "letters", "--to", 1, *where, "--json").document
    names = {"task": "letters", "alias": "production", "version_from": 2, "version_to": 1}
    assert told == names | {"generation": 6, "canary_ended": False}
    assert done("retire", "letters", 2, *where, "--json").document == {"task": "letters", "version": 2, "generation": 7}


def test_tasks_of_an_empty_registry(tmp_path: Path) -> None:
    Registry.open(tmp_path, create=True)
    assert done("tasks", "--registry", tmp_path).out == "no tasks yet: sidecast publish RUN adds one\n"
    assert done("tasks", "--registry", tmp_path, "--json").document == {"generation": 0, "tasks": []}
    assert done("history", "--registry", tmp_path, "--json").document == []


def test_tasks_as_json(house: House) -> None:
    document = done("tasks", "--registry", house / "registry", "--json").document
    assert document["generation"] == 2
    [task] = document["tasks"]
    assert (task["task"], task["kind"], task["aliases"]) == ("letters", "classification", {"production": 1})
    assert [(each["version"], each["retired"]) for each in task["versions"]] == [(1, False), (2, False)]


def test_history_tells_who_did_what_and_why(registry: Path) -> None:
    done("promote", "letters", 2, "--registry", registry, "--message", "[red]measured[/red] better")
    ran = done("history", "letters", "--registry", registry)
    lines = ran.out.splitlines()
    assert lines[0].split() == ["generation", "time", "author", "what", "why"]
    assert re.search(r"publish letters 1 \(run [0-9a-f]{16}\), set_alias letters@production 1", lines[1])
    assert lines[3].endswith("[red]measured[/red] better")
    document = done("history", "--registry", registry, "--json").document
    assert [change["generation"] for change in document] == [1, 2, 3]
    action = {
        "verb": "set_alias",
        "task": "letters",
        "version": 2,
        "alias": "production",
        "route": None,
        "run_id": None,
    }
    assert (document[2]["actions"], document[2]["message"]) == ([action], "[red]measured[/red] better")
    newest = done("history", "--registry", registry, "--limit", 1, "--json").document
    assert newest == document[2:]


@pytest.fixture(params=[80, 100])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    return request.param


def shown(columns: int, *words: object) -> list[str]:
    """The lines of a terminal, none of which is too long."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in done(*words).out.splitlines()]
    assert max(map(len, lines)) <= columns
    return lines


def test_history_fits_a_terminal(registry: Path, columns: int) -> None:
    why = "better on the held-out rows of the second week, " * 3
    Registry.open(registry).set_alias("letters", "production", 2, author="someone-with-a-name@a-long-host", message=why)
    *_, head, what, why_1, why_2 = lines = shown(columns, "history", "letters", "--registry", registry)
    assert lines[0].split() == ["generation", "time", "author"]
    assert re.fullmatch(r"3 +\S+Z  someone-with-a-name@a-long-host", head)
    assert what == "   what: set_alias letters@production 2"
    assert why_1.startswith("   why: better on the held-out rows")
    assert why_2.startswith("   ")
    assert [line for line in lines if line.endswith(("second", "week,", "rows", "of", "the"))]  # cut between words


def test_tasks_fit_a_terminal(registry: Path, columns: int) -> None:
    where = ["--registry", registry]
    for number in range(5):
        Registry.open(registry).set_alias("letters", f"an-alias-with-a-long-name-{number}", 1)
    heading, row, *below = shown(columns, "tasks", *where)
    assert heading.split()[:2] == ["task", "kind"]
    assert row.split()[:2] == ["letters", "classification"]
    text = " ".join(" ".join(below).split())
    assert text.startswith("aliases: production 1, an-alias-with-a-long-name-0 1, an-alias")
    assert "an-alias-with-a-long-name-4 1" in text


def test_what_served_then_fits_a_terminal(registry: Path, columns: int) -> None:
    where = ["--registry", registry]
    alias = "an-alias-with-a-long-name-of-32"
    Registry.open(registry).set_alias("letters", alias, 2)
    done("promote", "letters", 1, "--alias", alias, "--canary", "12.5%", "--max-disagreement", "5%", *where)
    text = " ".join(" ".join(shown(columns, "history", "letters", "--at", "2999-01-01", *where)).split())
    assert "(generation 4)" in text
    assert f"letters {alias} " in text
    assert "letters production 1" in text


def test_the_longest_names_fit_a_terminal(tmp_path: Path, columns: int) -> None:
    """Each is there whole, on one line."""
    task, alias, author = "t" * 64, "a" * 32, "an-author-whose-name-has-all-the-letters@the-host-of-all-builds.example"
    run = make_run(tmp_path / "run", task)
    spec = {"name": task, "kind": "token_classification", "template": "{sentence}", "labels": ["PER", "LOC"]}
    manifest = json.loads((run / MANIFEST).read_text(encoding="utf-8")) | {"spec": spec, "examples": []}
    (run / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    where = ["--registry", tmp_path / "registry"]
    done("publish", run, *where)
    Registry.open(tmp_path / "registry").set_alias(task, alias, 1, author=author)
    for names, words in (
        ((task, alias), ["tasks"]),
        ((task, alias), ["history", "--at", "2999-01-01"]),
        ((task, author), ["history"]),
    ):
        lines = shown(columns, *words, *where)
        assert [name for name in names if not any(name in line for line in lines)] == []
    [kind] = [line for line in shown(columns, "tasks", *where) if "token_classification" in line]
    assert ("kind: " in kind) == (columns == 80)


def test_a_wide_terminal_and_a_pipe_have_one_line_for_each_row(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piped = done("history", "--registry", registry).out
    monkeypatch.setenv("COLUMNS", "80")
    assert done("history", "--registry", registry).out == piped
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert len(shown(300, "history", "--registry", registry)) == len(piped.splitlines())


def test_cells_that_do_not_fit_are_cut_and_say_so(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "size", "note"), [("n" * 200, 7, "a note"), ("短" * 60, 8, "")], below=("note",))
    heading, row, note, wide = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert heading.split() == ["name", "size"]
    assert row == "n" * (columns - 7) + "…  7"
    assert note.rstrip() == "   note: a note"
    assert wide.split() == ["短" * ((columns - 7) // 2) + "…", "8"]


def test_a_title_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Even where it is longer than the table is wide; brackets in it are no markup."""
    title = "sst2@production [b]1[/b] " * 10
    show_table(("version", "role"), [(1, "own")], title=title)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        title.split(),
        ["version", "role"],
        ["1", "own"],
    ]


def test_a_strangers_message_does_not_steer_the_terminal(registry: Path) -> None:
    done("promote", "letters", 2, "--registry", registry, "--message", "a :bug: \x1b[31mred\x1b]0;title\x07")
    ran = done("history", "letters", "--registry", registry)
    assert ran.out.splitlines()[3].rstrip().endswith("a :bug:  [31mred ]0;title")
    assert "\x1b" not in ran.out
