"""What tests of `sidecast batch` run on: three tasks of a registry, and a file of rows."""

import json
from dataclasses import dataclass
from pathlib import Path

from ladder import load_backbone, load_tokenizer
from side_registry import Registry
from tests.serving.kit import make_run, make_spec

ROWS = 120
TASKS = ("sst2", "stars", "title")


@dataclass(frozen=True)
class Bench:
    """A backbone, a registry with three tasks, and rows, of which the fourth is bad."""

    backbone: Path
    registry: str
    rows: Path

    def words(self, output: Path, *more: object) -> list[str]:
        """A command that writes the rows' answers to `output`."""
        tasks = [word for task in TASKS for word in ("--task", task)]
        where = ("--registry", self.registry, "--backbone", self.backbone, "--device", "cpu", "--dtype", "float32")
        return [str(word) for word in ("batch", self.rows, output, *tasks, *where, *more)]


def make_bench(folder: Path, backbone_folder: Path) -> Bench:
    """Make one in an empty folder."""
    backbone, tokenizer = load_backbone(backbone_folder, dtype="float32"), load_tokenizer(backbone_folder)
    registry = Registry.open(folder / "registry", create=True)
    for spec in (make_spec(), make_spec("stars", "regression"), make_spec("title", "text", max_new_tokens=4)):
        registry.publish(make_run(folder / spec.name, backbone, tokenizer, spec, seed=len(spec.name)))
    rows = [{"id": number, "sentence": f"{number} films" if number != 3 else " "} for number in range(ROWS)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Bench(backbone_folder, registry.url, folder / "rows.jsonl")
