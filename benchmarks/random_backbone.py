"""Makes a T5 of a known shape with random weights, if the real one cannot be downloaded. A pass costs the same.

python -m benchmarks.random_backbone flan-t5-base FOLDER
python -m benchmarks.bench_all --backbone FOLDER
"""

import shutil
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.harness.peers import hush
from benchmarks.harness.samples import BenchmarkError, plain_errors
from demo.backbone import get_backbone
from demo.downloads import cache_folder
from ladder.config import BackboneConfig
from ladder.side import NAMED

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


def make_random(shape: str, folder: Path, tokenizer: Path, seed: int = 0) -> Path:
    """Write a Hugging Face folder in bfloat16, with the tokenizer of another folder.

    Raises:
        BenchmarkError: no such shape.
    """
    if shape not in NAMED:
        raise BenchmarkError(f"unknown shape {shape}; known are {', '.join(NAMED)}")
    write_random(NAMED[shape].config, folder, seed)
    for name in TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    return folder


def write_random(config: BackboneConfig, folder: Path, seed: int = 0) -> None:
    """Write a Hugging Face folder in bfloat16, without a tokenizer."""
    from transformers import T5Config, T5ForConditionalGeneration

    hush()
    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
    names += ("feed_forward_proj", "decoder_start_token_id", "pad_token_id", "eos_token_id")
    values: dict[str, Any] = {name: getattr(config, name) for name in names}
    values["tie_word_embeddings"] = config.scale_output
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = T5ForConditionalGeneration(T5Config(**values))
    model.to(torch.bfloat16).save_pretrained(folder)


@click.command()
@click.argument("shape")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A folder that has one.  [default: the demo's]")
def main(shape: str, folder: Path, tokenizer: Path | None) -> None:
    """Write a T5 of SHAPE, such as flan-t5-base, with random weights into FOLDER."""
    with plain_errors():
        make_random(shape, folder, tokenizer or get_backbone(cache_folder()))


if __name__ == "__main__":
    main()
