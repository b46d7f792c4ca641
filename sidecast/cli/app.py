"""The root of the command line: its commands, and how an error is reported.

A command's module is imported when the command is called, so that `sidecast tasks` does not wait for torch.
"""

import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from sidecast.cli.missing import missing_text

COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("serving.serve", "Serve the registry's tasks over gRPC."),
    "deploy": ("serving.deploy", "Serve on a Ray cluster, with any number of replicas."),
    "status": ("serving.status", "Show the replicas of an application on a Ray cluster."),
    "train": ("training.train", "Train a side network for a task on labelled rows."),
    "absorb": ("training.absorb", "Make side networks of fine-tuned Hugging Face or PEFT models."),
    "evaluate": ("training.evaluate", "Score a run, a published version or a server on labelled rows."),
    "compare": ("training.compare", "Compare side networks with LoRA, full fine-tuning and other methods."),
    "publish": ("registry.publish", "Put a run's side network in the registry as its task's next version."),
    "sign": ("registry.sign", "Sign a version that is in the registry."),
    "verify": ("registry.sign", "Check the signatures of a version."),
    "promote": ("registry.changes", "Point an alias at a version, or split its traffic."),
    "rollback": ("registry.changes", "Point an alias back at the version before, or end its canary."),
    "retire": ("registry.changes", "Take a version out of service for good."),
    "tasks": ("registry.listings", "List tasks, their aliases and versions."),
    "history": ("registry.listings", "List what changed: who, when, why."),
    "group": ("registry.groups", "Name several tasks that are asked together."),
    "shadow": ("registry.shadow", "Compare the versions that share or shadow an alias's traffic."),
    "webhooks": ("registry.webhooks", "Tell an HTTP server of every change of a registry."),
    "registry": ("registry.maintenance", "Maintain a registry: verify, gc, export, import."),
    "token": ("serving.token", "Make, list and revoke the tokens of a server's callers."),
    "predict": ("serving.predict", "Send texts and images to a server and print the answers."),
    "batch": ("serving.batch", "Answer tasks about every row of a dataset, with Ray Data."),
    "bench": ("serving.bench", "Put load on a server: latencies, throughput, stages."),
    "import-lst": ("training.import_lst", "Make a run of a checkpoint of the LST authors' code."),
    "init": ("training.init", "Make a run of an untrained side network."),
    "trace": ("training.trace", "Store every activation of a run for given token ids."),
    "doctor": ("doctor", "Check the installation, device, backbone, registry and server."),
}
"""By name: the module under `sidecast.cli` that has the command, and its line in the help."""

USER_ERROR = 2


class UserError(click.ClickException):
    """A mistake of the user that a command itself detects; exits with 2."""

    exit_code = USER_ERROR


class _LazyGroup(click.Group):
    """The root: imports a command's module when the command is looked up."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(f"sidecast.cli.{module}"), cmd_name.replace("-", "_"))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="sidecast", prog_name="sidecast")
@click.pass_context
def app(ctx: click.Context) -> None:
    """One frozen backbone, any number of tasks.

    TASK names a task (its production version), TASK@alias an alias of it, TASK:7 its version 7. Options have
    environment variables too: SIDECAST_REGISTRY for --registry, and so on.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0; 2 for a user's mistake, reported in one line; 130 when interrupted; 1 for what a
    command refused by itself (an error with an `exit_code`), in one line too.

    Any other error is ours: it is raised, so that Python prints its traceback and exits with 1.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines about what a command reports
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(app.main(words, prog_name="sidecast", standalone_mode=False) or 0)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.ClickException as error:
        _report(_usage_text(error), "USAGE", as_json="--json" in words)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `sidecast history | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ModuleNotFoundError as error:
        text = missing_text(error.name, words, list(COMMANDS))
        if text is None:
            raise
        _report(text, "NOT_INSTALLED", as_json="--json" in words)
    except Exception as error:
        reason = getattr(error, "reason", None)
        if not isinstance(reason, str):
            raise
        _report(str(error), reason, as_json="--json" in words, code=getattr(error, "exit_code", USER_ERROR))


def _usage_text(error: click.ClickException) -> str:
    command = getattr(error, "ctx", None)
    parameter = getattr(error, "param", None)
    hint = f" (see '{command.command_path} --help')" if command is not None else ""
    if command is not None and parameter is not None and _from_environment(command, parameter):
        hint = f" (from {parameter.envvar})"
    return " ".join(error.format_message().split()) + hint


def _from_environment(command: click.Context, parameter: click.Parameter) -> bool:
    return command.get_parameter_source(parameter.name or "") is click.core.ParameterSource.ENVIRONMENT


def _report(text: str, reason: str, *, as_json: bool, code: int = USER_ERROR) -> None:
    """Print one line on standard error and exit with `code`."""
    from sidecast.cli.output import plain

    text = plain(" ".join(text.splitlines()))
    line: dict[str, Any] = {"error": {"reason": reason, "message": text}}
    click.echo(json.dumps(line) if as_json else f"Error: {text}", err=True)
    sys.exit(code)
