"""Proximal policy optimisation: Schulman et al. (2017), https://arxiv.org/abs/1707.06347."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl.config import Between, Fraction, NonNegative, Size
from jaxdl.envs.environment import Environment, Playing, advance, begin, finished
from jaxdl.errors import UserError
from jaxdl.policies import Policy, policy
from jaxdl.returns import advantages
from jaxdl.task import Batch, Mean, Metrics

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PPOState:
    """All that changes in training: arrays only.

    Attributes:
      step: int32, iterations done, each of which plays and learns.
      seen: uint32, environments that they began in: the position in the data.
      key: the run's random key.
      params: of the network.
      opt_state: of Optax.
      playing: the environments, in the middle of their episodes.
    """

    step: Array
    seen: Array
    key: Array
    params: Any
    opt_state: Any
    playing: Playing


class Played(NamedTuple):
    """What was seen and done, [T, N, ...], and what the policy said of it then."""

    observation: Array
    action: Array
    log_probability: Array
    value: Array
    advantage: Array


@dataclass(frozen=True, kw_only=True)
class PPO:
    """An iteration plays `horizon` steps in each of `batch_size` environments, and then takes
    `epochs` times `minibatches` gradient steps on what was played. The loss is

        - mean of min(r A, clip(r, 1 - clip, 1 + clip) A)             (equation 7)
        + value_weight * mean of (V - return)^2 / 2
        - entropy_weight * mean entropy of the policy                  (equation 9)

    where r is the probability of an action over what it was, A the generalised advantage estimate,
    normalised in each minibatch, and the return A + V as they were. An episode that is cut off for
    its length goes on in its value (Pardo et al. 2018, https://arxiv.org/abs/1712.00378).

    The data is `Nothing()`.

    Attributes:
      model: called as model(observations [N, ...], train), returns (policy [N, outputs], values
        [N]); see `models.actor_critic`.
      env: what is played.
      horizon: T.
      epochs: passes over what was played.
      minibatches: parts of it, which must divide horizon * batch_size.
      discount: gamma.
      decay: lambda of the advantages.
      clip: epsilon.
      value_weight: c1 of equation 9, here of half the square.
      entropy_weight: c2.
    """

    model: nn.Module
    env: Environment
    horizon: Size = 128
    epochs: Size = 4
    minibatches: Size = 4
    discount: Annotated[float, Between(0, 1)] = 0.99
    decay: Annotated[float, Between(0, 1)] = 0.95
    clip: Fraction = 0.2
    value_weight: NonNegative = 0.5
    entropy_weight: NonNegative = 0.01

    def updates_per_step(self, name: str) -> int:
        """Gradient steps of an iteration."""
        return self.epochs * self.minibatches

    @property
    def policy(self) -> Policy:
        """How actions follow from what the model says."""
        return policy(self.env.actions())

    def init(self, key: Array, batch: Batch, tx: Any) -> PPOState:
        size = len(batch["mask"])
        if size * self.horizon % self.minibatches:
            raise UserError(f"task.minibatches={self.minibatches} does not divide batch_size * "
                            f"horizon = {size * self.horizon}.")
        playing = begin(self.env, jax.random.split(jax.random.fold_in(key, 1), size))
        params = self.model.init(key, playing.observation, True)["params"]
        said, _ = self.apply(params, playing.observation)
        if said.shape[-1] != self.policy.outputs:
            raise UserError(f"task.model: says {said.shape[-1]} numbers of what to do; the actions "
                            f"of task.env take {self.policy.outputs} (outputs).")
        return PPOState(step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 2),
                        params=params, opt_state=tx.init(params), playing=playing)

    def apply(self, params: Any, observation: Array) -> tuple[Array, Array]:
        """(policy, values) of observations [N, ...]."""
        found: Any = self.model.apply({"params": params}, observation, False)
        return found

    def step(self, state: PPOState, batch: Batch, tx: Any) -> tuple[PPOState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        playing, played, metrics = self.play(state, key)

        def learn(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Any]:
            order = shuffled(key, len(flat.value))
            parts = jax.tree.map(lambda x: x[order].reshape(self.minibatches, -1, *x.shape[1:]),
                                 flat)
            return jax.lax.scan(update, carry, parts)

        def update(carry: tuple[Any, Any], part: Played) -> tuple[tuple[Any, Any], Any]:
            params, opt_state = carry
            gradient, found = jax.grad(self.loss, has_aux=True)(params, part)
            updates, opt_state = tx.update(gradient, opt_state, params)
            found = {**found, "grad_norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), opt_state), found

        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), played)
        keys = jax.random.split(jax.random.fold_in(key, self.horizon), self.epochs)
        (params, opt_state), found = jax.lax.scan(learn, (state.params, state.opt_state), keys)
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])), params=params,
                       opt_state=opt_state, playing=playing), {
                           **metrics, **{name: x.mean() for name, x in found.items()}}

    def play(self, state: PPOState, key: Array) -> tuple[Playing, Played, Metrics]:
        """(environments, what was played, metrics) after `horizon` steps."""
        def act(playing: Playing, keys: Array) -> tuple[Playing, Any]:
            said, value = self.apply(state.params, playing.observation)
            action = jax.vmap(self.policy.sample)(said, keys[0])
            after, step, ended = advance(self.env, keys[1], playing, self.policy.bounded(action))
            logs = self.policy.log_probability(said, action)
            return after, (playing.observation, action, logs, value, step, ended)

        keys = jax.random.split(key, (self.horizon, 2, len(state.playing.length)))
        playing, (observation, action, logs, value, step, ended) = jax.lax.scan(
            act, state.playing, keys)
        # Of what followed each step, also where the episode ended: one more pass of the network.
        _, following = self.apply(state.params, step.observation.reshape(
            -1, *step.observation.shape[2:]))
        advantage = advantages(step.reward, value, following.reshape(value.shape),
                               step.terminated, ended.ended, self.discount, self.decay)
        return playing, Played(observation, action, logs, value, advantage), finished(ended)

    def loss(self, params: Any, part: Played) -> tuple[Array, Mapping[str, Array]]:
        """(loss, metrics) of a minibatch."""
        said, value = self.apply(params, part.observation)
        logs = self.policy.log_probability(said, part.action)
        change = logs - part.log_probability
        ratio = jnp.exp(change)
        a = (part.advantage - part.advantage.mean()) / (part.advantage.std() + 1e-8)
        gain = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - self.clip, 1 + self.clip) * a).mean()
        value_loss = jnp.square(value - part.advantage - part.value).mean() / 2
        entropy = self.policy.entropy(said).mean()
        total = -gain + self.value_weight * value_loss - self.entropy_weight * entropy
        return total, {"loss": total, "policy_loss": -gain, "value_loss": value_loss,
                       "entropy": entropy, "kl": (ratio - 1 - change).mean(),
                       "clipped": (jnp.abs(ratio - 1) > self.clip).astype(jnp.float32).mean()}

    def evaluate(self, state: PPOState, batch: Batch) -> Mapping[str, Mean]:
        raise UserError("PPO has no test data to be evaluated on; its evaluator is "
                        "episodes.Episodes.")

    def act(self, state: PPOState, observation: Array, key: Array | None) -> Array:
        """Actions [N, ...] of observations, drawn with the key; None takes the likeliest."""
        said, _ = self.apply(state.params, observation)
        if key is None:
            return self.policy.bounded(self.policy.mode(said))
        keys = jax.random.split(key, len(observation))
        return self.policy.bounded(jax.vmap(self.policy.sample)(said, keys))


def shuffled(key: Array, count: int) -> Array:
    """0 ... count - 1 in a random order: sorted random numbers, whose last bits these are. XLA
    sorts one array in a tenth of the time that pairs take it on CPU."""
    bits = (count - 1).bit_length()
    drawn = jax.random.bits(key, (count,)) << bits | jnp.arange(count, dtype=jnp.uint32)
    return jnp.sort(drawn) & jnp.uint32((1 << bits) - 1)
