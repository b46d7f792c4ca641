"""Asks the group `guard` about texts, and prints what the policy decides about each and which classifier caused it.

    python -m examples.guard.guard --server 127.0.0.1:8001 "where is my order?"

Each text is one call, which all classifiers answer. A gateway would import `check`.
"""

from pathlib import Path

import click

from examples.guard.policy import Decision, Policy, PolicyError, read_policy
from sidecast import Classification, Client, SidecastError, TokenClassification

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
        else:
            answers[task] = _scores(task, outcome[0], policy, group)
    return policy.decide(answers)


def check_labels(client: Client, policy: Policy) -> None:
    """Compare the policy's labels with those of the tasks, once: a text without an entity does not show its label.

    Raises:
        SidecastError: the server does not answer, or has no such task.
        PolicyError: a task has no such label.
    """
    for rule in policy.rules:
        spec = client.task(rule.task).spec
        if spec is not None and rule.label not in spec.labels:
            raise PolicyError(f"the policy names the label {rule.label}; {rule.task} has {', '.join(spec.labels)}")


def _scores(task: str, answer: object, policy: Policy, group: str) -> dict[str, float]:
    """The score of each label; of entities, the highest one with the label, 0 where there is none."""
    if isinstance(answer, Classification):
        return dict(answer.scores)
    if isinstance(answer, TokenClassification):
        scores = {rule.label: 0.0 for rule in policy.rules if rule.task == task}
        for span in answer.spans:
            scores[span.label] = max(span.score, scores.get(span.label, 0.0))
        return scores
    raise PolicyError(f"{task} finds neither labels nor entities; remove it from the group {group}")


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
            check_labels(client, policy)
            for text in texts:
                click.echo(f"{check(client, policy, text, group)}  | {text}")
    except (PolicyError, SidecastError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
