"""Residual networks of He et al. (2015), https://arxiv.org/abs/1512.03385, and their variants:
ResNeXt, squeeze-and-excitation, stochastic depth."""

import re
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, StochasticDepth, batch_norm, he_normal, rising

Array = jax.Array

# Blocks in each of the four stages, and whether they are bottlenecks (table 1).
IMAGENET = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True),
            101: ((3, 4, 23, 3), True), 152: ((3, 8, 36, 3), True)}


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts, and in timm's."""
    name = re.sub(r"^stage(\d+)_block(\d+)",
                  lambda m: f"layer{m[1]}.{int(m[2]) - 1}", name)
    for ours, theirs in (("stem_conv", "conv1"), ("stem_norm", "bn1"), (".norm", ".bn"),
                         ("shortcut_conv", "downsample.0"), ("shortcut_norm", "downsample.1"),
                         (".squeeze", ".se.fc1"), (".excite", ".se.fc2"), ("head", "fc")):
        name = name.replace(ours, theirs)
    return name


class ResNet(nn.Module):
    """Residual network, in the form that the depth stands for.

    - 6n + 2 (20, 32, 44, 56, 110, ...): three stages of n basic blocks with 16, 32 and 64 channels,
      for 32 x 32 images (section 4.2). With ten classes 269,722 parameters at depth 20; 464,154,
      658,586, 853,018 and 1,727,962 at 32, 44, 56 and 110.
    - 18, 34, 50, 101, 152: four stages from 64 channels, for 224 x 224 images (table 1). With 1000
      classes 11,689,512; 21,797,672; 25,557,032; 44,549,160 and 60,192,808 parameters. From 50 on
      the blocks are bottlenecks of form v1.5: the stride is in the 3 x 3 convolution, not in the
      first 1 x 1 one as in the paper (+0.5 % top-1 at depth 50).

    50 and 152 are of the form 6n + 2 too, and mean the second kind. Convolutions start He-normal.

    ResNeXt-50 (32 x 4d; Xie et al. 2017, table 1) is depth 50, groups 32, group_width 4: 25,028,904
    parameters; ResNeXt-101 (32 x 8d) has 88,791,336. SE-ResNet-50 is depth 50, squeeze 16:
    28,088,024; SE-ResNeXt-50 27,559,896. Wide ResNet-50-2 is depth 50, group_width 128: 68,883,240.

    Attributes:
      depth: number of layers with weights: 6n + 2, or 18, 34, 50, 101 or 152.
      classes: number of logits.
      shortcut: where the shape changes: "pad" subsamples and adds channels of zeros (option A),
        "projection" is a 1 x 1 convolution (option B); "auto" is the paper's choice, "pad" for the
        first kind and "projection" for the second.
      stem: "cifar" starts with a 3 x 3 convolution, "imagenet" with 7 x 7 of stride 2 and a max
        pooling; "auto" goes by the depth. Depth 18 with "cifar" is the usual wide ResNet-18 for
        32 x 32 images (11,173,962 parameters with ten classes).
      zero_scale: start the last batch norm of each block at scale zero, so that each block starts
        as the identity (Goyal et al. 2017, section 5.1).
      groups: of the 3 x 3 convolution of a bottleneck (Xie et al. 2017).
      group_width: channels of each of them in the first stage; doubled from stage to stage.
      squeeze: factor by which squeeze-and-excitation (Hu et al. 2018, section 3) narrows the
        channels, 16 in the paper; None leaves it out.
      stochastic_depth: probability that the last block is skipped in training (Huang et al. 2016,
        section 3), which rises linearly from the first; None for none.
    """

    depth: int = 20
    classes: Size = 10
    shortcut: Literal["auto", "pad", "projection"] = "auto"
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    zero_scale: bool = False
    groups: Size = 1
    group_width: Size = 64
    squeeze: Size | None = None
    stochastic_depth: Fraction | None = None

    published: ClassVar[dict[str, Callable[[str], str]]] = {"torchvision": torchvision,
                                                            "timm": torchvision}

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.groups, self.group_width) != (1, 64) and not IMAGENET.get(self.depth, (0, 0))[1]:
            raise UserError(f"ResNet: groups={self.groups} and group_width={self.group_width} are "
                            f"of bottlenecks, which depth={self.depth} does not have; 50 does.")
        if self.depth not in IMAGENET and (self.depth < 8 or self.depth % 6 != 2):
            legal = {*range(8, max(self.depth, 8) + 7, 6), *IMAGENET}
            near = sorted(sorted(legal, key=lambda depth: abs(depth - self.depth))[:2])
            raise UserError(f"ResNet: depth={self.depth} is neither 6n + 2 nor one of "
                            f"{', '.join(map(str, IMAGENET))}; nearest: {near[0]}, {near[1]}.")

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        wide = self.depth in IMAGENET
        if wide:
            (blocks, bottleneck), channels = IMAGENET[self.depth], 64
        else:
            (blocks, bottleneck), channels = ((self.depth // 6,) * 3, False), 16
        stem = ("imagenet" if wide else "cifar") if self.stem == "auto" else self.stem
        shortcut = ("projection" if wide else "pad") if self.shortcut == "auto" else self.shortcut

        if stem == "imagenet":  # x  # [B, H, W, C]
            x = Conv(channels, (7, 7), 2, padding=3, use_bias=False, kernel_init=he_normal,
                     name="stem_conv")(x)
        else:
            x = Conv(channels, (3, 3), padding=1, use_bias=False, kernel_init=he_normal,
                     name="stem_conv")(x)
        x = nn.relu(batch_norm(train, name="stem_norm")(x))
        if stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]

        number = 0
        for i, count in enumerate(blocks):
            for j in range(count):
                number += 1
                skipped = rising(self.stochastic_depth, number, sum(blocks))
                width = channels * 2 ** i
                x = Block(channels=width, stride=2 if i > 0 and j == 0 else 1,
                          inner=width * self.group_width // 64 * self.groups, groups=self.groups,
                          bottleneck=bottleneck, shortcut=shortcut, zero_scale=self.zero_scale,
                          squeeze=self.squeeze, stochastic_depth=skipped,
                          name=f"stage{i + 1}_block{j + 1}")(x, train)
        x = x.mean((1, 2))  # [B, C]
        return nn.Dense(self.classes, name="head")(x)  # [B, classes]


class Block(nn.Module):
    """relu(x + f(x)), f being two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1 (figure 5).

    Attributes:
      channels: output channels; of a bottleneck a quarter of them.
      stride: of the (first) 3 x 3 convolution.
      bottleneck: which f.
      shortcut: "pad" or "projection" where the shape changes.
      zero_scale: start the last batch norm at scale zero.
      inner: channels of the 3 x 3 convolution of a bottleneck; None: `channels`.
      groups: of that convolution.
      squeeze: factor by which squeeze-and-excitation narrows the output channels; None for none.
      stochastic_depth: probability that f(x) is left out in training; None for none.
    """

    channels: int
    stride: int
    bottleneck: bool
    shortcut: str
    zero_scale: bool
    inner: int | None = None
    groups: int = 1
    squeeze: int | None = None
    stochastic_depth: float | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def conv(y: Array, channels: int, kernel: int, stride: int, groups: int,
                 name: str) -> Array:
            return Conv(channels, (kernel, kernel), stride, padding=kernel // 2, use_bias=False,
                        feature_group_count=groups, kernel_init=he_normal, name=name)(y)

        if self.bottleneck:
            inner = self.inner or self.channels
            layers = [(inner, 1, 1, 1), (inner, 3, self.stride, self.groups),
                      (4 * self.channels, 1, 1, 1)]
        else:
            layers = [(self.channels, 3, self.stride, 1), (self.channels, 3, 1, 1)]
        y = x  # [B, H, W, C]
        for i, (channels, kernel, stride, groups) in enumerate(layers, 1):
            last = i == len(layers)
            y = conv(y, channels, kernel, stride, groups, f"conv{i}")
            y = batch_norm(train, zero_scale=self.zero_scale and last, name=f"norm{i}")(y)
            y = y if last else nn.relu(y)
        if self.squeeze is not None:
            channels = y.shape[-1]
            gate = y.mean((1, 2), keepdims=True)  # [B, 1, 1, C]
            gate = nn.relu(Conv(max(channels // self.squeeze, 1), (1, 1), name="squeeze")(gate))
            y = y * nn.sigmoid(Conv(channels, (1, 1), name="excite")(gate))
        y = StochasticDepth(self.stochastic_depth)(y, train)

        if x.shape != y.shape and self.shortcut == "projection":
            x = conv(x, y.shape[-1], 1, self.stride, 1, "shortcut_conv")
            x = batch_norm(train, name="shortcut_norm")(x)
        elif x.shape != y.shape:
            more = y.shape[-1] - x.shape[-1]
            x = jnp.pad(x[:, ::self.stride, ::self.stride],
                        ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))
        return nn.relu(x + y)
