"""Densely connected networks of Huang et al. (2017), https://arxiv.org/abs/1608.06993."""

import re
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, Dropout, batch_norm

Array = jax.Array

# Layers in each of the four blocks (table 1), and the growth.
IMAGENET = {121: ((6, 12, 24, 16), 32), 169: ((6, 12, 32, 32), 32), 201: ((6, 12, 48, 32), 32),
            161: ((6, 12, 36, 24), 48)}

# Normal with variance 2 / fan_in, He et al. (2015), and uniform with variance 1 / (3 fan_in).
fan_in_normal = nn.initializers.variance_scaling(2., "fan_in", "normal")
fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts."""
    if name.startswith("head"):
        return name.replace("head", "classifier")
    name = re.sub(r"^block(\d+)_layer(\d+)", r"denseblock\1.denselayer\2", name)
    name = re.sub(r"^stem_(conv|norm)", r"\g<1>0", name)
    return "features." + re.sub(r"^norm\.", "norm5.", name)


class DenseNet(nn.Module):
    """DenseNet-BC: blocks whose layers see the outputs of all layers before (section 3).

    Between blocks a 1 x 1 convolution halves the channels, and an average pooling the image.

    - 6n + 4 (40, 100, 190, 250, ...): three blocks of n layers, for 32 x 32 images. DenseNet-BC-100
      of growth 12 has 769,162 parameters with ten classes (table 2: 0.8 M).
    - 121, 169, 201 (table 1), and 161 with growth 48: four blocks, for 224 x 224 images. With 1000
      classes 7,978,856; 14,149,480; 20,013,928 and 28,681,000 parameters.

    Convolutions start He-normal in their inputs, as torchvision's.

    Attributes:
      depth: number of layers with weights: 6n + 4, or 121, 169, 201 or 161.
      classes: number of logits.
      growth: channels that each layer adds, k; None is the paper's, 48 at depth 161, 32 at the
        others for 224 x 224 images, 12 at 6n + 4.
      stem: "cifar" starts with a 3 x 3 convolution, "imagenet" with 7 x 7 of stride 2, a norm and a
        max pooling; "auto" goes by the depth. Depth 121 with "cifar" is the usual one for 32 x 32
        images (6,956,298 parameters with ten classes).
      dropout: probability of zeroing an output of each convolution but the first in training
        (section 4.2: 0.2 on CIFAR without augmentation); None for none.
    """

    depth: int = 100
    classes: Size = 10
    growth: Size | None = None
    stem: Literal["auto", "cifar", "imagenet"] = "auto"
    dropout: Fraction | None = None

    published: ClassVar[dict[str, Callable[[str], str]]] = {"torchvision": torchvision}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in IMAGENET and (self.depth < 10 or self.depth % 6 != 4):
            legal = {*range(10, max(self.depth, 10) + 7, 6), *IMAGENET}
            near = sorted(sorted(legal, key=lambda depth: abs(depth - self.depth))[:2])
            raise UserError(f"DenseNet: depth={self.depth} is neither 6n + 4 nor one of "
                            f"{', '.join(map(str, IMAGENET))}; nearest: {near[0]}, {near[1]}.")

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        wide = self.depth in IMAGENET
        blocks, growth = IMAGENET[self.depth] if wide else (((self.depth - 4) // 6,) * 3, 12)
        growth = growth if self.growth is None else self.growth
        stem = ("imagenet" if wide else "cifar") if self.stem == "auto" else self.stem

        halved = 2 ** (len(blocks) - 1)
        least = 4 * halved - 3 if stem == "imagenet" else halved  # for one pixel in the last block
        height, width = x.shape[1:3]  # x  # [B, H, W, C]
        if min(height, width) < least:
            raise UserError(f"DenseNet: images of {height} x {width}; depth={self.depth} with "
                            f"stem={stem!r} needs {least} x {least} at least.")

        if stem == "imagenet":
            x = Conv(2 * growth, (7, 7), 2, padding=3, use_bias=False, kernel_init=fan_in_normal,
                     name="stem_conv")(x)
            x = nn.relu(batch_norm(train, name="stem_norm")(x))
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]
        else:
            x = Conv(2 * growth, (3, 3), padding=1, use_bias=False, kernel_init=fan_in_normal,
                     name="stem_conv")(x)

        for i, count in enumerate(blocks, 1):
            for j in range(1, count + 1):
                x = DenseLayer(growth, self.dropout, name=f"block{i}_layer{j}")(x, train)
            if i < len(blocks):
                x = Transition(self.dropout, name=f"transition{i}")(x, train)
        x = nn.relu(batch_norm(train, name="norm")(x))
        return nn.Dense(self.classes, kernel_init=fan_in_uniform,
                        name="head")(x.mean((1, 2)))  # [B, classes]


class DenseLayer(nn.Module):
    """x and, beside it, conv(relu(norm(conv(relu(norm(x)))))), of a 1 x 1 kernel and a 3 x 3 one.

    Attributes:
      growth: channels added; the 1 x 1 convolution has four times as many.
      dropout: probability of zeroing an output of a convolution in training; None for none.
    """

    growth: int
    dropout: float | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = x  # [B, H, W, C]
        for i, (channels, kernel) in enumerate(((4 * self.growth, 1), (self.growth, 3)), 1):
            y = nn.relu(batch_norm(train, name=f"norm{i}")(y))
            y = Conv(channels, (kernel, kernel), padding=kernel // 2, use_bias=False,
                     kernel_init=fan_in_normal, name=f"conv{i}")(y)
            y = Dropout(self.dropout)(y, train)
        return jnp.concatenate([x, y], -1)  # [B, H, W, C + growth]


class Transition(nn.Module):
    """pool(conv(relu(norm(x)))): half the channels, and the mean of each 2 x 2 pixels.

    Attributes:
      dropout: probability of zeroing an output of the convolution in training; None for none.
    """

    dropout: float | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        channels = x.shape[-1] // 2
        x = nn.relu(batch_norm(train, name="norm")(x))  # [B, H, W, C]
        x = Conv(channels, (1, 1), padding=0, use_bias=False, kernel_init=fan_in_normal,
                 name="conv")(x)
        x = Dropout(self.dropout)(x, train)
        return nn.avg_pool(x, (2, 2), (2, 2))  # [B, H / 2, W / 2, C / 2]
