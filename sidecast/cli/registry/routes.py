"""Routes as documents of the command line: made from options, and printed as text.

    {"shares": {"7": 500}, "shadows": [8], "bounds": {"disagreement": 0.05, ..., "min_rows": 100}}

A share is in hundredths of a per cent, as in the registry. `bounds` is None where there are none.
"""

from typing import Any

from sidecast.cli.app import UserError
from sidecast.cli.percent import percent, share_text

Document = dict[str, Any]

WHOLE = 10_000
BOUNDS = ("error_rate", "latency", "disagreement")
DEFAULT_BOUNDS: Document = {"error_rate": 0.01, "latency": 2.0}
"""Bounds of a canary for which none are given; docs/registry/routes.md says why these."""


def document(route: Any) -> Document:
    """The document of a registry's route, or of a client's."""
    bounds = route.bounds
    shares = {version: _hundredths(share) for version, share in sorted(route.shares.items())}
    return {
        "shares": {str(version): share for version, share in shares.items()},
        "shadows": list(route.shadows),
        "bounds": bounds and {name: getattr(bounds, name) for name in (*BOUNDS, "min_rows")},
    }


def _hundredths(share: float) -> int:
    """A share of the registry's route is whole hundredths of a per cent; that of a client's is a fraction."""
    return share if isinstance(share, int) else round(share * WHOLE)


def plain() -> Document:
    """A route that gives all traffic to the alias's main version."""
    return {"shares": {}, "shadows": [], "bounds": None}


def with_canary(route: Document, version: int, share: int, bounds: Document, bounded: bool) -> Document:
    """Give a share to `version` only, with only these bounds. A shadow that gets a share stops being a shadow.

    Args:
        bounds: by name; None: not given. Where none but `min_rows` is given, those of DEFAULT_BOUNDS.
        bounded: False: no bounds.
    """
    shadows = [shadow for shadow in route["shadows"] if shadow != version]
    before = DEFAULT_BOUNDS if bounded and is_default(bounds) else None
    return {"shares": {str(version): share}, "shadows": shadows, "bounds": _bounds(before, bounds)}


def is_default(bounds: Document) -> bool:
    """Whether no bound is given."""
    return all(bounds.get(name) is None for name in BOUNDS)


def with_step(route: Document, share: int, bounds: Document, bounded: bool, name: str) -> Document:
    """Set the only share to `share`; the bounds that are not None replace those that it has.

    Args:
        bounded: False: take the bounds away.
    Raises:
        UserError: there is no share, or more than one; or `min_rows` without a bound.
    """
    if len(route["shares"]) != 1:
        had = "no version has one" if not route["shares"] else f"versions {' and '.join(route['shares'])} have some"
        raise UserError(f"--step changes the only share of {name}, but {had}; use VERSION --canary {share_text(share)}")
    [version] = route["shares"]
    before = route["bounds"] if bounded else None
    return route | {"shares": {version: share}, "bounds": _bounds(before, bounds)}


def with_shadows(route: Document, more: tuple[int, ...], less: tuple[int, ...], name: str) -> Document:
    """Add and remove shadows. Raises UserError if a version to remove is no shadow."""
    if strange := [version for version in less if version not in route["shadows"]]:
        have = f"its shadows: {', '.join(map(str, route['shadows']))}" if route["shadows"] else "it has none"
        raise UserError(f"version {strange[0]} is no shadow of {name}; {have}")
    kept = [version for version in route["shadows"] if version not in less]
    return route | {"shadows": [*kept, *(version for version in dict.fromkeys(more) if version not in kept)]}


def _bounds(before: Document | None, changes: Document) -> Document | None:
    """The bounds of `before`, replaced by those of `changes` that are not None."""
    bounds = (before or {}) | {name: value for name, value in changes.items() if value is not None}
    if bounds and is_default(bounds):
        raise UserError("--min-rows is for bounds; give --max-error-rate, --max-latency or --max-disagreement too")
    return bounds or None


def in_words(version: int, route: Document) -> str:
    """`6 (95%), 7 (5%), shadow 8`: an alias's main version, and its route."""
    shares = route["shares"]
    own_version = f"{version} ({share_text(WHOLE - sum(shares.values()))})" if shares else f"{version}"
    return ", ".join([own_version, *_parts(route)])


def change_in_words(route: Document) -> str:
    """`7 (5%), shadow 8; bounds: ...`: what a commit made of an alias's traffic."""
    parts = ", ".join(_parts(route)) or "its own version alone"
    return parts + (f"; bounds: {bounds_in_words(route['bounds'])}" if route["bounds"] else "")


def bounds_in_words(bounds: Document) -> str:
    """`disagreement at most 5%, judged from 100 rows on`."""
    texts = {
        "error_rate": lambda value: f"errors at most {percent(value)} more",
        "latency": lambda value: f"latency at most {value:g} times",
        "disagreement": lambda value: f"disagreement at most {percent(value)}",
    }
    parts = [text(bounds[name]) for name, text in texts.items() if bounds.get(name) is not None]
    rows = bounds.get("min_rows")
    return ", ".join(parts) + (f", judged from {rows} rows on" if rows else "")


def _parts(route: Document) -> list[str]:
    shares = [f"{version} ({share_text(share)})" for version, share in route["shares"].items()]
    return shares + [f"shadow {version}" for version in route["shadows"]]
