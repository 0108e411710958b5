"""Residual networks with identity mappings, "v2", of He et al. (2016),
https://arxiv.org/abs/1603.05027."""

import re
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, StochasticDepth, batch_norm, he_normal, rising

Array = jax.Array

# Bottlenecks in each of the four stages.
IMAGENET = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


def timm(name: str) -> str:
    """The name of a variable in timm's state dicts (resnetv2_50 and its kin)."""
    name = re.sub(r"^stage(\d+)_block(\d+)",
                  lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}", name)
    for ours, theirs in (("stem_conv", "stem.conv"), ("shortcut_conv", "downsample.conv"),
                         ("head", "head.fc")):
        name = name.replace(ours, theirs)
    return name


class ResNetV2(nn.Module):
    """Residual network whose blocks normalise before they convolve, and pass x on as it is.

    - 50, 101, 152, 200 with form "imagenet": four stages of bottlenecks for 224 x 224 images; with
      1000 classes 25,549,352; 44,541,480; 60,185,128 and 64,666,152 parameters. The stride is in
      the 3 x 3 convolution.
    - form "cifar": three stages with 16, 32 and 64 channels (times four of bottlenecks) for 32 x 32
      images: 6n + 2 layers of basic blocks, or 9n + 2 of bottlenecks. Depth 164 with bottlenecks
      has 1,703,258 parameters (table 4: 1.7 M), depth 1001 has 10,327,706 (10.2 M).

    Attributes:
      depth: number of layers with weights.
      classes: number of logits.
      form: for which size of images.
      block: what the stages of form "cifar" are made of.
      stochastic_depth: probability that the last block is skipped in training (Huang et al. 2016,
        section 3), which rises linearly from the first; None for none.
    """

    depth: int = 20
    classes: Size = 10
    form: Literal["cifar", "imagenet"] = "cifar"
    block: Literal["basic", "bottleneck"] = "basic"
    stochastic_depth: Fraction | None = None

    published: ClassVar[dict[str, Callable[[str], str]]] = {"timm": timm}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "imagenet" and self.depth not in IMAGENET:
            raise UserError(f"ResNetV2: depth={self.depth} with form='imagenet'; expected one of "
                            f"{', '.join(map(str, IMAGENET))}.")
        step = 9 if self.block == "bottleneck" else 6
        if self.form == "cifar" and (self.depth < step + 2 or (self.depth - 2) % step):
            n = max((self.depth - 2) // step, 1)
            raise UserError(f"ResNetV2: depth={self.depth} is not {step}n + 2, as "
                            f"block={self.block!r} needs; nearest: {step * n + 2}, "
                            f"{step * (n + 1) + 2}.")

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.form == "imagenet":
            blocks, bottleneck, channels = IMAGENET[self.depth], True, 64
            x = Conv(64, (7, 7), 2, padding=3, use_bias=False, kernel_init=he_normal,
                     name="stem_conv")(x)  # [B, H / 2, W / 2, 64]
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]
        else:
            bottleneck, channels = self.block == "bottleneck", 16
            blocks = ((self.depth - 2) // (9 if bottleneck else 6),) * 3
            x = Conv(16, (3, 3), padding=1, use_bias=False, kernel_init=he_normal,
                     name="stem_conv")(x)  # [B, H, W, 16]
        number = 0
        for i, count in enumerate(blocks):
            for j in range(count):
                number += 1
                skipped = rising(self.stochastic_depth, number, sum(blocks))
                x = BlockV2(channels=channels * 2 ** i, stride=2 if i > 0 and j == 0 else 1,
                            bottleneck=bottleneck, stochastic_depth=skipped,
                            name=f"stage{i + 1}_block{j + 1}")(x, train)
        x = nn.relu(batch_norm(train, name="norm")(x))
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))  # [B, classes]


class BlockV2(nn.Module):
    """x + f(x), f being two or three times norm, ReLU, convolution (figure 1b). Where the shape
    changes, x is projected after the first norm and ReLU, which both branches then share.

    Attributes:
      channels: output channels; of a bottleneck a quarter of them.
      stride: of the (first) 3 x 3 convolution.
      bottleneck: 1 x 1, 3 x 3, 1 x 1 instead of two 3 x 3.
      stochastic_depth: probability that f(x) is left out in training; None for none.
    """

    channels: int
    stride: int
    bottleneck: bool
    stochastic_depth: float | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def conv(y: Array, channels: int, kernel: int, stride: int, name: str) -> Array:
            return Conv(channels, (kernel, kernel), stride, padding=kernel // 2, use_bias=False,
                        kernel_init=he_normal, name=name)(y)

        if self.bottleneck:
            layers = [(self.channels, 1, 1), (self.channels, 3, self.stride),
                      (4 * self.channels, 1, 1)]
        else:
            layers = [(self.channels, 3, self.stride), (self.channels, 3, 1)]
        y = nn.relu(batch_norm(train, name="norm1")(x))  # [B, H, W, C]
        if x.shape[-1] != layers[-1][0] or self.stride > 1:
            x = conv(y, layers[-1][0], 1, self.stride, "shortcut_conv")
        for i, (channels, kernel, stride) in enumerate(layers, 1):
            if i > 1:
                y = nn.relu(batch_norm(train, name=f"norm{i}")(y))
            y = conv(y, channels, kernel, stride, f"conv{i}")
        return x + StochasticDepth(self.stochastic_depth)(y, train)
