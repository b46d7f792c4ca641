"""A side network that reads images equals the authors' stored numbers of CLIP-T5, alone and stacked."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from ladder import Backbone, BackbonePass, Generate, SideBank, SideNetwork
from ladder.backbone import Images
from ladder.decoding.generate import generate
from ladder.decoding.segments import Segment
from ladder.decoding.settings import Generation
from ladder.lst_compat import Claims, import_side, read_checkpoint, read_inputs, trace
from ladder.side.network import forward
from tests.exact import float64
from tests.ladder import golden_visual as golden

NOT_RECORDED = ("w.", "grad.")


def test_all_that_is_stored_is_traced_and_equal():
    """Activations, logits, those of two images, losses; greedy and beam output token for token."""
    backbone = golden.load_backbone()
    inputs = read_inputs(golden.FOLDER / "inputs.safetensors", backbone.config)
    found = trace(backbone, golden.load_side(), inputs, max_new_tokens=11, beams=5)
    stored = {name: tensor for name, tensor in golden.tensors().items() if not name.startswith(NOT_RECORDED)}
    assert len(stored) == 31
    for name, expected in stored.items():
        if name.startswith("gen."):
            assert torch.equal(found[name], expected), name
        else:
            assert_close(found[name], expected, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_a_backbone_without_the_added_rows_gets_them_of_the_side_network():
    """20 rows of the vocabulary are in the checkpoint alone; logits have them."""
    whole = golden.load_backbone()
    backbone = Backbone(replace(whole.config, vocab_size=200), name="golden")
    fewer = {name: whole.state_dict()[name][:200] for name in ("shared", "head")}
    backbone.load_state_dict(whole.state_dict() | fewer)
    side = import_side(read_checkpoint(golden.FILE), backbone, Claims(visual_tokens=4)).side
    inputs = read_inputs(golden.FOLDER / "inputs.safetensors", backbone.config)
    found = trace(backbone, side, inputs, max_new_tokens=11)
    for name in ("out.logits", "out.nlvr_logits", "out.token_loss", "act.visual_embedding.out"):
        assert_close(found[name], golden.tensors()[name], atol=1e-5, rtol=0)
    assert torch.equal(found["gen.greedy"], golden.tensors()["gen.greedy"])
    assert backbone.shared.shape == (200, 64)


def test_loss_and_gradients():
    """In float64, so that what differs is the authors' rounding alone; then in float32, by each gradient's norm."""
    backbone, side = golden.load_backbone(), golden.load_side()
    expected = golden.weights(side, "grad.")
    with float64():
        images = golden.images()
        images = Images.of(images.features.double(), images.boxes.double())
        loss, gradients = gradients_of(deepcopy(backbone).double(), deepcopy(side).double(), images)
    assert_close(loss[None].float(), golden.tensors()["out.loss_per_sample_mean"], atol=1e-5, rtol=0)
    for name, tensor in gradients.items():
        assert_close(tensor.float(), expected[name], atol=1e-6, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    _, gradients = gradients_of(backbone, side, golden.images())
    assert len(gradients) == sum(name.startswith("grad.") for name in golden.tensors())
    for name, tensor in gradients.items():
        assert (tensor - expected[name]).norm() <= max(1e-6, 1e-5 * expected[name].norm()), name


def test_the_loss_of_texts_reads_the_images():
    backbone, side = golden.load_backbone(), golden.load_side()
    taps = replace(backbone.encode(golden.inputs()["input_ids"], golden.mask()), images=golden.images())
    loss = Generate(max_new_tokens=1, decode=str).loss(BackbonePass(backbone, taps), side, golden.inputs()["labels"])
    stored = golden.tensors()["out.token_loss"]
    assert_close(loss, stored.sum() / (golden.inputs()["labels"] != -100).sum(), atol=1e-5, rtol=0)


def gradients_of(backbone: Backbone, side: SideNetwork, images: Images) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over rows of each row's mean loss, and its gradient of each parameter."""
    labels = golden.inputs()["labels"]
    logits = forward(backbone, side, golden.inputs()["input_ids"], golden.mask(), golden.decoder_ids(), images)
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
    loss = (losses.view_as(labels).sum(1) / (labels != -100).sum(1)).mean()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in side.named_parameters()}


def test_stacked_with_others_it_is_the_same():
    backbone, side = golden.load_backbone(), golden.load_side()
    bank = SideBank(backbone)
    torch.manual_seed(0)
    other = deepcopy(side)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    stacked, beside = bank.add(side), bank.add(other)
    taps = backbone.encode(golden.inputs()["input_ids"], golden.mask())
    one, two = (replace(taps, images=images) for images in (golden.images(), golden.pairs()))
    decoder_taps = backbone.decode(golden.decoder_ids(), taps.final, taps.mask)
    logits = backbone.logits(stacked.decode(decoder_taps, stacked.encode(one), stacked.memory_mask(one)))
    assert_close(logits, golden.tensors()["out.logits"], atol=1e-4, rtol=0)
    first = backbone.decode(torch.zeros(3, 1, dtype=torch.long), taps.final, taps.mask)
    logits = backbone.logits(stacked.decode(first, stacked.encode(two), stacked.memory_mask(two)))
    assert_close(logits, golden.tensors()["out.nlvr_logits"], atol=1e-4, rtol=0)
    beams = Generation(num_beams=5, legacy_beams=True)
    ways = [(each, how) for each in (stacked, beside) for how in (Generation(), beams)]
    segments = [Segment(side=each, taps=one, limit=11, decoding=how) for each, how in ways]
    greedy, beam, *_ = generate(backbone, segments)
    for found, name in ((greedy, "gen.greedy"), (beam, "gen.beam5")):
        assert [list(row) for row in found] == golden.tensors()[name][:, 1:].tolist(), name
