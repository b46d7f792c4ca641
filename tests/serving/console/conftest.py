"""A browser for all tests of the console, and a server with a tiny model."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.serving.console.browser import Browser
from tests.serving.console.chromium import find


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find()
    if path is None or find_spec("playwright") is None or find_spec("axe_playwright_python") is None:
        pytest.skip("the console is tested in Chromium, by playwright and axe: one of them is not installed")
    opened = Browser(path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Iterator[str]:
    """Where the console is of a server with tiny tasks of four kinds; sst2 has two versions."""
    from ladder import load_backbone, load_tokenizer
    from serving.components import assemble
    from serving.config import ServeConfig
    from side_registry import Registry
    from tests.serving.api_kit import serving
    from tests.serving.kit import make_run, make_spec

    folder = tmp_path_factory.mktemp("console")
    registry = Registry.open(folder / "registry", create=True)
    backbone, tokenizer = load_backbone(tiny_t5, dtype="float32"), load_tokenizer(tiny_t5)
    specs = [
        make_spec("sst2", description="<img src=x onerror=document.title='taken'>"),
        make_spec("cola", labels=("<b>unacceptable</b>", "acceptable")),
        make_spec("titles", "text", max_new_tokens=6),
        make_spec("names", "token_classification"),
        make_spec("sst2"),
    ]
    for seed, spec in enumerate(specs):
        registry.publish(make_run(folder / str(seed), backbone, tokenizer, spec, seed + 1))
    config = ServeConfig(backbone=str(tiny_t5), registry=str(folder / "registry"), port=0, metrics_port=0, threads=1)
    with serving(config, assemble) as (server, _):
        yield f"http://127.0.0.1:{server.http_port}/"
