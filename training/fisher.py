"""Fisher importances: how much each weight of a backbone matters to a task's rows.

The empirical Fisher information's diagonal, as LST's code takes it: for each row alone, the gradient of the backbone's
own teacher-forced loss (mean cross entropy per target token), squared, summed over rows. Float32, no dropout.

Of a row with images, the backbone's encoder reads their tokens after the text, as CLIP-T5's does, embedded by the side
network's visual embedding as it starts. (The LST authors' Fisher information is that of the text alone.)

Rows run in batches. A row's gradient of a matrix is the product of what entered the matrix and of the gradient of what
left it, and autograd computes both for a whole batch; the weights themselves stay frozen and get no gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from ladder import Backbone, Images, SideConfigError
from ladder.answering import IGNORED
from ladder.backbone import full_precision, full_weight
from ladder.side import matrices
from ladder.side.visual import VisualEmbedding

BATCH_TOKENS = 256
"""Most padded tokens in one batch: bounds the memory, and on a CPU larger ones are no faster."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row for the backbone: token ids that end in the end token."""

    source: tuple[int, ...]
    target: tuple[int, ...]
    images: Tensor | None = field(default=None, compare=False)
    """(I, L, F): features of its images; None: it has none."""


def fisher(
    backbone: Backbone,
    samples: Sequence[Sample],
    *,
    visual: VisualEmbedding | None = None,
    encoder_only: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """Sum over `samples` of each weight's squared gradient, as `ladder.side.structural_init.Importance` wants it.

    Args:
        visual: embeds the samples' images; None: they have none.
        encoder_only: leave the decoder's matrices out, for side networks without a decoder.
        progress: called with samples done and samples in all.

    Raises:
        SideConfigError: a backbone that cannot say what its loss is, or cannot be pruned.
    """
    check_has_loss(backbone)
    full = full_precision(backbone)
    sums = _Sums(full, ("encoder",) if encoder_only else ("encoder", "decoder"), visual)
    weights = {name: parameter.detach().float() for name, parameter in full.named_parameters()}
    done = 0
    with torch.enable_grad(), sums.watching():
        for batch in _batches(samples, 0 if visual is None else visual.config.tokens):
            sums.add_batch(weights, batch)
            done += len(batch)
            if progress is not None:
                progress(done, len(samples))
    return sums.by_name


def check_has_loss(backbone: Backbone) -> None:
    """Raises SideConfigError where a backbone cannot say targets."""
    if not backbone.has_decoder:
        raise SideConfigError("Fisher information needs a backbone's decoder, and this one has none: use magnitude")


class _Sums:
    """Squared gradients so far, filled by hooks in the backbone while its backward pass runs."""

    def __init__(self, backbone: Backbone, stacks: Sequence[str], visual: VisualEmbedding | None) -> None:
        self.backbone = backbone
        self.visual = visual
        self.matrices = dict(matrices(backbone, stacks))
        self.by_name = {name: torch.zeros_like(full_weight(module)) for name, module in self.matrices.items()}
        for table in ("shared", "head"):
            self.by_name[table] = torch.zeros(backbone.config.d_model, device=backbone.device)
        self.is_tied = torch.equal(backbone.shared, backbone.head)
        self.entered: list[Tensor] = []
        """(B, S + N, D), N visual tokens, and (B, T, D): what the encoder's and the decoder's first blocks read in the
        pass now running."""
        self.state = torch.empty(0)
        """(B, T, D): what the LM head reads."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks in the backbone, gone afterwards."""
        backbone = self.backbone
        with ExitStack() as hooks:
            for name, module in self.matrices.items():
                hooks.callback(module.register_forward_hook(self._watch(name)).remove)
            for stack in (backbone.encoder, backbone.decoder):
                hooks.callback(stack.blocks[0].register_forward_pre_hook(self._enter).remove)
            hooks.callback(backbone.decoder.final_norm.register_forward_hook(self._leave).remove)
            yield

    def add_batch(self, weights: dict[str, Tensor], batch: Sequence[Sample]) -> None:
        """Run `batch`, whose rows have equally many images, forward and backward, once."""
        device = self.backbone.device
        config = self.backbone.config
        ids = _pad([row.source for row in batch], device)
        labels = _pad([row.target for row in batch], device)
        mask = ids != IGNORED
        ids = ids.masked_fill(~mask, config.pad_token_id)
        decoder_ids = F.pad(labels, (1, -1), value=config.decoder_start_token_id)
        decoder_ids = decoder_ids.masked_fill(decoder_ids == IGNORED, config.pad_token_id)
        self.entered = []
        logits = functional_call(self.backbone, weights, (ids, mask, decoder_ids, self._embed_images(batch)))
        logits.retain_grad()
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        (losses.sum(1) / (labels != IGNORED).sum(1)).sum().backward()  # a row's loss depends on that row alone
        assert logits.grad is not None
        self._add_tables(torch.cat([ids, decoder_ids], 1), logits.grad)

    @torch.no_grad()
    def _embed_images(self, batch: Sequence[Sample]) -> Tensor | None:
        images = [sample.images for sample in batch if sample.images is not None]
        if self.visual is None or not images:
            return None
        return self.visual(Images.of(torch.stack(images).to(self.backbone.device)))

    def _enter(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0].detach().requires_grad_()  # the first tensor that has a gradient
        self.entered.append(hidden)
        return (hidden, *arguments[1:])

    def _leave(self, _: nn.Module, __: tuple[Tensor, ...], state: Tensor) -> None:
        config = self.backbone.config
        self.state = state.detach() * (config.d_model**-0.5 if config.scale_output else 1)

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def watch(_: nn.Module, arguments: tuple[Tensor, ...], left: Tensor) -> None:
            entered = arguments[0].detach()
            left.register_hook(lambda gradient: self._add(name, entered, gradient))

        return watch

    def _add(self, name: str, entered: Tensor, gradient: Tensor) -> None:
        """One matrix's squares: `entered` it (B, S, in), and `gradient` came back to what left it (B, S, out)."""
        total = self.by_name[name]
        for row in range(len(entered)):  # a single row's gradient fits a core's cache, a batch of them does not
            single = gradient[row].t() @ entered[row]
            total.addcmul_(single, single)

    def _add_tables(self, tokens: Tensor, at_logits: Tensor) -> None:
        """Embeddings and LM head: squares summed over the vocabulary, without ever a gradient of its size.

        Args:
            tokens: (B, N), all that was embedded, the encoder's then the decoder's.
            at_logits: (B, T, V), the logits' gradients.
        """
        # a row's gradient of the embeddings has a row for each token; squared it is a sum over pairs of equal tokens
        encoder, decoder = (hidden.grad for hidden in self.entered)
        assert encoder is not None
        assert decoder is not None
        texts = tokens.shape[1] - decoder.shape[1]
        embedded = torch.cat([encoder[:, :texts], decoder], 1)
        equal = (tokens[:, :, None] == tokens[:, None, :]).float()
        shared = (embedded * (equal @ embedded)).sum((0, 1))
        # that of the head is at_logits^T state; squared, a sum over pairs of positions
        head = (self.state * (at_logits @ at_logits.transpose(1, 2) @ self.state)).sum((0, 1))
        if self.is_tied:
            at_tokens = at_logits.gather(2, tokens[:, None, :].expand(-1, at_logits.shape[1], -1))
            both = (embedded * (at_tokens.transpose(1, 2) @ self.state)).sum((0, 1))
            shared = head = shared + 2 * both + head
        self.by_name["shared"] += shared
        self.by_name["head"] += head


def _pad(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=IGNORED).to(device)


def _batches(samples: Sequence[Sample], image_tokens: int) -> Iterator[list[Sample]]:
    """Rows of like lengths, at most BATCH_TOKENS padded tokens together (but one row at least).

    Rows of a batch have equally many images.
    """
    batch: list[Sample] = []
    longest = 0  # target so far; sources only grow
    for sample in sorted(samples, key=lambda sample: (_images(sample), len(sample.source), len(sample.target))):
        longest = max(longest, len(sample.target))
        tokens = len(sample.source) + _images(sample) * image_tokens + longest
        is_full = tokens * (len(batch) + 1) > BATCH_TOKENS
        if batch and (is_full or _images(sample) != _images(batch[0])):
            yield batch
            batch, longest = [], len(sample.target)
        batch.append(sample)
    if batch:
        yield batch


def _images(sample: Sample) -> int:
    return 0 if sample.images is None else len(sample.images)
