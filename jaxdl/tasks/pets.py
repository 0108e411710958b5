"""Planning with a model that is learned, "PETS": Chua et al. (2018),
https://arxiv.org/abs/1805.12114."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import films, replay
from jaxdl.config import Between, Size
from jaxdl.envs.environment import Box, Environment, Playing, Transition, begin, played
from jaxdl.errors import UserError
from jaxdl.policies import Gaussian
from jaxdl.replay import Replay
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.no_test_data import NoTestData
from jaxdl.tasks.off_policy import remembered

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PETSState:
    """All that changes in training: arrays only.

    Attributes:
      step: int32, iterations done, each of which plays and learns.
      seen: uint32, environments that they began in: the position in the data.
      key: the run's random key.
      params: of the model.
      scales: ((mean, deviation) of the model's inputs, (mean, deviation) of what it predicts) among
        all that is remembered.
      opt_state: of Optax.
      playing: the environments, in the middle of their episodes.
      replay: what was played.
    """

    step: Array
    seen: Array
    key: Array
    params: Any
    scales: Any
    opt_state: Any
    playing: Playing
    replay: Replay


@dataclass(frozen=True, kw_only=True)
class PETS(NoTestData):
    """An iteration plays `horizon` steps in each of `batch_size` environments, remembers them, and
    takes `updates` gradient steps on `sample` transitions for each member of the model: the
    likelihood of how the observation changed and of the reward, all numbers in units of their
    deviations (equation 1).

    Before each step the plan with the highest sum of predicted rewards is sought by the
    cross-entropy method (section 5): `candidates` sequences of `ahead` actions are drawn, each is
    tried in every member of the model, with its noise, and the best `elites` of them say what is
    drawn from next, `rounds` times. Then the first action of their mean is taken. That an episode
    ends is not predicted: the method is for environments that go on, or are cut off.

    The data is `Nothing()`.

    Attributes:
      model: called as model(inputs [members, N, observation and action]), returns (means,
        logarithms of deviations) [members, N, observation and 1]; see `models.dynamics`.
      env: what is played; its observations are vectors and its actions real numbers.
      horizon: steps of an iteration.
      updates: gradient steps of an iteration.
      sample: transitions of each, for each member.
      memory: transitions that are remembered.
      warmup: iterations that play at random before the first gradient step.
      ahead: actions of a plan.
      candidates: see above.
      elites: see above.
      rounds: see above.
      discount: gamma, of a plan's rewards.
    """

    model: nn.Module
    env: Environment
    horizon: Size = 25
    updates: Size = 50
    sample: Size = 64
    memory: Size = 10_000
    warmup: Size = 2
    ahead: Size = 20
    candidates: Size = 100
    elites: Size = 10
    rounds: Size = 4
    discount: Annotated[float, Between(0, 1)] = 1.

    pictures = films.pictures

    def updates_per_step(self, name: str) -> int:
        """Gradient steps of an iteration."""
        return self.updates

    @property
    def box(self) -> Box:
        """What can be done."""
        actions = self.env.actions()
        if not isinstance(actions, Box) or len(self.env.shape()) != 1:
            raise UserError("task.env: PETS takes observations that are vectors and actions that "
                            "are real numbers.")
        return actions

    def init(self, key: Array, batch: Batch, tx: Any) -> PETSState:
        if not hasattr(self.model, "members"):
            raise UserError(f"task.model={type(self.model).__name__}: has no members, as Dynamics "
                            "has.")
        size, members = len(batch["mask"]), self.model.members
        if size * self.horizon > self.memory:
            raise UserError(f"task.memory={self.memory}: an iteration plays batch_size * horizon = "
                            f"{size * self.horizon} transitions.")
        if self.elites > self.candidates:
            raise UserError(f"task.elites={self.elites}: there are task.candidates="
                            f"{self.candidates}.")
        playing = begin(self.env, jax.random.split(jax.random.fold_in(key, 1), size))
        action = jnp.zeros(self.box.size)
        seen, zero = playing.observation[0], jnp.zeros(())
        inputs = jnp.concatenate([seen, action])
        (mean, _), variables = self.model.init_with_output(
            key, jnp.broadcast_to(inputs, (members, 1, len(inputs))))
        if mean.shape[-1] != len(seen) + 1:
            raise UserError(f"task.model: predicts {mean.shape[-1]} numbers; an observation of "
                            f"task.env and a reward are {len(seen) + 1} (outputs).")
        return PETSState(
            step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 2),
            params=variables["params"], opt_state=tx.init(variables["params"]), playing=playing,
            scales=((jnp.zeros_like(inputs), jnp.ones_like(inputs)),
                    (jnp.zeros(len(seen) + 1), jnp.ones(len(seen) + 1))),
            replay=replay.empty(Transition(seen, action, zero, zero, seen), self.memory))

    def predicted(self, params: Any, scales: Any, observation: Array, action: Array
                  ) -> tuple[Array, Array]:
        """(means, deviations), [members, N, ...], of the change of an observation and the reward
        that follow observations and actions [members, N, ...]."""
        (center, width), (middle, spread) = scales
        inputs = (jnp.concatenate([observation, action], -1) - center) / width
        found: Any = self.model.apply({"params": params}, inputs)
        return middle + spread * found[0], spread * jnp.exp(found[1])

    def step(self, state: PETSState, batch: Batch, tx: Any) -> tuple[PETSState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        warm = state.step >= self.warmup

        def choose(observation: Array, key: Array) -> Array:
            random = jax.random.uniform(key, (len(observation), self.box.size), minval=-1)
            return jax.lax.cond(warm, lambda: self.planned(state, observation, key),
                                lambda: random)

        playing, transitions, metrics = played(
            self.env, state.playing, jax.random.fold_in(key, 0), self.horizon, 1., 1, choose,
            Gaussian(self.box).bounded)
        memory = remembered(state.replay, transitions)
        scales = measured(memory)
        members = self.model.members  # type: ignore[attr-defined]

        def update(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Any]:
            params, opt_state = carry
            rows, _, _ = replay.drawn(memory, key, members * self.sample)
            order = jax.random.permutation(jax.random.fold_in(key, 1), members * self.sample)
            rows = jax.tree.map(lambda x: x[order].reshape(members, self.sample, *x.shape[1:]),
                                rows)
            gradient, found = jax.grad(self.loss, has_aux=True)(params, scales, rows)
            updates, opt_state = tx.update(gradient, opt_state, params)
            found = {**found, "grad_norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), opt_state), found

        before = (state.params, state.opt_state)
        after, found = jax.lax.scan(update, before,
                                    jax.random.split(jax.random.fold_in(key, 1), self.updates))
        params, opt_state = jax.tree.map(
            lambda a, b: jnp.where(state.step + 1 >= self.warmup, a, b), after, before)
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])), params=params,
                       scales=scales, opt_state=opt_state, playing=playing, replay=memory), {
                           **metrics, **{name: x.mean() for name, x in found.items()}}

    def loss(self, params: Any, scales: Any, rows: Transition
             ) -> tuple[Array, Mapping[str, Array]]:
        """(loss, metrics) of transitions [members, N]: the mean of
        (x - mean)^2 / (2 deviation^2) + log deviation, x in units of its own deviation."""
        mean, deviation = self.predicted(params, scales, rows.observation, rows.action)
        spread = scales[1][1]
        error = changes(rows) - mean
        loss = (jnp.square(error / deviation) / 2 + jnp.log(deviation / spread)).mean()
        return loss, {"loss": loss, "error": jnp.square(error / spread).mean()}

    def planned(self, state: PETSState, observation: Array, key: Array) -> Array:
        """Actions [N, size], in units of half the range, of observations [N, ...]."""
        members, size = self.model.members, self.box.size  # type: ignore[attr-defined]

        def worth(observation: Array, plans: Array, key: Array) -> Array:
            """The sum of rewards of plans [candidates, ahead, size] from one observation, in the
            mean over the members."""
            def step(carry: tuple[Array, Array], now: Any) -> tuple[tuple[Array, Array], None]:
                seen, total = carry
                action, key, weight = now
                every = jnp.broadcast_to(action, (members, *action.shape))
                mean, deviation = self.predicted(state.params, state.scales, seen, every)
                found = mean + deviation * jax.random.normal(key, mean.shape)
                return (seen + found[..., :-1], total + weight * found[..., -1]), None

            seen = jnp.broadcast_to(observation, (members, len(plans), *observation.shape))
            given = (plans.swapaxes(0, 1), jax.random.split(key, self.ahead),
                     jnp.asarray(self.discount) ** jnp.arange(self.ahead))
            (_, total), _ = jax.lax.scan(step, (seen, jnp.zeros(seen.shape[:2])), given)
            return total.mean(0)

        def one(observation: Array, key: Array) -> Array:
            def narrow(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
                mean, deviation = carry
                plans = mean + deviation * jax.random.truncated_normal(
                    jax.random.fold_in(key, 0), -2., 2., (self.candidates, self.ahead, size))
                plans = jnp.clip(plans, -1, 1)
                value = worth(observation, plans, jax.random.fold_in(key, 1))
                best = plans[jax.lax.top_k(value, self.elites)[1]]
                return (best.mean(0), best.std(0)), None

            start = (jnp.zeros((self.ahead, size)), jnp.ones((self.ahead, size)))
            (mean, _), _ = jax.lax.scan(narrow, start, jax.random.split(key, self.rounds))
            return mean[0]

        return jax.vmap(one)(observation, jax.random.split(key, len(observation)))

    def act(self, state: PETSState, observation: Array, key: Array | None) -> Array:
        """Actions [N, size] of observations; without a key plans are sought with always the same
        random numbers."""
        return Gaussian(self.box).bounded(
            self.planned(state, observation, jax.random.key(0) if key is None else key))


def changes(rows: Transition) -> Array:
    """How the observation changed, and the reward: [..., observation and 1]."""
    return jnp.concatenate([rows.following - rows.observation, rows.reward[..., None]], -1)


def measured(memory: Replay) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """(mean, deviation) of the model's inputs, and of what it predicts, in all that is known."""
    rows, there = memory.rows, (memory.priority > 0)[:, None]

    def of(x: Array) -> tuple[Array, Array]:
        return x.mean(0, where=there), x.std(0, where=there) + 1e-6

    return of(jnp.concatenate([rows.observation, rows.action], -1)), of(changes(rows))
