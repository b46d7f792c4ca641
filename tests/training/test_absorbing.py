"""Absorbing: teachers of several architectures teach side networks; what cannot teach is refused with a reason."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ladder import load_backbone, load_tokenizer
from side_registry import Registry
from side_registry.specs.task import TaskSpec
from tests.training import toy
from tests.training.teachers import make_adapter, make_teacher
from training.absorbing import AbsorbPlan, absorb, teacher_spec
from training.absorbing import train_together as together
from training.absorbing.folders import look_into
from training.absorbing.gate import AbsorbGate
from training.absorbing.teacher import HfTeacher, check_labels, in_order_of, load_teacher_model
from training.data import read_labelled, read_unlabelled
from training.errors import DataError, GateRefused, RecipeError, RequirementError, TeacherError
from training.recipes.recipe import Recipe

CPU = torch.device("cpu")
ROWS = [("aab",), ("bb",), ("abababab",)]


def ignore(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teachers") / "bert")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teachers") / "roberta", "roberta", num_labels=1)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(str(row["sentence"]) for row in toy.rows(toy.CLASSES, 120)), encoding="utf-8")
    return file


def make_plan(
    tiny_t5: Path, folders: list[Path], texts: Path, output: Path, labelled=None, **gate: float
) -> AbsorbPlan:
    looked = [look_into(folder) for folder in folders]
    specs = [teacher_spec(folder, "", ("sentence",)) for folder in looked]
    recipe = {"epochs": 2, "batch_rows": 8, "reduction": 4, "cache_gb": 0.0, "distill": 1.0}
    return AbsorbPlan(
        specs=specs,
        folders=looked,
        texts=read_unlabelled(texts, specs[0]),
        labelled=[None if labelled is None else read_labelled(labelled, spec) for spec in specs],
        backbone=load_backbone(tiny_t5),
        backbone_source=str(tiny_t5),
        tokenizer=load_tokenizer(tiny_t5),
        recipes=[Recipe(**recipe, teacher=str(folder.path)) for folder in looked],
        gate=AbsorbGate(agreement=gate.get("agreement"), within=gate.get("within")),
        output=output,
        reading={},
    )


def test_two_architectures_teach_on_the_same_backbone_passes(
    tiny_t5, bert, roberta, texts, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    passes: list[int] = []
    read = together.TaskInputs.read
    monkeypatch.setattr(
        together.TaskInputs, "read", lambda self, indices: passes.append(len(indices)) or read(self, indices)
    )
    results, savings = absorb(make_plan(tiny_t5, [bert, roberta], texts, tmp_path / "runs"))
    classes, values = results
    assert (classes.spec.kind, classes.spec.labels, values.spec.kind) == ("classification", ("aa", "bb"), "regression")
    trained = len(read_unlabelled(texts, classes.spec).examples)
    assert trained * 0.75 * 2 < sum(passes) < trained * 2, "two epochs of one pass a batch, not of one for each teacher"
    assert classes.usual <= 1
    assert 0 <= classes.measured["agreement"] <= 1
    assert not classes.faults
    models = [make.stat().st_size for folder in (bert, roberta) for make in folder.glob("*.safetensors")]
    assert (savings.models, savings.before.file_bytes) == (2, sum(models))
    assert savings.after.weight_bytes > savings.backbone_bytes
    registry = Registry.open(tmp_path / "registry", create=True)
    assert classes.publish(registry) == 1
    provenance = registry.manifest("bert", 1).provenance
    assert provenance["teacher"] == look_into(bert).identity
    assert provenance["publish_gate"]["measured"] == classes.measured


def test_a_finished_run_is_measured_again_without_training_or_asking(
    tiny_t5, bert, texts, tmp_path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[int] = []
    answers = HfTeacher.answers
    monkeypatch.setattr(
        HfTeacher, "answers", lambda self, rows, step: asked.append(len(rows)) or answers(self, rows, step)
    )
    plan = make_plan(tiny_t5, [bert], texts, tmp_path / "runs")
    [first], _ = absorb(plan)
    [again], _ = absorb(plan)
    assert again.measured == first.measured
    assert again.artifact.manifest == first.artifact.manifest
    assert asked == [len(plan.texts.examples)]
    [kept] = (tmp_path / "runs" / ".answers").iterdir()
    kept.write_bytes(b"torn")
    [third], _ = absorb(plan)
    assert (third.measured, len(asked)) == (first.measured, 2)


def test_the_gate_refuses_with_figures(tiny_t5, bert, texts, tmp_path):
    rows = toy.write(tmp_path / "rows.jsonl", toy.rows(toy.CLASSES, 30, seed=3))
    [result], _ = absorb(make_plan(tiny_t5, [bert], texts, tmp_path / "runs", rows, agreement=1.0, within=0.0))
    theirs = result.measured["teacher_accuracy"]
    assert 0 < theirs < 1
    gate = AbsorbGate(agreement=1.0, within=0.5)
    bad = {"agreement": 0.9, "accuracy": theirs - 0.006, "teacher_accuracy": theirs}
    assert [fault.split()[0] for fault in gate.faults(result.spec, bad)] == ["agreement", "accuracy"]
    good = {"agreement": 1.0, "accuracy": theirs - 0.005, "teacher_accuracy": theirs}
    assert gate.faults(result.spec, good) == ()
    assert gate.faults(result.spec, good | {"agreement": float("nan")})
    refused = type(result)(**{name: getattr(result, name) for name in result.__slots__} | {"faults": ("too low",)})
    registry = Registry.open(tmp_path / "registry", create=True)
    with pytest.raises(GateRefused, match="too low"):
        refused.publish(registry)
    assert not registry.state().live


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about a name of transformers
def test_a_lora_adapter_answers_as_peft_does(bert, tmp_path):
    import peft
    from transformers import BertForSequenceClassification

    folder = make_adapter(tmp_path / "lora", bert)
    looked = look_into(folder)
    spec = teacher_spec(looked, "three")
    assert spec.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    teacher = load_teacher_model(looked, CPU)
    base = BertForSequenceClassification.from_pretrained(bert, num_labels=3, ignore_mismatched_sizes=True)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    encoded = teacher.tokenizer([row[0] for row in ROWS], padding=True, return_tensors="pt")
    torch.testing.assert_close(teacher.answers(ROWS, ignore), theirs(**encoded).logits.detach())
    named = TaskSpec(name="three", kind="classification", template="{text}", labels=("x", "y", "z"))
    check_labels(named, teacher)  # its own labels have no names: they are taken by their position
    elsewhere = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "org/model"}
    (folder / "adapter_config.json").write_text(json.dumps(elsewhere))
    with pytest.raises(TeacherError, match=r"base model 'org/model' is not a folder .* --base"):
        look_into(folder)
    assert look_into(folder, bert).model == bert.resolve()


def test_labels_go_into_the_order_of_the_task(bert):
    teacher = load_teacher_model(look_into(bert), CPU)
    outputs = teacher.answers(ROWS, ignore)
    turned = TaskSpec(name="letters", kind="classification", template="{text}", labels=("bb", "aa"))
    check_labels(turned, teacher)
    expected = torch.log_softmax(outputs, -1).flip(-1)
    torch.testing.assert_close(in_order_of(turned, teacher, outputs), expected)
    other = TaskSpec(name="letters", kind="classification", template="{text}", labels=("bb", "cc"))
    with pytest.raises(TeacherError, match="has the labels aa, bb, and task letters has bb, cc"):
        check_labels(other, teacher)
    with pytest.raises(TeacherError, match="answers labels, and task share is regression"):
        check_labels(toy.VALUES, teacher)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT, about a name of transformers
def test_an_adapter_that_is_a_pickle_is_refused(bert, tmp_path):
    folder = make_adapter(tmp_path / "lora", bert)
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"has no adapter_model\.safetensors, and adapter_model\.bin is a pickle"):
        look_into(folder)


def test_pickles_alone_are_refused(tmp_path):
    folder = make_teacher(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"pytorch_model\.bin is a pickle, .* safetensors"):
        look_into(folder)


def test_code_in_a_folder_is_not_run(tmp_path):
    folder = make_teacher(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForSequenceClassification": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(TeacherError, match="cannot be loaded"):
        load_teacher_model(look_into(folder), CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classifier.weight": None}, "its weights lack classifier.weight"),
        ({"classifier.bias": torch.tensor([float("nan"), 0.0])}, "answers are not finite"),
    ],
)
def test_weights_that_cannot_teach(tmp_path, change, told):
    folder = make_teacher(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors") | change
    save_file(
        {name: it for name, it in tensors.items() if it is not None}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(TeacherError, match=told):
        load_teacher_model(look_into(folder), CPU).answers(ROWS, ignore)


def test_a_teacher_that_answers_differently_each_time_is_refused(bert):
    teacher = load_teacher_model(look_into(bert), CPU)
    teacher.model.dropout.train()
    teacher.model.dropout.p = 0.5
    with pytest.raises(TeacherError, match="differently when asked again"):
        teacher.answers(ROWS, ignore)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"problem_type": "multi_label_classification"}, "several labels a row"),
        ({"architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM"),
    ],
)
def test_models_of_other_kinds_are_refused(bert, tmp_path, changes, told):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TeacherError, match=told):
        teacher_spec(look_into(folder), "")


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(TeacherError, match="is no folder on this machine"):
        look_into("org/model")
    with pytest.raises(TeacherError, match=r"has neither config\.json nor adapter_config\.json"):
        look_into(tmp_path)


def test_texts_are_read_once_and_without_their_targets(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"sentence": "ab", "label": "?"}\n{"sentence": "ab"}\n{"sentence": "b"}\n', encoding="utf-8")
    read = read_unlabelled(file, toy.CLASSES).examples
    assert [(example.fields["sentence"], example.target) for example in read] == [("ab", None), ("b", None)]
    (tmp_path / "empty.txt").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no examples"):
        read_unlabelled(tmp_path / "empty.txt", toy.CLASSES)
    with pytest.raises(DataError, match="a line is one text, and task ends reads sentence, end"):
        read_unlabelled(tmp_path / "empty.txt", toy.TWO_TEXTS)


def test_too_few_texts_and_tasks_with_other_prompts(tiny_t5, bert, roberta, texts, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("ab\nb\n", encoding="utf-8")
    with pytest.raises(DataError, match="2 different texts are too few"):
        absorb(make_plan(tiny_t5, [bert], few, tmp_path / "runs"))
    plan = make_plan(tiny_t5, [bert, roberta], texts, tmp_path / "runs")
    first, second = plan.specs
    other = AbsorbPlan(**vars(plan) | {"specs": [first, second.model_copy(update={"template": "say {sentence}"})]})
    with pytest.raises(RecipeError, match="the template and max_source_tokens of bert"):
        absorb(other)


def test_a_gate_out_of_its_range():
    with pytest.raises(RequirementError, match="--agreement: give a number within 0 and 1"):
        AbsorbGate(agreement=97.0)
    with pytest.raises(RequirementError, match="--within: give points of 100"):
        AbsorbGate(within=-1.0)
