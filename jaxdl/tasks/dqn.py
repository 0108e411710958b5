"""Deep Q-learning: Mnih et al. (2015), https://doi.org/10.1038/nature14236."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import films, replay
from jaxdl.config import Between, Fraction, NonNegative, Size
from jaxdl.envs.environment import Discrete, Environment, Playing, Transition, begin, played
from jaxdl.errors import UserError
from jaxdl.policies import suits
from jaxdl.replay import Replay
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.no_test_data import NoTestData
from jaxdl.tasks.off_policy import OffPolicyState, remembered

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class DQN(NoTestData):
    """An iteration plays `horizon` steps in each of `batch_size` environments, remembers them, and
    takes `updates` gradient steps on `sample` transitions each, drawn from all that is remembered.
    Of a transition (s, a, r, s') the loss is Huber's of

        r + discount Q'(s', argmax_b Q(s', b)) - Q(s, a)

    where Q' has the target's parameters, which choose b too where double=False (van Hasselt et al.
    2016, https://arxiv.org/abs/1509.06461, equations 2 and 4); r may be a sum of `n` rewards.
    Actions are random with a probability that falls in a line from 1 to `epsilon`.

    The data is `Nothing()`.

    Attributes:
      model: called as model(observations [N, ...], train), returns values [N, actions]; see
        `models.q_network`.
      env: what is played; its actions are discrete.
      horizon: steps of an iteration.
      updates: gradient steps of an iteration.
      sample: transitions of each.
      memory: transitions that are remembered.
      warmup: iterations that play at random before the first gradient step.
      n: rewards that are summed; at most `horizon` count.
      discount: gamma.
      epsilon: probability of a random action, in the end.
      explored: iterations until then.
      double: see above.
      target_rate: share of the parameters that enters the target's after each gradient step
        (Lillicrap et al. 2016, https://arxiv.org/abs/1509.02971, section 3).
      priority: alpha of prioritised replay: a transition is drawn in proportion to its last error
        to that power (Schaul et al. 2016, https://arxiv.org/abs/1511.05952, equation 1); None draws
        all alike.
      importance: beta, by which the loss makes up for that (section 3.4).
    """

    model: nn.Module
    env: Environment
    horizon: Size = 8
    updates: Size = 8
    sample: Size = 64
    memory: Size = 10_000
    warmup: Size = 20
    n: Size = 1
    discount: Annotated[float, Between(0, 1)] = 0.99
    epsilon: Fraction = 0.05
    explored: NonNegative = 200.
    double: bool = True
    target_rate: Annotated[float, Between(0, 1)] = 0.01
    priority: Fraction | None = None
    importance: Fraction = 0.5

    pictures = films.pictures

    def updates_per_step(self, name: str) -> int:
        """Gradient steps of an iteration."""
        return self.updates

    def init(self, key: Array, batch: Batch, tx: Any) -> OffPolicyState:
        actions, size = self.env.actions(), len(batch["mask"])
        if not isinstance(actions, Discrete):
            raise UserError("task.env: its actions are real numbers; DQN chooses one of several.")
        if size * self.horizon > self.memory:
            raise UserError(f"task.memory={self.memory}: an iteration plays batch_size * horizon = "
                            f"{size * self.horizon} transitions.")
        playing = begin(self.env, jax.random.split(jax.random.fold_in(key, 1), size))
        values, variables = self.model.init_with_output(key, playing.observation, True)
        suits(self.model, values, actions.count, parts=("values of actions",))
        params = variables["params"]
        seen = playing.observation[0]
        zero = jnp.zeros(())
        row = Transition(seen, jnp.int32(0), zero, zero, seen)
        return OffPolicyState(step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 2),
                        params=params, target=jax.tree.map(jnp.copy, params),
                        opt_state=tx.init(params), playing=playing,
                        replay=replay.empty(row, self.memory))

    def values(self, params: Any, observation: Array) -> Array:
        """Q of observations [N, ...]: [N, actions]."""
        found: Any = self.model.apply({"params": params}, observation, False)
        return found

    def step(self, state: OffPolicyState, batch: Batch, tx: Any) -> tuple[OffPolicyState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        playing, transitions, metrics = self.play(state, jax.random.fold_in(key, 0))
        memory = remembered(state.replay, transitions)

        def update(carry: Any, key: Array) -> tuple[Any, Any]:
            params, target, opt_state, memory = carry
            rows, places, probability = replay.drawn(memory, key, self.sample)
            gradient, (error, found) = jax.grad(self.loss, has_aux=True)(
                params, target, rows, self.weights(probability, memory))
            updates, opt_state = tx.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            target = optax.incremental_update(params, target, self.target_rate)
            if self.priority is not None:
                memory = replay.rated(memory, places, (jnp.abs(error) + 1e-6) ** self.priority)
            return (params, target, opt_state, memory), {
                **found, "grad_norm": optax.tree.norm(gradient)}

        before = (state.params, state.target, state.opt_state, memory)
        keys = jax.random.split(jax.random.fold_in(key, 1), self.updates)
        after, found = jax.lax.scan(update, before, keys)
        warm = state.step >= self.warmup
        params, target, opt_state, memory = jax.tree.map(lambda a, b: jnp.where(warm, a, b), after,
                                                         before)
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])), params=params,
                       target=target, opt_state=opt_state, playing=playing, replay=memory), {
                           **metrics, **{name: x.mean() for name, x in found.items()}}

    def play(self, state: OffPolicyState, key: Array) -> tuple[Playing, Transition, Metrics]:
        """(environments, what was played [T, N, ...], metrics) after `horizon` steps."""
        past = state.step / jnp.maximum(self.explored, 1.)
        epsilon = jnp.maximum(1 - past * (1 - self.epsilon), self.epsilon)
        epsilon = jnp.where(state.step < self.warmup, 1., epsilon)

        def choose(observation: Array, key: Array) -> Array:
            return self.tried(self.values(state.params, observation).argmax(-1), key, epsilon)

        playing, transitions, metrics = played(self.env, state.playing, key, self.horizon,
                                               self.discount, self.n, choose, lambda x: x)
        return playing, transitions, {**metrics, "epsilon": epsilon}

    def tried(self, action: Array, key: Array, epsilon: Array | float) -> Array:
        """Actions [N], each replaced by a random one with probability `epsilon`."""
        other = jax.random.randint(jax.random.fold_in(key, 0), action.shape, 0,
                                   self.env.actions().count)  # type: ignore[union-attr]
        random = jax.random.uniform(jax.random.fold_in(key, 1), action.shape) < epsilon
        return jnp.where(random, other, action).astype(jnp.int32)

    def weights(self, probability: Array, memory: Replay) -> Array:
        """(N P)^-beta over the largest of the sample (section 3.4): 1 where all are drawn alike."""
        count = (memory.priority > 0).sum()
        found = (count * probability) ** -jnp.asarray(self.importance, jnp.float32)
        return found / found.max()

    def loss(self, params: Any, target: Any, rows: Transition,
             weights: Array) -> tuple[Array, tuple[Array, Mapping[str, Array]]]:
        """(loss, (errors [N], metrics)) of transitions."""
        def at(values: Array, action: Array) -> Array:
            return jnp.take_along_axis(values, action[:, None], -1)[:, 0]

        q = at(self.values(params, rows.observation), rows.action)
        later = self.values(target, rows.following)
        choosing = self.values(params, rows.following) if self.double else later
        following = jax.lax.stop_gradient(at(later, choosing.argmax(-1)))
        error = rows.reward + rows.factor * following - q
        total = (weights * optax.losses.huber_loss(error)).mean()
        return total, (error, {"loss": total, "value": q.mean()})

    def act(self, state: OffPolicyState, observation: Array, key: Array | None) -> Array:
        """The best actions [N] of observations; with a key one in 1 / epsilon is random."""
        action = self.values(state.params, observation).argmax(-1)
        return action if key is None else self.tried(action, key, self.epsilon)
