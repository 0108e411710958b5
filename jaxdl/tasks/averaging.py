"""Stochastic weight averaging of Izmailov et al. (2018), https://arxiv.org/abs/1803.05407."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.config import Count, Size
from jaxdl.errors import UserError
from jaxdl.task import Batch, Metrics, TrainState
from jaxdl.tasks.wrapped import Wrapped

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class SWA(Wrapped):
    """Evaluates the mean of the parameters at steps start, start + every, start + 2 every, ...
    (algorithm 1); before `start`, the parameters themselves.

    The learning rate should stay high, or go in cycles of `every` steps. Statistics of batch norm
    are those of the parameters that are trained, not of their mean: networks with batch norm lose
    by that, the more the further the steps lie apart.

    Attributes:
      start: the first step whose parameters are averaged.
      every: steps between two of them.
    """

    start: Count
    every: Size = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ema is not None:
            raise UserError("SWA: averages the parameters itself; leave ema at None.")

    def init(self, key: Array, batch: Batch, tx: Any) -> TrainState:
        state = super().init(key, batch, tx)
        return replace(state, ema=jax.tree.map(jnp.copy, state.params))

    def step(self, state: TrainState, batch: Batch, tx: Any) -> tuple[TrainState, Metrics]:
        new, metrics = super().step(state, batch, tx)
        after = new.step - self.start
        number = jnp.maximum(after // self.every, 0)  # of the means before this one
        taken = (after < 0) | (after % self.every == 0)
        weight = jnp.where(taken, 1 / (1. + number), 0.)
        ema = jax.tree.map(lambda mean, p: (mean + weight * (p - mean)).astype(mean.dtype),
                           state.ema, new.params)
        return replace(new, ema=ema), metrics
