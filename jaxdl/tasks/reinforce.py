"""REINFORCE: Williams (1992), https://doi.org/10.1007/BF00992696."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

from jaxdl.config import Between, NonNegative
from jaxdl.returns import rewards_to_go
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.on_policy import OnPolicy, OnPolicyState, Steps

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Reinforce(OnPolicy):
    """An iteration plays `horizon` steps in each of `batch_size` environments, and takes one
    gradient step on all that was played. The loss is

        - mean of (G - V) log pi(action | observation)
        + value_weight * mean of (V - G)^2 / 2
        - entropy_weight * mean entropy of the policy

    where G is the discounted sum of the rewards from the step on, and V the baseline that is
    learned, through which the first line has no gradient. What comes after the last step that was
    played, or after an episode that was cut off for its length, counts as its value V.

    The data is `Nothing()`.

    Attributes:
      model: of policy and value; see `OnPolicy` and `models.actor_critic`.
      env: what is played.
      horizon: steps of an iteration.
      discount: gamma.
      value_weight: see above.
      entropy_weight: see above.
    """

    discount: Annotated[float, Between(0, 1)] = 0.99
    value_weight: NonNegative = 0.5
    entropy_weight: NonNegative = 0.

    def step(self, state: OnPolicyState, batch: Batch, tx: Any) -> tuple[OnPolicyState, Metrics]:
        before = state.carry
        state, steps, metrics = self.play(state, jax.random.fold_in(state.key, state.step))
        returns = rewards_to_go(steps.reward, steps.following, steps.terminated, steps.ended,
                                self.discount)
        rows, returns = self.rows((steps, returns))
        gradient, found = jax.grad(self.loss, has_aux=True)(state.params, rows, returns, before)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])),
                       params=optax.apply_updates(state.params, updates), opt_state=opt_state), {
                           **metrics, **found, "grad_norm": optax.tree.norm(gradient)}

    def loss(self, params: Any, steps: Steps, returns: Array,
             carry: Any) -> tuple[Array, Mapping[str, Array]]:
        """(loss, metrics) of rows of what was played, and what was carried before them."""
        said, value = self.again(params, steps.observation, carry, steps.fresh)
        better = returns - jax.lax.stop_gradient(value)
        gain = (better * self.policy.log_probability(said, steps.action)).mean()
        value_loss = jnp.square(value - returns).mean() / 2
        entropy = self.policy.entropy(said).mean()
        total = -gain + self.value_weight * value_loss - self.entropy_weight * entropy
        return total, {"loss": total, "policy_loss": -gain, "value_loss": value_loss,
                       "entropy": entropy}
