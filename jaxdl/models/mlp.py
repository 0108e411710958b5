"""Multilayer perceptron."""

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.layers import Activation, Dropout, Initial, activate, batch_norm, initial

Array = jax.Array


class MLP(nn.Module):
    """Dense layers over the flattened input; each hidden one is dense, [batch norm], activation,
    [dropout].

    784-256-128-10, the default on MNIST, has 235,146 parameters.

    Attributes:
      widths: units of each hidden layer; () makes a linear classifier.
      classes: number of logits.
      activation: nonlinearity of the hidden layers.
      batch_norm: normalise before each nonlinearity.
      norm_last: normalise after it instead.
      dropout: probability of zeroing a hidden unit in training; None for none.
      initial: values of the hidden layers' kernels (`layers.INITIALS`); the head's are LeCun's.
    """

    widths: tuple[Size, ...] = (256, 128)
    classes: Size = 10
    activation: Activation = "relu"
    batch_norm: bool = False
    norm_last: bool = False
    dropout: Fraction | None = None
    initial: Initial = "lecun_normal"

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = x.reshape(len(x), -1)  # [B, H * W * C]
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, use_bias=not self.batch_norm or self.norm_last,
                         kernel_init=initial(self.initial), name=f"dense{i + 1}")(x)
            if self.norm_last:
                x = activate(x, self.activation)
            if self.batch_norm:
                x = batch_norm(train, name=f"norm{i + 1}")(x)
            if not self.norm_last:
                x = activate(x, self.activation)
            x = Dropout(self.dropout)(x, train)
        return nn.Dense(self.classes, name="head")(x)  # [B, classes]
