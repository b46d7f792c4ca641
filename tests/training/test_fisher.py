"""Fisher importances of batches equal those of single rows, of transformers' gradients, and of the LST authors."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import T5ForConditionalGeneration

from ladder import SideNetwork, load_backbone
from ladder.backbone.families.t5 import backbone_name
from ladder.backbone.images import Images
from ladder.config import VisualConfig
from ladder.side.structural_init import initialize
from ladder.side.visual import VisualEmbedding
from tests import tiny
from tests.exact import float64
from tests.ladder import golden
from training.fisher import Sample, fisher

EXACT = {"rtol": 1e-6, "atol": 1e-12}
"""In float64, but for the sums over the vocabulary: those are rounded to float32 once a batch."""
SAMPLES = [
    Sample((70, 80, 90, 90, 1), (40, 1)),
    Sample((71, 1), (41, 42, 71, 1)),
    Sample((33, 34, 35, 36, 37, 38, 39, 1), (40, 1)),
    Sample((90, 80, 1), (43, 44, 1)),
]


@pytest.fixture(scope="module")
def backbone(tiny_t5):
    return load_backbone(tiny_t5)


def with_images(samples: list[Sample]) -> list[Sample]:
    """The first has no image, the second one, and so on, of four tokens."""
    torch.manual_seed(3)
    return [
        samples[0],
        *(replace(sample, images=torch.randn(1 + row % 2, 4, 6)) for row, sample in enumerate(samples[1:])),
    ]


def visual_embedding(backbone) -> VisualEmbedding:
    torch.manual_seed(4)
    embedding = VisualEmbedding(VisualConfig(features=6, images=2, tokens=4), backbone.config)
    embedding.reset()
    return embedding


def by_transformers(folder, samples: list[Sample], visual: VisualEmbedding | None = None) -> dict[str, torch.Tensor]:
    """One row after the other through Hugging Face's T5, with its own loss, in float64.

    Tokens of images follow the text's, and have no relative positions.
    """
    model = T5ForConditionalGeneration.from_pretrained(folder).double().eval()
    attention = model.encoder.block[0].layer[0].SelfAttention
    bias_of_text = attention.compute_bias
    sums = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}

    def bias(texts: int, queries: int, keys: int, **given) -> torch.Tensor:
        return torch.nn.functional.pad(bias_of_text(texts, texts, **given), (0, keys - texts, 0, queries - texts))

    for sample in samples:
        model.zero_grad()
        embedded = model.shared(torch.tensor([sample.source]))
        if sample.images is not None:
            embedded = torch.cat([embedded, visual(Images.of(sample.images[None])).detach()], 1)
        attention.compute_bias = partial(bias, len(sample.source))
        model(inputs_embeds=embedded, labels=torch.tensor([sample.target])).loss.backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                sums[name] += weight.grad.square()
    renamed = {ours: tensor for name, tensor in sums.items() if (ours := backbone_name(name))}
    head = renamed.get("head", renamed["shared"])
    return renamed | {"shared": renamed["shared"].sum(0), "head": head.sum(0)}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("reads_images", [False, True])
def test_equals_the_squared_gradients_of_transformers(tmp_path, tied, reads_images):
    kind = {"feed_forward_proj": "relu", "tie_word_embeddings": True} if tied else {}
    folder = tiny.make_t5(tmp_path / "t5", **kind)
    backbone = load_backbone(folder).double()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    samples = with_images(SAMPLES) if reads_images else SAMPLES
    visual = visual_embedding(backbone).double() if reads_images else None
    with float64():
        ours, theirs = fisher(backbone, samples, visual=visual), by_transformers(folder, samples, visual)
    assert len(ours) == 3 * (4 + (2 if tied else 3)) + 2 * (8 + (2 if tied else 3)) + 2
    for name, tensor in ours.items():
        assert_close(tensor.double(), theirs[name], **EXACT, msg=name)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(weight.requires_grad or weight.grad is not None for weight in backbone.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())


def test_batches_equal_single_rows_and_their_order_is_nothing(tiny_t5, monkeypatch):
    backbone = load_backbone(tiny_t5).double()
    samples = with_images(SAMPLES)
    visual = visual_embedding(backbone).double()
    with float64():
        together = fisher(backbone, samples[::-1], visual=visual)
        monkeypatch.setattr("training.fisher.BATCH_TOKENS", 1)
        alone = fisher(backbone, samples, visual=visual)
    for name, tensor in together.items():
        assert_close(tensor, alone[name], **EXACT, msg=name)


def test_float32_is_as_good_as_ten_thousand_roundings(tiny_t5, backbone):
    """A tensor's error, of its norm: some 1e-5 on the CPUs we know; a formula that is wrong is off by all of it."""
    found = fisher(backbone, SAMPLES)
    with float64():
        exact = fisher(load_backbone(tiny_t5).double(), SAMPLES)
    for name, tensor in exact.items():
        error = (found[name].double() - tensor.double()).norm()
        assert error <= 1e4 * torch.finfo(torch.float32).eps * tensor.norm(), name


def test_encoder_alone(backbone):
    everything, encoder = fisher(backbone, SAMPLES), fisher(backbone, SAMPLES, encoder_only=True)
    assert set(encoder) == {name for name in everything if not name.startswith("decoder.")}
    assert all(torch.equal(encoder[name], everything[name]) for name in encoder)


def test_progress_counts_rows(backbone, monkeypatch):
    monkeypatch.setattr("training.fisher.BATCH_TOKENS", 16)
    calls = []
    fisher(backbone, SAMPLES, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 4), (3, 4), (4, 4)]


def test_tokens_of_images_count_as_a_batch_s(backbone, monkeypatch):
    monkeypatch.setattr("training.fisher.BATCH_TOKENS", 40)
    samples = [replace(SAMPLES[0], images=torch.zeros(2, 4, 6))] * 4  # of 5 + 8 + 2 tokens
    calls = []
    fisher(backbone, samples, visual=visual_embedding(backbone), progress=lambda done, total: calls.append(done))
    assert calls == [2, 4]


def test_under_no_grad_and_in_bfloat16(tiny_t5):
    exact, coarse = load_backbone(tiny_t5), load_backbone(tiny_t5, dtype="bfloat16")
    exact.load_state_dict(coarse.state_dict())
    with torch.no_grad():
        rounded = fisher(coarse, SAMPLES)
    for name, tensor in fisher(exact, SAMPLES).items():
        assert_close(rounded[name], tensor, msg=name)


@pytest.fixture
def stored():
    """The authors' sums, and the backbone, its kink put where they found it, and rows that they are of.

    In row 3 one unit of one encoder block stands 4e-7 from ReLU's kink: rounding decides on which side it is, and so
    whether all that lies before it gets its gradient. Where the sums were made, it was off.
    """
    inputs = golden.inputs()
    rows = zip(inputs["fisher_input_ids"].tolist(), inputs["fisher_labels"].tolist(), strict=True)
    backbone = golden.load_backbone()

    def below_kink(_, __, out):
        near = torch.zeros_like(out, dtype=torch.bool)
        near[:, 8, 19] = out[:, 8, 19].abs() < 2e-6
        return out - 4e-6 * near

    hook = backbone.encoder.blocks[1].feed_forward.wi.register_forward_hook(below_kink)
    sums = {}
    for name, tensor in load_file(golden.FOLDER / "fisher_importance.safetensors").items():
        ours = backbone_name(name.removeprefix("fisher."))
        sums[ours] = tensor.sum(0) if ours == "shared" else tensor
    yield sums, backbone, [Sample(tuple(source), tuple(target)) for source, target in rows]
    hook.remove()


def test_equals_the_authors_sums(stored):
    sums, backbone, samples = stored
    ours = fisher(backbone, samples)
    for name in ours.keys() & sums.keys():
        assert_close(ours[name], sums[name], rtol=1e-4, atol=1e-5 * sums[name].max().item(), msg=name)
    assert len(ours.keys() & sums.keys()) == 4 * 6 + 4 * 10 + 1


def test_keeps_what_the_authors_keep(stored):
    _, backbone, samples = stored
    expected = golden.load("d").side
    side = SideNetwork(expected.config, backbone.config)
    initialize(side, backbone, fisher(backbone, samples), order="reference")
    for name, tensor in side.state_dict().items():
        if ".block." in name:
            assert torch.equal(tensor, expected.state_dict()[name]), name
