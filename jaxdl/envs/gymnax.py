"""The environments of gymnax: https://github.com/RobertTLange/gymnax."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.envs import frames
from jaxdl.envs.environment import Box, Discrete, Step
from jaxdl.errors import UserError, nearest

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Gymnax:
    """An environment of gymnax, by its name: "CartPole-v1", "Pendulum-v1", "Breakout-MinAtar" and
    more. It takes `pip install 'jaxdl[rl]'`.

    Attributes:
      name: in gymnax.
    """

    name: str

    @functools.cached_property
    def made(self) -> tuple[Any, Any]:
        """gymnax's environment and its parameters."""
        try:
            gymnax: Any = importlib.import_module("gymnax")
        except ImportError as error:
            raise UserError(f"Gymnax: {error}: pip install 'jaxdl[rl]'.") from error
        if self.name not in gymnax.registered_envs:
            raise UserError(f"Gymnax: name={self.name}: no such environment."
                            f"{nearest(self.name, gymnax.registered_envs)}")
        with jax.ensure_compile_time_eval():  # Its arrays are kept, whatever is traced now.
            return gymnax.make(self.name)

    def actions(self) -> Discrete | Box:
        env, params = self.made
        space = env.action_space(params)
        if hasattr(space, "n"):
            return Discrete(int(space.n))
        low, high = (np.unique(np.asarray(x)) for x in (space.low, space.high))
        if len(low) > 1 or len(high) > 1 or len(space.shape) > 1:
            raise UserError(f"Gymnax: name={self.name}: its actions are no vector with one range "
                            "for all its values.")
        return Box(int(np.prod(space.shape)), float(low[0]), float(high[0]))

    def shape(self) -> tuple[int, ...]:
        return jax.eval_shape(self.reset, jax.random.key(0))[1].shape

    def reset(self, key: Array) -> tuple[Any, Array]:
        env, params = self.made
        observation, state = env.reset_env(key, params)
        return jax.tree.map(strong, state), jnp.asarray(observation, jnp.float32)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, Step]:
        env, params = self.made
        observation, after, reward, terminated, _ = env.step_env(key, state, action, params)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, state)
        truncated = jnp.asarray(env.is_truncated(after, params)) & ~jnp.asarray(terminated)
        return after, Step(jnp.asarray(observation, jnp.float32),
                           jnp.asarray(reward, jnp.float32).reshape(()),
                           jnp.asarray(terminated), truncated)

    def frame(self, state: Any, observation: np.ndarray) -> np.ndarray | None:
        """What a state looks like (`envs.frames`), where there is a picture of it."""
        if self.name in frames.STATES:
            return frames.STATES[self.name](state)
        return frames.channels(observation) if observation.ndim == 3 else None


def strong(x: Any) -> Array:
    """An array whose type no other one changes, unlike that of a Python number."""
    return jnp.asarray(x, jnp.asarray(x).dtype)
