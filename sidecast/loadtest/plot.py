"""Pictures of a load's document: latency over throughput, latencies, rates, the server's stages, streams.

Drawn by matplotlib, which is an extra. An .html file holds the picture and the tables, and needs no network.
"""

import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sidecast.loadtest.plan import LoadError
from sidecast.loadtest.report import Document, explain, tables
from sidecast.loadtest.scrape import STAGES

SUFFIXES = (".png", ".svg", ".html")
COLOURS = ("#2f6fb4", "#e08a1e", "#3a9a5b", "#c2453b", "#7d5ba6", "#4aa7b5", "#8c6d46", "#6b7280")
PERCENTILES = {"p50": "#3a9a5b", "p90": "#e08a1e", "p99": "#c2453b"}
RATE_COLOURS = {"answers": "#2f6fb4", "answers in time": "#3a9a5b", "failures": "#c2453b"}
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "svg.hashsalt": "sidecast",
}
PANEL = (5.6, 3.8)
"""Inches."""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 14px/1.5 system-ui, sans-serif; color: #1f2937; margin: 2rem auto; max-width: 1180px; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 0 0 1.5rem }} caption {{ text-align: left; font-weight: 600 }}
th, td {{ text-align: right; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #e5e7eb }}
th:first-child, td:first-child {{ text-align: left }} svg {{ max-width: 100%; height: auto }}
</style></head><body>
<h1>{title}</h1>
<p>{about}</p>
{picture}
{tables}
{notes}
</body></html>
"""

Panel = Callable[[Any, Document], None]


def check_plot(path: str) -> None:
    """
    Raises:
        LoadError: no picture of that suffix can be made, or matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise LoadError(f"--plot {path}: use a name that ends in {', '.join(SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise LoadError("--plot needs matplotlib; install it with pip install 'sidecast[plot]'") from None


def draw(document: Document, path: Path) -> None:
    """Write a picture, or a page; `check_plot` has passed."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = make_figure(document)
        if path.suffix.lower() == ".html":
            path.write_text(_page(document, _svg(figure)), encoding="utf-8")
        else:
            figure.savefig(path, dpi=150)


def make_figure(document: Document) -> Any:
    """The panels that the document has figures for, two in a row."""
    from matplotlib.figure import Figure

    levels = document["levels"]
    panels: list[Panel] = [_draw_trade, _draw_distribution, _draw_rates]
    if any(level["server"] for level in levels):
        panels.append(_draw_stages)
    if any(level["stream"] for level in levels):
        panels.append(_draw_streams)
    lines = (len(panels) + 1) // 2
    figure = Figure(figsize=(2 * PANEL[0], lines * PANEL[1] + 0.5), layout="constrained")
    figure.suptitle(_title(document), fontsize=12, x=0.01, ha="left")
    for number, panel in enumerate(panels, start=1):
        panel(figure.add_subplot(lines, 2, number), document)
    return figure


def _title(document: Document) -> str:
    tasks = [task["task"] for task in document["tasks"]]
    named = ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
    return f"{document['server']}: {named}"


def _answered(document: Document) -> list[Document]:
    return [level for level in document["levels"] if level["latency_ms"]]


def _draw_trade(axes: Any, document: Document) -> None:
    levels = _answered(document)
    rates = [level["requests_per_s"] for level in levels]
    for name, colour in PERCENTILES.items():
        axes.plot(rates, [level["latency_ms"][name] for level in levels], "o-", color=colour, label=name, markersize=4)
    for level in levels:
        point = (level["requests_per_s"], level["latency_ms"]["p99"])
        axes.annotate(level["name"], point, xytext=(0, 6), textcoords="offset points", ha="center", color="#6b7280")
    axes.margins(0.12)
    axes.set(title="Latency over throughput", xlabel="answers per second", ylabel="ms", xlim=(0, None))
    if levels:
        _scale(axes.yaxis, axes.set_yscale)
        axes.legend()


def _draw_distribution(axes: Any, document: Document) -> None:
    for level, colour in zip(_answered(document), _colours(document), strict=False):
        bins = level["histogram"]
        shares = [100 * count / sum(bins["counts"]) for count in bins["counts"]]
        axes.stairs(shares, bins["edges_ms"], color=colour, label=level["name"], fill=True, alpha=0.25)
        axes.stairs(shares, bins["edges_ms"], color=colour)
    axes.set(title="Latencies", xlabel="ms", ylabel="% of the answers")
    if _answered(document):
        _scale(axes.xaxis, axes.set_xscale)
        axes.legend()


def _draw_rates(axes: Any, document: Document) -> None:
    levels = document["levels"]
    failed = [sum(error["count"] for error in level["errors"]) / level["window_s"] for level in levels]
    bars = {
        "answers": [level["requests_per_s"] for level in levels],
        "answers in time": [level["goodput_per_s"] for level in levels],
        "failures": failed,
    }
    for index, (name, rates) in enumerate(bars.items()):
        where = [number + 0.27 * (index - 1) for number in range(len(levels))]
        axes.bar(where, rates, width=0.25, color=RATE_COLOURS[name], label=name)
    offered = [(number, level["due_per_s"]) for number, level in enumerate(levels) if level["mode"] == "open"]
    if offered:
        axes.hlines([rate for _, rate in offered], *_reach(offered), color="#111827", label="due")
    axes.set(title="Rates", ylabel="requests per second")
    axes.set_xticks(range(len(levels)), [level["name"] for level in levels])
    axes.grid(axis="x", visible=False)
    axes.legend()


def _reach(offered: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    """From where to where a group of bars reaches."""
    return [number - 0.4 for number, _ in offered], [number + 0.4 for number, _ in offered]


def _draw_stages(axes: Any, document: Document) -> None:
    levels = [level for level in document["levels"] if level["server"]][::-1]  # from the top down
    names = [level["name"] for level in levels]
    left = [0.0] * len(levels)
    for stage, colour in zip(STAGES, COLOURS, strict=False):
        means = [level["server"]["stages"][stage]["mean_ms"] or 0.0 for level in levels]
        axes.barh(range(len(levels)), means, left=left, color=colour, label=stage, height=0.6)
        left = [before + mean for before, mean in zip(left, means, strict=True)]
    axes.set(title="The server's stages", xlabel="mean ms: queue and tokenize of a request, the others of a batch")
    axes.set_yticks(range(len(levels)), names)
    axes.grid(axis="y", visible=False)
    axes.legend()


def _draw_streams(axes: Any, document: Document) -> None:
    levels = [level for level in _answered(document) if level["stream"]["first_ms"]]
    rates = [level["stream"]["tokens_per_s"] for level in levels]
    for field, text, colour in (("first_ms", "first token", COLOURS[0]), ("between_ms", "between tokens", COLOURS[1])):
        for name, line in (("p50", "o-"), ("p99", "o--")):
            values = [(level["stream"][field] or {}).get(name) for level in levels]
            axes.plot(rates, values, line, color=colour, label=f"{text}, {name}", markersize=4)
    axes.set(title="Streams", xlabel="tokens per second", ylabel="ms", xlim=(0, None))
    if levels:
        _scale(axes.yaxis, axes.set_yscale)
        axes.legend()


def _colours(document: Document) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(len(document["levels"]))]


def _scale(axis: Any, set_scale: Callable[[str], None]) -> None:
    """Logarithmic, with plain numbers at 1, 2, 5, 10 ..."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def _svg(figure: Any) -> str:
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return "<svg" + drawn.getvalue().partition("<svg")[2]  # without the XML header of a separate file


def _page(document: Document, picture: str) -> str:
    plan = document["plan"]
    about = f"{document['began']}; {plan['duration_s']:g} s a level after {plan['warmup_s']:g} s of warm-up"
    about += f"; {plan['rows']} row{'s' * (plan['rows'] != 1)} in a request; seed {plan['seed']}"
    words = [f"{word}: {meaning}" for word, meaning in explain(document).items()]
    notes = "\n".join(f"<p>{html.escape(text)}</p>" for text in [*words, *document["notes"]])
    shown = "\n".join(_table(*table) for table in tables(document))
    return PAGE.format(
        title=html.escape(_title(document)), about=html.escape(about), picture=picture, tables=shown, notes=notes
    )


def _table(title: str, headings: Sequence[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>\n{body}</table>"
