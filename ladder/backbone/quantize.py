"""Quantize a frozen backbone: int8 weights by row, NF4 weights by block, or products of int8 weights and activations.

int8 and int4 quantize only weights, to save memory: each matrix is dequantized when it is multiplied, and activations
keep their precision, so large activations (T5 has them) lose nothing. w8a8 saves time: activations are rounded to 8
bits with a scale per token, and integers are multiplied, in the LM head too. With every method an answer is independent
of other rows in the batch, and CPU and GPU compute the same scheme. Embeddings, norms and biases are not quantized.
int8 and w8a8 need only torch; NF4 (QLoRA, arXiv:2305.14314, as in QST, arXiv:2401.07159) needs bitsandbytes. Side
networks are never quantized.
"""

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
from ladder.backbone.packed import PackedLinear
from ladder.errors import BackboneError
from ladder.heaps import trim_heaps

Quantization = Literal["none", "int8", "int4", "w8a8"]
METHODS: tuple[str, ...] = get_args(Quantization)
BLOCK = 64
"""Number of consecutive weights of a row that share an NF4 scale."""
SCHEMES = {
    "int8": "int8 weights, symmetric, a float32 scale a row",
    "int4": f"nf4 weights, a float32 scale for {BLOCK} of a row",
    "w8a8": "int8 weights up to 63, a float32 scale a row, times int8 activations, a float32 scale a token",
}
"""The taps depend on these schemes, so their text is part of a quantized backbone's fingerprint."""
LIBRARY = "bitsandbytes"


class QuantizedLinear(nn.Module):
    """A linear layer that cannot learn. Its scales stay float32 when the backbone is moved to another dtype."""

    scales: Tensor
    shape: torch.Size
    """(out, in)."""

    def __init__(self, shape: torch.Size, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("scales", scales)
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(scales.device), requires_grad=False)

    def full_weight(self) -> Tensor:
        """Return the dequantized weight, (out, in) float32."""
        raise NotImplementedError

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != before.dtype:  # scales rounded to bfloat16 would change every weight of their row
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
        """(..., in) to (..., out)."""
        # codes are whole numbers up to 127, which bfloat16 holds exactly
        out = F.linear(hidden, self.codes.to(hidden.dtype)).mul_(self.scales)
        return out if self.bias is None else out + self.bias

    def full_weight(self) -> Tensor:
        """Return the dequantized weight, (out, in) float32."""
        return self.codes * self.scales[:, None]


class Nf4Linear(QuantizedLinear):
    """NF4: 16 levels at the quantiles of a normal distribution, times the largest absolute value of a block."""

    codes: Tensor
    """Two levels a byte, in bitsandbytes' order."""

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float().contiguous()
        codes, state = _library().functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
        super().__init__(weight.shape, state.absmax, linear.bias)
        self.register_buffer("codes", codes)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        return _library().matmul_4bit(hidden, self.codes, self._state(hidden.dtype), bias=bias)

    def full_weight(self) -> Tensor:
        """Return the dequantized weight, (out, in) float32."""
        return _library().functional.dequantize_4bit(self.codes, self._state(torch.float32))

    def _state(self, dtype: torch.dtype) -> Any:
        return _library().functional.QuantState(
            self.scales, shape=self.shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype
        )


class W8A8Linear(QuantizedLinear):
    """y = (codes of x) (codes of weights)^T * scale of the token * scale of the row + bias, in integers.

    Weights use 7 of their 8 bits: kernels for CPUs without VNNI add two 8-bit products in 16 bits, which must not
    overflow. Sums over up to 2,096 inputs stay below 2^24, so the float32 fallback, for devices without an integer
    kernel, is exact too; over more inputs it is nearly exact.
    """

    codes: Tensor
    """(out, in) int8, within -63..63."""
    MOST_WEIGHT = 63
    MOST_ACTIVATION = 127

    def __init__(self, linear: nn.Linear) -> None:
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(1) / self.MOST_WEIGHT).clamp(min=torch.finfo(torch.float32).tiny)
        super().__init__(weight.shape, scales, linear.bias)
        self.register_buffer("codes", (weight / scales[:, None]).round().to(torch.int8))
        self._packed = _pack(self.codes)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        if hidden.requires_grad and torch.is_grad_enabled():  # rounding has no gradient: compute as if there were none
            return F.linear(hidden, self.full_weight().to(hidden.dtype), self.bias)
        return self.multiply(*self.prepare(hidden), hidden.dtype)

    def prepare(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize activations (..., in) to uint8 codes around 128 and a float32 scale per token, (..., 1).

        Layers that read the same activations can share the result.
        """
        full = hidden.float()
        largest = full.abs().amax(-1, keepdim=True)
        steps = self.MOST_ACTIVATION / largest.clamp(min=torch.finfo(torch.float32).tiny)
        codes = (full * steps).round_().to(torch.int8).view(torch.uint8)
        return codes.bitwise_xor(128), largest / self.MOST_ACTIVATION  # two's complement: +128

    def rounded(self, hidden: Tensor) -> Tensor:
        """Return the values that `forward` multiplies with in place of `hidden`: quantized and dequantized."""
        codes, scales = self.prepare(hidden)
        return ((codes.float() - 128) * scales).to(hidden.dtype)

    def multiply(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        """Multiply by the weights what `prepare` returned for (..., in): (..., out)."""
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
        """Whether the codes are stored twice, once in oneDNN's layout."""
        return self._packed is not None

    def full_weight(self) -> Tensor:
        """Return the dequantized weight, (out, in) float32."""
        return self.codes * self.scales[:, None]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._packed = _pack(self.codes)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed = _pack(self.codes)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # cannot be copied: a copy packs again

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._packed = _pack(self.codes)


def _pack(codes: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the weights in oneDNN's layout and their zero points; None if oneDNN is not used on this device."""
    if codes.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    return torch.ops.onednn.qlinear_prepack(codes, None), torch.zeros(len(codes), dtype=torch.int32)


def _whole_product(activations: Tensor, weights: Tensor) -> Tensor:
    """Exact product (M, out), float32, of activation codes (M, in) around 128 and weight codes (out, in)."""
    if activations.device.type == "cuda" and not any(width % 8 for width in weights.shape):
        rows = (activations.to(torch.int16) - 128).to(torch.int8)
        padded = F.pad(rows, (0, 0, 0, max(0, 32 - len(rows))))  # the kernel needs more than 16 rows
        return torch._int_mm(padded, weights.t())[: len(rows)].float()  # pyright: ignore[reportPrivateImportUsage]
    return F.linear(activations.float() - 128, weights.float())


LINEARS: dict[str, Callable[[nn.Linear], QuantizedLinear]] = {
    "int8": Int8Linear,
    "int4": Nf4Linear,
    "w8a8": W8A8Linear,
}


def check_method(method: str) -> None:
    """Check the value of `--quantize` before anything is loaded.

    Raises:
        BackboneError: no such method, or its library is missing or does not work here.
    """
    if method not in METHODS:
        raise BackboneError(f"quantize must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "int4":
        _library()


@torch.inference_mode(False)  # inference tensors could not be trained on
@torch.no_grad()
def quantize_backbone(backbone: Backbone, method: str, device: str | torch.device = "cpu") -> None:
    """Quantize every linear layer of a loaded backbone, in place, and its name and fingerprint. "none" does nothing.

    Args:
        device: where the matrices go, one at a time: only one is there in full precision.

    Raises:
        BackboneError: as `check_method`; the widths do not fit; or the backbone is quantized already.
    """
    check_method(method)
    if method == "none":
        return
    if backbone.quantization != "none":
        raise BackboneError(f"{backbone.name} is quantised already; load it again")
    linears = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    for name, linear in linears.items():
        if method == "int4" and linear.in_features % BLOCK:
            why = f"int4 needs input widths that {BLOCK} divides, and {name} has {linear.in_features}"
            raise BackboneError(f"{why}; use int8 for this backbone")
    if method == "w8a8" and backbone.has_decoder:
        with torch.device("meta"):
            head = nn.Linear(*reversed(backbone.head.shape), bias=False)
        head.weight = backbone.head
        backbone.vocabulary = _quantized(head.to(device), method)
    for name in list(linears):
        _replace(backbone, name, _quantized(linears.pop(name).to(device), method))
    trim_heaps()  # of the freed matrices
    backbone.quantization = method
    backbone.name = f"{backbone.name} ({method})"
    backbone.fingerprint = quantized_fingerprint(backbone.fingerprint, method)


def quantized_fingerprint(fingerprint: str, method: str) -> str:
    """Return a quantized backbone's fingerprint: of method, bits and blocks, and no library's version."""
    return f"sha256:{hashlib.sha256(f'{fingerprint}|{SCHEMES[method]}'.encode()).hexdigest()}"


def full_weight(linear: nn.Linear | QuantizedLinear) -> Tensor:
    """Return the matrix (out, in), float32, that a linear layer, quantized or not, multiplies with."""
    return linear.full_weight() if isinstance(linear, QuantizedLinear) else linear.weight.detach().float()


def count_weights(backbone: Backbone) -> int:
    """Return the number of the backbone's weights, independent of how they are stored."""
    matrices = [
        module
        for module in backbone.modules()
        if isinstance(module, QuantizedLinear | PackedLinear)
        and module is not backbone.vocabulary  # it copies the head
    ]
    return sum(tensor.numel() for tensor in backbone.parameters()) + sum(module.shape.numel() for module in matrices)


def held_bytes(backbone: Backbone) -> int:
    """Return the bytes of the backbone's weights on its device. A matrix that two parameters share counts once."""
    packed = [module.nbytes for module in backbone.modules() if isinstance(module, PackedLinear)]
    packed += [
        module.codes.nbytes for module in backbone.modules() if isinstance(module, W8A8Linear) and module.is_packed
    ]
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*backbone.parameters(), *backbone.buffers())}
    return sum(held.values()) + sum(packed)


def full_precision(backbone: Backbone) -> Backbone:
    """Return a copy with plain linear layers that computes what the quantized backbone computes.

    For code that needs weights as parameters: structural initialization, gradients of weights. Copies all matrices; an
    unquantized backbone is returned unchanged.
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


def _library() -> Any:
    """Return bitsandbytes, imported at first use: the import takes seconds."""
    if (loaded := sys.modules.get(LIBRARY)) is not None:
        return loaded
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports deprecated parts of torch
            return importlib.import_module(LIBRARY)
    except ImportError:
        raise BackboneError(f"int4 needs {LIBRARY}: pip install 'sidecast[quantized]', or use int8") from None
