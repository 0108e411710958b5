"""Soft actor-critic: Haarnoja et al. (2018), https://arxiv.org/abs/1812.05905."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import films, replay
from jaxdl.config import Between, Size
from jaxdl.envs.environment import Box, Environment, Transition, begin, played
from jaxdl.errors import UserError
from jaxdl.policies import Squashed, suits
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.no_test_data import NoTestData
from jaxdl.tasks.off_policy import OffPolicyState, remembered

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class SAC(NoTestData):
    """An iteration plays `horizon` steps in each of `batch_size` environments, remembers them, and
    takes `updates` gradient steps on `sample` transitions (s, a, r, s') each, drawn from all that
    is remembered. With actions a' ~ pi(s') and b ~ pi(s) the loss is the sum of

        mean of sum_i (Q_i(s, a) - y)^2 / 2,
            y = r + discount (min_i Q'_i(s', a') - alpha log pi(a'|s'))    (equations 5 and 6)
        mean of alpha log pi(b|s) - min_i Q_i(s, b)                        (equation 9)
        mean of -alpha (log pi(b|s) + entropy)                             (equation 18)

    each of which trains its own part alone: the values Q, the policy pi, and the temperature alpha.
    Q' has the target's parameters; r may be a sum of `n` rewards.

    The data is `Nothing()`.

    Attributes:
      model: called as model(observations [N, ...], actions [N, size]), with the methods `policy`
        and `values`; see `models.soft_actor_critic`.
      env: what is played; its actions are real numbers.
      horizon: steps of an iteration.
      updates: gradient steps of an iteration.
      sample: transitions of each.
      memory: transitions that are remembered.
      warmup: iterations that play at random before the first gradient step.
      n: rewards that are summed; at most `horizon` count.
      discount: gamma.
      target_rate: share of the parameters that enters the target's after each gradient step.
      temperature: alpha, at first. Its logarithm is a parameter: a decay of weights pulls it to 0.
      entropy: that the policy is to have, in nats; None for minus the size of an action (appendix
        D), in units of half the range.
    """

    model: nn.Module
    env: Environment
    horizon: Size = 8
    updates: Size = 8
    sample: Size = 256
    memory: Size = 100_000
    warmup: Size = 20
    n: Size = 1
    discount: Annotated[float, Between(0, 1)] = 0.99
    target_rate: Annotated[float, Between(0, 1)] = 0.005
    temperature: Annotated[float, Between(1e-6)] = 1.
    entropy: float | None = None

    pictures = films.pictures

    def updates_per_step(self, name: str) -> int:
        """Gradient steps of an iteration."""
        return self.updates

    @property
    def box(self) -> Box:
        """What can be done."""
        actions = self.env.actions()
        if not isinstance(actions, Box):
            raise UserError("task.env: its actions are one of several; SAC takes real numbers.")
        return actions

    @property
    def policy(self) -> Squashed:
        """How actions follow from what the model says."""
        return Squashed(self.box)

    def init(self, key: Array, batch: Batch, tx: Any) -> OffPolicyState:
        size = len(batch["mask"])
        if size * self.horizon > self.memory:
            raise UserError(f"task.memory={self.memory}: an iteration plays batch_size * horizon = "
                            f"{size * self.horizon} transitions.")
        playing = begin(self.env, jax.random.split(jax.random.fold_in(key, 1), size))
        action = jnp.zeros((size, self.box.size))
        if not (hasattr(self.model, "policy") and hasattr(self.model, "values")):
            raise UserError(f"task.model={type(self.model).__name__}: has no methods policy and "
                            "values, as SoftActorCritic has.")
        found, variables = self.model.init_with_output(key, playing.observation, action)
        suits(self.model, found, self.policy.outputs, parts=("policy", "values"))
        params = {"model": variables["params"],
                  "temperature": jnp.log(jnp.asarray(self.temperature, jnp.float32))}
        seen, zero = playing.observation[0], jnp.zeros(())
        row = Transition(seen, action[0], zero, zero, seen)
        return OffPolicyState(step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 2),
                        params=params, target=jax.tree.map(jnp.copy, params["model"]),
                        opt_state=tx.init(params), playing=playing,
                        replay=replay.empty(row, self.memory))

    def said(self, params: Any, observation: Array) -> Array:
        """What the model says of what to do, [N, outputs]."""
        found: Any = self.model.apply({"params": params}, observation, method="policy")
        return found

    def values(self, params: Any, observation: Array, action: Array) -> Array:
        """Q_i of observations [N, ...] and actions [N, size]: [i, N]."""
        found: Any = self.model.apply({"params": params}, observation, action, method="values")
        return found

    def sampled(self, params: Any, observation: Array, key: Array) -> tuple[Array, Array]:
        """(actions [N, size], logarithms of their density [N])."""
        keys = jax.random.split(key, len(observation))
        return jax.vmap(self.policy.sampled)(self.said(params, observation), keys)

    def step(self, state: OffPolicyState, batch: Batch, tx: Any) -> tuple[OffPolicyState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        warm = state.step >= self.warmup

        def choose(observation: Array, key: Array) -> Array:
            action, _ = self.sampled(state.params["model"], observation, key)
            return jnp.where(warm, action, jax.random.uniform(key, action.shape, minval=-1))

        playing, transitions, metrics = played(
            self.env, state.playing, jax.random.fold_in(key, 0), self.horizon, self.discount,
            self.n, choose, self.policy.bounded)
        memory = remembered(state.replay, transitions)

        def update(carry: Any, key: Array) -> tuple[Any, Any]:
            before, target, opt_state = carry
            rows, _, _ = replay.drawn(memory, jax.random.fold_in(key, 0), self.sample)
            gradient, found = jax.grad(self.loss, has_aux=True)(before, target, rows,
                                                                jax.random.fold_in(key, 1))
            updates, opt_state = tx.update(gradient, opt_state, before)
            params: Any = optax.apply_updates(before, updates)
            target = optax.incremental_update(params["model"], target, self.target_rate)
            return (params, target, opt_state), {**found, "grad_norm": optax.tree.norm(gradient)}

        before = (state.params, state.target, state.opt_state)
        after, found = jax.lax.scan(update, before,
                                    jax.random.split(jax.random.fold_in(key, 1), self.updates))
        params, target, opt_state = jax.tree.map(lambda a, b: jnp.where(warm, a, b), after, before)
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])), params=params,
                       target=target, opt_state=opt_state, playing=playing, replay=memory), {
                           **metrics, **{name: x.mean() for name, x in found.items()}}

    def loss(self, params: Any, target: Any, rows: Transition,
             key: Array) -> tuple[Array, Mapping[str, Array]]:
        """(loss, metrics) of transitions."""
        model, alpha = params["model"], jnp.exp(params["temperature"])
        fixed = jax.lax.stop_gradient
        action, logs = self.sampled(fixed(model), rows.following, jax.random.fold_in(key, 0))
        later = self.values(target, rows.following, action).min(0) - fixed(alpha) * logs
        error = self.values(model, rows.observation, rows.action) - (
            rows.reward + rows.factor * fixed(later))
        value_loss = jnp.square(error).sum(0).mean() / 2

        action, logs = self.sampled(model, rows.observation, jax.random.fold_in(key, 1))
        value = self.values(fixed(model), rows.observation, action).min(0)
        policy_loss = (fixed(alpha) * logs - value).mean()

        entropy = -float(self.box.size) if self.entropy is None else self.entropy
        temperature_loss = (-alpha * fixed(logs + entropy)).mean()
        return value_loss + policy_loss + temperature_loss, {
            "value_loss": value_loss, "policy_loss": policy_loss, "entropy": -logs.mean(),
            "temperature": alpha, "value": value.mean()}

    def act(self, state: OffPolicyState, observation: Array, key: Array | None) -> Array:
        """Actions [N, size] of observations, drawn with the key; None takes the mode."""
        if key is None:
            action = self.policy.mode(self.said(state.params["model"], observation))
        else:
            action, _ = self.sampled(state.params["model"], observation, key)
        return self.policy.bounded(action)
