"""What `import sidecast` gives: names, help, errors and types, without importing more than is used."""

import importlib
import pydoc
import re
from importlib.metadata import version
from pathlib import Path

import pytest

import sidecast
from serving.client import errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted({*DOCS.rglob("*.md")} - {*DOCS.glob("decisions/*.md")})]
SUBMODULES = ("cli", "loadtest", "training")
CAMEL = re.compile(r"\b(?:[A-Z][a-z]+){2,}\b")


def test_every_name_is_listed_and_is_there() -> None:
    assert {*sidecast.__all__, "__version__"} <= set(dir(sidecast))
    assert not {name for name in dir(sidecast) if name[0] != "_"} - {*sidecast.__all__, *SUBMODULES}
    for name in sidecast.__all__:
        assert getattr(sidecast, name).__doc__, name
    assert sidecast.__version__ == version("sidecast")
    with pytest.raises(AttributeError, match="has no attribute 'Klient'"):
        sidecast.Klient  # noqa: B018


def test_help_shows_the_classes_and_how_they_are_used() -> None:
    text = pydoc.plain(pydoc.render_doc(sidecast))
    for words in ("class Client", "class Registry", "class RouteChangedError", "Answer rows of one task", "0.1"):
        assert words in text


def test_every_error_of_the_client_is_exported() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    names = {kind.__name__ for kind in kinds if issubclass(kind, sidecast.SidecastError)}
    assert names <= set(sidecast.__all__)
    assert names == set(re.findall(r"\b\w+Error\b", errors.__doc__ or ""))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_name_errors_as_the_classes_are_named(page: Path) -> None:
    """`RouteChanged` is the registry's own class; who uses a client catches `RouteChangedError`."""
    short = {name.removesuffix("Error") for name in sidecast.__all__ if name.endswith("Error")}
    assert not short & set(CAMEL.findall(page.read_text(encoding="utf-8")))


def test_every_package_says_that_it_has_types() -> None:
    for name in ("sidecast", "serving", "side_registry", "table_files", "ladder", "training", "protos", "vision"):
        package = importlib.import_module(name)
        assert (Path(package.__path__[0]) / "py.typed").is_file(), name
