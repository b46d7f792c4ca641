import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from side_registry import InvalidName, InvalidRow, InvalidSpec, TaskRef, TaskSpec, check_alias, check_task_name
from tests.side_registry.runs import make_spec

PAIR = TaskSpec(
    name="qnli", kind="classification", template="question: {question} sentence: {sentence}", labels=("yes", "no")
)
TOML = """
name = "stsb"
kind = "regression"
template = "stsb sentence1: {sentence1} sentence2: {sentence2}"
low = 0
high = 5
"""


def test_fields_are_the_templates_in_order():
    assert PAIR.fields == ("question", "sentence")
    assert TaskSpec(name="a", kind="text", template="{b} {a} {b} {{c}}").fields == ("b", "a")


def test_render_fills_the_template_and_interprets_no_value():
    assert PAIR.render({"sentence": "{question}", "question": "why?"}) == "question: why? sentence: {question}"


def test_fields_of_other_tasks_are_ignored():
    row = {"label": "yes", "sentence": "s", "question": "why?", "image": ""}
    assert PAIR.render(row) == "question: why? sentence: s"


@pytest.mark.parametrize(
    ("row", "field", "why"),
    [
        ({"question": "why?"}, "sentence", "is missing"),
        ({"question": "why?", "sentence": ""}, "sentence", "is empty"),
        ({"question": "why?", "sentence": " \t\n"}, "sentence", "is empty"),
        ({"question": "why?", "sentence": "x" * 20_001}, "sentence", "20001 characters, at most 20000"),
        ({"question": "why?", "sentence": "a\0b"}, "sentence", "NUL"),
        ({"question": "why?", "sentence": "\ud800"}, "sentence", "surrogate"),
        ({"question": "why?", "sentence": 7}, "sentence", "must be text, got int"),
        (
            {"question": "why?", "sentense": "s"},
            "sentence",
            "is missing; task 'qnli' needs question, sentence, the row has 'question', 'sentense'",
        ),
        ({}, "question", "is missing, sentence too; task 'qnli' needs question, sentence, the row has no field"),
    ],
)
def test_a_bad_row_names_its_field(row: dict[str, str], field: str, why: str):
    with pytest.raises(InvalidRow, match=why) as caught:
        PAIR.render(row)
    assert caught.value.field == field


def test_defaults_follow_the_kind():
    assert (PAIR.target, PAIR.metric) == ("label", "accuracy")
    stsb = TaskSpec.from_toml(TOML)
    assert (stsb.target, stsb.metric, stsb.low, stsb.high) == ("score", "pearson_spearman", 0.0, 5.0)
    text = TaskSpec(name="sum", kind="text", template="{document}")
    assert (text.target, text.metric, text.labels) == ("target", "exact_match", ())


def test_from_toml_reads_paths_and_text(tmp_path: Path):
    path = tmp_path / "stsb.toml"
    path.write_text(TOML)
    assert TaskSpec.from_toml(path) == TaskSpec.from_toml(str(path)) == TaskSpec.from_toml(TOML)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "a/b"}, "name"),
        ({"name": "../up"}, "name"),
        ({"name": "sst2\n"}, "name"),
        ({"name": "ѕst2"}, "name"),  # a Cyrillic letter
        ({"name": "x" * 65}, "name"),
        ({"name": ""}, "name"),
        ({"kind": "sorting"}, "kind"),
        ({"template": "no field"}, "at least one field"),
        ({"template": "{} {1}"}, "plain name"),
        ({"template": "{a.__class__}"}, "plain name"),
        ({"template": "{a[0]}"}, "plain name"),
        ({"template": "{a!r}"}, "plain name"),
        ({"template": "{a:>9999999}"}, "plain name"),
        ({"template": "{a"}, "template"),
        ({"template": "{a}\0"}, "NUL"),
        ({"labels": ("one",)}, "at least two"),
        ({"labels": ("one", "one")}, "distinct"),
        ({"labels": ("one", " ")}, "spaces"),
        ({"labels": ("one", "two ")}, "spaces"),
        ({"low": 1.0}, "for regression"),
        ({"max_rows": 0}, "max_rows"),
        ({"metric": "bleu"}, "metric must be"),
        ({"target": "sentence"}, "not a field"),
    ],
)
def test_a_bad_spec_says_which_field(change: dict, why: str):
    with pytest.raises(ValidationError, match=why):
        TaskSpec.model_validate(make_spec().model_dump() | change)


def test_an_embedding_has_dimensions_and_one_field():
    spec = TaskSpec(name="a", kind="embedding", template="say: {text}")
    assert (spec.dimensions, spec.target, spec.metric) == (256, "positive", "recall_at_1")
    assert TaskSpec.from_toml('name = "a"\nkind = "embedding"\ntemplate = "{a}"\ndimensions = 3').dimensions == 3
    assert TaskSpec.model_validate_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"dimensions": 0}, "dimensions must be 1 to 4096"),
        ({"dimensions": 4097}, "less than or equal to 4096"),
        ({"dimensions": -1}, "greater than or equal to 0"),
        ({"template": "{a} {b}"}, "template must have one field for embedding.* got a, b"),
        ({"metric": "accuracy"}, "metric must be recall_at_1 or mrr"),
        ({"target": "text"}, "not a field"),
    ],
)
def test_a_bad_embedding_says_which_field(change: dict, why: str):
    with pytest.raises(ValidationError, match=why):
        TaskSpec.model_validate({"name": "a", "kind": "embedding", "template": "{text}"} | change)


def test_a_token_classification_has_types_of_entities_and_one_field():
    spec = TaskSpec(name="a", kind="token_classification", template="a {{b}}: {text}!", labels=("PER",))
    assert (spec.outputs, spec.target, spec.metric, spec.frame) == (3, "spans", "entity_f1", ("a {b}: ", "!"))
    assert TaskSpec.model_validate_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"labels": ()}, "labels must be 1 to 500 types of entities"),
        ({"labels": tuple(map(str, range(501)))}, "labels must be 1 to 500 types of entities .* got 501"),
        ({"labels": ("O", "B-PER")}, "types of entities such as PER, not tags"),
        ({"labels": ("PER", "PER")}, "labels must be distinct"),
        ({"template": "{a} {b}"}, "template must have one field, once"),
        ({"template": "{a} {a}"}, "template must have one field, once"),
        ({"images": ("image",)}, "images must be left out"),
        ({"label_index": True}, "label_index must be left out"),
        ({"open_labels": True}, "open_labels must be left out"),
        ({"metric": "accuracy"}, "metric must be entity_f1"),
    ],
)
def test_a_bad_token_classification_says_which_field(change: dict, why: str):
    with pytest.raises(ValidationError, match=why):
        TaskSpec.model_validate(
            {"name": "a", "kind": "token_classification", "template": "{text}", "labels": ("PER",)} | change
        )


def test_only_embeddings_have_dimensions_and_other_documents_are_as_they_were():
    with pytest.raises(ValidationError, match="dimensions are for embedding, this task is text"):
        TaskSpec(name="a", kind="text", template="{a}", dimensions=8)
    assert b"dimensions" not in TaskSpec(name="a", kind="text", template="{a}").to_json()
    assert "dimensions" not in make_spec().model_dump()


@pytest.mark.parametrize("kind", ["regression", "text", "embedding"])
def test_only_classes_have_labels(kind: str):
    with pytest.raises(ValidationError, match="labels are for classification"):
        TaskSpec.model_validate({"name": "a", "kind": kind, "template": "{a}", "labels": ["b", "c"]})


def test_a_range_runs_upwards():
    with pytest.raises(ValidationError, match="low must be below high"):
        TaskSpec(name="a", kind="regression", template="{a}", low=4, high=-4)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("name = ", "Invalid value"),
        ('name = "a"\nlables = []', "did you mean 'labels'"),
        ('name = "a"\nkind = "text"', "template: Field required"),
        ("missing.toml", "No such file"),
    ],
)
def test_bad_toml_is_one_sentence(text: str, why: str):
    with pytest.raises(InvalidSpec, match=why):
        TaskSpec.from_toml(text)


def test_toml_that_is_not_utf8(tmp_path: Path):
    (tmp_path / "a.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(InvalidSpec, match="not UTF-8 at byte 8"):
        TaskSpec.from_toml(tmp_path / "a.toml")


def test_unknown_fields_of_a_stored_spec_survive():
    spec = TaskSpec.model_validate(make_spec().model_dump() | {"inputs": {"image": "png"}})
    assert TaskSpec.model_validate_json(spec.to_json()).model_extra == {"inputs": {"image": "png"}}


def test_a_spec_is_frozen_hashable_and_pickles():
    spec = make_spec()
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"
    assert spec.fields == ("sentence",)
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(spec) == hash(make_spec())


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("sst2", TaskRef("sst2")),
        ("sst2@canary", TaskRef("sst2", alias="canary")),
        ("sst2:7", TaskRef("sst2", version=7)),
    ],
)
def test_references_parse_and_print(text: str, ref: TaskRef):
    assert TaskRef.parse(text) == ref
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    ["", "a b", "@canary", "sst2@", "sst2:", "sst2:0", "sst2:-1", "sst2:1.5", "sst2:٣", "sst2:1234567890", "sst2@7",
     "sst2@a@b", "sst2:1:2", "sst2@a:1", "../x", "x" * 10_000],
)  # fmt: skip
def test_a_bad_reference_is_refused_with_the_rule(text: str):
    with pytest.raises(InvalidName, match="use "):
        TaskRef.parse(text)


@pytest.mark.parametrize("alias", ["", "7", "123", "7up", "Production", "a b", "a/b", "prod\n", "x" * 33, "ａ"])
def test_bad_aliases(alias: str):
    with pytest.raises(InvalidName, match="alias"):
        check_alias(alias)


def test_good_names():
    assert check_alias("canary-2_b") == "canary-2_b"
    assert check_task_name("0Movie-sentiment_v2") == "0Movie-sentiment_v2"


TEXT = 'name = "a"\nkind = "text"\ntemplate = "{a}"\n'


def test_a_text_task_says_how_its_texts_are_made():
    spec = TaskSpec.from_toml(TEXT + '[generation]\nnum_beams = 4\nearly_stopping = "never"\nlength_penalty = 2')
    assert (spec.generation.num_beams, spec.generation.early_stopping) == (4, "never")
    assert spec.generation.length_penalty == 2.0
    assert TaskSpec.model_validate_json(spec.to_json()) == spec


def test_documents_of_greedy_tasks_are_as_they_were():
    plain = TaskSpec.from_toml(TEXT)
    assert b"generation" not in plain.to_json()
    assert TaskSpec.from_toml(TEXT + "[generation]\nnum_beams = 1").to_json() == plain.to_json()
    assert TaskSpec.model_validate_json(plain.to_json()).generation.is_default


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("num_beams = 17", "generation.num_beams: Input should be less than or equal to 16"),
        ("num_beam = 2", "unknown field 'num_beam'; did you mean 'num_beams'"),
        ("temperature = 0.0", "generation.temperature: .* greater than or equal to 0.001"),
        ("temperature = nan", "generation.temperature: "),
        ("top_p = 1.5", "generation.top_p: .* less than or equal to 1"),
        ("seed = -1", "generation.seed: "),
        ('early_stopping = "soon"', "generation.early_stopping: must be true, false or 'never', got 'soon'"),
        ("early_stopping = 1", "generation.early_stopping: must be true, false or 'never', got '1'"),
        ("do_sample = true\nnum_beams = 2", "generation: num_beams must be 1 where do_sample is on, got 2"),
    ],
)
def test_a_bad_generation_says_which_field(table: str, why: str):
    with pytest.raises(InvalidSpec, match=why):
        TaskSpec.from_toml(f"{TEXT}[generation]\n{table}")


def test_only_text_is_generated():
    with pytest.raises(InvalidSpec, match="generation is for text, this task is regression"):
        TaskSpec.from_toml('name = "a"\nkind = "regression"\ntemplate = "{a}"\n[generation]\nnum_beams = 2')


WRONG = """
name = "two words"
kind = "classification"
template = "{label}"
lables = ["a", "b"]
metric = "recall"
low = 3
high = 1
max_rows = 0
max_chars = "many"
dimensions = 5
[generation]
num_beam = 2
"""


def test_every_mistake_of_a_file_is_told_at_once():
    with pytest.raises(InvalidSpec) as caught:
        TaskSpec.from_toml(WRONG)
    faults = caught.value.why.split("; ")
    for start in (
        "unknown field 'lables'",
        "unknown field 'num_beam'",
        "name: must be 1 to 64",
        "max_rows: ",
        "max_chars: ",
        "metric must be accuracy",
        "low and high are for regression",
        "dimensions are for embedding",
        "target must be a name that is not a field",
    ):
        assert sum(fault.startswith(start) for fault in faults) == 1, (start, faults)
    assert not any(fault.startswith("labels must be") for fault in faults)  # follows from `lables`


CLASSES = 'name = "a"\nkind = "classification"\ntemplate = "{a}"\n'


def test_integer_labels_are_their_texts():
    assert TaskSpec.from_toml(f"{CLASSES}labels = [0, 1]").labels == ("0", "1")
    for labels in ("[true, false]", "[0.5, 1.5]", '[0, "0"]', '"ab"'):
        with pytest.raises(InvalidSpec, match="labels"):
            TaskSpec.from_toml(f"{CLASSES}labels = {labels}")


def test_label_index_is_for_labels_that_are_no_numbers_and_stored_only_where_true():
    spec = TaskSpec.from_toml(f'{CLASSES}labels = ["x", "y"]\nlabel_index = true')
    assert spec.label_index
    assert TaskSpec.model_validate_json(spec.to_json()) == spec
    assert b"label_index" not in TaskSpec.from_toml(f'{CLASSES}labels = ["x", "y"]').to_json()
    with pytest.raises(InvalidSpec, match="label_index must be left out where a label is a number: '1'"):
        TaskSpec.from_toml(f"{CLASSES}labels = [1, 2]\nlabel_index = true")
    with pytest.raises(InvalidSpec, match="label_index is for classification and multilabel, this task is text"):
        TaskSpec.from_toml('name = "a"\nkind = "text"\ntemplate = "{a}"\nlabel_index = true')


def test_open_labels_are_for_classification_and_stored_only_where_true():
    spec = TaskSpec.from_toml(f'{CLASSES}labels = ["x", "y"]\nopen_labels = true')
    assert spec.open_labels
    assert TaskSpec.model_validate_json(spec.to_json()) == spec
    assert b"open_labels" not in TaskSpec.from_toml(f'{CLASSES}labels = ["x", "y"]').to_json()
    with pytest.raises(InvalidSpec, match="open_labels must be left out where label_index is true"):
        TaskSpec.from_toml(f'{CLASSES}labels = ["x", "y"]\nopen_labels = true\nlabel_index = true')
    with pytest.raises(InvalidSpec, match="metric must be accuracy or matthews where open_labels is true"):
        TaskSpec.from_toml(f'{CLASSES}labels = ["x", "y"]\nopen_labels = true\nmetric = "accuracy_f1"')
    with pytest.raises(InvalidSpec, match="open_labels is for classification, this task is text"):
        TaskSpec.from_toml('name = "a"\nkind = "text"\ntemplate = "{a}"\nopen_labels = true')


def image_spec(**values: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "vqa", "kind": "text", "template": "vqa: {question}", "images": ["image"], **values}
    )


def test_images_are_fields_beside_the_templates():
    spec = image_spec(images=["left", "right"])
    assert spec.inputs == ("question", "left", "right")
    row = {"question": "is it?", "left": b"1", "right": b"2", "other": "x"}
    assert spec.render(row) == "vqa: is it?"
    assert spec.images_of(row) == (b"1", b"2")
    assert image_spec(template="caption:").render({"image": b"1"}) == "caption:"
    assert TaskSpec.model_validate_json(spec.to_json()) == spec
    assert b"images" not in PAIR.to_json()


@pytest.mark.parametrize(
    ("row", "field", "why"),
    [
        ({"question": "q"}, "image", "is missing; task 'vqa' needs question, image, the row has 'question'"),
        ({"image": b""}, "image", "is empty"),
        ({"image": "http://x/a.png"}, "image", "got text; a path or URL is never opened here"),
        ({"image": 7}, "image", "must be the bytes of an image, got int"),
    ],
)
def test_a_bad_image_names_its_field(row: dict[str, Any], field: str, why: str):
    with pytest.raises(InvalidRow, match=why) as caught:
        image_spec().images_of(row)
    assert caught.value.field == field


def test_an_image_where_a_text_belongs():
    with pytest.raises(InvalidRow, match="must be text, got bytes; an image belongs into an image field"):
        image_spec().render({"question": b"1", "image": b"1"})


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"images": [], "template": "caption:"}, "template needs at least one field in braces"),
        ({"images": ["a", "b", "c"]}, "images must be at most 2 names, got 3"),
        ({"images": ["a", "a"]}, "images must be distinct, got a, a"),
        ({"images": ["a b"]}, "images must be names such as image, got 'a b'"),
        ({"images": ["question"]}, "images must be names that neither the template nor the target has"),
        ({"images": ["target"]}, "images must be names that neither the template nor the target has"),
        ({"kind": "embedding"}, "images must be left out for embedding"),
    ],
)
def test_bad_images_say_why(values: dict[str, Any], why: str):
    with pytest.raises(ValidationError, match=why):
        image_spec(**values)


def test_a_multilabel_spec_has_one_label_or_more_and_no_open_labels():
    begin = 'name = "a"\nkind = "multilabel"\ntemplate = "{s}"\n'
    spec = TaskSpec.from_toml(f'{begin}labels = ["rude"]')
    assert (spec.outputs, spec.target, spec.metric) == (1, "labels", "f1_micro")
    with pytest.raises(InvalidSpec, match="labels must be at least 1 for multilabel, got 0"):
        TaskSpec.from_toml(begin)
    with pytest.raises(InvalidSpec, match="open_labels is for classification, this task is multilabel"):
        TaskSpec.from_toml(f'{begin}labels = ["rude"]\nopen_labels = true')


def test_a_prompt_says_where_its_two_texts_are():
    spec = TaskSpec(name="nli", kind="classification", template="{{a}} {b}? {a} {b}", labels=("no", "yes"))
    prompt, ((one, after_one), (two, after_two)) = spec.render_pair({"a": "first", "b": "2nd"})
    assert prompt == "{a} 2nd? first 2nd"
    assert (prompt[one:after_one], prompt[two:after_two]) == ("2nd", "first")
    assert (one, two) == (4, 9)
    assert spec.has_pair
    assert not TaskSpec(name="one", kind="regression", template="{a} {a}").has_pair
