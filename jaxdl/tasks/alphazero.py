"""AlphaZero: Silver et al. (2018), https://doi.org/10.1126/science.aar6404."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import films, replay
from jaxdl.config import Between, Count, Fraction, NonNegative, Size
from jaxdl.envs.board import Game, Position, chosen
from jaxdl.errors import UserError
from jaxdl.policies import suits
from jaxdl.replay import Replay
from jaxdl.task import Batch, Mean, Metrics
from jaxdl.tasks.no_test_data import NoTestData

Array = jax.Array
Search = Literal["gumbel", "puct"]


class Example(NamedTuple):
    """A position, what the search would do there, and what came of it for the player to move."""

    observation: Array
    legal: Array
    policy: Array
    value: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AlphaZeroState:
    """All that changes in training: arrays only.

    Attributes:
      step: int32, iterations done, each of which plays and learns.
      seen: uint32, games that they began in: the position in the data.
      key: the run's random key.
      params: of the network.
      opt_state: of Optax.
      positions: of the games that are played, [N, ...].
      moves: of each game since its opening, int32 [N].
      replay: examples of what was played.
    """

    step: Array
    seen: Array
    key: Array
    params: Any
    opt_state: Any
    positions: Position
    moves: Array
    replay: Replay


@dataclass(frozen=True, kw_only=True)
class AlphaZero(NoTestData):
    """An iteration plays `horizon` moves in each of `batch_size` games against itself, each move
    found by a tree search of `simulations` positions, remembers them, and takes `updates` gradient
    steps on `sample` positions each, drawn from all that is remembered. With (p, v) = f(s), pi what
    the search would do, and z what came of it for who was to move, 1, 0 or -1, the loss is

        mean of value_weight (z - v)^2 - sum_a pi(a) log p(a)

    The norm of the parameters, the third term of the paper's loss, is the optimizer's weight decay.
    A game that goes on after `horizon` moves is worth what the network says of where it stands.

    The search is mctx's, which takes `pip install 'jaxdl[rl]'`: "gumbel", whose policy improves on
    the network's by few simulations (Danihelka et al. 2022,
    https://openreview.net/forum?id=bERaNdoegnO), or "puct", AlphaZero's own.

    The data is `Nothing()`.

    Attributes:
      model: called as model(observations [N, ...], train), returns (logits [N, actions], values
        [N]), whose hyperbolic tangent is v; see `models.actor_critic`.
      game: what is played.
      search: see above.
      simulations: positions that are looked at for each move.
      considered: actions that "gumbel" tries at the root.
      noise: share of Dirichlet noise over the legal actions in the policy at the root of "puct".
      concentration: of that noise; the paper has 0.3 for chess and 0.03 for Go.
      opening: a game begins after so many random moves at most, so that also what a good player
        would never come to is learned; they are not remembered.
      horizon: moves of an iteration.
      updates: gradient steps of an iteration.
      sample: positions of each.
      memory: positions that are remembered.
      value_weight: see above.
    """

    model: nn.Module
    game: Game
    search: Search = "gumbel"
    simulations: Size = 32
    considered: Size = 16
    noise: Fraction = 0.25
    concentration: Annotated[float, Between(1e-3)] = 0.3
    opening: Count = 0
    horizon: Size = 16
    updates: Size = 8
    sample: Size = 256
    memory: Size = 20_000
    value_weight: NonNegative = 1.

    evaluator: ClassVar[str] = "arena.Arena"

    pictures = films.game

    def updates_per_step(self, name: str) -> int:
        """Gradient steps of an iteration."""
        return self.updates

    def check(self, experiment: Any) -> None:
        """Raises a UserError where mctx is missing."""
        mctx()

    def init(self, key: Array, batch: Batch, tx: Any) -> AlphaZeroState:
        size = len(batch["mask"])
        if size * self.horizon > self.memory:
            raise UserError(f"task.memory={self.memory}: an iteration plays batch_size * horizon = "
                            f"{size * self.horizon} positions.")
        positions = self.opened(jax.random.split(jax.random.fold_in(key, 1), size))
        found, variables = self.model.init_with_output(key, positions.observation, True)
        suits(self.model, found, self.game.actions(), "the moves of task.game are",
              parts=("policy", "values"))
        params, legal = variables["params"], positions.legal[0]
        row = Example(positions.observation[0], legal, jnp.zeros(legal.shape), jnp.zeros(()))
        return AlphaZeroState(step=jnp.int32(0), seen=jnp.uint32(0),
                              key=jax.random.fold_in(key, 2), params=params,
                              opt_state=tx.init(params), positions=positions,
                              moves=jnp.zeros(size, jnp.int32),
                              replay=replay.empty(row, self.memory))

    def opened(self, keys: Array) -> Position:
        """New games, for keys [N], after their random moves; none of these ends a game."""
        positions = jax.vmap(self.game.begin)(keys)
        if not self.opening:
            return positions
        count = jax.vmap(lambda key: jax.random.randint(key, (), 0, self.opening + 1))(keys)

        def move(positions: Position, i: Array) -> tuple[Position, None]:
            action = jax.vmap(lambda key, legal: jax.random.categorical(
                jax.random.fold_in(key, i), jnp.where(legal, 0., -jnp.inf)))(keys, positions.legal)
            after = jax.vmap(self.game.play)(positions, action)
            return chosen((i < count) & ~after.over, after, positions), None

        return jax.lax.scan(move, positions, jnp.arange(self.opening))[0]

    def apply(self, params: Any, observation: Array) -> tuple[Array, Array]:
        """(logits [N, actions], values [N] within -1 and 1) of observations [N, ...]."""
        found: Any = self.model.apply({"params": params}, observation, False)
        return found[0], jnp.tanh(found[1])

    def searched(self, params: Any, positions: Position, key: Array,
                 explore: bool) -> tuple[Array, Array]:
        """(actions [N], policies [N, actions]) by a search from each position; without `explore`
        there is no noise, and of the policy of "puct" the likeliest action is taken."""
        def simulated(params: Any, key: Array, action: Array, positions: Position) -> Any:
            after = jax.vmap(self.game.play)(positions, action)
            logits, value = self.apply(params, after.observation)
            # What is good for one is bad for the other; after the end there is nothing.
            return mctx().RecurrentFnOutput(
                reward=jnp.where(positions.over, 0, after.reward),
                discount=jnp.where(after.over, 0., -1.),
                prior_logits=jnp.where(after.legal, logits, jnp.finfo(logits.dtype).min),
                value=jnp.where(after.over, 0, value)), after

        logits, value = self.apply(params, positions.observation)
        logits = jnp.where(positions.legal, logits, jnp.finfo(logits.dtype).min)
        if self.search == "puct" and explore:  # mctx's own noise is of illegal actions too.
            drawn = jax.random.gamma(jax.random.fold_in(key, 1), self.concentration, logits.shape)
            drawn = jnp.where(positions.legal, drawn + 1e-30, 0)
            logits = jnp.log((1 - self.noise) * jax.nn.softmax(logits)
                             + self.noise * drawn / drawn.sum(-1, keepdims=True))
        root = mctx().RootFnOutput(prior_logits=logits, value=value, embedding=positions)
        given = (params, jax.random.fold_in(key, 0), root, simulated, self.simulations)
        if self.search == "gumbel":
            found = mctx().gumbel_muzero_policy(
                *given, invalid_actions=~positions.legal,
                max_num_considered_actions=self.considered, gumbel_scale=float(explore))
        else:
            found = mctx().muzero_policy(
                *given, invalid_actions=~positions.legal, dirichlet_fraction=0.,
                temperature=float(explore))
        return found.action, found.action_weights

    def step(self, state: AlphaZeroState, batch: Batch,
             tx: Any) -> tuple[AlphaZeroState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        positions, moves, examples, metrics = self.play(state, jax.random.fold_in(key, 0))
        memory = replay.added(state.replay, jax.tree.map(
            lambda x: x.reshape(-1, *x.shape[2:]), examples))

        def update(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Any]:
            params, opt_state = carry
            rows, _, _ = replay.drawn(memory, key, self.sample)
            gradient, found = jax.grad(self.loss, has_aux=True)(params, rows)
            updates, opt_state = tx.update(gradient, opt_state, params)
            found = {**found, "grad_norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), opt_state), found

        keys = jax.random.split(jax.random.fold_in(key, 1), self.updates)
        # On CPU, gradients of convolutions inside a loop are many times slower: no loop there.
        unroll = self.updates if jax.default_backend() == "cpu" else 1
        (params, opt_state), found = jax.lax.scan(update, (state.params, state.opt_state), keys,
                                                  unroll=unroll)
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])), params=params,
                       opt_state=opt_state, positions=positions, moves=moves, replay=memory), {
                           **metrics, **{name: x.mean() for name, x in found.items()}}

    def play(self, state: AlphaZeroState,
             key: Array) -> tuple[Position, Array, Example, Metrics]:
        """(positions, moves so far, examples [T, N, ...], metrics) after `horizon` moves."""
        def move(carry: tuple[Position, Array], key: Array) -> tuple[tuple[Position, Array], Any]:
            positions, moves = carry
            action, policy = self.searched(state.params, positions, jax.random.fold_in(key, 0),
                                           True)
            after = jax.vmap(self.game.play)(positions, action)
            fresh = self.opened(jax.random.split(jax.random.fold_in(key, 1), len(moves)))
            seen = (positions.observation, positions.legal, policy, after.reward, after.over,
                    moves + 1)
            return (chosen(after.over, fresh, after),
                    jnp.where(after.over, 0, moves + 1)), seen

        (positions, moves), (observation, legal, policy, reward, over, length) = jax.lax.scan(
            move, (state.positions, state.moves), jax.random.split(key, self.horizon))
        _, value = self.apply(state.params, positions.observation)
        examples = Example(observation, legal, policy, outcomes(reward, over, value))
        ended = over.reshape(-1)
        return positions, moves, examples, {
            "length": Mean.of(length.reshape(-1).astype(jnp.float32), ended),
            "draws": Mean.of(reward.reshape(-1) == 0, ended)}

    def loss(self, params: Any, rows: Example) -> tuple[Array, Mapping[str, Array]]:
        """(loss, metrics) of examples."""
        logits, value = self.apply(params, rows.observation)
        logs = jax.nn.log_softmax(jnp.where(rows.legal, logits, jnp.finfo(logits.dtype).min))
        policy_loss = -jnp.where(rows.legal, rows.policy * logs, 0).sum(-1).mean()
        value_loss = jnp.square(rows.value - value).mean()
        total = policy_loss + self.value_weight * value_loss
        return total, {"loss": total, "policy_loss": policy_loss, "value_loss": value_loss}

    def move(self, state: AlphaZeroState, positions: Position, key: Array) -> Array:
        """Actions [N], by a search without noise."""
        return self.searched(state.params, positions, key, False)[0]


def outcomes(reward: Array, over: Array, value: Array) -> Array:
    """What came of each move for the player who made it, of moves in turn [T, N]: its reward at the
    end of a game, and minus what came of the next one before; `value` [N] is of who is to move
    after the last."""
    def back(after: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, over = now
        found = jnp.where(over, reward, reward - after)
        return found, found

    return jax.lax.scan(back, value, (reward, over), reverse=True)[1]


def mctx() -> Any:
    """The library of searches."""
    try:
        return importlib.import_module("mctx")
    except ImportError as error:
        raise UserError(f"AlphaZero: {error}: pip install 'jaxdl[rl]'.") from error
