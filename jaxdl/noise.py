"""Random numbers for each example of a batch, by its id: never by its place in the batch or on a
device."""

from collections.abc import Sequence

import jax

from jaxdl.task import Batch

Array = jax.Array


def keys(key: Array, batch: Batch) -> Array:
    """One key for each example: [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])


def normal(key: Array, batch: Batch, shape: Sequence[int]) -> Array:
    """Standard normal numbers of that shape for each example: [B, *shape]."""
    return jax.vmap(lambda key: jax.random.normal(key, tuple(shape)))(keys(key, batch))


def uniform(key: Array, batch: Batch, shape: Sequence[int]) -> Array:
    """Uniform numbers in [0, 1) of that shape for each example: [B, *shape]."""
    return jax.vmap(lambda key: jax.random.uniform(key, tuple(shape)))(keys(key, batch))
