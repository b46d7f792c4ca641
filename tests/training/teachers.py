"""Tiny random teachers, as Hugging Face's own code and PEFT write them, whose texts are letters."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Letters as tokens from 5, between [CLS] and [SEP]."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz |"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def make_teacher(folder: Path, architecture: str = "bert", seed: int = 0, **changes: Any) -> Path:
    """Write a random `bert` or `roberta` whose answers differ from text to text; `changes` are of its config."""
    torch.manual_seed(seed)
    names = {"id2label": {0: "aa", 1: "bb"}, "label2id": {"aa": 0, "bb": 1}}
    if changes.get("num_labels", 2) != 2:
        names = {}
    if architecture == "bert":
        model: Any = BertForSequenceClassification(BertConfig(pad_token_id=0, **SHAPE | names | changes))
    else:
        model = RobertaForSequenceClassification(RobertaConfig(pad_token_id=0, **SHAPE | names | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.eval().save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path) -> Path:
    """Write a LoRA adapter with a head of three labels, on a base that `make_teacher` wrote."""
    import peft

    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    config = peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, r=2, target_modules=["query"], init_lora_weights=False)
    adapted = peft.get_peft_model(model, config)
    adapted.eval().save_pretrained(folder)
    return folder
