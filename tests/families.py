"""Makes tiny random backbone folders of every family with Hugging Face's code, and their tokenizers."""

import io
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceTrainer
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

from tests import tiny

SENTENCES = ("the cat sat on the mat", "a gripping film, indeed", "dull and slow: twice as long as it is good")
T5_SHAPE = {
    "vocab_size": 300,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
BART_SHAPE = {
    "vocab_size": 300,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def make(kind: str, folder: Path) -> Path:
    """Write a tiny random backbone of `kind`, one of MAKERS, and its tokenizer."""
    return MAKERS[kind](folder)


def make_byt5(folder: Path) -> Path:
    """ByT5's own shape: 256 bytes, 3 special tokens and 125 sentinels; a decoder less deep than the encoder."""
    tiny.make_t5(folder, seed=4, vocab_size=384, num_layers=3, num_decoder_layers=1)
    for path in folder.glob("*token*.json"):
        path.unlink()
    settings = {"tokenizer_class": "ByT5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "extra_ids": 125}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def make_mt5(folder: Path) -> Path:
    save(MT5ForConditionalGeneration, MT5Config(**T5_SHAPE), folder)  # type: ignore[arg-type]
    (folder / "spiece.model").write_bytes(sentence_piece())
    return folder


def make_umt5(folder: Path) -> Path:
    save(UMT5ForConditionalGeneration, UMT5Config(**T5_SHAPE), folder)  # type: ignore[arg-type]
    (folder / "spiece.model").write_bytes(sentence_piece())
    return folder


def make_bart(folder: Path, **changes: object) -> Path:
    save(BartForConditionalGeneration, BartConfig(**BART_SHAPE | changes), folder)  # type: ignore[arg-type]
    byte_pairs().save_model(str(folder))
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "t5": tiny.make_t5,
    "byt5": make_byt5,
    "mt5": make_mt5,
    "umt5": make_umt5,
    "bart": make_bart,
    "bart scaled": lambda folder: make_bart(folder, scale_embedding=True, activation_function="relu"),
}


def save(architecture: Callable[[Any], PreTrainedModel], config: PreTrainedConfig, folder: Path) -> None:
    """Write a model with weights that all matter: Hugging Face's start is too small to tell right from wrong."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        model = architecture(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.eval().save_pretrained(folder)


@cache
def sentence_piece() -> bytes:
    """A SentencePiece model with T5's special tokens, trained on a few sentences."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_letters()),
        model_writer=written,
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return written.getvalue()


@cache
def byte_pairs() -> ByteLevelBPETokenizer:
    """A byte-level BPE with BART's special tokens, trained on a few sentences."""
    inner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner.train_from_iterator(_letters(), vocab_size=300, special_tokens=special, show_progress=False)
    return inner


def _letters() -> Iterable[str]:
    return [*SENTENCES * 20, "abcdefghijklmnopqrstuvwxyz"]
