"""A small dataset, a registry with tasks for it, and a stand-in for Ray."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ladder import Backbone, Tokenizer, load_backbone
from serving.offline import plan as offline_plan
from serving.offline import run as offline
from serving.offline import worker as offline_worker
from serving.offline.plan import Wanted
from side_registry import Manifest, Registry
from tests.serving.kit import make_run, make_spec
from tests.serving.offline.kit import ROWS, Ray, run


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone, tokenizer: Tokenizer) -> str:
    """A registry with sst2:1, sst2:2 (production), stars:1, pair:1."""
    folder = tmp_path_factory.mktemp("published")
    registry = Registry.open(folder / "registry", create=True)
    pair = make_spec("pair", template="{first} {second}")
    for number, spec in enumerate([make_spec(), make_spec(), make_spec("stars", "regression")]):
        registry.publish(make_run(folder / f"run{number}", backbone, tokenizer, spec, seed=number))
    registry.set_alias("sst2", "production", 2)
    registry.publish(_without_examples(folder / "pair", backbone, tokenizer, pair))
    return registry.url


def _without_examples(folder: Path, backbone: Backbone, tokenizer: Tokenizer, spec: Any) -> Path:
    def edit(manifest: Manifest) -> Manifest:
        return manifest.model_copy(update={"spec": spec, "examples": ()})

    return make_run(folder, backbone, tokenizer, make_spec(spec.name), edit=edit)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, backbone: Backbone, tokenizer: Tokenizer, tiny_t5: Path) -> Ray:
    """A stand-in for Ray, and for loading the backbone, which is loaded already."""

    def load(source: str, **how: Any) -> Backbone:
        return backbone if source == str(tiny_t5) else load_backbone(source, **how)

    stand_in = Ray()
    for module in (offline_plan, offline_worker):
        monkeypatch.setattr(module, "load_backbone", load)
        monkeypatch.setattr(module, "load_tokenizer", lambda source: tokenizer)
    monkeypatch.setattr(offline, "ray_session", lambda address: nullcontext([{"CPU": 1.0}]))
    monkeypatch.setattr(offline, "_reports", stand_in.reports)
    return stand_in


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"id": number, "sentence": f"film {number}" if number != 5 else ""} for number in range(ROWS)]
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def wanted(tmp_path: Path, published: str, tiny_t5: Path, rows: Path) -> Wanted:
    return Wanted(
        input=str(rows),
        output=str(tmp_path / "out"),
        tasks=("sst2", "stars"),
        registry=published,
        backbone=str(tiny_t5),
        dtype="float32",
        shard_rows=5,
    )


@pytest.fixture
def finished(ray: Ray, wanted: Wanted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished run of `wanted`."""
    once = tmp_path_factory.getbasetemp() / "finished"
    if not once.exists():
        run(replace(wanted, output=str(once)))
        ray.ran = []
    return Path(shutil.copytree(once, wanted.output))
