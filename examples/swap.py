"""A new version goes live, and back, while calls go on. No call fails.

python examples/swap.py --backbone google/flan-t5-small
"""

from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

from local_server import serve
from rows import MOOD, MOODS

import sidecast


class Caller:
    """Calls a task again and again on a thread, from `with` to its end, and counts what answers."""

    def __init__(self, address: str) -> None:
        self.answered: Counter[int] = Counter()
        """Answers by version."""
        self.failed: list[sidecast.SidecastError] = []
        self._address = address
        self._stop = Event()
        self._thread = Thread(target=self._call)

    def _call(self) -> None:
        with sidecast.Client(self._address) as client:
            while not self._stop.is_set():
                try:
                    self.answered[client.predict("mood", ["a clever film"]).version] += 1
                except sidecast.SidecastError as error:
                    self.failed.append(error)

    def __enter__(self) -> "Caller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main(backbone: str, folder: Path) -> Caller:
    """Train two versions into `folder`, swap one for the other and back; returns the caller's counts."""
    runs = [
        sidecast.train(MOOD, MOODS, validation=MOODS, backbone=backbone, output=folder / f"seed{seed}", seed=seed)
        for seed in (0, 1)
    ]
    runs[0].publish(folder / "registry", alias="production")
    with (
        serve(backbone, folder / "registry") as server,
        sidecast.Client(server.grpc) as client,
        Caller(server.grpc) as caller,
    ):
        second = client.publish(runs[1].folder, alias="production", message="seed 1")
        client.wait_served(second.generation)
        print(f"version {client.predict('mood', ['a clever film']).version} answers")
        rolled = client.rollback("mood")
        client.wait_served(rolled.generation)
        print(f"version {client.predict('mood', ['a clever film']).version} answers after the rollback")
    print(f"{caller.answered.total()} calls during both swaps, {len(caller.failed)} failed")
    return caller


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="google/flan-t5-small", help="a Hugging Face folder or a hub id")
    with TemporaryDirectory() as temporary:
        main(parser.parse_args().backbone, Path(temporary))
