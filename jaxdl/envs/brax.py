"""The environments of brax: https://github.com/google/brax."""

import functools
import importlib
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.envs.environment import Box, Step
from jaxdl.envs.gymnax import strong
from jaxdl.errors import UserError, nearest, told

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Brax:
    """Bodies with joints, by their name in brax: "inverted_pendulum", "inverted_double_pendulum",
    "reacher", "pusher", "hopper", "walker2d", "halfcheetah", "ant", "humanoid" and
    "humanoidstandup" (Freeman et al. 2021, https://arxiv.org/abs/2106.13281). "swimmer" of brax
    0.14.2 calls what JAX 0.10 has no more. It takes `pip install 'jaxdl[brax]'`, which brings
    MuJoCo as the reader of their files; nothing is drawn.

    Attributes:
      name: in brax.
      backend: how their physics is computed; "spring" takes least time, "generalized" is closest to
        MuJoCo.
      limit: steps after which an episode is cut off.
    """

    name: str
    backend: Literal["generalized", "positional", "spring"] = "generalized"
    limit: Size = 1_000

    @functools.cached_property
    def made(self) -> Any:
        """brax's environment."""
        try:
            envs: Any = importlib.import_module("brax.envs")
        except ImportError as error:
            raise UserError(f"Brax: {error}: pip install 'jaxdl[brax]'.") from error
        known = sorted(envs._envs)
        if self.name not in known:
            raise UserError(f"Brax: name={self.name}: no such environment."
                            f"{nearest(self.name, known)}")
        with jax.ensure_compile_time_eval():  # Its arrays are kept, whatever is traced now.
            try:
                return envs.get_environment(self.name, backend=self.backend)
            except Exception as error:
                raise UserError(f"Brax: name={self.name}, backend={self.backend}: "
                                f"{told(error)}") from error

    def actions(self) -> Box:
        return Box(self.made.action_size, -1., 1.)

    def shape(self) -> tuple[int, ...]:
        return (self.made.observation_size,)

    def reset(self, key: Array) -> tuple[Any, Array]:
        state = jax.tree.map(strong, self.made.reset(key))
        return (state, jnp.int32(0)), jnp.asarray(state.obs, jnp.float32)

    def step(self, key: Array, state: Any, action: Array) -> tuple[Any, Step]:
        before, time = state
        copy = jax.tree.map(lambda x: x, before)  # brax writes into the dictionaries in it.
        after = self.made.step(copy, action)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), after, before)
        time, terminated = time + 1, after.done > 0.5
        return (after, time), Step(
            jnp.asarray(after.obs, jnp.float32), jnp.asarray(after.reward, jnp.float32),
            terminated, (time >= self.limit) & ~terminated)
