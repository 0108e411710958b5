"""Batches to which each example is admitted by a coin of its own, as private training assumes."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.around import Around
from jaxdl.data.source import Batch, Source, Transform
from jaxdl.errors import UserError

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class PoissonSource:
    """A source whose every batch holds each example with probability `rate`, independently.

    Attributes:
      source: of the examples.
      expected: how many examples a batch holds on average.
      transforms: those of `source`.
    """

    source: Source
    expected: int
    transforms: tuple[Transform, ...] = ()

    @property
    def size(self) -> int:
        return self.source.size

    @property
    def rate(self) -> float:
        """The probability with which an example enters a batch."""
        return self.expected / self.size

    @property
    def arrays(self) -> Mapping[str, Any] | None:
        return self.source.arrays

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        """The ids of the examples that were drawn, then -1 where rows are left over."""
        room = math.ceil(self.expected + 6 * math.sqrt(self.expected))
        if batch_size < min(room, self.size):
            raise UserError(f"batch_size={batch_size}: batches of {self.expected} examples on "
                            f"average need room for more; expected at least "
                            f"{min(room, self.size)}.")
        coins = np.random.Philox(key=np.array([seed, position], np.uint64)).random_raw(self.size)
        drawn = np.flatnonzero(coins < np.uint64(min(self.rate, 1 - 2 ** -53) * 2 ** 64))
        ids = np.full(batch_size, -1, np.int32)
        ids[:len(drawn)] = drawn[:batch_size]  # More than fit there are once in 10^8 batches.
        return ids

    def read(self, index: Any) -> dict[str, Any]:
        return self.source.read(np.maximum(index, 0))

    def transform(self, batch: Batch, key: Array) -> Batch:
        index, source = batch["index"], self.source
        if self.transforms:
            source = replace(source, transforms=self.transforms)  # type: ignore[type-var]
        return source.transform({**batch, "index": jnp.maximum(index, 0),
                                 "mask": jnp.where(index >= 0, batch["mask"], 0)}, key)


@dataclass(frozen=True, kw_only=True)
class Poisson(Around):
    """Other data, of which a training batch draws each example by a coin of its own.

    Batches then differ in how many examples they hold, as the accountant of private training
    assumes (Abadi et al. 2016, section 2.2). `batch_size` is the rows that there are for them, at
    least expected + 6 sqrt(expected); those left over are masked. There are no epochs: "seen"
    counts rows.

    Attributes:
      data: the data set.
      expected: how many examples a batch holds on average.
    """

    not_applicable: ClassVar[Mapping[str, str]] = {
        "order": "each batch is drawn anew, there are no epochs"}

    expected: Size = 256

    def open(self, split: str) -> Source:
        source = self.data.open(split)
        if split != "train":
            return source
        if self.expected > source.size:
            raise UserError(f"Poisson: expected={self.expected} is more than the {source.size} "
                            "training examples.")
        return PoissonSource(source=source, expected=self.expected,
                             transforms=getattr(source, "transforms", ()))

    def fingerprint(self) -> str:
        text = f"poisson {self.expected} {self.data.fingerprint()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
