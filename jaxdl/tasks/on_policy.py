"""What tasks share that learn from what their policy has just played: PPO and REINFORCE."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import films
from jaxdl.config import Size
from jaxdl.envs.environment import Environment, Playing, advance, begin, finished
from jaxdl.policies import Policy, chosen, policy, suits
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.no_test_data import NoTestData

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnPolicyState:
    """All that changes in training: arrays only.

    Attributes:
      step: int32, iterations done, each of which plays and learns.
      seen: uint32, environments that they began in: the position in the data.
      key: the run's random key.
      params: of the network.
      opt_state: of Optax.
      playing: the environments, in the middle of their episodes.
      carry: what the network carries along in each, [N, ...]; () if it carries nothing.
    """

    step: Array
    seen: Array
    key: Array
    params: Any
    opt_state: Any
    playing: Playing
    carry: Any


class Steps(NamedTuple):
    """What was seen and done, [T, N, ...], and what the network said of it then.

    Attributes:
      observation: before each step.
      fresh: whether it was the first of an episode.
      action: as the policy has it, not yet bounded.
      log_probability: of the action.
      value: of the observation.
      following: value of what was seen after the step, also where the episode was cut off there.
      reward: of the step.
      terminated: whether the episode came to its end.
      ended: whether it came to its end or was cut off.
    """

    observation: Array
    fresh: Array
    action: Array
    log_probability: Array
    value: Array
    following: Array
    reward: Array
    terminated: Array
    ended: Array


@dataclass(frozen=True, kw_only=True)
class OnPolicy(NoTestData):
    """A network of policy and value, and the environments that it plays. A kind of it defines
    `step`.

    A network without memory is called as model(observations [N, ...], train), and returns (policy
    [N, outputs], values [N]). One that carries something from step to step has a method
    `start(count)`, what it carries before the first, and is called as model(observations [N, T,
    ...], train, carry, fresh [N, T]); it returns (policy [N, T, outputs], values [N, T], what it
    carries on), and carries nothing into a step that is `fresh`: the first of an episode. See
    `models.actor_critic`.
    """

    model: nn.Module
    env: Environment
    horizon: Size = 128

    pictures = films.pictures

    @property
    def policy(self) -> Policy:
        """How actions follow from what the model says."""
        return policy(self.env.actions())

    @property
    def carries(self) -> bool:
        """Whether the model carries something from step to step."""
        return hasattr(self.model, "start")

    def start(self, count: int) -> Any:
        """What is carried before the first observation of `count` episodes; () for nothing."""
        model: Any = self.model
        return model.start(count) if self.carries else ()

    def init(self, key: Array, batch: Batch, tx: Any) -> OnPolicyState:
        size = len(batch["mask"])
        playing = begin(self.env, jax.random.split(jax.random.fold_in(key, 1), size))
        carry = self.start(size)
        if self.carries:
            found, variables = self.model.init_with_output(
                key, playing.observation[:, None], True, carry, jnp.ones((size, 1), bool))
        else:
            found, variables = self.model.init_with_output(key, playing.observation, True)
        parts = ("policy", "values", "what is carried on")[:3 if self.carries else 2]
        suits(self.model, found, self.policy.outputs, parts=parts)
        params = variables["params"]
        return OnPolicyState(step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 2),
                             params=params, opt_state=tx.init(params), playing=playing,
                             carry=carry)

    def apply(self, params: Any, observation: Array) -> tuple[Array, Array]:
        """(policy, values) of observations [N, ...], the first of their episodes if that counts."""
        said, value, _ = self.go_on(params, observation, self.start(len(observation)))
        return said, value

    def go_on(self, params: Any, observation: Array, carry: Any,
              fresh: Array | None = None) -> tuple[Array, Array, Any]:
        """(policy, values, what is carried on) of observations [N, ...], each after what is
        carried; where they are `fresh` [N], after nothing."""
        if not self.carries:
            plain: Any = self.model.apply({"params": params}, observation, False)
            return *plain, ()
        if fresh is None:
            fresh = jnp.zeros(len(observation), bool)
        found: Any = self.model.apply({"params": params}, observation[:, None], False, carry,
                                      fresh[:, None])
        return found[0][:, 0], found[1][:, 0], found[2]

    def again(self, params: Any, observation: Array, carry: Any,
              fresh: Array | None) -> tuple[Array, Array]:
        """(policy, values) of the `rows` of what was played."""
        if not self.carries:
            return self.apply(params, observation)
        found: Any = self.model.apply({"params": params}, observation, False, carry, fresh)
        return found[:2]

    def rows(self, played: Any) -> Any:
        """What was played [T, N, ...] as what can be learned from in any order: single steps [T *
        N, ...], or environments [N, T, ...] if something is carried from step to step."""
        return jax.tree.map(lambda x: x.swapaxes(0, 1) if self.carries
                            else x.reshape(-1, *x.shape[2:]), played)

    def play(self, state: OnPolicyState, key: Array) -> tuple[OnPolicyState, Steps, Metrics]:
        """(state, what was played, metrics) after `horizon` steps."""
        def act(now: tuple[Playing, Any], keys: Array) -> tuple[tuple[Playing, Any], Any]:
            playing, carry = now
            fresh = playing.length == 0
            said, value, carry = self.go_on(state.params, playing.observation, carry, fresh)
            action = jax.vmap(self.policy.sample)(said, keys[0])
            after, step, ended = advance(self.env, keys[1], playing, self.policy.bounded(action))
            logs = self.policy.log_probability(said, action)
            return (after, carry), (playing.observation, fresh, action, logs, value, carry, step,
                                    ended)

        keys = jax.random.split(key, (self.horizon, 2, len(state.playing.length)))
        (playing, carry), (observation, fresh, action, logs, value, carried, step, ended) = (
            jax.lax.scan(act, (state.playing, state.carry), keys))
        # Of what followed each step, also where the episode ended: one more pass of the network.
        seen, carried = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]),
                                     (step.observation, carried))
        _, following, _ = self.go_on(state.params, seen, carried)
        return replace(state, playing=playing, carry=carry), Steps(
            observation, fresh, action, logs, value, following.reshape(value.shape), step.reward,
            step.terminated, ended.ended), finished(ended)

    def act(self, state: OnPolicyState, observation: Array, key: Array | None,
            carry: Any = None) -> Any:
        """Actions [N, ...] of observations, drawn with the key; None takes the likeliest. With
        what is carried, of `start` or of an earlier call, (actions, what is carried on)."""
        before = self.start(len(observation)) if carry is None else carry
        said, _, after = self.go_on(state.params, observation, before)
        action = chosen(self.policy, said, key)
        return action if carry is None else (action, after)
