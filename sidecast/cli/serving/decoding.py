"""Options of how a server generates texts; they override the task's spec."""

from typing import Any

import click

from sidecast.cli.options import Command

SAMPLING = ("temperature", "top_k", "top_p", "seed")
"""Settings that turn sampling on when they are given."""

_OPTIONS = (
    click.option("--beams", "num_beams", type=int, metavar="N", help="Text: follow N texts at a time; 1 for none."),
    click.option("--length-penalty", type=float, metavar="X", help="Beams: above 0 favours long texts."),
    click.option("--early-stopping", type=click.Choice(["true", "false", "never"]), help="Beams: when to stop."),
    click.option("--sample", "do_sample", is_flag=True, default=None, help="Text: draw tokens by their probabilities."),
    click.option("--temperature", type=float, metavar="X", help="Sampling: below 1, likely tokens become likelier."),
    click.option("--top-k", type=int, metavar="N", help="Sampling: only the N likeliest tokens."),
    click.option(
        "--top-p", type=float, metavar="X", help="Sampling: only the likeliest tokens that together have probability X."
    ),
    click.option("--seed", type=int, metavar="N", help="Sampling: the same seed gives the same text."),
    click.option("--repetition-penalty", type=float, metavar="X", help="Text: above 1, fewer repetitions."),
    click.option("--no-repeat-ngram-size", type=int, metavar="N", help="Text: never the same N tokens twice."),
    click.option("--min-new-tokens", type=int, metavar="N", help="Text: at least N tokens."),
    click.option("--max-new-tokens", type=int, metavar="N", help="Text: at most N tokens, up to the task's limit."),
)


def options(command: Command) -> Command:
    """Add the options; the command takes them as keywords."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def settings(values: dict[str, Any]) -> dict[str, Any]:
    """The `decoding` argument of a client, from the values of the options; None: not used."""
    used = {name: value for name, value in values.items() if value is not None}
    if any(name in used for name in SAMPLING):
        used["do_sample"] = True
    return used
