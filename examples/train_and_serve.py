"""From labelled rows to a served task: train, publish, serve, ask.

python examples/train_and_serve.py --backbone google/flan-t5-small
"""

from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

from local_server import serve
from rows import MOOD, MOODS

import sidecast

TEXTS = ["a clever and honest film", "the jokes are old"]


def main(backbone: str, folder: Path) -> sidecast.Predictions:
    """Train and publish into `folder`; returns the server's answers."""
    run = sidecast.train(MOOD, MOODS, validation=MOODS, backbone=backbone, output=folder / "mood", epochs=5)
    print(f"trained: {MOOD.metric} {run.score:.2f} on its own training rows, which says nothing about new texts")
    version = run.publish(folder / "registry", alias="production").version
    print(f"published: version {version}")
    with serve(backbone, folder / "registry") as server, sidecast.Client(server.grpc) as client:
        answers = client.predict("mood", TEXTS)
        for text, answer in zip(TEXTS, answers, strict=True):
            assert isinstance(answer, sidecast.Classification)  # the answer of this kind of task
            print(f"{answer.label} ({answer.score:.2f}): {text}")
    return answers


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="google/flan-t5-small", help="a Hugging Face folder or a hub id")
    with TemporaryDirectory() as temporary:
        main(parser.parse_args().backbone, Path(temporary))
