"""The settings of a server as options of `sidecast serve` and `sidecast deploy`."""

from collections.abc import Collection

from serving.config import GROUPS, ServeConfig
from sidecast.cli.options import Command
from sidecast.cli.settings import setting_options


def settings(command: Command, without: Collection[str] = ()) -> Command:
    """Add an option for each setting, under the heading of its group; one that is not given is None.

    Args:
        without: settings of the server itself that get no option.
    """
    for name, group in reversed(GROUPS.items()):
        command = setting_options(group, f"[{name}] settings", environment=True)(command)
    return setting_options(ServeConfig, "Server settings", environment=True, without=without)(command)
