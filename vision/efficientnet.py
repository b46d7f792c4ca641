"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation, with ReLU6 and a stem and head of fixed width.

Convolutions pad as TensorFlow's "SAME" does: where the padding is odd, one more below and on the right. EfficientNet,
arXiv:1905.11946.
"""

import math
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

STEM = 32
HEAD = 1280
EPSILON = 1e-3
"""Of the batch norms."""
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first block, expansion and output channels of each stage, before scaling. The first
and last stage always have one block."""
LAYERS = len(STAGES) + 1
"""The head's place among the hidden layers: 0 is the stem, 1 to 7 are the stages."""


class EfficientNetLite(nn.Module):
    """The convolutions of an EfficientNet-Lite, up to one of its layers; no pooling, no classifier.

    Args:
        width: factor of the stages' channels (lite2: 1.1).
        depth: factor of the stages' blocks (lite2: 1.2).
        layer: the last one that is computed: 0 the stem, 1 to 7 the stages, 8 the head.
    """

    def __init__(self, *, width: float, depth: float, layer: int = LAYERS) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, kernel=3, stride=2)
        channels = STEM
        self.stages = nn.ModuleList()
        for number, (blocks, kernel, stride, expansion, planned) in enumerate(STAGES[:layer]):
            is_scaled = 0 < number < len(STAGES) - 1
            outputs = scaled_channels(planned, width)
            stage = nn.Sequential()
            for block in range(math.ceil(blocks * depth) if is_scaled else blocks):
                stage.append(Block(channels, outputs, kernel, stride if block == 0 else 1, expansion))
                channels = outputs
            self.stages.append(stage)
        self.head = Convolution(channels, HEAD) if layer == LAYERS else None
        self.width = channels if self.head is None else HEAD

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the grid: (rows, 3, height, width) to (rows, channels, height / stride, width / stride)."""
        grid = functional.relu6(self.stem(pixels))
        for stage in self.stages:
            grid = stage(grid)
        return grid if self.head is None else functional.relu6(self.head(grid))

    def fold_norms(self) -> None:
        """Fold each batch norm into its convolution, for inference: less to compute, the same grid up to rounding."""
        for module in self.modules():
            if isinstance(module, Convolution) and isinstance(module.norm, nn.BatchNorm2d):
                module.conv = fuse_conv_bn_eval(module.conv.eval(), module.norm.eval())
                module.norm = nn.Identity()


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel on its own, project."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = Convolution(inputs, inner) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = Convolution(inner, outputs)
        self.has_skip = stride == 1 and inputs == outputs

    def forward(self, grid: Tensor) -> Tensor:
        """Map (rows, inputs, height, width) to (rows, outputs, height / stride, width / stride)."""
        inner = grid if self.expand is None else functional.relu6(self.expand(grid))
        inner = self.project(functional.relu6(self.depthwise(inner)))
        return inner + grid if self.has_skip else inner


class Convolution(nn.Module):
    """A convolution without bias, padded as TensorFlow's "SAME", and a batch norm."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=EPSILON)

    def forward(self, grid: Tensor) -> Tensor:
        """Map (rows, inputs, height, width) to (rows, outputs, height / stride, width / stride), rounded up."""
        return self.norm(self.conv(functional.pad(grid, self._padding(grid))))

    def _padding(self, grid: Tensor) -> list[int]:
        """Left, right, above, below."""
        padding: list[int] = []
        for axis in (3, 2):
            length = grid.shape[axis]
            kernel = self.conv.kernel_size[axis - 2]
            stride = self.conv.stride[axis - 2]
            total = max(0, (math.ceil(length / stride) - 1) * stride + kernel - length)
            padding += [total // 2, total - total // 2]
        return padding


def scaled_channels(channels: int, factor: float, divisor: int = 8) -> int:
    """Scale a number of channels, to a multiple of `divisor` that is at least nine tenths of the exact product."""
    exact = channels * factor
    rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * exact else rounded + divisor


def convert_names(names: Iterator[str], *, depth: float) -> dict[str, str]:
    """Return our name of each parameter in a checkpoint of EfficientNet-PyTorch (`_blocks.3._expand_conv.weight`).

    The classifier and the norms' counters have no name here.
    """
    stage_of: list[tuple[int, int]] = []
    for number, (blocks, *_) in enumerate(STAGES):
        count = math.ceil(blocks * depth) if 0 < number < len(STAGES) - 1 else blocks
        stage_of += [(number, block) for block in range(count)]
    tops = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    converted: dict[str, str] = {}
    for name in names:
        module, _, parameter = name.rpartition(".")
        if parameter == "num_batches_tracked" or module == "_fc":
            continue
        if module in tops:
            converted[name] = f"{tops[module]}.{parameter}"
            continue
        _, index, part = module.split(".")
        stage, block = stage_of[int(index)]
        converted[name] = f"stages.{stage}.{block}.{_PARTS[part]}.{parameter}"
    return converted


_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
