"""The closing table of the demo with images."""

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from demo.vision.results import KINDS, Results


def show_results(console: Console, results: Results) -> None:
    """Print the scores, by kind of question too, and what clients and the server counted."""
    title = f"Answers to {len(results.asked):,} questions about {results.test_pictures} held-out pictures"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column("answered by", no_wrap=True)
    for heading in ("all", *KINDS):
        table.add_column(heading, justify="right", no_wrap=True)
    by_kind = [results.of_kind(kind) for kind in KINDS]
    trained = f"side network, version 2 ({results.train_pictures:,} pictures)"
    table.add_row(trained, f"{results.score:.3f}", *(f"{score:.3f}" for _, score, _ in by_kind))
    table.add_row(f"side network, version 1 ({results.quick_pictures:,} pictures)", f"{results.quick_score:.3f}")
    table.add_row("text-only side network", f"{results.text_only_score:.3f}")
    table.add_row("majority", f"{results.majority:.3f}", *(f"{majority:.3f}" for _, _, majority in by_kind))
    console.print(table)
    console.print(
        "Majority: always the most common answer, of a kind of question in that kind's column.\n"
        "Text-only: reads the question and not the picture.",
        soft_wrap=True,
    )
    counts = Table(title="Requests and pictures", title_justify="left", box=SIMPLE, show_header=False)
    counts.add_column()
    counts.add_column(justify="right")
    counts.add_row("requests of the demo's clients", f"{results.requests:,}")
    counts.add_row("failed requests", f"{len(results.swap.failures):,}")
    counts.add_row("pictures encoded", f"{results.misses:,}")
    counts.add_row("pictures whose features were in the cache", f"{results.hits:,}")
    counts.add_row("ms for the first question about a picture (median)", f"{results.times.first_ms:.1f}")
    counts.add_row("ms for a second question about it (median)", f"{results.times.second_ms:.1f}")
    console.print(counts)
