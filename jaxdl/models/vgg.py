"""VGG of Simonyan & Zisserman (2015), https://arxiv.org/abs/1409.1556."""

import re
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, Dropout, batch_norm, he_normal

Array = jax.Array

# Convolutions before each of the five poolings (table 1, columns A, B, D and E).
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

small_normal = nn.initializers.normal(0.01)


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts."""
    name = re.sub(r"^(conv|norm)(\d+)", r"features.\2", name)
    for ours, theirs in (("dense1", "classifier.0"), ("dense2", "classifier.3"),
                         ("head", "classifier.6")):
        name = name.replace(ours, theirs)
    return name


class VGG(nn.Module):
    """Five stages of 3 x 3 convolutions and a 2 x 2 max pooling, then dense layers (table 1).

    With 1000 classes 132,863,336; 133,047,848; 138,357,544 and 143,667,240 parameters at depth 11,
    13, 16 and 19; with batch norm 138,365,992 at 16. In the form "cifar" VGG-16 with batch norm and
    ten classes has 14,728,266. Convolutions start He-normal, dense layers as N(0, 0.01^2).

    Convolutions and norms are named by their places in the list of convolutions, norms, activations
    and poolings, from zero, as torchvision's are.

    Attributes:
      depth: number of layers with weights in the form "imagenet": 11, 13, 16 or 19.
      classes: number of logits.
      form: "imagenet" ends with dense layers of 4096, 4096 and `classes` units, for 224 x 224
        images; "cifar" with the last alone, for 32 x 32 images.
      batch_norm: normalise the output of each convolution, which keeps its bias.
      dropout: probability of zeroing an output of a hidden dense layer in training (section 3.1);
        None for none.
    """

    depth: int = 16
    classes: Size = 10
    form: Literal["imagenet", "cifar"] = "imagenet"
    batch_norm: bool = False
    dropout: Fraction | None = 0.5

    published: ClassVar[dict[str, Callable[[str], str]]] = {"torchvision": torchvision}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth not in STAGES:
            near = min(STAGES, key=lambda depth: abs(depth - self.depth))
            raise UserError(f"VGG: depth={self.depth} is not one of "
                            f"{', '.join(map(str, STAGES))}; nearest: {near}.")

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        height, width = x.shape[1:3]  # x  # [B, H, W, C]
        legal = 224 if self.form == "imagenet" else 32
        if (height // 32, width // 32) != (legal // 32, legal // 32):
            raise UserError(f"VGG: images of {height} x {width}; form={self.form!r} is for "
                            f"{legal} x {legal}.")
        place = 0
        for i, count in enumerate(STAGES[self.depth]):
            for _ in range(count):
                x = Conv(min(64 * 2 ** i, 512), (3, 3), padding=1, kernel_init=he_normal,
                         name=f"conv{place}")(x)
                if self.batch_norm:
                    x = batch_norm(train, name=f"norm{place + 1}")(x)
                x = nn.relu(x)
                place += 3 if self.batch_norm else 2
            x = nn.max_pool(x, (2, 2), (2, 2))
            place += 1
        # Channels, height, width: the order in which the published weights expect the values.
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # [B, features]
        if self.form == "imagenet":
            for i in range(2):
                x = nn.relu(nn.Dense(4096, kernel_init=small_normal, name=f"dense{i + 1}")(x))
                x = Dropout(self.dropout)(x, train)
        return nn.Dense(self.classes, kernel_init=small_normal, name="head")(x)  # [B, classes]
