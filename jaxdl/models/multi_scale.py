"""Multi-scale convolutional network of Sermanet & LeCun (2011), "Traffic sign recognition with
multi-scale convolutional networks"."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Activation, Conv, Dropout, activate, batch_norm

Array = jax.Array


class MultiScaleCNN(nn.Module):
    """Stages of convolution and 2 x 2 max pooling, all of which the classifier sees (section 2.2).

    Of each stage the output is pooled to the size of the last one's, so that the classifier gets
    fine detail and large shapes side by side; a plain CNN classifies from the last stage alone.

    Attributes:
      channels: output channels of each stage.
      kernel: side of the square kernels, in pixels.
      dense: units of each hidden dense layer; () goes straight to the logits.
      classes: number of logits.
      activation: nonlinearity after each convolution and hidden dense layer.
      batch_norm: normalise the output of each convolution.
      dropout: probability of zeroing an input of a dense layer in training; None for none.
    """

    channels: tuple[Size, ...] = (32, 64)
    kernel: Size = 5
    dense: tuple[Size, ...] = (128,)
    classes: Size = 10
    activation: Activation = "relu"
    batch_norm: bool = False
    dropout: Fraction | None = None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        least = 2 ** len(self.channels)
        if min(x.shape[1:3]) < least:
            raise UserError(f"MultiScaleCNN: images of {x.shape[1]} x {x.shape[2]}; "
                            f"{len(self.channels)} stages need {least} x {least} at least.")
        scales = []
        for i, channels in enumerate(self.channels):  # x  # [B, H, W, C]
            x = Conv(channels, (self.kernel, self.kernel), use_bias=not self.batch_norm,
                     name=f"conv{i + 1}")(x)
            if self.batch_norm:
                x = batch_norm(train, name=f"norm{i + 1}")(x)
            x = nn.max_pool(activate(x, self.activation), (2, 2), (2, 2))
            scales.append(x)
        for i, y in enumerate(scales):
            side = 2 ** (len(scales) - 1 - i)
            scales[i] = nn.max_pool(y, (side, side), (side, side)).reshape(len(y), -1)
        x = jnp.concatenate(scales, -1)  # [B, features]
        for i, width in enumerate(self.dense):
            x = Dropout(self.dropout)(x, train)
            x = activate(nn.Dense(width, name=f"dense{i + 1}")(x), self.activation)
        x = Dropout(self.dropout)(x, train)
        return nn.Dense(self.classes, name="head")(x)  # [B, classes]
