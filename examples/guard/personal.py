"""Rows of the task `personal`: entities in synthetic texts, made of the package presidio-evaluator (MIT).

Its templates of sentences are filled with its invented people. A template and a person are in one split only, so that
the test rows have sentences and names that no training row has.
"""

import csv
import io
import random
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.downloads import Package
from demo.folders import DemoError

PRESIDIO = Package(
    name="presidio-evaluator",
    version="0.3.2",
    file="presidio_evaluator-0.3.2-py3-none-any.whl",
    sha256="57614fe604e52b78e6de25b767c59265886b93bbcdc6c7e43ab2657d3f6302be",
    bytes=694_340,
)
FOLDER = "presidio_evaluator/data_generator/raw_data/"
LABELS = ("person", "address", "phone", "email", "card")
COPIES = 15
"""Rows of a template, each with other people."""
SHARES = {"train": 0.75, "validation": 0.1, "test": 0.15}
PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")

Person = Mapping[str, str]
Fill = Callable[[Person, random.Random], str]


def _name(person: Person, _: random.Random) -> str:
    return f"{person['GivenName']} {person['Surname']}"


def _address(person: Person, _: random.Random) -> str:
    return f"{person['StreetAddress']}, {person['ZipCode']} {person['City']}"


def _card(_: Person, chance: random.Random) -> str:
    return chance.choice((" ", "-", "")).join(f"{chance.randrange(10_000):04d}" for _ in range(4))


def _column(name: str) -> Fill:
    return lambda person, _: person[name]


GIVEN, SURNAME = _column("GivenName"), _column("Surname")
FILLS: Mapping[str, tuple[str | None, Fill]] = {
    **dict.fromkeys(("person", "name", "name_male", "name_female"), ("person", _name)),
    **dict.fromkeys(("first_name", "first_name_male", "first_name_female"), ("person", GIVEN)),
    **dict.fromkeys(("last_name", "last_name_male", "last_name_female"), ("person", SURNAME)),
    "address": ("address", _address),
    "phone_number": ("phone", _column("TelephoneNumber")),
    "email": ("email", _column("EmailAddress")),
    "credit_card_number": ("card", _card),
    "organization": (None, _column("Company")),
    "city": (None, _column("City")),
    "country": (None, _column("CountryFull")),
    "year": (None, lambda _, chance: str(chance.randrange(1900, 2030))),
    "age": (None, lambda _, chance: str(chance.randrange(1, 99))),
}
"""By placeholder: the label of what fills it, None for what is not personal, and how it is made."""


def read_package(file: Path) -> tuple[list[str], list[Person]]:
    """Return the templates whose placeholders are all in FILLS, and the people.

    Raises:
        DemoError: the package does not hold them.
    """
    try:
        with zipfile.ZipFile(file) as wheel:
            lines = wheel.read(f"{FOLDER}templates.txt").decode("utf-8").splitlines()
            people = wheel.read(f"{FOLDER}FakeNameGenerator.com_3000.csv").decode("utf-8-sig")
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        what = f"{file.name} is not what it should be ({error})"
        raise DemoError(what, "remove it from the cache and run again") from None
    templates = [line.replace("\\n", " ").strip() for line in dict.fromkeys(lines)]
    fitting = [line for line in templates if line and FILLS.keys() >= set(PLACEHOLDER.findall(line))]
    return fitting, list(csv.DictReader(io.StringIO(people)))


def personal_rows(templates: Sequence[str], people: Sequence[Person]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows by split, in random order; the same in every run."""
    chance = random.Random(0)
    parts = zip(_parted(templates, chance), _parted(people, chance), strict=True)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, (sentences, owners) in zip(SHARES, parts, strict=True):
        filled = [fill(sentence, owners, chance) for sentence in sentences for _ in range(_copies(sentence))]
        rows[name] = chance.sample(filled, len(filled))
    return rows


def _parted(items: Sequence[Any], chance: random.Random) -> Iterator[list[Any]]:
    """The parts of SHARES, of items in random order."""
    shuffled = chance.sample(items, len(items))
    start = 0.0
    for share in SHARES.values():
        yield shuffled[round(start * len(items)) : round((start + share) * len(items))]
        start += share


def _copies(template: str) -> int:
    return COPIES if PLACEHOLDER.search(template) else 1


def fill(template: str, people: Sequence[Person], chance: random.Random) -> dict[str, Any]:
    """Return a row: the template with people in its placeholders, and where they are."""
    text, spans, before = "", [], 0
    for match in PLACEHOLDER.finditer(template):
        label, make = FILLS[match[1]]
        text += template[before : match.start()]
        value = make(chance.choice(people), chance)
        if label is not None:
            spans.append({"start": len(text), "end": len(text) + len(value), "label": label})
        text += value
        before = match.end()
    return {"sentence": text + template[before:], "spans": spans}
