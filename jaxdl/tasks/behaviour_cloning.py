"""Behaviour cloning: what was demonstrated is learned as any other label is (Pomerleau 1991,
https://doi.org/10.1162/neco.1991.3.1.88)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import films
from jaxdl.config import Size
from jaxdl.data.demonstrations import Demonstrated
from jaxdl.envs.environment import Discrete, Environment
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.policies import Policy, chosen, policy, suits
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class BehaviourCloning(LossTask):
    """The loss is - log pi(action | observation): the cross-entropy of one of several actions, the
    negative logarithm of a density of real numbers.

    A batch has "observation" [B, ...], "action" as the environment was given it, and "mask" [B]:
    that of `data.demonstrations`. Metrics are the loss and, of one of several actions, "accuracy":
    how often the likeliest one is that of the demonstrator; of real numbers "squared_error", in
    units of half their range.

    Attributes:
      model: called as model(observation, train), returns [B, outputs]: the logits of the actions,
        or as many means and then logarithms of deviations.
      env: where it was demonstrated, in which `Episodes` plays.
    """

    model: nn.Module
    env: Environment

    target_fields: ClassVar[tuple[str, ...]] = ("action",)

    pictures = films.pictures

    @property
    def policy(self) -> Policy:
        """How actions follow from what the model says."""
        return policy(self.env.actions())

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        mask, given, actions = batch["mask"], batch["action"], self.env.actions()
        self.fits(batch)
        kept = mask > 0
        # What a masked example holds (NaN, say) must reach neither the sums nor the gradients.
        seen = batch["observation"]
        seen = jnp.where(kept.reshape(-1, *[1] * (seen.ndim - 1)), seen, 0)
        said, mutable = self.apply(self.model, variables, seen, key=key, train=train)
        suits(self.model, said, self.policy.outputs)
        if isinstance(actions, Discrete):
            action = jnp.where(kept, given, 0)
            found = {"accuracy": Mean.of(self.policy.mode(said) == action, mask)}
            # An action that there is not has no loss: NaN, which ends the run.
            none = (action < 0) | (action >= actions.count)
        else:
            action = jnp.where(kept[:, None], self.policy.own(given), 0)
            error = jnp.square(self.policy.mode(said) - action).mean(-1)
            found, none = {"squared_error": Mean.of(error, mask)}, jnp.zeros(len(mask), bool)
        losses = jnp.where(none, jnp.nan, -self.policy.log_probability(said, action))
        return Mean.of(losses, mask), Aux(metrics=found, mutable=mutable)

    def fits(self, batch: Batch) -> None:
        """Raises a UserError where demonstrations are of another environment."""
        actions, given = self.env.actions(), batch["action"]
        discrete = isinstance(actions, Discrete)
        expected = () if discrete else (actions.size,)
        integer = jnp.issubdtype(given.dtype, jnp.integer)
        if given.shape[1:] != expected or integer != discrete:
            raise UserError(f"data: actions are {given.dtype} {given.shape[1:]}; those of task.env "
                            f"are {'whole numbers' if discrete else 'real numbers'} {expected}.")
        if batch["observation"].shape[1:] != self.env.shape():
            raise UserError(f"data: observations have the shape {batch['observation'].shape[1:]}; "
                            f"those of task.env have {self.env.shape()}.")

    def initial_loss(self, batch: Batch) -> Array:
        """That of a model which says zeros: all of several actions are equally likely."""
        nothing = jnp.zeros((len(batch["mask"]), self.policy.outputs))
        return -self.policy.log_probability(nothing, self.policy.own(batch["action"])).mean()

    def act(self, state: TrainState, observation: Array, key: Array | None) -> Array:
        """Actions [N, ...] of observations, drawn with the key; None takes the likeliest."""
        said, _ = self.apply(self.model, self.variables(state), observation, key=state.key,
                             train=False)
        return chosen(self.policy, said, key)


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """What is demonstrated, to compare with: "return" is the mean of the returns of the episodes,
    "episodes" how many there are.

    Attributes:
      split: of the data.
      every: steps between two evaluations.
    """

    split: str = "train"
    every: Size = 1_000

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        source = context.source(self.split)
        if not isinstance(source, Demonstrated):
            raise UserError(f"Demonstrator: split={self.split}: these are no demonstrations.")
        return {"return": float(source.returns.mean()), "episodes": float(len(source.returns))}
