"""A maze that only those find through who remember what they saw at its beginning."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.envs.environment import Discrete, Step

Array = jax.Array
LEFT, AHEAD, RIGHT = range(3)


class Walk(NamedTuple):
    """How far it is from the beginning, after how many moves, and where the goal is."""

    at: Array
    time: Array
    right: Array


@dataclass(frozen=True, kw_only=True)
class TMaze:
    """A corridor with a junction at its end: at the beginning a sign tells whether the goal is to
    the left or to the right of the junction, and is seen only there. So is the T-maze of Bakker
    (2001), https://papers.neurips.cc/paper/2001/hash/a38b16173474ba8b1a95bcbc30d3b8a5-Abstract.html;
    moves and rewards are other ones.

    Actions are left, ahead and right. In the corridor left and right, and at the junction ahead,
    lead nowhere. Each move costs 0.1 / length; the goal gives 1, the wrong side takes 1, and both
    end the episode. So the best return is 1 - 0.1 (length + 1) / length, and the best of those who
    remember nothing is lower by 1 in the mean. The observation is one of four: the beginning with a
    sign to the left, or to the right, the corridor, the junction.

    Attributes:
      length: moves from the beginning to the junction.
      limit: moves of an episode at most; None for four times as many as it needs.
    """

    length: Size = 10
    limit: Size | None = None

    def actions(self) -> Discrete:
        return Discrete(3)

    def shape(self) -> tuple[int, ...]:
        return (4,)

    def observed(self, at: Array, right: Array) -> Array:
        """One for what is seen, zero for the others: [4]."""
        seen = jnp.where(at == 0, right, jnp.where(at < self.length, 2, 3))
        return jax.nn.one_hot(seen, 4)

    def reset(self, key: Array) -> tuple[Walk, Array]:
        state = Walk(jnp.int32(0), jnp.int32(0), jax.random.bernoulli(key).astype(jnp.int32))
        return state, self.observed(state.at, state.right)

    def step(self, key: Array, state: Walk, action: Array) -> tuple[Any, Step]:
        junction = state.at == self.length
        over = junction & (action != AHEAD)
        found = over & ((action == RIGHT) == (state.right == 1))
        at = jnp.where(action == AHEAD, jnp.minimum(state.at + 1, self.length), state.at)
        time = state.time + 1
        limit = 4 * (self.length + 1) if self.limit is None else self.limit
        reward = jnp.where(over, jnp.where(found, 1., -1.), 0.) - 0.1 / self.length
        return Walk(at, time, state.right), Step(self.observed(at, state.right), reward, over,
                                                 (time >= limit) & ~over)
