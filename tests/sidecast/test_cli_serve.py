"""Every setting of a serving process is an option of `sidecast serve`, and says its default."""

import re

from serving.config import GROUPS, ServeConfig, setting_names
from sidecast.cli.serve_options import SETTINGS
from tests.sidecast.cli_kit import sidecast

IN_A_FILE_ONLY = {"task_limits"}


def test_every_setting_is_an_option():
    assert {name for name, _, _ in SETTINGS} == set(setting_names()) - IN_A_FILE_ONLY


def test_the_help_tells_each_options_default():
    config = ServeConfig(backbone="b", registry="r")
    defaults = {name: getattr(owner, name) for owner, names in owners(config) for name in names}
    for name, _, text in SETTINGS:
        told = re.search(r"\[default: (.+)\]$", text)
        assert (told is None) == (name in ("backbone", "registry")), name
        if told:
            assert told[1] == in_words(defaults[name]), name


def in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def owners(config: ServeConfig):
    groups = {group: getattr(config, group) for group in GROUPS}
    names = set(setting_names()) - IN_A_FILE_ONLY
    for owner in (config, *groups.values()):
        yield owner, [name for name in names if hasattr(owner, name)]


def test_options_fill_the_settings(monkeypatch):
    seen = []
    monkeypatch.setattr("serving.server.run_server", lambda config, ready: seen.append(config) or 0)
    flags = ["--backbone", "b", "--registry", "r", "--max-task-rows", "7", "--no-replay-examples", "--retry-s", "2.5"]
    assert sidecast("serve", *flags).code == 0
    assert (seen[0].limits.max_task_rows, seen[0].load.replay_examples, seen[0].load.retry_s) == (7, False, 2.5)
    refused = sidecast("serve", "--backbone", "b", "--registry", "r", "--default-priority", "9")
    assert "default_priority must be within 1..4, got 9" in refused.mistake
