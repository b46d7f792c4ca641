"""Shares and rates as people write them: a fraction such as 0.05, or a percentage with its sign such as "5%".

A number without a sign that is no fraction is an error: 5 could mean 5 % or 0.05 %. On the wire a share is a whole
number of hundredths of a per cent.
"""

import re
from decimal import Decimal
from numbers import Real

WHOLE = 10_000
"""All of an alias's traffic on the wire."""
NUMBER = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,18})?|\.[0-9]{1,18})( ?%)?")
ROUNDING = Decimal("1e-6")
"""How far from a whole number of steps a share may be: 0.1 + 0.2 is 30 %."""
SHARE_RULE = "a share is 0.01% to 99.99%, in steps of 0.01%, written as a percentage (5%) or as a fraction (0.05)"
RATE_RULE = "this is 0% to 100%, written as a percentage (5%) or as a fraction (0.05)"


def share_of(value: float | str) -> int:
    """A share in hundredths of a per cent: 500 for 0.05, "0.05" and "5%".

    Raises:
        ValueError: no share, or a number of which the unit is not clear.
    """
    hundredths = _fraction(value, SHARE_RULE) * WHOLE
    share = round(hundredths)
    if abs(hundredths - share) > ROUNDING or not 1 <= share < WHOLE:
        raise ValueError(f"{SHARE_RULE}; got {value!r}")
    return share


def rate_of(value: float | str) -> float:
    """A rate from 0 to 1: 0.05 for 0.05, "0.05" and "5%".

    Raises:
        ValueError: no rate, or a number of which the unit is not clear.
    """
    return float(_fraction(value, RATE_RULE))


def _fraction(value: object, rule: str) -> Decimal:
    if isinstance(value, str):
        match = NUMBER.fullmatch(value.strip())
        number = Decimal(match[1]) if match else None
        has_sign = bool(match and match[2])
        is_unclear = number is not None and not has_sign and number >= 1  # 1 may mean 1 %
    else:
        number = _decimal(value)
        has_sign = False
        is_unclear = number is not None and number > 1
    if number is None:
        shown = ascii(value) if isinstance(value, str | float) else type(value).__name__
        raise ValueError(f"{rule}; got {shown}")
    if is_unclear:
        example = number.normalize() if number <= 100 else Decimal(5)
        raise ValueError(
            f"{value!r} has no unit: write a percentage with its sign ({example:f}%), or a fraction ({example / 100:f})"
        )
    part = number / 100 if has_sign else number
    if not 0 <= part <= 1:
        raise ValueError(f"{rule}; got {value!r}")
    return part


def _decimal(value: object) -> Decimal | None:
    """A number of Python's, by its shortest digits; None: it is no number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    try:
        number = Decimal(repr(float(value)))
    except OverflowError:  # an integer beyond floats
        return None
    return number if number.is_finite() else None
