"""Estimates the memory of one pass, before it is run. Knows shapes only.

What grows with the square of a text's length is attention's bias, one number for each row, head and pair of tokens.
"""

from ladder.config import BackboneConfig

BIASES = 2
"""Of that size at a time: while one is made it is there twice, later a layer may hold its scores."""
POSITION_BYTES = 32
"""Bytes for each pair of tokens while their distances are sorted into buckets."""
WIDTHS = 6
"""Tensors of the backbone's width that one block holds at a time: norm, query, keys, values, output, sum."""


def pass_bytes(config: BackboneConfig, rows: int, tokens: int, itemsize: int) -> int:
    """Bytes that a pass over `rows` inputs of up to `tokens` tokens needs at a time, weights not counted.

    Args:
        rows: of the largest computation: inputs, or rows of side networks.
        itemsize: bytes of a number.
    """
    pairs = tokens * tokens
    attention = BIASES * rows * config.num_heads * pairs * itemsize + POSITION_BYTES * pairs
    taps = config.num_layers + 2
    width = (taps + WIDTHS) * config.d_model + 2 * config.d_ff
    return attention + rows * tokens * width * itemsize
