"""Shares and rates on the command line: a percentage with its sign, `5%`, or a fraction, `0.05`."""

from typing import Any

import click


class Share(click.ParamType):
    """A share of traffic or rows, in hundredths of a per cent."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`5%`, `5 %` or `0.05` as 500."""
        from serving.client.shares import share_of

        try:
            return share_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Rate(click.ParamType):
    """A rate, as a number from 0 to 1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """`5%`, `5 %` or `0.05` as 0.05."""
        from serving.client.shares import rate_of

        try:
            return rate_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def percent(part: float) -> str:
    """0.05 as `5%`."""
    return f"{part * 100:.4g}%"


def share_text(share: int) -> str:
    """500 as `5%`."""
    return f"{share / 100:g}%"
