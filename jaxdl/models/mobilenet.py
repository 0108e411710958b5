"""MobileNetV2 of Sandler et al. (2018), https://arxiv.org/abs/1801.04381."""

import re
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.layers import Conv, Dropout, batch_norm, he_normal

Array = jax.Array

# Of each stage: factor of expansion, channels, blocks, stride of the first (table 2).
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
          (6, 160, 3, 2), (6, 320, 1, 1))

small_normal = nn.initializers.normal(0.01)


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts."""
    first = name.startswith("block1.")  # It expands nothing, so that its layers come one earlier.
    name = re.sub(r"\.project_(conv|norm)",
                  lambda m: f".conv.{2 - first + (m[1] == 'norm')}", name)
    name = re.sub(r"_(conv|norm)", lambda m: f".{int(m[1] == 'norm')}", name)
    for ours, theirs in (("stem", "features.0"), ("block", "features."), (".expand", ".conv.0"),
                         (".depthwise", f".conv.{1 - first}"), ("last", "features.18"),
                         ("head", "classifier.1")):
        name = name.replace(ours, theirs)
    return name


class MobileNetV2(nn.Module):
    """Seventeen inverted residual blocks in seven stages (section 3.4, table 2).

    With 1000 classes 3,504,872 parameters at width 100; 2,236,682 with ten. Convolutions start
    He-normal, the dense layer as N(0, 0.01^2).

    Attributes:
      classes: number of logits.
      width: of the channels in table 2, in percent: the paper's multiplier 1.4 is 140 (section
        6.1). They are rounded to multiples of eight, and the last 1280 are not made fewer.
      stem: "imagenet" has the paper's strides, for 224 x 224 images; with "cifar", for 32 x 32
        images, the first convolution and the stage of 24 channels have stride 1 instead of 2, so
        that the last map has an eighth of the image's side.
      dropout: probability of zeroing an input of the dense layer in training; None for none.
    """

    classes: Size = 10
    width: Size = 100
    stem: Literal["imagenet", "cifar"] = "imagenet"
    dropout: Fraction | None = 0.2

    published: ClassVar[dict[str, Callable[[str], str]]] = {"torchvision": torchvision}

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        small = self.stem == "cifar"
        x = Conv(eights(32 * self.width / 100), (3, 3), 1 if small else 2, padding=1,
                 use_bias=False, kernel_init=he_normal, name="stem_conv")(x)  # [B, H / 2, W / 2, C]
        x = nn.relu6(batch_norm(train, name="stem_norm")(x))
        number = 0
        for i, (expansion, channels, count, stride) in enumerate(STAGES):
            stride = 1 if small and i == 1 else stride
            for j in range(count):
                number += 1
                x = InvertedResidual(eights(channels * self.width / 100), stride if j == 0 else 1,
                                     expansion, name=f"block{number}")(x, train)
        x = Conv(eights(1280 * max(self.width, 100) / 100), (1, 1), padding=0, use_bias=False,
                 kernel_init=he_normal, name="last_conv")(x)
        x = nn.relu6(batch_norm(train, name="last_norm")(x)).mean((1, 2))  # [B, C]
        x = Dropout(self.dropout)(x, train)
        return nn.Dense(self.classes, kernel_init=small_normal, name="head")(x)  # [B, classes]


class InvertedResidual(nn.Module):
    """x + project(depthwise(expand(x))), or without x where the shape changes (section 3.3).

    Expand is 1 x 1, depthwise 3 x 3, each with a norm and min(max(., 0), 6); project is 1 x 1 with
    a norm, and linear.

    Attributes:
      channels: output channels.
      stride: of the depthwise convolution.
      expansion: factor of the channels inside; 1 leaves the first convolution out.
    """

    channels: int
    stride: int
    expansion: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        inside = x.shape[-1] * self.expansion
        y = x  # [B, H, W, C]
        if self.expansion > 1:
            y = Conv(inside, (1, 1), padding=0, use_bias=False, kernel_init=he_normal,
                     name="expand_conv")(y)
            y = nn.relu6(batch_norm(train, name="expand_norm")(y))
        y = Conv(inside, (3, 3), self.stride, padding=1, feature_group_count=inside,
                 use_bias=False, kernel_init=he_normal, name="depthwise_conv")(y)
        y = nn.relu6(batch_norm(train, name="depthwise_norm")(y))
        y = Conv(self.channels, (1, 1), padding=0, use_bias=False, kernel_init=he_normal,
                 name="project_conv")(y)
        y = batch_norm(train, name="project_norm")(y)
        return x + y if self.stride == 1 and x.shape[-1] == self.channels else y


def eights(channels: float) -> int:
    """The nearest multiple of eight, at least eight; the next one if that is under 90 %."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
