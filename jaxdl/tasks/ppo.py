"""Proximal policy optimisation: Schulman et al. (2017), https://arxiv.org/abs/1707.06347."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdl.config import Between, Fraction, NonNegative, Size
from jaxdl.errors import UserError
from jaxdl.returns import advantages
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.on_policy import OnPolicy, OnPolicyState

Array = jax.Array


class Played(NamedTuple):
    """What is learned from: what was seen and done, and what the policy said of it then. If the
    model carries something along, also where episodes begin, and what it carried before."""

    observation: Array
    action: Array
    log_probability: Array
    value: Array
    advantage: Array
    fresh: Array | None = None
    carry: Any = ()


@dataclass(frozen=True, kw_only=True)
class PPO(OnPolicy):
    """An iteration plays `horizon` steps in each of `batch_size` environments, and then takes
    `epochs` times `minibatches` gradient steps on what was played. The loss is

        - mean of min(r A, clip(r, 1 - clip, 1 + clip) A)             (equation 7)
        + value_weight * mean of (V - return)^2 / 2
        - entropy_weight * mean entropy of the policy                  (equation 9)

    where r is the probability of an action over what it was, A the generalised advantage estimate,
    normalised in each minibatch, and the return A + V as they were. An episode that is cut off for
    its length goes on in its value (Pardo et al. 2018, https://arxiv.org/abs/1712.00378).

    A model may carry something from step to step, as recurrent networks do: see `OnPolicy`. Its
    minibatches are of whole environments, whose steps it is led through again, from what it carried
    then on.

    The data is `Nothing()`.

    Attributes:
      model: of policy and value; see `models.actor_critic`.
      env: what is played.
      horizon: T.
      epochs: passes over what was played.
      minibatches: parts of it, which must divide horizon * batch_size; batch_size, if the model
        carries something along.
      discount: gamma.
      decay: lambda of the advantages.
      clip: epsilon.
      value_weight: c1 of equation 9, here of half the square.
      entropy_weight: c2.
    """

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

    def init(self, key: Array, batch: Batch, tx: Any) -> OnPolicyState:
        size, length = len(batch["mask"]), 1 if self.carries else self.horizon
        if size * length % self.minibatches:
            what = "batch_size" if self.carries else "batch_size * horizon"
            raise UserError(f"task.minibatches={self.minibatches} does not divide {what} = "
                            f"{size * length}.")
        return super().init(key, batch, tx)

    def step(self, state: OnPolicyState, batch: Batch, tx: Any) -> tuple[OnPolicyState, Metrics]:
        key, before = jax.random.fold_in(state.key, state.step), state.carry
        state, steps, metrics = self.play(state, key)
        advantage = advantages(steps.reward, steps.value, steps.following, steps.terminated,
                               steps.ended, self.discount, self.decay)
        rows = self.rows(Played(steps.observation, steps.action, steps.log_probability,
                                steps.value, advantage, steps.fresh))._replace(carry=before)

        def learn(carry: tuple[Any, Any], key: Array) -> tuple[tuple[Any, Any], Any]:
            order = shuffled(key, len(rows.value))
            parts = jax.tree.map(lambda x: x[order].reshape(self.minibatches, -1, *x.shape[1:]),
                                 rows)
            return jax.lax.scan(update, carry, parts)

        def update(carry: tuple[Any, Any], part: Played) -> tuple[tuple[Any, Any], Any]:
            params, opt_state = carry
            gradient, found = jax.grad(self.loss, has_aux=True)(params, part)
            updates, opt_state = tx.update(gradient, opt_state, params)
            found = {**found, "grad_norm": optax.tree.norm(gradient)}
            return (optax.apply_updates(params, updates), opt_state), found

        keys = jax.random.split(jax.random.fold_in(key, self.horizon), self.epochs)
        (params, opt_state), found = jax.lax.scan(learn, (state.params, state.opt_state), keys)
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])), params=params,
                       opt_state=opt_state), {
                           **metrics, **{name: x.mean() for name, x in found.items()}}

    def loss(self, params: Any, part: Played) -> tuple[Array, Mapping[str, Array]]:
        """(loss, metrics) of a minibatch."""
        said, value = self.again(params, part.observation, part.carry, part.fresh)
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


def shuffled(key: Array, count: int) -> Array:
    """0 ... count - 1 in a random order: sorted random numbers, whose last bits these are. XLA
    sorts one array in a tenth of the time that pairs take it on CPU."""
    bits = (count - 1).bit_length()
    if bits > 14:  # Too few random bits would be left.
        return jax.random.permutation(key, count)
    drawn = jax.random.bits(key, (count,)) << bits | jnp.arange(count, dtype=jnp.uint32)
    return jnp.sort(drawn) & jnp.uint32((1 << bits) - 1)
