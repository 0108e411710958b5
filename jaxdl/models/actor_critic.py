"""A policy and a value, of one observation."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.layers import Activation, Conv, activate
from jaxdl.matmul import narrow

Array = jax.Array


class ActorCritic(nn.Module):
    """Two networks side by side, one for what to do and one for what it is worth, of dense layers
    with orthogonal initial values: small ones at the policy's end, so that at first all actions are
    about equally likely (Andrychowicz et al. 2021, https://arxiv.org/abs/2006.05990, section 3.2).

    Attributes:
      outputs: numbers that the policy takes: of discrete actions as many as there are, of a vector
        of them twice its size.
      widths: units of each hidden layer, of both.
      channels: of convolutions with kernel 3 before them, which both share, for observations
        [H, W, C]; () for none.
      activation: after each but the last.
    """

    outputs: Size
    widths: tuple[Size, ...] = (64, 64)
    channels: tuple[Size, ...] = ()
    activation: Activation = "tanh"

    @nn.compact
    def __call__(self, observation: Array, train: bool) -> tuple[Array, Array]:
        """([B, outputs], values [B]) of observations [B, ...]."""
        x = observation
        for i, channels in enumerate(self.channels):
            x = activate(Conv(channels, (3, 3), name=f"conv{i + 1}")(x), self.activation)
        x = x.reshape(len(x), -1)
        said = self.head(x, "policy", self.outputs, 0.01)
        return said, self.head(x, "value", 1, 1.)[:, 0]

    def head(self, x: Array, name: str, outputs: int, scale: float) -> Array:
        """Hidden layers and the last one."""
        widths: Sequence[int] = self.widths
        for i, width in enumerate(widths):
            x = nn.Dense(width, kernel_init=nn.initializers.orthogonal(jnp.sqrt(2.)),
                         dot_general=narrow, name=f"{name}{i + 1}")(x)
            x = activate(x, self.activation)
        return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(scale),
                        dot_general=narrow, name=name)(x)
