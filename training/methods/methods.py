"""The methods that can be compared, one row each: what is trained, by which code, and at which learning rate.

Nothing here was searched for: rates are those of the LST paper where it has one for the method, and else usual values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from ladder.config import BackboneConfig
from training.methods.errors import CompareError
from training.methods.scorers import AttentionProbe, Bottleneck, LinearProbe, Scorer, SideTuning
from training.methods.source import Source

RANK = 8
"""Of LoRA."""
BOTTLENECK = 64
"""Width of adapters, at most half of the backbone's."""
PROMPT = 20
"""Tokens that prompt tuning puts before a text."""
PRUNED = 0.5
"""Share of each matrix's weights that pruning sets to 0."""
SMALLER = 8
"""Side-Tuning's encoder is so many times narrower than the backbone's."""
HEAD_RATE = 1e-3
"""Learning rate of the head where the encoder is trained; on a frozen encoder all parameters have the method's."""


Make = Callable[[Source], Scorer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way of adapting a backbone."""

    name: str
    text: str
    """What it trains, and whose code it is, in one line."""
    learning_rate: float | None
    """None: nothing is trained."""
    make: Make | None = None
    """None: a side network, or no model at all."""
    peft: bool = False
    """Whether PEFT is needed."""
    recipe: Callable[[BackboneConfig], dict[str, Any]] | None = None
    """Of a side network: the settings that differ from the default recipe; None: no side network."""


def _full(source: Source) -> Scorer:
    return source.scorer()


def _upper(share: float) -> Make:
    """All weights of the upper blocks, `share` of them; the others and the embeddings stay as they are."""

    def make(source: Source) -> Scorer:
        source.encoder.requires_grad_(False)
        blocks = source.encoder.block if hasattr(source.encoder, "block") else source.encoder.layers
        for block in blocks[len(blocks) - max(1, round(share * len(blocks))) :]:
            block.requires_grad_(True)
        return source.scorer()

    return make


def _linear_probe(source: Source) -> Scorer:
    source.encoder.requires_grad_(False)
    return source.scorer(LinearProbe)


def _attention_probe(source: Source) -> Scorer:
    source.encoder.requires_grad_(False)
    return source.scorer(AttentionProbe, layers=source.layers)


def _side_tuning(source: Source) -> Scorer:
    source.encoder.requires_grad_(False)
    return source.scorer(SideTuning, small=small_encoder(source.encoder.config))


def small_encoder(config: Any) -> nn.Module:
    """An encoder of the same kind and depth, `SMALLER` times narrower, with random weights and no words.

    Raises:
        CompareError: a model whose sizes are not known here.
    """
    from transformers import AutoModel

    sizes = {
        "t5": ("d_model", "d_kv", "d_ff"),
        "mt5": ("d_model", "d_kv", "d_ff"),
        "bart": ("d_model", "encoder_ffn_dim"),
        "mbart": ("d_model", "encoder_ffn_dim"),
    }.get(config.model_type)
    if sizes is None:
        raise CompareError("side-tuning", f"not made for {config.model_type}; leave it out of --methods")
    values = {**config.to_dict(), **{name: max(1, getattr(config, name) // SMALLER) for name in sizes}}
    heads = [name for name in ("encoder_attention_heads", "decoder_attention_heads") if name in values]
    for name in heads:
        while values["d_model"] % values[name]:
            values[name] -= 1
    special = [getattr(config, f"{name}_token_id", None) or 0 for name in ("pad", "bos", "eos", "decoder_start")]
    values["vocab_size"] = max(special) + 1
    values |= {name: 1 for name in ("num_decoder_layers", "decoder_layers") if name in values}
    model: Any = AutoModel.from_config(type(config).from_dict(values))
    encoder = model.get_encoder()
    for parameter in encoder.get_input_embeddings().parameters():
        parameter.requires_grad_(False)  # never read
    return encoder


def _bitfit(source: Source) -> Scorer:
    """BitFit (arXiv:2106.10199). T5 has no biases: as in the LST paper, each linear layer gets one."""
    source.encoder.requires_grad_(False)
    for module in source.encoder.modules():
        if isinstance(module, nn.Linear) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_features, device=module.weight.device))
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.requires_grad_(True)
    return source.scorer()


def _adapters(bottleneck: int) -> Make:
    def make(source: Source) -> Scorer:
        source.encoder.requires_grad_(False)
        width = min(bottleneck, source.width // 2)
        for parent in list(source.encoder.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear) and name in ("o", "wo", "out_proj", "fc2"):
                    setattr(parent, name, Bottleneck(layer, width).to(layer.weight.device))
        return source.scorer()

    return make


def _pruned(source: Source) -> Scorer:
    for module in list(source.encoder.modules()):
        if isinstance(module, nn.Linear):
            prune.l1_unstructured(module, "weight", amount=PRUNED)
    return source.scorer()


def _of_peft(config: Callable[[Any, Source], Any]) -> Make:
    """A method of PEFT's; `config` makes its configuration of the module peft."""

    def make(source: Source) -> Scorer:
        import peft

        settings = config(peft, source)
        wrapped = peft.get_peft_model(source.encoder, settings)
        return source.scorer(encoder=wrapped)

    return make


def _lora(rank: int) -> Make:
    return _of_peft(lambda peft, source: peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.1))


def _every(step: int) -> Callable[[BackboneConfig], dict[str, Any]]:
    """A rung on every so many blocks, the last among them."""
    return lambda config: {"encoder_layers": tuple(range((config.num_layers - 1) % step, config.num_layers, step))}


def _side(name: str, text: str, recipe: Callable[[BackboneConfig], dict[str, Any]]) -> Method:
    return Method(name=name, text=f"as lst, {text}", learning_rate=1e-3, recipe=recipe)


def _prompt(peft: Any, source: Source) -> Any:
    """Prompts start as the embeddings of random words: an embedding of T5 is ten times the length of PEFT's start."""
    task = peft.TaskType.FEATURE_EXTRACTION
    return peft.PromptTuningConfig(
        task_type=task, num_virtual_tokens=PROMPT, prompt_tuning_init=peft.PromptTuningInit.SAMPLE_VOCAB
    )


_ROWS = (
    Method(name="majority", text="the commonest label, or the mean value; nothing is trained", learning_rate=None),
    Method(
        name="linear-probe",
        text="a linear head on the frozen encoder's last state",
        learning_rate=3e-3,
        make=_linear_probe,
    ),
    Method(
        name="attention-probe",
        text="a linear head on what one query finds among all tokens and layers of the frozen encoder",
        learning_rate=3e-3,
        make=_attention_probe,
    ),
    Method(
        name="lst",
        text="a side network, as `sidecast train` makes it by default",
        learning_rate=1e-3,
        recipe=lambda config: {},
    ),
    Method(
        name="side-tuning",
        text=f"a separate encoder, {SMALLER} times narrower, next to the frozen one (arXiv:1912.13503; our code)",
        learning_rate=1e-3,
        make=_side_tuning,
    ),
    Method(
        name="bitfit",
        text="biases; on T5 a new one for every linear layer (arXiv:2106.10199; our code)",
        learning_rate=1e-3,
        make=_bitfit,
    ),
    Method(
        name="prompt-tuning",
        text=f"{PROMPT} tokens before the text (arXiv:2104.08691; PEFT's code)",
        learning_rate=0.3,
        make=_of_peft(_prompt),
        peft=True,
    ),
    Method(
        name="ia3",
        text="factors of keys, values and hidden units (arXiv:2205.05638; PEFT's code)",
        learning_rate=3e-3,
        make=_of_peft(lambda peft, source: peft.IA3Config()),
        peft=True,
    ),
    Method(
        name="ln-tuning",
        text="the weights of norms (arXiv:2312.11420; PEFT's code)",
        learning_rate=1e-3,
        make=_of_peft(lambda peft, source: peft.LNTuningConfig()),
        peft=True,
    ),
    Method(
        name="lora",
        text=f"matrices of rank {RANK} on queries and values (arXiv:2106.09685; PEFT's code)",
        learning_rate=1e-3,
        make=_lora(RANK),
        peft=True,
    ),
    Method(
        name="adapters",
        text=f"two layers of width {BOTTLENECK} after attention and after feed-forward (arXiv:1902.00751; our code)",
        learning_rate=1e-3,
        make=_adapters(BOTTLENECK),
    ),
    Method(
        name="pruning",
        text=f"all weights of an encoder whose {PRUNED:.0%} smallest weights of each matrix are 0 (torch's code)",
        learning_rate=3e-4,
        make=_pruned,
    ),
    Method(name="full", text="all weights of the encoder: full fine-tuning", learning_rate=3e-4, make=_full),
)

_VARIANTS = (
    *(_side(f"lst-r{r}", f"with r {r}", lambda config, r=r: {"reduction": r}) for r in (4, 16, 32)),
    _side("lst-all", "with a rung on every block", lambda config: {"encoder_layers": "all"}),
    _side("lst-quarter", "with a rung on every fourth block", _every(4)),
    _side(
        "lst-last", "with a rung on the last block alone", lambda config: {"encoder_layers": (config.num_layers - 1,)}
    ),
    _side("lst-magnitude", "started as the backbone's largest weights", lambda config: {"init": "magnitude"}),
    _side("lst-fisher", "started as the weights that matter most to the rows", lambda config: {"init": "fisher"}),
    _side("lst-no-taps", "without taps: it reads the embeddings alone", lambda config: {"gate": "one"}),
    *(
        Method(name=f"lora-r{r}", text=f"as lora, of rank {r}", learning_rate=1e-3, make=_lora(r), peft=True)
        for r in (2, 32)
    ),
    *(
        Method(name=f"adapters-{w}", text=f"as adapters, of width {w}", learning_rate=1e-3, make=_adapters(w))
        for w in (16, 256)
    ),
    *(
        Method(
            name=f"full-{name}",
            text=f"as full, but the upper {name} of the blocks alone",
            learning_rate=3e-4,
            make=make,
        )
        for name, make in (("half", _upper(1 / 2)), ("quarter", _upper(1 / 4)))
    ),
)

METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in (*_ROWS, *_VARIANTS)})
