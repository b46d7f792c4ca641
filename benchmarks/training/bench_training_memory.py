"""How much memory does a training step need, in the paper's settings: full fine-tuning, LST, LoRA and BitFit?

    python -m benchmarks.training.bench_training_memory

The shapes are the paper's: T5-base, T5-large and T5-3B with batches of 100 rows of 128 tokens; and CLIP-T5 on T5-base
with the batches of its four tasks, 20 tokens of text and 36 of each image. Nothing is computed: tensors have no data,
and `training.memory` counts the parameters, gradients, optimizer state and saved tensors of two steps, which are the
same numbers on every machine. So --rounds, --seconds, --seed, --threads, --quantize, --dtype and the backbone have no
effect. With `--device cuda` the steps are computed with random weights, and torch's own peak is reported too.

`live_gb` is measured in a second way: the most bytes of all tensors that exist at once, temporary results included.

- full: Hugging Face's T5, all weights trained; of CLIP-T5 the encoder reads the tokens of images too.
- LST: the loss and the step of `sidecast train`, taps computed in the step. Layers and r are the authors'.
- LST, taps kept: the encoder's taps come from memory; a batch's are on the device.
- LST, linear head: this project's usual side network for classification: a rung on every second block, no decoder.
- LST, bfloat16: the frozen backbone in bfloat16.
- LoRA: PEFT's, on Hugging Face's T5, rank 32 (150 for CLIP-T5) on q and v, as the paper's.
- BitFit: a bias for every linear layer of Hugging Face's T5 (the paper's has biases of norms too).

- GPU: dropout and attention save what a GPU's fused kernels do, counted without one (`harness.gpu_kernels`).

All use the same optimizer step, AdamW. A gigabyte is 10^9 bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from benchmarks.harness.cli import measuring
from benchmarks.harness.gpu_kernels import gpu_kernels
from benchmarks.harness.live_memory import LiveMemory
from benchmarks.harness.machine import look
from benchmarks.harness.peers import hush, peer
from benchmarks.harness.samples import (
    BenchmarkError,
    Column,
    Figures,
    Report,
    Samples,
    Spread,
    Variant,
    plain_errors,
    steps,
    take_turns,
)
from ladder import Backbone, BackbonePass, Images, SideNetwork, Taps
from ladder.answering import Classify, Generate
from ladder.config import BackboneConfig, SideConfig, VisualConfig
from ladder.side import NAMED
from ladder.side.visual import VisualEmbedding
from sidecast.cli.options import pick_device
from training.memory import count_memory
from training.recipes.optimizers import make_optimizer, update

FEATURES = 2048
"""Width of CLIP RN101's features."""
CELLS = 49
"""Tokens of its grid, which is pooled to 36."""
VL_VOCABULARY = 32200
"""Rows of CLIP-T5's vocabulary."""
GIGABYTE = 1e9
STEPS = 2
"""From the second step on there are gradients of the step before."""
PARTS = ("parameters", "gradients", "optimizer", "saved", "total", "live")
COLUMNS = (
    *(Column(figure=f"{part}_gb", heading=part, digits=3) for part in PARTS),
    Column(figure="trained_percent", heading="trained %", digits=2),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A batch, and the side network that the paper trains on it."""

    name: str
    config: BackboneConfig
    rows: int
    tokens: int
    target_tokens: int
    layers: tuple[int, ...] | None
    """Blocks with a rung, in both stacks; None: all."""
    reduction: int = 8
    images: int = 0
    rank: int = 32
    """Of LoRA."""
    methods: tuple[str, ...] = ("full", "LST", "LST, taps kept")
    """Names in METHODS."""

    @property
    def visual(self) -> VisualConfig | None:
        """What a side network reads of images."""
        return VisualConfig(features=FEATURES) if self.images else None

    def ids(self) -> Tensor:
        """(B, S) token ids."""
        return torch.zeros(self.rows, self.tokens, dtype=torch.long)

    def mask(self) -> Tensor:
        """(B, S) bool."""
        return torch.ones(self.rows, self.tokens, dtype=torch.bool)

    def targets(self) -> Tensor:
        """(B, T) token ids."""
        return torch.zeros(self.rows, self.target_tokens, dtype=torch.long)

    def features(self) -> Images:
        """Features of the batch's images."""
        return Images.of(torch.zeros(self.rows, self.images, CELLS, FEATURES))

    def shrunk(self) -> "Setting":
        """The same with few rows, tokens and blocks."""
        config = replace(self.config, d_ff=64, num_layers=1, num_decoder_layers=1, vocab_size=128)
        return replace(self, config=config, rows=2, tokens=8, layers=None if self.layers is None else (0,), rank=2)


PEERS = ("full", "LST", "LST, taps kept", "LoRA", "BitFit")


def _text(shape: str, layers: tuple[int, ...], *more: str) -> Setting:
    sizes = {"rows": 100, "tokens": 128, "target_tokens": 2}
    return Setting(name=shape, config=NAMED[shape].config, layers=layers, methods=(*PEERS, *more), **sizes)


def _images(name: str, rows: int, target_tokens: int, images: int = 1) -> Setting:
    config = replace(NAMED["t5-base"].config, vocab_size=VL_VOCABULARY)
    return Setting(
        name=f"CLIP-T5 {name}",
        config=config,
        layers=None,
        reduction=4,
        rank=150,
        rows=rows,
        tokens=20,
        target_tokens=target_tokens,
        images=images,
    )


TEXT = (
    _text("t5-base", (1, 2, 3, 5, 6, 7, 9, 10, 11), "LST, linear head", "LST, bfloat16"),
    _text("t5-large", tuple(range(1, 24, 2))),
    _text("t5-3b", (23,)),
)
VL = (
    replace(_images("VQA", 300, 10), methods=PEERS),
    _images("GQA", 500, 10),
    _images("NLVR2", 100, 2, 2),
    _images("COCO", 250, 40),
)


@dataclass(frozen=True, slots=True)
class Step:
    """What is trained, and the loss of the batch."""

    modules: Sequence[nn.Module]
    trained: nn.Module
    loss: Callable[[], Tensor]


class HuggingFace(nn.Module):
    """Hugging Face's T5, with CLIP-T5's visual embedding if there are images."""

    def __init__(self, setting: Setting) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        hush()
        super().__init__()
        names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
        names += ("decoder_start_token_id",)
        values: dict[str, Any] = {name: getattr(setting.config, name) for name in names}
        self.setting = setting
        self.t5: Any = T5ForConditionalGeneration(T5Config(**values))
        if setting.visual is not None:
            self.visual = VisualEmbedding(setting.visual, setting.config)

    def loss(self) -> Tensor:
        """Mean cross entropy of the batch's targets."""
        setting = self.setting
        embeddings = self.t5.get_input_embeddings()(setting.ids())
        if setting.images:
            embeddings = torch.cat([embeddings, self.visual(setting.features())], 1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        return self.t5(inputs_embeds=embeddings, attention_mask=mask, labels=setting.targets()).loss


def full(setting: Setting) -> Step:
    """All weights."""
    model = HuggingFace(setting).train()
    return Step([model], model, model.loss)


def lora(setting: Setting) -> Step:
    """PEFT's LoRA; the visual embedding is trained too."""
    peft = peer("peft")
    model = HuggingFace(setting)
    settings = {"r": setting.rank, "lora_alpha": setting.rank, "lora_dropout": 0.1, "target_modules": ["q", "v"]}
    with patch.object(nn.Module, "to", lambda module, *_, **__: module):  # parameters without data cannot be moved
        model.t5 = peft.get_peft_model(model.t5, peft.LoraConfig(**settings))
    return Step([model], model.train(), model.loss)


def bitfit(setting: Setting) -> Step:
    """Biases alone; the visual embedding is trained too."""
    model = HuggingFace(setting)
    model.t5.requires_grad_(False)
    for module in model.t5.modules():
        if isinstance(module, nn.Linear):
            module.bias = nn.Parameter(torch.zeros(module.out_features))
    return Step([model], model.train(), model.loss)


def lst(setting: Setting, *, head: str = "text", kept: bool = False, dtype: torch.dtype = torch.float32) -> Step:
    """A side network, on taps of this step or kept ones."""
    backbone = _backbone(setting.config, dtype)
    if head == "text":
        layers = {"encoder_layers": setting.layers, "decoder_layers": setting.layers}
        answerer = Generate(max_new_tokens=setting.target_tokens, decode=str)
        targets = setting.targets()
    else:
        layers = {"encoder_layers": "half", "outputs": 2}
        answerer = Classify(labels=("0", "1"))
        targets = setting.targets()[:, 0]
    shape: dict[str, Any] = {"reduction": setting.reduction, "head": head, "visual": setting.visual, **layers}
    side = SideNetwork(SideConfig(**shape), setting.config).train()
    run = _kept_taps if kept else _computed_taps

    def loss() -> Tensor:
        taps = run(setting, backbone, side)
        images = setting.features() if setting.images else None
        return answerer.loss(BackbonePass(backbone, replace(taps, images=images)), side, targets)

    return Step([backbone, side], side, loss)


def _backbone(config: BackboneConfig, dtype: torch.dtype) -> Backbone:
    """A backbone with an LM head that is the embedding, as T5's."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        backbone = Backbone(config)
    finally:
        torch.set_default_dtype(usual)
    backbone.head = backbone.shared
    return backbone


def _computed_taps(setting: Setting, backbone: Backbone, side: SideNetwork) -> Taps:
    return backbone.encode(setting.ids(), setting.mask(), side.encoder_depth)


def _kept_taps(setting: Setting, backbone: Backbone, side: SideNetwork) -> Taps:
    """Taps as `training.taps_cache` returns them: the blocks that are read and the final state, in one tensor."""
    layers = side.encoder.layers
    stacked = torch.zeros(len(layers) + 1, setting.rows, setting.tokens, setting.config.d_model, dtype=backbone.dtype)
    states = dict(zip(layers, stacked, strict=False))
    unread = stacked.new_empty(0)
    blocks = tuple(states.get(layer, unread) for layer in range(setting.config.num_layers))
    embeddings = backbone.embed(setting.ids())
    return Taps(embeddings=embeddings, blocks=blocks, mask=setting.mask(), final=stacked[-1])


METHODS: dict[str, Callable[[Setting], Step]] = {
    "full": full,
    "LST": lst,
    "LST, taps kept": partial(lst, kept=True),
    "LST, linear head": partial(lst, head="linear"),
    "LST, bfloat16": partial(lst, dtype=torch.bfloat16),
    "LoRA": lora,
    "BitFit": bitfit,
}
ON_GPU = ("full", "LST")
GPU = ", GPU"
"""End of the names of variants whose kernels are a GPU's."""


@contextmanager
def placed(device: str) -> Iterator[None]:
    """Tensors are made on a GPU; or, for a CPU, without data."""
    with FakeTensorMode() if device == "cpu" else torch.device(device):
        yield


def measure(method: str, setting: Setting, device: str = "cpu", *, fused: bool = False) -> Figures:
    """Return what two steps hold at most. `fused`: with a GPU's kernels, on tensors without data."""
    with placed(device), gpu_kernels() if fused else nullcontext(), LiveMemory() as live:
        step = METHODS[method](setting)
        trained = [parameter for parameter in step.trained.parameters() if parameter.requires_grad]
        optimizer = make_optimizer("adamw", trained, 1e-3, 0.0)
        live.peak = live.now
        with count_memory(step.modules, optimizer) as report:
            for _ in range(STEPS):
                update(step.trained, optimizer, step.loss(), 1e-3, 1.0)
    sizes = {name: getattr(report, name) for name in PARTS[:-1]}
    sizes["live"] = live.peak
    if report.cuda_peak is not None:
        sizes["cuda_peak"] = report.cuda_peak
    whole = {id(parameter): parameter.numel() for module in step.modules for parameter in module.parameters()}
    own = {id(parameter) for parameter in step.trained.parameters()}
    rest = sum(count for key, count in whole.items() if key not in own) or sum(whole.values())
    share = 100 * sum(parameter.numel() for parameter in trained) / rest
    return {f"{name}_gb": size / GIGABYTE for name, size in sizes.items()} | {"trained_percent": share}


def variants_of(settings: Sequence[Setting], device: str) -> tuple[list[Variant], dict[str, str]]:
    """Return the variants, and why others were left out."""
    left_out: dict[str, str] = {}
    try:
        peer("peft")
    except BenchmarkError as error:
        left_out["LoRA"] = str(error)
    variants = []
    for setting in settings:
        for method in setting.methods:
            if method in left_out:
                continue
            call = partial(measure, method, setting, device)
            variants.append(Variant(name=f"{setting.name}, {method}", measure=call, warm_up=lambda: None))
            if method in ON_GPU and device == "cpu":
                call = partial(measure, method, setting, fused=True)
                variants.append(Variant(name=f"{setting.name}, {method}{GPU}", measure=call, warm_up=lambda: None))
    return variants, left_out


def ratios_of(samples: Samples) -> dict[str, Spread]:
    """Return every method's bytes by those of full fine-tuning, and CLIP-T5's largest steps."""
    ratios = {}
    for name in samples.variants:
        setting, method = name.split(", ", 1)
        whole = f"full{GPU}" if method.endswith(GPU) else "full"
        if method != whole:
            for figure, note in (("total_gb", ""), ("live_gb", ", live")):
                ratios[f"{name} / {whole}{note}"] = samples.ratio(figure, name, f"{setting}, {whole}")
    for method, whole in (("LST", "full"), ("LST, taps kept", "full"), (f"LST{GPU}", f"full{GPU}")):
        if f"{VL[0].name}, {whole}" in samples.variants:
            share = _largest(samples, method) / _largest(samples, whole)
            ratios[f"CLIP-T5, largest step, {method} / {whole}"] = Spread((share,))
    return ratios


def _largest(samples: Samples, method: str) -> float:
    """Gigabytes of the largest of CLIP-T5's steps: training its tasks together needs as much."""
    names = [name for name in samples.variants if name.startswith("CLIP-T5") and name.endswith(f", {method}")]
    return max(samples.spread(name, "total_gb").median for name in names)


@click.command()
@measuring(rounds=1, seconds=1.0)
def main(device: str, quick: bool, seed: int, save: bool, as_json: bool, **unused: Any) -> None:
    """Count the memory of a training step in the paper's settings."""
    with plain_errors():
        device = pick_device(device)
        machine = look(device, "float32")
        settings = [TEXT[0].shrunk(), VL[0].shrunk()] if quick else [*TEXT, *VL]
        variants, left_out = variants_of(settings, device)
        with steps(2 * len(variants), as_json) as step:
            samples = take_turns(variants, 1, seed, step)
        batches = {s.name: [s.rows, s.tokens, s.target_tokens, s.images] for s in settings}
        report = Report(
            name="training_memory",
            title="Memory of a training step",
            machine=machine,
            settings={"rows, tokens, target tokens, images": batches, "left_out": left_out, "quick": quick},
            samples=samples,
            ratios=ratios_of(samples),
        )
        if save:
            click.echo(f"saved {report.save().name}", err=True)
        report.show(COLUMNS, as_json)


if __name__ == "__main__":
    main()
