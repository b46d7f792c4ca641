"""A server of a quantised backbone serves what was trained on the same bits, alike in any batch, and nothing else."""

from pathlib import Path

import pytest
from torch.testing import assert_close

from ladder import load_backbone, load_tokenizer
from serving.config import ConfigError, LoadConfig, ServeConfig, read_config
from serving.engine.engine import Engine
from serving.engine.rows import EngineRow
from serving.errors import IncompatibleSide
from serving.versions.loader import Loader
from side_registry import Registry
from tests import tiny
from tests.marks import slow
from tests.serving.kit import ids_of, make_run, make_spec

TEXTS = ("a gripping film", "dull", "it is neither good nor bad, and far too long", "no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_t5(tmp_path_factory.mktemp("wide") / "t5", seed=2, d_model=64, d_kv=16, d_ff=128)


@pytest.fixture(scope="module")
def tokenizer(folder: Path):
    return load_tokenizer(folder)


def publish(registry: Registry, folder: Path, tokenizer, tmp_path: Path, quantize: str, head: str = "linear") -> None:
    backbone = load_backbone(folder, quantize=quantize)
    registry.publish(make_run(tmp_path / f"run-{quantize}", backbone, tokenizer, make_spec(), head=head))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantize", "head"),
    [
        ("int8", "text"),
        ("int4", "linear"),
        ("w8a8", "text"),
        slow("int8", "linear"),
        slow("int4", "text"),
        slow("w8a8", "linear"),
    ],
)
def test_answers_do_not_depend_on_the_batch(folder, tokenizer, tmp_path, quantize, head):
    registry = Registry.open(tmp_path / "registry", create=True)
    publish(registry, folder, tokenizer, tmp_path, quantize, head)
    backbone = load_backbone(folder, quantize=quantize)
    resident = Loader(registry, backbone, tokenizer, LoadConfig()).load("sst2", 1)
    rows, engine = [EngineRow(ids_of(tokenizer, text), resident) for text in TEXTS], Engine(backbone)
    together = [answer.scores for answer in engine.predict(rows)]
    alone = [engine.predict([row])[0].scores for row in rows]
    assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("trained", "served"), [("none", "int8"), ("int8", "none"), ("int4", "int8")])
def test_other_bits_than_it_was_trained_on_are_refused_with_the_remedy(folder, tokenizer, tmp_path, trained, served):
    registry = Registry.open(tmp_path / "registry", create=True)
    publish(registry, folder, tokenizer, tmp_path, trained)
    loader = Loader(registry, load_backbone(folder, quantize=served), tokenizer, LoadConfig())
    with pytest.raises(IncompatibleSide, match=f"serve with --quantize {trained}, or retrain it"):
        loader.load("sst2", 1)


def test_the_setting_comes_from_flag_variable_or_file(tmp_path):
    needed = {"backbone": "flan", "registry": "r"}
    file = tmp_path / "serve.toml"
    file.write_text('quantize = "int4"\n')
    assert ServeConfig.from_values(needed).quantize == "none"
    assert read_config(needed, environ={}, file=file).quantize == "int4"
    assert read_config(needed, environ={"SIDECAST_QUANTIZE": "int8"}, file=file).quantize == "int8"
    with pytest.raises(ConfigError, match="quantize must be one of none, int8, int4, w8a8, got 'int3'"):
        ServeConfig.from_values({**needed, "quantize": "int3"})
