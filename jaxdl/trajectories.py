"""Whole episodes of a policy, step by step: played, written to a file, and read from one.

    experiment, state = api.state("runs/ppo_cartpole", "best")
    trajectories.save("demonstrations.npz", trajectories.played(experiment.task, state, count=20))

Trajectories are arrays by name, whose first axis counts the steps of all episodes, one after the
other: "observation" before each step, "action" as the environment was given it, "reward",
"terminated", and "episode", the number of that which it belongs to.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.atomic import write_atomically
from jaxdl.envs.environment import advance, begin
from jaxdl.episodes import PART
from jaxdl.errors import UserError, nearest
from jaxdl.films import acted, carried

Array = jax.Array
Trajectories = Mapping[str, np.ndarray]
NEEDED = ("observation", "action", "reward", "episode")


def played(task: Any, state: Any, *, count: int, seed: int = 0, drawn: bool = False,
           limit: int = 10_000) -> Trajectories:
    """Episodes of the task's environment from their beginning, as `task.act` plays them.

    Args:
      task: has `env` and `act`.
      state: its state.
      count: episodes.
      seed: of the environments and of drawn actions; evaluations by `Episodes` begin elsewhere.
      drawn: whether actions are drawn; else the likeliest is taken.
      limit: steps after which an episode is left, rounded up to hundreds.
    """
    def one(state: Any, now: Any, key: Array) -> tuple[Any, Any]:
        playing, carry, over = now
        action, carry = acted(task, state, playing.observation,
                              jax.random.fold_in(key, 0) if drawn else None, carry)
        keys = jax.random.split(jax.random.fold_in(key, 1), count)
        after, step, ended = advance(task.env, keys, playing, action)
        return (after, carry, over | ended.ended), {
            "observation": playing.observation, "action": action, "reward": step.reward,
            "terminated": step.terminated, "counts": ~over}

    @jax.jit
    def part(state: Any, now: Any, key: Array) -> tuple[Any, Any]:
        return jax.lax.scan(lambda now, key: one(state, now, key), now,
                            jax.random.split(key, PART))

    key = jax.random.fold_in(jax.random.key(seed), 1)
    playing = jax.jit(lambda key: begin(task.env, jax.random.split(key, count)))(key)
    now, parts = (playing, carried(task, count), jnp.zeros(count, bool)), []
    for i in range(-(-limit // PART)):
        now, found = part(state, now, jax.random.fold_in(key, i))
        parts.append(jax.device_get(found))
        if np.asarray(now[-1]).all():
            break
    whole = {name: np.concatenate([x[name] for x in parts]).swapaxes(0, 1) for name in parts[0]}
    counts = whole.pop("counts")  # [count, steps]
    episode = np.broadcast_to(np.arange(count, dtype=np.int32)[:, None], counts.shape)
    return {name: x[counts] for name, x in {**whole, "episode": episode}.items()}


def save(path: str | os.PathLike[str], trajectories: Trajectories) -> None:
    """Writes them as an npz file."""
    file, arrays = io.BytesIO(), dict[str, Any](trajectories)
    np.savez(file, **arrays)
    write_atomically(Path(path).expanduser(), file.getvalue())


def load(path: str | os.PathLike[str]) -> Trajectories:
    """Trajectories out of an npz file. What is pickled in it is not looked at, but refused."""
    file = Path(path).expanduser()
    try:
        with np.load(file) as archive:
            found = {name: np.asarray(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError,
            zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: is no npz file of arrays ({' '.join(str(error).split())}).") \
            from error
    for name in NEEDED:
        if name not in found:
            raise UserError(f"{file}: has no {name!r}.{nearest(name, found)}")
    length = found["episode"].shape[:1]
    if found["episode"].ndim != 1 or not np.issubdtype(found["episode"].dtype, np.integer):
        raise UserError(f"{file}: 'episode' is {found['episode'].dtype} "
                        f"{found['episode'].shape}; expected whole numbers, one for each step.")
    for name, x in found.items():
        if x.dtype.kind not in "biuf":
            raise UserError(f"{file}: {name!r} is {x.dtype}; expected numbers.")
        if x.dtype.kind in "iu" and x.size and not -1 << 31 <= x.min() <= x.max() < 1 << 31:
            raise UserError(f"{file}: {name!r} has whole numbers beyond 32 bits.")
        if x.shape[:1] != length:
            raise UserError(f"{file}: {name!r} has the shape {x.shape}; there are {length[0]:,} "
                            "steps in 'episode'.")
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            raise UserError(f"{file}: {name!r} is not finite in step "
                            f"{np.argwhere(~np.isfinite(x))[0][0]:,}.")
    if found["reward"].ndim != 1:
        raise UserError(f"{file}: 'reward' has the shape {found['reward'].shape}; expected one "
                        "number for each step.")
    if not length[0]:
        raise UserError(f"{file}: there are no steps.")
    return found
