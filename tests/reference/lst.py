"""Our own slow and obvious Ladder Side-Tuning: one row at a time, loops, no batching.

Written from the paper and the notes on its code, for tests only. It reads a SideNetwork's weights by name and knows
nothing of its modules.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ladder import BackboneConfig, SideConfig


class SlowSide:
    """One side network over one row's taps."""

    def __init__(self, weights: dict[str, Tensor], config: SideConfig, backbone: BackboneConfig) -> None:
        self.w, self.config, self.backbone = weights, config, backbone
        self.heads, self.head_width = backbone.num_heads, backbone.d_kv // config.reduction

    def encode(self, embeddings: Tensor, blocks: list[Tensor], images: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        """(S, d) of one row without padding: embeddings (S, D), blocks' outputs (S, D) each.

        With images, features (L, F) and boxes (L, 4) of each, their tokens follow.
        """
        self.text = len(embeddings)
        embeddings = self._read(embeddings)
        tokens = [token for number, image in enumerate(images) for token in self._image(number, *image)]
        return self._stack("encoder", torch.stack([*embeddings, *tokens]), blocks, memory=None)

    def _image(self, number: int, features: Tensor, boxes: Tensor) -> list[Tensor]:
        """The embedded tokens (D,) of the image with this number."""
        wanted, edge = math.isqrt(self.config.visual.tokens), math.isqrt(len(features))
        embedded = []
        for token in range(wanted**2):
            (top, bottom), (left, right) = (cells(at, edge, wanted) for at in divmod(token, wanted))
            seen = [features[y * edge + x] for y in range(top, bottom) for x in range(left, right)]
            feature = torch.stack([max(column) for column in torch.stack(seen).unbind(1)])
            x1, x2, y1, y2 = boxes[token]
            box = torch.stack([x1, x2, y1, y2, (x2 - x1) * (y2 - y1)])
            embedded.append(
                self._norm("visual.features_norm", self._linear("visual.features", feature))
                + self._norm("visual.boxes_norm", self._linear("visual.boxes", box))
                + self.w["visual.numbers"][number]
                + self.w["visual.positions"][-1 - token]
            )
        return embedded

    def decode(self, embeddings: Tensor, blocks: list[Tensor], memory: Tensor) -> Tensor:
        """(T, D), upsampled."""
        return self._linear("upsample", self._stack("decoder", self._read(embeddings), blocks, memory))

    def _stack(self, name: str, embeddings: Tensor, blocks: list[Tensor], memory: Tensor | None) -> Tensor:
        layers = self.config.encoder_layers if name == "encoder" else self.config.decoder_layers
        side = self._linear(f"{name}.first_downsample", embeddings)
        for rung, layer in enumerate(layers or ()):
            where = f"{name}.rungs.{rung}"
            down = self._linear(f"{where}.downsample", self._read(blocks[layer]))
            side = side if self.config.mix_after else self._mix(where, side, down)
            side = self._block(name, f"{where}.block", side, memory)
            side = self._mix(where, side, down) if self.config.mix_after else side
        return self._norm(f"{name}.final_norm", side)

    def _read(self, tokens: Tensor) -> Tensor:
        """What downsamples read of the backbone's vectors (S, D)."""
        if self.config.tap_norm == "none":
            return tokens
        return torch.stack([token / math.sqrt(sum(float(x) ** 2 for x in token) / len(token)) for token in tokens])

    def _mix(self, where: str, side: Tensor, down: Tensor) -> Tensor:
        if self.config.gate == "none":
            return torch.cat([side[: len(down)] + down, side[len(down) :]])
        if self.config.gate == "one":
            return side
        if len(side) > len(down):  # tokens of images have no tap
            behind = side[len(down) :]
            if self.config.visual.damped:
                behind = self._mix(where, behind, torch.zeros_like(behind))
            return torch.cat([self._mix(where, side[: len(down)], down), behind])
        gate = 1 / (1 + torch.exp(-self.w[f"{where}.gate_logit"] / self.config.gate_temperature))
        return gate * side + (1 - gate) * down

    def _block(self, stack: str, where: str, side: Tensor, memory: Tensor | None) -> Tensor:
        normed = self._norm(f"{where}.attention_norm", side)
        side = side + self._attention(f"{where}.attention", normed, normed, stack)
        if memory is not None:
            normed = self._norm(f"{where}.cross_norm", side)
            side = side + self._attention(f"{where}.cross_attention", normed, memory, None)
        normed = self._norm(f"{where}.feed_norm", side)
        return side + self._feed_forward(f"{where}.feed_forward", normed)

    def _attention(self, where: str, queries: Tensor, source: Tensor, stack: str | None) -> Tensor:
        q, k, v = (self._linear(f"{where}.{part}", x) for part, x in (("q", queries), ("k", source), ("v", source)))
        out = torch.zeros_like(q)
        for head in range(self.heads):
            columns = slice(head * self.head_width, (head + 1) * self.head_width)
            for row in range(len(queries)):
                seen = range(row + 1) if stack == "decoder" else range(len(source))
                scores = [float(q[row, columns] @ k[key, columns]) + self._bias(stack, head, row, key) for key in seen]
                top = max(scores)
                weights = [math.exp(score - top) for score in scores]
                for key, weight in zip(seen, weights, strict=True):
                    out[row, columns] += weight / sum(weights) * v[key, columns]
        return self._linear(f"{where}.o", out)

    def _bias(self, stack: str | None, head: int, query: int, key: int) -> float:
        if stack is None or (stack == "encoder" and max(query, key) >= self.text):
            return 0.0
        config = self.backbone
        buckets, far = config.relative_attention_num_buckets, config.relative_attention_max_distance
        return float(
            self.w[f"{stack}.relative_bias.weight"][bucket(key - query, buckets, far, stack == "encoder"), head]
        )

    def _feed_forward(self, where: str, x: Tensor) -> Tensor:
        if self.backbone.feed_forward_proj == "relu":
            inner = self._linear(f"{where}.wi", x).clamp(min=0)
        else:
            gate = self._linear(f"{where}.wi_0", x)
            gelu = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
            inner = gelu * self._linear(f"{where}.wi_1", x)
        return self._linear(f"{where}.wo", inner)

    def _norm(self, where: str, x: Tensor) -> Tensor:
        return self.w[f"{where}.weight"] * x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-6)

    def _linear(self, where: str, x: Tensor) -> Tensor:
        bias = self.w.get(f"{where}.bias")
        return x @ self.w[f"{where}.weight"].T + (0 if bias is None else bias)


def cells(at: int, edge: int, wanted: int) -> tuple[int, int]:
    """The cells, first and one past the last, of `edge` that make number `at` of `wanted`; neighbours may share one."""
    return at * edge // wanted, -(-(at + 1) * edge // wanted)


def bucket(distance: int, buckets: int, far: int, bidirectional: bool) -> int:
    """Relative position bucket, one number at a time."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    return offset + min(
        buckets - 1, exact + int(math.log(distance / exact) / math.log(far / exact) * (buckets - exact))
    )
