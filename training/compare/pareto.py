"""A page that shows memory against quality: one HTML file with a drawing, which needs nothing else."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from training.compare.tables import Table

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 30, 60
TICKS = 5
STYLE = (
    "body{font:15px sans-serif;margin:2em;max-width:60em}svg{border:1px solid #ccc}.axis{stroke:#888}"
    ".best{fill:#0a7}.other{fill:#999}.front{fill:none;stroke:#0a7;stroke-dasharray:4}text{font-size:12px}"
)


def pareto_page(table: Table) -> str:
    """The page. A method is green where no other has a better score with as little memory."""
    points = [row for row in table.rows if row["score"] is not None and row["peak_mb"]]
    title = html.escape(f"{table.spec.name}: memory against {table.spec.metric}")
    drawing = _drawing(points, table.spec.metric) if points else "<p>No method has finished yet.</p>"
    missing = [f"{row['method']}: {row['status']}" for row in table.rows if row["score"] is None]
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in (*missing, table.command))
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return (
        f"{head}<h1>{title}</h1>{drawing}<p>Green: no other method is better with as little memory.</p>{notes}</html>\n"
    )


def front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that no other one beats: as little memory and a better score, or less memory and as good a score."""
    best: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda row: (row["peak_mb"], -row["score"])):
        if not best or point["score"] > best[-1]["score"]:
            best.append(point)
    return best


def _drawing(points: Sequence[Mapping[str, Any]], metric: str) -> str:
    lowest, highest = _range([math.log10(row["peak_mb"]) for row in points])
    worst, top = _range([row["score"] for row in points])

    def x(row: Mapping[str, Any]) -> float:
        return LEFT + (math.log10(row["peak_mb"]) - lowest) / (highest - lowest) * (WIDTH - LEFT - RIGHT)

    def y(score: float) -> float:
        return HEIGHT - BOTTOM - (score - worst) / (top - worst) * (HEIGHT - TOP - BOTTOM)

    best = front(points)
    line = " ".join(f"{x(row):.1f},{y(row['score']):.1f}" for row in best)
    floor = HEIGHT - BOTTOM
    marks = [
        f'<line class="axis" x1="{LEFT}" y1="{floor}" x2="{WIDTH - RIGHT}" y2="{floor}"/>',
        f'<line class="axis" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{floor}"/>',
        f'<text x="{LEFT}" y="{HEIGHT - 15}">peak memory of a training step, MB (logarithmic)</text>',
        f'<text x="10" y="18">{html.escape(metric)}</text>',
        f'<polyline class="front" points="{line}"/>',
    ]
    for number in range(TICKS):
        share = number / (TICKS - 1)
        memory = 10 ** (lowest + share * (highest - lowest))
        score = worst + share * (top - worst)
        marks.append(f'<text x="{LEFT + share * (WIDTH - LEFT - RIGHT):.0f}" y="{floor + 20}">{memory:.0f}</text>')
        marks.append(f'<text x="15" y="{y(score):.0f}">{score:.3f}</text>')
    for row in points:
        kind = "best" if row in best else "other"
        told = html.escape(f"{row['method']}: {row['score']:.4f}, {row['peak_mb']:.1f} MB")
        across, down = x(row), y(row["score"])
        marks.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="5"><title>{told}</title></circle>')
        name = html.escape(row["method"])
        marks.append(f'<text x="{across + 8:.1f}" y="{down + 4:.1f}">{name}</text>')
    return f'<svg width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(marks)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest value, with a margin; never equal."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or 0.1
    return low - margin, high + margin
