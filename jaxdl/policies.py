"""Distributions over actions, out of what a network says."""

from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.envs.environment import Box, Discrete
from jaxdl.errors import UserError

Array = jax.Array


class Policy(Protocol):
    """How actions follow from what a network says [..., outputs]."""

    @property
    def outputs(self) -> int: ...

    def sample(self, said: Array, key: Array) -> Array:
        """An action of one environment, from `said` [outputs]."""
        ...

    def mode(self, said: Array) -> Array:
        """The likeliest action."""
        ...

    def log_probability(self, said: Array, action: Array) -> Array:
        """Of an action: [...]. Of real numbers it is that of their density."""
        ...

    def entropy(self, said: Array) -> Array:
        """In nats: [...]."""
        ...

    def bounded(self, action: Array) -> Array:
        """What the environment is given."""
        ...

    def own(self, given: Array) -> Array:
        """The action of which that is `bounded`."""
        ...


class Categorical:
    """Actions 0 ... count - 1, from logits."""

    def __init__(self, count: int) -> None:
        self.outputs = count

    def sample(self, said: Array, key: Array) -> Array:
        return jax.random.categorical(key, said)

    def mode(self, said: Array) -> Array:
        return said.argmax(-1)

    def log_probability(self, said: Array, action: Array) -> Array:
        return jnp.take_along_axis(jax.nn.log_softmax(said), action[..., None], -1)[..., 0]

    def entropy(self, said: Array) -> Array:
        logs = jax.nn.log_softmax(said)
        return -(jnp.exp(logs) * logs).sum(-1)

    def bounded(self, action: Array) -> Array:
        return action

    def own(self, given: Array) -> Array:
        return given


class Gaussian:
    """Real numbers, each normal by itself: means, then logarithms of deviations. An action is in
    units of half the range, 0 in its middle; the environment is given what lies within."""

    def __init__(self, box: Box) -> None:
        self.box, self.outputs = box, 2 * box.size

    def _parts(self, said: Array) -> tuple[Array, Array]:
        mean, log_deviation = jnp.split(said, 2, -1)
        return mean, jnp.clip(log_deviation, -5, 2)

    def sample(self, said: Array, key: Array) -> Array:
        mean, log_deviation = self._parts(said)
        return mean + jnp.exp(log_deviation) * jax.random.normal(key, mean.shape)

    def mode(self, said: Array) -> Array:
        return self._parts(said)[0]

    def log_probability(self, said: Array, action: Array) -> Array:
        mean, log_deviation = self._parts(said)
        z = (action - mean) * jnp.exp(-log_deviation)
        return -(0.5 * z ** 2 + log_deviation + 0.5 * jnp.log(2 * jnp.pi)).sum(-1)

    def entropy(self, said: Array) -> Array:
        _, log_deviation = self._parts(said)
        return (log_deviation + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum(-1)

    def bounded(self, action: Array) -> Array:
        middle, half = self._range()
        return middle + half * jnp.clip(action, -1, 1)

    def own(self, given: Array) -> Array:
        middle, half = self._range()
        return (given - middle) / half

    def _range(self) -> tuple[float, float]:
        """Its middle, and half of its width."""
        return (self.box.high + self.box.low) / 2, (self.box.high - self.box.low) / 2


class Squashed:
    """Real numbers that are the hyperbolic tangent of normal ones, each by itself, so that they lie
    within the range (Haarnoja et al. 2018, https://arxiv.org/abs/1801.01290, appendix C): means,
    then logarithms of deviations. An action is in units of half the range, 0 in its middle."""

    def __init__(self, box: Box) -> None:
        self.normal = Gaussian(box)
        self.box, self.outputs = box, self.normal.outputs

    def sampled(self, said: Array, key: Array) -> tuple[Array, Array]:
        """(an action, the logarithm of its density) of one environment, from `said` [outputs]:
        log p(tanh u) = log p(u) - sum of log(1 - tanh(u)^2)."""
        u = self.normal.sample(said, key)
        # log(1 - tanh(u)^2) where tanh(u) rounds to one, too.
        slope = 2 * (jnp.log(2.) - u - jax.nn.softplus(-2 * u))
        return jnp.tanh(u), self.normal.log_probability(said, u) - slope.sum(-1)

    def mode(self, said: Array) -> Array:
        return jnp.tanh(self.normal.mode(said))

    def bounded(self, action: Array) -> Array:
        return self.normal.bounded(action)


def policy(actions: Discrete | Box) -> Policy:
    """That of a kind of actions."""
    return Categorical(actions.count) if isinstance(actions, Discrete) else Gaussian(actions)


def chosen(policy: Policy, said: Array, key: Array | None) -> Array:
    """What the environments are given, of what a network says [N, outputs]: drawn with the key;
    None takes the likeliest."""
    if key is None:
        return policy.bounded(policy.mode(said))
    return policy.bounded(jax.vmap(policy.sample)(said, jax.random.split(key, len(said))))


def suits(model: nn.Module, returned: Any, outputs: int,
          whose: str = "the actions of task.env take",
          parts: tuple[str, ...] = ("policy",)) -> None:
    """Raises a UserError unless a model returned these parts, and so many numbers in each row of
    the first.

    Args:
      model: `task.model`.
      returned: an array, or a tuple of parts.
      outputs: numbers of the first part.
      whose: they are, for the error.
      parts: names.
    """
    found = returned if isinstance(returned, tuple) else (returned,)
    if len(found) != len(parts):
        raise UserError(f"task.model={type(model).__name__}: returns {len(found)} of "
                        f"{len(parts)} expected parts ({', '.join(parts)}).")
    if found[0].shape[-1] != outputs:
        raise UserError(f"task.model: says {found[0].shape[-1]} numbers of what to do; {whose} "
                        f"{outputs} (outputs).")
