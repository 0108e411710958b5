"""EfficientNet of Tan & Le (2019), https://arxiv.org/abs/1905.11946, and its lite variants."""

import functools
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError, nearest
from jaxdl.layers import Conv, Dropout, StochasticDepth, he_normal, rising
from jaxdl.models.mobilenet import eights, small_normal

Array = jax.Array

# Of each stage: factor of expansion, kernel, stride of the first block, channels, blocks (table 1).
STAGES = ((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
          (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1))

# Factors of the channels and of the blocks (section 4), dropout, and momentum and epsilon of norms.
VARIANTS = {"B0": (1.0, 1.0, 0.2, 0.9, 1e-5), "B1": (1.0, 1.1, 0.2, 0.9, 1e-5),
            "B2": (1.1, 1.2, 0.3, 0.9, 1e-5), "B3": (1.2, 1.4, 0.3, 0.9, 1e-5),
            "B4": (1.4, 1.8, 0.4, 0.9, 1e-5), "B5": (1.6, 2.2, 0.4, 0.99, 1e-3),
            "B6": (1.8, 2.6, 0.5, 0.99, 1e-3), "B7": (2.0, 3.1, 0.5, 0.99, 1e-3),
            "Lite0": (1.0, 1.0, 0.2, 0.99, 1e-3), "Lite1": (1.0, 1.1, 0.2, 0.99, 1e-3),
            "Lite2": (1.1, 1.2, 0.3, 0.99, 1e-3), "Lite3": (1.2, 1.4, 0.3, 0.99, 1e-3),
            "Lite4": (1.4, 1.8, 0.3, 0.99, 1e-3)}
Variant = Literal["B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7",
                  "Lite0", "Lite1", "Lite2", "Lite3", "Lite4"]


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts."""
    first = name.startswith("stage1_")  # Expands nothing, so that its layers come one earlier.
    name = re.sub(r"^stage(\d+)_block(\d+)",
                  lambda m: f"features.{m[1]}.{int(m[2]) - 1}.block", name)
    name = re.sub(r"_(conv|norm)", lambda m: f".{int(m[1] == 'norm')}", name)
    for ours, theirs in (("stem", "features.0"), (".expand", ".0"), (".depthwise", f".{1 - first}"),
                         (".squeeze", f".{2 - first}.fc1"), (".excite", f".{2 - first}.fc2"),
                         (".project", f".{3 - first}"), ("last", "features.8"),
                         ("head", "classifier.1")):
        name = name.replace(ours, theirs)
    return name


def lite(name: str, *, starts: Sequence[int]) -> str:
    """The name of a variable of a lite variant in lukemelas' state dicts, in which the blocks of
    all stages are counted on.

    Args:
      name: here.
      starts: number of the first block of each stage.
    """
    name = re.sub(r"^stage(\d+)_block(\d+)\.",
                  lambda m: f"_blocks.{starts[int(m[1]) - 1] + int(m[2]) - 1}.", name)
    for ours, theirs in (
            ("expand_conv", "_expand_conv"), ("expand_norm", "_bn0"),
            ("depthwise_conv", "_depthwise_conv"), ("depthwise_norm", "_bn1"),
            ("project_conv", "_project_conv"), ("project_norm", "_bn2"),
            ("stem_conv", "_conv_stem"), ("stem_norm", "_bn0"), ("last_conv", "_conv_head"),
            ("last_norm", "_bn1"), ("head", "_fc")):
        name = re.sub(rf"(^|\.){ours}\.", rf"\1{theirs}.", name)
    return name


def lite_timm(name: str) -> str:
    """The name of a variable of a lite variant in timm's state dicts (tf_efficientnet_lite0)."""
    name, block = re.subn(r"^stage(\d+)_block(\d+)",
                          lambda m: f"blocks.{int(m[1]) - 1}.{int(m[2]) - 1}", name)
    if not block:
        for ours, theirs in (("stem_conv", "conv_stem"), ("stem_norm", "bn1"),
                             ("last_conv", "conv_head"), ("last_norm", "bn2"),
                             ("head", "classifier")):
            name = re.sub(rf"^{ours}\.", f"{theirs}.", name)
        return name
    first = name.startswith("blocks.0.")  # Expands nothing, so that its layers come one earlier.
    layers = ("depthwise", "project") if first else ("expand", "depthwise", "project")
    convs = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pw" if first
             else "conv_pwl"}
    for i, layer in enumerate(layers):
        name = name.replace(f".{layer}_norm.", f".bn{i + 1}.")
        name = name.replace(f".{layer}_conv.", f".{convs[layer]}.")
    return name


class EfficientNet(nn.Module):
    """Seven stages of inverted residual blocks with squeeze-and-excitation, scaled (section 4).

    With 1000 classes 5,288,548 parameters at B0; B1 to B7 have 7,794,184; 9,109,994; 12,233,232;
    19,341,616; 30,389,784; 43,040,704 and 66,347,960, and are meant for images of 240, 260, 300,
    380, 456, 528 and 600 pixels a side instead of 224. Channels are rounded to multiples of eight,
    numbers of blocks up. Norms have momentum 0.9 and epsilon 1e-5, from B5 on 0.99 and 1e-3, as
    torchvision's. Convolutions start He-normal, and the head's weights with a deviation of 0.01, as
    MobileNetV2's: libraries draw them within 1 / sqrt(classes) of zero, from where ten classes
    start with a loss above five.

    The variants "Lite0" to "Lite4" are Google's for mobile processors (2020,
    https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite): without
    squeeze-and-excitation, relu6 in place of silu, the first and the last convolution of 32 and
    1280 channels and the first and last stage of one block in all of them, convolutions padded as
    TensorFlow does. Lite0 has 4,652,008 parameters.

    Attributes:
      variant: which factors of depth and width: "B0" to "B7", "Lite0" to "Lite4".
      classes: number of logits.
      stochastic_depth: p, where block i of n, counted from zero, is skipped in training with
        probability p i / n (Huang et al. 2016, section 3; 0.2 in section 5.2); None for none.
      dropout: probability of zeroing an input of the dense layer in training; "auto" is the
        paper's, 0.2 at B0 and B1, 0.3 at B2 and B3, 0.4 at B4 and B5, 0.5 at B6 and B7 (Lite: 0.2
        at 0 and 1, else 0.3); None for none.
    """

    variant: Variant = "B0"
    classes: Size = 10
    stochastic_depth: Fraction | None = 0.2
    dropout: Fraction | Literal["auto"] | None = "auto"

    @property
    def published(self) -> dict[str, Callable[[str], str]]:
        """How libraries name its variables."""
        if not self.variant.startswith("Lite"):
            return {"torchvision": torchvision}
        starts = [0, *itertools.accumulate(self.blocks())]
        return {"lukemelas": functools.partial(lite, starts=starts), "timm": lite_timm}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise UserError(f"EfficientNet: variant={self.variant!r} is not one of "
                            f"{', '.join(VARIANTS)}.{nearest(str(self.variant), VARIANTS)}")

    def blocks(self) -> list[int]:
        """How many there are in each stage."""
        deeper = VARIANTS[self.variant][1]
        fixed = (0, len(STAGES) - 1) if self.variant.startswith("Lite") else ()
        return [count if i in fixed else math.ceil(deeper * count)
                for i, (*_, count) in enumerate(STAGES)]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        wider, _, dropout, momentum, epsilon = VARIANTS[self.variant]
        lite = self.variant.startswith("Lite")
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=momentum,
                                 epsilon=epsilon)
        activation, counts = nn.relu6 if lite else nn.silu, self.blocks()

        x = Conv(32 if lite else eights(32 * wider), (3, 3), 2, padding="SAME" if lite else 1,
                 use_bias=False, kernel_init=he_normal, name="stem_conv")(x)  # [B, H/2, W/2, C]
        x = activation(norm(name="stem_norm")(x))
        number = 0
        for i, (expansion, kernel, stride, channels, _) in enumerate(STAGES):
            for j in range(counts[i]):
                skipped = rising(self.stochastic_depth, number, sum(counts))
                x = MBConv(eights(channels * wider), stride if j == 0 else 1, expansion, kernel,
                           skipped, momentum, epsilon, lite,
                           name=f"stage{i + 1}_block{j + 1}")(x, train)
                number += 1
        x = Conv(1280 if lite else 4 * x.shape[-1], (1, 1), padding=0, use_bias=False,
                 kernel_init=he_normal, name="last_conv")(x)
        x = activation(norm(name="last_norm")(x)).mean((1, 2))  # [B, C]
        if not isinstance(self.dropout, str):
            dropout = self.dropout
        x = Dropout(dropout)(x, train)
        return nn.Dense(self.classes, kernel_init=small_normal, name="head")(x)  # [B, classes]


class MBConv(nn.Module):
    """x + project(gate(depthwise(expand(x)))), or without x where the shape changes.

    Expand is 1 x 1 and depthwise k x k, each with a norm and silu(.); project is 1 x 1 with a norm,
    and linear. The gate multiplies each channel by a number in (0, 1), two dense layers of the
    channels' means: squeeze-and-excitation of Hu et al. (2018), https://arxiv.org/abs/1709.01507.

    Attributes:
      channels: output channels.
      stride: of the depthwise convolution.
      expansion: factor of the channels inside; 1 leaves the first convolution out.
      kernel: k, side of the depthwise kernels.
      stochastic_depth: probability that the branch is left out in training; None for none.
      momentum: of the norms.
      epsilon: of the norms.
      lite: relu6 in place of silu, no gate, padding as TensorFlow's.
    """

    channels: int
    stride: int
    expansion: int
    kernel: int
    stochastic_depth: float | None
    momentum: float
    epsilon: float
    lite: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = functools.partial(nn.BatchNorm, use_running_average=not train,
                                 momentum=self.momentum, epsilon=self.epsilon)
        activation = nn.relu6 if self.lite else nn.silu
        inside, narrow = x.shape[-1] * self.expansion, max(x.shape[-1] // 4, 1)
        y = x  # [B, H, W, C]
        if self.expansion > 1:
            y = Conv(inside, (1, 1), padding=0, use_bias=False, kernel_init=he_normal,
                     name="expand_conv")(y)
            y = activation(norm(name="expand_norm")(y))
        y = Conv(inside, (self.kernel, self.kernel), self.stride,
                 padding="SAME" if self.lite else self.kernel // 2, feature_group_count=inside,
                 use_bias=False, kernel_init=he_normal, name="depthwise_conv")(y)
        y = activation(norm(name="depthwise_norm")(y))
        if not self.lite:
            # Dense layers as convolutions of one pixel, in which form their weights are published.
            gate = y.mean((1, 2), keepdims=True)  # [B, 1, 1, inside]
            gate = nn.silu(Conv(narrow, (1, 1), kernel_init=he_normal, name="squeeze")(gate))
            y *= nn.sigmoid(Conv(inside, (1, 1), kernel_init=he_normal, name="excite")(gate))
        y = Conv(self.channels, (1, 1), padding=0, use_bias=False, kernel_init=he_normal,
                 name="project_conv")(y)
        y = norm(name="project_norm")(y)
        if self.stride > 1 or x.shape[-1] != self.channels:
            return y
        return x + StochasticDepth(self.stochastic_depth)(y, train)
