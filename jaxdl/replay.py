"""A memory of what was seen and done, as arrays of a fixed size: part of a state."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Replay:
    """The newest rows, the oldest of which the next ones replace.

    Attributes:
      rows: a tree of arrays, [size, ...].
      priority: how likely each is drawn, up to a factor, [size]; zero where there is none yet.
      place: int32, where the next row goes.
    """

    rows: Any
    priority: Array
    place: Array


def empty(row: Any, size: int) -> Replay:
    """Room for `size` rows like one."""
    return Replay(jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), row),
                  jnp.zeros(size), jnp.int32(0))


def added(replay: Replay, rows: Any) -> Replay:
    """With rows [N, ...] more, as likely to be drawn as the likeliest (Schaul et al. 2016,
    https://arxiv.org/abs/1511.05952, section 3.3)."""
    size = len(replay.priority)
    count = len(jax.tree.leaves(rows)[0])
    places = (replay.place + jnp.arange(count)) % size
    highest = replay.priority.max()
    return Replay(jax.tree.map(lambda x, y: x.at[places].set(y), replay.rows, rows),
                  replay.priority.at[places].set(jnp.where(highest > 0, highest, 1)),
                  (replay.place + count) % size)


def drawn(replay: Replay, key: Array, count: int) -> tuple[Any, Array, Array]:
    """(rows [count, ...], their places, the probability of each), in proportion to their
    priorities."""
    # One in each of as many equal parts of the whole (section 3.3, "stratified").
    places = found(replay.priority, (jnp.arange(count) + jax.random.uniform(key, (count,))) / count)
    total = replay.priority.sum()
    return (jax.tree.map(lambda x: x[places], replay.rows), places,
            replay.priority[places] / total)


def found(priority: Array, share: Array) -> Array:
    """The places at which these shares of the sum of all priorities are passed."""
    sums = jnp.cumsum(priority)
    # Rounding may make the largest share all of the sum: it is the last row's that there is.
    last = jnp.where(priority > 0, jnp.arange(len(sums)), 0).max()
    return jnp.minimum(jnp.searchsorted(sums, share * sums[-1], side="right"), last)


def rated(replay: Replay, places: Array, priority: Array) -> Replay:
    """With other priorities of the rows at these places."""
    return replace(replay, priority=replay.priority.at[places].set(priority))
