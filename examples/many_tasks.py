"""Three tasks of different kinds about one text, in one call: the backbone reads the text once.

python examples/many_tasks.py --backbone google/flan-t5-small
"""

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from local_server import serve
from rows import MOOD, MOODS, PLACE_ROWS, PLACES, TOPIC_ROWS, TOPICS

import sidecast

TASKS = ((MOOD, MOODS), (TOPICS, TOPIC_ROWS), (PLACES, PLACE_ROWS))
TEXT = "wonderful actors in a dull story about Paris"


def main(backbone: str, folder: Path) -> Mapping[str, sidecast.Predictions | sidecast.SidecastError]:
    """Train and publish into `folder`; returns what each task answers."""
    for spec, rows in TASKS:
        run = sidecast.train(spec, rows, validation=rows, backbone=backbone, output=folder / spec.name, epochs=5)
        run.publish(folder / "registry", alias="production")
    with serve(backbone, folder / "registry") as server, sidecast.Client(server.grpc) as client:
        outcomes = client.predict_tasks([spec.name for spec, _ in TASKS], [TEXT])
    print(TEXT)
    for task, outcome in outcomes.items():
        # One task's error does not take away the others' answers.
        print(f"{task}: {outcome if isinstance(outcome, sidecast.SidecastError) else told(outcome[0])}")
    return outcomes


def told(answer: object) -> str:
    """The answer in a line."""
    match answer:
        case sidecast.Classification():
            return f"{answer.label} ({answer.score:.2f})"
        case sidecast.MultiLabel():
            return ", ".join(answer.labels) or "none of the labels"
        case sidecast.TokenClassification():
            return ", ".join(f"{span.text} ({span.label})" for span in answer.spans) or "no entity"
    return str(answer)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="google/flan-t5-small", help="a Hugging Face folder or a hub id")
    with TemporaryDirectory() as temporary:
        main(parser.parse_args().backbone, Path(temporary))
