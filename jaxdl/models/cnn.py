"""Small convolutional networks: stages of convolutions and pooling, then dense layers."""

from typing import Literal

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Activation, Conv, Dropout, Initial, activate, batch_norm, initial

Array = jax.Array


class CNN(nn.Module):
    """Stages of `repeats` convolutions and a 2 x 2 pooling, then dense layers.

    After LeCun et al. (1998), section II: on 28 x 28 images padded to 32 x 32, `channels=(6, 16)`,
    `kernel=5`, `padding="VALID"`, `pool="average"`, `dense=(120, 84)`, `activation="tanh"` is
    LeNet-5 with a plain head and full connections, 61,706 parameters. The default has 421,642 on
    28 x 28 grey images, and `channels=(32, 64, 128)` makes three stages of one convolution.

    Attributes:
      channels: output channels of each stage.
      kernel: side of the square kernels, in pixels.
      repeats: convolutions in each stage.
      padding: "SAME" keeps the size of the image, "VALID" drops the border that a kernel overlaps.
      pool: how each stage halves the image: its greatest or its mean value, or not at all.
      pool_last: whether the last stage does so too.
      average: replace the flattened image by its mean over pixels before the dense layers.
      dense: units of each hidden dense layer; () goes straight to the logits.
      classes: number of logits.
      activation: nonlinearity after each convolution and hidden dense layer.
      batch_norm: normalise the output of each convolution.
      dropout: probability of zeroing an input of a dense layer in training; None for none.
      stage_dropout: the same for the outputs of each stage.
      initial: values of all kernels but the head's (`layers.INITIALS`), which are LeCun's.
    """

    channels: tuple[Size, ...] = (32, 64)
    kernel: Size = 3
    repeats: Size = 1
    padding: Literal["SAME", "VALID"] = "SAME"
    pool: Literal["max", "average", "none"] = "max"
    pool_last: bool = True
    average: bool = False
    dense: tuple[Size, ...] = (128,)
    classes: Size = 10
    activation: Activation = "relu"
    batch_norm: bool = False
    dropout: Fraction | None = None
    stage_dropout: Fraction | None = None
    initial: Initial = "lecun_normal"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        side = x.shape[1:3]
        for i, channels in enumerate(self.channels):  # x  # [B, H, W, C]
            for j in range(self.repeats):
                name = f"{i + 1}" if self.repeats == 1 else f"{i + 1}_{j + 1}"
                x = Conv(channels, (self.kernel, self.kernel), padding=self.padding,
                         use_bias=not self.batch_norm, kernel_init=initial(self.initial),
                         name=f"conv{name}")(x)
                if self.batch_norm:
                    x = batch_norm(train, name=f"norm{name}")(x)
                x = activate(x, self.activation)
            halved = self.pool_last or i < len(self.channels) - 1
            if self.pool == "max" and halved:
                x = nn.max_pool(x, (2, 2), (2, 2))
            elif self.pool == "average" and halved:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            x = Dropout(self.stage_dropout)(x, train)
            if 0 in x.shape[1:3]:
                raise UserError(f"CNN: nothing is left of images of {side[0]} x {side[1]} after "
                                f"{i + 1} of {len(self.channels)} stages with kernel={self.kernel};"
                                " fewer channels, a smaller kernel, or pool_last=False.")
        x = x.mean((1, 2)) if self.average else x.reshape(len(x), -1)  # [B, features]
        for i, width in enumerate(self.dense):
            x = Dropout(self.dropout)(x, train)
            x = nn.Dense(width, kernel_init=initial(self.initial), name=f"dense{i + 1}")(x)
            x = activate(x, self.activation)
        x = Dropout(self.dropout)(x, train)
        return nn.Dense(self.classes, name="head")(x)  # [B, classes]
