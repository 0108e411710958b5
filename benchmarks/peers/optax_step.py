"""What the contenders on plain JAX and on Linen share: the optimizer, and the compiled step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from worker import Job


def transformation(workload: str, rate: Any = None) -> optax.GradientTransformation:
    """The optimizer of a workload, with another learning rate if one is given."""
    if workload.startswith("gpt"):
        return optax.adamw(1e-3, weight_decay=1e-2)
    if workload.startswith("lstm"):
        return optax.adam(1e-3 if rate is None else rate)
    return optax.sgd(0.01 if rate is None else rate, momentum=0.9)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over everything but classes, in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels).mean()


def count(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def job(workload: str, loss: Callable[..., Any], params: Any, statistics: Any, batch: Any,
        version: str) -> Job:
    """The step as everybody writes it: value_and_grad, Optax, jit, a donated state.

    Args:
      workload: its name, for the optimizer.
      loss: (params, statistics, x, y) -> (loss, new statistics).
      params: parameters at the start.
      statistics: of batch normalisation; {} for none.
      batch: (x, y), NumPy arrays.
      version: of the framework.
    """
    tx = transformation(workload)

    def step(state: Any, x: jax.Array, y: jax.Array) -> Any:
        params, statistics, opt_state = state
        (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(
            params, statistics, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), statistics, opt_state), value

    compiled = jax.jit(step, donate_argnums=0)
    parameters = count(params)
    state, (x, y) = (params, statistics, jax.jit(tx.init)(params)), jax.device_put(batch)

    def run(steps: int) -> float:
        nonlocal state
        value: Any = None
        for _ in range(steps):
            state, value = compiled(state, x, y)
        jax.block_until_ready(state)
        return float(value)

    return Job(lambda: parameters, run, jax.devices()[0].device_kind, version)
