"""Values of actions, of one observation."""

import flax.linen as nn
import jax

from jaxdl.config import Size
from jaxdl.layers import Activation, activate
from jaxdl.models.actor_critic import convolved

Array = jax.Array


class QNetwork(nn.Module):
    """Dense layers to a value for each action.

    Attributes:
      actions: how many there are.
      widths: units of each hidden layer.
      channels: of convolutions with kernel 3 before them, for observations [H, W, C]; () for none.
      duelling: whether there are two heads, V and A, with Q = V + A - mean A (Wang et al. 2016,
        https://arxiv.org/abs/1511.06581, equation 9).
      activation: after each layer but the last.
    """

    actions: Size
    widths: tuple[Size, ...] = (128, 128)
    channels: tuple[Size, ...] = ()
    duelling: bool = False
    activation: Activation = "relu"

    @nn.compact
    def __call__(self, observation: Array, train: bool) -> Array:
        """[B, actions] of observations [B, ...]."""
        x = convolved(observation, self.channels, self.activation)
        for i, width in enumerate(self.widths):
            x = activate(nn.Dense(width, name=f"dense{i + 1}")(x), self.activation)
        advantage = nn.Dense(self.actions, name="head")(x)
        if not self.duelling:
            return advantage
        value = nn.Dense(1, name="value")(x)
        return value + advantage - advantage.mean(-1, keepdims=True)
