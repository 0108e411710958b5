"""Sharpness-aware minimisation of Foret et al. (2021), https://arxiv.org/abs/2010.01412."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.config import NonNegative
from jaxdl.task import Aux, Batch, Mean, merge, norm, partition
from jaxdl.tasks.wrapped import Wrapped

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class SAM(Wrapped):
    """The gradient at w + radius * g / |g| instead of at w, with g the gradient at w (algorithm 1).

    It takes two gradients a step. Where a batch is split into micro-batches, or devices run
    programs of their own (parallel=pmap), each has its own g, as in the paper's section 4.1.

    Attributes:
      radius: rho; 0.05 in the paper for CIFAR-10, 0.1 for CIFAR-100.
    """

    radius: NonNegative = 0.05

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        inner = self.inside()
        if not train or not variables:
            return inner.loss(variables, batch, key, train=train)
        trained, frozen = partition(variables["params"], self.freezes())

        def at(params: Any) -> tuple[Mean, Aux]:
            return inner.loss({**variables, "params": merge(params, frozen)}, batch, key,
                              train=True)

        def objective(params: Any) -> Array:
            mean, aux = at(params)
            total = mean.total / jnp.where(mean.count > 0, mean.count, 1)
            return total if aux.penalty is None else total + aux.penalty

        gradient = jax.grad(objective)(jax.lax.stop_gradient(trained))
        step = self.radius / jnp.maximum(norm(gradient), 1e-12)
        return at(jax.tree.map(lambda w, g: w + (step * g).astype(w.dtype), trained, gradient))
