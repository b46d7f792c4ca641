"""Our side network equals the authors' stored numbers: activations, logits, loss, gradients, greedy output."""

from copy import deepcopy
from hashlib import sha256

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from ladder import BackbonePass, Generate, Generation
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.side.network import forward
from tests.exact import float64
from tests.ladder import golden
from tests.ladder.oracle import Oracle
from tests.marks import slow
from tests.paths import GOLDEN

FEW = [name if name in ("a", "b2", "e3", "e5", "e6") else slow(name) for name in golden.VARIANTS]
"""A variant of each kind of side network; the fast suite compares the activations and gradients of all."""


@pytest.fixture(scope="module", params=golden.VARIANTS)
def case(request: pytest.FixtureRequest):
    return golden.load_backbone(), golden.load(request.param), golden.inputs()


def test_the_stored_files_are_those_that_were_made():
    lines = (GOLDEN / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    digests = {name: digest for digest, name in (line.split() for line in lines)}
    found = [path for folder in ("t5", "vl") for path in (GOLDEN / folder).iterdir()]
    assert {path.relative_to(GOLDEN).as_posix(): sha256(path.read_bytes()).hexdigest() for path in found} == digests


def test_relative_buckets_equal_the_tables():
    from ladder.backbone.layers import relative_bucket

    inputs = golden.inputs()
    for direction, bidirectional in (("bidirectional", True), ("causal", False)):
        ours = relative_bucket(inputs["rel_positions"], 32, 128, bidirectional)
        assert torch.equal(ours, inputs[f"rel_bucket_{direction}"])


def test_backbone_alone_equals_its_stored_logits():
    backbone, inputs = golden.load_backbone(), golden.inputs()
    mask = inputs["attention_mask"].bool()
    taps = backbone.encode(inputs["input_ids"], mask)
    state = backbone.decode(golden.teacher_forcing(inputs["labels"]), taps.final, mask).final
    stored = golden.load_file(golden.FOLDER / "backbone_out.safetensors")
    assert_close(backbone.logits(state), stored["backbone.logits"], atol=1e-4, rtol=0)


def test_every_activation_and_the_logits(case):
    backbone, stored, inputs = case
    seen: dict[str, torch.Tensor] = {}
    watch_activations(stored.side, seen)
    logits = forward(backbone, stored.side, inputs["input_ids"], inputs["attention_mask"].bool(), decoder_ids(inputs))
    assert_close(logits, stored.tensors["out.logits"], atol=1e-4, rtol=0)
    checked = 0
    for name, expected in stored.group("act.").items():
        if name in seen:
            assert_close(seen[name], expected, atol=1e-4, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
            checked += 1
    kept = len(stored.side.encoder.layers) + len(stored.side.decoder.layers)
    assert checked == 3 * kept + 5  # in, out, downsample of each rung; first downsamples, final norms, upsample


def test_loss_and_gradients(case):
    """In float64, so that what differs is the authors' rounding alone; then in float32, by each gradient's norm."""
    backbone, stored, inputs = case
    expected = stored.weights("grad.")
    with float64():
        loss, gradients = gradients_of(deepcopy(backbone).double(), deepcopy(stored.side).double(), inputs)
    assert_close(loss[None].float(), stored.tensors["out.loss"], atol=1e-5, rtol=0)
    for name, tensor in gradients.items():
        assert_close(
            tensor.float(), expected[name], atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    loss, gradients = gradients_of(backbone, stored.side, inputs)
    assert_close(loss[None], stored.tensors["out.loss"], atol=1e-5, rtol=0)
    for name, tensor in gradients.items():
        assert (tensor - expected[name]).norm() <= max(1e-6, 1e-5 * expected[name].norm()), name


def gradients_of(backbone, side, inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and its gradient of each parameter."""
    given = BackbonePass(backbone, backbone.encode(inputs["input_ids"], inputs["attention_mask"].bool()))
    loss = Generate(max_new_tokens=1, decode=str).loss(given, side, inputs["labels"])
    side.zero_grad()
    loss.backward()
    return loss.detach(), {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in side.named_parameters()
    }


@pytest.mark.parametrize("case", FEW, indirect=True)
def test_greedy_output_cached_and_not(case):
    backbone, stored, inputs = case
    mask = inputs["attention_mask"].bool()
    taps = backbone.encode(inputs["input_ids"], mask)
    expected = stored.tensors["gen.greedy"]
    [cached] = generate(backbone, [Segment(side=stored.side, taps=taps, limit=13)])
    for ours, theirs in zip(cached, expected.tolist(), strict=True):
        assert list(ours) == theirs[1 : 1 + len(ours)]
        assert len(ours) == 13 or theirs[1 + len(ours)] == 1
    ids = torch.zeros(len(mask), 1, dtype=torch.long)
    for _ in range(13):
        logits = forward(backbone, stored.side, inputs["input_ids"], mask, ids)
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    done = ((ids == 1).cumsum(1) - (ids == 1).int()) > 0
    assert torch.equal(ids.masked_fill(done, 0)[:, : expected.shape[1]], expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW, indirect=True)
def test_beam_output(case):
    """The goldens are transformers 4.6's, whose rules differ from 5's; of 36 rows, 4 come out otherwise (e3, e6)."""
    backbone, stored, inputs = case
    mask = inputs["attention_mask"].bool()
    taps = backbone.encode(inputs["input_ids"], mask)
    ways = [Generation(num_beams=4, legacy_beams=legacy) for legacy in (True, False)]
    segments = [Segment(side=stored.side, taps=taps, limit=13, decoding=way) for way in ways]
    legacy, current = generate(backbone, segments)
    for ours, theirs in zip(legacy, stored.tensors["gen.beam4"].tolist(), strict=True):
        assert list(ours) == theirs[1 : 1 + len(ours)]
        assert len(ours) == 13 or theirs[1 + len(ours)] == 1
    uncached = Oracle(backbone, stored.side).tokens(inputs["input_ids"].masked_fill(~mask, 0), 13, num_beams=4)
    assert current == uncached


def decoder_ids(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return golden.teacher_forcing(inputs["labels"])


def watch_activations(side: torch.nn.Module, seen: dict[str, torch.Tensor]) -> None:
    """Store what flows through `side` under the authors' names."""

    def keep(name: str, value: torch.Tensor) -> None:
        seen[name] = value.detach()

    def keep_both(name: str, before: torch.Tensor, after: torch.Tensor) -> None:
        keep(name + ".in", before)
        keep(name + ".out", after)

    for stack_name, stack in (("encoder", side.encoder), ("decoder", side.decoder)):
        stack.first_downsample.register_forward_hook(
            lambda _m, _i, out, n=stack_name: keep(f"{n}.side_first_downsample.out", out)
        )
        stack.final_norm.register_forward_hook(
            lambda _m, _i, out, n=stack_name: keep(f"{n}.final_side_layer_norm.out", out)
        )
        for layer, rung in zip(stack.layers, stack.rungs, strict=True):
            name = f"{stack_name}.side_block.{layer}"
            down = f"{stack_name}.side_downsamples.{layer}.out"
            rung.downsample.register_forward_hook(lambda _m, _i, out, n=down: keep(n, out))
            rung.block.register_forward_hook(lambda _m, args, out, n=name: keep_both(n, args[0], out))
    side.upsample.register_forward_hook(lambda _m, _i, out: keep("side_final_upsample.out", out))


def test_cross_entropy_ignores_padding():
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[1, 2, -100], [4, -100, -100]])
    expected = F.cross_entropy(torch.stack([logits[0, 0], logits[0, 1], logits[1, 0]]), torch.tensor([1, 2, 4]))
    assert_close(F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100), expected)
