"""Measures what TLS and tokens cost: rows a second with both, compared with neither.

    python -m benchmarks.server.bench_secured

Two real `sidecast serve`, each in a process of its own, with the same task: one as it is on this machine alone, one
with a certificate, tokens and the audit log. They are measured in turns, and the one that waits has nothing to do.
Callers, requests and texts are those of `bench_http`. Connections stay open, as those of clients do, so handshakes are
not measured.
"""

import tempfile
from itertools import count
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click

from benchmarks.harness.cli import How, answer, measuring
from benchmarks.harness.models import Loaded, publish_tasks
from benchmarks.harness.samples import Samples, Spread
from benchmarks.harness.secured import Issuer
from benchmarks.harness.served import free_port, serve
from benchmarks.server.bench_http import CALLERS, COLUMNS, ROWS, Callers

WAYS = ("gRPC", "HTTP")
SECURED = ", TLS and tokens"


def ratios(samples: Samples) -> dict[str, Spread]:
    """The ratios of the report: of each kind of request, and the geometric mean of them in each round."""
    each = {
        f"{way}{SECURED} / without, {rows} rows": samples.ratio(
            "rows_per_s", f"{way}, {rows} rows{SECURED}", f"{way}, {rows} rows"
        )
        for rows in ROWS
        for way in WAYS
    }
    rounds = zip(*(spread.values for spread in each.values()), strict=True)
    return {f"all{SECURED} / without": Spread(tuple(map(geometric_mean, rounds))), **each}


def ask(loaded: Loaded, how: How) -> tuple[Samples, dict[str, Spread], dict[str, Any]]:
    """Measure; return samples, ratios and settings."""
    with tempfile.TemporaryDirectory(prefix="sidecast-bench-") as folder:
        registry = publish_tasks(Path(folder), loaded, 1, ["linear"], how.seed)
        [task] = registry.state().tasks
        issuer = Issuer(Path(folder) / "access")
        settings: dict[str, Any] = {"registry": Path(folder) / "registry", **loaded.settings(how.threads)}
        secure_settings: dict[str, Any] = settings | issuer.settings()
        plain_port, secured_port = free_port(), free_port()
        with (
            serve(http_port=plain_port, **settings) as plain,
            serve(http_port=secured_port, **secure_settings) as secured,
        ):
            numbers = count(10_000_000)
            without = Callers(plain, plain_port, task, how, numbers)
            both = Callers(secured, secured_port, task, how, numbers, issuer.credentials)
            samples = how.turns([*without.variants(WAYS), *both.variants(WAYS, SECURED)])
    return (
        samples,
        ratios(samples),
        {"callers": {rows: how.size(callers, 2) for rows, callers in CALLERS.items()}, "head": "linear"},
    )


@click.command()
@measuring(rounds=15, seconds=3.0)
def main(**arguments: Any) -> None:
    """Rows a second with TLS and tokens, compared with neither."""
    answer(ask, name="secured", title="TLS and tokens", columns=COLUMNS, arguments=arguments)


if __name__ == "__main__":
    main()
