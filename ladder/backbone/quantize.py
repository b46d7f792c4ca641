"""A frozen backbone's matrices in eight or four bits: int8 by rows, or NF4 by blocks; or products of int8 by int8.

int8 and int4 are of weights alone: each matrix is widened again as it is multiplied, and activations keep their
precision. Large activations (T5 has them) lose nothing, and what is gained is memory. w8a8 gains time: each token's
activations are rounded to 8 bits with a scale of its own, and whole numbers are multiplied, LM head included. With all
of them an answer cannot depend on the rows beside it, and CPU and GPU compute the same scheme. Embeddings, norms and
biases stay. int8 and w8a8 are torch alone; NF4 (QLoRA, arXiv:2305.14314, as in QST, arXiv:2401.07159) is bitsandbytes'.
Side networks are never quantised.
"""

import ctypes
import hashlib
import importlib
import sys
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ladder.backbone.model import Backbone
from ladder.errors import BackboneError

Quantization = Literal["none", "int8", "int4", "w8a8"]
METHODS: tuple[str, ...] = get_args(Quantization)
BLOCK = 64
"""Consecutive weights of a row that share an NF4 scale."""
SCHEMES = {
    "int8": "int8 weights, symmetric, a float32 scale a row",
    "int4": f"nf4 weights, a float32 scale for {BLOCK} of a row",
    "w8a8": "int8 weights up to 63, a float32 scale a row, times int8 activations, a float32 scale a token",
}
"""What a side network reads depends on these words: they are part of a quantised backbone's fingerprint."""
LIBRARY = "bitsandbytes"


class QuantizedLinear(nn.Module):
    """A linear layer that cannot learn; its scales stay float32 whatever dtype the backbone is moved to."""

    scales: Tensor
    shape: torch.Size
    """(out, in)."""

    def __init__(self, shape: torch.Size, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("scales", scales)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(scales.device), requires_grad=False)

    def full_weight(self) -> Tensor:
        """(out, in) float32."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != before.dtype:  # bfloat16 scales would move every weight of their row
            self.scales = before.to(self.scales.device)
        return self


class Int8Linear(QuantizedLinear):
    """y = (x codes^T) * scales + bias."""

    codes: Tensor
    """(out, in) int8."""

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        super().__init__(weight.shape, scales, linear.bias)
        self.register_buffer("codes", (weight / scales[:, None]).round().to(torch.int8))

    def forward(self, hidden: Tensor) -> Tensor:
        # codes are whole numbers up to 127, which bfloat16 holds exactly
        out = F.linear(hidden, self.codes.to(hidden.dtype)).mul_(self.scales)
        return out if self.bias is None else out + self.bias

    def full_weight(self) -> Tensor:
        return self.codes * self.scales[:, None]


class Nf4Linear(QuantizedLinear):
    """Sixteen levels at the quantiles of a normal distribution, times the largest absolute value of a block."""

    codes: Tensor
    """Two levels a byte, in bitsandbytes' order."""

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float().contiguous()
        codes, state = _library().functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
        super().__init__(weight.shape, state.absmax, linear.bias)
        self.register_buffer("codes", codes)

    def forward(self, hidden: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return _library().matmul_4bit(hidden, self.codes, self._state(hidden.dtype), bias=bias)

    def full_weight(self) -> Tensor:
        return _library().functional.dequantize_4bit(self.codes, self._state(torch.float32))

    def _state(self, dtype: torch.dtype) -> Any:
        return _library().functional.QuantState(
            self.scales, shape=self.shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype
        )


class W8A8Linear(QuantizedLinear):
    """y = (codes of x) (codes of weights)^T * scale of the token * scale of the row + bias, in whole numbers.

    Weights use 7 of their 8 bits: kernels for CPUs without VNNI add two products of 8 bits in 16, which must not
    overflow. Sums over up to 2,096 inputs stay below 2^24, so that float32, the fallback where there is no such kernel,
    is as exact; over more, nearly so.
    """

    codes: Tensor
    """(out, in) int8, within -63..63."""
    MOST_WEIGHT, MOST_ACTIVATION = 63, 127

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / self.MOST_WEIGHT).clamp(min=torch.finfo(torch.float32).tiny)
        super().__init__(weight.shape, scales, linear.bias)
        self.register_buffer("codes", (weight / scales[:, None]).round().to(torch.int8))
        self._packed = _pack(self.codes)

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.requires_grad and torch.is_grad_enabled():  # rounding has none: as if there were no rounding
            return F.linear(hidden, self.full_weight().to(hidden.dtype), self.bias)
        return self.multiply(*self.prepare(hidden), hidden.dtype)

    def prepare(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Activations (..., in) as uint8 codes around 128 and a float32 scale a token, (..., 1). Other layers of this
        kind that read the same activations can share them."""
        full = hidden.float()
        largest = full.abs().amax(-1, keepdim=True)
        steps = self.MOST_ACTIVATION / largest.clamp(min=torch.finfo(torch.float32).tiny)
        codes = (full * steps).round_().to(torch.int8).view(torch.uint8)
        return codes.bitwise_xor(128), largest / self.MOST_ACTIVATION  # two's complement: +128

    def rounded(self, hidden: Tensor) -> Tensor:
        """What `forward` multiplies with instead of `hidden`."""
        codes, scales = self.prepare(hidden)
        return ((codes.float() - 128) * scales).to(hidden.dtype)

    def multiply(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """(..., out) of what `prepare` made of (..., in)."""
        flat = codes.flatten(0, -2)
        if self._packed is not None:
            weights, zeros = self._packed
            out = torch.ops.onednn.qlinear_pointwise(
                flat, 1.0, 128, weights, self.scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
        else:
            out = _whole_product(flat, self.codes) * self.scales
        out = out.unflatten(0, codes.shape[:-1]).mul_(scales).to(dtype)
        return out if self.bias is None else out + self.bias

    @property
    def is_packed(self) -> bool:
        """The codes are held twice, once as oneDNN wants them."""
        return self._packed is not None

    def full_weight(self) -> Tensor:
        return self.codes * self.scales[:, None]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._packed = _pack(self.codes)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed = _pack(self.codes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # opaque to copies: they pack anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._packed = _pack(self.codes)


def _pack(codes: Tensor) -> tuple[Tensor, Tensor] | None:
    """As oneDNN wants weights, and their zero points; None where it does not compute."""
    if codes.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    return torch.ops.onednn.qlinear_prepack(codes, None), torch.zeros(len(codes), dtype=torch.int32)


def _whole_product(activations: Tensor, weights: Tensor) -> Tensor:
    """(M, out) float32, exact: of codes (M, in) around 128, and (out, in)."""
    if activations.device.type == "cuda" and not any(width % 8 for width in weights.shape):
        rows = (activations.to(torch.int16) - 128).to(torch.int8)
        padded = F.pad(rows, (0, 0, 0, max(0, 32 - len(rows))))  # its kernels want more than 16 rows
        return torch._int_mm(padded, weights.t())[: len(rows)].float()  # pyright: ignore[reportPrivateImportUsage]
    return F.linear(activations.float() - 128, weights.float())


LINEARS: dict[str, Callable[[nn.Linear], QuantizedLinear]] = {
    "int8": Int8Linear,
    "int4": Nf4Linear,
    "w8a8": W8A8Linear,
}


def check_method(method: str) -> None:
    """Tell what is wrong with a `--quantize` before anything is loaded.

    Raises:
        BackboneError: no such method, or its library is missing or does not work here.
    """
    if method not in METHODS:
        raise BackboneError(f"quantize must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "int4":
        _library()


@torch.inference_mode(False)  # or nothing could be trained on it
@torch.no_grad()
def quantize_backbone(backbone: Backbone, method: str, device: str | torch.device = "cpu") -> None:
    """Replace every linear layer of a loaded backbone, in place; its fingerprint and name say so. "none" does nothing.

    Args:
        device: where the matrices go, one after the other: of their full precision only one at a time is there.

    Raises:
        BackboneError: as `check_method`, the widths do not fit, or it is quantised already.
    """
    check_method(method)
    if method == "none":
        return
    if backbone.quantization != "none":
        raise BackboneError(f"{backbone.name} is quantised already; load it again")
    linears = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    _check_widths(linears, method)
    if method == "w8a8" and backbone.has_decoder:
        backbone.vocabulary = _quantized(_plain_head(backbone).to(device), method)
    for name in list(linears):
        _replace(backbone, name, _quantized(linears.pop(name).to(device), method))
    _return_freed_memory()
    backbone.quantization = method
    backbone.name = f"{backbone.name} ({method})"
    backbone.fingerprint = quantized_fingerprint(backbone.fingerprint, method)


def quantized_fingerprint(fingerprint: str, method: str) -> str:
    """Of a backbone that was quantised: says method, bits and blocks, and no library's version."""
    return f"sha256:{hashlib.sha256(f'{fingerprint}|{SCHEMES[method]}'.encode()).hexdigest()}"


def full_weight(linear: nn.Linear | QuantizedLinear) -> Tensor:
    """(out, in) float32: the matrix that a linear layer, quantised or not, multiplies with."""
    return linear.full_weight() if isinstance(linear, QuantizedLinear) else linear.weight.detach().float()


def count_weights(backbone: Backbone) -> int:
    """How many weights the backbone has, whatever each is stored in."""
    matrices = [
        module
        for module in backbone.modules()
        if isinstance(module, QuantizedLinear) and module is not backbone.vocabulary  # the LM head's once more
    ]
    return sum(tensor.numel() for tensor in backbone.parameters()) + sum(module.shape.numel() for module in matrices)


def held_bytes(backbone: Backbone) -> int:
    """Bytes that the backbone's weights take on its device, once each where two parameters are one matrix."""
    packed = [module.codes for module in backbone.modules() if isinstance(module, W8A8Linear) and module.is_packed]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*backbone.parameters(), *backbone.buffers())}
    return sum(held.values()) + sum(tensor.nbytes for tensor in packed)


def full_precision(backbone: Backbone) -> Backbone:
    """A backbone of plain linear layers that says what the quantised one says; itself where it has such already.

    For what needs weights as parameters: structural initialisation, gradients to weights. A copy of all matrices.
    """
    if backbone.quantization == "none":
        return backbone
    copy = deepcopy(backbone)
    copy.vocabulary = None
    for name, module in list(copy.named_modules()):
        if isinstance(module, QuantizedLinear):
            _replace(copy, name, _plain(module, backbone.dtype))
    copy.quantization = "none"
    return copy


def _check_widths(linears: dict[str, nn.Linear], method: str) -> None:
    for name, linear in linears.items():
        if method == "int4" and linear.in_features % BLOCK:
            why = f"int4 needs input widths that {BLOCK} divides, and {name} has {linear.in_features}"
            raise BackboneError(f"{why}; use int8 for this backbone")


def _quantized(linear: nn.Linear, method: str) -> QuantizedLinear:
    try:
        return LINEARS[method](linear)
    except RuntimeError as error:  # bitsandbytes without a library for this device
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        raise BackboneError(f"{method} does not work on this device: {lines[0]}") from error


def _replace(backbone: Backbone, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(backbone.get_submodule(parent), child, module)


def _plain(module: QuantizedLinear, dtype: torch.dtype) -> nn.Linear:
    weight = module.full_weight().to(dtype)
    out, width = weight.shape
    linear = nn.Linear(width, out, bias=module.bias is not None, device=weight.device, dtype=dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=False)
    return linear


def _plain_head(backbone: Backbone) -> nn.Linear:
    words, width = backbone.head.shape
    linear = nn.Linear(width, words, bias=False, device="meta")
    linear.weight = backbone.head
    return linear


def _return_freed_memory() -> None:
    """Have glibc give the system what the whole matrices took: it keeps pieces of their size for itself."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def _library() -> Any:
    """bitsandbytes, imported when it is first needed: that takes seconds."""
    if (loaded := sys.modules.get(LIBRARY)) is not None:
        return loaded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports parts of torch that are deprecated
            return importlib.import_module(LIBRARY)
    except ImportError:
        raise BackboneError(f"int4 needs {LIBRARY}: pip install 'sidecast[quantized]', or use int8") from None
