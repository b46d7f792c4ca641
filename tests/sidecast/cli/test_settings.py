"""Options of `serve`, `deploy` and `train` follow from the fields of their settings."""

import inspect
from dataclasses import dataclass, field
from typing import Literal

import click
import pytest
from click.testing import CliRunner

from serving.config import LimitConfig, setting_names
from sidecast.cli.serving.serve import serve
from sidecast.cli.settings import GroupedCommand, field_texts, setting_options
from sidecast.cli.training.train import train
from tests.sidecast.cli_kit import sidecast
from training.recipes.recipe import Recipe

IN_A_FILE_ONLY = {"task_limits"}


@dataclass(kw_only=True)
class Oven:
    degrees: int
    """Heat of the oven. Not above 250."""
    hours: float = 1.5
    """Longest time
    in hours."""
    mode: Literal["top", "bottom"] = "top"
    fan: bool = True
    """Turn the fan."""
    note: str | None = None
    shelves: dict[str, int] = field(default_factory=dict)


def oven(environment: bool) -> click.Command:
    """A command that prints its options."""

    @click.command(cls=GroupedCommand)
    @setting_options(Oven, "Heat", environment=environment, special={"note": {"flag": "--memo", "type": str}})
    @click.option("--json", is_flag=True)
    def command(**given: object) -> None:
        click.echo(given)

    return command


def run(*words: str, environment: bool = False, variables: dict[str, str] | None = None) -> str:
    return CliRunner().invoke(oven(environment), words, env=variables).output


def test_an_option_has_its_fields_name_type_and_choices():
    given = run("--degrees", "200", "--hours", "2", "--mode", "bottom", "--no-fan", "--memo", "x")
    assert given.strip() == str(
        {"degrees": 200, "hours": 2.0, "mode": "bottom", "fan": False, "note": "x", "json": False}
    )
    assert "'warm' is not a valid integer" in run("--degrees", "warm")
    assert "'left' is not one of 'top', 'bottom'" in run("--mode", "left")


def test_an_option_that_is_not_given_is_none():
    nothing = {"degrees": None, "hours": None, "mode": None, "fan": None, "note": None, "json": False}
    assert run().strip() == run(environment=True).strip() == str(nothing)


def test_help_is_the_first_sentence_with_the_default_under_a_heading():
    lines = [" ".join(line.split()) for line in run("--help").splitlines()]
    heat, others = lines[lines.index("Heat:") :], lines[lines.index("Options:") :]
    assert "--degrees INTEGER Heat of the oven." in heat
    assert "--hours FLOAT Longest time in hours. [default: 1.5]" in heat
    assert "--no-fan Turn the fan." in heat
    assert "--json" in others
    assert "--degrees INTEGER Heat of the oven." not in others


def test_with_an_environment_options_have_variables_and_switches_go_both_ways():
    assert "'hours': 3.0" in run(environment=True, variables={"SIDECAST_HOURS": "3"})
    assert "'fan': True" in run("--fan", environment=True)
    assert "'hours': None" in run(variables={"SIDECAST_HOURS": "3"})
    assert "No such option '--fan'" in run("--fan")


def test_texts_of_bases_are_found_too():
    texts = field_texts(LimitConfig)
    assert texts["max_task_requests"] == "Most requests of one task in flight; 0: no limit."
    assert texts["task_limits"].startswith("Limits of single tasks, by task name.")


def test_without_sources_options_have_no_text(monkeypatch: pytest.MonkeyPatch):
    def no_source(module: object) -> str:
        raise OSError("source code not available")

    monkeypatch.setattr(inspect, "getsource", no_source)
    field_texts.cache_clear()
    try:
        assert "--degrees INTEGER" in run("--help")
    finally:
        field_texts.cache_clear()


@pytest.mark.parametrize(
    ("command", "names"), [(serve, set(setting_names()) - IN_A_FILE_ONLY), (train, set(Recipe.names()))]
)
def test_every_setting_is_an_option_with_help(command: click.Command, names: set[str]):
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    assert names <= set(options)
    for name in names:
        assert options[name].help[:1].strip() not in ("", "["), name


def test_options_fill_the_settings(monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr("serving.server.run_server", lambda config, ready: seen.append(config) or 0)
    flags = ["--backbone", "b", "--registry", "r", "--max-task-rows", "7", "--no-replay-examples", "--retry-s", "2.5"]
    assert sidecast("serve", *flags).code == 0
    assert (seen[0].limits.max_task_rows, seen[0].load.replay_examples, seen[0].load.retry_s) == (7, False, 2.5)
    refused = sidecast("serve", "--backbone", "b", "--registry", "r", "--default-priority", "9")
    assert "default_priority must be within 1..4, got 9" in refused.mistake
