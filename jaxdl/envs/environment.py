"""Environments as pure functions: what acts in them, and what they answer.

An environment is a frozen dataclass, a leaf of an experiment. Its functions are of one environment;
a task maps them over many. All that changes is in its state, a pytree of arrays, so it is
checkpointed, resumed and swept as parameters are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxdl.returns import n_step
from jaxdl.task import Mean

Array = jax.Array


class Discrete(NamedTuple):
    """Actions 0 ... count - 1."""

    count: int


class Box(NamedTuple):
    """Actions [size], real numbers between `low` and `high`."""

    size: int
    low: float
    high: float


class Step(NamedTuple):
    """What an environment answers to an action.

    Attributes:
      observation: after the action, also where the episode has ended.
      reward: float32.
      terminated: whether the episode has come to its end, after which there is no reward.
      truncated: whether it was cut off, for its length; what would have come still counts.
    """

    observation: Array
    reward: Array
    terminated: Array
    truncated: Array


class Environment(Protocol):
    """One environment."""

    def actions(self) -> Discrete | Box:
        """Which there are."""
        ...

    def shape(self) -> tuple[int, ...]:
        """Of an observation, float32."""
        ...

    def reset(self, key: Array) -> tuple[Any, Array]:
        """(state, observation) of a new episode."""
        ...

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, Step]:
        """(next state, answer). After an episode has ended it must be reset."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Playing:
    """Many environments at once, each in an episode.

    Attributes:
      states: of the environments, [N, ...].
      observation: [N, ...].
      total: the rewards of each episode so far, [N].
      length: its steps so far, int32 [N].
    """

    states: Any
    observation: Array
    total: Array
    length: Array


class Ended(NamedTuple):
    """The episodes that an action has ended: where `ended` is set, their return and length."""

    ended: Array
    total: Array
    length: Array


def finished(ended: Ended) -> dict[str, Mean]:
    """The mean return and length of the episodes that ended, of any shape."""
    weight = ended.ended.astype(jnp.float32).reshape(-1)
    return {"return": Mean.of(ended.total.reshape(-1), weight),
            "length": Mean.of(ended.length.reshape(-1).astype(jnp.float32), weight)}


class Transition(NamedTuple):
    """What was seen, done and had, and what followed: `factor` is what a value of that is worth."""

    observation: Array
    action: Array
    reward: Array
    factor: Array
    following: Array


def begin(env: Environment, keys: Array) -> Playing:
    """An environment for each key [N]."""
    states, observation = jax.vmap(env.reset)(keys)
    zeros = jnp.zeros(len(keys))
    return Playing(states, observation, zeros, zeros.astype(jnp.int32))


def advance(env: Environment, keys: Array, playing: Playing,
            action: Array) -> tuple[Playing, Step, Ended]:
    """(what goes on, answers, episodes that have ended) after an action in each environment. An
    episode that has ended is followed by another one; the answer is still that of the old."""
    states, step = jax.vmap(env.step)(keys, playing.states, action)
    over = step.terminated | step.truncated

    def again() -> tuple[Any, Array]:
        fresh = jax.vmap(lambda key: env.reset(jax.random.fold_in(key, 1)))(keys)
        return jax.vmap(lambda over, a, b: jax.tree.map(lambda a, b: jnp.where(over, a, b), a, b))(
            over, fresh, (states, step.observation))

    # At most steps no episode ends, and to begin one may take long.
    states, observation = jax.lax.cond(over.any(), again, lambda: (states, step.observation))
    total, length = playing.total + step.reward, playing.length + 1
    return (Playing(states, observation, jnp.where(over, 0, total), jnp.where(over, 0, length)),
            step, Ended(over, total, length))


def played(env: Environment, playing: Playing, key: Array, steps: int, discount: Array | float,
           n: int, choose: Callable[[Array, Array], Array], bounded: Callable[[Array], Array]
           ) -> tuple[Playing, Transition, dict[str, Mean]]:
    """(environments, transitions [T, N, ...] of at most `n` rewards each, metrics) after `steps` of
    choose(observation [N, ...], key) in each; bounded(action) is what an environment is given."""
    def act(playing: Playing, key: Array) -> tuple[Playing, Any]:
        action = choose(playing.observation, jax.random.fold_in(key, 0))
        keys = jax.random.split(jax.random.fold_in(key, 1), len(playing.length))
        after, step, ended = advance(env, keys, playing, bounded(action))
        return after, (playing.observation, action, step, ended)

    playing, (observation, action, step, ended) = jax.lax.scan(act, playing,
                                                               jax.random.split(key, steps))
    total, factor, following = n_step(step.reward, step.observation, step.terminated, ended.ended,
                                      discount, n)
    return playing, Transition(observation, action, total, factor, following), finished(ended)
