"""AlexNet in the form of Krizhevsky (2014), https://arxiv.org/abs/1404.5997."""

import re
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, Dropout

Array = jax.Array


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts."""
    name = re.sub(r"^conv(\d)", lambda m: f"features.{(0, 3, 6, 8, 10)[int(m[1]) - 1]}", name)
    for ours, theirs in (("dense1", "classifier.1"), ("dense2", "classifier.4"),
                         ("head", "classifier.6")):
        name = name.replace(ours, theirs)
    return name


class AlexNet(nn.Module):
    """Five convolutions with three max poolings, then three dense layers, for 224 x 224 images.

    With 1000 classes 61,100,840 parameters. It is the one-column network of the paper's footnote 1,
    with 256 channels in the fourth convolution, as torchvision has it: without the local response
    normalisation of Krizhevsky et al. (2012). All weights and biases start uniform within
    1 / sqrt(inputs of a unit) of zero, PyTorch's default, from which torchvision's were trained.

    Attributes:
      classes: number of logits.
      dropout: probability of zeroing an input of a hidden dense layer in training; None for none.
    """

    classes: Size = 10
    dropout: Fraction | None = 0.5

    published: ClassVar[dict[str, Callable[[str], str]]] = {"torchvision": torchvision}

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def conv(x: Array, channels: int, kernel: int, stride: int, padding: int,
                 name: str) -> Array:
            start = within((kernel ** 2 * x.shape[-1]) ** -0.5)
            return nn.relu(Conv(channels, (kernel, kernel), stride, padding=padding,
                                kernel_init=start, bias_init=start, name=name)(x))

        def dense(x: Array, units: int, name: str) -> Array:
            start = within(x.shape[-1] ** -0.5)
            return nn.Dense(units, kernel_init=start, bias_init=start, name=name)(x)

        height, width = x.shape[1:3]  # x  # [B, H, W, C]
        if not (223 <= height <= 254 and 223 <= width <= 254):  # Else the last map is not 6 x 6.
            raise UserError(f"AlexNet: images of {height} x {width}; it is for 224 x 224.")
        x = conv(x, 64, 11, 4, 2, "conv1")  # [B, 55, 55, 64]
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = conv(x, 192, 5, 1, 2, "conv2")  # [B, 27, 27, 192]
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = conv(x, 384, 3, 1, 1, "conv3")  # [B, 13, 13, 384]
        x = conv(x, 256, 3, 1, 1, "conv4")
        x = conv(x, 256, 3, 1, 1, "conv5")
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 6, 6, 256]
        # Channels, height, width: the order in which the published weights expect the values.
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # [B, 9216]
        x = nn.relu(dense(Dropout(self.dropout)(x, train), 4096, "dense1"))
        x = nn.relu(dense(Dropout(self.dropout)(x, train), 4096, "dense2"))
        return dense(x, self.classes, "head")  # [B, classes]


def within(bound: float) -> nn.initializers.Initializer:
    """Uniform from -bound to bound."""
    def start(key: Array, shape: tuple[int, ...], dtype: type = float) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start
