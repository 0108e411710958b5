"""Games of two players who move in turn and see everything, as pure functions."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.envs import frames
from jaxdl.errors import UserError, nearest

Array = jax.Array
BOARDS = ("animal_shogi", "chess", "connect_four", "gardner_chess", "go_9x9", "go_19x19", "hex",
          "othello", "shogi", "tic_tac_toe")  # of pgx: in turn, nothing hidden, no chance

STONES = ("connect_four", "go_9x9", "go_19x19", "othello", "tic_tac_toe")


class Position(NamedTuple):
    """Where a game stands.

    Attributes:
      state: of the game.
      observation: as the player sees it who is to move, float32.
      legal: whether each action is allowed, bool [actions].
      reward: of the last move, to the player who made it: 1 where it won, -1 where it lost.
      over: whether the game has ended.
    """

    state: Any
    observation: Array
    legal: Array
    reward: Array
    over: Array


class Game(Protocol):
    """One game. Actions are 0 ... actions - 1; the players move in turn."""

    def actions(self) -> int:
        """How many there are."""
        ...

    def begin(self, key: Array) -> Position:
        """Before the first move."""
        ...

    def play(self, position: Position, action: Array) -> Position:
        """After a legal action, of a game that is not over."""
        ...


def chosen(condition: Array, one: Any, other: Any) -> Any:
    """Rows of one tree where the condition [N] holds, else of the other."""
    return jax.tree.map(lambda a, b: jnp.where(
        condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b), one, other)


@dataclass(frozen=True, kw_only=True)
class Pgx:
    """A game of pgx (https://github.com/sotetsuk/pgx), by its name: one of `BOARDS`. It takes
    `pip install 'jaxdl[rl]'`.

    Attributes:
      name: in pgx.
    """

    name: str

    @functools.cached_property
    def made(self) -> Any:
        """pgx's game."""
        if self.name not in BOARDS:
            raise UserError(f"Pgx: name={self.name}: no game of two who move in turn and see all."
                            f"{nearest(self.name, BOARDS)}")
        # Its modules make arrays when they are imported, which must not be those of a trace.
        with jax.ensure_compile_time_eval():
            try:
                pgx: Any = importlib.import_module("pgx")
            except ImportError as error:
                raise UserError(f"Pgx: {error}: pip install 'jaxdl[rl]'.") from error
            return pgx.make(self.name)

    def actions(self) -> int:
        return int(self.made.num_actions)

    def begin(self, key: Array) -> Position:
        # Who is called the first player is drawn by pgx; here it is who moves first.
        state = self.made.init(key)
        return self.position(state, state.current_player)

    def play(self, position: Position, action: Array) -> Position:
        after = self.made.step(position.state, action)
        return self.position(after, position.state.current_player)

    def frame(self, position: Position, moves: int) -> np.ndarray | None:
        """The board after so many moves, of the games whose observations begin with the stones of
        the player to move and those of the other one."""
        if self.name not in STONES:
            return None
        mine, theirs = np.moveaxis(np.asarray(position.observation)[..., :2], -1, 0)
        return frames.stones(*((mine, theirs) if moves % 2 == 0 else (theirs, mine)))

    def position(self, state: Any, mover: Array) -> Position:
        """What there is to know of pgx's state after a move of `mover`."""
        return Position(state, state.observation.astype(jnp.float32), state.legal_action_mask,
                        state.rewards[mover].astype(jnp.float32),
                        state.terminated | state.truncated)
