"""Images of two kinds, without anything that says which belongs to which."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxdl.data.images import Images
from jaxdl.data.source import Batch, OnHost, Source, StandIn, epoch_index
from jaxdl.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Domains(OnHost):
    """A source of pairs of images, each of its own kind: "image" and "other".

    Attributes:
      first, second: the images of each kind, [N, H, W, C] and [M, H, W, C].
    """

    first: np.ndarray
    second: np.ndarray

    @property
    def size(self) -> int:
        """Of the larger kind. In evaluation, where the ids are 0 ... size - 1, both are gone
        through in order, and the smaller one begins again."""
        return max(len(self.first), len(self.second))

    def index(self, seed: int, position: int, batch_size: int) -> np.ndarray:
        """Each kind is gone through by itself, in an order of its own: the id of images i and j is
        size + i + N * ((j - i) mod M)."""
        i = epoch_index(seed, position, batch_size, len(self.first)).astype(np.int64)
        j = epoch_index(seed + 1, position, batch_size, len(self.second)).astype(np.int64)
        pair = i + len(self.first) * ((j - i) % len(self.second))
        return (self.size + pair).astype(np.int32)

    def read(self, index: Any) -> Batch:
        index = np.asarray(index)
        pair = index - self.size
        i = np.where(pair < 0, index, pair) % len(self.first)
        j = np.where(pair < 0, index, pair // len(self.first) + i) % len(self.second)
        return {"image": self.first[i], "other": self.second[j]}

    def transform(self, batch: Batch, key: Any) -> Batch:
        """Both kinds go through the same transforms, with the same random numbers."""
        other = super().transform({**batch, "image": batch["other"]}, key)["image"]
        return {**super().transform(batch, key), "other": other}


@dataclass(frozen=True, kw_only=True)
class TwoDomains:
    """Of a labelled data set, the images of some classes as one kind and of some others as another
    one, each drawn by itself.

    Attributes:
      data: images with labels, which also says how they are augmented and normalised.
      first: names of the classes of "image".
      second: of "other".
      stand_in: what to train on where this data is absent.
    """

    data: Images
    first: tuple[str, ...]
    second: tuple[str, ...]
    stand_in: StandIn | None = None

    def prepare(self) -> None:
        self.data.prepare()
        for name in (*self.first, *self.second):
            if name not in self.data.names:
                raise UserError(f"TwoDomains: {name!r} is no class; there are "
                                f"{', '.join(map(repr, self.data.names))}.")

    def open(self, split: str) -> Source:
        content: Any = self.data.open(split)
        if content.arrays is None:
            raise UserError("TwoDomains: data: expected images that are kept in memory.")
        first, second = self._of(content, self.first), self._of(content, self.second)
        if len(first) * len(second) + max(len(first), len(second)) >= 1 << 31:
            raise UserError(f"TwoDomains: {len(first):,} and {len(second):,} images make more "
                            "pairs than there are ids of 32 bits.")
        return Domains(first=first, second=second, transforms=content.transforms)

    def _of(self, content: Any, names: Sequence[str]) -> np.ndarray:
        labels = [list(self.data.names).index(name) for name in names]
        return np.asarray(content.arrays["image"])[np.isin(content.arrays["label"], labels)]

    def fingerprint(self) -> str:
        text = f"{self.data.fingerprint()} {self.first} {self.second}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]
