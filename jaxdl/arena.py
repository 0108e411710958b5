"""Matches of what was learned against players of fixed strength, and ratings by them."""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from jaxdl.compiled import compiled
from jaxdl.config import Size
from jaxdl.envs.board import Game, Position, chosen
from jaxdl.errors import UserError
from jaxdl.evaluate import Context

Array = jax.Array
Mover = Callable[[Position, Array], Array]  # (positions [N], key) -> actions [N]


class Player(Protocol):
    """One of fixed strength."""

    def prepared(self, game: Game) -> Mover:
        """How it moves in a game."""
        ...


@dataclass(frozen=True, kw_only=True)
class Random:
    """Any legal action."""

    def prepared(self, game: Game) -> Mover:
        return lambda positions, key: one_of(positions.legal, key)


@dataclass(frozen=True, kw_only=True)
class OnePly:
    """An action that wins at once, where there is one, else any legal action."""

    def prepared(self, game: Game) -> Mover:
        def move(positions: Position, key: Array) -> Array:
            actions = jnp.arange(game.actions())
            after = jax.vmap(jax.vmap(game.play, (None, 0)), (0, None))(positions, actions)
            wins = positions.legal & (after.reward > 0)
            return one_of(jnp.where(wins.any(-1, keepdims=True), wins, positions.legal), key)

        return move


@dataclass(frozen=True, kw_only=True)
class Perfect:
    """An action that nothing betters, by minimax over the whole game: for games with few positions,
    whose observations are zeros and ones.

    Attributes:
      limit: positions that are looked at, at most.
    """

    limit: Size = 50_000

    def prepared(self, game: Game) -> Mover:
        with jax.ensure_compile_time_eval():  # The game is solved now, whatever is being traced.
            codes, best, factors = solved(game, self.limit)

        def move(positions: Position, key: Array) -> Array:
            rows = jnp.searchsorted(jnp.asarray(codes), coded(positions.observation, factors))
            return one_of(jnp.asarray(best)[jnp.minimum(rows, len(codes) - 1)] & positions.legal,
                          key)

        return move


def one_of(allowed: Array, key: Array) -> Array:
    """One of the actions that are allowed [N, actions], each as likely."""
    return jax.random.categorical(key, jnp.where(allowed, 0., -jnp.inf))


def coded(observation: Array, factors: np.ndarray) -> Array:
    """A number for each observation of zeros and ones [N, ...], uint32."""
    bits = (observation.reshape(len(observation), -1) > 0.5).astype(jnp.uint32)
    return (bits * jnp.asarray(factors)).sum(-1, dtype=jnp.uint32)


@functools.lru_cache(maxsize=4)
def solved(game: Game, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes of all positions that may be reached, in order [P], whether each action is among the
    best there [P, actions], factors of the codes)."""
    play = jax.jit(jax.vmap(jax.vmap(game.play, (None, 0)), (0, None)))
    actions = jnp.arange(game.actions())
    # The next positions in order of their moves; those seen before are not looked at again.
    level = jax.tree.map(lambda x: np.asarray(x)[None], game.begin(jax.random.key(0)))
    places = {level.observation[0].tobytes(): 0}
    seen, legals, rewards, overs, children = [level.observation], [level.legal], [], [], []
    while len(level.over):
        size = len(level.over)
        room = 1 << (size - 1).bit_length()  # a power of two, so that few programs are compiled
        after = jax.device_get(play(jax.tree.map(lambda x, r=room, s=size: np.concatenate(
            [x, np.repeat(x[:1], r - s, 0)]), level), actions))
        after = jax.tree.map(lambda x, s=size: x[:s], after)
        fresh, found = [], np.full(after.over.shape, -1)
        for i, j in np.argwhere(level.legal & ~after.over):
            name = after.observation[i, j].tobytes()
            if name not in places:
                places[name] = len(places)
                fresh.append((i, j))
            found[i, j] = places[name]
        if len(places) > limit:
            raise UserError(f"Perfect: limit={limit}: the game has more positions than that.")
        children.append(found)
        rewards.append(after.reward)
        overs.append(after.over)
        rows, columns = np.array(fresh, int).reshape(-1, 2).T
        level = jax.tree.map(lambda x, r=rows, c=columns: x[r, c], after)
        seen.append(level.observation)
        legals.append(level.legal)
    observations, legal, reward, over, child = map(np.concatenate, (seen, legals, rewards, overs,
                                                                    children))
    value = np.zeros(len(observations))
    while True:  # From the last moves back: as many times as the longest game has moves.
        worth = np.where(legal, np.where(over, reward, -value[child]), -np.inf)
        if (worth.max(1) == value).all():
            break
        value = worth.max(1)
    random = np.random.default_rng(0)
    for _ in range(100):
        factors = random.integers(0, 1 << 32, observations[0].size, np.uint32)
        codes = np.asarray(coded(jnp.asarray(observations), factors))
        if len(np.unique(codes)) == len(codes):
            order = np.argsort(codes)
            return codes[order], (worth == value[:, None])[order], factors
    raise UserError("Perfect: the game's observations are not all different zeros and ones.")


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Plays `games` against each opponent, every other one as the first to move, always from the
    same random numbers: "NAME/wins", "NAME/draws" and "NAME/losses" are how many, "NAME/score" is
    the share of points, half of one for a draw. Opponents play each other as well, and "elo" is how
    far above the first of them all that rates it: 400 points are ten times the odds (Elo 1978), by
    maximum likelihood with one draw of every two players added.

    Attributes:
      opponents: by their names.
      every: steps between two evaluations; the last step is always evaluated.
      games: against each.
    """

    opponents: Mapping[str, Player]
    every: Size = 10
    games: Size = 200

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the task plays no game, or an opponent does not suit it."""
        if not hasattr(experiment.task, "game") or not hasattr(experiment.task, "move"):
            raise UserError(f"Arena: {type(experiment.task).__name__} plays no game.")
        if not self.opponents:
            raise UserError("Arena: opponents: there are none.")
        for player in self.opponents.values():
            player.prepared(experiment.task.game)

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        names = ("", *self.opponents)  # The first is what was learned.
        values: dict[str, float] = {}
        points = np.zeros((len(names), len(names)))
        for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
            pair = context.name, "match", one, other
            if not one or pair not in context.compiled:  # Fixed players always play the same.
                context.compiled[pair] = self.match(task, state, context, one, other)
            results = context.compiled[pair]
            points[i, j] = (results + 1).sum() / 2
            points[j, i] = len(results) - points[i, j]
            if not one:
                values |= {f"{other}/wins": float((results > 0).sum()),
                           f"{other}/draws": float((results == 0).sum()),
                           f"{other}/losses": float((results < 0).sum()),
                           f"{other}/score": float(points[i, j]) / len(results)}
        ratings = elo(points)
        return values | {"elo": float(ratings[0] - ratings[1])}

    def match(self, task: Any, state: Any, context: Context, one: str, other: str) -> np.ndarray:
        """1, 0 or -1 for the first player, of each game."""
        results = []
        for first in (0, 1):
            players = (one, other) if first == 0 else (other, one)
            count = (self.games + 1 - first) // 2
            # Other games against each opponent.
            key = jax.random.fold_in(jax.random.key(first), list(self.opponents).index(other))
            positions = compiled(context, f"begin {count}", task, lambda task, _, key, n=count: (
                jax.vmap(task.game.begin)(jax.random.split(key, n))))(state, key)
            result = np.zeros(count)
            for move in itertools.count():
                context.poll()
                over = np.asarray(positions.over)
                if over.all():
                    break
                name = players[move % 2]
                positions = compiled(context, f"move {name} {count}", task, functools.partial(
                    self.moved, name))((state, positions), jax.random.fold_in(key, move))
                won = np.asarray(positions.reward) * (1 if name == one else -1)
                result = np.where(over, result, won)
            results.append(result)
        return np.concatenate(results)

    def moved(self, name: str, task: Any, given: Any, key: Array) -> Position:
        """The positions after a move of a player, where they are not over."""
        state, positions = given
        action = (self.opponents[name].prepared(task.game)(positions, key) if name
                  else task.move(state, positions, key))
        return chosen(positions.over, positions, jax.vmap(task.game.play)(positions, action))


def elo(points: np.ndarray) -> np.ndarray:
    """Ratings [n] of players, of whom i has points[i, j] against j: those under which the points
    are likeliest, with half a point more for either of every two, so that none is infinite."""
    points = points + 0.5 * (1 - np.eye(len(points)))

    def surprise(ratings: np.ndarray) -> float:
        odds = (ratings[:, None] - ratings[None]) * np.log(10) / 400
        return float((points * np.logaddexp(0, -odds)).sum())

    return minimize(surprise, np.zeros(len(points)), method="BFGS").x
