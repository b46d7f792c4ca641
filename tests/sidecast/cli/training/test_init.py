"""`sidecast init` and runs that nobody trained: where they start, who takes them, and each mistake in one line."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ladder import load_backbone, load_tokenizer
from ladder.config import SideConfig
from ladder.lst_compat.names import authors_name
from serving.config import LoadConfig
from serving.versions.loader import Loader
from side_registry import Registry, read_artifact
from tests.ladder import golden
from tests.sidecast import golden_kit
from tests.sidecast.cli_kit import done, sidecast
from tests.training import toy

INIT = "init --backbone @/t5 --output @/run --reduction 4"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, tiny_t5: Path) -> Path:
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(tiny_t5, folder / "t5")
    toy.write(folder / "rows.jsonl", toy.rows(toy.CLASSES, 12))
    task = 'name = "letters"\nkind = "classification"\ntemplate = "{sentence}"\nlabels = ["aa", "bb"]\n'
    (folder / "letters.toml").write_text(task, encoding="utf-8")
    return folder


def run(text: str, house: Path, folder: Path):
    """`@/` stands for the house; its run goes elsewhere."""
    words = [word.replace("@/run", f"{folder}/run").replace("@", str(house)) for word in text.split()]
    return sidecast(*words)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "side_network.safetensors")


@pytest.mark.parametrize(("variant", "init"), [("c", "magnitude"), ("c3", "magnitude"), ("d", "fisher")])
def test_the_authors_order_gives_their_weights(tmp_path: Path, variant: str, init: str) -> None:
    backbone, r = golden_kit.make_backbone(tmp_path / "t5"), golden_kit.settings(variant)["r"]
    more = ("--samples-file", golden_kit.inputs_file()) if init == "fisher" else ()
    words = ("--backbone", backbone, "--init", init, "--order", "reference", "--reduction", r, *more)
    done("init", *words, "--output", tmp_path / "run")
    config = SideConfig.from_dict(read_artifact(tmp_path / "run").manifest.side)
    found = weights(tmp_path / "run")
    expected = golden.named(found, golden_kit.side_tensors(variant), config)
    pruned = [name for name in expected if ".block." in name or "norm" in name or "relative_bias" in name]
    assert len(pruned) == 4 * (6 + 2) + 4 * (10 + 3) + 2 + 2  # matrices and norms of 4+4 blocks, final norms, biases
    assert all(torch.equal(found[name], expected[name]) for name in pruned)


def test_a_random_start_is_the_seeds(house: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(f"{INIT} --seed {seed} --json", house, tmp_path / name).document["init"] == "random"
    first, again, other = (weights(tmp_path / name / "run") for name in "abc")
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["upsample.weight"], other["upsample.weight"])


def test_every_setting_of_the_shape(house: Path, tmp_path: Path) -> None:
    more = "--encoder-layers 1,2 --decoder-layers none --gate fixed --gate-start 0.2 --gate-temperature 0.5 --mix-after"
    side = run(f"{INIT} {more} --no-bias --merge-last --json", house, tmp_path).document["side"]
    wanted = {
        "reduction": 4,
        "encoder_layers": [1, 2],
        "decoder_layers": [],
        "gate": "fixed",
        "gate_start": 0.2,
        "gate_temperature": 0.5,
        "mix_after": True,
        "merge_last": True,
        "bias": False,
        "head": "text",
    }
    assert {name: side[name] for name in wanted} == wanted
    channel = run(f"{INIT} --gate-form channel --head mlp --outputs 3 --json", house, tmp_path / "b").document["side"]
    assert (channel["gate_form"], channel["head"], channel["outputs"]) == ("channel", "mlp", 3)


@pytest.mark.parametrize("order", ["consistent", "reference"])
def test_fisher_of_rows_starts_at_their_weights(house: Path, tmp_path: Path, order: str) -> None:
    more = f"--init fisher --order {order} --task @/letters.toml --data @/rows.jsonl --samples 5"
    document = run(f"{INIT} {more} --json", house, tmp_path).document
    assert (document["task"], document["samples"], document["side"]["head"]) == ("letters", 5, "linear")
    provenance = read_artifact(tmp_path / "run").manifest.provenance
    assert (provenance["made_by"], provenance["init"], provenance["order"]) == ("init", "fisher", order)


def test_an_untrained_run_is_published_evaluated_traced_and_loaded(house: Path, tmp_path: Path) -> None:
    assert run(f"{INIT} --task @/letters.toml --json", house, tmp_path).document["side"]["outputs"] == 2
    made, registry = tmp_path / "run", tmp_path / "registry"
    assert done("evaluate", "letters", "--run", made, "--data", house / "rows.jsonl", "--json").document["rows"] == 12
    refused = sidecast("publish", made, "--registry", registry).mistake
    assert "it is untrained: sidecast init made it" in refused
    assert not registry.exists()
    publish = ("publish", made, "--registry", registry, "--allow-untrained", "--json")
    assert done(*publish).document["version"] == 1
    assert "version 1 is untrained" in done("tasks", "--registry", registry).out
    save_file({"input_ids": torch.tensor([[5, 6, 1]])}, tmp_path / "ids.safetensors")
    done("trace", made, "--inputs", tmp_path / "ids.safetensors", "--output", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors")["out.head"].shape == (1, 2)
    backbone, tokenizer = load_backbone(house / "t5"), load_tokenizer(house / "t5")
    assert Loader(Registry.open(registry), backbone, tokenizer, LoadConfig()).load("letters", 1).spec.name == "letters"


def test_an_imported_run_answers_a_task_by_its_labels_words(house: Path, tmp_path: Path) -> None:
    """From a started run to the authors' names and back: the same answers, on a server's own path."""
    start = f"{INIT} --task @/letters.toml --head text --decoder-layers 1"
    assert run(start, house, tmp_path / "a").code == 0
    config = SideConfig.from_dict(read_artifact(tmp_path / "a" / "run").manifest.side)
    theirs = {f"module.{authors_name(name, config)}": t for name, t in weights(tmp_path / "a" / "run").items()}
    torch.save({"state_dict": theirs}, tmp_path / "theirs.pt")
    words = ("--backbone", house / "t5", "--output", tmp_path / "b", "--task", house / "letters.toml")
    assert done("import-lst", tmp_path / "theirs.pt", *words).err == ""
    assert (tmp_path / "b" / "side_network.safetensors").read_bytes() == (
        tmp_path / "a" / "run" / "side_network.safetensors"
    ).read_bytes()
    assert done("evaluate", "letters", "--run", tmp_path / "b", "--data", house / "rows.jsonl").code == 0
    assert done("publish", tmp_path / "b", "--registry", tmp_path / "registry", "--json").document["task"] == "letters"


def test_made_without_a_tokenizer_it_is_refused_clearly(house: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(house / "t5", bare, ignore=shutil.ignore_patterns("tokenizer*"))
    made = sidecast("init", "--backbone", bare, "--output", tmp_path / "run", "--task", house / "letters.toml")
    assert made.code == 0
    assert "has no tokenizer, so this run can be traced, but neither evaluated nor served" in made.err
    data = ("--data", house / "rows.jsonl", "--backbone", house / "t5")
    mistake = sidecast("evaluate", "letters", "--run", tmp_path / "run", *data).mistake
    assert "made with a backbone folder that had no tokenizer; make it again with one that has" in mistake
    mistake = sidecast("publish", tmp_path / "run", "--registry", tmp_path / "registry").mistake
    assert "it was made without a tokenizer; make it again from a backbone folder that has one" in mistake


def test_training_does_not_take_it_for_its_own(house: Path, tmp_path: Path) -> None:
    assert run(f"{INIT} --task @/letters.toml", house, tmp_path).code == 0
    rows = "--train @/rows.jsonl --validation @/rows.jsonl"
    mistake = run(f"train @/letters.toml --backbone @/t5 {rows} --output @/run", house, tmp_path).mistake
    assert "holds a run with another" in mistake
    assert "recipe" in mistake


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"{INIT} --init fisher", "--init fisher needs rows: give one of --data (with --task) and --samples-file"),
        (f"{INIT} --init fisher --data @/rows.jsonl --samples-file @/x", "--init fisher needs rows: give one of"),
        (f"{INIT} --init fisher --data @/rows.jsonl", "--data needs --task, which says what its rows are"),
        (f"{INIT} --init magnitude --task sst2 --data @/rows.jsonl", "are for --init fisher, this is --init magnitude"),
        (f"{INIT} --init fisher --samples-file @/x --samples 5", "--samples is how many rows of --data"),
        (f"{INIT} --init fisher --samples-file @/nothing", "nothing is no whole safetensors file"),
        (f"{INIT} --head linear", "a linear head needs --task, or --outputs N"),
        (f"{INIT} --task @/letters.toml --outputs 3", "task letters with a linear head has 2 outputs, not 3"),
        (f"{INIT} --task stsb --head text", "head must be linear, attention or mlp for regression, got 'text'"),
        (f"{INIT} --reduction 9", "reduction must be at most d_kv 8, got 9"),
        (f"{INIT} --encoder-layers 7", "encoder_layers must be within 0..2 on this backbone, got [7]"),
        (f"{INIT} --head linear --outputs 2 --merge-last", "merge_last needs the text head"),
        (f"{INIT} --seed -1", "seed must be within 0 and 2**32 - 1, got -1"),
        ("init --backbone @/nothing --output @/run", "there is no folder"),
        ("init --backbone @/t5 --output @/t5", "it is no run folder"),
        ("trace @/nothing --inputs @/x --output @/y", "there is no such folder"),
        ("trace @/nothing --inputs @/x --output @/no/y", "@/no/y cannot be written: there is no folder"),
        ("trace @/nothing --inputs @/x --output @/x", "@/x is the --inputs file itself; give another"),
    ],
)
def test_a_mistake_is_one_line(house: Path, tmp_path: Path, words: str, message: str) -> None:
    assert message.replace("@", str(house)) in run(words, house, tmp_path).mistake
    assert not (tmp_path / "run").exists()
