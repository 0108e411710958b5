"""What follows an action, as several networks expect it: for planning."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.layers import Activation
from jaxdl.models.soft_actor_critic import Dense

Array = jax.Array


class Dynamics(nn.Module):
    """Normal distributions over how the observation changes and what the reward is, each number by
    itself, by networks of dense layers that share nothing (Chua et al. 2018,
    https://arxiv.org/abs/1805.12114, section 4).

    Attributes:
      outputs: numbers of which there are distributions: those of an observation, and one.
      widths: units of each hidden layer.
      members: networks.
      activation: after each layer but the last.
    """

    outputs: Size
    widths: tuple[Size, ...] = (128, 128)
    members: Size = 5
    activation: Activation = "silu"

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(means, logarithms of deviations), [members, N, outputs], of [members, N, inputs]: each
        member has inputs of its own. The deviations lie between exp(-5) and exp(1/2)."""
        several = nn.vmap(Dense, variable_axes={"params": 0}, split_rngs={"params": True},
                          in_axes=0, out_axes=0, axis_size=self.members)
        mean, log = jnp.split(several(self.widths, 2 * self.outputs, self.activation)(x), 2, -1)
        return mean, -5 + 5.5 * nn.sigmoid(log)
