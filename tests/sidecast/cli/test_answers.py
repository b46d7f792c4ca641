"""Plain values of answers: the model's and the client's are the same."""

import pytest

from ladder import Answer, ClassAnswer, LabelsAnswer, TextAnswer, ValueAnswer, VectorAnswer
from serving.client import Classification, Embedding, MultiLabel, Regression, Text
from sidecast.cli.answers import answer_values

LABELS = ("no", "yes")


@pytest.mark.parametrize(
    ("kind", "ours", "clients", "values"),
    [
        (
            "classification",
            ClassAnswer(label="yes", score=0.7, scores=(0.3, 0.7)),
            Classification("yes", 0.7, {"no": 0.3, "yes": 0.7}),
            {"label": "yes", "score": 0.7, "scores": {"no": 0.3, "yes": 0.7}},
        ),
        ("regression", ValueAnswer(value=2.5), Regression(2.5), {"value": 2.5}),
        ("text", TextAnswer(text="a", tokens=(3,)), Text("a"), {"text": "a"}),
        ("embedding", VectorAnswer(values=(0.6, 0.8)), Embedding((0.6, 0.8)), {"embedding": [0.6, 0.8]}),
        (
            "multilabel",
            LabelsAnswer(labels=("yes",), scores=(0.2, 0.9)),
            MultiLabel(("yes",), {"no": 0.2, "yes": 0.9}),
            {"labels": ["yes"], "scores": {"no": 0.2, "yes": 0.9}},
        ),
    ],
)
def test_a_models_answer_and_a_clients_have_the_same_values(kind: str, ours: Answer, clients: object, values: dict):
    assert answer_values(ours, kind, LABELS) == answer_values(clients, kind, LABELS) == values
