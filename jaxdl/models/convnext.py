"""ConvNeXt of Liu et al. (2022), https://arxiv.org/abs/2201.03545."""

import re
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, StochasticDepth, rising

Array = jax.Array

start = nn.initializers.truncated_normal(0.02)


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts."""
    name = re.sub(r"^stage(\d+)_block(\d+)",
                  lambda m: f"features.{2 * int(m[1]) - 1}.{int(m[2]) - 1}", name)
    name = re.sub(r"^shrink(\d+)_(norm|conv)",
                  lambda m: f"features.{2 * int(m[1])}.{int(m[2] == 'conv')}", name)
    for ours, theirs in (("stem_conv", "features.0.0"), ("stem_norm", "features.0.1"),
                         (".depthwise", ".block.0"), (".norm", ".block.2"), (".dense1", ".block.3"),
                         (".dense2", ".block.5"), ("head_norm", "classifier.0"),
                         ("head.", "classifier.2.")):
        name = name.replace(ours, theirs)
    return name


class ConvNeXt(nn.Module):
    """Four stages of depthwise 7 x 7 convolutions and pointwise MLPs (section 2, figure 4).

    The default is ConvNeXt-T: with 1000 classes 28,589,128 parameters. S has blocks (3, 3, 27, 3):
    50,223,688; B also channels from 128: 88,591,464; L from 192: 197,767,336. For 32 x 32 images
    patch 2 or 1 keeps more of them.

    Attributes:
      blocks: in each stage; from the second stage on the image is halved first.
      channels: of each stage.
      classes: number of logits.
      patch: side of the patches of the first convolution, and its stride, in pixels.
      layer_scale: initial value of the factor of each channel of a branch (section A.1).
      stochastic_depth: probability that the last block is skipped in training (Huang et al. 2016,
        section 3), which rises linearly from zero at the first; 0.1 in the paper for T.
    """

    blocks: tuple[Size, ...] = (3, 3, 9, 3)
    channels: tuple[Size, ...] = (96, 192, 384, 768)
    classes: Size = 10
    patch: Size = 4
    layer_scale: float = 1e-6
    stochastic_depth: Fraction | None = None

    published: ClassVar[dict[str, Callable[[str], str]]] = {"torchvision": torchvision}

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.blocks) != len(self.channels):
            raise UserError(f"ConvNeXt: blocks has {len(self.blocks)} stages, channels "
                            f"{len(self.channels)}.")

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        least = self.patch * 2 ** (len(self.blocks) - 1)
        if min(x.shape[1:3]) < least:
            raise UserError(f"ConvNeXt: images of {x.shape[1]} x {x.shape[2]}; patch={self.patch} "
                            f"and {len(self.blocks)} stages need {least} x {least} at least.")
        x = Conv(self.channels[0], (self.patch, self.patch), self.patch, padding="VALID",
                 kernel_init=start, name="stem_conv")(x)  # [B, H / patch, W / patch, C]
        x = norm("stem_norm")(x)
        number = 0
        for i, (count, channels) in enumerate(zip(self.blocks, self.channels, strict=True)):
            if i > 0:
                x = norm(f"shrink{i}_norm")(x)
                x = Conv(channels, (2, 2), 2, padding="VALID", kernel_init=start,
                         name=f"shrink{i}_conv")(x)
            for j in range(count):
                skipped = rising(self.stochastic_depth, number, sum(self.blocks) - 1)
                x = ConvNeXtBlock(self.layer_scale, skipped,
                                  name=f"stage{i + 1}_block{j + 1}")(x, train)
                number += 1
        x = norm("head_norm")(x.mean((1, 2)))  # [B, C]
        return nn.Dense(self.classes, kernel_init=start, name="head")(x)  # [B, classes]


class ConvNeXtBlock(nn.Module):
    """x + scale * dense(gelu(dense(norm(depthwise(x))))), four times as wide inside.

    Attributes:
      layer_scale: initial value of scale, one number for each channel.
      stochastic_depth: probability that the branch is left out in training; None for none.
    """

    layer_scale: float
    stochastic_depth: float | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1]  # x  # [B, H, W, C]
        y = Conv(channels, (7, 7), padding=3, feature_group_count=channels, kernel_init=start,
                 name="depthwise")(x)
        y = norm("norm")(y)
        y = nn.Dense(4 * channels, kernel_init=start, name="dense1")(y)
        y = nn.Dense(channels, kernel_init=start, name="dense2")(nn.gelu(y, approximate=False))
        scale = self.param("layer_scale", nn.initializers.constant(self.layer_scale),
                           (channels, 1, 1))  # the shape that published weights have
        return x + StochasticDepth(self.stochastic_depth)(y * scale[:, 0, 0], train)


def norm(name: str) -> nn.LayerNorm:
    """Layer normalisation (Ba et al. 2016) of the channels, epsilon 1e-6."""
    return nn.LayerNorm(epsilon=1e-6, name=name)
