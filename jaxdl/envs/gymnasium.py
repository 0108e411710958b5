"""The environments of Gymnasium, and your own in Python: https://gymnasium.farama.org."""

import functools
import importlib
import logging
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.envs.environment import Box, Discrete, Step
from jaxdl.errors import UserError, told

Array = jax.Array
ROOM = 4  # environments that are kept alive, over the largest batch

# JAX prints the traceback of what a callback raises; a mistake of the user's is told in one line.
logging.getLogger("jax._src.callback").addFilter(
    lambda record: not (record.exc_info and isinstance(record.exc_info[1], UserError)))


class History(NamedTuple):
    """How an episode has come to where it is.

    Attributes:
      seed: that it was reset with, uint32.
      time: actions so far, int32.
      actions: these, and then zeros: [limit] or [limit, size].
      check: a sum over the last observation's bytes (CRC-32), uint32.
    """

    seed: Array
    time: Array
    actions: Array
    check: Array


@dataclass(frozen=True, kw_only=True)
class Gymnasium:
    """An environment that runs in Python, by its name in Gymnasium: "CartPole-v1", or your own as
    "module:Name-v0", where the import of the module registers it. It takes
    `pip install 'jaxdl[gymnasium]'`.

    The compiled step calls Python for each step of a batch, so it is as fast as that is. What such
    an environment holds is no array, so its state here is the seed and the actions since: an
    environment in the middle of that very episode is kept alive and stepped; where there is none,
    as after a resume, one is reset with the seed and plays the actions again. So the functions are
    pure, and a run is resumed to the bit, of every environment that does the same again after
    `reset(seed=...)` and the same actions. Of one that does not, a resume is refused with an error
    if its observation is another one; a draw that shows only later is not noticed.

    Observations are arrays (Gymnasium's `FlattenObservation` makes them of others), actions one of
    several, or a vector with one range for all its values.

    Attributes:
      name: in Gymnasium.
      limit: steps after which an episode is cut off; so many actions are kept for each environment.
    """

    name: str
    limit: Size = 1_000

    def actions(self) -> Discrete | Box:
        space = alive(self.name).space
        if type(space).__name__ == "Discrete":
            return Discrete(int(space.n))
        low, high = (np.unique(np.asarray(getattr(space, x, ()))) for x in ("low", "high"))
        if len(low) != 1 or len(high) != 1 or len(space.shape) != 1 or not np.isfinite(
                [low[0], high[0]]).all():
            raise UserError(f"Gymnasium: name={self.name}: its actions are neither one of several "
                            "nor a vector with one finite range for all its values.")
        return Box(int(np.prod(space.shape)), float(low[0]), float(high[0]))

    def shape(self) -> tuple[int, ...]:
        return alive(self.name).shape

    def reset(self, key: Array) -> tuple[History, Array]:
        actions, seed = self.actions(), jax.random.bits(key)
        check, observation = jax.pure_callback(
            alive(self.name).reset, (jax.ShapeDtypeStruct((), np.uint32), jax.ShapeDtypeStruct(
                self.shape(), np.float32)), seed, vmap_method="broadcast_all")
        none = jnp.zeros(self.limit, jnp.int32) if isinstance(actions, Discrete) else \
            jnp.zeros((self.limit, actions.size))
        return History(seed, jnp.int32(0), none, check), observation

    def step(self, key: Array, state: History, action: Array) -> tuple[History, Step]:
        action = jnp.asarray(action, state.actions.dtype)
        flag = jax.ShapeDtypeStruct((), np.bool_)
        check, *answer = jax.pure_callback(
            alive(self.name).step, (jax.ShapeDtypeStruct((), np.uint32), jax.ShapeDtypeStruct(
                self.shape(), np.float32), jax.ShapeDtypeStruct((), np.float32), flag, flag),
            *state, action, vmap_method="broadcast_all")
        observation, reward, terminated, truncated = answer
        time = state.time + 1
        return (History(state.seed, time, state.actions.at[state.time].set(action), check),
                Step(observation, reward, terminated,
                     (truncated | (time >= self.limit)) & ~terminated))


class Alive:
    """The environments of one name that are in the middle of an episode, each under the seed and
    the actions that led there."""

    def __init__(self, name: str) -> None:
        try:
            self.gymnasium: Any = importlib.import_module("gymnasium")
        except ImportError as error:
            raise UserError(f"Gymnasium: {error}: pip install 'jaxdl[gymnasium]'.") from error
        self.name, self.lock, self.room = name, threading.Lock(), 0
        self.playing: OrderedDict[tuple[int, bytes], Any] = OrderedDict()
        self.spare = [self.called(self.gymnasium.make, name, disable_env_checker=True)]
        self.space = self.spare[0].action_space
        seen = self.spare[0].observation_space
        if not isinstance(seen, self.gymnasium.spaces.Box):
            raise UserError(f"Gymnasium: name={name}: its observations are {seen}; expected an "
                            "array (Box).")
        self.shape: tuple[int, ...] = seen.shape

    def called(self, function: Any, *args: Any, **options: Any) -> Any:
        """What foreign code returns."""
        try:
            return function(*args, **options)
        except Exception as error:
            raise UserError(f"Gymnasium: name={self.name}: {told(error)}") from error

    def begin(self, seed: int) -> tuple[Any, np.ndarray]:
        """(environment, observation) of an episode that begins."""
        if not self.spare and len(self.playing) >= self.room:
            self.spare.append(self.playing.popitem(last=False)[1])  # what was stepped longest ago
        if not self.spare:
            self.spare.append(self.called(self.gymnasium.make, self.name, disable_env_checker=True))
        env = self.spare.pop()
        return env, self.seen(self.called(env.reset, seed=seed)[0])

    def seen(self, observation: Any) -> np.ndarray:
        """An observation, if it is what the environment has said that they are."""
        found = self.called(np.asarray, observation, np.float32)
        if found.shape != self.shape:
            raise UserError(f"Gymnasium: name={self.name}: an observation has the shape "
                            f"{found.shape}; by its observation_space they have {self.shape}.")
        return found

    def act(self, env: Any, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """What the environment answers: observation, reward, terminated, truncated."""
        if hasattr(self.space, "n"):
            action = int(action) + int(getattr(self.space, "start", 0))
        else:
            action = np.array(action, self.space.dtype)
        observation, *rest, _ = self.called(env.step, action)
        return self.seen(observation), *rest

    def at(self, seed: int, actions: np.ndarray, check: int) -> Any:
        """An environment that has come there; nobody else has it."""
        env = self.playing.pop((seed, actions.tobytes()), None)
        if env is None:
            env, observation = self.begin(seed)
            for action in actions:
                observation = self.act(env, action)[0]
            if zlib.crc32(observation.tobytes()) != check:
                raise UserError(f"Gymnasium: name={self.name}: after the same seed and actions it "
                                "shows another observation, so its runs cannot be resumed.")
        return env

    def reset(self, seed: Any) -> tuple[np.ndarray, np.ndarray]:
        """(checks, observations) of episodes that begin, [...] as the seeds."""
        seeds = np.asarray(seed)
        checks = np.zeros(seeds.shape, np.uint32)
        observations = np.zeros((*seeds.shape, *self.shape), np.float32)
        with self.lock:
            self.room = max(self.room, ROOM * seeds.size)
            for i in np.ndindex(seeds.shape):
                env, observations[i] = self.begin(int(seeds[i]))
                checks[i] = zlib.crc32(observations[i].tobytes())
                self.keep((int(seeds[i]), b""), env)
        return checks, observations

    def step(self, *given: Any) -> tuple[np.ndarray, ...]:
        """(checks, observations, rewards, terminated, truncated) of one action each, [...]."""
        seeds, times, actions, before, now = map(np.asarray, given)
        shape = seeds.shape
        checks, observations = np.zeros(shape, np.uint32), np.zeros((*shape, *self.shape),
                                                                    np.float32)
        rewards, terminated, truncated = (np.zeros(shape, x) for x in (np.float32, bool, bool))
        with self.lock:
            self.room = max(self.room, ROOM * seeds.size)
            for i in np.ndindex(shape):
                seed, past = int(seeds[i]), actions[i][:times[i]]
                env = self.at(seed, past, int(before[i]))
                observations[i], rewards[i], terminated[i], truncated[i] = self.act(env, now[i])
                checks[i] = zlib.crc32(observations[i].tobytes())
                if terminated[i] or truncated[i]:
                    self.spare.append(env)
                else:
                    self.keep((seed, past.tobytes() + now[i].tobytes()), env)
        return checks, observations, rewards, terminated, truncated

    def keep(self, key: tuple[int, bytes], env: Any) -> None:
        """Under its key; of two in the same place one serves the next episode."""
        if key in self.playing:
            self.spare.append(env)
        else:
            self.playing[key] = env


@functools.lru_cache
def alive(name: str) -> Alive:
    """Those of a name, which all that plays it in this process shares."""
    return Alive(name)
