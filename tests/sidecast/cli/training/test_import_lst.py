"""Checkpoints of the LST authors' code through the real commands: `import-lst`, then `trace`, equals their numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ladder import load_backbone, load_side
from tests.ladder import golden_visual
from tests.ladder.golden import VARIANTS
from tests.marks import slow
from tests.sidecast import golden_kit
from tests.sidecast.cli_kit import done, sidecast

FLAGS = {"e3": ("--gate", "none"), "e6": ("--mix-after",)}
"""What no tensor of a variant tells."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return golden_kit.make_backbone(tmp_path_factory.mktemp("golden") / "t5")


def kept(variant: str) -> int:
    settings = golden_kit.settings(variant)
    return sum(len(settings[f"{stack}_side_layers"] or range(4)) for stack in ("encoder", "decoder"))


def import_lst(checkpoint: Path, backbone: Path, run: Path, *more: object):
    return sidecast("import-lst", checkpoint, "--backbone", backbone, "--output", run, *more, "--json")


def trace(run: Path, inputs: Path, *more: object) -> dict[str, torch.Tensor]:
    done("trace", run, "--inputs", inputs, "--output", run / "trace.safetensors", *more)
    return load_file(run / "trace.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name if name in ("a", "e3", "e6") else slow(name) for name in VARIANTS])
def test_every_stored_number_comes_out_again(backbone: Path, tmp_path: Path, variant: str) -> None:
    done(
        "import-lst",
        golden_kit.golden_file(variant),
        "--backbone",
        backbone,
        "--output",
        tmp_path / "run",
        *FLAGS.get(variant, ()),
    )
    found = trace(tmp_path / "run", golden_kit.inputs_file(), "--beams", 4)
    stored = golden_kit.tensors(variant)
    expected = {name: tensor for name, tensor in stored.items() if name.startswith(("act.", "out."))}
    assert (
        len(expected) >= 3 * kept(variant) + 7
    )  # a rung's three; first downsamples, final norms, upsample; logits, loss
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    for name in ("gen.greedy", "gen.beam4"):
        assert torch.equal(found[name], stored[name])


@pytest.mark.parametrize("rows", [220, 200])
def test_every_stored_number_of_images_comes_out_again(tmp_path: Path, rows: int) -> None:
    """With the T5 as it is in the checkpoint, and without the rows that were added to its vocabulary."""
    backbone, run = golden_kit.make_visual_backbone(tmp_path / "t5", rows), tmp_path / "run"
    [entry] = golden_visual.manifest()["files"].values()
    settings = entry["settings"] | golden_visual.manifest()["vis"]
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    imported = import_lst(golden_visual.FILE, backbone, run, "--settings", tmp_path / "settings.json")
    assert imported.document["side"]["visual"]["tokens"] == 4
    assert "it can be traced, but neither evaluated nor served yet" in imported.err
    found = trace(run, golden_visual.FOLDER / "inputs.safetensors", "--max-new-tokens", 11, "--beams", 5)
    for name, tensor in golden_visual.tensors().items():
        if name.startswith(("act.", "out.")):
            assert_close(found[name], tensor, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
        elif name.startswith("gen."):
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("variant", ["b2", "e3", "e5", "e6"])
def test_their_settings_file_says_it_too(backbone: Path, tmp_path: Path, variant: str) -> None:
    settings = golden_kit.settings(variant)
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    more = ("--settings", tmp_path / "settings.json")
    side = import_lst(golden_kit.golden_file(variant), backbone, tmp_path / "run", *more).document["side"]
    assert (side["reduction"], side["gate"], side["gate_temperature"]) == (settings["r"], settings["use_gate"], 0.1)
    assert (side["mix_after"], side["merge_last"]) == (settings["add_residual_after"], settings["merge_last"])
    assert side["decoder_layers"] == (settings["decoder_side_layers"] or [0, 1, 2, 3])


@pytest.mark.parametrize(
    "form", ["side.safetensors", "side.bin", "whole.bin", "module.pt", "state_dict.pt", "model.pt"]
)
def test_every_kind_of_file(backbone: Path, tmp_path: Path, form: str) -> None:
    stem, _, ending = form.partition(".")
    named = golden_kit.side_tensors("b") if stem == "side" else golden_kit.whole_model("b")
    if stem == "module":
        named = {f"module.{name}": tensor for name, tensor in named.items()}
    wrapped = {stem: named, "epoch": 3} if stem in ("state_dict", "model") else named
    if ending == "safetensors":
        save_file(named, tmp_path / form)
    else:
        torch.save(wrapped, tmp_path / form)
    document = import_lst(tmp_path / form, backbone, tmp_path / "run").document
    in_file = len(golden_kit.whole_model("b")) - len(golden_kit.side_tensors("b"))
    assert document["backbone_tensors"] == (0 if stem == "side" else in_file)
    side = load_side(tmp_path / "run" / "side_network.safetensors", load_backbone(backbone).config)
    query = golden_kit.side_tensors("b")["encoder.side_block.3.layer.0.SelfAttention.q.weight"]
    assert torch.equal(side.state_dict()["encoder.rungs.1.block.attention.q.weight"], query)


def test_a_resized_vocabulary_is_the_same_backbone(backbone: Path, tmp_path: Path) -> None:
    """The authors cut the embeddings to the tokenizer's size."""
    whole = golden_kit.whole_model("b")
    for name in ("shared.weight", "lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        if name in whole:
            whole[name] = whole[name][:190].clone()
    torch.save(whole, tmp_path / "whole.bin")
    assert import_lst(tmp_path / "whole.bin", backbone, tmp_path / "run").document["backbone_tensors"] > 0


def test_another_backbone_is_refused(backbone: Path, tmp_path: Path) -> None:
    for name in (
        "shared.weight",
        "decoder.block.2.layer.1.EncDecAttention.k.weight",
        "encoder.final_layer_norm.weight",
    ):
        whole = golden_kit.whole_model("b")
        whole[name] = whole[name].clone()
        whole[name].view(-1)[5] += 1e-3
        torch.save(whole, tmp_path / "whole.bin")
        mistake = sidecast(*words(tmp_path / "whole.bin", backbone, tmp_path / "run")).mistake
        assert "belongs to another backbone: its " in mistake
    assert not (tmp_path / "run").exists()


def words(checkpoint: Path, backbone: Path, run: Path) -> tuple[object, ...]:
    return "import-lst", checkpoint, "--backbone", backbone, "--output", run


@pytest.mark.parametrize(
    ("variant", "flags", "message"),
    [
        ("e3", "", "the checkpoint holds no gates"),
        ("e3", "--gate learnable", "gate learnable is claimed, and the checkpoint has no side_gate_params"),
        ("e3", "--gate fixed", "needs --gate-start, its logit"),
        ("a", "--gate none", "gate none is claimed, and the checkpoint says learnable (side_gate_params)"),
        ("e4", "--gate none", "gate none is claimed, and the checkpoint says one"),
        ("b", "--encoder-layers 1,2", "encoder layers 1,2 are claimed, and the checkpoint has 1,3"),
        ("b", "--decoder-layers none", "decoder layers none are claimed, and the checkpoint has 1,3"),
        (
            "b",
            "--decoder-layers 3,1",
            "decoder layer 3 is listed first, and the checkpoint's relative bias is layer 1's",
        ),
        ("b", "--gate-temperature 0", "gate_temperature must be > 0, got 0.0"),
        ("b", "--head linear", "'linear' is not 'text'"),
        ("b", "--task sst3", "no built-in task 'sst3'"),
        ("b", "--task stsb", "head must be linear, attention or mlp for regression, got 'text'"),
        ("b", "--settings @/nothing.json", "--settings @/nothing.json does not read as JSON"),
        ("b", "--settings @/list.json", "must hold a JSON object"),
        ("b", "--settings @/r4.json", "r 4 is claimed, and the checkpoint's widths are those of r 8"),
        ("b", "--reduction 4", "r 4 is claimed, and the checkpoint's widths are those of r 8"),
        ("b", "--settings @/gates.json", "the settings' use_gate must be one of learnable, none, one"),
        ("b", "--settings @/manifest.json", "the settings hold none of add_bias_sampling, add_residual_after"),
        ("b", "--settings @/gate.json", "the settings' use_gate must be one of learnable, none, one"),
        ("b", "--settings @/late.json --mix-after", "mix_after is given twice, as True and as False; give one"),
        ("b", "--settings @/merge.json", "merge_last True is claimed, and the checkpoint says False"),
        ("b", "--settings @/adapters.json", "that is more than a side network"),
    ],
)
def test_a_contradiction_is_one_line(backbone: Path, tmp_path: Path, variant: str, flags: str, message: str) -> None:
    documents = {
        "list": [],
        "r4": {"r": 4},
        "gate": {"use_gate": "cosine"},
        "gates": {"use_gate": ["one"]},
        "manifest": {"settings": {"use_gate": "one"}},
        "late": {"add_residual_after": False},
        "merge": {"merge_last": True},
        "adapters": {"train_task_adapters": True},
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    more = [word.replace("@", str(tmp_path)) for word in flags.split()]
    ran = sidecast(*words(golden_kit.golden_file(variant), backbone, tmp_path / "run"), *more)
    assert message.replace("@", str(tmp_path)) in ran.mistake
    assert not (tmp_path / "run").exists()


def test_imported_twice_it_is_the_same_run(backbone: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert import_lst(golden_kit.golden_file("b"), backbone, tmp_path / "run").code == 0
    other = sidecast(*words(golden_kit.golden_file("b2"), backbone, tmp_path / "run"))
    assert "holds a run with another made, side, weights; choose another --output or delete it" in other.mistake


def test_without_a_tokenizer_it_says_what_can_be_done(backbone: Path, tmp_path: Path) -> None:
    ran = done(*words(golden_kit.golden_file("b"), backbone, tmp_path / "my imported.run"))
    assert "r 8, encoder layers 1,3, decoder layers 1,3, gate learnable at temperature 0.1, text head" in ran.out
    assert "is ready: sidecast trace" in ran.out
    [line] = ran.err.splitlines()
    assert "has no tokenizer, so this run can be traced, but neither evaluated nor served" in line
    manifest = json.loads((tmp_path / "my imported.run" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["task"], manifest["spec"]["kind"]) == ("my-imported-run", "text")
    assert (manifest["tokenizer_fingerprint"], manifest["examples"], manifest["metrics"]) == ("none", [], {})
