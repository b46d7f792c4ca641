"""A page of pictures, questions, answers and scores: one HTML file without scripts, its pictures inside it."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from demo.vision.questions import Question, QuestionData, by_picture, described
from demo.vision.results import KINDS, Asked, Results

TEMPLATE = Path(__file__).with_name("page.html")
TITLE = "Questions about pictures"
SHOWN = {"shape": 1, "colour": 1, "yes or no": 2}
"""Questions of each kind that are shown with a picture."""
WRONG_SHOWN = 12
"""Most wrong answers that are shown."""


def write_page(path: Path, results: Results, data: QuestionData, pictures: int) -> None:
    """Write the page.

    Args:
        data: has the files of the pictures.
        pictures: the number of test pictures to show; the first ones.
    """
    rows = by_picture(each.question for each in results.asked)
    answers = {each.question: each for each in results.asked}
    wrong = [each for each in results.asked if not each.is_right]
    cards = [
        _card(data, image_id, rows[image_id], _shown(rows[image_id], answers)) for image_id in list(rows)[:pictures]
    ]
    parts = {
        "title": TITLE,
        "introduction": _introduction(results),
        "scores": _scores(results) + _scores_by_kind(results),
        "scores_note": _paragraph(
            "Majority always gives the most common answer of the training questions; in the second table, of those of "
            "that kind. The text-only side network reads the question and not the picture.",
            note=True,
        ),
        "serving": _serving(results),
        "serving_note": _paragraph(
            f"Times are medians over {len(results.times.first)} pictures, as a client on the same machine saw them. "
            "The server keeps a picture's features, so a second question about it does not run the vision encoder.",
            note=True,
        ),
        "wrong": _wrong(wrong, rows, data),
        "pictures": _paragraph(_pictures_text(len(cards), results), note=True) + _list(cards),
    }
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(parts)
    path.write_text(text, encoding="utf-8", newline="\n")


def _introduction(results: Results) -> str:
    return _paragraph(
        f"A server answered {len(results.asked):,} questions about {results.test_pictures:,} pictures that were not "
        f"used for training; {results.score:.1%} of the answers are right. A frozen T5 reads the question, a frozen "
        "vision encoder reads the picture, and a small side network, the only part that was trained, answers from both."
    ) + _paragraph(
        "Pictures and questions are from easy-VQA by Victor Zhou (MIT licence). make demo-vision made this page.",
        note=True,
    )


def _scores(results: Results) -> str:
    rows = (
        (f"side network, version 2 (trained on {results.train_pictures:,} pictures)", results.score),
        (f"side network, version 1 (trained on {results.quick_pictures:,} pictures)", results.quick_score),
        ("text-only side network", results.text_only_score),
        ("majority", results.majority),
    )
    body = ((label, f"{score:.3f}") for label, score in rows)
    return _table("Share of right answers, test questions", ("answered by", "score"), body)


def _scores_by_kind(results: Results) -> str:
    kinds = ((kind, *results.of_kind(kind)) for kind in KINDS)
    body = ((kind, f"{count:,}", f"{score:.3f}", f"{majority:.3f}") for kind, count, score, majority in kinds)
    return _table("By kind of question", ("kind", "questions", "version 2", "majority"), body)


def _serving(results: Results) -> str:
    swap = results.swap
    body = (
        ("requests", f"{results.requests:,}"),
        ("failed requests", f"{len(swap.failures):,}"),
        ("versions in the order seen by a client", ", ".join(map(str, swap.order))),
        *((f"from {verb} to its first answer", f"{seconds:.2f} s") for verb, seconds in swap.lags.items()),
        ("first question about a picture", f"{results.times.first_ms:.1f} ms"),
        ("second question about the same picture", f"{results.times.second_ms:.1f} ms"),
        ("pictures encoded", f"{results.misses:,}"),
        ("pictures found in the cache", f"{results.hits:,}"),
    )
    return _table("What clients saw, and what the server counted", ("", ""), body)


def _wrong(wrong: Sequence[Asked], rows: Mapping[str, Sequence[Question]], data: QuestionData) -> str:
    if not wrong:
        return _paragraph("None: every answer is right.", note=True)
    grouped = by_picture(each.question for each in wrong)
    answers = {each.question: each for each in wrong}
    cards = []
    shown = 0
    for image_id, questions in grouped.items():
        if shown >= WRONG_SHOWN:
            break
        asked = [answers[question] for question in questions][: WRONG_SHOWN - shown]
        cards.append(_card(data, image_id, rows[image_id], asked))
        shown += len(asked)
    return _paragraph(f"{len(wrong):,} in all; {shown} of them are shown.", note=True) + _list(cards)


def _pictures_text(shown: int, results: Results) -> str:
    return f"The first {shown} of {results.test_pictures:,} test pictures, each with some of its questions."


def _shown(questions: Iterable[Question], answers: Mapping[Question, Asked]) -> list[Asked]:
    """Some of a picture's questions, of all kinds."""
    left = dict(SHOWN)
    chosen = []
    for question in questions:
        if left[question.kind]:
            left[question.kind] -= 1
            chosen.append(answers[question])
    return chosen


def _card(data: QuestionData, image_id: str, questions: Sequence[Question], asked: Sequence[Asked]) -> str:
    content = base64.b64encode(data.picture(image_id).read_bytes()).decode("ascii")
    alternative = html.escape(described(questions))
    lines = [
        "<figure>",
        f'<img src="data:image/png;base64,{content}" alt="{alternative}" width="64" height="64">',
        f"<figcaption>picture {html.escape(image_id)}</figcaption>",
        '<table class="answers">',
        '<thead><tr><th scope="col">question</th><th scope="col">answer</th>'
        '<th scope="col" class="number">score</th></tr></thead>',
        "<tbody>",
        *map(_answer, asked),
        "</tbody>",
        "</table>",
        "</figure>",
    ]
    return "\n".join(lines)


def _answer(asked: Asked) -> str:
    answer = html.escape(asked.answer)
    cell = f"<td>{answer}</td>"
    if not asked.is_right:
        cell = f'<td class="wrong">{answer} <small>right: {html.escape(asked.question.answer)}</small></td>'
    question = html.escape(asked.question.question)
    return f'<tr><th scope="row">{question}</th>{cell}<td class="number">{asked.score:.2f}</td></tr>'


def _list(cards: Iterable[str]) -> str:
    return '<ul class="pictures">\n' + "\n".join(f"<li>\n{card}\n</li>" for card in cards) + "\n</ul>"


def _paragraph(text: str, *, note: bool = False) -> str:
    opening = '<p class="note">' if note else "<p>"
    return f"{opening}{html.escape(text)}</p>\n"


def _table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Make a table. Its first column names the row, the others are numbers; without headings it has no head."""
    lines = ["<table>", f"<caption>{html.escape(caption)}</caption>"]
    if any(headings):
        first, *others = map(html.escape, headings)
        cells = "".join(f'<th scope="col" class="number">{text}</th>' for text in others)
        lines.append(f'<thead><tr><th scope="col">{first}</th>{cells}</tr></thead>')
    lines.append("<tbody>")
    for row in rows:
        first, *others = map(html.escape, row)
        cells = "".join(f'<td class="number">{text}</td>' for text in others)
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    lines += ["</tbody>", "</table>"]
    return "\n".join(lines) + "\n"
