"""Percentages on the command line: `5%`, `0.5%` or `5`."""

import re
from decimal import Decimal
from typing import Any

import click

NUMBER = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?%?")
SHARE_RULE = "a share is 0.01% to 99.99%, in steps of 0.01%, such as 5%"
RATE_RULE = "this is 0% to 100%, such as 5%"


class Share(click.ParamType):
    """A share of an alias's traffic, in hundredths of a percent."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`5%`, `5 %` or `5` as 500."""
        share = None if (number := _read(value)) is None else number * 100
        if share is None or share != int(share) or not 1 <= share < 10_000:
            self.fail(f"{SHARE_RULE}; got {value!r}", param, ctx)
        return int(share)


class Rate(click.ParamType):
    """A rate, as a number from 0 to 1."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`5%`, `5 %` or `5` as 0.05."""
        number = _read(value)
        if number is None or number > 100:
            self.fail(f"{RATE_RULE}; got {value!r}", param, ctx)
        return float(number / 100)


def _read(value: Any) -> Decimal | None:
    match = NUMBER.fullmatch(str(value).strip())
    return Decimal(match[1]) if match else None


def percent(part: float) -> str:
    """0.05 as `5 %`."""
    return f"{part * 100:.4g} %"


def share_text(share: int) -> str:
    """500 as `5 %`."""
    return f"{share / 100:g} %"
