"""Whole episodes played by what was learned: the mean of their returns, and how sure that is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.compiled import compiled
from jaxdl.config import Size
from jaxdl.envs.environment import advance, begin
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.films import FRAMES, acted, carried, drawn, film, watched

Array = jax.Array
PART = 100  # steps between two looks at whether all episodes have ended, at most


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """Plays `count` episodes of the task's environment from their beginning, always from the same
    random numbers: "return" is the mean of their sums of rewards, "interval" half of its 95 %
    confidence interval (1.96 deviations over the root of the count), "lowest" the worst and
    "length" the mean of their steps. Where there are pictures of the environment, an episode is
    filmed: films/NAME_STEP.gif in the run.

    Attributes:
      every: steps between two evaluations; the last step is always evaluated.
      count: episodes.
      drawn: whether actions are drawn as in training; else the likeliest is taken.
      limit: steps after which an episode counts as it is, rounded up to hundreds where it is more.
      film: whether one is filmed.
    """

    every: Size = 10
    count: Size = 100
    drawn: bool = False
    limit: Size = 10_000
    film: bool = True

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the task plays nothing."""
        if not hasattr(experiment.task, "env") or not hasattr(experiment.task, "act"):
            raise UserError(f"Episodes: {type(experiment.task).__name__} plays no environment.")

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        size = min(PART, self.limit)

        def start(task: Any, state: Any, key: Array) -> Any:
            zeros = jnp.zeros(self.count)
            return (begin(task.env, jax.random.split(key, self.count)),
                    carried(task, self.count), zeros, zeros, jnp.zeros(self.count, bool))

        def part(task: Any, given: Any, key: Array) -> Any:
            state, now = given

            def one(now: Any, key: Array) -> tuple[Any, None]:
                playing, carry, total, length, over = now
                action, carry = acted(task, state, playing.observation,
                                      jax.random.fold_in(key, 0) if self.drawn else None, carry)
                keys = jax.random.split(jax.random.fold_in(key, 1), self.count)
                playing, _, ended = advance(task.env, keys, playing, action)
                first = ended.ended & ~over
                return (playing, carry, jnp.where(first, ended.total, total),
                        jnp.where(first, ended.length, length), over | ended.ended), None

            return jax.lax.scan(one, now, jax.random.split(key, size))[0]

        begun = compiled(context, "begin", task, start)
        go_on = compiled(context, "part", task, part)
        key = jax.random.key(0)
        now = begun(state, key)
        for i in range(math.ceil(self.limit / size)):
            context.poll()
            now = go_on((state, now), jax.random.fold_in(key, i))
            if np.asarray(now[-1]).all():
                break
        playing, _, total, length, over = jax.device_get(now)
        total = np.where(over, total, playing.total)
        length = np.where(over, length, playing.length)
        if self.film and context.folder is not None and hasattr(task.env, "frame"):
            seen = compiled(context, "watched", task, watched)(state, key)
            if frames := drawn(task.env, seen, FRAMES)[0]:
                film(context.folder / "films" / f"{context.name}_{context.step:07d}.gif", frames)
        return {"return": float(total.mean()),
                "interval": float(1.96 * total.std(ddof=1) / math.sqrt(self.count))
                if self.count > 1 else math.nan,
                "lowest": float(total.min()), "length": float(length.mean())}
