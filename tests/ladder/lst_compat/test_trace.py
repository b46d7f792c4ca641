"""Tracing: the plain path's numbers under the right names, and inputs that cannot be, each in one line."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from ladder import SideConfig, SideNetwork, load_backbone
from ladder.errors import InputsError
from ladder.lst_compat.inputs import make_inputs, read_inputs
from ladder.lst_compat.trace import trace
from ladder.side.network import forward


@pytest.fixture(scope="module")
def backbone(tiny_t5: Path):
    return load_backbone(tiny_t5)


IDS = torch.tensor([[5, 6, 7, 1], [9, 1, 0, 0]])
MASK = (IDS != 0).long()
NEAR = {"atol": 1e-4, "rtol": 1e-5}
"""What a trace may differ by from the same pass computed in other parts."""
LABELS = torch.tensor([[8, 1], [1, -100]])


def make_side(backbone, **changes: object) -> SideNetwork:
    torch.manual_seed(3)
    side = SideNetwork(SideConfig(reduction=2, **changes), backbone.config)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in side.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return side.eval()


def traced(backbone, side: SideNetwork, **more: object):
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS}
    return trace(backbone, side, make_inputs(given, backbone.config), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("mix_after", [False, True])
@pytest.mark.parametrize("gate", ["learnable", "none", "fixed"])
def test_states_are_what_the_gates_make_of_them(backbone, mix_after: bool, gate: str) -> None:
    side = make_side(backbone, encoder_layers=(0, 2), decoder_layers=(1,), mix_after=mix_after, gate=gate)
    found = traced(backbone, side)
    state = found["act.encoder.side_first_downsample.out"]
    for layer in (0, 2):
        rung = f"act.encoder.side_{{}}.{layer}"
        down, block = found[rung.format("downsamples") + ".out"], found[rung.format("block") + ".out"]
        keep = found.get(rung.format("gate"))

        def mix(side: torch.Tensor, down: torch.Tensor = down, keep: torch.Tensor | None = keep) -> torch.Tensor:
            return side + down if keep is None else keep * side + (1 - keep) * down

        assert_close(found[rung.format("block") + ".in"], state if mix_after else mix(state), **NEAR)
        state = mix(block) if mix_after else block
        assert_close(found[rung.format("state") + ".out"], state, **NEAR)
    assert (gate == "none") == ("act.encoder.side_gate.0" not in found)
    decoder_ids = torch.tensor([[0, 8], [0, 1]])
    assert_close(found["out.logits"], forward(backbone, side, IDS, MASK.bool(), decoder_ids).detach(), **NEAR)
    picked = found["out.logits"].log_softmax(-1)[[0, 0, 1], [0, 1, 0], [8, 1, 1]]
    assert_close(found["out.loss"], -picked.mean()[None], **NEAR)


def test_taps_are_the_backbones(backbone) -> None:
    found = traced(backbone, make_side(backbone))
    taps = backbone.encode(IDS, MASK.bool())
    assert_close(found["act.encoder.block.1.out"], taps.blocks[1], **NEAR)
    assert_close(found["act.encoder.embeds"], taps.embeddings, **NEAR)
    assert_close(found["act.encoder.final_layer_norm.out"], taps.final, **NEAR)
    assert found["act.decoder.block.1.out"].shape == (2, 2, 32)


@pytest.mark.parametrize(("head", "outputs"), [("linear", 3), ("mlp", 1)])
def test_a_head_of_its_own_has_outputs_and_no_decoder(backbone, head: str, outputs: int) -> None:
    found = traced(backbone, make_side(backbone, head=head, outputs=outputs))
    assert found["out.head"].shape == (2, outputs)
    assert not any("decoder" in name or name.startswith("gen.") or name == "out.logits" for name in found)


def test_without_labels_the_decoder_reads_its_start_token(backbone) -> None:
    side = make_side(backbone)
    found = trace(backbone, side, make_inputs({"input_ids": IDS}, backbone.config), max_new_tokens=0)
    mask, start = torch.ones_like(IDS, dtype=torch.bool), torch.zeros(2, 1, dtype=torch.long)
    assert_close(found["out.logits"], forward(backbone, side, IDS, mask, start).detach(), **NEAR)
    assert not {"out.loss", "gen.greedy"} & found.keys()


def test_decoded_tokens_begin_with_the_start_token_and_end_where_they_end(backbone) -> None:
    found = traced(backbone, make_side(backbone), max_new_tokens=4, beams=2)
    for name in ("gen.greedy", "gen.beam2"):
        assert found[name].shape[0] == 2
        assert found[name].shape[1] <= 5
        assert (found[name][:, 0] == 0).all()


def test_nothing_is_left_behind_in_the_side_network(backbone) -> None:
    side = make_side(backbone)
    traced(backbone, side)
    assert not any(module._forward_hooks for module in side.modules())


def test_a_trace_is_a_file(backbone, tmp_path: Path) -> None:
    found = traced(backbone, make_side(backbone))
    save_file(found, tmp_path / "trace.safetensors")
    assert load_file(tmp_path / "trace.safetensors").keys() == found.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None}, "input_ids is missing: token ids, (rows, tokens)"),
        ({"input_ids": IDS[0]}, "input_ids must be whole numbers of shape (rows, tokens), got torch.int64 (4,)"),
        ({"input_ids": IDS.float()}, "got torch.float32 (2, 4)"),
        ({"input_ids": IDS[:, :0]}, "got torch.int64 (2, 0)"),
        ({"input_ids": IDS.bool()}, "got torch.bool (2, 4)"),
        ({"input_ids": IDS + 293}, "input_ids[0, 2] must be within 0 and 299, got 300"),
        ({"input_ids": IDS - 1}, "input_ids[1, 2] must be within 0 and 299, got -1"),
        ({"attention_mask": MASK[:, :3]}, "attention_mask must be ones and zeros (whole numbers) of shape (2, 4)"),
        ({"attention_mask": MASK * 2}, "attention_mask must be ones and zeros"),
        ({"attention_mask": MASK.float()}, "got torch.float32 (2, 4)"),
        ({"attention_mask": MASK * torch.tensor([[1], [0]])}, "attention_mask leaves no token in row 1"),
        ({"labels": LABELS[:1]}, "labels has 1 rows, and input_ids 2"),
        ({"labels": LABELS - 100}, "labels[0, 0] must be within 0 and 299, or -100, got -92"),
        ({"labels": torch.full_like(LABELS, -100)}, "labels has no label: all are -100"),
        ({"labels": LABELS.double()}, "labels must be whole numbers"),
    ],
)
def test_inputs_that_cannot_be(backbone, tmp_path: Path, change: dict, message: str) -> None:
    given = {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS} | change
    save_file({name: t.contiguous() for name, t in given.items() if t is not None}, tmp_path / "inputs.safetensors")
    with pytest.raises(InputsError) as caught:
        read_inputs(tmp_path / "inputs.safetensors", backbone.config)
    assert message in str(caught.value)


def test_more_tokens_than_the_backbone_has_positions(backbone) -> None:
    with pytest.raises(InputsError, match="input_ids has 4 tokens a row, and this backbone reads 3"):
        make_inputs({"input_ids": IDS}, replace(backbone.config, max_positions=3))


def test_a_file_that_is_none(backbone, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello", encoding="utf-8")
    for name in ("text", "nothing"):
        with pytest.raises(InputsError, match="is no whole safetensors file"):
            read_inputs(tmp_path / name, backbone.config)
