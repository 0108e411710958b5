"""A policy, and the values of its actions by several networks: of actions that are real numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.layers import Activation, activate

Array = jax.Array


class Dense(nn.Module):
    """Dense layers over one vector.

    Attributes:
      widths: units of each hidden layer.
      outputs: of the last one.
      activation: after each but the last.
    """

    widths: tuple[Size, ...]
    outputs: Size
    activation: Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., outputs]."""
        for i, width in enumerate(self.widths):
            x = activate(nn.Dense(width, name=f"dense{i + 1}")(x), self.activation)
        return nn.Dense(self.outputs, name="head")(x)


class SoftActorCritic(nn.Module):
    """What to do, and what it is worth: networks of dense layers that share nothing.

    Attributes:
      outputs: numbers that the policy takes, twice the size of an action.
      widths: units of each hidden layer, of all networks.
      critics: networks that value actions, each for itself.
      activation: after each layer but the last.
    """

    outputs: Size
    widths: tuple[Size, ...] = (256, 256)
    critics: Size = 2
    activation: Activation = "relu"

    def setup(self) -> None:
        self.actor = Dense(self.widths, self.outputs, self.activation)
        several = nn.vmap(Dense, variable_axes={"params": 0}, split_rngs={"params": True},
                          in_axes=None,  # type: ignore[arg-type]
                          out_axes=0, axis_size=self.critics)
        self.critic = several(self.widths, 1, self.activation)

    def __call__(self, observation: Array, action: Array) -> tuple[Array, Array]:
        """(policy, values), as below."""
        return self.policy(observation), self.values(observation, action)

    def policy(self, observation: Array) -> Array:
        """[B, outputs] of observations [B, ...]."""
        return self.actor(observation.reshape(len(observation), -1))

    def values(self, observation: Array, action: Array) -> Array:
        """[critics, B] of observations [B, ...] and actions [B, size]."""
        flat = observation.reshape(len(observation), -1)
        return self.critic(jnp.concatenate([flat, action], -1))[..., 0]
