"""Tasks and labelled rows of the examples. So few rows show the way; they do not make a good model."""

from sidecast import TaskSpec

Rows = list[dict[str, object]]

MOOD = TaskSpec(name="mood", kind="classification", template="{text}", labels=("negative", "positive"))
TOPICS = TaskSpec(name="topics", kind="multilabel", template="{text}", labels=("acting", "plot", "music"))
PLACES = TaskSpec(name="places", kind="token_classification", template="{text}", labels=("PLACE",))

MOODS: Rows = [
    {"text": "a gripping film from start to end", "label": "positive"},
    {"text": "the plot is dull and the jokes are old", "label": "negative"},
    {"text": "wonderful actors and a clever story", "label": "positive"},
    {"text": "two hours of my life that i want back", "label": "negative"},
    {"text": "warm, funny and honest", "label": "positive"},
    {"text": "a mess without a single good idea", "label": "negative"},
    {"text": "i would watch it again tomorrow", "label": "positive"},
    {"text": "boring, loud and far too long", "label": "negative"},
]

TOPIC_ROWS: Rows = [
    {"text": "wonderful actors and a clever story", "labels": ["acting", "plot"]},
    {"text": "the plot is dull and the songs are loud", "labels": ["plot", "music"]},
    {"text": "she plays the queen with great care", "labels": ["acting"]},
    {"text": "the orchestra is the best thing in it", "labels": ["music"]},
    {"text": "the story has no end", "labels": ["plot"]},
    {"text": "i fell asleep", "labels": []},
]


def located(text: str, place: str) -> dict[str, object]:
    """A row whose only entity is `place`."""
    start = text.index(place)
    return {"text": text, "spans": [{"start": start, "end": start + len(place), "label": "PLACE"}]}


PLACE_ROWS: Rows = [
    located("a love story in Paris", "Paris"),
    located("Rome has never looked so cold", "Rome"),
    located("they leave New York at night", "New York"),
    located("the last train to Oslo", "Oslo"),
    {"text": "a film about nothing", "spans": []},
    {"text": "nobody leaves the house", "spans": []},
]
