"""Differentially private training (Abadi et al. 2016), and how much privacy a run has spent.

Anyone who is given the trained parameters can tell next to nothing about whether one example was
among the training data: (epsilon, delta)-differential privacy, where two data sets are neighbours
if one has one example more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxdl.accountant import privacy_spent
from jaxdl.config import Fraction, NonNegative, Size
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.parallel import nearest_divisors
from jaxdl.task import Aux, Batch, Mean, merge, norm, partition
from jaxdl.tasks.averaging import SWA
from jaxdl.tasks.wrapped import Wrapped, with_gradient
from jaxdl.tracing import current

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Private(Wrapped):
    """DP-SGD of Abadi et al. (2016), https://arxiv.org/abs/1607.00133, algorithm 1.

    The gradient g_i of each example is clipped to the norm `clip`, they are summed, and noise makes
    up for what one example can contribute:

        g = (sum_i g_i * min(1, clip / |g_i|) + noise * clip * Normal(0, 1)) / B

    with B the rows of the batch, masked ones included, and g_i weighted where the mask has weights.
    A penalty is part of each example's loss. "clipped" among the metrics is the part of examples
    whose gradient was longer than `clip`.

    What the guarantee rests on, beside this: that no example is in the gradient of another (no
    batch norm, which is refused; no mixup in the data), that the gradient is asked for once a step
    (SAM belongs inside, not around), and that only parameters are given away. The seed of the run
    is a secret: who knows it, from config.json, can draw the same noise. The metrics of training
    are not private, nor are choices made by looking at them. Every optimizer, and every average of
    parameters, keeps the guarantee.

    Attributes:
      clip: C, largest norm of one example's gradient.
      noise: sigma, the noise multiplier: its standard deviation in units of `clip`.
      group: examples whose gradients are in memory at once; None for the whole batch.
    """

    clip: NonNegative = 1.0
    noise: NonNegative = 1.1
    group: Size | None = None

    not_applicable: ClassVar[Mapping[str, str]] = {
        "accumulation": "each micro-batch would have noise of its own",
        "bfloat16": "the noise in both gradients is the same, and hides the rest",
        "dead_units": "noise gives every unit a gradient",
        "finite_differences": "a clipped gradient with noise is that of no loss",
        "gradients": "noise gives every parameter a gradient",
        "overfits": "clipping and noise keep it from learning any example by heart"}
    any_batch: ClassVar[bool] = False  # The same noise would be more of a smaller batch's mean.

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        inner = self.inside()
        if not variables:
            self._refuse()
            found = inner.loss(variables, batch, key, train=train)
            if kept := sorted(set(variables) - {"params"}):
                raise UserError(f"Private: the model keeps {', '.join(kept)}, through which the "
                                "examples of a batch see each other; choose one without, as by "
                                "batch_norm=False.")
            return found
        if not train:
            return inner.loss(variables, batch, key, train=train)
        self._refuse()
        trained, frozen = partition(variables["params"], self.freezes())
        params = jax.lax.stop_gradient(trained)
        for_examples, for_noise = jax.random.split(key)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(for_examples, batch["index"])

        def objective(params: Any, example: Batch, key: Array) -> tuple[Array, tuple[Mean, Aux]]:
            alone = jax.tree.map(lambda x: x[None], example)
            mean, aux = inner.loss({"params": merge(params, frozen)}, alone, key, train=True)
            value = mean.total / jnp.where(mean.count > 0, mean.count, 1)
            return value if aux.penalty is None else value + aux.penalty, (mean, aux)

        def summed(examples: Batch, keys: Array) -> tuple[Any, tuple[Mean, Mapping[str, Mean]]]:
            gradients, (mean, aux) = jax.vmap(jax.grad(objective, has_aux=True), (None, 0, 0))(
                params, examples, keys)  # [B, ...] each
            length, mask = jax.vmap(norm)(gradients), examples["mask"]  # [B]
            # A weighted example's gradient is clipped with its weight.
            scale = jnp.minimum(mask, self.clip / jnp.maximum(length, 1e-12))
            total = jax.tree.map(lambda g: jnp.tensordot(scale.astype(g.dtype), g, 1), gradients)
            mean, metrics = jax.tree.map(lambda x: x.sum(0), (mean, aux.metrics))
            return total, (mean, {**metrics, "clipped": Mean.of(mask * length > self.clip, mask)})

        total, (mean, metrics) = self._over_groups(summed, (dict(batch), keys))
        leaves, tree = jax.tree.flatten(total)
        rows = len(batch["mask"])
        gradient = jax.tree.unflatten(tree, [
            (g + self.noise * self.clip * jax.random.normal(k, g.shape, g.dtype)) / rows
            for g, k in zip(leaves, jax.random.split(for_noise, len(leaves)), strict=True)])
        # A batch that drew no example has its noise all the same.
        mean = Mean(mean.total, jnp.where(mean.count > 0, mean.count, 1))
        return with_gradient(mean, trained, gradient), Aux(metrics=metrics)

    def _over_groups(self, summed: Any, examples: Any) -> Any:
        """summed(*examples), `group` examples at a time."""
        rows = len(examples[1])
        if self.group is None or self.group == rows:
            return summed(*examples)
        if rows % self.group:
            raise UserError(f"task.group={self.group} does not divide the batch of {rows}; the "
                            f"nearest that does: {nearest_divisors(rows, self.group)}.")
        groups = jax.tree.map(lambda x: x.reshape(-1, self.group, *x.shape[1:]), examples)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(
            summed, *jax.tree.map(lambda x: x[0], groups)))
        return jax.lax.scan(lambda total, group: (jax.tree.map(jnp.add, total, summed(*group)),
                                                  None), zeros, groups)[0]

    def _refuse(self) -> None:
        if self.accumulate != 1:
            raise UserError(f"task.accumulate={self.accumulate}: each micro-batch would have noise "
                            "of its own in Private; task.group saves the memory.")
        if current().device_axis is not None:
            raise UserError("parallel=pmap: each device would have noise of its own in Private; "
                            "parallel=jit computes the same on all devices.")


@dataclass(frozen=True, kw_only=True)
class PrivacySpent:
    """Reports "epsilon": what a run with `Private` has spent until now.

    The accountant assumes that each example enters each batch by a coin of its own, as it does
    with `data.poisson.Poisson`. Batches of a shuffled epoch are held to the same number by wide
    convention, but it is not proven for them, and can be too low (Chua et al. 2024,
    https://arxiv.org/abs/2403.17673); "sampled" is 1 where the assumption holds, else 0.

    Attributes:
      delta: the probability with which the guarantee may fail; less than one over the number of
        training examples.
      every: steps between two reports.
    """

    delta: Fraction = 1e-5
    every: Size = 1_000

    def __call__(self, task: Any, state: Any, context: Context) -> dict[str, float]:
        while isinstance(task, SWA):
            task = task.task
        if not isinstance(task, Private):
            raise UserError(f"PrivacySpent: the task is {type(task).__name__}; expected Private, "
                            "outside of every method but SWA.")
        source: Any = context.source("train")
        rate = getattr(source, "rate", None)
        spent = privacy_spent(rate=min(1., context.batch_size / source.size)
                              if rate is None else rate,
                              noise=float(task.noise), steps=context.step, delta=self.delta)
        return {"epsilon": spent, "sampled": float(rate is not None)}


