"""Grid worlds: small, exact, and solved by looking at them."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.envs import frames
from jaxdl.envs.environment import Discrete, Step
from jaxdl.errors import UserError

Array = jax.Array
MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)  # up, right, down, left
MAZE = ("S...",
        ".##.",
        "...G",
        ".#X.")


class Place(NamedTuple):
    """Where it is: row and column [2], and after how many moves."""

    at: Array
    time: Array


@dataclass(frozen=True, kw_only=True)
class GridWorld:
    """Moves up, right, down or left; a wall or the edge holds it where it is. Each move costs 0.01;
    the goal gives 1 and a pit takes 1, and both end the episode. The observation is the place, one
    of all fields [rows * columns].

    Attributes:
      maze: rows of "." free, "#" wall, "S" start (of several, one at random), "G" goal, "X" pit.
      limit: moves of an episode at most.
    """

    maze: tuple[str, ...] = MAZE
    limit: Size = 50

    @functools.cached_property
    def fields(self) -> np.ndarray:
        """The characters, [rows, columns]."""
        if not self.maze or len({len(row) for row in self.maze}) > 1:
            raise UserError("GridWorld: maze: expected rows of one length.")
        found = np.array([list(row) for row in self.maze])
        if strange := set(found.flat) - set(".#SGX"):
            raise UserError(f"GridWorld: maze: {str(min(strange))!r} is no field; expected '.', "
                            "'#', 'S', 'G' or 'X'.")
        for mark in "SG":
            if mark not in found:
                raise UserError(f"GridWorld: maze: there is no {mark!r}.")
        return found

    def actions(self) -> Discrete:
        return Discrete(len(MOVES))

    def shape(self) -> tuple[int, ...]:
        return (self.fields.size,)

    def observed(self, at: Array) -> Array:
        """One for the field, zero for others: [rows * columns]."""
        return jax.nn.one_hot(at[0] * self.fields.shape[1] + at[1], self.fields.size)

    def reset(self, key: Array) -> tuple[Place, Array]:
        starts = jnp.asarray(np.argwhere(self.fields == "S"), jnp.int32)
        at = starts[jax.random.randint(key, (), 0, len(starts))]
        return Place(at, jnp.int32(0)), self.observed(at)

    def step(self, key: Array, state: Place, action: Array) -> tuple[Any, Step]:
        def here(mark: str) -> Array:
            return jnp.asarray(self.fields == mark)[at[0], at[1]]

        last = jnp.asarray(self.fields.shape, jnp.int32) - 1
        at = jnp.clip(state.at + jnp.asarray(MOVES)[action], 0, last)
        at = jnp.where(here("#"), state.at, at)
        time = state.time + 1
        goal, pit = here("G"), here("X")
        reward = goal.astype(jnp.float32) - pit - 0.01
        return Place(at, time), Step(self.observed(at), reward, goal | pit,
                                     (time >= self.limit) & ~(goal | pit))

    def frame(self, state: Place, observation: np.ndarray) -> np.ndarray:
        """Walls black, goals green, pits red, and where it is blue."""
        image = np.ones((*self.fields.shape, 3), np.float32)
        for mark, colour in (("#", (0.15, 0.15, 0.15)), ("G", (0.2, 0.7, 0.3)),
                             ("X", (0.85, 0.25, 0.2))):
            image[self.fields == mark] = colour
        image[tuple(np.asarray(state.at))] = 0.2, 0.4, 0.85
        return frames.enlarged(image)
