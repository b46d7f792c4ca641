"""Tables of settings in the documentation: their defaults are the code's."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.cluster.app import Autoscaling
from serving.config import ServeConfig, TaskLimits
from side_registry import TaskSpec
from sidecast.cli.training.train import train
from training.recipes.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| (`[^|]+`) \| (?:[a-z][a-z, ]* \| )?([^|]+) \|", re.MULTILINE)
NAME = re.compile(r"`([^`]+)`")
NUMBER = re.compile(r"[0-9.]+(?:e-?[0-9]+)?")


def of_fields(kind: Any) -> dict[str, Any]:
    """A dataclass's defaults by name, those of the dataclasses in it included."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(made):
            found |= of_fields(type(made))
        else:
            found[field.name] = made
    return found


def of_options() -> dict[str, Any]:
    """The recipe's defaults by the options of `sidecast train`."""
    recipe = of_fields(Recipe)
    return {name: recipe[option.name] for option in train.params for name in option.opts if option.name in recipe}


def of_model(model: Any) -> dict[str, Any]:
    return {name: field.default for name, field in model.model_fields.items()}


def of_embedding() -> dict[str, Any]:
    """What an embedding's spec has where its file says nothing."""
    return {"dimensions": TaskSpec(name="meaning", kind="embedding", template="{text}").dimensions}


def documented(page: str) -> Iterator[tuple[str, float]]:
    """Names and the numbers that a page's tables give as their defaults."""
    for names, defaults in ROW.findall((DOCS / page).read_text(encoding="utf-8")):
        found = NAME.findall(names)
        cells = [cell.split(" ")[0] for cell in defaults.split(", ")]
        if len(cells) == 1:
            cells *= len(found)
        if len(cells) == len(found) and all(map(NUMBER.fullmatch, cells)):
            yield from zip(found, map(float, cells), strict=True)


@pytest.mark.parametrize(
    ("page", "defaults", "least"),
    [
        ("serving/pressure.md", of_fields(ServeConfig) | of_fields(TaskLimits), 13),
        ("operation/scaling.md", of_model(Autoscaling), 6),
        ("models/tasks.md", of_options() | of_model(TaskSpec) | of_embedding(), 17),
    ],
)
def test_documented_defaults_are_the_codes(page: str, defaults: dict[str, Any], least: int) -> None:
    written = {name: value for name, value in documented(page) if name in defaults}
    assert len(written) >= least
    assert written == {name: defaults[name] for name in written}
