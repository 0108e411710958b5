"""A policy and a value, of one observation."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.errors import UserError
from jaxdl.layers import Activation, Conv, activate
from jaxdl.matmul import narrow
from jaxdl.models.rnn import Kind, Stack, zeros

Array = jax.Array


def convolved(observation: Array, channels: Sequence[int], activation: Activation) -> Array:
    """Convolutions with kernel 3 over observations [B, H, W, C], if there are any: [B, features].
    """
    x = observation
    if channels and x.ndim != 4:
        raise UserError(f"task.model.channels={tuple(channels)}: an observation has the shape "
                        f"{x.shape[1:]}; expected [H, W, C], or no channels.")
    for i, width in enumerate(channels):
        x = activate(Conv(width, (3, 3), name=f"conv{i + 1}")(x), activation)
    return x.reshape(len(x), -1)


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
        x = convolved(observation, self.channels, self.activation)
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


class RecurrentActorCritic(nn.Module):
    """A policy and a value of all that was seen of an episode: dense layers, recurrent ones, whose
    state is carried from step to step, and a head for each.

    Attributes:
      outputs: as in ActorCritic.
      widths: units of each dense layer before the recurrent ones.
      channels: of convolutions before those, as in ActorCritic.
      cell: "lstm", "gru" or "simple", as `jaxdl.recurrence` defines them.
      width: of the state of each recurrent layer.
      layers: recurrent layers on top of each other.
      activation: after each convolution and dense layer.
    """

    outputs: Size
    widths: tuple[Size, ...] = (64,)
    channels: tuple[Size, ...] = ()
    cell: Kind = "gru"
    width: Size = 64
    layers: Size = 1
    activation: Activation = "tanh"

    def start(self, count: int) -> Any:
        """What is carried before the first step of `count` episodes."""
        return zeros(self.cell, self.layers, 1, count, self.width)

    @nn.compact
    def __call__(self, observation: Array, train: bool, carry: Any,
                 fresh: Array) -> tuple[Array, Array, Any]:
        """([N, T, outputs], values [N, T], what is carried on) of observations [N, T, ...].

        Args:
          observation: of T steps.
          train: as it is called.
          carry: what is carried into the first of them, of `start` or of an earlier call.
          fresh: bool [N, T], where an episode begins: nothing is carried into that step.
        """
        count, length = observation.shape[:2]
        x = convolved(observation.reshape(count * length, *observation.shape[2:]), self.channels,
                      self.activation)
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, kernel_init=nn.initializers.orthogonal(jnp.sqrt(2.)),
                         name=f"dense{i + 1}")(x)
            x = activate(x, self.activation)

        def one(stack: Any, carry: Any, now: tuple[Array, Array]) -> tuple[Any, Array]:
            x, fresh = now
            carry = jax.tree.map(lambda s: jnp.where(fresh[:, None], 0, s), carry)
            h, carry = stack(x[:, None], train, carry)
            return carry, h[:, 0]

        along = nn.scan(one, variable_broadcast="params", split_rngs={"params": False}, in_axes=1,
                        out_axes=1)
        stack = Stack(cell=self.cell, width=self.width, layers=self.layers, name="stack")
        carry, h = along(stack, carry, (x.reshape(count, length, -1), fresh))
        said, value = (nn.Dense(size, kernel_init=nn.initializers.orthogonal(scale), name=name)(h)
                       for name, size, scale in (("policy", self.outputs, 0.01), ("value", 1, 1.)))
        return said, value[..., 0], carry
