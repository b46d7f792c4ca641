"""An attention head: what its queries find, by hand."""

import math

import torch
from torch.testing import assert_close

from ladder.config import BackboneConfig, SideConfig
from ladder.side import SideNetwork
from ladder.side.attention_head import QUERIES, attended, attention_features

TINY = BackboneConfig(d_model=16, d_kv=4, d_ff=32, num_heads=2, num_layers=1, num_decoder_layers=1, vocab_size=10)


def test_a_querys_weights_are_the_softmax_over_the_tokens_of_a_text() -> None:
    state = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0], [5.0, 7.0]]])
    scores = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0], [50.0, 50.0], [0.0, 1.0]]])  # 3 to 1, and 1 to 1
    inside = torch.tensor([[[True, True, False, False], [False, False, False, True], [False] * 4]])
    found = attended(state, scores, inside)
    assert_close(found, torch.tensor([[[[0.75, 0.25], [0.5, 0.5]], [[5.0, 7.0], [5.0, 7.0]], [[0.0, 0.0]] * 2]]))
    assert attention_features(found[:, :2], pair=False).shape == (1, 8)
    assert attention_features(found[:, :2], pair=True)[0, 8:12].tolist() == [4.25, 6.75, 4.5, 6.5]  # |a - b|


def test_queries_of_zeros_read_the_mean_and_padding_changes_nothing() -> None:
    side = SideNetwork(SideConfig(reduction=2, head="attention", outputs=3), TINY).eval()
    memory, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    outputs = side.read(memory, mask)
    assert_close(side.read(memory.roll(2, 1), mask.roll(2, 1)), outputs)
    assert_close(side.read(memory[:1, :3], mask[:1, :3]), outputs[:1])
    with torch.no_grad():
        side.head.queries.weight.zero_()
    means = torch.stack([memory[0, :3].mean(0), memory[1].mean(0)])
    assert_close(side.read(memory, mask), side.head.out(means.repeat(1, QUERIES)))
