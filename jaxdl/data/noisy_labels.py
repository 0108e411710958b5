"""Wrong labels on purpose: how a method bears mistakes is measured by making them."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxdl.config import Count, Fraction, Size
from jaxdl.data.source import Batch
from jaxdl.errors import UserError

Array = jax.Array


class Noise(Protocol):
    """How labels go wrong."""

    def matrix(self, classes: int) -> Array:
        """T[i, j], the probability that an example of class i is labelled j: [classes, classes]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Symmetric:
    """A wrong label is any other class, each equally likely.

    Attributes:
      rate: the part of the labels that is wrong.
    """

    rate: Fraction = 0.4

    def matrix(self, classes: int) -> Array:
        own = jnp.eye(classes)
        return (1 - self.rate) * own + self.rate / max(classes - 1, 1) * (1 - own)


@dataclass(frozen=True, kw_only=True)
class PairFlip:
    """A wrong label is the next class; that of the last class is the first one.

    Attributes:
      rate: the part of the labels that is wrong.
    """

    rate: Fraction = 0.4

    def matrix(self, classes: int) -> Array:
        own = jnp.eye(classes)
        return (1 - self.rate) * own + self.rate * jnp.roll(own, 1, axis=1)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """Any other noise that depends on the class alone.

    Attributes:
      rows: of T, one for each true class; each sums to 1.
    """

    rows: tuple[tuple[Fraction, ...], ...]

    def matrix(self, classes: int) -> Array:
        if {len(self.rows), *map(len, self.rows)} != {classes}:
            raise UserError(f"Transition: expected {classes} rows of {classes} numbers, got "
                            f"{len(self.rows)} of {', '.join(map(str, map(len, self.rows)))}.")
        return jnp.asarray(self.rows, jnp.float32)


@dataclass(frozen=True, kw_only=True)
class WrongLabels:
    """Replaces labels by what `noise` makes of them; for `augment`, which is for training alone.

    An example's label depends on its id and `seed` alone: it is wrong in the same way in every
    epoch, in every run, and whatever the method.

    Attributes:
      noise: how labels go wrong.
      classes: how many there are.
      seed: another one, other mistakes.
    """

    noise: Noise = Symmetric()
    classes: Size = 10
    seed: Count = 0

    def __call__(self, batch: Batch, keys: Array) -> Batch:
        label, key = batch["label"], jax.random.key(self.seed)
        own = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        u = jax.vmap(jax.random.uniform)(own)  # [B]
        below = jnp.cumsum(self.noise.matrix(self.classes), 1)[:, :-1]  # [classes, classes - 1]
        drawn = (u[:, None] >= below[label]).sum(-1)  # [B]
        known = (label >= 0) & (label < self.classes)
        return {**batch, "label": jnp.where(known, drawn, label).astype(label.dtype)}
