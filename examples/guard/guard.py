"""Asks the group `guard` about texts, and prints what the policy decides about each and which classifier caused it.

    python -m examples.guard.guard --server 127.0.0.1:8001 "where is my order?"

Each text is one call, which all classifiers answer. A gateway would import `check`.
"""

from pathlib import Path

import click

from examples.guard.policy import Decision, Policy, PolicyError, read_policy
from sidecast import Classification, Client, SidecastError

GROUP = "guard"
POLICY = Path(__file__).with_name("policy.toml")


def check(client: Client, policy: Policy, text: str, group: str = GROUP) -> Decision:
    """Ask all classifiers of the group about a text, in one call, and decide.

    Raises:
        SidecastError: the whole call failed; there is no answer of any classifier.
        PolicyError: the policy does not fit the group.
    """
    answers = {}
    for task, outcome in client.predict_group(group, [text]).items():
        if isinstance(outcome, SidecastError):
            answers[task] = outcome
        elif isinstance(answer := outcome[0], Classification):
            answers[task] = answer.scores
        else:
            raise PolicyError(f"{task} is no classification; remove it from the group {group}")
    return policy.decide(answers)


@click.command()
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@click.option("--server", required=True, metavar="HOST:PORT", help="A running server.")
@click.option("--group", default=GROUP, show_default=True, help="The group of classifiers.")
@click.option("--policy", "file", type=click.Path(path_type=Path), default=POLICY, help="[default: policy.toml here]")
def main(texts: tuple[str, ...], server: str, group: str, file: Path) -> None:
    """Decide about each TEXT."""
    try:
        policy = read_policy(file)
        with Client(server) as client:
            for text in texts:
                click.echo(f"{check(client, policy, text, group)}  | {text}")
    except (PolicyError, SidecastError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
