"""What tests of single commands share: a folder with a backbone, rows, runs and a registry."""

from dataclasses import dataclass
from pathlib import Path

from tests.sidecast.cli_kit import Ran, sidecast

NOBODY = "127.0.0.1:1"
"""Where no server is."""

TASK = """
name = "letters"
kind = "classification"
template = "{sentence}"
labels = ["aa", "bb"]
"""


@dataclass(frozen=True)
class House:
    """A backbone, labelled rows, two finished runs, and a registry that has both; version 1 is production."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def words(self, text: str) -> list[str]:
        """A command line in which `@/` stands for this folder."""
        return [word.replace("@/", f"{self.folder}/") for word in text.split()]

    def run(self, text: str) -> Ran:
        return sidecast(*self.words(text))


TRAIN = "train @/letters.toml --backbone @/t5 --train @/train.jsonl --validation @/validation.jsonl --reduction 4"
EVALUATE = "evaluate letters --data @/validation.jsonl"
